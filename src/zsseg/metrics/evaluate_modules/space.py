"""The page of a module's Space on the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FRONT_MATTER_FENCE = "---\n"


def launch(script: str, example: Mapping[str, Any]) -> None:
    """Serve a page that computes a module's figures from JSON.

    Args:
        script: ``__file__`` of the Space's app.py; the module and README.md lie beside it.
        example: arguments of the module's ``compute``, to begin with.
    """
    import evaluate
    import gradio

    folder = Path(script).resolve().parent
    # By its file: the folder of a Space is not named like its module.
    (source,) = (path for path in folder.glob("*.py") if path.stem not in {"app", "__init__"})
    module = evaluate.load(str(source))
    gradio.Interface(
        fn=lambda text: compute_from_json(module, text),
        inputs=gradio.Code(write_arguments(example), language="json", label="Arguments of compute"),
        outputs=gradio.JSON(label="Figures"),
        title=source.stem.replace("_", " "),
        description=module.description,
        article=read_card(folder / "README.md"),
        flagging_mode="never",
    ).launch()


def write_arguments(arguments: Mapping[str, Any]) -> str:
    """One argument a line as JSON, maps and all.

    Example:
        >>> print(write_arguments({"predictions": [[[0, 1]]], "labels": ["road", "car"]}))
        {
         "predictions": [[[0, 1]]],
         "labels": ["road", "car"]
        }
    """
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in arguments.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def compute_from_json(module: Any, text: str) -> dict[str, Any]:
    """The figures of a module; those that are not defined, NaN, become None, and an error is one of them.

    Args:
        module: what ``evaluate.load`` gave.
        text: arguments of its ``compute`` as one JSON object.
    """
    try:
        arguments = json.loads(text)
        if not isinstance(arguments, dict):
            raise TypeError(f"the arguments must be one JSON object, got a {type(arguments).__name__}")
        results = module.compute(**arguments)
    except (TypeError, ValueError) as error:
        return {"error": str(error)}
    return _without_nan(results)


def read_card(path: Path) -> str:
    """A README without its front matter."""
    text = path.read_text(encoding="utf-8")
    return text.split(FRONT_MATTER_FENCE, 2)[2] if text.startswith(FRONT_MATTER_FENCE) else text


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if value != value else value
