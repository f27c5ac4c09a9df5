"""CONCAT at the size of the paper, for COCO panoptic with 119 seen and 14 unseen labels (arXiv:2402.13697).

The segmentor is PADing's: a Mask2Former on ResNet-50. What is here is the untrained model and the arguments;
:func:`~zsseg.training.recipes.concat_stages.train_concat_stages` trains it, see training_coco.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import ResNetBackbone, ResNetConfig

from zsseg.models.base import load_whole
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.text_source import load_text_source
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.recipes.concat_segmentor import AlignmentStage
from zsseg.training.recipes.concat_transition import GeneratorStage, TransitionOptions, UnionStage

COCO_SPLIT = "coco_panoptic_119_14"
PICTURE_SIZE = (928, 928)
PICTURES_PER_STEP = 16

BACKBONE_STAGES = ("stage1", "stage2", "stage3", "stage4")
REFERENCE_SEGMENTOR: Mapping[str, Any] = {
    "feature_strides": [4, 8, 16, 32],
    "common_stride": 4,
    "feature_size": 256,
    "mask_feature_size": 256,
    "encoder_layers": 6,
    "encoder_feedforward_dim": 1024,
    "hidden_dim": 256,
    "num_attention_heads": 8,
    "dim_feedforward": 2048,
    "decoder_layers": 10,  # transformers builds one less: nine
    "num_queries": 100,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "no_object_weight": 0.1,
    "train_num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
}
"""Sizes and loss weights of PADing's segmentor, as of :class:`~transformers.Mask2FormerConfig`."""

COCO_TRANSITION = TransitionOptions(
    hidden_dim=512, queries_per_label=16, query_images=50_000, query_batch_size=4, memory_size=2_000
)
"""The queries of every training picture, as some labels are rare; few at a time, as pictures are large. Sizes
are choices of ours.
"""


def build_coco_concat(
    text: str | Path | PrecomputedTextEmbeddings,
    *,
    backbone: str | Path | None = None,
    seed: int = 0,
    **segmentor_config: Any,
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """An untrained model of the reference size with its processor.

    Args:
        text: folder or Hub id of the CLIP whose text tower becomes part of the checkpoint, such as
            "openai/clip-vit-base-patch16"; or vectors for a closed list of words.
        backbone: folder or Hub id of a ResNet of ImageNet, such as "microsoft/resnet-50". None is a ResNet-50
            of random weights, for measurements alone: its batch norms are never trained.
        seed: of the random weights.
        segmentor_config: fields that differ from the reference, as of
            :class:`~transformers.Mask2FormerConfig`.

    Raises:
        OSError: if a checkpoint is not found.
        ValueError: if a checkpoint is of another kind or lacks weights.
    """
    pretrained = None if backbone is None else load_whole(ResNetBackbone, backbone, ("resnet",))
    resnet = (
        ResNetConfig(out_features=list(BACKBONE_STAGES))
        if backbone is None
        else ResNetConfig.from_pretrained(backbone, out_features=list(BACKBONE_STAGES))
    )
    text_source = load_text_source(text)
    torch.manual_seed(seed)
    model = ConcatForPanopticSegmentation(
        ConcatConfig(
            segmentor_config={
                "backbone_config": resnet.to_dict(),
                **REFERENCE_SEGMENTOR,
                **segmentor_config,
            },
            logit_scale=100.0,
            **text_source.config_fields,
        )
    )
    if pretrained is not None:
        model.segmentor.pixel_level_module.encoder.load_state_dict(pretrained.state_dict())
    if text_source.tower is not None:
        model.text_model.load_state_dict(text_source.tower.state_dict())
    image_processor = ConcatImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})
    return model, ConcatProcessor(image_processor, **text_source.processor_arguments)


def build_coco_concat_stages(
    output: Path,
    *,
    num_processes: int = 1,
    gradient_accumulation_steps: int = 1,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 4,
) -> dict[str, TrainerArguments]:
    """Arguments of all stages: PADing's schedules, which CONCAT follows.

    Union fine-tuning takes as many steps as the generator, a choice of ours.

    Args:
        output: every stage gets a folder of its name in it.
        num_processes: of the stage "alignment"; 16 pictures a step are divided among them.
        gradient_accumulation_steps: forward passes in which a process takes its share, where memory is short.
        mixed_precision: autocast dtype.
        seed: of data order, augmentation and points.
        num_workers: of each process, to load pictures.

    Raises:
        ValueError: if 16 cannot be divided so.
    """
    passes = num_processes * gradient_accumulation_steps
    if passes < 1 or PICTURES_PER_STEP % passes:
        raise ValueError(
            f"num_processes × gradient_accumulation_steps must divide the {PICTURES_PER_STEP} pictures of a "
            f"step, got {num_processes} × {gradient_accumulation_steps}"
        )
    alignment_steps = 140_350
    alignment = TrainerArguments(
        output_dir=output / AlignmentStage.name,
        steps=alignment_steps,
        batch_size=PICTURES_PER_STEP // passes,
        gradient_accumulation_steps=gradient_accumulation_steps,
        learning_rate=1e-4,
        backbone_learning_rate_multiplier=0.1,
        weight_decay=0.05,
        max_grad_norm=0.01,
        milestones=(126_315 / alignment_steps, 133_333 / alignment_steps),
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=2_000,
        log_every=50,
        num_workers=num_workers,
    )
    generator = TrainerArguments(
        output_dir=output / GeneratorStage.name,
        steps=20_000,
        batch_size=12,
        learning_rate=5e-4,
        weight_decay=0.0,
        max_grad_norm=None,
        milestones=(0.7, 0.925),
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=5_000,
        log_every=100,
        num_workers=0,
    )
    union = TrainerArguments(
        output_dir=output / UnionStage.name,
        steps=20_000,
        batch_size=12,
        optimizer="sgd",
        learning_rate=1e-3,
        weight_decay=5e-4,
        max_grad_norm=None,
        schedule="constant",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=5_000,
        log_every=100,
        num_workers=0,
    )
    return {AlignmentStage.name: alignment, GeneratorStage.name: generator, UnionStage.name: union}
