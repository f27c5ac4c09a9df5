"""Model families; each lives in its own folder and none imports another."""

# Registration runs when this module has been imported; that must be before any module of ours is half
# imported.
import transformers.models.auto.modeling_auto  # noqa: F401
