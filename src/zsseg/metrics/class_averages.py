"""Averages of per-label figures over all labels, things, stuff, seen and unseen, in both conventions."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsseg.metrics.harmonic import harmonic_mean
from zsseg.vocabulary import Vocabulary

ALL_CLASSES = "_all_classes"
PRESENT_CLASSES = "_present_classes"


def group_label_ids(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """The groups that figures are averaged over, by the ending of their keys.

    Returns:
        Label ids of ``""`` (all labels), ``_th``, ``_st``, ``_seen``, ``_unseen`` and of what two of these
        share, such as ``_seen_th``; a group may be empty.
    """
    kinds = {"_th": vocabulary.thing_label_ids, "_st": vocabulary.stuff_label_ids}
    trainings = {"_seen": vocabulary.seen_label_ids, "_unseen": vocabulary.unseen_label_ids}
    shared = {
        training + kind: tuple(label_id for label_id in trainings[training] if label_id in kinds[kind])
        for training in trainings
        for kind in kinds
    }
    return {"": tuple(range(len(vocabulary))), **kinds, **trainings, **shared}


def average_over_groups(
    figures: Mapping[str, NDArray[np.float64]],
    is_present: NDArray[np.bool_],
    vocabulary: Vocabulary,
    *,
    prefix: str = "",
) -> dict[str, float]:
    """Average each figure over the groups of labels that the vocabulary has.

    With ``X`` a figure's name, ``m`` the prefix and a group one of :func:`group_label_ids`, the result holds

    - ``mX{group}``: over the group's present labels alone, as panopticapi does; NaN if none is present;
    - ``mX{group}_all_classes``: over all labels of the group, an absent one counting as 0, as the zero-shot
      literature does;
    - ``hX``: the harmonic mean of ``mX_seen_all_classes`` and ``mX_unseen_all_classes``;
    - ``hX_present_classes``: the harmonic mean of ``mX_seen`` and ``mX_unseen``.

    A group to which the vocabulary assigns no label has no key, and ``hX`` needs seen and unseen labels.

    Args:
        figures: name → (K,) values in [0, 1]; those of absent labels are not read.
        is_present: (K,), whether a label occurs in ground truth or prediction.
        vocabulary: K labels.
        prefix: put before the names of averages, not before those of harmonic means.
    """
    averages = {}
    for group, label_ids in group_label_ids(vocabulary).items():
        if not label_ids:
            continue
        members = np.asarray(label_ids)
        present_members = members[is_present[members]]
        for name, values in figures.items():
            total = float(values[present_members].sum())
            key = f"{prefix}{name}{group}"
            averages[key] = total / len(present_members) if len(present_members) else float("nan")
            averages[key + ALL_CLASSES] = total / len(members)
    if vocabulary.seen_label_ids and vocabulary.unseen_label_ids:
        for name in figures:
            seen, unseen = f"{prefix}{name}_seen", f"{prefix}{name}_unseen"
            averages[f"h{name}"] = harmonic_mean(averages[seen + ALL_CLASSES], averages[unseen + ALL_CLASSES])
            averages[f"h{name}{PRESENT_CLASSES}"] = harmonic_mean(averages[seen], averages[unseen])
    return averages
