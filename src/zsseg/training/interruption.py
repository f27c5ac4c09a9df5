"""What asks a run to stop after the current step: Ctrl-C, a scheduler's signal, a limit of time."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; what Slurm sends ahead of that (``--signal=USR1@120``)."""

_deadline: ContextVar[float | None] = ContextVar("zsseg_training_deadline", default=None)


@contextmanager
def limit_time(hours: float | None) -> Iterator[None]:
    """Let every training inside save a checkpoint and stop once this much time has passed.

    The clock starts here, so that all stages of a recipe together keep to the limit, with the computing of
    tokens and queries between them. The step at which it passes is finished first.

    Args:
        hours: positive; None sets no limit.

    Raises:
        ValueError: if ``hours`` is not positive.

    Example:
        >>> with limit_time(hours=11.5):
        ...     pass  # train_concat(…)
    """
    if hours is not None and not hours > 0:
        raise ValueError(f"the limit of time must be a positive number of hours, got {hours}")
    token = _deadline.set(None if hours is None else time.monotonic() + 3600 * hours)
    try:
        yield
    finally:
        _deadline.reset(token)


class StopOnSignal:
    """While active, the first signal asks to stop, and so does the limit of :func:`limit_time`.

    A second Ctrl-C acts as usual, unless a launcher started the process: it passes on the Ctrl-C that the
    process already got. Other signals may come as often as they like; schedulers repeat them.

    Outside the main thread, where Python delivers no signals, only the limit counts.
    """

    def __init__(self) -> None:
        self._has_signal = False
        self._previous: dict[signal.Signals, object] = {}

    @property
    def is_requested(self) -> bool:
        """Whether to stop after this step."""
        deadline = _deadline.get()
        return self._has_signal or (deadline is not None and time.monotonic() >= deadline)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self._has_signal:
            name = signal.Signals(number).name
            again = "" if "LOCAL_RANK" in os.environ else "; Ctrl-C once more stops at once"
            print(f"{name}: stopping after this step, with a checkpoint{again}", file=sys.stderr)
        self._has_signal = True
        if number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))  # type: ignore[arg-type]


def leave_signals_to_trainer(worker_index: int) -> None:
    """For data-loading processes: signals to the whole group reach them too, but the trainer ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
