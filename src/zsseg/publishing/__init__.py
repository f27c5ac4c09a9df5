"""From a trained checkpoint and its evaluation to what others load: small weights and a card."""
