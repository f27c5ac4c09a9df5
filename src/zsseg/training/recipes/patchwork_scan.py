"""SCAN on Patchwork: CONCAT's trained proposals, Patchwork's CLIP, and what SCAN puts between them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoImageProcessor

from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.inference import encode_vocabulary
from zsseg.models.scan.configuration_scan import ScanConfig
from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation, load_vision_tower
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.models.text_tower import drop_provenance
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.picture_recipe import build_seen_collator
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.recipes.patchwork_concat import SEGMENTOR_SEED
from zsseg.training.recipes.scan_integration import (
    IntegrationStage,
    ProposalQueries,
    collate_proposal_queries,
    extract_proposal_queries,
)
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ContextualShiftStage
from zsseg.training.stage import StageContext
from zsseg.training.trainer import TrainingResult

PATCHWORK_SCAN: Mapping[str, Any] = {
    "proposal_hidden_dim": 192,
    # SCAN-B taps the middle, three quarters and the end of 12 blocks; its σ, for a grid of 14, here for 8.
    "integration_layers": (3, 5, 6),
    "low_frequency_sigmas": (5.0, 4.0, 1.7),
    "integration_heads": 4,
    "integration_steps": 2,
    "integration_encoder_layers": 1,
    "integration_feedforward_dim": 64,
    "shift_layers": (1, 2, 3),
    "logit_scale": 40.0,
}
"""Sizes for Patchwork's CLIP of 6 blocks and a segmentor of 3 M parameters, so that both towers fit into a
package of 16 MB; the rest as SCAN-B."""


def build_patchwork_scan(
    start: str | Path, clip: str | Path, *, seed: int = 0, **config_fields: Any
) -> tuple[ScanForSemanticSegmentation, ScanProcessor]:
    """A SCAN whose proposal network is a CONCAT's segmentor; what names the proposals has random weights.

    Args:
        start: CONCAT checkpoint of Patchwork, such as the packaged "concat-patchwork-inductive". Its
            projector and its generator are not used.
        clip: folder of Patchwork's CLIP.
        seed: of the random weights.
        config_fields: of :class:`~zsseg.ScanConfig`, beside those of :data:`PATCHWORK_SCAN`.
    """
    concat = ConcatForPanopticSegmentation.from_pretrained(start, dtype=torch.float32)
    concat_processor = ConcatProcessor.from_pretrained(start)
    vision_tower = load_vision_tower(str(clip)).float()
    clip_pixels = AutoImageProcessor.from_pretrained(clip, backend="pil")
    pixels = concat_processor.image_processor
    fields = {
        "segmentor_config": drop_provenance(concat.config.segmentor_config),
        "vision_config": drop_provenance(vision_tower.config),
        "text_config": drop_provenance(concat.config.text_config),
        "projection_dim": concat.config.projection_dim,
        "has_shifted_tower": False,
        "pixel_mean": tuple(pixels.image_mean),
        "pixel_std": tuple(pixels.image_std),
        "clip_mean": tuple(clip_pixels.image_mean),
        "clip_std": tuple(clip_pixels.image_std),
        **PATCHWORK_SCAN,
    }
    torch.manual_seed(seed)
    model = ScanForSemanticSegmentation(ScanConfig(**fields | config_fields))
    model.segmentor.load_state_dict(concat.segmentor.state_dict())
    model.text_model.load_state_dict(concat.text_model.state_dict())
    model.context_tower.load_state_dict(vision_tower.state_dict())
    image_processor = ScanImageProcessorPil(
        size=dict(pixels.size), image_mean=list(pixels.image_mean), image_std=list(pixels.image_std)
    )
    processor = ScanProcessor(
        image_processor,
        concat_processor.tokenizer,
        prompt_templates=concat_processor.prompt_templates,
        threshold=0.5,
    )
    return model, processor


def build_patchwork_scan_stages(
    output: Path,
    *,
    integration_steps: int,
    shift_steps: int,
    batch_size: int = 16,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 1,
) -> dict[str, TrainerArguments]:
    """Arguments of both stages; rates for small models. Of the light queries a step takes twice as many."""
    integration = TrainerArguments(
        output_dir=output / IntegrationStage.name,
        steps=integration_steps,
        batch_size=2 * batch_size,
        learning_rate=1e-3,
        max_grad_norm=1.0,
        warmup_steps=min(100, integration_steps - 1),
        schedule="polynomial",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=None,
        log_every=100,
        num_workers=0,
    )
    shift = TrainerArguments(
        output_dir=output / ContextualShiftStage.name,
        steps=shift_steps,
        batch_size=batch_size,
        learning_rate=1e-4,
        backbone_learning_rate_multiplier=1.0,
        weight_decay=0.2,
        max_grad_norm=5.0,
        warmup_steps=min(20, shift_steps - 1),
        schedule="polynomial",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=100,
        keep_last_n=1,
        num_workers=num_workers,
    )
    return {stage.output_dir.name: stage for stage in (integration, shift)}


def build_patchwork_queries(
    model: ScanForSemanticSegmentation, processor: ScanProcessor, num_scenes: int, *, split: str = "A"
) -> ProposalQueries:
    """Queries of the proposal network on scenes of seen categories, for the stage "integration"."""
    scenes = PatchworkDataset(seed=SEGMENTOR_SEED, num_scenes=num_scenes, split=split, categories="seen")
    vocabulary = scenes.vocabulary
    return extract_proposal_queries(
        model,
        TransformedDataset(scenes, Compose(()), seed=0),
        collate=build_seen_collator(processor, vocabulary),
        context=StageContext(vocabulary, **encode_vocabulary(model, processor, vocabulary)),
    )


def train_patchwork_integration(
    model: ScanForSemanticSegmentation,
    processor: ScanProcessor,
    queries: ProposalQueries,
    arguments: TrainerArguments,
    *,
    split: str = "A",
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> TrainingResult:
    """Train what names the proposals, on stored queries; the proposal network stays as it is.

    Args:
        model: whose proposal network made the queries; trained in place.
        processor: its own.
        queries: of :func:`build_patchwork_queries`.
        arguments: as :func:`build_patchwork_scan_stages` makes them.
        split: which names are unseen.
        overwrite: start anew in a folder that holds a run.
        stream: console output, standard error if None.
    """
    vocabulary = build_patchwork_vocabulary(load_patchwork_split(split))
    vocabulary = vocabulary.select(vocabulary.seen_label_ids)
    results = run_recipe(
        [RecipeStep(IntegrationStage(), arguments)],
        model=model,
        processor=processor,
        context=StageContext(vocabulary, **encode_vocabulary(model, processor, vocabulary)),
        dataset=queries,
        collate=collate_proposal_queries,
        data_setup={"split": split, "pictures": str(len(queries))},
        overwrite=overwrite,
        stream=stream,
    )
    return results[IntegrationStage.name]


def train_patchwork_shift(
    model: ScanForSemanticSegmentation,
    processor: ScanProcessor,
    arguments: TrainerArguments,
    *,
    split: str = "A",
    shift: ContextualShiftOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> TrainingResult:
    """Fine-tune a tower for masks cut out, on scenes that hold no unseen category, neither pixels nor names.

    Args:
        model: of :func:`build_patchwork_scan`, trained in place; it gets the tower if it has none.
        processor: its own.
        arguments: as :func:`build_patchwork_scan_stages` makes them.
        split: which names are unseen.
        shift: how crops are drawn and shifted.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in a folder that holds a run.
        stream: console output, standard error if None.
    """
    num_scenes = arguments.steps * arguments.batch_size
    scenes = PatchworkDataset(seed=SEGMENTOR_SEED, num_scenes=num_scenes, split=split, categories="seen")
    vocabulary = scenes.vocabulary
    if model.shifted_tower is None:
        model.attach_shifted_tower()
    results = run_recipe(
        [RecipeStep(ContextualShiftStage(shift), arguments)],
        model=model,
        processor=processor,
        context=StageContext(vocabulary, **encode_vocabulary(model, processor, vocabulary)),
        dataset=TransformedDataset(scenes, Compose(()), arguments.seed),
        collate=build_seen_collator(processor, vocabulary),
        data_setup={"split": split, "shift": repr(shift)},
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
    return results[ContextualShiftStage.name]
