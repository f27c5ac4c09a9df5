"""``zsseg train``: train a family's model on a data set with ground truth, or by a recipe."""

from collections.abc import Collection
from pathlib import Path

import typer

from zsseg.cli.checkpoint_loading import find_checkpoint
from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.options import (
    ConfigOption,
    ImagesOption,
    LabelNames,
    LabelNamesOption,
    PartOption,
    RevisionOption,
    UnseenOption,
)
from zsseg.cli.training_options import (
    ArgumentsOption,
    BatchSizeOption,
    ClipOption,
    DatasetOption,
    EvaluateEveryOption,
    GeneratorChoice,
    GeneratorOption,
    GradientAccumulationStepsOption,
    LearningRateOption,
    Mask2formerOption,
    MaxGradNormOption,
    MaxScaleOption,
    MinScaleOption,
    MixedPrecisionOption,
    ModelOption,
    NumWorkersOption,
    OverwriteOption,
    RecipeOption,
    RecipeOutputOption,
    ResumeOption,
    SaveEveryOption,
    SeedOption,
    Setting,
    SettingOption,
    SizeOption,
    SplitOption,
    StageChoice,
    StageOption,
    StepsOption,
    StreamingOption,
    TeacherOption,
    TimeLimitOption,
    UnseenPolicy,
    UnseenPolicyOption,
    ValImagesOption,
    ValOption,
)
from zsseg.training.interruption import limit_time

RECIPE_OPTIONS = frozenset(
    {
        *("recipe", "output", "stage", "clip", "split", "setting", "generator", "batch_size"),
        *("mixed_precision", "seed", "arguments", "num_workers", "time_limit"),
        *("resume", "overwrite", "traceback"),
    }
)

train = typer.Typer(name="train", no_args_is_help=True)


@train.callback()
def train_a_family() -> None:
    """Train a family's model; needs the extra "train"."""


@train.command()
def concat(
    context: typer.Context,
    output: RecipeOutputOption = None,
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    images: ImagesOption = None,
    part: PartOption = None,
    config: ConfigOption = None,
    revision: RevisionOption = None,
    streaming: StreamingOption = False,
    val: ValOption = None,
    val_images: ValImagesOption = None,
    split: SplitOption = None,
    unseen: UnseenOption = None,
    label_names: LabelNamesOption = LabelNames.CLEAN,
    unseen_policy: UnseenPolicyOption = UnseenPolicy.DROP_IMAGES,
    model: ModelOption = None,
    mask2former: Mask2formerOption = None,
    clip: ClipOption = None,
    setting: SettingOption = Setting.TRANSDUCTIVE,
    teacher: TeacherOption = None,
    generator: GeneratorOption = None,
    size: SizeOption = (928, 928),
    min_scale: MinScaleOption = 0.1,
    max_scale: MaxScaleOption = 2.0,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: GradientAccumulationStepsOption = None,
    learning_rate: LearningRateOption = None,
    max_grad_norm: MaxGradNormOption = None,
    mixed_precision: MixedPrecisionOption = None,
    seed: SeedOption = None,
    arguments: ArgumentsOption = None,
    stage: StageOption = StageChoice.ALL,
    evaluate_every: EvaluateEveryOption = None,
    save_every: SaveEveryOption = None,
    num_workers: NumWorkersOption = None,
    time_limit: TimeLimitOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train CONCAT: segmentor, query generator, union fine-tuning.

    OUTPUT/checkpoint holds model and processor at the end; `zsseg segment`,
    `zsseg adapt` and `transformers.pipeline` load it. Ctrl-C saves a
    checkpoint and stops, --time-limit too; --resume goes on from it.

    Example: zsseg train concat --recipe patchwork

    Example: zsseg train concat --dataset camvid --val camvid --model START
    --steps 900 --batch-size 8 --size 288 384 --output runs/camvid
    """
    with errors_in_one_line(show_traceback=traceback), log_shown(), limit_time(time_limit):
        if resume and overwrite:
            raise UsageError("--resume goes on with a run, --overwrite starts anew; give one of them")
        from zsseg.cli.training_start import (
            DataOptions,
            check_start_options,
            drop_missing,
            find_start_weights,
        )

        from_options = drop_missing(
            steps=steps,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            mixed_precision=mixed_precision,
            seed=seed,
            evaluate_every=evaluate_every,
            save_every=save_every,
            num_workers=num_workers,
        )
        generator_type = (GeneratorChoice.MLP if generator is None else generator).value
        if recipe is not None:
            _refuse_options(
                context, RECIPE_OPTIONS, "--recipe brings data, start weights and arguments along"
            )
            if clip is not None:
                clip = find_checkpoint(clip)
            from zsseg.cli.patchwork_training_run import train_concat_on_patchwork

            is_complete = train_concat_on_patchwork(
                Path("runs", recipe.value) if output is None else output,
                last_stage=stage.value,
                clip=clip,
                split="A" if split is None else split,
                setting=setting.value,
                generator_type=generator_type,
                arguments=arguments,
                from_options=from_options,
                resume=resume,
                overwrite=overwrite,
            )
        else:
            if dataset is None:
                raise UsageError("name what to train on: --dataset DATASET, or --recipe patchwork")
            output = check_start_options(
                output=output,
                model=model,
                mask2former=mask2former,
                clip=clip,
                val=val,
                val_images=val_images,
                evaluate_every=evaluate_every,
            )
            model, mask2former, clip, teacher = find_start_weights(model, mask2former, clip, teacher)
            from zsseg.cli.ground_truth import LabelSetup
            from zsseg.cli.stage_arguments import check_stage_folders
            from zsseg.cli.training_run import TrainingRun, build_concat_arguments, choose_stages

            labels = LabelSetup(split, unseen, label_names)
            pictures, validation = DataOptions(
                dataset=dataset,
                images=images,
                part=part,
                config=config,
                revision=revision,
                streaming=streaming,
                val=val,
                val_images=val_images,
                labels=labels,
            ).open()
            stages = build_concat_arguments(
                output,
                choose_stages(
                    stage.value,
                    pictures.vocabulary,
                    setting=setting.value,
                    has_teacher=bool(teacher),
                    is_streamed=streaming,
                ),
                validation,
                arguments=arguments,
                from_options=from_options,
            )
            if generator is not None and "generator" not in stages:
                raise UsageError("--generator says what the stage generator trains, which does not run")
            if not resume and not overwrite:
                check_stage_folders(output, stages)
            run = TrainingRun(
                stages=stages, dataset=pictures, validation=validation, labels=labels, output=output
            )
            run.load(model=model, mask2former=mask2former, clip=clip, teacher=teacher)
            run.print_setup(unseen_policy.value, setting.value)
            is_complete = run.train(
                size=size,
                min_scale=min_scale,
                max_scale=max_scale,
                unseen_policy=unseen_policy.value,
                setting=setting.value,
                generator_type=generator_type,
                resume=resume,
                overwrite=overwrite,
            )
    if not is_complete:
        raise typer.Exit(EXIT_FAILURE)


def _refuse_options(context: typer.Context, allowed: Collection[str], reason: str) -> None:
    """Refuse options that were given on the command line and would have no effect.

    Raises:
        UsageError: naming them.
    """
    refused = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in allowed
        and (source := context.get_parameter_source(str(parameter.name))) is not None
        and source.name == "COMMANDLINE"
    ]
    if refused:
        raise UsageError(f"{reason}; leave out {', '.join(refused)}")
