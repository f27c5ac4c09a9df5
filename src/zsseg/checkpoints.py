"""Which checkpoint a name means: a folder, one on the Hub, or one that comes with the package."""

import os
from pathlib import Path

PACKAGED_FOLDER = Path(__file__).with_name("packaged") / "concat-patchwork"
PACKAGED_CLIP_FOLDER = PACKAGED_FOLDER.with_name("patchwork-clip")
PACKAGED_FILES = (
    "README.md",
    "config.json",
    "evaluation.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def packaged(name: str = "concat-patchwork") -> Path:
    """Folder of a checkpoint inside the package, for ``from_pretrained``.

    Args:
        name: "concat-patchwork", a CONCAT of Patchwork's world, or "patchwork-clip", the CLIP in whose text
            space it works, for transformers' ``CLIPModel``.

    Raises:
        ValueError: if no such checkpoint is packaged.
        FileNotFoundError: if files of it are missing from the installation.
        OSError: if its weights are cut off or are no weights.
    """
    folders = {"concat-patchwork": PACKAGED_FOLDER, "patchwork-clip": PACKAGED_CLIP_FOLDER}
    if name not in folders:
        raise ValueError(f"the packaged checkpoints are {list(folders)}, got {name!r}")
    folder = folders[name]
    remedy = (
        "reinstall the package (pip install --force-reinstall --no-deps zsseg), or in a clone restore the "
        "folder (git checkout -- src/zsseg/packaged)"
    )
    if missing := [file for file in PACKAGED_FILES if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"the packaged checkpoint is incomplete: {', '.join(missing)} missing from {folder}; {remedy}"
        )
    from safetensors import SafetensorError, safe_open

    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, "numpy"):
            pass
    except SafetensorError as error:
        raise OSError(
            f"the packaged checkpoint is damaged: {weights} is no whole safetensors file ({error}); {remedy}"
        ) from error
    return folder


def resolve_checkpoint(name: str | os.PathLike[str] | None = None) -> str:
    """What ``from_pretrained`` takes for a checkpoint's name.

    Args:
        name: a folder or Hub id, returned as it is; None means the packaged checkpoint.

    Raises:
        OSError: as :func:`packaged`, if that one is meant.
    """
    return str(packaged() if name is None else name)
