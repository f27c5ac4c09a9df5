"""Patchwork's sixty categories: every thing is a surface on a shape, all stuff is a tone of a material."""

from dataclasses import dataclass
from functools import cache

from zsseg.vocabulary import Category, Vocabulary

SURFACES = ("plain", "striped", "dotted", "checkered", "ringed")
SHAPES = ("disc", "triangle", "square", "star", "ring", "cross", "crescent", "arrow")
TONES = ("red", "green", "blue", "grey")
MATERIALS = ("brick", "gravel", "weave", "waves", "planks")


@dataclass(frozen=True, slots=True)
class PatchworkCategory:
    """A composition of two words.

    Attributes:
        attribute: the surface of a thing, the tone of stuff.
        base: the shape of a thing, the material of stuff.
        is_thing: a thing or stuff.
    """

    attribute: str
    base: str
    is_thing: bool

    @property
    def name(self) -> str:
        """As labels and captions call it, such as "striped star"."""
        return f"{self.attribute} {self.base}"


PATCHWORK_CATEGORIES: tuple[PatchworkCategory, ...] = (
    *(PatchworkCategory(surface, shape, True) for shape in SHAPES for surface in SURFACES),
    *(PatchworkCategory(tone, material, False) for material in MATERIALS for tone in TONES),
)
"""All categories by label id: 40 things, then 20 kinds of stuff."""


@cache
def build_patchwork_vocabulary(unseen_label_ids: frozenset[int] = frozenset()) -> Vocabulary:
    """The sixty labels, with those of a split marked unseen."""
    return Vocabulary(
        tuple(
            Category(
                name=category.name,
                is_thing=category.is_thing,
                is_seen=label_id not in unseen_label_ids,
                category_id=label_id + 1,
            )
            for label_id, category in enumerate(PATCHWORK_CATEGORIES)
        )
    )


def list_patchwork_parents() -> dict[str, list[str]]:
    """Label → the other labels of its shape or material, for SG-IoU.

    Example:
        >>> list_patchwork_parents()["red brick"]
        ['green brick', 'blue brick', 'grey brick']
    """
    return {
        category.name: [
            other.name for other in PATCHWORK_CATEGORIES if other.base == category.base and other != category
        ]
        for category in PATCHWORK_CATEGORIES
    }
