"""Checkpoints of other projects → those of zsseg: read safely, accounted for, compared."""
