"""What one would say of a scene: "a striped star and two dotted rings on red brick and blue waves"."""

from collections.abc import Sequence

from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES, PatchworkCategory
from zsseg.vocabulary import Category

COUNT_WORDS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def describe_category(category: PatchworkCategory | Category) -> str:
    """One segment's caption: "a striped star", "red brick"."""
    return f"a {category.name}" if category.is_thing else category.name


def build_caption(label_ids: Sequence[int]) -> str:
    """The caption of a scene.

    Args:
        label_ids: of its visible segments, among the sixty categories. Things are counted, stuff is named
            once; each kind in the order of first occurrence.

    Example:
        >>> build_caption([40, 16, 22, 22, 53])
        'a striped star and two dotted rings on red brick and green waves'
    """
    counts: dict[int, int] = {}
    for label_id in label_ids:
        counts[label_id] = counts.get(label_id, 0) + 1
    things = [
        _count_things(PATCHWORK_CATEGORIES[label_id], count)
        for label_id, count in counts.items()
        if PATCHWORK_CATEGORIES[label_id].is_thing
    ]
    stuff = [PATCHWORK_CATEGORIES[i].name for i in counts if not PATCHWORK_CATEGORIES[i].is_thing]
    return " on ".join(_enumerate(names) for names in (things, stuff) if names)


def _count_things(category: PatchworkCategory, count: int) -> str:
    if count == 1:
        return describe_category(category)
    return f"{COUNT_WORDS[count]} {category.attribute} {build_plural(category.base)}"


def build_plural(shape: str) -> str:
    """Such as "crosses" for "cross" and "stars" for "star"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1]) if len(names) > 1 else names)
