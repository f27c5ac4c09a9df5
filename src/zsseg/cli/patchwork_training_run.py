"""The commands that train on Patchwork from random weights: its CLIP, and CONCAT in the CLIP's text space."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsseg.checkpoints import packaged
from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.messages import UsageError
from zsseg.cli.stage_arguments import build_stage_arguments, check_stage_folders
from zsseg.cli.training_run import finish_run, print_setup, training_errors_as_values
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipe_parts import prepare_stages
from zsseg.training.recipes.concat_segmentor import SegmentorStage
from zsseg.training.recipes.concat_stages import Setting
from zsseg.training.recipes.concat_transition import TransitionOptions, UnionStage
from zsseg.training.recipes.patchwork import (
    SEGMENTOR_STAGES,
    PatchworkSteps,
    build_patchwork_recipe,
    train_patchwork_recipe,
)
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip_stages, train_patchwork_clip


def train_concat_on_patchwork(
    output: Path,
    *,
    last_stage: str,
    clip: str | None,
    split: str,
    setting: Setting,
    generator_type: str,
    arguments: Path | None,
    from_options: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
) -> bool:
    """Train all stages of CONCAT, or those up to one of them, and write the checkpoint.

    Args:
        output: folder of the stages' folders and of the checkpoint at the end.
        last_stage: name of the last stage to run, or "all".
        clip: folder of Patchwork's CLIP; None takes the packaged one.
        split: which names are unseen.
        setting: "inductive" has no stage "union".
        generator_type: "mlp", "cvae" or "primitives".
        arguments: JSON file of training arguments.
        from_options: those of the command line.
        resume: go on with an earlier run.
        overwrite: start anew in folders that hold one.

    Returns:
        Whether all stages are complete; an interrupted run writes no final checkpoint.

    Raises:
        UsageError: if the recipe cannot end after that stage, or an earlier run is in the way.
        ValueError: if an argument is wrong, or the run cannot begin, cannot be resumed, or diverges.
        OSError: if the CLIP cannot be loaded.
    """
    quieten_transformers()
    recipe = build_patchwork_recipe(output)
    last_stages = [name for name in recipe if name not in SEGMENTOR_STAGES[:-1]]
    if setting == "inductive":
        del recipe[UnionStage.name]
        last_stages.remove(UnionStage.name)
    if last_stage not in (*last_stages, "all"):
        raise UsageError(f"--recipe patchwork, {setting}, ends with one of {last_stages}, got {last_stage}")
    names = list(recipe)
    chosen = names if last_stage == "all" else names[: names.index(last_stage) + 1]
    stages = _build_arguments(output, recipe, (SegmentorStage.name,), arguments, from_options)
    stages = {name: stages[name] for name in chosen}
    if not resume and not overwrite:
        check_stage_folders(output, recipe)
    clip_folder = str(packaged("patchwork-clip") if clip is None else clip)
    print_setup(clip_folder, f"Patchwork, split {split}, {setting}", stages, output)
    with training_errors_as_values():
        model, processor, results = train_patchwork_recipe(
            output,
            stages,
            clip=clip_folder,
            split=split,
            setting=setting,
            options=TransitionOptions(generator_type=generator_type),
            resume=resume,
            overwrite=overwrite,
        )
    return finish_run(output, stages, results, model, processor)


def train_clip_on_patchwork(
    output: Path,
    *,
    arguments: Path | None,
    from_options: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
) -> bool:
    """Train Patchwork's CLIP and write it.

    Args:
        output: folder of the stages' folders and of the checkpoint at the end.
        arguments: JSON file of training arguments.
        from_options: those of the command line.
        resume: go on with an earlier run.
        overwrite: start anew in folders that hold one.

    Returns:
        Whether both stages are complete; an interrupted run writes no final checkpoint.

    Raises:
        UsageError: if an earlier run is in the way.
        ValueError: if an argument is wrong, or the run cannot begin, cannot be resumed, or diverges.
    """
    quieten_transformers()
    steps = PatchworkSteps()
    recipe = build_patchwork_clip_stages(output, clip_steps=steps.clip, vision_steps=steps.vision)
    stages = _build_arguments(output, recipe, tuple(recipe), arguments, from_options)
    if not resume and not overwrite:
        check_stage_folders(output, stages)
    print_setup("random weights", "Patchwork, all categories, with captions", stages, output)
    with training_errors_as_values():
        prepare_stages(stages.values(), resume=resume, overwrite=overwrite)
        model, processor, results = train_patchwork_clip(stages, resume=resume, overwrite=overwrite)
    return finish_run(output, stages, results, model, processor)


def _build_arguments(
    output: Path,
    recipe: Mapping[str, TrainerArguments],
    evaluated: tuple[str, ...],
    arguments: Path | None,
    from_options: Mapping[str, Any],
) -> dict[str, TrainerArguments]:
    """The recipe's own arguments, changed by the file and the options."""
    return build_stage_arguments(
        output,
        {name: stage.to_dict() for name, stage in recipe.items()},
        arguments=arguments,
        from_options=from_options,
        sections=tuple(recipe),
        evaluated=evaluated,
    )
