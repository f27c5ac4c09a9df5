"""SCAN at the size of the paper, for COCO-Stuff with its 171 labels (arXiv:2312.04089).

What is here is the untrained model and the arguments; :func:`~zsseg.training.recipes.scan.train_scan` trains
it, see training_coco_scan.md.
"""

from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, SwinBackbone, SwinConfig

from zsseg.layers.vision_language import without_load_report
from zsseg.models.base import load_whole
from zsseg.models.scan.configuration_scan import ScanConfig, choose_scan_layers
from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation, load_vision_tower
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.models.text_tower import drop_provenance, load_text_tower
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.recipes.coco_concat import BACKBONE_STAGES, REFERENCE_SEGMENTOR
from zsseg.training.recipes.scan import STAGE_ARGUMENTS, STAGE_STEPS
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ContextualShiftStage, ProposalStage

LABEL_SPACE = "coco_stuff"
PICTURE_SIZE = (640, 640)
PICTURES_PER_STEP = {ProposalStage.name: 32, ContextualShiftStage.name: 64}

SWIN_BASE = {
    "image_size": 384,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
    "drop_path_rate": 0.3,
    "out_features": list(BACKBONE_STAGES),
}
"""As of :class:`~transformers.SwinConfig`."""

SCAN_SEGMENTOR = {**REFERENCE_SEGMENTOR, "decoder_layers": 11}  # transformers builds one less: ten
"""As of :class:`~transformers.Mask2FormerConfig`."""

COCO_SHIFT = ContextualShiftOptions(crops_per_image=4, shift_ratio=0.15, shift_layers=(1, 3, 5, 7, 9))


def build_coco_scan_config(**fields: object) -> ScanConfig:
    """The configuration of the paper's size, untrained, for CLIP's ViT-B/16 or ViT-L/14.

    Args:
        fields: ``vision_config`` and ``text_config`` of the CLIP, ``projection_dim``, and what else differs.
    """
    defaults = {"segmentor_config": {"backbone_config": SwinConfig(**SWIN_BASE).to_dict(), **SCAN_SEGMENTOR}}
    return ScanConfig(**{**defaults, **fields})


def build_coco_scan(
    clip: str,
    *,
    backbone: str | None = None,
    seed: int = 0,
    segmentor_config: dict[str, object] | None = None,
) -> tuple[ScanForSemanticSegmentation, ScanProcessor]:
    """An untrained model of the paper's size with its processor.

    Args:
        clip: folder or Hub id of a CLIP of transformers with an image processor; the paper's of DataComp are
            open_clip's and converted first.
        backbone: folder or Hub id of a Swin-B of ImageNet, such as
            "microsoft/swin-base-patch4-window12-384-in22k"; None is one of random weights.
        seed: of the random weights.
        segmentor_config: fields that differ from the paper's.

    Raises:
        OSError: if a checkpoint is not found.
        ValueError: if a checkpoint is of another kind or lacks weights.
    """
    text_tower, vision_tower = load_text_tower(clip), load_vision_tower(clip)
    clip_pixels = AutoImageProcessor.from_pretrained(clip, backend="pil")
    swin = SwinConfig(**SWIN_BASE)
    pretrained = None
    if backbone is not None:
        swin = SwinConfig.from_pretrained(
            backbone, out_features=list(BACKBONE_STAGES), drop_path_rate=SWIN_BASE["drop_path_rate"]
        )
        # The norms behind the stages are new: a classifier has only the last.
        with without_load_report():
            pretrained = load_whole(
                SwinBackbone, backbone, ("swin",), unused_weights=("hidden_states_norms.",), config=swin
            )
    torch.manual_seed(seed)
    model = ScanForSemanticSegmentation(
        build_coco_scan_config(
            segmentor_config={
                "backbone_config": swin.to_dict(),
                **SCAN_SEGMENTOR,
                **(segmentor_config or {}),
            },
            vision_config=drop_provenance(vision_tower.config),
            text_config=drop_provenance(text_tower.config),
            projection_dim=vision_tower.config.projection_dim,
            clip_mean=tuple(clip_pixels.image_mean),
            clip_std=tuple(clip_pixels.image_std),
            has_shifted_tower=False,
            **choose_scan_layers(vision_tower.config.num_hidden_layers),
        )
    )
    if pretrained is not None:
        model.segmentor.pixel_level_module.encoder.load_state_dict(pretrained.state_dict())
    model.text_model.load_state_dict(text_tower.state_dict())
    model.context_tower.load_state_dict(vision_tower.state_dict())
    return model, ScanProcessor(ScanImageProcessorPil(), AutoTokenizer.from_pretrained(clip))


def build_coco_scan_stages(
    output: Path,
    *,
    num_processes: int = 1,
    gradient_accumulation_steps: int = 1,
    mixed_precision: MixedPrecision = "no",
    seed: int = 0,
    num_workers: int = 4,
) -> dict[str, TrainerArguments]:
    """Arguments of both stages, the paper's.

    Args:
        output: every stage gets a folder of its name in it.
        num_processes: the 32 pictures of a step, then 64, are divided among them.
        gradient_accumulation_steps: forward passes in which a process takes its share of the first stage,
            where memory is short. The second compares all pictures of a step and is not accumulated.
        mixed_precision: autocast dtype; the paper's is float32.
        seed: of data order, augmentation, points and crops.
        num_workers: of each process, to load pictures.

    Raises:
        ValueError: if the pictures cannot be divided so.
    """
    passes = {
        ProposalStage.name: gradient_accumulation_steps,
        ContextualShiftStage.name: 1,
    }
    stages = {}
    for name, count in PICTURES_PER_STEP.items():
        parts = num_processes * passes[name]
        if parts < 1 or count % parts:
            raise ValueError(
                f"num_processes × gradient_accumulation_steps must divide the {count} pictures of a step of "
                f"{name}, got {num_processes} × {passes[name]}"
            )
        stages[name] = TrainerArguments(
            output_dir=output / name,
            steps=STAGE_STEPS[name],
            **{
                **STAGE_ARGUMENTS[name],
                "batch_size": count // parts,
                "gradient_accumulation_steps": passes[name],
            },
            mixed_precision=mixed_precision,
            seed=seed,
            save_every=2_000,
            log_every=50,
            num_workers=num_workers,
        )
    return stages
