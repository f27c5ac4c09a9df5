"""SCAN's training (arXiv:2312.04089): proposals with semantic integration, then the CLIP of the crops."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import UnseenPolicy
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transforms import (
    Compose,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    SsdColorJitter,
    Transform,
)
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.picture_recipe import check_stage_names, run_picture_recipe
from zsseg.training.recipe import RecipeStep
from zsseg.training.recipe_parts import choose_start, prepare_stages
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ContextualShiftStage, ProposalStage
from zsseg.training.trainer import Evaluate, TrainingResult

STAGES = (ProposalStage.name, ContextualShiftStage.name)
"""In order; each may also run alone."""

NUM_SCALES = 16

PROPOSAL_ARGUMENTS: Mapping[str, Any] = MappingProxyType(
    {
        "learning_rate": 6e-5,
        "backbone_learning_rate_multiplier": 1.0,
        "weight_decay": 0.01,
        "max_grad_norm": 0.01,
        "warmup_steps": 1_500,
        "schedule": "polynomial",
        "polynomial_power": 0.9,
        "batch_size": 32,
    }
)
"""The paper's for the stage "proposals", as of :class:`~zsseg.training.arguments.TrainerArguments`."""

CONTEXTUAL_SHIFT_ARGUMENTS: Mapping[str, Any] = MappingProxyType(
    {
        "learning_rate": 5e-6,
        "weight_decay": 0.2,
        "adam_betas": (0.9, 0.98),
        "max_grad_norm": None,
        "warmup_steps": 100,
        "schedule": "cosine",
        "batch_size": 8,
    }
)
"""The paper's for the stage "contextual_shift"; four crops of each picture make its 32 pairs a process."""

STAGE_ARGUMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {ProposalStage.name: PROPOSAL_ARGUMENTS, ContextualShiftStage.name: CONTEXTUAL_SHIFT_ARGUMENTS}
)


STAGE_STEPS: Mapping[str, int] = MappingProxyType(
    {ProposalStage.name: 120_000, ContextualShiftStage.name: 18_483}
)
"""The paper's on COCO-Stuff; ten epochs of 118,287 pictures, 64 a step, for the second."""


def build_scan_transform(
    size: tuple[int, int], *, min_scale: float = 0.5, max_scale: float = 2.0, longest_scale: float = 4.0
) -> Transform:
    """One of 16 short sides, a random crop, SSD's colour jitter, a flip, and padding to the crop's size.

    The paper's is that of (640, 640): short sides 320, 384, … 1280, long ones at most 2560.

    Args:
        size: (height, width) of the crop in pixels.
        min_scale: smallest short side, as a multiple of the crop's shorter edge.
        max_scale: largest short side.
        longest_scale: of the longest long side.

    Raises:
        ValueError: if a size is below 1 pixel, or the scales are not 0 < min_scale ≤ max_scale.
    """
    if not 0 < min_scale <= max_scale:
        raise ValueError(f"scales must satisfy 0 < min_scale <= max_scale, got {min_scale} and {max_scale}")
    edge = min(size)
    edges = np.linspace(min_scale * edge, max_scale * edge, NUM_SCALES).round().astype(int).tolist()
    resize = Resize(shortest_edge=tuple(edges), longest_edge=round(longest_scale * edge))
    return Compose((resize, RandomCrop(size), SsdColorJitter(), RandomHorizontalFlip(), Pad(size)))


def train_scan(
    model: ScanForSemanticSegmentation,
    processor: ScanProcessor,
    dataset: PanopticDataset | StreamedPanopticDataset,
    *,
    stages: Mapping[str, TrainerArguments],
    transform: Transform,
    unseen: UnseenPolicy,
    shift: ContextualShiftOptions | None = None,
    data_setup: Mapping[str, str] = MappingProxyType({}),
    evaluate: Evaluate | None = None,
    later_folders: Collection[Path] = (),
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train SCAN on the seen labels of a data set.

    Args:
        model: trained in place. The stage "contextual_shift" gives it a tower for the crops, a copy of the
            frozen one, if it has none.
        processor: of the same checkpoint; it gives the normalisation and the text embeddings.
        dataset: pictures with ground truth, or a stream of them; its vocabulary says which labels are seen.
        stages: arguments by stage name, "proposals", "contextual_shift" or both, which run in this order.
        transform: augmentation, such as :func:`build_scan_transform`.
        unseen: what happens to unseen segments, as of
            :func:`~zsseg.training.picture_recipe.run_picture_recipe`.
        shift: of the stage "contextual_shift".
        data_setup: what else must be equal when a stage resumes, by name.
        evaluate: the model → numbers by name, run during both stages; see
            :func:`~zsseg.training.evaluation.evaluate_model`.
        later_folders: of stages that went on from these and do not run now; ``overwrite`` deletes what they
            hold, as it no longer goes with what is trained anew.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name.

    Raises:
        ValueError: if a stage is unknown or the model lacks what it trains, or as for
            :func:`~zsseg.training.picture_recipe.run_picture_recipe`.
        CheckpointError: if there is nothing to resume, or it is of another run.
        FileExistsError: if a folder is not empty and neither ``resume`` nor ``overwrite`` is given.
    """
    shift = ContextualShiftOptions() if shift is None else shift
    check_stage_names("SCAN", STAGES, stages)
    check_parts(model, stages, shift)
    steps = []
    if ProposalStage.name in stages:
        steps.append(RecipeStep(ProposalStage(), stages[ProposalStage.name], evaluate))
    if ContextualShiftStage.name in stages:
        steps.append(
            RecipeStep(
                ContextualShiftStage(shift),
                stages[ContextualShiftStage.name],
                evaluate,
                # Not sooner: checkpoints of the stage before hold no such tower.
                prepare=lambda: model.attach_shifted_tower() if model.shifted_tower is None else None,
                data_setup={"shift": repr(shift)},
            )
        )
    prepare_stages(stages.values(), later_folders=later_folders, resume=resume, overwrite=overwrite)
    return run_picture_recipe(
        steps,
        model=model,
        processor=processor,
        dataset=dataset,
        transform=transform,
        unseen=unseen,
        data_setup=data_setup,
        stream=stream,
        **choose_start(stages.values(), resume=resume, overwrite=overwrite),
    )


def check_parts(
    model: ScanForSemanticSegmentation, stages: Iterable[str], shift: ContextualShiftOptions
) -> None:
    """Check that a model has what the stages train.

    Raises:
        ValueError: saying what it lacks.
    """
    if ProposalStage.name in stages and model.proposal_head is None:
        raise ValueError(
            'the stage "proposals" trains proposal embeddings, which this model has none of: make it with '
            f'mode="ensemble" or "in_vocab_only", got mode={model.config.mode!r}'
        )
    if ContextualShiftStage.name in stages:
        if model.context_tower is None:
            raise ValueError(
                'the stage "contextual_shift" trains a copy of CLIP\'s vision tower, which this model is '
                "without: make it with one (vision_config)"
            )
        ContextualShiftStage(shift).find_layers(model)
