"""Prompt templates as data; ``{}`` takes the label."""

from collections.abc import Sequence

PADING_PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "A photo of a {} in the scene",
)
"""The eight prompts of PADing (CVPR 2023), which CONCAT (arXiv:2402.13697) follows."""

VILD_PROMPTS = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""The fourteen prompts of ViLD (arXiv:2104.13921), which SCAN (arXiv:2312.04089) follows."""


def fill_prompts(text: str, prompt_templates: Sequence[str]) -> list[str]:
    """Put one text into every template.

    Raises:
        TypeError: if a single string is given for the list.
        ValueError: if there is no template, or one has no ``{}``.
    """
    if isinstance(prompt_templates, str):
        raise TypeError(
            f"prompt_templates must be a list of strings, got the string {prompt_templates!r}: "
            f"pass [{prompt_templates!r}]"
        )
    if not prompt_templates:
        raise ValueError(
            "at least one prompt template is needed, got none: pass ['{}'] to use labels as they are"
        )
    for template in prompt_templates:
        if "{}" not in template:
            raise ValueError(f"a prompt template must contain {{}} where the label goes, got {template!r}")
    return [template.replace("{}", text) for template in prompt_templates]
