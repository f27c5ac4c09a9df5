"""Zero-shot panoptic and semantic segmentation by words.

Importing this package imports neither torch nor transformers; names load on first use (PEP 562), and the
families join transformers' Auto classes and pipelines when those are imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zsseg import checkpoints
from zsseg._version import __version__
from zsseg.registration import register, register_after_import

if TYPE_CHECKING:
    from zsseg.image_loading import load_image
    from zsseg.models.concat.configuration_concat import ConcatConfig
    from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
    from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation, ConcatPreTrainedModel
    from zsseg.models.concat.processing_concat import ConcatProcessor
    from zsseg.models.scan.configuration_scan import ScanConfig
    from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
    from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation, ScanPreTrainedModel
    from zsseg.models.scan.processing_scan import ScanProcessor
    from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
    from zsseg.structures import PanopticSegmentation, SegmentInfo
    from zsseg.vocabulary import Category, Vocabulary

_LAZY_NAMES = {
    "Category": "zsseg.vocabulary",
    "ConcatConfig": "zsseg.models.concat.configuration_concat",
    "ConcatForPanopticSegmentation": "zsseg.models.concat.modeling_concat",
    "ConcatImageProcessorPil": "zsseg.models.concat.image_processing_concat",
    "ConcatPreTrainedModel": "zsseg.models.concat.modeling_concat",
    "ConcatProcessor": "zsseg.models.concat.processing_concat",
    "PanopticSegmentation": "zsseg.structures",
    "PrecomputedTextEmbeddings": "zsseg.processing.precomputed_text_embeddings",
    "ScanConfig": "zsseg.models.scan.configuration_scan",
    "ScanForSemanticSegmentation": "zsseg.models.scan.modeling_scan",
    "ScanImageProcessorPil": "zsseg.models.scan.image_processing_scan",
    "ScanPreTrainedModel": "zsseg.models.scan.modeling_scan",
    "ScanProcessor": "zsseg.models.scan.processing_scan",
    "SegmentInfo": "zsseg.structures",
    "Vocabulary": "zsseg.vocabulary",
    "load_image": "zsseg.image_loading",
}

__all__ = [
    "Category",
    "ConcatConfig",
    "ConcatForPanopticSegmentation",
    "ConcatImageProcessorPil",
    "ConcatPreTrainedModel",
    "ConcatProcessor",
    "PanopticSegmentation",
    "PrecomputedTextEmbeddings",
    "ScanConfig",
    "ScanForSemanticSegmentation",
    "ScanImageProcessorPil",
    "ScanPreTrainedModel",
    "ScanProcessor",
    "SegmentInfo",
    "Vocabulary",
    "__version__",
    "checkpoints",
    "load_image",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'zsseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_after_import()
