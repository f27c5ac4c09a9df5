"""The metrics as modules of the ``evaluate`` library; each folder is also laid out as a Space of the Hub."""

from pathlib import Path

MODULES = ("mean_iou", "panoptic_quality", "semantic_guided_iou")


def locate_evaluate_module(name: str) -> str:
    """The folder that ``evaluate.load`` takes.

    Args:
        name: one of :data:`MODULES`.

    Raises:
        ValueError: if there is no such module.

    Example:
        >>> locate_evaluate_module("mean_iou").rpartition("zsseg")[2]
        '/metrics/evaluate_modules/mean_iou'
    """
    if name not in MODULES:
        raise ValueError(f"there is no evaluate module {name!r}; there are {list(MODULES)}")
    return str(Path(__file__).parent / name)
