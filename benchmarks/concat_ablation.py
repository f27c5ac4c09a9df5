"""What each part of CONCAT adds on Patchwork, all from one segmentor; mean and deviation over seeds.

    python benchmarks/concat_ablation.py --start runs/patchwork/segmentor/last --output runs/ablation

START is a segmentor trained on the split by projection alone: the folder ``segmentor/last`` of a run of
`zsseg train concat --recipe patchwork`. Rows of stage 1 go on from it for the same number of steps on the
same scenes; rows of the later stages go on from a row of stage 1 of the same seed. Every row is scored on
the 500 held-out standard scenes of `zsseg evaluate patchwork`. A stopped run goes on where it was. ``--csv``
keeps every seed's figures, ``--write`` puts the table between the marks of a document.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ablation_results import build_table, run_missing, write_csv

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.checkpoints import packaged
from zsseg.data.collate import PanopticCollator
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.data.transforms import Compose
from zsseg.models.concat.adaptation_concat import UnionOptions
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.models.inference import encode_vocabulary
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.publishing.marked_sections import replace_marked_section
from zsseg.training.patchwork_benchmark import evaluate_patchwork
from zsseg.training.query_store import QueryDataset, build_query_store, collate_queries
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.recipes.concat import train_concat
from zsseg.training.recipes.concat_segmentor import AlignmentOptions, SegmentorStage
from zsseg.training.recipes.concat_transition import TransitionOptions, UnionStage, name_queries
from zsseg.training.recipes.patchwork_concat import SEGMENTOR_SEED
from zsseg.training.recipes.patchwork_transition import (
    build_patchwork_alignment_arguments,
    build_patchwork_transition_stages,
    select_unseen_names,
    train_patchwork_alignment,
    train_patchwork_transition,
)
from zsseg.training.stage import Batch, StageContext
from zsseg.training.trainer import TrainingResult

HELD_OUT_SCENES = 500
FIGURES = ("PQ", "PQ_seen", "PQ_unseen", "PQ_unseen_things", "PQ_unseen_stuff", "hPQ", "mIoU", "hIoU")
PROJECTION = "projection only"
CON = "+ CON"
PADING = TransitionOptions(
    generator_type="primitives",
    hidden_dim=384,
    moments="pooled",
    contrast_weight=0.0,
    cycle_weight=0.001,
    unseen_cycle_weight=0.001,
    queries_per_label=None,
    memory_size=0,
)
GMM = TransitionOptions(contrast_weight=0.0, cycle_weight=0.0, unseen_cycle_weight=0.0, memory_size=0)
QC = replace(GMM, contrast_weight=TransitionOptions().contrast_weight)
CYCLE = replace(TransitionOptions(), memory_size=0)


@dataclass(frozen=True)
class Stage1Row:
    """A row of stage 1; no alignment is the projection alone."""

    alignment: AlignmentOptions | None


@dataclass(frozen=True)
class TransitionRow:
    """A row of stages 2 and 3 on a row of stage 1.

    Attributes:
        base: name of that row.
        options: of the generator.
        union: of union fine-tuning.
        by_names: the generator never learns of the unseen names; the finished checkpoint adapts to them.
    """

    base: str
    options: TransitionOptions
    union: UnionOptions = field(default_factory=UnionOptions)
    by_names: bool = False


@dataclass(frozen=True)
class UpperBoundRow:
    """Union fine-tuning on real queries of the unseen labels, which no zero-shot method has.

    Attributes:
        base: name of the row of stage 1.
    """

    base: str


ROWS: Mapping[str, Stage1Row | TransitionRow | UpperBoundRow] = {
    PROJECTION: Stage1Row(None),
    "+ CGA": Stage1Row(AlignmentOptions(instance_weight=0.0)),
    "+ CIA": Stage1Row(AlignmentOptions(global_weight=0.0)),
    CON: Stage1Row(AlignmentOptions()),
    "+ CON, bank 0": Stage1Row(AlignmentOptions(bank_size=0)),
    "+ CON, bank 8": Stage1Row(AlignmentOptions(bank_size=8)),
    "+ CON, bank 64": Stage1Row(AlignmentOptions(bank_size=64)),
    "+ CON, bank 256": Stage1Row(AlignmentOptions(bank_size=256)),
    "PADing": TransitionRow(
        PROJECTION,
        PADING,
        UnionOptions(
            labels_per_step=5, queries_per_label=1, noise_scale=1.0, keep_known=False, unseen_weight=5.0
        ),
    ),
    "PADing's generator": TransitionRow(PROJECTION, PADING),
    "GMM pooled": TransitionRow(PROJECTION, replace(GMM, moments="pooled", queries_per_label=None)),
    "GMM": TransitionRow(PROJECTION, GMM),
    "GMM + QC": TransitionRow(PROJECTION, QC),
    "GMM + QC + cycle": TransitionRow(PROJECTION, CYCLE),
    "the same, known labels sharpened": TransitionRow(PROJECTION, CYCLE, UnionOptions(keep_known=False)),
    "CONCAT": TransitionRow(CON, CYCLE),
    "CONCAT, CVAE": TransitionRow(CON, replace(CYCLE, generator_type="cvae")),
    "CONCAT, by names": TransitionRow(CON, TransitionOptions(), by_names=True),
    "CONCAT, by names, 200 queries": TransitionRow(CON, TransitionOptions(memory_size=200), by_names=True),
    "CONCAT, by names, 2000 queries": TransitionRow(CON, TransitionOptions(memory_size=2000), by_names=True),
    "upper bound": UpperBoundRow(CON),
}


def load(folder: Path) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    return ConcatForPanopticSegmentation.from_pretrained(folder), ConcatProcessor.from_pretrained(folder)


def train_stage1(row: Stage1Row, folder: Path, arguments: argparse.Namespace, seed: int) -> Path:
    """Train a row of stage 1; the checkpoint's folder."""
    checkpoint = folder / "checkpoint"
    if checkpoint.is_dir():
        return checkpoint
    model, processor = load(arguments.start)
    stage_arguments = build_patchwork_alignment_arguments(folder, steps=arguments.steps, seed=seed)
    resume = (stage_arguments.output_dir / "last").exists()
    if row.alignment is None:
        scenes = PatchworkDataset(
            seed=SEGMENTOR_SEED,
            num_scenes=stage_arguments.steps * stage_arguments.batch_size,
            split=arguments.split,
            categories="seen",
        )
        result = train_concat(
            model,
            processor,
            scenes,
            stages={SegmentorStage.name: stage_arguments},
            transform=Compose(()),
            unseen="drop_images",
            resume=resume,
            overwrite=not resume,
        )[SegmentorStage.name]
    else:
        result = train_patchwork_alignment(
            model,
            processor,
            arguments.clip,
            stage_arguments,
            token_folder=arguments.output / "clip-tokens",
            split=arguments.split,
            alignment=row.alignment,
            resume=resume,
            overwrite=not resume,
        )
    stop_if_interrupted([result])
    with replacing_folder(checkpoint) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    shutil.rmtree(stage_arguments.output_dir)
    return checkpoint


def build_row(
    name: str, arguments: argparse.Namespace, seed: int
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """The trained model of a row."""
    row = ROWS[name]
    base = name if isinstance(row, Stage1Row) else row.base
    base_folder = arguments.output / f"{slug(base)}-{seed}"
    checkpoint = train_stage1(ROWS[base], base_folder, arguments, seed)
    model, processor = load(checkpoint)
    if isinstance(row, UpperBoundRow):
        fine_tune_on_unseen_masks(model, processor, base_folder, arguments, seed)
    if isinstance(row, TransitionRow):
        folder = arguments.output / f"{slug(name)}-{seed}"
        stages = build_patchwork_transition_stages(
            folder,
            generator_steps=arguments.generator_steps,
            union_steps=arguments.union_steps,
            seed=seed,
        )
        results = train_patchwork_transition(
            model,
            processor,
            stages,
            query_folder=base_folder / "queries",
            split=arguments.split,
            setting="inductive" if row.by_names else "transductive",
            options=row.options,
            union_options=row.union,
            overwrite=True,
        )
        stop_if_interrupted(results.values())
        if row.by_names:
            unseen = select_unseen_names(arguments.split)
            stuff = [category.name for category in unseen if not category.is_thing]
            result = model.adapt(processor, unseen.names, stuff_labels=stuff, seed=seed)
            print(f"adapted in {result.seconds:.1f} s")
        shutil.rmtree(folder)
    return model, processor


class RealUnionStage(UnionStage):
    """Union fine-tuning without pseudo queries: every label has real ones."""

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, torch.Tensor]:
        """Weighted cross-entropy over all queries of the scenes."""
        logits = name_queries(model, batch["queries"].flatten(0, 1), context)
        no_object = logits.shape[-1] - 1
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = self.options.no_object_weight
        label_ids = batch["label_ids"].flatten()
        targets = torch.where(label_ids == NO_OBJECT, no_object, label_ids)
        return {"loss": F.cross_entropy(logits, targets, weight)}


def fine_tune_on_unseen_masks(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    folder: Path,
    arguments: argparse.Namespace,
    seed: int,
) -> None:
    """What projector and no-object embedding could reach on this segmentor if they saw the unseen labels."""
    scenes = PatchworkDataset(
        seed=SEGMENTOR_SEED, num_scenes=TransitionOptions().query_images, split=arguments.split
    )
    image_processor = processor.image_processor
    context = StageContext(scenes.vocabulary, **encode_vocabulary(model, processor, scenes.vocabulary))
    store = build_query_store(
        model,
        scenes,
        folder / "queries-of-all-categories",
        collate=PanopticCollator(tuple(image_processor.image_mean), tuple(image_processor.image_std)),
        context=context,
        data_setup={"world": f"Patchwork standard, seed {SEGMENTOR_SEED}, all categories"},
        num_images=len(scenes),
    )
    stage_arguments = build_patchwork_transition_stages(
        folder / "upper-bound", generator_steps=1, union_steps=arguments.union_steps, seed=seed
    )[UnionStage.name]
    results = run_recipe(
        [RecipeStep(RealUnionStage(UnionOptions()), stage_arguments)],
        model=model,
        processor=processor,
        context=context,
        dataset=QueryDataset(store),
        collate=collate_queries,
        data_setup=store.identity,
        overwrite=True,
    )
    stop_if_interrupted(results.values())


def stop_if_interrupted(results: Iterable[TrainingResult]) -> None:
    """A stage that was asked to stop has saved itself; what it holds is no row yet."""
    if not all(result.is_complete for result in results):
        sys.exit("stopped; the same command goes on from here")


def describe_row(name: str, arguments: argparse.Namespace) -> str:
    """All that decides the row's figures beside the seed, but for the code."""
    row = ROWS[name]
    parts = [row, f"split {arguments.split}", f"{arguments.steps} steps"]
    if not isinstance(row, Stage1Row):
        parts += [ROWS[row.base], f"union {arguments.union_steps}"]
    if isinstance(row, TransitionRow):
        parts.append(f"generator {arguments.generator_steps}")
    return "; ".join(map(str, parts))


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def score(
    model: ConcatForPanopticSegmentation, processor: ConcatProcessor, arguments: argparse.Namespace
) -> dict[str, float]:
    scenes = PatchworkDataset(seed=HELD_OUT_SEED, num_scenes=HELD_OUT_SCENES, split=arguments.split)
    figures = evaluate_patchwork(model, processor, scenes).row.figures
    return {name: float(figures[name]) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--clip", type=Path, default=packaged("patchwork-clip"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", default="A")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="to run and to show; all by default")
    parser.add_argument("--steps", type=int, default=240, help="of every row of stage 1")
    parser.add_argument("--generator-steps", type=int, default=2000)
    parser.add_argument("--union-steps", type=int, default=1000)
    parser.add_argument("--csv", type=Path, help="write every figure of every seed here")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = run_missing(
        arguments.output / "results.json",
        {name: describe_row(name, arguments) for name in arguments.rows or ROWS},
        arguments.seeds,
        lambda row, seed: score(*build_row(row, arguments, seed), arguments),
    )
    if arguments.csv is not None:
        write_csv(results, list(ROWS), FIGURES, arguments.csv)
    table = build_table(results, [name for name in ROWS if name in (arguments.rows or ROWS)], FIGURES)
    print(table)
    for document in arguments.write:
        replace_marked_section(document, f"concat-ablation-{arguments.split}", table)


if __name__ == "__main__":
    main()
