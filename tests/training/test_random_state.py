import random

import numpy as np
import pytest
import torch
from torch import nn

from zsseg.training.random_state import capture_rng_states, derive_seed, restore_rng_states, seed_generators


class Sampler:
    def __init__(self):
        self.generator = torch.Generator()

    def get_rng_state(self):
        return self.generator.get_state()

    def set_rng_state(self, state):
        self.generator.set_state(state)


class Sampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.criterion = Sampler()


def draw(model):
    return (
        random.random(),
        float(np.random.random()),
        float(torch.rand(())),
        float(torch.rand((), generator=model.criterion.generator)),
    )


def test_restored_generators_draw_the_same_again_through_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(1, 1), Sampling())
    torch.save(capture_rng_states(model), tmp_path / "rng.pt")
    expected = [draw(model[1]) for _ in range(3)]
    draw(model[1])
    restore_rng_states(torch.load(tmp_path / "rng.pt", weights_only=True), model)
    assert [draw(model[1]) for _ in range(3)] == expected


def test_one_seed_fixes_every_generator():
    model = Sampling()
    draws = []
    for seed in (1, 2, 1):
        seed_generators(seed, model)
        draws.append(draw(model))
    assert draws[0] == draws[2]
    assert all(first != second for first, second in zip(draws[0], draws[1], strict=True))


def test_states_of_another_model_are_refused():
    states = capture_rng_states(Sampling())
    with pytest.raises(ValueError, match=r"parts \['criterion'\], the model has \[\]"):
        restore_rng_states(states, nn.Linear(1, 1))


def test_states_of_cuda_are_refused_without_it_and_the_other_way_round():
    model = nn.Linear(1, 1)
    states = capture_rng_states(model)
    states["cuda"] = torch.get_rng_state() if states["cuda"] is None else None
    with pytest.raises(ValueError, match="go on as it was, or start a new run"):
        restore_rng_states(states, model)


def test_processes_draw_differently_but_for_the_parts_of_the_model():
    model = Sampling()
    draws = []
    for index in (0, 1):
        seed_generators(3, model, process_index=index)
        draws.append(draw(model))
    *own, shared = zip(*draws, strict=True)
    assert all(first != second for first, second in own)
    assert shared[0] == shared[1]


def test_seeds_of_later_steps_differ_and_leave_room_for_processes():
    seeds = {derive_seed(seed, step) for seed in range(4) for step in range(50)}
    assert len(seeds) == 200
    assert max(seeds) < 2**31
