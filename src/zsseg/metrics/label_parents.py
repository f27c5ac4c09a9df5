"""Which labels are right, if less exact, answers for which: the parents that SG-IoU asks for."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from zsseg.vocabulary import Vocabulary

Parents = Mapping[str, Sequence[str]]
"""Name of a label → the labels that contain it or mean the same: {"armchair": ["chair", "seat"]}."""


def read_parents(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a table of parents: one JSON object, label → list of labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a table, or lists a label twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of parents at {path}; check the path")
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table of parents: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} must hold one object such as {{"armchair": ["chair"]}}, got a {type(content).__name__}'
        )
    for label, parents in content.items():
        if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
            raise ValueError(f"{path}: the parents of {label!r} must be a list of labels, got {parents!r}")
    return content


def index_parents(parents: Parents, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """The pairs (label id, label id of a parent) of a table, in the order of the label ids.

    Two labels may be parents of each other: synonyms are.

    Raises:
        TypeError: if the parents of a label are a single string.
        ValueError: if a label is not in the vocabulary, is its own parent, or has a parent twice.
    """
    if strings := [label for label, names in parents.items() if isinstance(names, str)]:
        label = strings[0]
        raise TypeError(f"the parents of {label!r} must be a list, got a string: [{parents[label]!r}]")
    used = {name for label, names in parents.items() for name in (label, *names)}
    if unknown := sorted(used - set(vocabulary.names)):
        raise ValueError(
            f"the table of parents names {len(unknown)} labels that the vocabulary lacks: {unknown[:10]}; "
            f"it holds {list(vocabulary.names)[:10]}…"
        )
    if selves := [label for label, names in parents.items() if label in names]:
        raise ValueError(f"a label cannot be its own parent, but these are: {selves[:10]}")
    if doubles := [label for label, names in parents.items() if max(Counter(names).values(), default=0) > 1]:
        raise ValueError(f"each parent must be listed once, but these labels repeat one: {doubles[:10]}")
    label_ids = {name: label_id for label_id, name in enumerate(vocabulary.names)}
    return sorted((label_ids[label], label_ids[name]) for label, names in parents.items() for name in names)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of a JSON file; ``json`` itself keeps the last of repeated names and drops the others."""
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"these labels are listed more than once: {repeated[:10]}")
    return dict(pairs)
