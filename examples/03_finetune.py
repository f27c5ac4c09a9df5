"""Fine-tune a checkpoint on your own data: check them, train, compare, save, segment a picture.

python examples/03_finetune.py DATASET --output finetuned

DATASET is whatever zsseg.data.open_dataset opens, see docs/data_formats.md. To try it, draw a small one with
`zsseg patchwork export world --scenes 60`. The packaged checkpoint knows Patchwork's words alone: for
photographs name another with --checkpoint.
"""

import argparse
from pathlib import Path

from transformers import pipeline

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.checkpoints import DEFAULT_CHECKPOINT, resolve_checkpoint
from zsseg.data import SubsetDataset, check_dataset, open_dataset
from zsseg.training.arguments import TrainerArguments
from zsseg.training.evaluation import evaluate_model
from zsseg.training.recipes.concat_stages import train_concat_stages

HELD_OUT = 5  # every fifth picture is kept for evaluation


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="folder, COCO JSON, or USER/NAME on the Hub")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder, or name on the Hub")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=128, help="pixels of a training crop")
    parser.add_argument("--output", type=Path, default=Path("finetuned"))
    arguments = parser.parse_args()

    dataset = open_dataset(arguments.dataset, default_part="train")
    check = check_dataset(dataset)
    print(f"{check.pictures} pictures, {len(dataset.vocabulary)} labels, {len(check.problems)} problems")
    if check.problems:
        raise SystemExit("\n".join(f"{problem.file_name}: {problem.reason}" for problem in check.problems))
    train = SubsetDataset(dataset, [index for index in range(len(dataset)) if index % HELD_OUT])
    validation = SubsetDataset(dataset, range(0, len(dataset), HELD_OUT))

    start = resolve_checkpoint(arguments.checkpoint)
    model = ConcatForPanopticSegmentation.from_pretrained(start)
    processor = ConcatProcessor.from_pretrained(start)
    before = evaluate_model(model, processor, validation, task="panoptic")
    segmentor = TrainerArguments(
        output_dir=arguments.output / "segmentor",
        steps=arguments.steps,
        warmup_steps=arguments.steps // 10,
        batch_size=4,
        learning_rate=2e-5,  # a fifth of training's: the weights are good already
    )
    train_concat_stages(
        model,
        processor,
        train,
        stages={"segmentor": segmentor},
        store_folder=arguments.output,
        size=(arguments.size, arguments.size),
        min_scale=1.0,  # photographs want more: 0.5 to 2.0
        max_scale=1.0,
        unseen="ignore_pixels",
    )
    after = evaluate_model(model, processor, validation, task="panoptic")
    print(
        f"PQ {before['PQ']:.1%} before, {after['PQ']:.1%} after, on {after['num_images']} held-out pictures"
    )

    checkpoint = arguments.output / "checkpoint"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    segment = pipeline("zero-shot-panoptic-segmentation", model=str(checkpoint))
    stuff = [category.name for category in dataset.vocabulary if not category.is_thing]
    labels = list(dataset.vocabulary.names)
    found = segment(validation[0].image, candidate_labels=labels, stuff_labels=stuff)
    print(f"{validation[0].file_name}: {', '.join(each['label'] for each in found)}\nsaved {checkpoint}")


if __name__ == "__main__":
    main()
