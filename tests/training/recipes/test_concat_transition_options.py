import pytest

from testing.tiny_models import build_model
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipes.concat_transition import TransitionOptions, train_concat_transition
from zsseg.vocabulary import Vocabulary

NO_SHARED_LOSSES = ("moment_weight", "contrast_weight", "cycle_weight", "unseen_cycle_weight")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generator_type": "gan"}, "generator_type must be one of"),
        ({"moments": "all"}, 'moments must be "per_label" or "pooled"'),
        ({"contrast_weight": -1.0}, "weights must be 0 or more"),
        ({"moment_weight": 0.0, "contrast_weight": 0.0, "cycle_weight": 0.0}, "'mlp' learns from nothing"),
        (
            {"generator_type": "cvae", **dict.fromkeys(NO_SHARED_LOSSES, 0.0), "own_weight": 0.0},
            "'cvae' learns from nothing: one of .*'own_weight'",
        ),
        ({"queries_per_label": 0}, "queries_per_label must be 1 or more, got 0"),
        ({"memory_size": -1}, "memory_size must be 0 or more, got -1"),
        ({"query_images": 0}, "query_images must be 1 or more"),
    ],
)
def test_what_cannot_train_is_refused_before_any_query_is_extracted(values, message):
    with pytest.raises(ValueError, match=message):
        TransitionOptions(**values)


def test_a_generator_with_losses_of_its_own_needs_no_other():
    TransitionOptions(generator_type="cvae", **dict.fromkeys(NO_SHARED_LOSSES, 0.0))


def test_union_without_any_generator_is_refused_before_any_query_is_extracted(tmp_path):
    with pytest.raises(ValueError, match="needs a query generator"):
        train_concat_transition(
            build_model(),
            None,
            None,
            stages={"union": TrainerArguments(output_dir=tmp_path / "union", steps=1)},
            store_folder=tmp_path / "queries",
            unseen=Vocabulary.from_labels(["zebra"]),
            data_setup={},
        )
    assert not list(tmp_path.iterdir())
