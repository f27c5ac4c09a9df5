"""CONCAT on Patchwork from random weights, all stages: segmentor, token alignment, generator, union."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.layers.vision_language import load_vision_language_teacher
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.recipe_parts import are_complete, choose_start, prepare_stages
from zsseg.training.recipes.concat_segmentor import AlignmentStage
from zsseg.training.recipes.concat_stages import QUERY_FOLDER, TOKEN_FOLDER, Setting
from zsseg.training.recipes.concat_transition import (
    TRANSITION_STAGES,
    TransitionOptions,
    check_query_batches,
)
from zsseg.training.recipes.patchwork_concat import (
    build_patchwork_segmentor_stages,
    train_patchwork_segmentor,
)
from zsseg.training.recipes.patchwork_transition import (
    build_patchwork_alignment_arguments,
    build_patchwork_transition_stages,
    choose_transition_stages,
    train_patchwork_alignment,
    train_patchwork_transition,
)
from zsseg.training.trainer import TrainingResult

SEGMENTOR_STAGES = ("backbone", "deepened", "warmup", "segmentor")


@dataclass(frozen=True)
class PatchworkSteps:
    """Optimizer steps of each stage; the defaults are those of the packaged checkpoints.

    Attributes:
        clip: both towers of Patchwork's CLIP.
        vision: its vision tower alone, the text tower locked.
        backbone: the segmentor's backbone, naming given segments.
        deepened: the same after blocks were added to it.
        warmup: the segmentor's dense warm-up.
        segmentor: the whole segmentor.
        alignment: the same with conditional token alignment.
        generator: the query generator.
        union: projector and no-object embedding on real and pseudo queries.
    """

    clip: int = 2000
    vision: int = 1800
    backbone: int = 2400
    deepened: int = 1000
    warmup: int = 400
    segmentor: int = 3000
    alignment: int = 240
    generator: int = 2000
    union: int = 1000


def build_patchwork_recipe(
    output: Path,
    *,
    steps: PatchworkSteps | None = None,
    batch_size: int = 16,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 1,
) -> dict[str, TrainerArguments]:
    """Arguments of all stages but the CLIP's, in order; each has a folder of its name in ``output``.

    ``batch_size`` and ``num_workers`` are of the stages that draw scenes; generator and union read queries.
    """
    steps = PatchworkSteps() if steps is None else steps
    shared: dict[str, Any] = {"mixed_precision": mixed_precision, "seed": seed}
    drawing: dict[str, Any] = {**shared, "batch_size": batch_size, "num_workers": num_workers}
    segmentor = build_patchwork_segmentor_stages(
        output,
        backbone_steps=steps.backbone,
        deepened_steps=steps.deepened,
        warmup_steps=steps.warmup,
        steps=steps.segmentor,
        **drawing,
    )
    alignment = build_patchwork_alignment_arguments(output, steps=steps.alignment, **drawing)
    transition = build_patchwork_transition_stages(
        output, generator_steps=steps.generator, union_steps=steps.union, **shared
    )
    return {**segmentor, AlignmentStage.name: alignment, **transition}


def train_patchwork_recipe(
    output: Path,
    stages: Mapping[str, TrainerArguments],
    *,
    clip: str | Path,
    split: str = "A",
    setting: Setting = "transductive",
    options: TransitionOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor, dict[str, TrainingResult]]:
    """Train CONCAT on scenes that hold no unseen category.

    Args:
        output: gets the teacher's tokens and the segmentor's queries, beside the folders of the stages.
        stages: as :func:`build_patchwork_recipe` makes them; those after the segmentor's may be left out from
            the end.
        clip: folder of Patchwork's CLIP: its text tower becomes part of the model, its vision tower teaches.
        split: which names are unseen.
        setting: "transductive" tells the last two stages the unseen names; "inductive" leaves out the stage
            "union".
        options: of the generator.
        resume: go on where an earlier call with the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        The trained model, its processor, and how each stage that ran ended.

    Raises:
        ValueError: if a stage is unknown or lacks the one before it, or the split is unknown.
        CheckpointError: if there is nothing to resume, or it is of another run.
        FileExistsError: if a folder is not empty and neither ``resume`` nor ``overwrite`` is given.
    """
    order = [*SEGMENTOR_STAGES, AlignmentStage.name, *TRANSITION_STAGES]
    if list(stages) != order[: len(stages)] or len(stages) < len(SEGMENTOR_STAGES):
        raise ValueError(f"stages must be the first four or more of {order}, in order, got {list(stages)}")
    # Everything that can be wrong is found before an earlier run is deleted and the first long stage begins.
    load_patchwork_split(split)
    load_vision_language_teacher(clip)
    options = TransitionOptions() if options is None else options
    transition = choose_transition_stages(stages, setting)
    check_query_batches(transition, options, options.query_images)
    later_folders = [output / name for name in order[len(stages) :]]
    prepare_stages(stages.values(), later_folders=later_folders, resume=resume, overwrite=overwrite)
    model, processor, results = train_patchwork_segmentor(
        clip,
        {name: stages[name] for name in SEGMENTOR_STAGES},
        split=split,
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
    if AlignmentStage.name in stages and are_complete(results):
        arguments = stages[AlignmentStage.name]
        results[AlignmentStage.name] = train_patchwork_alignment(
            model,
            processor,
            clip,
            arguments,
            token_folder=output / TOKEN_FOLDER,
            split=split,
            stream=stream,
            **choose_start([arguments], resume=resume, overwrite=overwrite),
        )
    if transition and are_complete(results):
        results |= train_patchwork_transition(
            model,
            processor,
            transition,
            query_folder=output / QUERY_FOLDER,
            split=split,
            setting=setting,
            options=options,
            stream=stream,
            **choose_start(transition.values(), resume=resume, overwrite=overwrite),
        )
    return model, processor, results
