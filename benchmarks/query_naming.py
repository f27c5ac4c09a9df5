"""What queries that hold a segment are called, checkpoint by checkpoint: why a stage helps or does not.

    python benchmarks/query_naming.py runs/ablation/*/checkpoint --output naming.csv
    python benchmarks/query_naming.py runs/camvid/checkpoint --maps DATA/camvid/val

Each segment of held-out scenes, or of semantic maps, gets the query whose mask overlaps it most, whatever it
is called. The mean of these overlaps is what masks alone allow. Of those over one half, which PQ could count,
the table says how often the model names them by the segment's label, by another seen or unseen label, or not
at all, and how far the cosine with the right text lies above the best wrong one. On scenes the last lines are
the teacher: the CLIP that token alignment learns from, on masked crops of the same segments.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.checkpoints import packaged
from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.data.segment_crops import crop_segment
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.layers.vision_language import VisionLanguageTeacher, load_vision_language_teacher
from zsseg.models.inference import encode_vocabulary
from zsseg.training.recipes.patchwork_concat import build_patchwork_concat
from zsseg.vocabulary import Vocabulary

GROUPS = ("seen", "unseen")
MEASURES = ("segments", "overlap", "found", "right", "as seen", "as unseen", "as nothing", "margin")


class Tally:
    """Sums by group of labels, seen and unseen."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.is_seen = torch.zeros(len(vocabulary), dtype=torch.bool)
        self.is_seen[list(vocabulary.seen_label_ids)] = True
        self.sums: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, cosines: Tensor, no_object: float, label_id: int, overlap: float) -> None:
        """One segment: (K,) cosines with the texts and the one with "no object" of what holds it."""
        group = GROUPS[not self.is_seen[label_id]]
        self.sums[group, "segments"] += 1
        self.sums[group, "overlap"] += overlap
        if overlap <= 0.5:
            return
        best = int(cosines.argmax())
        if no_object > cosines[best]:
            named = "as nothing"
        elif best == label_id:
            named = "right"
        else:
            named = "as seen" if self.is_seen[best] else "as unseen"
        others = cosines.clone()
        others[label_id] = -torch.inf
        self.sums[group, "found"] += 1
        self.sums[group, named] += 1
        self.sums[group, "margin"] += float(cosines[label_id] - others.max())

    def summarize(self) -> Iterator[list[str]]:
        """Group by group: name, number of segments, then means over these or those found, in percent."""
        for group in GROUPS:
            sums = [self.sums[group, measure] for measure in MEASURES]
            count, found = sums[0], sums[2]
            shares = [sums[1] / count, found / count, *(value / found for value in sums[3:])]
            yield [group, f"{count:.0f}", *(f"{100 * share:.1f}" for share in shares)]


def order_texts(texts: dict[str, Tensor]) -> Tensor:
    """The one text of each label, (K, D), unit norm."""
    return F.normalize(texts["text_embeds"][torch.argsort(texts["text_label_ids"])], dim=1)


def tally_checkpoint(folder: Path, scenes: PanopticDataset) -> Tally:
    model = ConcatForPanopticSegmentation.from_pretrained(folder).eval()
    processor = ConcatProcessor.from_pretrained(folder)
    texts = encode_vocabulary(model, processor, scenes.vocabulary)
    text_embeds = order_texts(texts)
    tally = Tally(scenes.vocabulary)
    for index in range(len(scenes)):
        example = scenes[index]
        with torch.inference_mode():
            outputs = model(**processor(example.image), **texts)
            embeds = F.normalize(model.semantic_projector(outputs.query_embeds[0]), dim=1)
            cosines = embeds @ text_embeds.T
            no_object = embeds @ F.normalize(model.no_object_embedding, dim=0)
        rows, columns = (
            round(float(fraction) * side)
            for fraction, side in zip(
                outputs.valid_fractions[0], outputs.masks_queries_logits.shape[-2:], strict=True
            )
        )
        mask_logits = outputs.masks_queries_logits[0, :, :rows, :columns]
        overlaps, label_ids = measure_overlaps(mask_logits, example)
        for overlap, label_id in zip(overlaps, label_ids, strict=True):
            best = int(overlap.argmax())
            tally.add(cosines[best], float(no_object[best]), label_id, float(overlap[best]))
    return tally


def measure_overlaps(mask_logits: Tensor, example: PanopticExample) -> tuple[Tensor, list[int]]:
    """(Q, h, w) → the intersection over union of segments and queries, (S, Q), and the segments' labels."""
    segment_ids = torch.from_numpy(example.target.segment_ids)
    logits = F.interpolate(mask_logits[None], segment_ids.shape, mode="bilinear")[0]
    predicted = (logits > 0).flatten(1).float()
    segments = example.target.segments
    true = torch.stack([segment_ids == segment.id for segment in segments]).flatten(1).float()
    intersection = true @ predicted.T
    union = true.sum(dim=1, keepdim=True) + predicted.sum(dim=1) - intersection
    return intersection / union, [segment.label_id for segment in segments]


def tally_teacher(teacher: VisionLanguageTeacher, text_embeds: Tensor, scenes: PatchworkDataset) -> Tally:
    """The teacher has the true masks, and no word for "no object"."""
    tally = Tally(scenes.vocabulary)
    for index in range(len(scenes)):
        example = scenes[index]
        crops = [
            crop_segment(
                np.asarray(example.image),
                example.target.segment_ids,
                segment,
                size=teacher.image_size,
                fill_color=teacher.fill_color,
            )
            for segment in example.target.segments
        ]
        cosines = teacher.encode_images(np.stack(crops)) @ text_embeds.T
        for row, segment in zip(cosines, example.target.segments, strict=True):
            tally.add(row, -1.0, segment.label_id, overlap=1.0)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--clip", type=Path, default=packaged("patchwork-clip"))
    parser.add_argument("--split", default="A")
    parser.add_argument("--maps", type=Path, help="folder of images/, labels/ and classes.json instead")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    scenes: PanopticDataset = PatchworkDataset(
        seed=HELD_OUT_SEED, num_scenes=arguments.scenes, split=arguments.split
    )
    if arguments.maps is not None:
        scenes = SemanticMapDataset(arguments.maps)
    rows = []

    def report(name: str, tally: Tally) -> None:
        for cells in tally.summarize():
            rows.append([name, *cells])
            print("  ".join(cell.rjust(10) for cell in rows[-1]), flush=True)

    print("  ".join(cell.rjust(10) for cell in ("checkpoint", "labels", *MEASURES)))
    for folder in arguments.checkpoints:
        report(folder.parent.name, tally_checkpoint(folder, scenes))
    if arguments.maps is None:
        texts = encode_vocabulary(*build_patchwork_concat(arguments.clip), scenes.vocabulary)
        teacher = load_vision_language_teacher(arguments.clip)
        report("teacher", tally_teacher(teacher, order_texts(texts), scenes))
    if arguments.output is not None:
        with arguments.output.open("w", newline="") as file:
            csv.writer(file).writerows([["checkpoint", "labels", *MEASURES], *rows])


if __name__ == "__main__":
    main()
