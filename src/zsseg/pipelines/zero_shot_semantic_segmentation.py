"""``pipeline("zero-shot-semantic-segmentation")``."""

from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import ModelOutput

from zsseg.pipelines.zero_shot_segmentation import ZeroShotSegmentationPipeline
from zsseg.vocabulary import Vocabulary


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
        (label_map,) = self.processor.post_process_semantic_segmentation(
            model_outputs, target_sizes=[model_outputs.target_size]
        )
        labels, areas = np.unique(label_map.numpy(), return_counts=True)
        return [
            {
                "label": vocabulary[label_id].name,
                "mask": Image.fromarray(label_map.numpy() == label_id).convert("L"),
                "area": int(area),
            }
            for label_id, area in zip(labels, areas, strict=True)
        ]
