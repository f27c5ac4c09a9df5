"""SCAN's processor."""

from collections.abc import Sequence
from typing import Any, Self

from transformers import AutoImageProcessor, AutoTokenizer

from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.prompts import VILD_PROMPTS


class ScanProcessor(ZeroShotSegmentationProcessor):
    """Images and labels for :class:`~zsseg.ScanForSemanticSegmentation`, and its results as segments."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any = None,
        text_embeddings: PrecomputedTextEmbeddings | None = None,
        prompt_templates: Sequence[str] = VILD_PROMPTS,
        **thresholds: float,
    ) -> None:
        super().__init__(image_processor, tokenizer, text_embeddings, prompt_templates, **thresholds)

    @classmethod
    def from_parts(cls, *, mask2former: str, clip: str, **arguments: Any) -> Self:
        """The processor for a model made by ``ScanForSemanticSegmentation.from_parts``.

        It takes the normalisation of the Mask2Former and the tokenizer of the CLIP.

        Args:
            mask2former: any Mask2Former checkpoint with an image processor.
            clip: the CLIP checkpoint.
            arguments: further arguments of the class, such as ``prompt_templates``.
        """
        settings = AutoImageProcessor.from_pretrained(mask2former, backend="pil").to_dict()
        kept = ("size", "size_divisor", "image_mean", "image_std", "rescale_factor", "resample")
        image_processor = ScanImageProcessorPil(**{name: settings[name] for name in kept if name in settings})
        return cls(image_processor, AutoTokenizer.from_pretrained(clip), **arguments)
