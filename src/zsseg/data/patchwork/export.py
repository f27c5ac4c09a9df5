"""Patchwork as files that ordinary readers take: COCO's panoptic format, and pictures with captions.

Pictures are PNG, so no pixel changes. A folder appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.postprocessing.result_files import write_coco_panoptic_results
from zsseg.structures import PanopticSegmentation

UNSEEN_FILE = "unseen.txt"


def export_coco_panoptic(dataset: PatchworkDataset, folder: str | os.PathLike[str]) -> None:
    """Write a world in COCO's panoptic format.

    ``images/``, ``panoptic.json``, its PNGs in ``panoptic/`` and, as the format says nothing of it, the names
    of the unseen labels in ``unseen.txt``, one a line; there is no such file if all labels are seen.
    :class:`~zsseg.data.coco_panoptic.CocoPanopticDataset` reads the folder back, and
    :func:`~zsseg.data.vocabularies.mark_unseen` marks the labels.

    Args:
        dataset: the world.
        folder: made with its parents; it may exist if it is empty.

    Raises:
        FileExistsError: if ``folder`` is a file or not empty.
    """
    vocabulary = dataset.vocabulary
    with _filling(Path(folder)) as unfinished:
        write_coco_panoptic_results(unfinished, _save_pictures(dataset, unfinished), vocabulary)
        if unseen := [vocabulary[label_id].name for label_id in vocabulary.unseen_label_ids]:
            (unfinished / UNSEEN_FILE).write_text("\n".join(unseen) + "\n", encoding="utf-8")


def export_image_captions(dataset: PatchworkDataset, folder: str | os.PathLike[str]) -> None:
    """Write a world as pictures with captions.

    ``images/`` and ``metadata.jsonl`` with ``file_name`` and ``caption``, as
    ``datasets.load_dataset("imagefolder", data_dir=folder)`` reads them.

    Args:
        dataset: the world.
        folder: made with its parents; it may exist if it is empty.

    Raises:
        FileExistsError: if ``folder`` is a file or not empty.
    """
    with (
        _filling(Path(folder)) as unfinished,
        (unfinished / "metadata.jsonl").open("w", encoding="utf-8") as metadata,
    ):
        for _, file_name, target in _save_pictures(dataset, unfinished):
            record = {"file_name": f"images/{file_name}", "caption": dataset.caption(target)}
            metadata.write(json.dumps(record) + "\n")


def require_empty_folder(folder: Path) -> None:
    """Make sure that a folder can be filled.

    Raises:
        FileExistsError: if it is a file or not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder, or empty this one")


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block ends without an error."""
    require_empty_folder(folder)
    folder = folder.resolve()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save_pictures(
    dataset: PatchworkDataset, folder: Path
) -> Iterator[tuple[int | str, str, PanopticSegmentation]]:
    """Write each picture into ``images``; gives its id, its file name and its target."""
    pictures = folder / "images"
    pictures.mkdir()
    for index in range(len(dataset)):
        example = dataset[index]
        example.image.save(pictures / example.file_name)
        yield example.image_id, example.file_name, example.target
