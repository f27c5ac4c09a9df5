"""The demonstration: a scene whose truth is known, what is found in it, and what is said of both."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from zsseg import __version__
from zsseg.cli.labels import parse_vocabulary
from zsseg.cli.messages import print_note
from zsseg.cli.text_layout import format_count
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.pipelines.records import build_segmentation
from zsseg.postprocessing.result_files import segments_to_json
from zsseg.structures import VOID_ID, PanopticSegmentation
from zsseg.visualization import draw_comparison
from zsseg.vocabulary import Category, Vocabulary

SCENE_SIZE = 512
"""Pixels; the checkpoint's processor brings the picture to the size it was trained at."""

UNSEEN_MARK = "*"
TITLE_WIDTH = 10


class DemoRun:
    """One scene of the held-out world.

    Args:
        preset: of the world.
        index: of the scene, 0 or more.
        labels: what to look for, as typed; None for the sixty of the world. A label that is none of them is
            taken for a thing that training has not shown.

    Raises:
        UsageError: if a label is empty or repeated, or there is none.
        ValueError: if there is no such preset.
    """

    def __init__(self, preset: str, index: int, labels: str | None) -> None:
        self.index = index
        self.scenes = PatchworkDataset(preset, seed=HELD_OUT_SEED, num_scenes=index + 1, size=SCENE_SIZE)
        self.world = self.scenes.vocabulary
        self.vocabulary = self.world if labels is None else _read_labels(labels, self.world)
        self.example = self.scenes[index]

    def print_setup(self, checkpoint: str) -> None:
        """Which scene, what it shows, and what is looked for."""
        name = self.scenes.preset.name
        typer.secho(f"scene {self.index} of Patchwork's held-out world, preset {name}", bold=True)
        _print_line("model", checkpoint)
        stuff, unseen = len(self.vocabulary.stuff_label_ids), len(self.vocabulary.unseen_label_ids)
        labels = format_count(len(self.vocabulary), "label")
        _print_line(
            "asked for", f"{labels}, {stuff} of them stuff, {unseen} unseen in training ({UNSEEN_MARK})"
        )
        _print_line("scene", _list_labels(self.example.target, self.world))
        if outsiders := [name for name in self.vocabulary.names if name not in self.world.names]:
            print_note(
                f"no label of Patchwork: {', '.join(outsiders)}. They are looked for like any words, but a "
                "checkpoint trained on Patchwork alone, as the packaged one, cannot tell other words apart"
            )

    def segment(self, segmenter: Any) -> PanopticSegmentation:
        """Look for the labels in the picture, as any caller of the pipeline would.

        Args:
            segmenter: pipeline of the panoptic task.
        """
        records = segmenter(
            self.example.image,
            candidate_labels=[category.spelling for category in self.vocabulary],
            stuff_labels=[self.vocabulary[label_id].name for label_id in self.vocabulary.stuff_label_ids],
        )
        return build_segmentation(records, self.vocabulary, self.example.target.size)

    def print_found(self, found: PanopticSegmentation) -> None:
        """What was found, and what became of each segment whose label training never showed."""
        _print_line("found", _list_labels(found, self.vocabulary))
        for segment in self.example.target.segments:
            category = self.world[segment.label_id]
            if not category.is_seen:
                name = self._find_name(found, self.example.target.mask(segment.id))
                outcome = "named right" if name == category.name else f"called {name or 'nothing'}"
                _print_line("unseen", f"{_mark(category)} {outcome}")

    def write(self, found: PanopticSegmentation, checkpoint: str, overlay: Path, records: Path) -> None:
        """Write the picture beside the result, and the segments as plain records.

        Args:
            found: what was found.
            checkpoint: by whom.
            overlay: PNG to write.
            records: JSON to write.
        """
        content = {
            "zsseg": __version__,
            "model": checkpoint,
            "scene": {
                "preset": self.scenes.preset.name,
                "seed": self.scenes.seed,
                "index": self.index,
                "size": self.scenes.size,
                "segments": segments_to_json(self.example.target, self.world),
            },
            "labels": [
                {"name": category.name, "isthing": category.is_thing, "is_seen": category.is_seen}
                for category in self.vocabulary
            ],
            "segments": segments_to_json(found, self.vocabulary),
        }
        overlay.parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(self.example.image, found, None, self.vocabulary).save(overlay)
        text = json.dumps(content, indent=2, ensure_ascii=False)
        records.write_text(text + "\n", encoding="utf-8")
        _print_line("wrote", f"{overlay}: the picture beside the result; {records}: the segments")

    def _find_name(self, found: PanopticSegmentation, region: NDArray[np.bool_]) -> str | None:
        """What most of a region was called."""
        ids, areas = np.unique(found.segment_ids[region], return_counts=True)
        largest = int(ids[areas.argmax()])
        label_ids = {segment.id: segment.label_id for segment in found.segments}
        return None if largest == VOID_ID else self.vocabulary[label_ids[largest]].name


def _read_labels(labels: str, world: Vocabulary) -> Vocabulary:
    typed = parse_vocabulary(labels, "", "")
    known = dict(zip(world.names, world, strict=True))
    return Vocabulary(
        tuple(
            Category(
                category.name,
                category.synonyms,
                is_thing=category.name not in known or known[category.name].is_thing,
                is_seen=category.name in known and known[category.name].is_seen,
            )
            for category in typed
        )
    )


def _list_labels(segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> str:
    """Such as ``"striped star*, plain disc ×2, red brick"``, things first."""
    counts = Counter(segment.label_id for segment in segmentation.segments)
    ordered = sorted(counts, key=lambda label_id: (not vocabulary[label_id].is_thing, label_id))
    names = (
        _mark(vocabulary[label_id]) + (f" ×{counts[label_id]}" if counts[label_id] > 1 else "")
        for label_id in ordered
    )
    return ", ".join(names) or "nothing"


def _mark(category: Category) -> str:
    return category.name if category.is_seen else category.name + UNSEEN_MARK


def _print_line(title: str, text: str) -> None:
    typer.echo(f"{title:<{TITLE_WIDTH}}{text}")
