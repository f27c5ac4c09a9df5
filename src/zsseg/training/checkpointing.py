"""Checkpoints of a run: complete or absent, never half; what is saved resumes to the last bit.

A run's folder holds ``checkpoint-000500`` folders and two links to them, ``last`` and ``best``. Each
checkpoint is a model that ``from_pretrained`` loads, with its processor, and a ``trainer`` folder with what
resuming needs.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from zsseg.durable_files import flush_to_disk
from zsseg.training.sharding import shard_optimizer_state

CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d{6,})")
LAST_LINK = "last"
BEST_LINK = "best"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TRAINER_FOLDER = "trainer"
TEMPORARY_PATTERNS = (".incomplete-*", ".replaced-*", ".dropped-*", ".link-*")
SETUP_FILE = "setup.json"
STATE_FILE = "trainer_state.json"
PROCESSES_FILE = "processes.pt"
TEXT_EMBEDS_FILE = "text_embeds.pt"
STAGE_FILE = "stage.pt"
TEXT_EMBEDS_TOLERANCE = 1e-3


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: absent, incomplete, or of another run."""


class Saveable(Protocol):
    """A processor, as far as a checkpoint is concerned."""

    def save_pretrained(self, save_directory: str | Path) -> Any:
        """Write its files into the folder."""


@dataclass
class TrainerState:
    """Where a run stands. Data order and learning rates follow from ``step``.

    Attributes:
        step: optimizer steps done.
        epoch: epoch of the next batch.
        position: examples of that epoch that all processes together have already consumed.
        best_metric: best evaluation so far, None before the first.
        best_step: step of that evaluation.
        window_sums: sums of the logged numbers since the last record, by name.
        window_count: steps in those sums.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    window_sums: dict[str, float] = field(default_factory=dict)
    window_count: int = 0


def claim_output_dir(output_dir: Path, *, overwrite: bool) -> None:
    """Make the folder of a new run.

    Args:
        output_dir: the folder.
        overwrite: delete an earlier run in it; files that no run wrote stay.

    Raises:
        FileExistsError: if it is not empty and may not be overwritten.
    """
    if not overwrite:
        check_output_dir(output_dir)
    if output_dir.is_dir():
        remove_temporary(output_dir)
        for path in (
            *find_checkpoints(output_dir).values(),
            *(output_dir / name for name in (LAST_LINK, BEST_LINK, METRICS_FILE, TENSORBOARD_FOLDER)),
        ):
            _remove(path)
    output_dir.mkdir(parents=True, exist_ok=True)


def check_output_dir(output_dir: Path) -> None:
    """Refuse a folder in which an earlier run would be in the way.

    Raises:
        FileExistsError: if it is not empty.
    """
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise FileExistsError(
            f"{output_dir} is not empty: resume its run, allow overwriting, or choose another folder"
        )


def find_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, rising.

    A folder gets its name only when everything in it is written, so a name is enough.
    """
    if not output_dir.is_dir():
        return {}
    found = ((CHECKPOINT_PATTERN.fullmatch(path.name), path) for path in output_dir.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def check_resumable(output_dirs: Sequence[Path]) -> None:
    """Refuse to resume a run that never began.

    Args:
        output_dirs: of its stages. Where one was killed before its first checkpoint, its folder is there and
            it begins anew.

    Raises:
        CheckpointError: if none of the folders holds anything.
    """
    if not any(folder.is_dir() and any(folder.iterdir()) for folder in output_dirs):
        raise CheckpointError(
            f"there is nothing to resume in {[str(folder) for folder in output_dirs]}: no stage has begun. "
            "Start the run without resuming; tokens and queries computed for it are kept and used"
        )


def read_setup(checkpoint: Path) -> dict[str, Any]:
    """What must be equal when a run resumes from this checkpoint, by name.

    Raises:
        CheckpointError: if the folder is no checkpoint of a run.
    """
    return _read_json(checkpoint / TRAINER_FOLDER / SETUP_FILE)


def find_last_checkpoint(output_dir: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        CheckpointError: if there is none.
    """
    checkpoints = find_checkpoints(output_dir)
    if not checkpoints:
        raise CheckpointError(f"{output_dir} holds no complete checkpoint to resume; start a new run there")
    return checkpoints[max(checkpoints)]


class CheckpointWriter:
    """Writes one run's checkpoints: everything under a temporary name, then one rename.

    Args:
        output_dir: the run's folder.
        setup: JSON values that must be equal when a run resumes from these checkpoints.
        text_embeds: (T, D), what the run trains against; must be equal too. None for a stage without words.
        keep_last_n: newest checkpoints to keep; the best one stays in any case.
    """

    def __init__(
        self, output_dir: Path, setup: Mapping[str, Any], text_embeds: Tensor | None, keep_last_n: int
    ) -> None:
        self.output_dir = output_dir
        self.setup = setup
        self.text_embeds = None if text_embeds is None else text_embeds.detach().cpu()
        self.keep_last_n = keep_last_n

    def save(
        self,
        state: TrainerState,
        *,
        model: PreTrainedModel,
        processor: Saveable,
        optimizer_state: Mapping[str, Any],
        scaler: Any | None,
        stage_state: Mapping[str, Tensor],
        process_states: Sequence[Mapping[str, Any]],
    ) -> Path:
        """Write one checkpoint, move the links and drop checkpoints no longer kept.

        Args:
            state: where the run stands.
            model: with whole weights.
            processor: of the model.
            optimizer_state: of ``state_dict``, whole.
            scaler: the loss scaler of fp16 training.
            stage_state: what the stage carries beside the model.
            process_states: what each process carries, in their order.

        Raises:
            CheckpointError: if it cannot be written; nothing is left of it then, and all others stay.
        """
        temporary = self.output_dir / f".incomplete-{_checkpoint_name(state.step)}"
        final = self.output_dir / _checkpoint_name(state.step)
        try:
            _remove(temporary)
            (temporary / TRAINER_FOLDER).mkdir(parents=True)
            with _without_progress_bars():
                model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            trainer = temporary / TRAINER_FOLDER
            torch.save(optimizer_state, trainer / "optimizer.pt")
            if scaler is not None:
                torch.save(scaler.state_dict(), trainer / "scaler.pt")
            torch.save(dict(stage_state), trainer / STAGE_FILE)
            torch.save([dict(process) for process in process_states], trainer / PROCESSES_FILE)
            if self.text_embeds is not None:
                torch.save(self.text_embeds, trainer / TEXT_EMBEDS_FILE)
            _write_json(trainer / SETUP_FILE, self.setup)
            _write_json(trainer / STATE_FILE, asdict(state))
            for path in (*temporary.rglob("*"), temporary):
                flush_to_disk(path)
            if final.exists():
                _remove(final.rename(self.output_dir / f".replaced-{final.name}"))
            temporary.rename(final)
            flush_to_disk(self.output_dir)
        # A full disk is an OSError here, a SafetensorError or a RuntimeError there, as the writer likes.
        except Exception as error:
            message = self._explain_failure(final, error, (model.state_dict(), optimizer_state))
            with suppress(OSError):
                _remove(temporary)
            raise CheckpointError(message) from error
        _point_link(self.output_dir / LAST_LINK, final.name)
        if state.best_step == state.step:
            _point_link(self.output_dir / BEST_LINK, final.name)
        # Before others go: after a crash the links must not point to them.
        flush_to_disk(self.output_dir)
        self._prune(state)
        return final

    def _explain_failure(self, final: Path, error: Exception, contents: Any) -> str:
        needed = _count_bytes(contents) / 2**20
        try:
            free = f"{shutil.disk_usage(self.output_dir).free / 2**20:,.1f} MiB are free on its disk"
        except OSError:
            free = "its folder cannot be reached"
        earlier = [path.name for path in find_checkpoints(self.output_dir).values()]
        return (
            f"{final} could not be written ({error}): it needs about {needed:,.1f} MiB, and {free}. "
            f"Complete checkpoints are untouched: {earlier or 'there is none'}. Make room, then resume"
        )

    def _prune(self, state: TrainerState) -> None:
        checkpoints = find_checkpoints(self.output_dir)
        kept = {*sorted(checkpoints)[-self.keep_last_n :], state.best_step}
        for step, path in checkpoints.items():
            if step not in kept:
                # Under its own name a half-deleted folder would pass for a complete checkpoint.
                _remove(path.rename(self.output_dir / f".dropped-{path.name}"))


def check_setup(
    checkpoint: Path, setup: Mapping[str, Any], text_embeds: Tensor | None, may_change: frozenset[str]
) -> None:
    """Compare this run with the one that wrote the checkpoint.

    Raises:
        CheckpointError: if they differ in anything but the keys in ``may_change``; the message lists each
            difference.
    """
    saved = read_setup(checkpoint)
    current = json.loads(json.dumps(setup))
    differences = [
        f"{key}: {_shorten(saved.get(key))} then, {_shorten(current.get(key))} now"
        for key in sorted((saved.keys() | current.keys()) - may_change)
        if saved.get(key) != current.get(key)
    ]
    # A stage without words wrote none; it already differs by its name.
    has_embeds = (checkpoint / TRAINER_FOLDER / TEXT_EMBEDS_FILE).is_file()
    if (
        text_embeds is not None
        and has_embeds
        and not _are_close(_load(checkpoint, TEXT_EMBEDS_FILE), text_embeds)
    ):
        differences.append("text_embeds: other vectors for the labels (another text tower, prompts or file)")
    if differences:
        raise CheckpointError(
            f"{checkpoint} comes from another setup, so resuming would not continue that run:\n  "
            + "\n  ".join(differences)
            + "\nResume with the same setup, or start a new run in another folder"
        )


def _are_close(embeds_then: Tensor, embeds_now: Tensor) -> bool:
    # Texts are encoded anew on resume, and another number of threads may round otherwise.
    return embeds_then.shape == embeds_now.shape and torch.allclose(
        embeds_then, embeds_now.detach().cpu(), rtol=0.0, atol=TEXT_EMBEDS_TOLERANCE
    )


def load_state(checkpoint: Path) -> TrainerState:
    """Where the run stood at this checkpoint.

    Raises:
        CheckpointError: if the folder is no checkpoint of a run.
    """
    values = _read_json(checkpoint / TRAINER_FOLDER / STATE_FILE)
    if not (checkpoint / TRAINER_FOLDER / PROCESSES_FILE).is_file():
        raise CheckpointError(
            f"{checkpoint} was written by an earlier version of zsseg, which counted positions otherwise: "
            "finish the run with that version, or start a new run from its weights"
        )
    return TrainerState(**values)


def load_model_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Put a checkpoint's weights into ``model``, all of them.

    They go through ``from_pretrained``, because some backbones are stored under other names than their
    state dict shows; loading such a file straight into the model would drop them.

    Raises:
        CheckpointError: if weights are missing, left over or of another shape.
    """
    with _without_progress_bars():
        loaded: Any = type(model).from_pretrained(checkpoint, output_loading_info=True)
    restored, info = loaded
    problems = [
        f"{key} {sorted(map(str, info[key]))[:5]}"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[key]
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint} does not hold exactly the weights of {type(model).__name__}: {'; '.join(problems)}"
        )
    model.load_state_dict(restored.state_dict(), strict=True)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, scaler: Any | None) -> None:
    """Restore the optimizer and, where there is one, the loss scaler of fp16 training.

    Raises:
        CheckpointError: if the checkpoint trained other parameters or grouped them otherwise.
    """
    saved = _load(checkpoint, "optimizer.pt")
    names_then = [group["names"] for group in saved["param_groups"]]
    names_now = [group["names"] for group in optimizer.param_groups]
    if names_then != names_now:
        changed = {n for group in names_then for n in group} ^ {n for group in names_now for n in group}
        raise CheckpointError(
            f"{checkpoint} trained other parameters or grouped them otherwise; trained only then or only "
            f"now: {sorted(changed)[:5]}"
        )
    optimizer.load_state_dict(shard_optimizer_state(saved, optimizer))
    if scaler is not None:
        scaler.load_state_dict(_load(checkpoint, "scaler.pt"))


def load_stage_state(checkpoint: Path) -> dict[str, Tensor]:
    """What the stage carried beside the model."""
    state: dict[str, Tensor] = _load(checkpoint, STAGE_FILE)
    return state


def load_process_states(checkpoint: Path) -> list[dict[str, Any]]:
    """What each process carried, in their order."""
    states: list[dict[str, Any]] = _load(checkpoint, PROCESSES_FILE)
    return states


def remove_temporary(output_dir: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for pattern in TEMPORARY_PATTERNS:
        for path in output_dir.glob(pattern):
            _remove(path)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers draws a bar for every file it writes, across the one of the training."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _checkpoint_name(step: int) -> str:
    return f"checkpoint-{step:06d}"


def _load(checkpoint: Path, name: str) -> Any:
    return torch.load(checkpoint / TRAINER_FOLDER / name, map_location="cpu", weights_only=True)


def _count_bytes(values: Any) -> int:
    """Of all tensors in a nested state."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, Mapping):
        return sum(map(_count_bytes, values.values()))
    return sum(map(_count_bytes, values)) if isinstance(values, list | tuple) else 0


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist, so there is no run to resume; a folder that holds only a model and its "
            "processor is something to start a new run from"
        )
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _point_link(link: Path, target: str) -> None:
    temporary = link.with_name(f".link-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
