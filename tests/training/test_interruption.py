import os
import signal
import time

import pytest

from testing.tiny_concat_run import build_trainer, read_records
from zsseg.training.checkpointing import find_checkpoints
from zsseg.training.interruption import SIGNALS, StopOnSignal, leave_signals_to_trainer, limit_time


@pytest.fixture(autouse=True)
def _usual_handlers(monkeypatch):
    """Those of a terminal: a shell starts background jobs with Ctrl-C ignored."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_second_ctrl_c_is_not_held_back():
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_launcher_that_passes_ctrl_c_on_does_not_end_the_saving(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_schedulers_may_repeat_their_signals(number):
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        assert not stop.is_requested
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.is_requested
    assert signal.getsignal(number) is before


def test_loading_processes_leave_signals_to_the_trainer():
    leave_signals_to_trainer(0)
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}


def test_the_limit_counts_from_where_it_is_set_and_ends_there():
    stop = StopOnSignal()
    with limit_time(None):
        assert not stop.is_requested
    with limit_time(0.02 / 3600):
        assert not stop.is_requested
        time.sleep(0.03)
        assert stop.is_requested
    assert not stop.is_requested


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_a_limit_is_positive(hours):
    with pytest.raises(ValueError, match="must be a positive number of hours"), limit_time(hours):
        pass


def test_a_run_out_of_time_saves_and_stops_after_its_step_and_resumes(tmp_path):
    trainer = build_trainer(tmp_path, steps=4, save_every=None)
    with limit_time(1e-9):
        result = trainer.train()
    assert (result.step, result.is_complete) == (1, False)
    assert list(find_checkpoints(tmp_path)) == [1]
    with limit_time(1.0):
        assert build_trainer(tmp_path, steps=4, save_every=None).train(resume=True).is_complete
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2, 3, 4]
