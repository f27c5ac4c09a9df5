"""What CONCAT's stages 2 and 3 add to a segmentor of photographs: CamVid, CLIP vectors, no vision tower.

    python benchmarks/camvid.py --data DATA --backbone BACKBONE --output runs/camvid --text vectors
    python benchmarks/camvid_transition.py --data DATA --start runs/camvid/checkpoint --output runs/rows

Every row but the first trains a query generator on the queries of the 367 training frames, unseen pixels left
out, and then the projector on pseudo queries of fence, bicyclist and sign. All rows are scored as
`benchmarks/camvid.py` does, over all eleven names. A stopped run goes on where it was.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ablation_results import build_table, run_missing, write_csv
from concat_ablation import CYCLE, GMM, QC, slug, stop_if_interrupted

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.training.evaluation import build_metric, evaluate_model
from zsseg.training.recipes.concat_stages import train_concat_stages
from zsseg.training.recipes.concat_transition import TransitionOptions
from zsseg.training.recipes.patchwork_transition import build_patchwork_transition_stages

SIZE = (360, 480)
"""(height, width) of the frames."""

FIGURES = ("mIoU_seen", "mIoU_unseen", "hIoU", "mIoU", "pixel_accuracy")
ROWS: Mapping[str, TransitionOptions | None] = {
    "projection only": None,
    "GMM": GMM,
    "GMM + QC": QC,
    "GMM + QC + cycle": CYCLE,
}


def measure(row: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a row and score it; the IoU of the unseen classes too."""
    model = ConcatForPanopticSegmentation.from_pretrained(arguments.start)
    processor = ConcatProcessor.from_pretrained(arguments.start)
    training, validation = (
        SemanticMapDataset(Path(arguments.data) / "camvid" / part) for part in ("train", "val")
    )
    options = ROWS[row]
    if options is not None:
        folder = arguments.output / f"{slug(row)}-{seed}"
        results = train_concat_stages(
            model,
            processor,
            training,
            stages=build_patchwork_transition_stages(
                folder,
                generator_steps=arguments.generator_steps,
                union_steps=arguments.union_steps,
                seed=seed,
            ),
            store_folder=arguments.output,
            size=SIZE,
            unseen="ignore_pixels",
            options=options,
            overwrite=True,
        )
        stop_if_interrupted(results.values())
        shutil.rmtree(folder)
    metric = build_metric("semantic", validation.vocabulary)
    results = evaluate_model(model, processor, validation, task="semantic", metric=metric)
    per_class = metric.compute_per_class()
    unseen = {name: per_class[name] for name in get_unseen_names(validation)}
    return {**{name: float(results[name]) for name in FIGURES}, **unseen}


def get_unseen_names(dataset: SemanticMapDataset) -> list[str]:
    return [dataset.vocabulary.names[label_id] for label_id in dataset.vocabulary.unseen_label_ids]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("ZSSEG_REAL_DATA"))
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--generator-steps", type=int, default=2000)
    parser.add_argument("--union-steps", type=int, default=1000)
    parser.add_argument("--csv", type=Path, help="write every figure of every seed here")
    arguments = parser.parse_args()
    if arguments.data is None or not (Path(arguments.data) / "camvid").is_dir():
        sys.exit("skipped: no CamVid photographs; pass their folder as --data or in ZSSEG_REAL_DATA")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = run_missing(
        arguments.output / "results.json",
        {
            name: f"{ROWS[name]}; generator {arguments.generator_steps}; union {arguments.union_steps}"
            for name in arguments.rows
        },
        arguments.seeds,
        lambda row, seed: measure(row, seed, arguments),
    )
    unseen = get_unseen_names(SemanticMapDataset(Path(arguments.data) / "camvid" / "val"))
    figures = [*FIGURES, *unseen]
    if arguments.csv is not None:
        write_csv(results, list(ROWS), figures, arguments.csv)
    print(build_table(results, list(ROWS), figures))


if __name__ == "__main__":
    main()
