"""Patchwork as a data set: scenes rendered when they are read, no file anywhere."""

from typing import Literal, get_args

from zsseg.data.examples import PanopticExample, SegmentLabel, build_target
from zsseg.data.patchwork.captions import build_caption
from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.presets import load_preset
from zsseg.data.patchwork.rendering import map_scene, render_scene
from zsseg.data.patchwork.scenes import Scene, build_scene
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

Categories = Literal["all", "seen"]

HELD_OUT_SEED = 1_000_000
"""The world on which figures are reported; no training may use it."""

SMALLEST_SIZE = 32
"""Height and width in pixels; below it the patterns of small objects cannot be told apart."""


class PatchworkDataset:
    """Scenes of one Patchwork world, by index.

    A scene is a pure function of (preset, seed, index), of its size and of the categories it may hold: the
    same on every machine, whatever was read before. Only the JPEG step of "standard" and "hard" is Pillow's,
    whose versions may differ by a shade.

    Args:
        preset: "easy", "standard" or "hard".
        seed: of the world, 0 or more.
        num_scenes: length; scene i does not depend on it.
        split: which names are unseen, "A" or "seed-N".
        categories: "all" draws scenes from all sixty categories, the same in every split; "seen" from the
            seen ones alone, and the vocabulary then holds no unseen name either: what training may look at.
        size: height and width in pixels, 32 or more.

    Raises:
        ValueError: if an argument is out of range; the message says what is allowed.
    """

    def __init__(
        self,
        preset: str = "standard",
        *,
        seed: int = 0,
        num_scenes: int,
        split: str = "A",
        categories: Categories = "all",
        size: int = 128,
    ) -> None:
        if categories not in get_args(Categories):
            raise ValueError(f"categories must be one of {list(get_args(Categories))}, got {categories!r}")
        for name, value, smallest in (
            ("seed", seed, 0),
            ("num_scenes", num_scenes, 1),
            ("size", size, SMALLEST_SIZE),
        ):
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        self.preset = load_preset(preset)
        self.seed = seed
        self.num_scenes = num_scenes
        self.split = split
        self.size = size
        unseen = load_patchwork_split(split)
        everything = build_patchwork_vocabulary(unseen)
        self._world_label_ids = everything.seen_label_ids if categories == "seen" else range(len(everything))
        self._vocabulary = everything.select(self._world_label_ids)
        self._label_id_by_world_id = {world: i for i, world in enumerate(self._world_label_ids)}

    @property
    def vocabulary(self) -> Vocabulary:
        """The sixty labels, or the seen ones."""
        return self._vocabulary

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> PanopticExample:
        """Render scene ``index``.

        Raises:
            IndexError: if it is outside [0, num_scenes).
        """
        image, segment_ids, world_ids = render_scene(self._build_scene(index), self.size)
        labels = {
            segment_id: SegmentLabel(self._label_id_by_world_id[world_id])
            for segment_id, world_id in world_ids.items()
        }
        return PanopticExample(
            image=image,
            target=build_target(segment_ids, labels, self._vocabulary),
            image_id=index,
            file_name=f"{index:08d}.png",
        )

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one scene, without drawing it.

        Raises:
            IndexError: if ``index`` is outside [0, num_scenes).
        """
        _, world_ids = map_scene(self._build_scene(index), self.size)
        return frozenset(self._label_id_by_world_id[world_id] for world_id in world_ids.values())

    def caption(self, target: PanopticSegmentation) -> str:
        """What one would say of a scene of this data set.

        Args:
            target: of :meth:`__getitem__`.
        """
        return build_caption([self._world_label_ids[segment.label_id] for segment in target.segments])

    def _build_scene(self, index: int) -> Scene:
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene index must lie in [0, {self.num_scenes}), got {index}")
        return build_scene(self.preset, self.seed, index, self._world_label_ids)
