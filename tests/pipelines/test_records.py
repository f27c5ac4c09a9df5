import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zsseg.data.semantic_maps import convert_semantic_to_panoptic
from zsseg.pipelines.records import build_segmentation
from zsseg.pipelines.zero_shot_segmentation import build_records
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car", "tree"], stuff_labels=["road"])


@given(arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2), elements=st.integers(-1, 2)))
def test_records_hold_all_of_a_segmentation(label_map):
    segmentation = convert_semantic_to_panoptic(label_map, VOCABULARY, ignore_index=-1)
    again = build_segmentation(build_records(segmentation, VOCABULARY), VOCABULARY, segmentation.size)
    np.testing.assert_array_equal(again.segment_ids, segmentation.segment_ids)
    assert again.segments == segmentation.segments
    again.check_pixels()
