"""How difficult a world is: how many objects, whether they overlap, and what the camera does to them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PatchworkPreset:
    """One difficulty.

    Attributes:
        name: as users call it.
        key: enters the seed of every scene.
        objects: fewest and most objects placed.
        may_occlude: whether objects may overlap and leave the picture.
        has_nuisance: light gradient, contact shadows, blur, sensor noise and JPEG.
        camouflage: share of objects whose first colour is close to the ground they lie on.
    """

    name: str
    key: int
    objects: tuple[int, int]
    may_occlude: bool
    has_nuisance: bool
    camouflage: float


PRESETS: Mapping[str, PatchworkPreset] = {
    preset.name: preset
    for preset in (
        PatchworkPreset("easy", 1, (1, 6), may_occlude=False, has_nuisance=False, camouflage=0.0),
        PatchworkPreset("standard", 2, (1, 6), may_occlude=True, has_nuisance=True, camouflage=0.0),
        PatchworkPreset("hard", 3, (5, 9), may_occlude=True, has_nuisance=True, camouflage=0.6),
    )
}


def load_preset(name: str) -> PatchworkPreset:
    """A preset by name.

    Raises:
        ValueError: if there is none of this name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"a Patchwork preset is one of {list(PRESETS)}, got {name!r}") from None
