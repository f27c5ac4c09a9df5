"""Where the numbers of a run go: a JSON Lines file, tensorboard, and the console with a progress bar."""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

Record = Mapping[str, Any]
HIDDEN_ON_CONSOLE = frozenset({"step", "kind", "epoch"})


class LoggingSink(Protocol):
    """Takes the records of a run; each has ``step``, ``kind`` ("train" or "evaluation") and numbers."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish; nothing is written afterwards."""


class JsonLinesSink:
    """One JSON object per line; NaN and infinity, which JSON does not know, become null.

    Args:
        path: the file; appended to.
        resume_step: records after this step, written by a run that was killed later than its last
            checkpoint, are removed, as is a half-written line.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [
            line
            for line in (path.read_text(encoding="utf-8").split("\n") if path.exists() else [])
            if _is_record_until(line, resume_step)
        ]
        temporary = path.with_name(f".incomplete-{path.name}")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line and hand it to the operating system at once."""
        finite = {name: None if _is_not_finite(value) else value for name, value in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardSink:
    """Scalars under ``{kind}/{name}``.

    Args:
        folder: the event files' folder.
        resume_step: tensorboard hides what an earlier process logged after this step.

    Raises:
        ImportError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, record: Record) -> None:
        """Write every number of the record."""
        for name, value in record.items():
            if name not in ("step", "kind") and isinstance(value, int | float):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is buffered and close."""
        self._writer.close()


class ConsoleSink:
    """One line per record with the time left; on a terminal a progress bar below them.

    Args:
        stage_name: shown in front.
        steps: steps of the whole stage.
        start_step: steps already done.
        stream: where to write; a bar is drawn only if it is a terminal.
    """

    def __init__(self, stage_name: str, steps: int, start_step: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._stage_name = stage_name
        self._steps = steps
        self._start_step = start_step
        self._start_time = time.monotonic()
        self._bar = tqdm(
            total=steps,
            initial=start_step,
            desc=stage_name,
            unit="step",
            file=self._stream,
            dynamic_ncols=True,
            disable=not self._stream.isatty(),
        )

    def advance(self) -> None:
        """Note that one more step is done."""
        self._bar.update()

    def write(self, record: Record) -> None:
        """Print the record."""
        step = record["step"]
        shown = {name: value for name, value in record.items() if name not in HIDDEN_ON_CONSOLE}
        # The loss that is minimised comes first; what earlier decoder layers add is in the files only.
        numbers = [
            f"{name} {shown[name]:.4g}"
            for name in sorted(shown, key=lambda name: name != "loss")
            if isinstance(shown[name], int | float) and not name.startswith("auxiliary_")
        ]
        done = step - self._start_step
        seconds_left = (
            (time.monotonic() - self._start_time) / done * (self._steps - step) if done > 0 else None
        )
        ending = [] if seconds_left is None else [f"ETA {format_duration(seconds_left)}"]
        self.print(
            f"{self._stage_name} {record['kind']} {step}/{self._steps} · " + " · ".join(numbers + ending)
        )

    def print(self, message: str) -> None:
        """Print one line of text above the bar."""
        self._bar.write(message, file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class RunLog:
    """All sinks of one run as one; outside the main process it writes nothing.

    Args:
        metrics_path: the JSON Lines file.
        tensorboard_folder: event files; without tensorboard a line on the console says that there are none.
        console: where the run is watched.
        resume_step: steps done before; see the sinks.
        is_active: whether this process writes at all.
    """

    def __init__(
        self,
        metrics_path: Path,
        tensorboard_folder: Path,
        console: ConsoleSink,
        *,
        resume_step: int,
        is_active: bool,
    ) -> None:
        self._console = console if is_active else None
        self._sinks: list[LoggingSink] = [console] if is_active else []
        if is_active:
            self._sinks.append(JsonLinesSink(metrics_path, resume_step))
            if importlib.util.find_spec("tensorboard") is None:
                console.print("tensorboard is not installed: no event files (pip install tensorboard)")
            else:
                self._sinks.append(TensorboardSink(tensorboard_folder, resume_step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def write(self, record: Record) -> None:
        """Give one record to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def advance(self) -> None:
        """Note that one more step is done."""
        if self._console is not None:
            self._console.advance()

    def print(self, message: str) -> None:
        """Print one line of text on the console."""
        if self._console is not None:
            self._console.print(message)


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> format_duration(3725.4)
        '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_record_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:
        return False
