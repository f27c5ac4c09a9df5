"""Pictures and semantic maps where published data sets have them: two folders, a list, a table of values."""

import os
from collections.abc import Collection
from pathlib import Path

from zsseg.data.annotation_files import list_folder, require_files
from zsseg.data.examples import PanopticExample
from zsseg.data.semantic_maps import IMAGE_SUFFIXES, convert_semantic_to_panoptic, read_label_map
from zsseg.image_loading import load_image
from zsseg.vocabulary import Vocabulary

_SHOWN_NAMES = 5


class LabelMapDataset:
    """Pictures and PNGs of the same stems whose pixels say the category by number.

    Args:
        image_folder: the pictures.
        map_folder: the PNGs; single-channel or with a palette. PNGs without a picture may be there too.
        vocabulary: the labels, with category ids.
        list_file: names the pictures by their stems, one a line; None takes all of the folder.
        value_offset: added to a category id it gives the value of its pixels: −1 where values count from 0.
        ignored_values: values of pixels of which nothing is known.

    Attributes:
        vocabulary: the labels that targets refer to.
        file_names: the pictures' file names, in the order of the list or sorted.

    Raises:
        FileNotFoundError: if a folder, the list, a picture or a map is missing.
        ValueError: if the vocabulary has no category ids, or two pictures share a stem.
    """

    def __init__(
        self,
        image_folder: str | os.PathLike[str],
        map_folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        *,
        list_file: str | os.PathLike[str] | None = None,
        value_offset: int = 0,
        ignored_values: Collection[int] = (255,),
    ) -> None:
        self.image_folder, self.map_folder = Path(image_folder), Path(map_folder)
        self.vocabulary = vocabulary
        if len(vocabulary.label_id_by_category_id) != len(vocabulary):
            raise ValueError("the labels of pixel values need category ids, and some labels have none")
        self._label_ids = {
            category_id + value_offset: label_id
            for category_id, label_id in vocabulary.label_id_by_category_id.items()
        } | dict.fromkeys(ignored_values, -1)
        self.file_names = _name_pictures(self.image_folder, None if list_file is None else Path(list_file))
        require_files(self.map_folder, [f"{Path(name).stem}.png" for name in self.file_names], "label map")

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> PanopticExample:
        name = self.file_names[index]
        label_map = read_label_map(self._map_path(index), self._label_ids)
        target = convert_semantic_to_panoptic(label_map, self.vocabulary, ignore_index=-1)
        return PanopticExample(load_image(self.image_folder / name), target, Path(name).stem, name)

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one map."""
        label_map = read_label_map(self._map_path(index), self._label_ids)
        return frozenset(value for value in set(label_map.ravel().tolist()) if value >= 0)

    def _map_path(self, index: int) -> Path:
        return self.map_folder / f"{Path(self.file_names[index]).stem}.png"


def _name_pictures(folder: Path, list_file: Path | None) -> tuple[str, ...]:
    names = [name for name in list_folder(folder, "image") if name.lower().endswith(IMAGE_SUFFIXES)]
    by_stem = {Path(name).stem: name for name in names}
    if len(by_stem) != len(names):
        raise ValueError(f"{folder} holds pictures that differ in their suffix alone: rename or remove some")
    if list_file is None:
        if not names:
            raise FileNotFoundError(f"{folder} holds no picture")
        return tuple(names)
    if not list_file.is_file():
        raise FileNotFoundError(f"there is no list of pictures at {list_file}")
    stems = [line.split()[0] for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if missing := [stem for stem in stems if stem not in by_stem]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(stems)} pictures that {list_file.name} lists are not in {folder}: "
            f"{', '.join(missing[:_SHOWN_NAMES])}{', …' if len(missing) > _SHOWN_NAMES else ''}"
        )
    if not stems:
        raise FileNotFoundError(f"{list_file} lists no picture")
    return tuple(by_stem[stem] for stem in stems)
