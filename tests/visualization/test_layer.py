import numpy as np
import pytest

from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.visualization.colors import ColorScheme
from zsseg.visualization.layer import Layer, color_layers
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car", "person"], stuff_labels=["road"])


def segmentation_of(ids, label_ids):
    areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    segments = tuple(
        SegmentInfo(segment_id, label_id, label_id != 0, areas[segment_id], (0, 0, 1, 1))
        for segment_id, label_id in label_ids.items()
    )
    return PanopticSegmentation(ids.astype(np.int32), segments)


def test_a_semantic_map_becomes_one_segment_per_label():
    label_map = np.array([[0, 0, 2], [255, 2, 2]], dtype=np.uint8)
    layer = Layer.from_semantic(label_map, VOCABULARY, 255)
    assert [segment.label_id for segment in layer.segments] == [0, 2]
    assert not any(segment.is_instance for segment in layer.segments)
    assert layer.regions.index.tolist() == [[1, 1, 2], [0, 2, 2]]
    assert layer.regions.has_void


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_a_semantic_map_may_have_any_integer_type(dtype):
    label_map = np.array([[0, 1, 2]], dtype=dtype)
    assert Layer.from_semantic(label_map, VOCABULARY, None).regions.index.tolist() == [[1, 2, 3]]


def test_label_255_of_a_large_vocabulary_can_be_drawn():
    vocabulary = Vocabulary.from_labels([f"label {i}" for i in range(300)])
    label_map = np.array([[255, 299]], dtype=np.int32)
    with pytest.raises(ValueError, match="ignore_index 255 is the label 'label 255'"):
        Layer.from_semantic(label_map, vocabulary, 255)
    assert [s.label_id for s in Layer.from_semantic(label_map, vocabulary, None).segments] == [255, 299]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.zeros((2, 2, 3), dtype=np.uint8), r"\(H, W\) array of integers, got shape \(2, 2, 3\)"),
        (np.zeros((2, 2), dtype=np.float32), "dtype float32"),
        (np.array([[0, 7]], dtype=np.uint8), r"holds \[7\], but labels run from 0 to 2"),
        (np.array([[0, -1]], dtype=np.int64), r"holds \[-1\]"),
    ],
)
def test_a_map_that_is_no_label_map_is_refused(label_map, message):
    with pytest.raises(ValueError, match=message):
        Layer.from_semantic(label_map, VOCABULARY, 255)


def test_a_label_outside_the_vocabulary_is_refused():
    segmentation = segmentation_of(np.ones((2, 2)), {1: 5})
    with pytest.raises(ValueError, match=r"\[5\] are outside the vocabulary of 3 labels"):
        Layer.from_panoptic(segmentation, VOCABULARY)


def test_things_differ_from_left_to_right_and_stuff_is_flat():
    ids = np.repeat([[4, 3, 1, 2]], 3, axis=0)
    layer = Layer.from_panoptic(segmentation_of(ids, {1: 1, 2: 0, 3: 1, 4: 1}), VOCABULARY)
    scheme = ColorScheme(VOCABULARY, [0, 1])
    [colors] = color_layers([layer], scheme)
    assert colors == [scheme.shade(1, 2), scheme.color(0), scheme.shade(1, 1), scheme.shade(1, 0)]
    assert len(set(colors)) == 4


def test_a_predicted_thing_has_the_shade_of_the_true_one_it_covers():
    true_ids, predicted_ids = np.zeros((10, 40)), np.zeros((10, 40))
    true_ids[:, 0:10], true_ids[:, 10:20], true_ids[:, 20:30] = 1, 2, 3
    predicted_ids[:, 11:20], predicted_ids[:, 21:30], predicted_ids[:, 32:40] = 7, 8, 9
    target = Layer.from_panoptic(segmentation_of(true_ids, {1: 1, 2: 1, 3: 2}), VOCABULARY)
    prediction = Layer.from_panoptic(segmentation_of(predicted_ids, {7: 1, 8: 1, 9: 1}), VOCABULARY)
    true_colors, predicted_colors = color_layers([target, prediction], ColorScheme(VOCABULARY, [1, 2]))
    covers_second, on_a_person, extra = predicted_colors
    assert covers_second == true_colors[1]
    assert len({covers_second, on_a_person, extra}) == 3
    assert on_a_person != true_colors[2]


def test_a_prediction_beside_an_empty_target_has_colors():
    nothing = Layer.from_panoptic(PanopticSegmentation(np.zeros((2, 2), np.int32), ()), VOCABULARY)
    something = Layer.from_panoptic(segmentation_of(np.ones((2, 2)), {1: 1}), VOCABULARY)
    scheme = ColorScheme(VOCABULARY, [1])
    assert color_layers([nothing, something], scheme) == [[], [scheme.color(1)]]
