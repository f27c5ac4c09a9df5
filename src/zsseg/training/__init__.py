"""The one training loop, its stages, its checkpoints and the evaluation that runs inside it."""
