"""Which checkpoint a name means: a folder, one on the Hub, or one that comes with the package."""

import os
from pathlib import Path

DEFAULT_CHECKPOINT = "concat-patchwork"
PACKAGED_FOLDERS = {
    name: Path(__file__).with_name("packaged") / name
    for name in (DEFAULT_CHECKPOINT, "concat-patchwork-inductive", "scan-patchwork", "patchwork-clip")
}
PACKAGED_FILES = (
    "README.md",
    "config.json",
    "evaluation.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def packaged(name: str = DEFAULT_CHECKPOINT) -> Path:
    """Folder of a checkpoint inside the package, for ``from_pretrained``.

    Args:
        name: "concat-patchwork", a CONCAT of Patchwork's world; "concat-patchwork-inductive", the same, but
            never told the unseen names, to try adaptation on; "scan-patchwork", a SCAN of that world; or
            "patchwork-clip", the CLIP in whose space all work, for transformers' ``CLIPModel``.

    Raises:
        ValueError: if no such checkpoint is packaged.
        FileNotFoundError: if files of it are missing from the installation.
        OSError: if its weights are cut off or are no weights.
    """
    if name not in PACKAGED_FOLDERS:
        raise ValueError(f"the packaged checkpoints are {list(PACKAGED_FOLDERS)}, got {name!r}")
    folder = PACKAGED_FOLDERS[name]
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
        name: a folder or Hub id, returned as it is; the name of a packaged checkpoint, unless a file or
            folder is called so; None means "concat-patchwork".

    Raises:
        OSError: as :func:`packaged`, if a packaged one is meant.
    """
    if name is None:
        return str(packaged())
    if name in PACKAGED_FOLDERS and not Path(name).exists():
        return str(packaged(str(name)))
    return str(name)
