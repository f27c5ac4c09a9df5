import io
import json

import pytest

from zsseg.training.logging_sinks import ConsoleSink, JsonLinesSink, RunLog, TensorboardSink


class Terminal(io.StringIO):
    def isatty(self):
        return True


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_json_lines_keep_what_lies_before_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    sink = JsonLinesSink(path, resume_step=2)
    sink.write({"step": 3, "loss": 0.5, "IoU": float("nan"), "norm": float("inf")})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5, "IoU": None, "norm": None}]
    sink.close()
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_holds_the_numbers_by_kind(tmp_path):
    sink = TensorboardSink(tmp_path, resume_step=0)
    sink.write({"kind": "train", "step": 4, "loss": 0.25, "note": "no number"})
    sink.write({"kind": "evaluation", "step": 4, "mIoU": 0.75})
    sink.close()
    assert read_scalars(tmp_path) == {"train/loss": [(4, 0.25)], "evaluation/mIoU": [(4, 0.75)]}


def test_console_lines_begin_with_the_loss_and_end_with_the_time_left():
    stream = io.StringIO()
    console = ConsoleSink("warmup", steps=10, start_step=2, stream=stream)
    console.write({"kind": "train", "step": 4, "accuracy": 0.5, "auxiliary_mask": 9.0, "loss": 1.25})
    console.close()
    line = stream.getvalue()
    assert line.startswith("warmup train 4/10 · loss 1.25 · accuracy 0.5 · ETA 0:00:0")
    assert "auxiliary" not in line
    assert line.count("\n") == 1


def test_the_first_line_of_a_resumed_run_has_no_estimate_yet():
    stream = io.StringIO()
    console = ConsoleSink("warmup", steps=10, start_step=4, stream=stream)
    console.write({"kind": "evaluation", "step": 4, "PQ": 1})
    assert stream.getvalue() == "warmup evaluation 4/10 · PQ 1\n"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    console = ConsoleSink("segmentor", steps=3, start_step=1, stream=stream)
    console.advance()
    console.print("saved")
    console.close()
    assert "segmentor" in stream.getvalue()
    assert "2/3" in stream.getvalue()
    assert "saved\n" in stream.getvalue()


@pytest.mark.parametrize("is_active", [True, False])
def test_a_log_writes_everywhere_or_nowhere(tmp_path, is_active):
    stream = io.StringIO()
    console = ConsoleSink("stage", 2, 0, stream)
    with RunLog(
        tmp_path / "metrics.jsonl", tmp_path / "events", console, resume_step=0, is_active=is_active
    ) as log:
        log.advance()
        log.write({"kind": "train", "step": 1, "loss": 2.0})
        log.print("done")
    assert ("loss 2" in stream.getvalue() and "done" in stream.getvalue()) == is_active
    assert (tmp_path / "metrics.jsonl").exists() == is_active
    assert (tmp_path / "events").exists() == is_active


def test_a_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    stream = io.StringIO()
    with RunLog(
        tmp_path / "m.jsonl",
        tmp_path / "events",
        ConsoleSink("s", 1, 0, stream),
        resume_step=0,
        is_active=True,
    ):
        pass
    assert "tensorboard is not installed" in stream.getvalue()
    assert not (tmp_path / "events").exists()
