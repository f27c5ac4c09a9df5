import subprocess
import sys

import numpy as np
import pytest
import torch

from oracles import token_alignment as oracle
from zsseg.losses.token_alignment import (
    TokenBank,
    compute_global_alignment_loss,
    compute_image_keys,
    compute_instance_alignment_loss,
)

BATCH, QUERIES, WIDTH = 4, 5, 6
TEMPERATURES = {"query_temperature": 0.3, "temperature": 0.2}
ORDER = torch.tensor([2, 0, 3, 1])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_batch(seed=0, names=("a", "b", "c", "d"), bank_names=("a", "x", "y")):
    return {
        "semantic_embeds": draw(BATCH, QUERIES, WIDTH, seed=seed),
        "image_tokens": draw(BATCH, WIDTH, seed=seed + 100),
        "image_keys": compute_image_keys(names),
        "bank_tokens": draw(len(bank_names), WIDTH, seed=seed + 200),
        "bank_keys": compute_image_keys(bank_names),
    }


def as_numpy(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


@pytest.mark.parametrize(
    ("names", "bank_names"),
    [
        (("a", "b", "c", "d"), ("a", "x", "y")),
        (("a", "b", "a", "d"), ("d", "d", "y")),  # one image twice in the batch
        (("a", "b", "c", "d"), ()),
        (("a", "a", "a", "a"), ("a",)),  # no negatives at all
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_global_loss_equals_the_one_written_out(seed, names, bank_names):
    batch = build_batch(seed, names, bank_names)
    loss = compute_global_alignment_loss(**batch, **TEMPERATURES)
    queries, tokens, bank = as_numpy(batch["semantic_embeds"], batch["image_tokens"], batch["bank_tokens"])
    expected = oracle.global_alignment(
        queries, tokens, names, list(zip(bank, bank_names, strict=True)), *TEMPERATURES.values()
    )
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_token_of_the_same_image_is_no_negative_but_any_other_is():
    token = draw(1, WIDTH)
    image = {
        "semantic_embeds": draw(1, QUERIES, WIDTH, seed=1),
        "image_tokens": token,
        "image_keys": compute_image_keys(["a"]),
        "bank_tokens": torch.cat((token, token)),
    }
    own = compute_global_alignment_loss(**image, bank_keys=compute_image_keys(["a", "a"]))
    assert float(own) == 0.0
    # Equal tokens of other images cannot be told apart: each gets a third.
    others = compute_global_alignment_loss(**image, bank_keys=compute_image_keys(["x", "y"]))
    assert float(others) == pytest.approx(np.log(3), rel=1e-5)


def test_global_loss_knows_no_order_and_no_norm():
    batch = build_batch()
    loss = compute_global_alignment_loss(**batch)
    changed = {
        name: values[ORDER] if len(values) == BATCH else values.flip(0) for name, values in batch.items()
    }
    changed["semantic_embeds"] = changed["semantic_embeds"].flip(1) * 3
    changed["image_tokens"] = changed["image_tokens"] * 0.1
    changed["bank_tokens"] = changed["bank_tokens"] * 7
    torch.testing.assert_close(compute_global_alignment_loss(**changed), loss)


def test_global_loss_teaches_the_queries_that_resemble_the_token_most():
    batch = build_batch()
    batch["semantic_embeds"][:, 0] = batch["image_tokens"] + 0.1 * draw(BATCH, WIDTH, seed=9)
    batch["semantic_embeds"].requires_grad_()
    compute_global_alignment_loss(**batch).backward()
    norms = batch["semantic_embeds"].grad.norm(dim=-1)
    assert (norms[:, 0] > norms[:, 1:].max(dim=1).values).all()


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 0], [5, 5, 5, 5]])
@pytest.mark.parametrize("seed", range(3))
def test_instance_loss_equals_the_one_written_out(seed, labels):
    queries, tokens = draw(4, WIDTH, seed=seed), draw(4, WIDTH, seed=seed + 50)
    loss = compute_instance_alignment_loss(queries, tokens, torch.tensor(labels), temperature=0.2)
    expected = oracle.instance_alignment(*as_numpy(queries, tokens), labels, 0.2)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("labels", "sign"), [([0, 0, 1], 1), ([0, 2, 1], -1)])
def test_a_query_nears_tokens_of_its_label_and_leaves_the_others(labels, sign):
    tokens = torch.eye(3)
    queries = torch.eye(3).requires_grad_()
    loss = compute_instance_alignment_loss(queries, tokens, torch.tensor(labels), temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, queries)
    assert sign * float(-gradient[0] @ tokens[1]) > 0.01
    assert float(-gradient[0] @ tokens[2]) < -0.01


def test_instance_loss_knows_no_order_and_no_norm():
    queries, tokens, labels = draw(4, WIDTH), draw(4, WIDTH, seed=1), torch.tensor([0, 1, 1, 2])
    loss = compute_instance_alignment_loss(queries, tokens, labels)
    permuted = compute_instance_alignment_loss(queries[ORDER] * 5, tokens[ORDER] * 0.3, labels[ORDER] + 7)
    torch.testing.assert_close(permuted, loss)


def test_no_pairs_cost_nothing_and_still_go_backward():
    queries = torch.zeros(0, WIDTH, requires_grad=True)
    loss = compute_instance_alignment_loss(queries, torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0.0
    loss.backward()
    assert queries.grad.shape == (0, WIDTH)


def test_autocast_and_half_precision_change_nothing_but_the_inputs():
    batch = build_batch()
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    wide = {k: v.float() if v.is_floating_point() else v for k, v in halves.items()}
    labels = torch.tensor([0, 1, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = (
            compute_global_alignment_loss(**halves),
            compute_instance_alignment_loss(halves["image_tokens"], halves["image_tokens"], labels),
        )
    plain = (
        compute_global_alignment_loss(**wide),
        compute_instance_alignment_loss(wide["image_tokens"], wide["image_tokens"], labels),
    )
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(narrow, plain, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tokens": torch.ones(3, WIDTH)}, r"expected image_tokens \(4, 6\), got \(3, 6\)"),
        ({"image_keys": torch.ones(4, 1)}, r"expected image_keys \(4,\)"),
        ({"bank_tokens": torch.ones(3, 2)}, r"expected bank_tokens \(3, 6\)"),
        ({"bank_keys": torch.ones(2)}, r"expected bank_keys \(3,\), got \(2,\)"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_wrong_inputs_of_the_global_loss(changes, message):
    with pytest.raises(ValueError, match=message):
        compute_global_alignment_loss(**{**build_batch(), **changes})


def test_wrong_inputs_of_the_instance_loss():
    queries, labels = torch.ones(2, WIDTH), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected segment_tokens \(2, 6\), got \(3, 6\)"):
        compute_instance_alignment_loss(queries, torch.ones(3, WIDTH), labels)
    with pytest.raises(ValueError, match=r"expected label_ids \(2,\), got \(3,\)"):
        compute_instance_alignment_loss(queries, queries, torch.zeros(3))
    with pytest.raises(ValueError, match="must be positive"):
        compute_instance_alignment_loss(queries, queries, labels, temperature=-1.0)


def test_keys_are_those_of_every_process():
    keys = compute_image_keys([7, "7", "a/b.png", 8])
    assert keys.dtype == torch.int64
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    # Python's own hash of strings would be another number in every process.
    assert int(keys[2]) == -2614936058111133816


def push_numbers(bank, start, stop):
    numbers = torch.arange(start, stop)
    bank.push(numbers[:, None].expand(-1, 2).float(), numbers)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, []), (1, [8]), (5, [4, 5, 6, 7, 8]), (256, list(range(9)))]
)
def test_the_oldest_tokens_leave_first(size, expected):
    bank = TokenBank(size, 2)
    for start, stop in ((0, 3), (3, 4), (4, 4), (4, 9)):
        push_numbers(bank, start, stop)
    assert bank.image_keys.tolist() == expected
    assert bank.tokens.tolist() == [[float(number)] * 2 for number in expected]
    assert bank.tokens.dtype == torch.float32


def test_the_bank_keeps_no_gradients_and_no_views():
    bank, tokens = TokenBank(3, 2), torch.ones(2, 2, requires_grad=True)
    bank.push(tokens, torch.arange(2))
    with torch.no_grad():
        tokens.fill_(5.0)
    assert bank.tokens.tolist() == [[1.0, 1.0]] * 2
    assert not bank.tokens.requires_grad


def test_a_resumed_bank_continues():
    bank, resumed = TokenBank(4, 2), TokenBank(4, 2)
    push_numbers(bank, 0, 3)
    resumed.set_state(bank.get_state())
    for each in (bank, resumed):
        push_numbers(each, 3, 6)
    assert torch.equal(bank.tokens, resumed.tokens)
    assert resumed.image_keys.tolist() == [2, 3, 4, 5]


def test_wrong_banks():
    with pytest.raises(ValueError, match="got -1 and 2"):
        TokenBank(-1, 2)
    bank = TokenBank(4, 2)
    with pytest.raises(ValueError, match=r"expected tokens \(3, 2\), got \(3, 5\)"):
        bank.push(torch.ones(3, 5), torch.arange(3))
    with pytest.raises(ValueError, match=r"expected image_keys \(3,\)"):
        bank.push(torch.ones(3, 2), torch.arange(2))
    push_numbers(bank, 0, 4)
    with pytest.raises(ValueError, match=r"expected tokens \(3, 2\), got \(4, 2\)"):
        TokenBank(3, 2).set_state(bank.get_state())


DISTRIBUTED = """
import sys
import torch
from zsseg.losses.token_alignment import TokenBank

rank, init_file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + init_file, rank=rank, world_size=2)
bank = TokenBank(5, 1)
for step in range(2):
    numbers = 10 * step + 2 * rank + torch.arange(2)
    bank.push(numbers[:, None].float(), numbers)
print(bank.image_keys.tolist(), bank.tokens.flatten().long().tolist())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_all_processes_hold_the_same_bank(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "init")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    expected = [3, 10, 11, 12, 13]  # two steps of two processes: 0 1 2 3 10 11 12 13
    for process in processes:
        assert process.communicate(timeout=120)[0].strip() == f"{expected} {expected}"
