import pytest
import torch

from zsseg.postprocessing.query_logits import penalise_seen_labels


def test_seen_labels_are_lowered_and_nothing_else():
    logits = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert penalise_seen_labels(logits, [2, 0], 1.5).tolist() == [[[-0.5, 2.0, 1.5, 4.0]]]
    assert logits.tolist() == [[[1.0, 2.0, 3.0, 4.0]]]
    assert torch.equal(penalise_seen_labels(logits, [0, 1, 2], 0.0), logits)


@pytest.mark.parametrize(
    ("label_ids", "penalty", "message"), [([3], 1.0, r"\[0, 3\)"), ([0], float("nan"), "must be finite")]
)
def test_what_cannot_be_calibrated(label_ids, penalty, message):
    with pytest.raises(ValueError, match=message):
        penalise_seen_labels(torch.zeros(1, 4), label_ids, penalty)
