"""What each part of SCAN adds on Patchwork, all from one proposal network; mean and deviation over seeds.

    python benchmarks/scan_ablation.py --output runs/scan-ablation

The proposal network is the segmentor of the packaged "concat-patchwork-inductive", as it is. What names its
proposals is trained for the same number of steps on the same scenes of seen categories in every row, on
queries that are computed once; rows that share a model share its training. CONCAT's rows are the packaged
checkpoints. Every row is scored on the 500 held-out standard scenes of `zsseg evaluate patchwork`. A stopped
run goes on with the row it was in.
``--csv`` keeps every seed's figures, ``--write`` puts the table between the marks of a document, and
``--save`` keeps the checkpoint of the full model of the first seed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_results import build_table, run_missing, write_csv
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from zsseg import ScanForSemanticSegmentation, ScanProcessor
from zsseg.checkpoints import packaged
from zsseg.data.patchwork.categories import list_patchwork_parents
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.metrics import PanopticQuality, SemanticGuidedIoU
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.publishing.marked_sections import replace_marked_section
from zsseg.training.arguments import TrainerArguments
from zsseg.training.evaluation import IGNORED, score_predictions
from zsseg.training.recipes.patchwork_scan import (
    build_patchwork_queries,
    build_patchwork_scan,
    build_patchwork_scan_stages,
    train_patchwork_integration,
    train_patchwork_shift,
)
from zsseg.training.recipes.scan_integration import IntegrationStage, ProposalQueries
from zsseg.training.recipes.scan_stages import ContextualShiftStage
from zsseg.training.trainer import TrainingResult

HELD_OUT_SCENES = 500
FIGURES = (
    "PQ", "PQ_seen", "PQ_unseen", "hPQ", "mIoU", "mIoU_unseen", "hIoU", "SG-IoU", "ms_per_image",
)  # fmt: skip
LIKELY_OBJECT = 0.5
"""The merge's threshold in these checkpoints: no crop left out could be kept."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"has_semantic_integration": False},
    "sim without enhancement": {"has_low_frequency_enhancement": False},
    "sim": {},
}


@dataclass(frozen=True)
class Row:
    """A row on a trained model.

    Attributes:
        variant: whose training it shares.
        mode: how queries are named.
        fine_tuned: whether crops go through the tower fine-tuned for contextual shift, or the frozen one.
        shift_ratio: None for the model's own.
        crop_objectness_threshold: likelier objects alone are shown to CLIP.
    """

    variant: str
    mode: str
    fine_tuned: bool = False
    shift_ratio: float | None = None
    crop_objectness_threshold: float = 0.0


ROWS: Mapping[str, Row | str] = {
    "in_vocab_only": Row("plain", "in_vocab_only"),
    "+ SIM without low-frequency enhancement": Row("sim without enhancement", "in_vocab_only"),
    "+ SIM": Row("sim", "in_vocab_only"),
    "clip_only": Row("sim", "clip_only", shift_ratio=0.0),
    "+ contextual shift, without fine-tuning": Row("sim", "clip_only"),
    "+ contextual shift": Row("sim", "clip_only", fine_tuned=True),
    "ensemble without contextual shift": Row("sim", "ensemble", shift_ratio=0.0),
    "full": Row("sim", "ensemble", fine_tuned=True),
    "full, likely objects alone": Row(
        "sim", "ensemble", fine_tuned=True, crop_objectness_threshold=LIKELY_OBJECT
    ),
    "full without SIM": Row("plain", "ensemble", fine_tuned=True),
    "CONCAT, never told the unseen names": "concat-patchwork-inductive",
    "CONCAT": "concat-patchwork",
}


def train(
    variant: str, arguments: argparse.Namespace, seed: int
) -> tuple[ScanForSemanticSegmentation, ScanProcessor]:
    """The model of a variant after the stage "integration", from its checkpoint where there is one."""
    folder = arguments.output / f"{variant.replace(' ', '-')}-{seed}"
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        model, processor = build_patchwork_scan(
            arguments.start, arguments.clip, seed=seed, **VARIANTS[variant]
        )
        result = train_patchwork_integration(
            model,
            processor,
            load_queries(model, processor, arguments),
            build_stages(folder, arguments, seed)[IntegrationStage.name],
            split=arguments.split,
            overwrite=True,
        )
        save(model, processor, checkpoint, result)
    return load(checkpoint)


def fine_tune_tower(arguments: argparse.Namespace, seed: int) -> ScanForSemanticSegmentation:
    """A model with a tower fine-tuned for contextual shift, which depends on nothing that variants train."""
    folder = arguments.output / f"tower-{seed}"
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        model, processor = build_patchwork_scan(
            arguments.start, arguments.clip, seed=seed, **VARIANTS["plain"]
        )
        stage = build_stages(folder, arguments, seed)[ContextualShiftStage.name]
        result = train_patchwork_shift(model, processor, stage, split=arguments.split, overwrite=True)
        save(model, processor, checkpoint, result)
    return load(checkpoint)[0]


def build_stages(folder: Path, arguments: argparse.Namespace, seed: int) -> Mapping[str, TrainerArguments]:
    return build_patchwork_scan_stages(
        folder,
        integration_steps=arguments.steps,
        shift_steps=arguments.shift_steps,
        seed=seed,
    )


def save(
    model: ScanForSemanticSegmentation,
    processor: ScanProcessor,
    checkpoint: Path,
    result: TrainingResult,
) -> None:
    if not result.is_complete:
        sys.exit("stopped; the same command begins this row anew")
    with replacing_folder(checkpoint) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)


def load(checkpoint: Path) -> tuple[ScanForSemanticSegmentation, ScanProcessor]:
    return ScanForSemanticSegmentation.from_pretrained(checkpoint), ScanProcessor.from_pretrained(checkpoint)


def load_queries(
    model: ScanForSemanticSegmentation, processor: ScanProcessor, arguments: argparse.Namespace
) -> ProposalQueries:
    """The same for every variant and seed: proposal network and CLIP are."""
    path = arguments.output / f"queries-{arguments.scenes}.safetensors"
    if not path.is_file():
        queries = build_patchwork_queries(model, processor, arguments.scenes, split=arguments.split)
        unfinished = path.with_suffix(".incomplete")
        save_file(queries.get_tensors(), unfinished)
        unfinished.replace(path)
    return ProposalQueries(**load_file(path))


def build_row(name: str, arguments: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """Model and processor of a row."""
    row = ROWS[name]
    if isinstance(row, str):
        return AutoModel.from_pretrained(packaged(row)), AutoProcessor.from_pretrained(packaged(row))
    model, processor = train(row.variant, arguments, seed)
    if row.fine_tuned:
        model.attach_shifted_tower()
        model.shifted_tower.load_state_dict(fine_tune_tower(arguments, seed).shifted_tower.state_dict())
    model.config.mode = row.mode
    model.config.crop_objectness_threshold = row.crop_objectness_threshold
    if row.shift_ratio is not None:
        model.config.shift_ratio = row.shift_ratio
    return model, processor


def check_setup(arguments: argparse.Namespace) -> None:
    """Refuse a folder whose checkpoints and queries are of another setup."""
    names = ("start", "clip", "split", "scenes", "steps", "shift_steps")
    setup = {name: str(getattr(arguments, name)) for name in names}
    path = arguments.output / "setup.json"
    if path.is_file() and json.loads(path.read_text()) != setup:
        sys.exit(f"{arguments.output} holds runs of another setup, {path.read_text()}: use another --output")
    path.write_text(json.dumps(setup))


def score(model: Any, processor: Any, arguments: argparse.Namespace) -> dict[str, float]:
    scenes = PatchworkDataset(seed=HELD_OUT_SEED, num_scenes=HELD_OUT_SCENES, split=arguments.split)
    panoptic = PanopticQuality(scenes.vocabulary)
    semantic = SemanticGuidedIoU(scenes.vocabulary, list_patchwork_parents(), ignore_index=IGNORED)
    # The first task is the one that is timed.
    seconds = score_predictions(
        model, processor, scenes, metrics={"panoptic": panoptic, "semantic": semantic}
    )
    figures = panoptic.compute() | semantic.compute()
    figures["ms_per_image"] = 1000 * statistics.median(seconds)
    return {name: float(figures[name]) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, default=packaged("concat-patchwork-inductive"))
    parser.add_argument("--clip", type=Path, default=packaged("patchwork-clip"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", default="A")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="to run and to show; all by default")
    parser.add_argument("--scenes", type=int, default=5000, help="whose queries are named")
    parser.add_argument("--steps", type=int, default=1000, help="of the stage integration, 32 scenes each")
    parser.add_argument("--shift-steps", type=int, default=200, help="of contextual_shift, 16 scenes each")
    parser.add_argument("--csv", type=Path, help="write every figure of every seed here")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    parser.add_argument("--save", type=Path, help="write the checkpoint of the full model here")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    check_setup(arguments)
    steps = f"{arguments.steps} and {arguments.shift_steps} steps"
    setup = f"split {arguments.split}, {arguments.scenes} scenes, {steps}"
    rows = {name: f"{ROWS[name]}; {setup}" for name in arguments.rows or ROWS}
    results = run_missing(
        arguments.output / "results.json",
        rows,
        arguments.seeds,
        lambda row, seed: score(*build_row(row, arguments, seed), arguments),
    )
    if arguments.save is not None:
        model, processor = build_row("full", arguments, arguments.seeds[0])
        model.save_pretrained(arguments.save)
        processor.save_pretrained(arguments.save)
    if arguments.csv is not None:
        write_csv(results, list(ROWS), FIGURES, arguments.csv)
    table = build_table(results, list(rows), FIGURES)
    print(table)
    for document in arguments.write:
        replace_marked_section(document, f"scan-ablation-{arguments.split}", table)


if __name__ == "__main__":
    main()
