"""A SCAN small enough for tests: a real model with both of CLIP's towers, and its trainers."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig, ResNetConfig

from testing.tiny_concat_run import (
    EMBED_DIM,
    LABELS,
    RectanglesDataset,
    build_text_embeds,
    build_vocabulary,
    collate,
)
from testing.tiny_models import build_clip_text_config, build_tokenizer
from zsseg.layers.mask_transformer import MaskTransformerConfig
from zsseg.models.scan.configuration_scan import ScanConfig
from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipes.scan_stages import ProposalStage
from zsseg.training.stage import StageContext
from zsseg.training.trainer import Trainer

CROP_SIZE, PATCH_SIZE = 16, 4


def build_scan_model(seed=0, *, has_shifted_tower=False, **changes):
    """Mask2Former with three decoder layers; CLIP with three blocks, 4 × 4 patches and width 16."""
    segmentor_config = MaskTransformerConfig(
        backbone_config=ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        train_num_points=64,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=CROP_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=EMBED_DIM,
        initializer_factor=5.0,  # else every picture has nearly the same vector
    )
    torch.manual_seed(seed)
    config = ScanConfig(
        **{
            "segmentor_config": segmentor_config,
            "vision_config": vision_config,
            "projection_dim": EMBED_DIM,
            "proposal_hidden_dim": 32,
            "integration_layers": (1, 2, 3),
            "low_frequency_sigmas": (3.0, 2.0, 1.0),
            "integration_steps": 2,
            "integration_heads": 2,
            "integration_encoder_layers": 1,
            "integration_feedforward_dim": 16,
            "integration_dropout": 0.0,
            "has_shifted_tower": has_shifted_tower,
            "shift_layers": (1, 3),
            "logit_scale": 20.0,
            **changes,
        }
    )
    return ScanForSemanticSegmentation(config)


def save_scan_clip(folder):
    """A complete CLIP whose vision tower has the three blocks that SCAN reads at least."""
    torch.manual_seed(4)
    width = 16
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": CROP_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": width,
        "initializer_factor": 5.0,
    }
    text = build_clip_text_config(projection_dim=width).to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).save_pretrained(
        folder
    )
    build_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def build_scan_processor(labels=LABELS):
    return ScanProcessor(
        ScanImageProcessorPil(size={"height": 64, "width": 64}),
        text_embeddings=PrecomputedTextEmbeddings(labels, torch.eye(EMBED_DIM)[: len(labels)].numpy()),
        threshold=0.3,
    )


def build_context(label_ids=None):
    """Red, green and blue; with ``label_ids`` as many texts of them."""
    if label_ids is None:
        return StageContext(build_vocabulary(), build_text_embeds(), torch.arange(len(LABELS)))
    return StageContext(build_vocabulary(), torch.eye(EMBED_DIM)[: len(label_ids)], torch.tensor(label_ids))


def build_scan_trainer(output_dir, *, model=None, stage=None, dataset=None, stream=None, **arguments):
    defaults = {
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "num_workers": 0,
        "save_every": 2,
        "log_every": 1,
    }
    return Trainer(
        model=build_scan_model() if model is None else model,
        stage=ProposalStage() if stage is None else stage,
        context=build_context(),
        dataset=RectanglesDataset() if dataset is None else dataset,
        collate=collate,
        processor=build_scan_processor(),
        arguments=TrainerArguments(output_dir=Path(output_dir), **{**defaults, **arguments}),
        stream=stream,
    )
