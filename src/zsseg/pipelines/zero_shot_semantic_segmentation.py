"""``pipeline("zero-shot-semantic-segmentation")``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import ModelOutput

from zsseg.data.semantic_maps import convert_semantic_to_panoptic
from zsseg.pipelines.zero_shot_segmentation import ZeroShotSegmentationPipeline
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

NO_LABEL = -1
"""Every pixel gets a label, so nothing may stand for "unknown": 255 is a label where there are 256."""


class ZeroShotSemanticSegmentationPipeline(ZeroShotSegmentationPipeline):
    """One mask per label found; every pixel gets the likeliest of ``candidate_labels``.

    Example::

        segment = pipeline("zero-shot-semantic-segmentation", model=path_or_hub_id)
        segments = segment("street.jpg", candidate_labels=["road", "car"])
        # [{"label": "road", "mask": <PIL L>, "area": 90211}, …] in the order of the labels
    """

    postprocess_options = ()

    def postprocess(self, model_outputs: ModelOutput, vocabulary: Vocabulary) -> list[dict[str, Any]]:
        """Logits of one picture → a mask per label that occurs."""
        label_map = self._merge_labels(model_outputs)
        labels, areas = np.unique(label_map, return_counts=True)
        return [
            {
                "label": vocabulary[label_id].name,
                "mask": Image.fromarray(label_map == label_id).convert("L"),
                "area": int(area),
            }
            for label_id, area in zip(labels, areas, strict=True)
        ]

    def merge(
        self, model_outputs: ModelOutput, vocabulary: Vocabulary, **options: float
    ) -> PanopticSegmentation:
        """Logits of one picture → a segment for each label found; this task takes no options."""
        if options:
            raise TypeError(f"a semantic result has no thresholds, got {sorted(options)}")
        label_map = self._merge_labels(model_outputs)
        return convert_semantic_to_panoptic(label_map, vocabulary, ignore_index=NO_LABEL)

    def _merge_labels(self, model_outputs: ModelOutput) -> NDArray[np.int64]:
        (label_map,) = self.processor.post_process_semantic_segmentation(
            model_outputs, target_sizes=[model_outputs.target_size]
        )
        return label_map.numpy()
