import pytest
import torch

from testing.tiny_models import TEXT_WIDTH, build_scan, build_scan_processor
from zsseg.models.scan.contextual_shift import iterate_mask_crops


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, 64, 96, generator=generator),
        "text_embeds": torch.randn(4, TEXT_WIDTH, generator=generator),
    }


def split_queries(model, inputs):
    """All queries shown to CLIP, and the probability that splits them into halves."""
    with torch.no_grad():
        shown = model(**inputs)
    is_object = 1 - shown.class_queries_logits.softmax(dim=-1)[..., -1]
    ordered = is_object.flatten().sort().values
    middle = len(ordered) // 2
    assert ordered[middle] > ordered[middle - 1]
    return shown, is_object, float(ordered[middle - 1] + ordered[middle]) / 2


@pytest.mark.parametrize("mode", ["ensemble", "clip_only"])
def test_unlikely_objects_are_not_shown_to_clip_and_count_for_nothing(inputs, mode, monkeypatch):
    model = build_scan(mode=mode).eval()
    shown, is_object, threshold = split_queries(model, inputs)
    model.config.crop_objectness_threshold = threshold
    num_crops = []
    encode_crops = type(model).encode_crops

    def count(self, crops, *arguments):
        num_crops.append(len(crops.query_indices))
        return encode_crops(self, crops, *arguments)

    monkeypatch.setattr(type(model), "encode_crops", count)
    with torch.no_grad():
        some = model(**inputs)
    is_kept = is_object >= threshold
    assert sum(num_crops) <= int(is_kept.sum())
    assert (some.query_weights[~is_kept] == 0).all()
    torch.testing.assert_close(some.query_weights[is_kept], shown.query_weights[is_kept])
    torch.testing.assert_close(
        some.class_queries_logits[is_kept], shown.class_queries_logits[is_kept], atol=1e-4, rtol=1e-4
    )


def test_panoptic_results_do_not_change_up_to_the_threshold_of_the_merge(inputs):
    model, processor = build_scan(mode="ensemble").eval(), build_scan_processor()
    *_, threshold = split_queries(model, inputs)
    results = []
    for objectness_threshold in (0.0, threshold):
        model.config.crop_objectness_threshold = objectness_threshold
        with torch.no_grad():
            outputs = model(**inputs)
        results.append(
            processor.merge_panoptic(outputs, threshold=threshold, overlap_mask_area_threshold=0.0)
        )
    assert any(result.segments for result in results[0])
    for one, other in zip(*results, strict=True):
        assert (one.segment_ids == other.segment_ids).all()
        assert [s.label_id for s in one.segments] == [s.label_id for s in other.segments]


@pytest.mark.parametrize("mode", ["ensemble", "clip_only"])
def test_a_picture_may_have_no_likely_object_at_all(inputs, mode):
    model = build_scan(mode=mode, crop_objectness_threshold=1.0).eval()
    with torch.no_grad():
        outputs = model(**inputs)
    assert (outputs.query_weights == 0).all()
    assert torch.isfinite(outputs.class_queries_logits).all()


def test_void_renormalisation_leaves_them_out_too(inputs):
    model = build_scan(mode="ensemble", has_void_renormalization=True).eval()
    _, is_object, threshold = split_queries(model, inputs)
    model.config.crop_objectness_threshold = threshold
    with torch.no_grad():
        weights = model(**inputs).query_weights
    assert torch.equal(weights, (is_object >= threshold).float())


def test_chunks_hold_wanted_masks_alone():
    pixels = torch.randn(1, 3, 32, 32)
    masks = torch.full((1, 7, 8, 8), 5.0)
    is_wanted = torch.tensor([[True, False, True, True, False, False, True]])
    chunks = list(
        iterate_mask_crops(
            pixels, masks, [(32, 32)], threshold=0.5, size=16, batch_size=3, is_wanted=is_wanted
        )
    )
    assert [chunk.query_indices.tolist() for chunk in chunks] == [[0, 2, 3], [6]]


def test_a_threshold_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"crop_objectness_threshold must lie in \[0, 1\], got 1.5"):
        build_scan(crop_objectness_threshold=1.5)
