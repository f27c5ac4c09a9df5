"""The pictures that a model got most wrong, with what it took for what."""

import heapq
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zsseg.data.examples import PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.metrics.run_lengths import find_runs
from zsseg.structures import PanopticSegmentation
from zsseg.training.evaluation import IGNORED, Prediction, Task, add_picture, build_metric
from zsseg.visualization import draw_comparison
from zsseg.visualization.caption import add_caption
from zsseg.vocabulary import Vocabulary

FIGURES: dict[Task, str] = {"panoptic": "PQ", "semantic": "mIoU"}


class _BadPicture(NamedTuple):
    """Ordered so that the smallest is the one to give up first: the best, and of equals the last."""

    negative_score: float
    negative_position: int
    example: PanopticExample
    prediction: Prediction
    target: Prediction


class WorstPictures:
    """Keeps the pictures with the lowest score of their own, no more than asked for at any time.

    The score is PQ or the mean IoU of the picture alone, over the labels that occur in it or were predicted.
    Pictures of which nothing is known have none.

    Args:
        vocabulary: what label ids mean.
        task: whose predictions are scored.
        count: how many to keep.
    """

    def __init__(self, vocabulary: Vocabulary, task: Task, count: int) -> None:
        self._vocabulary = vocabulary
        self._task: Task = task
        self._count = count
        self._position = 0
        self._heap: list[_BadPicture] = []

    def take(self, example: PanopticExample, prediction: Prediction, target: Prediction) -> None:
        """Look at the next picture; its prediction and its ground truth are of one form."""
        self._position += 1
        if not self._count:
            return
        metric = build_metric(self._task, self._vocabulary)
        add_picture(metric, prediction, example)
        score = metric.compute()[FIGURES[self._task]]
        if math.isnan(score):
            return
        picture = _BadPicture(-score, -self._position, example, prediction, target)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, picture)
        else:
            heapq.heappushpop(self._heap, picture)

    def write(self, folder: Path) -> list[Path]:
        """Draw what was kept into a folder, the worst first; those of an earlier run go.

        Returns:
            The files, named by rank, score in percent and picture.
        """
        figure = FIGURES[self._task]
        paths = []
        for rank, picture in enumerate(sorted(self._heap, reverse=True), start=1):
            score = -100 * picture.negative_score
            comparison = draw_comparison(
                picture.example.image,
                picture.prediction,
                picture.target,
                self._vocabulary,
                ignore_index=IGNORED,
            )
            confusion = describe_confusion(picture.prediction, picture.target, self._vocabulary)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{rank:02d}-{figure}-{score:.1f}-{Path(picture.example.file_name).stem}.png"
            add_caption(comparison, f"{figure} {score:.1f} %: {confusion}").save(path)
            paths.append(path)
        for old in set(folder.glob(f"[0-9][0-9]*-{figure}-*.png")) - set(paths):
            old.unlink()
        return paths


def describe_confusion(prediction: Prediction, target: Prediction, vocabulary: Vocabulary) -> str:
    """The largest area that was given a wrong label, or none, in words.

    Args:
        prediction: panoptic segmentation or (H, W) label ids.
        target: likewise.
        vocabulary: what label ids mean.

    Returns:
        Such as ``"23.4 % of the known pixels are road taken for river"``.
    """
    predicted, true, pixels = find_runs(_label_map(prediction), _label_map(target))
    known = int(pixels[true != IGNORED].sum())
    is_wrong = (true != IGNORED) & (predicted != true)
    if not is_wrong.any():
        return "every known pixel has the right label"
    pairs, places = np.unique(np.stack([true, predicted])[:, is_wrong], axis=1, return_inverse=True)
    areas = np.bincount(places.ravel(), weights=pixels[is_wrong])
    largest = int(areas.argmax())
    right, wrong = pairs[:, largest].tolist()
    taken = "left without a label" if wrong == IGNORED else f"taken for {vocabulary[wrong].name}"
    share = 100 * areas[largest] / known
    return f"{share:.1f} % of the known pixels are {vocabulary[right].name} {taken}"


def _label_map(labels: Prediction) -> NDArray[np.integer]:
    if isinstance(labels, PanopticSegmentation):
        return convert_panoptic_to_semantic(labels, ignore_index=IGNORED)
    return labels
