"""Which checkpoint a name means: a folder, one on the Hub, or the one that comes with the package."""

import os
from pathlib import Path

PACKAGED_FOLDER = Path(__file__).with_name("packaged") / "concat-patchwork"
PACKAGED_FILES = (
    "README.md",
    "config.json",
    "evaluation.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def packaged() -> Path:
    """Folder of the checkpoint inside the package: a CONCAT of Patchwork's world, for ``from_pretrained``.

    Raises:
        FileNotFoundError: if files of it are missing from the installation.
        OSError: if its weights are cut off or are no weights.
    """
    remedy = (
        "reinstall the package (pip install --force-reinstall --no-deps zsseg), or in a clone restore the "
        "folder (git checkout -- src/zsseg/packaged)"
    )
    if missing := [name for name in PACKAGED_FILES if not (PACKAGED_FOLDER / name).is_file()]:
        raise FileNotFoundError(
            f"the packaged checkpoint is incomplete: {', '.join(missing)} missing from {PACKAGED_FOLDER}; "
            f"{remedy}"
        )
    from safetensors import SafetensorError, safe_open

    weights = PACKAGED_FOLDER / "model.safetensors"
    try:
        with safe_open(weights, "numpy"):
            pass
    except SafetensorError as error:
        raise OSError(
            f"the packaged checkpoint is damaged: {weights} is no whole safetensors file ({error}); {remedy}"
        ) from error
    return PACKAGED_FOLDER


def resolve_checkpoint(name: str | os.PathLike[str] | None = None) -> str:
    """What ``from_pretrained`` takes for a checkpoint's name.

    Args:
        name: a folder or Hub id, returned as it is; None means the packaged checkpoint.

    Raises:
        OSError: as :func:`packaged`, if that one is meant.
    """
    return str(packaged() if name is None else name)
