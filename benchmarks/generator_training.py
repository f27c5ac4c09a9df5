"""Steps per second of the stages on stored queries, at the size of Patchwork's recipe.

    python benchmarks/generator_training.py --output benchmarks/results/generator_training.csv

Generator and union fine-tuning run through the package's own training loop, as in the command
`zsseg train concat --recipe patchwork`, on random queries of as many pictures: values do not change what a
step costs.
"""

import argparse
import csv
import io
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from zsseg.checkpoints import packaged
from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.models.concat.adaptation_concat import UnionOptions
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.models.inference import encode_vocabulary
from zsseg.training.query_store import LabelQueryDataset, QueryDataset, collate_queries
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.recipes.concat_transition import (
    GeneratorStage,
    TransitionOptions,
    UnionStage,
    join_vocabularies,
)
from zsseg.training.recipes.patchwork_concat import build_patchwork_concat
from zsseg.training.recipes.patchwork_transition import build_patchwork_transition_stages
from zsseg.training.stage import StageContext

SEGMENTS_PER_PICTURE = 6


class RandomQueries(QueryDataset):
    """Queries of pictures that nobody drew."""

    def __init__(self, num_images: int, num_queries: int, query_dim: int, num_labels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.queries = torch.randn(num_images, num_queries, query_dim, generator=generator)
        self.label_ids = torch.randint(num_labels, (num_images, num_queries), generator=generator)
        self.label_ids[:, SEGMENTS_PER_PICTURE:] = NO_OBJECT


def measure(generator_type: str, folder: Path, steps: int) -> dict[str, float]:
    """Steps per second of both stages, from the median time of a step."""
    model, processor = build_patchwork_concat(packaged("patchwork-clip"))
    vocabulary = build_patchwork_vocabulary(load_patchwork_split("A"))
    seen, unseen = (
        vocabulary.select(label_ids) for label_ids in (vocabulary.seen_label_ids, vocabulary.unseen_label_ids)
    )
    labels = join_vocabularies(seen, unseen)
    options = TransitionOptions(generator_type=generator_type)
    segmentor = model.config.segmentor_config
    pictures = RandomQueries(
        options.query_images, segmentor.num_queries, segmentor.hidden_dim, num_labels=len(seen)
    )
    model.attach_generator(generator_type, noise_dim=options.noise_dim, hidden_dim=options.hidden_dim)
    stages = {
        name: replace(arguments, log_every=10)
        for name, arguments in build_patchwork_transition_stages(
            folder, generator_steps=steps, union_steps=steps
        ).items()
    }
    drawn = LabelQueryDataset(pictures, queries_per_label=options.queries_per_label or 8)
    run_recipe(
        [
            RecipeStep(GeneratorStage(options), stages[GeneratorStage.name], dataset=drawn),
            RecipeStep(UnionStage(UnionOptions()), stages[UnionStage.name]),
        ],
        model=model,
        processor=processor,
        context=StageContext(labels, **encode_vocabulary(model, processor, labels)),
        dataset=pictures,
        collate=collate_queries,
        data_setup={},
        stream=io.StringIO(),
    )
    rates = {}
    for name in stages:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        rates[name] = 1 / statistics.median(json.loads(line)["seconds_per_step"] for line in lines)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5, help="the median of which is reported")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for generator_type in ("mlp", "cvae", "primitives"):
        rounds = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(measure(generator_type, Path(folder), arguments.steps))
        for stage in rounds[0]:
            rates = [f"{rates[stage]:.0f}" for rates in sorted(rounds, key=lambda rates: rates[stage])]
            median = rates[len(rates) // 2]
            rows.append([generator_type, stage, median, f"{rates[0]}-{rates[-1]}", torch.get_num_threads()])
            print("  ".join(map(str, rows[-1])), flush=True)
    if arguments.output is not None:
        with arguments.output.open("w", newline="") as file:
            csv.writer(file).writerows(
                [["generator", "stage", "steps_per_second", "range", "threads"], *rows]
            )


if __name__ == "__main__":
    main()
