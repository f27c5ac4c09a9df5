"""Training arguments of each stage, from a recipe's defaults, a JSON file and the options of a command."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zsseg.cli.messages import UsageError
from zsseg.data.annotation_files import read_annotation_json
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipes.concat_transition import TRANSITION_STAGES

CHECKPOINT_FOLDER = "checkpoint"

SHARED_ARGUMENTS = ("seed", "mixed_precision")
"""What all stages of a run have in common."""


def build_stage_arguments(
    output: Path,
    defaults: Mapping[str, Mapping[str, Any]],
    *,
    arguments: Path | None,
    from_options: Mapping[str, Any],
    sections: Collection[str],
    evaluated: Collection[str],
    recipe_steps: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, TrainerArguments]:
    """The arguments of each stage: its defaults, those of the file, its own section of it, the options.

    What the file says outside its sections, and what options say, is meant for stages on pictures. Generator
    and union learn from stored queries, each with an optimiser of its own: beside other stages they take only
    seed and mixed precision from there.

    Args:
        output: every stage gets a folder of its name in it.
        defaults: for each stage that runs, in order, training arguments by name.
        arguments: file of one JSON object; None has nothing to say.
        from_options: what the command line sets.
        sections: stages that may have a section in the file, whether they run or not.
        evaluated: stages during which there is something to evaluate on; others have no ``evaluate_every``.
        recipe_steps: how many steps the default warm-up of the learning rate is meant for; with fewer it is
            shorter in proportion.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an argument is unknown, or its value is out of range or of the wrong type.
        UsageError: if nothing says how many steps a stage takes.
    """
    from_file = {} if arguments is None else read_annotation_json(arguments, ())
    own = {name: from_file.get(name, {}) for name in sections}
    for name, section in own.items():
        if not isinstance(section, Mapping):
            raise ValueError(f"{name!r} must hold training arguments of that stage by name, got {section!r}")
    common = {name: value for name, value in from_file.items() if name not in sections}
    if "output_dir" in common or any("output_dir" in section for section in own.values()):
        raise ValueError("the arguments name an output_dir, but --output does; take it out of the file")
    stages = {}
    for name, stage_defaults in defaults.items():
        is_alone = len(defaults) == 1
        taken, options = (
            values if is_alone or name not in TRANSITION_STAGES else _keep_shared(values)
            for values in (common, from_options)
        )
        given = {**taken, **own[name], **options}
        values = {**stage_defaults, **given, "output_dir": output / name}
        if "steps" not in values:
            raise UsageError(f"say how many steps the stage {name!r} takes: --steps, or in --arguments")
        if name not in evaluated:
            values["evaluate_every"] = None
        stages[name] = _read(
            values, is_warmup_given="warmup_steps" in given, recipe_steps=recipe_steps.get(name, 1)
        )
    return stages


def _keep_shared(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in SHARED_ARGUMENTS}


def _read(values: Mapping[str, Any], *, is_warmup_given: bool, recipe_steps: int) -> TrainerArguments:
    """The arguments; a recipe's warm-up of the learning rate is cut to fit fewer steps than it is meant for.

    Raises:
        ValueError: if they do not fit.
    """
    try:
        if is_warmup_given:
            return TrainerArguments.from_dict(values)
        arguments = TrainerArguments.from_dict({**values, "warmup_steps": 0})
    except TypeError as error:
        raise ValueError(str(error)) from error
    warmup_steps = values.get("warmup_steps", 0)
    share = min(1.0, arguments.steps / recipe_steps)
    return replace(arguments, warmup_steps=min(round(share * warmup_steps), arguments.steps - 1))


def check_stage_folders(output: Path, stages: Iterable[str]) -> None:
    """Refuse to begin where an earlier run would be in the way.

    Raises:
        UsageError: if the folder of a stage or of the final checkpoint is there and not empty.
    """
    for folder in (*(output / name for name in stages), output / CHECKPOINT_FOLDER):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is not empty: pass --resume to go on with its run, --overwrite to start anew, or "
                "choose another --output"
            )
