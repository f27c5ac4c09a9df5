"""Trains CONCAT's segmentor on CamVid's eight seen classes and evaluates it on all eleven.

Fence, bicyclist and sign are unseen. Almost every frame holds one of them, so frames are kept and the unseen
pixels are ignored: this is not the image-level filter of zero-shot panoptic segmentation.

    python benchmarks/camvid.py --data DATA --backbone BACKBONE --output runs/camvid --text vectors
    python benchmarks/camvid.py --data DATA --backbone BACKBONE --output runs/camvid-tower --text FOLDER

DATA is a folder with ``camvid/{train,val}/{images,labels}`` and ``camvid/classes.json`` and, for
``--text vectors``, ``text_embeddings/coco_stuff_171.clip_vit_b16.{npy,json}``. BACKBONE is a MobileNetV2
checkpoint of ImageNet. FOLDER holds a text encoder with its tokenizer, which becomes part of the checkpoint.
Without DATA the script says so and ends. A run that was stopped goes on with ``--resume``.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from zsseg import (
    ConcatConfig,
    ConcatForPanopticSegmentation,
    ConcatProcessor,
    PrecomputedTextEmbeddings,
)
from zsseg.data.seen_filter import SeenLabelsDataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.transforms import ColorJitter, Compose, LargeScaleJitter, RandomHorizontalFlip
from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone
from zsseg.layers.text_embedding_bank import infer_text_pooling
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.text_tower import load_text_tower
from zsseg.training.arguments import TrainerArguments
from zsseg.training.evaluation import build_metric, evaluate_model
from zsseg.training.recipes.concat import train_concat
from zsseg.visualization import draw_comparison

VECTOR_OF_CAMVID_NAME = {
    "sky": "sky-other",
    "building": "building-other",
    "pole": "structural-other",
    "pedestrian": "person",
    "bicyclist": "bicycle",
    "sign": "stop sign",
}
"""CamVid names without a vector of their own, and the COCO-Stuff name whose CLIP vector stands for them."""

REPORTED = (
    "mIoU_seen",
    "mIoU_unseen",
    "hIoU",
    "mIoU",
    "pixel_accuracy",
    "mIoU_seen_unseen_names_left_out",
)
TRAIN_SIZE = (256, 320)
HIDDEN_DIM = 128


def build_processor_text(text: str, data: Path) -> dict[str, object]:
    """The processor's text half: CLIP vectors of COCO-Stuff's names, or the tokenizer of an encoder."""
    if text != "vectors":
        return {
            "tokenizer": AutoTokenizer.from_pretrained(text),
            "prompt_templates": ["{}", "a photo of a {}."],
        }
    stem = str(data / "text_embeddings" / "coco_stuff_171.clip_vit_b16")
    names = json.loads(Path(f"{stem}.json").read_text())["names"]
    vectors = dict(zip(names, np.load(f"{stem}.npy").astype(np.float32), strict=True))
    vectors |= {name: vectors[source] for name, source in VECTOR_OF_CAMVID_NAME.items()}
    return {"text_embeddings": PrecomputedTextEmbeddings(list(vectors), np.stack(list(vectors.values())))}


def build_checkpoint(
    text: str, data: Path, backbone_path: Path
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """A segmentor of 3.2 M parameters on an ImageNet backbone, with the text tower if there is one."""
    backbone = MobileNetV2Backbone.from_image_classifier(backbone_path)
    text_tower = None if text == "vectors" else load_text_tower(text)
    torch.manual_seed(0)
    model = ConcatForPanopticSegmentation(
        ConcatConfig(
            segmentor_config={
                "backbone_config": backbone.config.to_dict(),
                "hidden_dim": HIDDEN_DIM,
                "feature_size": HIDDEN_DIM,
                "mask_feature_size": HIDDEN_DIM,
                "num_attention_heads": 4,
                "encoder_layers": 2,
                "encoder_feedforward_dim": 256,
                "decoder_layers": 4,
                "dim_feedforward": 512,
                "num_queries": 40,
                "train_num_points": 3136,
            },
            text_config=None if text_tower is None else text_tower.config,
            text_pooling="projection" if text_tower is None else infer_text_pooling(text_tower.config),
            projection_dim=512 if text_tower is None else text_tower.config.hidden_size,
            # The unknown pixels are mostly those of unseen things: a query on one may well be right.
            ignore_unknown_queries=True,
            # CLIP's cosines between these names lie in 0.76-0.93, a sentence encoder's in 0-0.6: scales that
            # spread both over the same range of logits.
            logit_scale=100.0 if text_tower is None else 20.0,
        )
    )
    model.segmentor.pixel_level_module.encoder.load_state_dict(backbone.state_dict())
    if text_tower is not None:
        model.text_model.load_state_dict(text_tower.state_dict())
    image_processor = ConcatImageProcessorPil(
        size={"shortest_edge": 360, "longest_edge": 640}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return model, ConcatProcessor(image_processor, **build_processor_text(text, data))


def build_stages(output: Path, warmup_steps: int, steps: int, workers: int) -> dict[str, TrainerArguments]:
    """Dense warm-up, then the segmentor; rates for a small model with few steps, not PADing's 140,000."""
    warmup = TrainerArguments(
        output_dir=output / "warmup",
        steps=warmup_steps,
        batch_size=8,
        learning_rate=1e-3,
        backbone_learning_rate_multiplier=0.3,
        max_grad_norm=1.0,
        warmup_steps=20,
        schedule="polynomial",
        save_every=100,
        keep_last_n=1,
        log_every=10,
        num_workers=workers,
    )
    segmentor = replace(
        warmup,
        output_dir=output / "segmentor",
        steps=steps,
        learning_rate=3e-4,
        evaluate_every=max(1, steps // 2),
        metric_for_best="mIoU_seen",
    )
    return {"warmup": warmup, "segmentor": segmentor}


def save_overlays(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: SemanticMapDataset,
    folder: Path,
) -> None:
    """Ten frames, evenly spread: picture, prediction, ground truth."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in np.linspace(0, len(dataset) - 1, 10).round().astype(int):
        example = dataset[int(index)]
        inputs = processor(example.image, dataset.vocabulary)
        with torch.no_grad():
            outputs = model(**inputs)
        (prediction,) = processor.merge_panoptic(
            outputs, stuff_label_ids=dataset.vocabulary.stuff_label_ids, target_sizes=[example.target.size]
        )
        picture = draw_comparison(example.image, prediction, example.target, dataset.vocabulary)
        picture.save(folder / f"{Path(example.file_name).stem}.png")


def report(
    results: dict[str, float], per_class: dict[str, float], output: Path, csv_path: Path | None
) -> None:
    """Print the table in percent and write it as CSV."""
    rows = [(f"IoU {name}", value) for name, value in per_class.items()]
    rows += [(name, results[name]) for name in REPORTED]
    lines = [f"{name},{100 * value:.1f}" for name, value in rows]
    print("\n".join(line.replace(",", " ").rjust(36) for line in lines))
    for path in filter(None, (output / "results.csv", csv_path)):
        path.write_text("\n".join(["measure,percent", *lines]) + "\n", encoding="utf-8")


def write_card(text: str, results: dict[str, float], checkpoint: Path) -> None:
    """The checkpoint's card: what it is, how it was trained and what it reaches."""
    words = (
        "CLIP ViT-B/16 vectors of COCO-Stuff's names; other words are refused"
        if text == "vectors"
        else f"the text encoder {Path(text).name}, part of the checkpoint; any word"
    )
    figures = "\n".join(f"| {name} | {100 * results[name]:.1f} |" for name in REPORTED)
    (checkpoint / "README.md").write_text(
        f"""---
library_name: zsseg
pipeline_tag: image-segmentation
tags: [zero-shot-panoptic-segmentation, zero-shot-semantic-segmentation]
license: other
license_name: camvid-research-non-commercial
---

# CONCAT segmentor (stage 1, projection baseline), CamVid, eight seen classes

- Words: {words}.
- Data: the 367 training frames of CamVid (research and non-commercial use). Backbone: MobileNetV2, ImageNet.
- Seen: sky, building, pole, road, pavement, tree, car, pedestrian. Unseen: fence, bicyclist, sign.
- **Not the protocol of zero-shot panoptic segmentation.** Almost every frame shows an unseen class, so frames
  were kept and the unseen pixels ignored; the image-level filter would leave 11 of 367 frames.
- Things are one mask a class: the maps tell no instances apart.

Validation (101 frames, all eleven names unless it says otherwise), percent:

| measure | value |
|---|---|
{figures}

Made by `python benchmarks/camvid.py`.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Parse the options, train, evaluate, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("ZSSEG_REAL_DATA"))
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--text", default="vectors", help="'vectors', or the folder of a text encoder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--warmup-steps", type=int, default=350)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true", help="of OUTPUT/checkpoint, without training")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    if arguments.data is None or not (Path(arguments.data) / "camvid").is_dir():
        sys.exit("skipped: no CamVid photographs; pass their folder as --data or in ZSSEG_REAL_DATA")
    checkpoint = arguments.output / "checkpoint"
    if not arguments.evaluate_only:
        train(arguments, checkpoint)
    model = ConcatForPanopticSegmentation.from_pretrained(checkpoint)
    processor = ConcatProcessor.from_pretrained(checkpoint)
    evaluate_and_draw(model, processor, arguments)


def train(arguments: argparse.Namespace, checkpoint: Path) -> None:
    """Both stages, then the checkpoint that ``pipeline`` loads."""
    data = Path(arguments.data)
    training, validation = (SemanticMapDataset(data / "camvid" / part) for part in ("train", "val"))
    model, processor = build_checkpoint(arguments.text, data, arguments.backbone)
    results = train_concat(
        model,
        processor,
        training,
        stages=build_stages(arguments.output, arguments.warmup_steps, arguments.steps, arguments.workers),
        transform=Compose(
            (
                LargeScaleJitter(TRAIN_SIZE, min_scale=0.9, max_scale=2.0),
                RandomHorizontalFlip(),
                ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
            )
        ),
        unseen="ignore_pixels",
        evaluate=lambda trained: evaluate_model(trained, processor, validation, task="semantic"),
        resume=arguments.resume,
    )
    if not all(result.is_complete for result in results.values()):
        sys.exit("stopped before the last step; go on with --resume")
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)


def evaluate_and_draw(
    model: ConcatForPanopticSegmentation, processor: ConcatProcessor, arguments: argparse.Namespace
) -> None:
    """Score over all eleven classes, then over the seen ones alone (unseen pixels ignored), and draw."""
    validation = SemanticMapDataset(Path(arguments.data) / "camvid" / "val")
    metric = build_metric("semantic", validation.vocabulary)
    results = evaluate_model(
        model,
        processor,
        validation,
        task="semantic",
        metric=metric,
    )
    seen_only = evaluate_model(model, processor, SeenLabelsDataset(validation), task="semantic")
    results["mIoU_seen_unseen_names_left_out"] = seen_only["mIoU"]
    report(results, metric.compute_per_class(), arguments.output, arguments.csv)
    write_card(arguments.text, results, arguments.output / "checkpoint")
    save_overlays(model, processor, validation, arguments.output / "overlays")


if __name__ == "__main__":
    main()
