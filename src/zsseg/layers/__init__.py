"""Blocks that two families or more are built from."""

# Registration runs when this module has been imported; that must be before any module of ours is half
# imported.
import transformers.models.auto.modeling_auto  # noqa: F401
