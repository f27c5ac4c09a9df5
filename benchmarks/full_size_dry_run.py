"""Every part of the COCO recipe for a few steps at full size: does it fit, and how long would all of it take?

    python benchmarks/full_size_dry_run.py --output benchmarks/results/full_size_dry_run.json

Runs ``train_concat_stages`` with the recipe of ``coco_concat`` part by part, as docs/training_coco.md does:
CLS tokens by a CLIP ViT-B/16, the segmentor with token alignment, its queries, generator, union fine-tuning.
Weights are random, and pictures are scenes of Patchwork scaled up to 928² by the recipe's own augmentation. A
GPU is used where there is one. The file is written after each part: a run that is stopped leaves what it
measured.

Hours are a projection: the recipe's number of steps or pictures times the seconds measured here, on one such
machine, in the alignment stage times 16 / (batch size here). Loading pictures is left out of that stage, as
worker processes do it. Peaks of host memory are read from /proc (Linux).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor, PrecomputedTextEmbeddings
from zsseg.data.clip_tokens import EXAMPLES_PER_CALL
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.seen_filter import drop_images_with_unseen
from zsseg.layers.vision_language import VisionLanguageTeacher
from zsseg.training.recipes.coco_concat import (
    COCO_TRANSITION,
    PICTURE_SIZE,
    PICTURES_PER_STEP,
    build_coco_concat,
    build_coco_concat_stages,
)
from zsseg.training.recipes.concat_stages import (
    QUERY_FOLDER,
    TOKEN_FOLDER,
    build_token_store,
    fit_query_pictures,
    train_concat_stages,
)
from zsseg.training.recipes.concat_transition import build_transition_store

COCO_PICTURES = 45_000
"""About as many of COCO's training pictures hold no unseen segment (CONCAT, arXiv:2402.13697)."""

QUERY_PICTURES = 16
"""Enough for a batch of the stages after the segmentor."""

TINY_SEGMENTOR = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),
    **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 32),
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "train_num_points": 64,
}
TINY_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "image_size": 32,
}


@dataclass
class Report:
    """The result file.

    Attributes:
        path: of the JSON file; None writes none.
        facts: machine, settings and sizes.
        parts: those measured so far.
    """

    path: Path | None
    facts: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        peaks: dict[str, float],
        *,
        unit: str,
        batch_size: int,
        measured: int,
        seconds: float,
        planned: int,
        planned_batch_size: int | None = None,
    ) -> None:
        """Append a part, print it and write the file.

        Args:
            name: of the part.
            peaks: of :func:`measure_peaks`.
            unit: "picture" or "step".
            batch_size: pictures of a forward pass, in generator and union items of stored queries.
            measured: units.
            seconds: of one unit.
            planned: units in the recipe.
            planned_batch_size: pictures of a step in the recipe, if it is another.
        """
        factor = 1.0 if planned_batch_size is None else planned_batch_size / batch_size
        part = {
            "name": name,
            "unit": unit,
            "batch_size": batch_size,
            "measured": measured,
            "seconds": float(f"{seconds:.4g}"),
            **peaks,
            "planned": planned,
            "projected_hours": round(planned * seconds * factor / 3600, 2),
        }
        self.parts.append(part)
        print("  ".join(f"{key} {value}" for key, value in part.items()), flush=True)
        if self.path is not None:
            content = {
                **self.facts,
                "parts": self.parts,
                "projected_hours": self.projected_hours,
                "projection": "planned units x seconds on this machine, from a few steps; not a run",
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def projected_hours(self) -> float:
        """Of the parts so far."""
        return round(sum(part["projected_hours"] for part in self.parts), 2)


@contextmanager
def measure_peaks() -> Iterator[dict[str, float]]:
    """Peaks of memory during a block, known at its end."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    peaks: dict[str, float] = {}
    yield peaks
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    peaks["peak_host_gib"] = round(kib / 2**20, 2)
    peaks["peak_device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if has_gpu else 0.0


def build_teacher(*, tiny: bool) -> VisionLanguageTeacher:
    """A CLIP ViT-B/16 of random weights."""
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, **(TINY_TOWER if tiny else {})))
    return VisionLanguageTeacher(
        tower,
        attrgetter("image_embeds"),
        image_size=tower.config.image_size,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )


def build_model(
    names: tuple[str, ...], width: int, *, tiny: bool
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """The recipe's model of random weights, with a random vector for each name."""
    vectors = np.random.default_rng(0).normal(size=(len(names), width))
    return build_coco_concat(PrecomputedTextEmbeddings(names, vectors), **(TINY_SEGMENTOR if tiny else {}))


def read_step_seconds(folder: Path, *, with_loading: bool) -> list[float]:
    """Seconds of every step of a stage that logged each."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        record["seconds_per_step"] * (1.0 if with_loading else 1.0 - record["data_wait_fraction"])
        for record in records
        if record["kind"] == "train"
    ]


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run_parts(report: Report, folder: Path, arguments: argparse.Namespace) -> None:
    """Run the recipe's parts one after the other."""
    tiny = arguments.tiny
    picture_size = (64, 64) if tiny else PICTURE_SIZE
    pictures = PatchworkDataset("hard", num_scenes=200)
    seen_pictures = drop_images_with_unseen(pictures)
    torch.manual_seed(0)
    teacher = build_teacher(tiny=tiny)
    model, processor = build_model(pictures.vocabulary.names, teacher.embed_dim, tiny=tiny)
    planned = build_coco_concat_stages(folder, mixed_precision=arguments.mixed_precision)
    stages = {
        name: replace(
            stage, steps=arguments.steps, save_every=None, keep_last_n=1, log_every=1, num_workers=0
        )
        for name, stage in planned.items()
    }
    stages["alignment"] = replace(stages["alignment"], batch_size=arguments.batch_size)
    report.facts["parameters"] = {
        "model": count_parameters(model),
        "teacher": count_parameters(teacher.tower),
    }

    with measure_peaks() as peaks:
        start = time.perf_counter()
        tokens = build_token_store(seen_pictures, teacher, folder / TOKEN_FOLDER)
        seconds = (time.perf_counter() - start) / len(tokens)
    segments = [len(tokens[index]["segment_ids"]) for index in range(len(tokens))]
    report.facts["segments_per_picture"] = round(statistics.mean(segments), 2)
    report.add(
        "CLS tokens",
        peaks,
        unit="picture",
        batch_size=EXAMPLES_PER_CALL,
        measured=len(tokens),
        seconds=seconds,
        planned=COCO_PICTURES,
    )

    options = replace(COCO_TRANSITION, query_images=QUERY_PICTURES, memory_size=100)

    def train(name: str, **further: Any) -> None:
        train_concat_stages(
            *(model, processor, pictures),
            stages={name: stages[name]},
            store_folder=folder,
            size=picture_size,
            options=options,
            **further,
        )

    with measure_peaks() as peaks:
        train("alignment", teacher=teacher)
    step_seconds = read_step_seconds(stages["alignment"].output_dir, with_loading=False)
    report.add(
        "alignment",
        peaks,
        unit="step",
        batch_size=arguments.batch_size,
        measured=len(step_seconds),
        seconds=statistics.median(step_seconds),
        planned=planned["alignment"].steps,
        planned_batch_size=PICTURES_PER_STEP,
    )

    with measure_peaks() as peaks:
        start = time.perf_counter()
        query_pictures, data_setup = fit_query_pictures(
            seen_pictures, picture_size, options.query_images, "drop_images"
        )
        queries = build_transition_store(
            *(model, processor, query_pictures, folder / QUERY_FOLDER), data_setup=data_setup, options=options
        )
        seconds = (time.perf_counter() - start) / len(queries)
    report.add(
        "queries",
        peaks,
        unit="picture",
        batch_size=options.query_batch_size,
        measured=len(queries),
        seconds=seconds,
        planned=COCO_PICTURES,
    )

    for name in ("generator", "union"):
        with measure_peaks() as peaks:
            train(name)
        step_seconds = read_step_seconds(stages[name].output_dir, with_loading=True)
        report.add(
            name,
            peaks,
            unit="step",
            batch_size=stages[name].batch_size,
            measured=len(step_seconds),
            seconds=statistics.median(step_seconds),
            planned=planned[name].steps,
        )


def describe_machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=20, help="of each stage, 1 or more")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=2 if has_gpu else 1,
        help="pictures of a step of the alignment stage",
    )
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: a test of the script, no measurement"
    )
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("steps", "batch_size", "mixed_precision", "tiny")}
    report = Report(arguments.output, {"machine": describe_machine(), "settings": settings})
    print(json.dumps(report.facts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_parts(report, Path(folder), arguments)
    print(f"projected for the whole recipe on this machine: {report.projected_hours:.1f} hours")


if __name__ == "__main__":
    main()
