"""Pictures and labels in, tensors out; logits in, segments out."""
