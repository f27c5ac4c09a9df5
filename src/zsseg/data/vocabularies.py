"""Published label spaces and seen/unseen splits, packaged as JSON, and the cleaning of data sets' names."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

from zsseg.vocabulary import Category, Vocabulary

_SUFFIXES = re.compile(r"(-(merged|other|stuff))+$")
_KIND_FIRST = re.compile(r"^(wall|floor|ceiling)-(\w+)$")


def clean_category_name(name: str) -> str:
    """Turn one name of a data set into words a text encoder has met.

    COCO's suffixes ``-other``, ``-merged`` and ``-stuff`` go, its kinds of walls, floors and ceilings are put
    in front, underscores become spaces. Hyphens within words stay.

    Example:
        >>> [clean_category_name(name) for name in ("tree-merged", "sky-other-merged", "wall-brick")]
        ['tree', 'sky', 'brick wall']
        >>> clean_category_name("traffic_light")
        'traffic light'
    """
    name = _SUFFIXES.sub("", name.strip())
    name = _KIND_FIRST.sub(r"\2 \1", name)
    return " ".join(name.replace("_", " ").split())


def clean_category_texts(name: str) -> tuple[str, ...]:
    """Clean a name that may list synonyms after commas, as ADE20K's do.

    Example:
        >>> clean_category_texts("building, edifice")
        ('building', 'edifice')
    """
    return tuple(dict.fromkeys(clean_category_name(text) for text in name.split(",") if text.strip()))


def build_vocabulary(
    entries: Iterable[Mapping[str, Any]], *, clean_names: bool = True, source: str = "the class list"
) -> Vocabulary:
    """Make a vocabulary of a data set's category entries.

    Args:
        entries: mappings with ``name`` and, where known, ``id``, ``isthing`` (absent: stuff, for data sets of
            regions only) and ``text`` (what to clean instead of the name).
        clean_names: use :func:`clean_category_texts`; False keeps the names as published.
        source: what errors call the list.

    Raises:
        ValueError: if there is no entry, one has no name, or two names are equal after cleaning.
    """
    categories = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not str(entry.get("name", "")).strip():
            raise ValueError(f"{source}: entry {position} must be an object with a 'name', got {entry!r}")
        raw = str(entry["name"])
        name, *synonyms = clean_category_texts(str(entry.get("text", raw))) if clean_names else (raw,)
        category_id = entry.get("id")
        categories.append(
            Category(
                name,
                tuple(synonyms),
                is_thing=bool(entry.get("isthing", False)),
                category_id=None if category_id is None else int(category_id),
            )
        )
    if not categories:
        raise ValueError(f'{source} names no label; expected at least one entry with "name" and "id"')
    try:
        return Vocabulary(tuple(categories))
    except ValueError as error:
        # Cleaning makes names equal, never ids.
        is_of_names = clean_names and "ids" not in str(error)
        fix = (
            "; pass clean_names=False (--label-names raw) to keep the names as published"
            if is_of_names
            else ""
        )
        raise ValueError(f"{source}: {error}{fix}") from error


def mark_unseen(vocabulary: Vocabulary, unseen_names: Collection[str]) -> Vocabulary:
    """The same vocabulary with these labels unseen and all others seen.

    Raises:
        ValueError: if a name is not in the vocabulary.
    """
    if unknown := sorted(set(unseen_names) - set(vocabulary.names)):
        raise ValueError(
            f"these unseen names are not in the vocabulary: {unknown}; it holds {list(vocabulary.names)[:20]}"
        )
    return Vocabulary(
        tuple(replace(category, is_seen=category.name not in unseen_names) for category in vocabulary)
    )


def list_label_spaces() -> tuple[str, ...]:
    """Names that :func:`load_label_space` takes.

    Example:
        >>> list_label_spaces()
        ('ade150', 'ade847', 'coco_instances', 'coco_panoptic', 'coco_stuff', 'pc459', 'pc59', 'voc20')
    """
    return _list_packaged("label_spaces")


def list_splits() -> tuple[str, ...]:
    """Names that :func:`load_split` takes.

    Example:
        >>> list_splits()[:2]
        ('coco_instances_48_17', 'coco_instances_65_15')
    """
    return _list_packaged("splits")


def load_label_space(name: str, *, clean_names: bool = True) -> Vocabulary:
    """Load a packaged label space; every label counts as seen.

    Args:
        name: one of :func:`list_label_spaces`.
        clean_names: words for a text encoder ("tree", "dining table", synonyms apart); False gives the names
            as the data set publishes them ("tree-merged", "diningtable").

    Returns:
        labels in the data set's order, with its category ids where it has any. Label spaces that do not tell
        things from stuff (ADE-847, PC-59, PC-459) are all stuff: one segment a label.

    Raises:
        ValueError: if there is no such label space.

    Example:
        >>> vocabulary = load_label_space("coco_panoptic")
        >>> len(vocabulary), vocabulary[vocabulary.label_id("tree")].category_id
        (133, 184)
    """
    entries = _read_packaged("label_spaces", name)["categories"]
    return build_vocabulary(entries, clean_names=clean_names, source=f"label space {name!r}")


def load_split(name: str, *, clean_names: bool = True) -> Vocabulary:
    """Load a published zero-shot split: a label space with ``is_seen`` set.

    Args:
        name: one of :func:`list_splits`; the numbers count seen and unseen labels.
        clean_names: as in :func:`load_label_space`.

    Returns:
        the labels of both parts in the order of their label space. ``coco_instances_48_17`` leaves 15 of the
        80 labels out: they are in neither part.

    Raises:
        ValueError: if there is no such split.

    Example:
        >>> vocabulary = load_split("coco_panoptic_119_14")
        >>> len(vocabulary.seen_label_ids), len(vocabulary.unseen_label_ids)
        (119, 14)
    """
    split = _read_packaged("splits", name)
    unseen = set(split["unseen"])
    raw_names = load_label_space(split["label_space"], clean_names=False).names
    seen = set(split.get("seen", raw_names)) - unseen
    cleaned = load_label_space(split["label_space"], clean_names=clean_names)
    return Vocabulary(
        tuple(
            replace(category, is_seen=raw in seen)
            for raw, category in zip(raw_names, cleaned, strict=True)
            if raw in seen | unseen
        )
    )


def _list_packaged(folder: str) -> tuple[str, ...]:
    names = (resource.name for resource in files("zsseg.data").joinpath(folder).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def _read_packaged(folder: str, name: str) -> dict[str, Any]:
    known = _list_packaged(folder)
    if name not in known:
        raise ValueError(f"no packaged {folder[:-1].replace('_', ' ')} {name!r}; there are {list(known)}")
    content: dict[str, Any] = json.loads(
        files("zsseg.data").joinpath(folder, f"{name}.json").read_text("utf-8")
    )
    return content
