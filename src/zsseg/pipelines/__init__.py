"""Tasks for ``transformers.pipeline``."""
