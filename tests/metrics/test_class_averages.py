import math

import numpy as np
import pytest

from zsseg.metrics.class_averages import average_over_groups, group_label_ids
from zsseg.vocabulary import Vocabulary


def test_both_conventions_by_hand():
    vocabulary = Vocabulary.from_labels(
        ["car", "cow", "road", "sky"], stuff_labels=["road", "sky"], unseen_labels=["cow", "sky"]
    )
    averages = average_over_groups(
        {"PQ": np.array([0.6, 0.2, 0.4, np.nan])}, np.array([True, True, True, False]), vocabulary
    )
    assert averages == pytest.approx(
        {
            "PQ": 0.4,
            "PQ_all_classes": 0.3,
            "PQ_th": 0.4,
            "PQ_th_all_classes": 0.4,
            "PQ_st": 0.4,
            "PQ_st_all_classes": 0.2,
            "PQ_seen": 0.5,
            "PQ_seen_all_classes": 0.5,
            "PQ_unseen": 0.2,
            "PQ_unseen_all_classes": 0.1,
            "PQ_seen_th": 0.6,
            "PQ_seen_th_all_classes": 0.6,
            "PQ_seen_st": 0.4,
            "PQ_seen_st_all_classes": 0.4,
            "PQ_unseen_th": 0.2,
            "PQ_unseen_th_all_classes": 0.2,
            "PQ_unseen_st": np.nan,
            "PQ_unseen_st_all_classes": 0.0,
            "hPQ": 2 * 0.5 * 0.1 / 0.6,
            "hPQ_present_classes": 2 * 0.5 * 0.2 / 0.7,
        },
        rel=1e-14,
        nan_ok=True,
    )


def test_groups_without_labels_have_no_key():
    averages = average_over_groups(
        {"IoU": np.ones(2)}, np.ones(2, bool), Vocabulary.from_labels(["a", "b"]), prefix="m"
    )
    assert averages == {
        key: 1.0
        for key in (
            "mIoU",
            "mIoU_all_classes",
            "mIoU_th",
            "mIoU_th_all_classes",
            "mIoU_seen",
            "mIoU_seen_all_classes",
            "mIoU_seen_th",
            "mIoU_seen_th_all_classes",
        )
    }


def test_a_group_without_present_labels_is_nan_or_zero():
    vocabulary = Vocabulary.from_labels(["a", "b"], unseen_labels=["b"])
    averages = average_over_groups({"PQ": np.array([0.5, 0.0])}, np.array([True, False]), vocabulary)
    assert math.isnan(averages["PQ_unseen"])
    assert math.isnan(averages["hPQ_present_classes"])
    assert averages["PQ_unseen_all_classes"] == averages["hPQ"] == 0.0


def test_groups_share_labels_between_kind_and_training():
    vocabulary = Vocabulary.from_labels(
        ["car", "road", "cow", "sky", "tree"], stuff_labels=["road", "sky", "tree"], unseen_labels=["sky"]
    )
    assert group_label_ids(vocabulary) == {
        "": (0, 1, 2, 3, 4),
        "_th": (0, 2),
        "_st": (1, 3, 4),
        "_seen": (0, 1, 2, 4),
        "_unseen": (3,),
        "_seen_th": (0, 2),
        "_seen_st": (1, 4),
        "_unseen_th": (),
        "_unseen_st": (3,),
    }
