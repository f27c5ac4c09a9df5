"""CONCAT's segmentor on Patchwork: small enough to learn from random weights on a laptop's CPU."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
from transformers import AutoTokenizer

from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.transforms import Compose
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.text_tower import load_text_tower
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.checkpointing import find_checkpoints
from zsseg.training.evaluation import evaluate_model
from zsseg.training.patchwork_clip_evaluation import CLIP_PROMPTS, MEAN_COLOR
from zsseg.training.recipe_parts import are_complete, choose_start
from zsseg.training.recipes.concat import train_concat
from zsseg.training.recipes.patchwork_clip import TRAINING_SCENES, VALIDATION_SEED
from zsseg.training.trainer import TrainingResult

SEGMENTOR_SEED = 3
VALIDATION_SCENES = 100
WIDTH = 96
FINE_WIDTH = 64
BACKBONE_WIDTHS = (32, 64, 128, 192, 256)
SHALLOW_DEPTHS = (1, 2, 3, 2, 1)
DEPTHS = (4, 4, 3, 2, 1)


def build_patchwork_concat(
    clip: str | Path, seed: int = 0, depths: Sequence[int] = SHALLOW_DEPTHS
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """An untrained segmentor of 3 M parameters with the text tower of a CLIP.

    Masks are predicted on a grid of half the picture's side, because Patchwork's objects are small; the
    attention runs on an eighth to a thirty-second.

    Args:
        clip: folder of a CLIP, as ``train_patchwork_clip`` makes it.
        seed: of the random weights.
        depths: blocks in each stage of the backbone.
    """
    text_tower = load_text_tower(str(clip))
    torch.manual_seed(seed)
    stages = [f"stage{number}" for number in range(1, len(BACKBONE_WIDTHS) + 1)]
    model = ConcatForPanopticSegmentation(
        ConcatConfig(
            segmentor_config={
                "backbone_config": {
                    "model_type": "convnext",
                    "patch_size": 2,
                    "num_stages": len(BACKBONE_WIDTHS),
                    "hidden_sizes": list(BACKBONE_WIDTHS),
                    "depths": list(depths),
                    "out_features": stages,
                    # ConvNeXt's own 0.02 and 1e-6 suit wide nets and long training: here blocks would start
                    # as identities, and learn later.
                    "initializer_range": 0.1,
                    "layer_scale_init_value": 1.0,
                },
                "feature_strides": [2, 4, 8, 16, 32],
                "common_stride": 2,
                "hidden_dim": WIDTH,
                "feature_size": FINE_WIDTH,
                "mask_feature_size": WIDTH,
                "num_attention_heads": 4,
                "encoder_layers": 2,
                "encoder_feedforward_dim": 3 * FINE_WIDTH,
                "decoder_layers": 5,
                "dim_feedforward": 4 * WIDTH,
                "num_queries": 24,
                "train_num_points": 1024,
            },
            text_config=text_tower.config,
            projection_dim=text_tower.config.projection_dim,
            logit_scale=40.0,
        )
    )
    model.text_model.load_state_dict(text_tower.state_dict())
    image_processor = ConcatImageProcessorPil(
        size={"shortest_edge": 128, "longest_edge": 512},
        image_mean=[channel / 255 for channel in MEAN_COLOR],
        image_std=[0.25] * 3,
    )
    tokenizer = AutoTokenizer.from_pretrained(clip)
    return model, ConcatProcessor(image_processor, tokenizer, prompt_templates=CLIP_PROMPTS, threshold=0.5)


def deepen_backbone(
    model: ConcatForPanopticSegmentation, depths: Sequence[int] = DEPTHS
) -> ConcatForPanopticSegmentation:
    """The same function with more blocks in the stages of its ConvNeXt backbone.

    New blocks come last in their stage and begin as identities (Net2Net, arXiv:1511.05641): what the shallow
    backbone learnt in cheaper steps is kept.

    Args:
        model: with a ConvNeXt backbone.
        depths: blocks in each stage, no fewer than it has.

    Raises:
        ValueError: if a stage would lose blocks, or there are more or fewer stages.
    """
    config = copy.deepcopy(model.config)
    before = tuple(config.segmentor_config.backbone_config.depths)
    if len(before) != len(depths) or any(new < old for new, old in zip(depths, before, strict=True)):
        raise ValueError(f"a backbone of depths {before} cannot be deepened to {tuple(depths)}")
    config.segmentor_config.backbone_config.depths = list(depths)
    deeper = ConcatForPanopticSegmentation(config)
    new_weights = deeper.load_state_dict(model.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for name in new_weights:
            if name.endswith("layer_scale_parameter"):
                deeper.get_parameter(name).zero_()
    return deeper


def build_training_scenes(num_scenes: int, split: str) -> PatchworkDataset:
    """The scenes that every stage learns from: no unseen category of the split, neither pixels nor names."""
    return PatchworkDataset(seed=SEGMENTOR_SEED, num_scenes=num_scenes, split=split, categories="seen")


def build_patchwork_segmentor_stages(
    output: Path,
    *,
    backbone_steps: int,
    deepened_steps: int,
    warmup_steps: int,
    steps: int,
    batch_size: int = 16,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 1,
) -> dict[str, TrainerArguments]:
    """Arguments of the segmentor's stages; rates for a small model from random weights, not PADing's."""
    backbone = TrainerArguments(
        output_dir=output / "backbone",
        steps=backbone_steps,
        batch_size=batch_size,
        learning_rate=1.5e-3,
        backbone_learning_rate_multiplier=1.0,
        max_grad_norm=1.0,
        warmup_steps=min(50, backbone_steps - 1),
        schedule="polynomial",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=100,
        keep_last_n=1,
        num_workers=num_workers,
    )
    deepened = replace(
        backbone,
        output_dir=output / "deepened",
        steps=deepened_steps,
        learning_rate=1.2e-3,
        warmup_steps=min(50, deepened_steps - 1),
    )
    warmup = replace(
        backbone,
        output_dir=output / "warmup",
        steps=warmup_steps,
        learning_rate=1e-3,
        warmup_steps=min(50, warmup_steps - 1),
    )
    segmentor = replace(
        warmup,
        output_dir=output / "segmentor",
        steps=steps,
        warmup_steps=min(50, steps - 1),
        max_grad_norm=5.0,
        evaluate_every=700,
        save_every=100,
        metric_for_best="PQ",
    )
    return {"backbone": backbone, "deepened": deepened, "warmup": warmup, "segmentor": segmentor}


def train_patchwork_segmentor(
    clip: str | Path,
    stages: Mapping[str, TrainerArguments],
    *,
    split: str = "A",
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor, dict[str, TrainingResult]]:
    """Train the segmentor on scenes that hold no unseen category, neither pixels nor names.

    It is evaluated on such scenes too: nothing unseen decides anything.

    Args:
        clip: folder of Patchwork's CLIP; its text tower becomes part of the checkpoint and stays as it is.
        stages: as :func:`build_patchwork_segmentor_stages` makes them.
        split: which names are unseen; see :func:`~zsseg.data.patchwork.splits.load_patchwork_split`.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        The trained model, its processor, and how each stage that ran ended.

    Raises:
        As :func:`~zsseg.training.recipes.concat.train_concat`.
    """
    model, processor = build_patchwork_concat(clip, next(iter(stages.values())).seed)
    scenes = build_training_scenes(TRAINING_SCENES, split)
    validation = PatchworkDataset(
        seed=VALIDATION_SEED, num_scenes=VALIDATION_SCENES, split=split, categories="seen"
    )
    shallow = {"backbone": stages["backbone"]}
    # The stage "backbone" once more, on a backbone of more blocks, then the others.
    deep = {"backbone": stages["deepened"], "warmup": stages["warmup"], "segmentor": stages["segmentor"]}
    results: dict[str, TrainingResult] = {}
    for part in (shallow, deep):
        if part is deep:
            model = deepen_backbone(model)
        elif resume and any(find_checkpoints(arguments.output_dir) for arguments in deep.values()):
            # A checkpoint of the deepened backbone holds what the shallow one learnt.
            continue
        part_results = train_concat(
            model,
            processor,
            scenes,
            stages=part,
            transform=Compose(()),
            unseen="drop_images",
            warmup_segment_weight=1.0,
            evaluate=lambda trained: evaluate_model(trained, processor, validation, task="panoptic"),
            stream=stream,
            **choose_start(part.values(), resume=resume, overwrite=overwrite),
        )
        results |= {part[name].output_dir.name: result for name, result in part_results.items()}
        if not are_complete(part_results):
            break
    return model, processor, results
