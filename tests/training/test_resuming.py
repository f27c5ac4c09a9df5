import pytest
import torch
from torch import nn

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.data_order import Place
from zsseg.training.random_state import capture_rng_states, seed_generators
from zsseg.training.resuming import find_data_start, fit_global_batch, restore_generators


def fit(tmp_path, given, processes, saved, saved_processes, saved_global=None):
    """(batch size, accumulation) that a run goes on with, and the notes."""
    arguments = TrainerArguments(
        output_dir=tmp_path, steps=1, batch_size=given[0], gradient_accumulation_steps=given[1]
    )
    setup = {
        "batch_size": saved[0],
        "gradient_accumulation_steps": saved[1],
        "processes": saved_processes,
        "global_batch_size": saved_global or saved[0] * saved[1] * saved_processes,
    }
    fitted, notes = fit_global_batch(arguments, processes, setup)
    return (fitted.batch_size, fitted.gradient_accumulation_steps), notes


@pytest.mark.parametrize(
    ("given", "processes", "saved", "saved_processes", "expected"),
    [
        ((4, 1), 1, (4, 1), 2, (4, 2)),
        ((4, 1), 2, (4, 1), 1, (2, 1)),
        ((4, 3), 2, (4, 3), 1, (3, 2)),
        ((4, 1), 3, (4, 1), 6, (4, 2)),
        ((5, 1), 4, (5, 1), 8, (5, 2)),
        ((8, 1), 1, (4, 1), 2, (8, 1)),
        ((2, 2), 2, (2, 2), 2, (2, 2)),
    ],
)
def test_a_step_sees_as_many_examples_as_before(tmp_path, given, processes, saved, saved_processes, expected):
    fitted, notes = fit(tmp_path, given, processes, saved, saved_processes)
    assert fitted == expected
    assert fitted[0] * fitted[1] * processes == saved[0] * saved[1] * saved_processes
    assert fitted[0] <= given[0]
    assert bool(notes) == (processes != saved_processes)
    assert any("begun on" in note for note in notes) == (processes != saved_processes)


def test_the_same_command_resumes_again_on_the_first_number_of_processes(tmp_path):
    # Begun on two, resumed on one with (4, 2), which kept the arguments as they were given.
    assert fit(tmp_path, (4, 1), 1, (4, 1), 1, saved_global=8) == (
        (4, 2),
        ["batch_size 4 × gradient_accumulation_steps 2, so that a step sees 8 examples as before"],
    )
    assert fit(tmp_path, (4, 1), 2, (4, 1), 1, saved_global=8)[0] == (4, 1)


def test_what_does_not_divide_is_said(tmp_path):
    fitted, notes = fit(tmp_path, (4, 1), 3, (4, 1), 2)
    assert fitted == (4, 1)
    assert notes[1] == (
        "8 examples of a step do not divide by 3 processes: a step now sees 12, with the same learning rate"
    )


def test_smaller_batches_with_more_accumulation_are_taken_with_a_note(tmp_path):
    fitted, notes = fit(tmp_path, (2, 4), 1, (8, 1), 1)
    assert fitted == (2, 4)
    assert notes == [
        "batch_size 2 × gradient_accumulation_steps 4 instead of batch_size 8 × "
        "gradient_accumulation_steps 1: a step sees as many examples as before"
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_another_product_is_refused(tmp_path, processes):
    with pytest.raises(CheckpointError, match=r"a step of this run saw 8 examples \(batch_size 8"):
        fit(tmp_path, (3, 1), processes, (8, 1), 1)


def start(states, process_index, num_processes, num_workers):
    arguments = TrainerArguments(output_dir="run", steps=1, num_workers=num_workers)
    return find_data_start(
        Place(2, 5),
        [{"stream": state} for state in states],
        process_index=process_index,
        num_processes=num_processes,
        arguments=arguments,
    )


def test_data_by_index_go_on_at_their_place_on_any_number_of_processes():
    assert start([None, None], 0, 3, 1).place == Place(2, 5)


def test_a_stream_goes_on_where_each_process_was():
    states = [[[0, 1, 4]], [[0, 3, 2]]]
    assert start(states, 1, 2, 0).stream_state == [[0, 3, 2]]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 1), (2, 2), (3, 1)])
def test_a_stream_that_is_divided_otherwise_begins_the_next_epoch_and_says_so(num_processes, num_workers):
    found = start([[[0, 1, 4]], [[0, 3, 2]]], 0, num_processes, num_workers)
    assert found.place == Place(4)
    assert found.stream_state is None
    assert "divided otherwise than before, so epoch 4 begins" in found.notes[0]


@pytest.mark.parametrize("draws_together", [False, True])
def test_generators_go_on_or_begin_anew_with_the_number_of_processes(draws_together):
    model = nn.Linear(1, 1)
    states, drawn = [], []
    for index in range(2):
        seed_generators(5, model, process_index=0 if draws_together else index)
        states.append({"rng": capture_rng_states(model)})
        drawn.append(float(torch.rand(())))

    def resume(index, count, step=7):
        restore_generators(
            states,
            model,
            process_index=index,
            num_processes=count,
            seed=5,
            step=step,
            draws_together=draws_together,
        )
        return float(torch.rand(()))

    assert [resume(index, 2) for index in range(2)] == drawn
    on_three = [resume(index, 3) for index in range(3)]
    if draws_together:
        assert on_three == [drawn[0]] * 3
    else:
        assert len({*drawn, *on_three}) == 5
        assert resume(0, 3, step=8) != on_three[0]
