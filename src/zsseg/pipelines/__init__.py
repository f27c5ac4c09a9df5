"""Tasks for ``transformers.pipeline``."""

# Registration runs when this module has been imported; that must be before any module of ours is half
# imported.
import transformers.pipelines  # noqa: F401
