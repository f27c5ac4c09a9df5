"""``pipeline("zero-shot-panoptic-segmentation")``."""

from typing import Any

from transformers.utils import ModelOutput

from zsseg.pipelines.zero_shot_segmentation import ZeroShotSegmentationPipeline, build_records
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary


class ZeroShotPanopticSegmentationPipeline(ZeroShotSegmentationPipeline):
    """Things and stuff named by ``candidate_labels``, every pixel in one segment or void.

    Example::

        segment = pipeline("zero-shot-panoptic-segmentation", model=path_or_hub_id)
        segments = segment("street.jpg", candidate_labels=["road", "car"], stuff_labels=["road"])
        # [{"id": 1, "label": "car", "score": 0.93, "isthing": True, "mask": <PIL L>, "area": 1811, "bbox":
        # [x, y, w, h]}]
    """

    postprocess_options = ("threshold", "mask_threshold", "overlap_mask_area_threshold")

    def postprocess(
        self, model_outputs: ModelOutput, vocabulary: Vocabulary, **thresholds: float
    ) -> list[dict[str, Any]]:
        """Logits of one picture → its segments."""
        return build_records(self.merge(model_outputs, vocabulary, **thresholds), vocabulary)

    def merge(
        self, model_outputs: ModelOutput, vocabulary: Vocabulary, **thresholds: float
    ) -> PanopticSegmentation:
        """Logits of one picture → things and stuff in one map."""
        (segmentation,) = self.processor.merge_panoptic(
            model_outputs,
            stuff_label_ids=vocabulary.stuff_label_ids,
            target_sizes=[model_outputs.target_size],
            **thresholds,
        )
        return segmentation
