"""Pictures of an evaluation: some of its examples, prediction beside ground truth."""

from pathlib import Path

import numpy as np

from zsseg.data.examples import PanopticExample
from zsseg.training.evaluation import IGNORED, Prediction
from zsseg.visualization import draw_comparison
from zsseg.vocabulary import Vocabulary


class OverlayWriter:
    """Draws so many of the examples it is shown, evenly spread over all of them.

    Args:
        folder: where the pictures go; made when the first one is written.
        vocabulary: what label ids mean.
        num_images: how many examples there will be.
        num_overlays: how many to draw.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, *, num_images: int, num_overlays: int) -> None:
        self.folder = folder
        self._vocabulary = vocabulary
        self._drawn = set(np.linspace(0, num_images - 1, num_overlays).round().astype(int).tolist())
        self._position = 0

    def take(self, example: PanopticExample, prediction: Prediction, target: Prediction) -> None:
        """Look at the next example; its prediction and its ground truth are of one form."""
        if self._position in self._drawn:
            picture = draw_comparison(
                example.image, prediction, target, self._vocabulary, ignore_index=IGNORED
            )
            path = (self.folder / example.file_name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        self._position += 1
