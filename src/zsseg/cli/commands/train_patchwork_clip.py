"""``zsseg train patchwork-clip``: the tiny CLIP in whose text space Patchwork's segmentors work."""

import typer

from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.training_options import (
    ArgumentsOption,
    BatchSizeOption,
    MixedPrecisionOption,
    NumWorkersOption,
    OutputOption,
    OverwriteOption,
    ResumeOption,
    SeedOption,
    TimeLimitOption,
)
from zsseg.training.interruption import limit_time


def patchwork_clip(
    output: OutputOption,
    batch_size: BatchSizeOption = None,
    mixed_precision: MixedPrecisionOption = None,
    seed: SeedOption = None,
    arguments: ArgumentsOption = None,
    num_workers: NumWorkersOption = None,
    time_limit: TimeLimitOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train Patchwork's CLIP from random weights.

    Two stages: clip (both towers), then vision (its tower alone). Scenes are
    rendered when they are needed; there is no data to get. OUTPUT/checkpoint
    is what `zsseg train concat --recipe patchwork --clip` takes and
    `zsseg evaluate patchwork-clip` scores. Ctrl-C saves and stops; --resume
    goes on.

    Example: zsseg train patchwork-clip --output runs/patchwork-clip
    """
    with errors_in_one_line(show_traceback=traceback), log_shown(), limit_time(time_limit):
        if resume and overwrite:
            raise UsageError("--resume goes on with a run, --overwrite starts anew; give one of them")
        from zsseg.cli.patchwork_training_run import train_clip_on_patchwork

        given = {
            "batch_size": batch_size,
            "mixed_precision": None if mixed_precision is None else mixed_precision.value,
            "seed": seed,
            "num_workers": num_workers,
        }
        is_complete = train_clip_on_patchwork(
            output,
            arguments=arguments,
            from_options={name: value for name, value in given.items() if value is not None},
            resume=resume,
            overwrite=overwrite,
        )
    if not is_complete:
        raise typer.Exit(EXIT_FAILURE)
