"""Which twelve categories training never shows: one a shape, one a tone, their parts all seen elsewhere."""

from functools import cache

from zsseg.data.patchwork.categories import MATERIALS, PATCHWORK_CATEGORIES, SHAPES, SURFACES, TONES
from zsseg.data.patchwork.random_stream import RandomStream

SPLIT_A = (
    "ringed disc",
    "checkered triangle",
    "plain square",
    "striped star",
    "dotted ring",
    "checkered cross",
    "plain crescent",
    "dotted arrow",
    "red weave",
    "green planks",
    "blue brick",
    "grey waves",
)
"""The unseen names of split "A", on which figures are reported."""

SPLIT_KEY = 0x5711


@cache
def load_patchwork_split(split: str) -> frozenset[int]:
    """The label ids that are unseen in a split.

    Args:
        split: "A", or "seed-N" for the split that seed N ≥ 0 draws under the same constraint: eight things of
            the eight shapes and four kinds of stuff of the four tones and four different materials, with no
            surface taken from more than two shapes. So every word of an unseen name is learnt from seen ones.

    Raises:
        ValueError: if the split is unknown.

    Example:
        >>> sorted(load_patchwork_split("A"))[:3]
        [4, 8, 10]
    """
    if split == "A":
        names = frozenset(SPLIT_A)
    else:
        prefix, _, seed = split.partition("-")
        if prefix != "seed" or not (seed.isascii() and seed.isdigit()):
            raise ValueError(f'a Patchwork split is "A" or "seed-N" with an integer N ≥ 0, got {split!r}')
        names = _draw_unseen_names(RandomStream(SPLIT_KEY, int(seed)))
    return frozenset(i for i, category in enumerate(PATCHWORK_CATEGORIES) if category.name in names)


def _draw_unseen_names(stream: RandomStream) -> frozenset[str]:
    surfaces = stream.sample(SURFACES * 2, len(SHAPES))
    materials = stream.sample(MATERIALS, len(TONES))
    things = (f"{surface} {shape}" for surface, shape in zip(surfaces, SHAPES, strict=True))
    stuff = (f"{tone} {material}" for tone, material in zip(TONES, materials, strict=True))
    return frozenset((*things, *stuff))
