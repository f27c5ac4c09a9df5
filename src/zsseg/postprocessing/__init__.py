"""From the logits of a picture's queries to maps and masks; every family's output goes through here."""
