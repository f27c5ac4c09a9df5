"""``zsseg train scan``: train SCAN on a data set with ground truth."""

import typer

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
    CropsPerImageOption,
    DatasetOption,
    EvaluateEveryOption,
    GradientAccumulationStepsOption,
    LearningRateOption,
    Mask2formerOption,
    MaxGradNormOption,
    MaxScaleOption,
    MinScaleOption,
    MixedPrecisionOption,
    ModelOption,
    NumWorkersOption,
    OutputOption,
    OverwriteOption,
    ResumeOption,
    SaveEveryOption,
    ScanStageChoice,
    ScanStageOption,
    SeedOption,
    ShiftRatioOption,
    SizeOption,
    SplitOption,
    StepsOption,
    StreamingOption,
    TimeLimitOption,
    UnseenPolicy,
    UnseenPolicyOption,
    ValImagesOption,
    ValOption,
    VisionClipOption,
)
from zsseg.training.interruption import limit_time


def scan(
    output: OutputOption,
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
    clip: VisionClipOption = None,
    crops_per_image: CropsPerImageOption = 4,
    shift_ratio: ShiftRatioOption = 0.15,
    size: SizeOption = (640, 640),
    min_scale: MinScaleOption = 0.5,
    max_scale: MaxScaleOption = 2.0,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: GradientAccumulationStepsOption = None,
    learning_rate: LearningRateOption = None,
    max_grad_norm: MaxGradNormOption = None,
    mixed_precision: MixedPrecisionOption = None,
    seed: SeedOption = None,
    arguments: ArgumentsOption = None,
    stage: ScanStageOption = ScanStageChoice.ALL,
    evaluate_every: EvaluateEveryOption = None,
    save_every: SaveEveryOption = None,
    num_workers: NumWorkersOption = None,
    time_limit: TimeLimitOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train SCAN: proposals, then a CLIP for the masks cut out.

    OUTPUT/checkpoint holds model and processor at the end; `zsseg segment`
    and `transformers.pipeline` load it. Ctrl-C saves a checkpoint and stops,
    --time-limit too; --resume goes on from it.

    Example: zsseg train scan --dataset street/train --val street/val
    --mask2former facebook/mask2former-swin-base-IN21k-ade-semantic
    --clip openai/clip-vit-base-patch16 --steps 2000 --batch-size 8
    --output runs/street
    """
    with errors_in_one_line(show_traceback=traceback), log_shown(), limit_time(time_limit):
        if resume and overwrite:
            raise UsageError("--resume goes on with a run, --overwrite starts anew; give one of them")
        if dataset is None:
            raise UsageError("name what to train on: --dataset DATASET")
        from zsseg.cli.training_start import (
            DataOptions,
            check_start_options,
            drop_missing,
            find_start_weights,
        )

        check_start_options(
            output=output,
            model=model,
            mask2former=mask2former,
            clip=clip,
            val=val,
            val_images=val_images,
            evaluate_every=evaluate_every,
        )
        if clip is not None and clip.startswith("open_clip:"):
            raise UsageError(
                "--clip takes a CLIP of transformers; conversion_scripts/convert_open_clip_to_zsseg.py makes "
                "one of a CLIP of open_clip"
            )
        model, mask2former, clip = find_start_weights(model, mask2former, clip)
        from zsseg.cli.ground_truth import LabelSetup
        from zsseg.cli.scan_training_run import ScanTrainingRun, build_scan_arguments
        from zsseg.cli.stage_arguments import check_stage_folders

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
        stages = build_scan_arguments(
            output,
            stage.value,
            validation,
            arguments=arguments,
            from_options=drop_missing(
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
            ),
        )
        if not resume and not overwrite:
            check_stage_folders(output, stages)
        run = ScanTrainingRun(
            stages=stages, dataset=pictures, validation=validation, labels=labels, output=output
        )
        run.load(model=model, mask2former=mask2former, clip=clip)
        run.print_setup(unseen_policy.value)
        is_complete = run.train(
            size=size,
            min_scale=min_scale,
            max_scale=max_scale,
            unseen_policy=unseen_policy.value,
            crops_per_image=crops_per_image,
            shift_ratio=shift_ratio,
            resume=resume,
            overwrite=overwrite,
        )
    if not is_complete:
        raise typer.Exit(EXIT_FAILURE)
