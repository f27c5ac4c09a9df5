"""From what ``--model`` names to a pipeline that runs."""

from pathlib import Path
from typing import Any, Literal

from zsseg.checkpoints import resolve_checkpoint
from zsseg.cli.messages import UsageError

MODEL_TYPE_PREFIX = "zsseg-"

Task = Literal["panoptic", "semantic"]


def load_pipeline(task: Task, model: str, *, device: str | None = None, dtype: str | None = None) -> Any:
    """Load a checkpoint as the pipeline of a task, quietly.

    Args:
        task: which result the pipeline gives.
        model: a folder, Hub id or packaged checkpoint.
        device: None takes the first accelerator, else the CPU.
        dtype: of the weights, such as "bfloat16"; None keeps the checkpoint's.

    Raises:
        FileNotFoundError: if ``model`` is a path without a checkpoint.
        OSError: if the Hub does not have it or cannot be reached.
        ValueError: if the checkpoint is damaged or of another kind.
        UsageError: if there is no such device.
    """
    model = find_checkpoint(model)
    from transformers import pipeline

    quieten_transformers()
    if device is not None:
        _check_device(device)
    check_family(model)
    return pipeline(f"zero-shot-{task}-segmentation", model=model, device=device, dtype=dtype)


def find_checkpoint(name: str) -> str:
    """What ``from_pretrained`` takes; a path that holds none is refused before anything slow is imported.

    A relative path of one or two parts that does not exist may be a name on the Hub, and passes.

    Args:
        name: a folder, Hub id or packaged checkpoint.

    Raises:
        FileNotFoundError: with the nearest folder that does hold one, if there is any.
        OSError: if a packaged checkpoint is damaged.
    """
    model = resolve_checkpoint(name)
    folder = Path(model)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return model
        inside = next(
            (path for path in ("checkpoint", "best", "last") if _is_checkpoint(folder / path)), None
        )
        hint = f"did you mean {folder / inside}?" if inside else "pass the folder that save_pretrained wrote"
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no checkpoint; {hint}")
    is_hub_id = not folder.is_absolute() and len(folder.parts) <= 2 and model[0] not in ".~"
    if folder.exists() or not is_hub_id or (len(folder.parts) == 2 and Path(folder.parts[0]).is_dir()):
        raise FileNotFoundError(f"there is no checkpoint folder at {model}; check the path")
    return model


def quieten_transformers() -> None:
    """Keep transformers' bars and advice from between the lines of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_family(model: str) -> None:
    """Refuse a checkpoint of other software.

    Raises:
        OSError: if the Hub does not have it or cannot be reached.
        ValueError: if it is of another model type.
    """
    from transformers import PreTrainedConfig

    try:
        model_type = PreTrainedConfig.get_config_dict(model)[0].get("model_type")
    except OSError as error:
        raise OSError(f"cannot load the checkpoint {model!r}: {error}") from error
    if not str(model_type).startswith(MODEL_TYPE_PREFIX):
        raise ValueError(
            f"{model} is a checkpoint of model type {model_type!r}, not one of zsseg; `zsseg train concat "
            "--mask2former … --clip …` makes one of a Mask2Former and a CLIP"
        )


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used ({reason}); `zsseg env` lists devices") from error


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()
