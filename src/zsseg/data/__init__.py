"""Data sets of pictures with panoptic ground truth, their labels, and what turns them into batches.

Reading needs neither torch nor the ``datasets`` library; batches and columns import them when called, and
``PatchworkIterableDataset``, a class of torch's, is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from zsseg.data.annotation_files import DataProblem
from zsseg.data.checking import DatasetCheck, check_dataset
from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.collate import PanopticCollator
from zsseg.data.datasets_columns import HfPanopticDataset, to_hf_dataset
from zsseg.data.examples import IGNORE_INDEX, PanopticDataset, PanopticExample
from zsseg.data.opening import open_dataset, open_stream
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.seen_filter import SubsetDataset, drop_images_with_unseen, ignore_unseen
from zsseg.data.semantic_maps import (
    SemanticMapDataset,
    convert_panoptic_to_semantic,
    convert_semantic_to_panoptic,
)
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import (
    ColorJitter,
    Compose,
    LargeScaleJitter,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
)
from zsseg.data.vocabularies import (
    list_label_spaces,
    list_splits,
    load_label_space,
    load_split,
    mark_unseen,
)

if TYPE_CHECKING:
    from zsseg.data.patchwork.stream import PatchworkIterableDataset

__all__ = [
    "IGNORE_INDEX",
    "CocoInstanceDataset",
    "CocoPanopticDataset",
    "ColorJitter",
    "Compose",
    "DataProblem",
    "DatasetCheck",
    "HfPanopticDataset",
    "LargeScaleJitter",
    "PanopticCollator",
    "PanopticDataset",
    "PanopticExample",
    "PatchworkDataset",
    "PatchworkIterableDataset",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Resize",
    "SemanticMapDataset",
    "StreamedPanopticDataset",
    "SubsetDataset",
    "TransformedDataset",
    "check_dataset",
    "convert_panoptic_to_semantic",
    "convert_semantic_to_panoptic",
    "drop_images_with_unseen",
    "ignore_unseen",
    "list_label_spaces",
    "list_splits",
    "load_label_space",
    "load_split",
    "mark_unseen",
    "open_dataset",
    "open_stream",
    "to_hf_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "PatchworkIterableDataset":
        from zsseg.data.patchwork.stream import PatchworkIterableDataset

        return PatchworkIterableDataset
    raise AttributeError(f"module 'zsseg.data' has no attribute {name!r}")
