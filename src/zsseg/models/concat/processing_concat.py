"""CONCAT's processor."""

from typing import Any, Self

from transformers import AutoImageProcessor, AutoTokenizer

from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.processing.processing import ZeroShotSegmentationProcessor


class ConcatProcessor(ZeroShotSegmentationProcessor):
    """Images and labels for :class:`~zsseg.ConcatForPanopticSegmentation`, and its results as segments."""

    @classmethod
    def from_mask2former(cls, checkpoint: str, *, clip: str, **arguments: Any) -> Self:
        """The processor for a model made by ``ConcatForPanopticSegmentation.from_mask2former``.

        It takes the image settings of the Mask2Former and the tokenizer of the text tower.

        Args:
            checkpoint: any Mask2Former checkpoint with an image processor.
            clip: the checkpoint of the text tower.
            arguments: further arguments of the class, such as ``prompt_templates``.
        """
        settings = AutoImageProcessor.from_pretrained(checkpoint, backend="pil").to_dict()
        kept = ("size", "size_divisor", "image_mean", "image_std", "rescale_factor", "resample")
        image_processor = ConcatImageProcessorPil(
            **{name: settings[name] for name in kept if name in settings}
        )
        return cls(image_processor, AutoTokenizer.from_pretrained(clip), **arguments)
