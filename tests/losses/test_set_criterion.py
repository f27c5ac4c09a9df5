import copy
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.set_criterion import set_criterion as oracle
from zsseg.losses import SetCriterion

NUM_LABELS = 4


@dataclass(frozen=True)
class Batch:
    class_logits: list
    mask_logits: list
    mask_labels: list
    class_labels: list
    label_mask: torch.Tensor | None = None

    def arguments(self):
        return self.class_logits, self.mask_logits, self.mask_labels, self.class_labels, self.label_mask


def build_batch(counts=(2, 3), num_queries=4, num_layers=2, seed=0, label_mask=None, target_sizes=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), num_queries)
    sizes = target_sizes or [(12, 14)] * len(counts)
    return Batch(
        [2 * torch.randn(*shape, NUM_LABELS + 1, generator=generator) for _ in range(num_layers)],
        [3 * torch.randn(*shape, 6, 7, generator=generator) for _ in range(num_layers)],
        [
            torch.rand(count, *size, generator=generator) > 0.5
            for count, size in zip(counts, sizes, strict=True)
        ],
        [torch.randint(NUM_LABELS, (count,), generator=generator) for count in counts],
        label_mask,
    )


def with_gradients(batch):
    return replace(
        batch,
        class_logits=[logits.clone().requires_grad_() for logits in batch.class_logits],
        mask_logits=[logits.clone().requires_grad_() for logits in batch.mask_logits],
    )


def void_left_third(batch_size=2, size=(12, 14)):
    label_mask = torch.ones(batch_size, *size, dtype=torch.bool)
    label_mask[:, :, : size[1] // 3] = False
    return label_mask


def run_both(criterion, batch, seed=1):
    """Our loss and the oracle's at the same points."""
    generator = torch.Generator().manual_seed(seed)
    num_uniform = criterion.num_points - criterion.num_uncertain
    matching_points = torch.rand(criterion.num_points, 2, generator=generator)
    candidates = torch.rand(criterion.num_candidates, 2, generator=generator)
    uniform = torch.rand(num_uniform, 2, generator=generator)
    ours = criterion.compute_at_points(
        *batch.arguments(), matching_points=matching_points, loss_points=torch.cat((candidates, uniform))
    )
    expected = oracle(
        [logits.double().numpy() for logits in batch.class_logits],
        [logits.double().numpy() for logits in batch.mask_logits],
        [masks.numpy() for masks in batch.mask_labels],
        [labels.numpy() for labels in batch.class_labels],
        None if batch.label_mask is None else batch.label_mask.numpy(),
        matching_points.numpy(),
        candidates.numpy(),
        uniform.numpy(),
        criterion.num_uncertain,
        criterion.class_weight,
        criterion.mask_weight,
        criterion.dice_weight,
        criterion.no_object_weight,
        criterion.ignore_unknown_queries,
    )
    return ours, expected


CASES = {
    "plain": (build_batch(), {}),
    "one layer": (build_batch(num_layers=1), {}),
    "an image without targets": (build_batch(counts=(0, 3)), {}),
    "no targets at all": (build_batch(counts=(0, 0)), {}),
    "more targets than queries": (build_batch(counts=(5, 2), num_queries=3), {}),
    "void": (build_batch(label_mask=void_left_third()), {}),
    "void, unknown queries ignored": (
        build_batch(label_mask=void_left_third(), num_queries=6, seed=2),
        {"ignore_unknown_queries": True},
    ),
    "one image entirely void, unknown queries ignored": (
        build_batch(label_mask=torch.tensor([True, False])[:, None, None].expand(2, 12, 14)),
        {"ignore_unknown_queries": True},
    ),
    "void at another resolution": (build_batch(label_mask=void_left_third(size=(5, 6))), {}),
    "one image entirely void": (
        build_batch(label_mask=torch.tensor([True, False])[:, None, None].expand(2, 12, 14)),
        {},
    ),
    "targets of different sizes": (build_batch(target_sizes=[(12, 14), (9, 3)]), {}),
    "only uncertain points": (build_batch(), {"importance_sample_ratio": 1.0}),
    "only uniform points": (build_batch(), {"importance_sample_ratio": 0.0, "oversample_ratio": 1.0}),
    "other weights": (
        build_batch(seed=5),
        {"class_weight": 1.0, "mask_weight": 20.0, "dice_weight": 0.5, "no_object_weight": 0.4},
    ),
    "no object weighs more than a label": (
        build_batch(counts=(4, 4), label_mask=void_left_third()),
        {"no_object_weight": 20.0, "ignore_unknown_queries": True},
    ),
    "half precision": (
        replace(
            build_batch(),
            class_logits=[logits.bfloat16() for logits in build_batch().class_logits],
            mask_logits=[logits.half() for logits in build_batch().mask_logits],
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_matches_equal_the_oracle(case):
    batch, settings = CASES[case]
    ours, (loss, terms, matches) = run_both(SetCriterion(num_points=40, **settings), batch)
    assert ours.loss.dtype == torch.float32
    assert float(ours.loss) == pytest.approx(loss, rel=1e-5)
    for index, name in enumerate(("class", "mask", "dice")):
        assert float(ours.losses[name]) == pytest.approx(terms[-1][index], rel=1e-5, abs=1e-7)
        auxiliary = sum(layer_terms[index] for layer_terms in terms[:-1])
        assert float(ours.losses[f"auxiliary_{name}"]) == pytest.approx(auxiliary, rel=1e-5, abs=1e-7)
    for match, pairs in zip(ours.matches, matches[-1], strict=True):
        assert list(zip(match.query_indices.tolist(), match.target_indices.tolist(), strict=True)) == pairs


def test_parts_are_detached_and_sum_to_the_loss():
    output = SetCriterion(num_points=40)(*with_gradients(build_batch()).arguments())
    weights = {"class": 2.0, "mask": 5.0, "dice": 5.0}
    total = sum(w * (output.losses[n] + output.losses[f"auxiliary_{n}"]) for n, w in weights.items())
    assert not any(part.requires_grad for part in output.losses.values())
    assert output.loss.requires_grad
    torch.testing.assert_close(output.loss.detach(), total)


def test_gradients_equal_finite_differences():
    batch = build_batch(counts=(2,), num_queries=3, num_layers=1, label_mask=void_left_third(1))
    criterion = SetCriterion(num_points=12)
    points = torch.rand(12 + 36 + 3, 2, generator=torch.Generator().manual_seed(2))

    def loss(classes, masks):
        return criterion.compute_at_points(
            [classes],
            [masks],
            batch.mask_labels,
            batch.class_labels,
            batch.label_mask,
            matching_points=points[:12],
            loss_points=points[12:],
        ).loss

    inputs = [logits[0].double().requires_grad_() for logits in (batch.class_logits, batch.mask_logits)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_query_order_is_irrelevant():
    batch = build_batch()
    order = torch.tensor([2, 0, 3, 1])
    permuted = replace(
        batch,
        class_logits=[logits[:, order] for logits in batch.class_logits],
        mask_logits=[logits[:, order] for logits in batch.mask_logits],
    )
    plain, other = (SetCriterion(num_points=50)(*b.arguments()) for b in (batch, permuted))
    torch.testing.assert_close(plain.loss, other.loss)
    for match, moved in zip(plain.matches, other.matches, strict=True):
        pairs = set(zip(match.query_indices.tolist(), match.target_indices.tolist(), strict=True))
        queries = order[moved.query_indices].tolist()
        assert set(zip(queries, moved.target_indices.tolist(), strict=True)) == pairs


def test_target_order_and_image_order_are_irrelevant():
    batch = build_batch()
    loss = SetCriterion(num_points=50)(*batch.arguments()).loss
    flipped = replace(
        batch,
        mask_labels=[masks.flip(0) for masks in batch.mask_labels],
        class_labels=[labels.flip(0) for labels in batch.class_labels],
    )
    torch.testing.assert_close(SetCriterion(num_points=50)(*flipped.arguments()).loss, loss)
    swapped = Batch(
        [logits.flip(0) for logits in batch.class_logits],
        [logits.flip(0) for logits in batch.mask_logits],
        batch.mask_labels[::-1],
        batch.class_labels[::-1],
    )
    torch.testing.assert_close(SetCriterion(num_points=50)(*swapped.arguments()).loss, loss)


def test_a_perfect_prediction_is_matched_and_costs_nothing():
    left = torch.zeros(16, 16, dtype=torch.bool)
    left[:, :8] = True
    # bilinear targets are between 0 and 1 along the edge: it is left out
    label_mask = torch.ones(1, 16, 16, dtype=torch.bool)
    label_mask[:, :, 7:9] = False
    classes = 30 * F.one_hot(torch.tensor([[4, 1, 3, 4]]), NUM_LABELS + 1).float()
    logits = torch.full((1, 4, 16, 16), -30.0)
    logits[0, 2][left] = 30.0
    logits[0, 1][~left] = 30.0
    targets, labels = torch.stack((left, ~left)), torch.tensor([3, 1])
    output = SetCriterion(num_points=400)([classes], [logits], [targets], [labels], label_mask)
    assert output.matches[0].query_indices.tolist() == [1, 2]
    assert output.matches[0].target_indices.tolist() == [1, 0]
    assert float(output.loss) < 1e-4


def test_a_saved_generator_state_replays_the_loss_bit_for_bit():
    batch = build_batch()
    criterion = SetCriterion(num_points=50)
    criterion(*batch.arguments())
    state = criterion.get_rng_state()
    second, third = criterion(*batch.arguments()).loss, criterion(*batch.arguments()).loss
    assert not torch.equal(second, third)
    resumed = SetCriterion(num_points=50, seed=7)
    resumed.set_rng_state(state)
    assert torch.equal(resumed(*batch.arguments()).loss, second)
    assert torch.equal(resumed(*batch.arguments()).loss, third)


def test_the_global_generator_is_neither_read_nor_moved():
    batch = build_batch()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = SetCriterion(num_points=50)(*batch.arguments()).loss
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(SetCriterion(num_points=50)(*batch.arguments()).loss, first)
    assert not torch.equal(SetCriterion(num_points=50, seed=1)(*batch.arguments()).loss, first)


def test_as_many_points_are_drawn_whatever_the_targets():
    criterion, other = SetCriterion(num_points=50), SetCriterion(num_points=50)
    criterion(*build_batch().arguments())
    other(*build_batch(counts=(0, 0), num_layers=1).arguments())
    assert torch.equal(criterion.get_rng_state(), other.get_rng_state())


def test_a_model_holding_it_saves_nothing_of_it_and_copies():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.criterion = SetCriterion(num_points=20)

    with torch.device("meta"):
        model = Model()
    assert set(model.state_dict()) == {"layer.weight", "layer.bias"}
    twin = copy.deepcopy(model.criterion)
    batch = build_batch()
    assert torch.equal(twin(*batch.arguments()).loss, model.criterion(*batch.arguments()).loss)


def test_a_label_mask_that_is_true_everywhere_changes_nothing():
    batch = build_batch()
    everywhere = replace(batch, label_mask=torch.ones(2, 12, 14, dtype=torch.bool))
    losses = [SetCriterion(num_points=50)(*b.arguments()).loss for b in (batch, everywhere)]
    assert torch.equal(*losses)


def test_void_pixels_influence_neither_mask_losses_nor_matches_nor_mask_gradients():
    batch = with_gradients(build_batch(label_mask=void_left_third()))
    output = SetCriterion(num_points=200)(*batch.arguments())
    output.loss.backward()
    # void are columns 0-3 of 14; columns 0 and 1 of the 7 logit columns reach only to x = 2.5 / 7, and valid
    # points start at x = 4.5 / 14: column 0 reaches to 1.5 / 7 and is never read
    changed = with_gradients(replace(batch, mask_logits=[logits.detach() for logits in batch.mask_logits]))
    with torch.no_grad():
        for logits in changed.mask_logits:
            logits[..., 0] = 77.0
        targets = [masks ^ ~void_left_third(1) for masks in batch.mask_labels]
    changed = replace(changed, mask_labels=targets)
    other = SetCriterion(num_points=200)(*changed.arguments())
    other.loss.backward()
    for name in ("mask", "dice", "auxiliary_mask", "auxiliary_dice"):
        assert torch.equal(output.losses[name], other.losses[name])
    for match, other_match in zip(output.matches, other.matches, strict=True):
        assert torch.equal(match.query_indices, other_match.query_indices)
        assert torch.equal(match.target_indices, other_match.target_indices)
    for logits, changed_logits in zip(batch.mask_logits, changed.mask_logits, strict=True):
        assert torch.equal(logits.grad, changed_logits.grad)
        assert not logits.grad[..., 0].any()
        assert logits.grad[..., 3:].any()


@pytest.mark.parametrize("ignored", [False, True])
def test_unmatched_queries_in_void_learn_no_class_on_request(ignored):
    label_mask = torch.ones(1, 12, 14, dtype=torch.bool)
    label_mask[:, :, 7:] = False
    left = torch.zeros(1, 12, 14, dtype=torch.bool)
    left[:, :, :7] = True
    # query 0 is the segment on the left; 1 lies in void, 2 repeats the segment, 3 is empty
    mask_logits = torch.full((1, 4, 12, 14), -9.0)
    mask_logits[:, 0, :, :7] = 9.0
    mask_logits[:, 1, :, 7:] = 9.0
    mask_logits[:, 2, :3, :7] = 9.0
    class_logits = torch.zeros(1, 4, NUM_LABELS + 1, requires_grad=True)
    criterion = SetCriterion(num_points=300, ignore_unknown_queries=ignored)
    output = criterion([class_logits], [mask_logits], [left], [torch.tensor([1])], label_mask)
    output.loss.backward()
    assert output.matches[0].query_indices.tolist() == [0]
    assert class_logits.grad.abs().sum(dim=-1).gt(0).tolist() == [[True, not ignored, True, True]]


def test_where_nothing_is_known_no_query_learns_and_the_loss_is_finite():
    nothing = torch.zeros(1, 12, 14, dtype=torch.bool)
    class_logits = torch.zeros(1, 2, NUM_LABELS + 1, requires_grad=True)
    output = SetCriterion(num_points=50, ignore_unknown_queries=True)(
        [class_logits], [torch.ones(1, 2, 6, 7)], [nothing[:0]], [torch.zeros(0, dtype=torch.int64)], nothing
    )
    output.loss.backward()
    assert output.loss == 0
    assert not class_logits.grad.any()


def test_importance_sampling_spends_its_points_on_valid_pixels():
    label_mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    label_mask[:, :, 20:] = True
    left = torch.zeros(1, 40, 40, dtype=torch.bool)
    # the only uncertain logits lie in the void half: drawn there, no candidate would be left to learn from
    logits = torch.full((1, 1, 40, 40), 5.0)
    logits[..., :20] = 0.0
    logits.requires_grad_()
    classes = torch.zeros(1, 1, NUM_LABELS + 1)
    criterion = SetCriterion(num_points=100, importance_sample_ratio=1.0)
    output = criterion([classes], [logits], [left], [torch.tensor([0])], label_mask)
    assert float(output.losses["mask"]) == pytest.approx(np.logaddexp(0, 5.0), rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_without_targets_the_class_head_still_learns(counts):
    batch = with_gradients(build_batch(counts=counts))
    loss = SetCriterion(num_points=30)(*batch.arguments()).loss
    loss.backward()
    assert torch.isfinite(loss)
    for classes, masks in zip(batch.class_logits, batch.mask_logits, strict=True):
        assert classes.grad[0].any()
        # zeros, not None: every parameter takes part in the backward of a distributed run
        assert not masks.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_under_autocast(dtype):
    batch = build_batch()
    halved = with_gradients(
        replace(
            batch,
            class_logits=[logits.to(dtype) for logits in batch.class_logits],
            mask_logits=[logits.to(dtype) for logits in batch.mask_logits],
        )
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SetCriterion(num_points=40)(*halved.arguments()).loss
    loss.backward()
    outside = SetCriterion(num_points=40)(*halved.arguments()).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, outside)
    for logits in (*halved.class_logits, *halved.mask_logits):
        assert logits.grad.dtype == dtype
        assert torch.isfinite(logits.grad).all()


def test_the_loss_falls_when_logits_follow_their_gradients():
    left = torch.zeros(1, 12, 14, dtype=torch.bool)
    left[:, :, :8] = True
    targets = [torch.cat((left, ~left)), left]
    batch = with_gradients(replace(build_batch(counts=(2, 1)), mask_labels=targets))
    criterion = SetCriterion(num_points=100)
    optimizer = torch.optim.Adam([*batch.class_logits, *batch.mask_logits], lr=0.3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = criterion(*batch.arguments()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_logits": []}, "one tensor per decoder layer, got 0 and 2"),
        ({"mask_logits": [torch.zeros(2, 5, 6, 7)] * 2}, "decoder layer 0: expected class logits"),
        ({"mask_labels": [torch.zeros(2, 12, 14)]}, "for 2 images, got 1 and 2"),
        ({"class_labels": [torch.tensor([0]), torch.tensor([0, 1, 2])]}, "image 0: expected mask_labels"),
        ({"class_labels": [torch.tensor([0, 4]), torch.tensor([0, 1, 2])]}, "'no object' and no label"),
        ({"class_labels": [torch.tensor([0, -1]), torch.tensor([0, 1, 2])]}, r"lie in \[0, 4\)"),
        ({"label_mask": torch.ones(2, 12, 14)}, "label_mask must be"),
        ({"label_mask": torch.ones(1, 12, 14, dtype=torch.bool)}, "label_mask must be"),
        ({"mask_labels": [torch.full((2, 8, 8), 255.0), torch.zeros(3, 8, 8)]}, r"must lie in \[0, 1\]"),
        ({"mask_logits": [torch.full((2, 4, 6, 7), float("nan"))] * 2}, "not finite"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SetCriterion(num_points=20)(*replace(build_batch(), **change).arguments())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_weight": -1.0}, "weights must be 0 or more"),
        ({"no_object_weight": 0.0}, "no_object_weight must be positive"),
        ({"num_points": 0}, "num_points must be 1 or more"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be 1 or more"),
        ({"importance_sample_ratio": 1.5}, r"importance_sample_ratio must lie in \[0, 1\]"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SetCriterion(**settings)


DISTRIBUTED = """
import sys
import torch
from zsseg.losses import SetCriterion

rank, init_file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + init_file, rank=rank, world_size=2)
count = (1, 3)[rank]
classes, masks = torch.zeros(1, 4, 5), torch.zeros(1, 4, 6, 6)
targets, labels = torch.ones(count, 6, 6), torch.arange(count)
output = SetCriterion(num_points=20)([classes], [masks], [targets], [labels])
print(float(output.losses["mask"]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_the_mean_number_of_masks(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "init")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    losses = [float(process.communicate(timeout=120)[0]) for process in processes]
    # 1 and 3 masks, 2 on average; logits of zero cost log 2 per mask
    assert losses == pytest.approx([np.log(2) / 2, 3 * np.log(2) / 2], rel=1e-5)
