import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.eomt.image_processing_pil_eomt import compute_segments

from oracles.panoptic_merge import merge
from zsseg.postprocessing import mask_bounds, mask_competition, panoptic
from zsseg.postprocessing.mask_competition import MaskCompetition
from zsseg.postprocessing.panoptic import merge_panoptic

NUM_LABELS = 4


def draw_case(seed):
    """Logits full of ties, saturation and flat parts, and arguments for both merges."""
    random = np.random.default_rng(seed)
    queries = int(random.integers(0, 14))
    height, width = random.integers(1, 14, size=2).tolist()
    class_logits = random.normal(size=(queries, NUM_LABELS + 1)) * random.choice([1, 5, 20])
    class_logits[:, -1] -= random.choice([0, 5, 20])
    mask_logits = random.normal(size=(queries, height, width)) * random.choice([0.1, 1, 6, 40])
    mask_logits += random.choice([0, -3, 3])
    kind = random.choice(["free", "rounded", "repeated", "two-valued", "flat", "blobs", "blobs", "one score"])
    if kind in ("rounded", "one score"):
        mask_logits = np.round(mask_logits)
    if kind == "one score":
        class_logits[:] = random.normal(size=NUM_LABELS + 1) * 5
    if kind == "repeated" and queries:
        mask_logits[1::2], class_logits[1::2] = mask_logits[0], class_logits[0]
    if kind == "two-valued":
        mask_logits = np.where(mask_logits > 0, 6.0, -6.0)
    if kind == "flat":
        mask_logits[:] = random.choice([-800, -1, 0, 30, 60])
    if kind == "blobs":
        centres = random.uniform(0, 14, size=(queries, 2, 1, 1))
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(rows - centres[:, 0], columns - centres[:, 1])
        mask_logits = 3.0 * (random.uniform(1, 6, size=(queries, 1, 1)) - distance)
    arguments = {
        "stuff_label_ids": set(np.flatnonzero(random.random(NUM_LABELS) < 0.5).tolist()),
        "target_size": None if random.random() < 0.2 else tuple(random.integers(1, 60, size=2).tolist()),
        "threshold": float(random.choice([0, 0.3, 0.6, 0.8])),
        "mask_threshold": float(random.choice([0.5, 0.5, 0.5, 0.3, 0.8, 0, 1])),
        "overlap": float(random.choice([0.8, 0.8, 0.5, 0, 1])),
        "valid_fraction": (1.0, 1.0) if random.random() < 0.6 else tuple(random.uniform(0.2, 1, 2).tolist()),
    }
    return class_logits.astype(np.float32), mask_logits.astype(np.float32), arguments


def run(class_logits, mask_logits, overlap=0.8, **arguments):
    return merge_panoptic(
        torch.from_numpy(class_logits),
        torch.from_numpy(mask_logits),
        overlap_mask_area_threshold=overlap,
        **arguments,
    )


def assert_equals_oracle(class_logits, mask_logits, arguments):
    expected_ids, expected_segments = merge(class_logits, mask_logits, **arguments)
    result = run(class_logits, mask_logits, **arguments)
    result.check_pixels()
    np.testing.assert_array_equal(result.segment_ids, expected_ids)
    assert [
        {"id": s.id, "label_id": s.label_id, "area": s.area, "bbox": s.bbox, "score": s.score}
        for s in result.segments
    ] == expected_segments
    for segment in result.segments:
        assert segment.isthing == (segment.label_id not in arguments["stuff_label_ids"])
    return result


def confident(labels, num_labels=NUM_LABELS, logit=8.0):
    """Class logits that give each query its label with much the same score."""
    class_logits = np.zeros((len(labels), num_labels + 1), np.float32)
    class_logits[np.arange(len(labels)), labels] = logit
    return class_logits


def draw_plain_case():
    """Tensors and arguments of a case with several segments."""
    random = torch.Generator().manual_seed(0)
    class_logits = torch.from_numpy(confident([0, 1, 2, 3, 0, 1]))
    arguments = {"stuff_label_ids": {0}, "target_size": (40, 31), "overlap_mask_area_threshold": 0.2}
    return class_logits, 4 * torch.randn(6, 11, 9, generator=random), arguments


@pytest.mark.slow
def test_equals_the_oracle_pixel_for_pixel_on_a_thousand_cases():
    results = [assert_equals_oracle(*draw_case(seed)) for seed in range(1800)]
    assert sum(len(result.segments) for result in results) > 1000


@pytest.mark.slow
def test_equals_the_oracle_in_small_blocks_chunks_and_tiles(monkeypatch):
    monkeypatch.setattr(mask_bounds, "BLOCK_SIDE", 2)
    monkeypatch.setattr(mask_competition, "BLOCK_SIDE", 2)
    monkeypatch.setattr(mask_competition, "BOUNDS_PER_CHUNK", 60)
    monkeypatch.setattr(mask_competition, "PIXELS_PER_CHUNK", 100)
    monkeypatch.setattr(mask_competition, "TILE_SIDE", 3)
    monkeypatch.setattr(panoptic, "PIXELS_PER_BAND", 100)
    for seed in range(2000, 2300):
        assert_equals_oracle(*draw_case(seed))


def test_equals_the_oracle_where_survival_hangs_on_void_pixels(monkeypatch):
    """Overlapping discs on a wide background that all queries almost share: who wins it may decide."""
    settled = []
    settle = MaskCompetition.settle_won_areas
    monkeypatch.setattr(
        MaskCompetition, "settle_won_areas", lambda *arguments: settled.append(1) or settle(*arguments)
    )
    for seed in range(60):
        random = np.random.default_rng(seed)
        mask_logits = random.normal(-6, 0.1, size=(5, 40, 33))
        rows, columns = np.mgrid[:40, :33]
        for mask in mask_logits:
            distance = np.hypot(rows - random.uniform(5, 15), columns - random.uniform(5, 15))
            mask[distance < random.uniform(2, 7)] = random.uniform(1, 5)
        arguments = {
            "stuff_label_ids": {0},
            "target_size": (90, 66),
            "overlap": float(random.uniform(0.3, 1)),
        }
        labels = random.integers(0, NUM_LABELS, size=5)
        assert_equals_oracle(confident(labels), mask_logits.astype(np.float32), arguments)
    assert len(settled) > 20


@given(seed=st.integers(10_000, 2**32))
def test_equals_the_oracle_on_any_case(seed):
    assert_equals_oracle(*draw_case(seed))


def test_agrees_with_the_reference_implementation():
    """EoMT's copy of MaskFormer's inference, run in float64 on masks that torch has resized."""
    compared = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = random.integers(0, NUM_LABELS, size=8)
        class_logits = confident(labels) + random.normal(size=(8, NUM_LABELS + 1)).astype(np.float32)
        centres = random.uniform(0, 12, size=(8, 2, 1, 1))
        rows, columns = np.mgrid[:12, :12]
        radius = random.uniform(1, 4, size=(8, 1, 1))
        mask_logits = (radius - np.hypot(rows - centres[:, 0], columns - centres[:, 1])).astype(np.float32)
        stuff = {2, 3}
        result = run(class_logits, mask_logits, stuff_label_ids=stuff, target_size=(37, 50))

        scores, predicted = torch.from_numpy(class_logits).double().softmax(-1).max(-1)
        kept = (predicted != NUM_LABELS) & (scores > 0.8)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(mask_logits).double()[None], size=(37, 50), mode="bilinear"
        )[0]
        expected, segments = compute_segments(
            resized[kept], scores[kept], predicted[kept], stuff, target_size=(37, 50)
        )
        np.testing.assert_array_equal(result.segment_ids, expected.numpy() + 1)
        assert [s.label_id for s in result.segments] == [s["label_id"] for s in segments]
        compared += len(segments)
    assert compared > 100


@given(seed=st.integers(0, 2**32), data=st.data())
def test_the_order_of_queries_does_not_matter(seed, data):
    random = np.random.default_rng(seed)
    class_logits = random.normal(size=(6, NUM_LABELS + 1)).astype(np.float32) * 4
    mask_logits = random.normal(size=(6, 5, 6)).astype(np.float32) * 4
    arguments = {"stuff_label_ids": {0, 1}, "target_size": (21, 17), "threshold": 0.3, "overlap": 0.3}
    order = data.draw(st.permutations(range(6)))
    first = run(class_logits, mask_logits, **arguments)
    second = run(class_logits[order], mask_logits[order], **arguments)

    def content(result):
        return {(s.label_id, s.area, s.bbox, s.score, result.mask(s.id).tobytes()) for s in result.segments}

    assert content(first) == content(second)


@given(seed=st.integers(0, 2**32))
def test_permuting_labels_permutes_the_result(seed):
    random = np.random.default_rng(seed)
    class_logits = random.normal(size=(6, NUM_LABELS + 1)).astype(np.float32) * 4
    mask_logits = random.normal(size=(6, 5, 6)).astype(np.float32) * 4
    order = [*random.permutation(NUM_LABELS).tolist(), NUM_LABELS]
    arguments = {"target_size": (11, 12), "threshold": 0.3, "overlap": 0.3}
    first = run(class_logits, mask_logits, stuff_label_ids={order[0]}, **arguments)
    second = run(class_logits[:, order], mask_logits, stuff_label_ids={0}, **arguments)
    np.testing.assert_array_equal(first.segment_ids, second.segment_ids)
    assert [s.label_id for s in first.segments] == [order[s.label_id] for s in second.segments]


def test_a_tie_goes_to_the_first_query():
    mask_logits = np.array([[[5.0, 5.0, -9.0]], [[5.0, 5.0, 5.0]], [[5.0, 5.0, 5.0]]], np.float32)
    result = run(confident([0, 0, 0]), mask_logits, stuff_label_ids=(), overlap=0.0)
    assert result.segment_ids.tolist() == [[1, 1, 2]]
    assert [segment.area for segment in result.segments] == [2, 1]


def test_a_pixel_belongs_to_nobody_where_the_winner_is_below_the_mask_threshold():
    mask_logits = np.array([[[4.0, -0.1]], [[-9.0, -0.2]]], np.float32)
    result = run(confident([0, 1]), mask_logits, stuff_label_ids=())
    assert result.segment_ids.tolist() == [[1, 0]]


def test_pixels_won_outside_the_own_mask_count_for_survival():
    """As in the reference: the whole argmax counts as won, what is painted is the own mask in it."""
    mask_logits = np.array([[[3.0, 3.0, -1.0, -1.0]], [[9.0, -9.0, -9.0, -9.0]]], np.float32)
    # Query 0 wins three pixels, owns two of which it is left with one: 3 / 2, not 1 / 2.
    result = run(confident([0, 1]), mask_logits, stuff_label_ids=(), overlap=1.0)
    assert result.segment_ids.tolist() == [[2, 1, 0, 0]]


def test_a_query_that_loses_too_much_leaves_void():
    mask_logits = np.array([[[3.0, 3.0, -9.0, -9.0]], [[9.0, -9.0, 9.0, 9.0]]], np.float32)
    result = run(confident([0, 1]), mask_logits, stuff_label_ids=(), overlap=0.6)
    assert result.segment_ids.tolist() == [[1, 0, 1, 1]]
    assert [segment.label_id for segment in result.segments] == [1]


def test_stuff_of_one_label_shares_a_segment_with_the_score_of_its_largest_part():
    mask_logits = np.full((3, 1, 6), -9.0, np.float32)
    mask_logits[0, 0, :2] = mask_logits[1, 0, 2] = mask_logits[2, 0, 3:] = 9.0
    class_logits = confident([1, 0, 1])
    class_logits[2] *= 0.8
    fused = run(class_logits, mask_logits, stuff_label_ids={1})
    assert fused.segment_ids.tolist() == [[1, 1, 2, 1, 1, 1]]
    assert [(s.label_id, s.isthing, s.area, s.bbox) for s in fused.segments] == [
        (1, False, 5, (0, 0, 6, 1)),
        (0, True, 1, (2, 0, 1, 1)),
    ]
    apart = run(class_logits, mask_logits, stuff_label_ids=())
    assert [s.area for s in apart.segments] == [2, 1, 3]
    assert fused.segments[0].score == apart.segments[2].score < apart.segments[0].score


def test_only_the_valid_part_of_the_grid_is_shown():
    mask_logits = np.full((2, 4, 8), -9.0, np.float32)
    mask_logits[0, :, :3], mask_logits[1, :, 3:] = 9.0, 9.0
    whole = run(confident([0, 1]), mask_logits, stuff_label_ids=(), target_size=(4, 8))
    assert [s.area for s in whole.segments] == [12, 20]
    part = run(
        confident([0, 1]),
        mask_logits,
        stuff_label_ids=(),
        target_size=(4, 8),
        valid_fraction=(1.0, 0.5),
    )
    assert [s.area for s in part.segments] == [24, 8]


def test_labels_without_confidence_and_no_object_are_not_kept():
    class_logits = confident([NUM_LABELS, 0])
    class_logits[1] *= 0.1
    result = run(class_logits, np.full((2, 3, 4), 9.0, np.float32), stuff_label_ids=(), target_size=(6, 5))
    assert result.segments == ()
    assert result.segment_ids.shape == (6, 5)
    assert result.segment_ids.dtype == np.int32
    assert not result.segment_ids.any()


def test_no_queries_at_all():
    result = run(np.zeros((0, 5), np.float32), np.zeros((0, 3, 4), np.float32), stuff_label_ids={1})
    assert result.segments == ()
    assert result.size == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_the_result_of_their_float32_values(dtype):
    class_logits, mask_logits, arguments = draw_plain_case()
    class_logits, mask_logits = class_logits.to(dtype), mask_logits.to(dtype)
    result = merge_panoptic(class_logits.requires_grad_(), mask_logits.requires_grad_(), **arguments)
    expected = merge_panoptic(class_logits.detach().float(), mask_logits.detach().float(), **arguments)
    assert len(result.segments) > 2
    np.testing.assert_array_equal(result.segment_ids, expected.segment_ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu_give_the_same():
    class_logits, mask_logits, arguments = draw_plain_case()
    result = merge_panoptic(class_logits.cuda(), mask_logits.cuda(), **arguments)
    expected = merge_panoptic(class_logits, mask_logits, **arguments)
    np.testing.assert_array_equal(result.segment_ids, expected.segment_ids)


def test_logits_that_are_not_contiguous():
    class_logits, mask_logits, arguments = draw_plain_case()
    result = merge_panoptic(
        class_logits.T.contiguous().T, mask_logits.permute(2, 0, 1).contiguous().permute(1, 2, 0), **arguments
    )
    expected = merge_panoptic(class_logits, mask_logits, **arguments)
    np.testing.assert_array_equal(result.segment_ids, expected.segment_ids)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["class_logits", "mask_logits"])
def test_logits_that_are_not_finite(name, value):
    logits = {"class_logits": confident([0, NUM_LABELS]), "mask_logits": np.zeros((2, 3, 3), np.float32)}
    logits[name][1].flat[-1] = value  # of a query that is not kept
    with pytest.raises(ValueError, match=f"{name} must be finite, but query 1 holds NaN or infinity"):
        run(**logits, stuff_label_ids=())


@pytest.mark.parametrize(
    ("class_shape", "mask_shape", "message"),
    [
        ((1, 2, 5), (2, 3, 3), r"class_logits must be \(Q, K \+ 1\).*got shape \(1, 2, 5\)"),
        ((2, 1), (2, 3, 3), r"class_logits must be \(Q, K \+ 1\).*got shape \(2, 1\)"),
        ((2, 5), (1, 2, 3, 3), r"mask_logits must be \(Q, h, w\).*got shape \(1, 2, 3, 3\)"),
        ((2, 5), (2, 0, 3), r"mask_logits must be \(Q, h, w\).*got shape \(2, 0, 3\)"),
        ((2, 5), (3, 3, 3), "must hold the same queries, got 2 and 3"),
    ],
)
def test_shapes_that_do_not_fit(class_shape, mask_shape, message):
    with pytest.raises(ValueError, match=message):
        run(np.zeros(class_shape, np.float32), np.zeros(mask_shape, np.float32), stuff_label_ids=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stuff_label_ids": [0, 4, -1]}, r"stuff_label_ids must lie in \[0, 4\).*got \[-1, 4\]"),
        ({"target_size": (0, 5)}, r"target_size must be \(height, width\).*got \(0, 5\)"),
        ({"target_size": (5,)}, r"target_size must be \(height, width\).*got \(5,\)"),
        ({"target_size": (5.0, 5.0)}, r"target_size must be \(height, width\).*got \(5.0, 5.0\)"),
        ({"valid_fraction": (0.0, 1.0)}, r"valid_fraction must be two numbers in \(0, 1\].*\(0.0, 1.0\)"),
        ({"valid_fraction": (1.0,)}, r"valid_fraction must be two numbers in \(0, 1\].*\(1.0,\)"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"mask_threshold": -0.1}, r"mask_threshold must lie in \[0, 1\], got -0.1"),
        ({"overlap": float("nan")}, r"overlap_mask_area_threshold must lie in \[0, 1\], got nan"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(confident([0]), np.zeros((1, 3, 3), np.float32), **{"stuff_label_ids": (), **arguments})


def test_logits_of_another_type():
    with pytest.raises(TypeError, match="class_logits must be a floating-point tensor, got ndarray"):
        merge_panoptic(np.zeros((1, 2)), torch.zeros(1, 3, 3), stuff_label_ids=())
    with pytest.raises(
        TypeError, match=r"mask_logits must be a floating-point tensor, got a tensor of torch\.int64"
    ):
        merge_panoptic(torch.zeros(1, 2), torch.zeros(1, 3, 3, dtype=torch.int64), stuff_label_ids=())
