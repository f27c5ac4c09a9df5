"""What one training stage is told: sizes, rates, schedule and cadence, validated and written as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

MixedPrecision = Literal["no", "bf16", "fp16"]
Schedule = Literal["milestones", "polynomial", "cosine", "constant"]
Optimizer = Literal["adamw", "sgd"]

RESUME_MAY_CHANGE = frozenset(
    {"output_dir", "evaluate_every", "save_every", "keep_last_n", "log_every", "num_workers"}
)
"""Arguments that do not touch the weights a run arrives at; every other one must be equal on resume."""


@dataclass(frozen=True, kw_only=True)
class TrainerArguments:
    """Arguments of one training stage; the defaults are PADing's, which CONCAT follows (arXiv:2402.13697).

    Attributes:
        output_dir: folder of this stage: checkpoints, ``best``, ``last``, ``metrics.jsonl``, tensorboard.
        steps: optimizer steps of the whole stage.
        batch_size: images per device in one forward pass.
        gradient_accumulation_steps: forward passes per optimizer step.
        optimizer: "adamw", or "sgd" with ``momentum``.
        momentum: of "sgd"; "adamw" has no use for it.
        adam_betas: decay rates of the two moments of "adamw"; "sgd" has no use for them.
        learning_rate: peak learning rate.
        backbone_learning_rate_multiplier: factor on ``learning_rate`` for the backbone; 0 freezes it.
        weight_decay: of weight matrices and kernels; norms, biases and embeddings are not decayed.
        max_grad_norm: the gradient's largest 2-norm over all parameters; None does not clip.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: "milestones" multiplies by ``gamma`` at each milestone, "polynomial" falls to 0 as
            (1 − progress) ** ``polynomial_power``, "cosine" as half a wave, "constant" stays.
        milestones: fractions of ``steps`` in (0, 1), rising.
        gamma: factor at every milestone.
        polynomial_power: exponent of the polynomial schedule.
        mixed_precision: autocast dtype; "fp16" scales the loss.
        seed: of data order, augmentation, point sampling and dropout.
        evaluate_every: steps between evaluations; None evaluates only after the last step.
        save_every: steps between checkpoints; None saves only after the last step (and on improvement).
        keep_last_n: newest checkpoints to keep beside the best one.
        log_every: steps between log records, each the mean over those steps.
        num_workers: processes that load data; 0 loads in the training process.
        metric_for_best: key of the evaluation's result that decides ``best``; greater is better.

    Raises:
        TypeError: if a value has another type than its field.
        ValueError: if a value is out of range; the message says what is allowed.
    """

    output_dir: Path
    steps: int
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    adam_betas: tuple[float, float] = (0.9, 0.999)
    learning_rate: float = 1e-4
    backbone_learning_rate_multiplier: float = 0.1
    weight_decay: float = 0.05
    max_grad_norm: float | None = 0.01
    warmup_steps: int = 0
    schedule: Schedule = "milestones"
    milestones: tuple[float, ...] = (0.9, 0.95)
    gamma: float = 0.1
    polynomial_power: float = 0.9
    mixed_precision: MixedPrecision = "no"
    seed: int = 0
    evaluate_every: int | None = None
    save_every: int | None = 500
    keep_last_n: int = 2
    log_every: int = 20
    num_workers: int = 1
    metric_for_best: str = "mIoU"

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        for name in ("milestones", "adam_betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "keep_last_n", "log_every"):
            _check_integer(name, getattr(self, name), smallest=1)
        for name in ("warmup_steps", "seed", "num_workers"):
            _check_integer(name, getattr(self, name), smallest=0)
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), smallest=1)
        for name in ("backbone_learning_rate_multiplier", "weight_decay", "momentum"):
            _check_number(name, getattr(self, name), may_be_zero=True)
        for name in ("learning_rate", "gamma", "polynomial_power"):
            _check_number(name, getattr(self, name), may_be_zero=False)
        for beta in self.adam_betas:
            _check_number("adam_betas", beta, may_be_zero=True)
        if len(self.adam_betas) != 2 or max(self.adam_betas) >= 1:
            raise ValueError(f"adam_betas must be two numbers in [0, 1), got {self.adam_betas}")
        if self.max_grad_norm is not None:
            _check_number("max_grad_norm", self.max_grad_norm, may_be_zero=False)
        for name, allowed in (
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("mixed_precision", get_args(MixedPrecision)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps must be fewer than the stage's {self.steps} steps, got {self.warmup_steps}"
            )
        if list(self.milestones) != sorted({m for m in self.milestones if 0.0 < m < 1.0}):
            raise ValueError(
                "milestones must be rising fractions of the stage in (0, 1), such as (0.9, 0.95), "
                f"got {self.milestones}"
            )
        if not self.metric_for_best:
            raise ValueError("metric_for_best must name a key of the evaluation's result, got an empty text")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back equal."""
        values = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        return {**values, "output_dir": str(self.output_dir)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainerArguments":
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: if a key is unknown (a typo would otherwise be ignored) or a required one is missing.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown training arguments {unknown}; known ones are {sorted(known)}")
        if missing := sorted({"output_dir", "steps"} - values.keys()):
            raise ValueError(f"training arguments lack {missing}, which have no default")
        return cls(**values)

    def save_json(self, path: Path) -> None:
        """Write the arguments to one JSON file."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load_json(cls, path: Path) -> "TrainerArguments":
        """Read the arguments from a JSON file.

        Raises:
            ValueError: if the file is not a JSON object, or as for :meth:`from_dict`.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold one JSON object of training arguments, got {type(values)}")
        return cls.from_dict(values)


def _check_integer(name: str, value: Any, *, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}: {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")


def _check_number(name: str, value: Any, *, may_be_zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        raise ValueError(
            f"{name} must be finite and {'0 or more' if may_be_zero else 'positive'}, got {value}"
        )
