import pytest
import torch

from zsseg.training.stage import StageContext
from zsseg.vocabulary import Vocabulary


def test_a_context_covers_every_label_with_synonyms_too():
    vocabulary = Vocabulary.from_labels(["road", "car|automobile"])
    context = StageContext(vocabulary, torch.ones(3, 4), torch.tensor([0, 1, 1]))
    assert context.to(torch.device("cpu")).text_label_ids.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("embeds", "label_ids", "message"),
    [
        (torch.ones(2, 4), torch.tensor([0]), r"shapes \(2, 4\) and \(1,\)"),
        (torch.ones(4), torch.tensor([0, 1, 1, 1]), r"must be \(T, D\)"),
        (torch.ones(2, 4), torch.tensor([0, 0]), r"label ids 0..1 of the training vocabulary, got \[0\]"),
    ],
)
def test_embeddings_that_do_not_fit_the_labels_are_refused(embeds, label_ids, message):
    with pytest.raises(ValueError, match=message):
        StageContext(Vocabulary.from_labels(["road", "car"]), embeds, label_ids)
