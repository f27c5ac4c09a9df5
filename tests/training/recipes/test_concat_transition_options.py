import pytest

from zsseg.training.recipes.concat_transition import TransitionOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generator_type": "gan"}, "generator_type must be one of"),
        ({"moments": "all"}, 'moments must be "per_label" or "pooled"'),
        ({"contrast_weight": -1.0}, "weights must be 0 or more"),
        ({"queries_per_label": 0}, "queries_per_label must be 1 or more, got 0"),
        ({"memory_size": -1}, "memory_size must be 0 or more, got -1"),
        ({"query_images": 0}, "query_images must be 1 or more"),
    ],
)
def test_what_cannot_train_is_refused_before_any_query_is_extracted(values, message):
    with pytest.raises(ValueError, match=message):
        TransitionOptions(**values)
