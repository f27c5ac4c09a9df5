"""The books of a conversion: where each weight of the source went, and where each of the target came from."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsseg.conversion.weight_files import load_weight_file

LISTED_NAMES = 5


@dataclass
class ConversionBooks:
    """What a conversion did with every weight.

    Attributes:
        used: weight of the source → weights of the target made of it.
        dropped: weight of the source → why it has no place in the target.
        fresh: weight of the target → where it comes from, if not from the source.
        beside: what the source's file holds besides weights.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def format_table(self) -> str:
        """Lines for reading: used weights by their parts, then what was dropped or is new."""
        used = Counter((_name_part(source), _name_part(target)) for source, (target, *_) in self.used.items())
        lines = [f"used     {count:5d}  {source} → {target}" for (source, target), count in used.items()]
        for title, reasons in (("dropped", self.dropped), ("new", self.fresh)):
            parts = Counter((_name_part(name), reason) for name, reason in reasons.items())
            lines += [f"{title:8} {count:5d}  {part}: {reason}" for (part, reason), count in parts.items()]
        if self.beside:
            lines.append(f"not read {len(self.beside):5d}  beside the weights: {', '.join(self.beside)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, by name, for a file."""
        return {"used": self.used, "dropped": self.dropped, "new": self.fresh, "beside": self.beside}


def _name_part(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:-1][:2] if parts[-1] in ("weight", "bias") else parts[:2])


class SourceWeights:
    """Tensors of another project's checkpoint, each of which has to be used or dropped for a reason.

    Args:
        tensors: by the source's names.
        beside: what else was in the file.

    Attributes:
        books: what was done with them so far.
    """

    def __init__(self, tensors: Mapping[str, Tensor], beside: Iterable[str] = ()) -> None:
        self.tensors = dict(tensors)
        self.books = ConversionBooks(beside=list(beside))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def keep_prefix(self, prefix: str) -> None:
        """Go on with the weights whose names begin so, without that beginning; drop the others.

        Raises:
            ValueError: if there are none.
        """
        kept = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        if not kept:
            raise ValueError(
                f"no weight's name begins with {prefix!r}; they begin like "
                f"{sorted(self.tensors)[:LISTED_NAMES]}"
            )
        for name in self.tensors:
            if not name.startswith(prefix):
                self.books.dropped[name] = f"not among those under {prefix!r}"
        self.tensors = kept

    def check_marker(self, marker: str, expected: str, hints: Mapping[str, str]) -> None:
        """Make sure that these are weights of the expected kind, by a name that all such files hold.

        Args:
            marker: that name.
            expected: what kind it marks.
            hints: for files of other kinds: a regular expression for a name in them → what to do.

        Raises:
            ValueError: if it is not there; with what the file looks like, where that is known.
        """
        if marker in self.tensors:
            return
        for name in self.tensors:
            if name.endswith(f".{marker}"):
                prefix = name.removesuffix(marker)
                raise ValueError(
                    f"the names of {expected} stand here behind {prefix!r}, as a wrapper of the model "
                    f"(parallel training, a moving average) leaves them: pass --prefix {prefix} to convert "
                    "those weights"
                )
        for pattern, hint in hints.items():
            if any(re.match(pattern, name) for name in self.tensors):
                raise ValueError(f"these are not the weights of {expected}: {hint}")
        raise ValueError(
            f"these are not the weights of {expected}: {marker!r} is missing; the names begin like "
            f"{sorted(self.tensors)[:LISTED_NAMES]}"
        )

    def get_shape(self, name: str) -> tuple[int, ...]:
        """Of one weight, without using it.

        Raises:
            ValueError: if it is missing.
        """
        self.check_present([name])
        return tuple(self.tensors[name].shape)

    def count(self, pattern: str) -> int:
        """How many indices 0, 1, … in place of ``{}`` name a weight.

        Raises:
            ValueError: if there is a gap in them.
        """
        before, after = pattern.split("{}")
        matches = (
            re.fullmatch(rf"{re.escape(before)}(\d+){re.escape(after)}", name) for name in self.tensors
        )
        found = {int(match[1]) for match in matches if match}
        if found != set(range(len(found))):
            absent = sorted(set(range(max(found))) - found)
            raise ValueError(
                f"the weights are incomplete: of {pattern!r}, number {absent} is missing, but {max(found)} "
                "is there"
            )
        return len(found)

    def check_present(self, names: Iterable[str]) -> None:
        """Raise for missing weights, all of them.

        Raises:
            ValueError: if some are missing.
        """
        if missing := [name for name in names if name not in self.tensors]:
            near = difflib.get_close_matches(missing[0], self.tensors, n=1)
            nearest = f"; the nearest name to the first is {near[0]!r}" if near else ""
            raise ValueError(
                f"{len(missing)} weights are missing from the file, first {missing[:LISTED_NAMES]}{nearest}. "
                "The file may be cut down, or of another version of the model"
            )

    def take(self, name: str, *targets: str) -> Tensor:
        """Use one weight for these weights of the target.

        Raises:
            ValueError: if it is missing.
        """
        self.check_present([name])
        self.books.used.setdefault(name, []).extend(targets)
        return self.tensors[name]

    def drop(self, pattern: str, reason: str) -> None:
        """Drop all weights whose names match a regular expression as a whole, if there are any."""
        for name in self.tensors:
            if name not in self.books.used and re.fullmatch(pattern, name):
                self.books.dropped.setdefault(name, reason)

    def check_accounted(self) -> None:
        """Make sure that nothing was forgotten.

        Raises:
            ValueError: if weights were neither used nor dropped.
        """
        left = [name for name in self.tensors if name not in self.books.used | self.books.dropped]
        if left:
            raise ValueError(
                f"the file holds {len(left)} weights that this conversion does not know, first "
                f"{left[:LISTED_NAMES]}: without them the result would be another model. The file is of "
                "another architecture or version than the conversion was written for"
            )


def read_source_weights(path: Path, prefix: str = "") -> SourceWeights:
    """The weights of a file, or those of them whose names begin with a prefix, without it.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if no name begins so.
    """
    file = load_weight_file(path)
    weights = SourceWeights(file.tensors, file.beside)
    if prefix:
        weights.keep_prefix(prefix)
    return weights


@torch.no_grad()
def fill_module(
    module: nn.Module, converted: Mapping[str, Tensor], fresh: Mapping[str, str], books: ConversionBooks
) -> None:
    """Put converted weights into a module, whose every weight must come from them or be named as new.

    Args:
        module: the target; weights that are new stay as they are.
        converted: by names of the module's state dict.
        fresh: regular expression for whole names → where such weights come from.
        books: gains the weights that are new.

    Raises:
        KeyError: if a weight is converted that the module does not have, which is a mistake of ours.
        ValueError: if a shape differs, a value is not finite, or a weight has no source.
    """
    state = module.state_dict()
    if unknown := sorted(converted.keys() - state.keys()):
        raise KeyError(f"{type(module).__name__} has no weights {unknown[:LISTED_NAMES]}")
    origins = {target: source for source, targets in books.used.items() for target in targets}
    unfit = [
        f"{origins.get(name, name)} {tuple(tensor.shape)}, expected {tuple(state[name].shape)} for {name}"
        for name, tensor in converted.items()
        if tensor.shape != state[name].shape
    ]
    if unfit:
        raise ValueError(
            f"{len(unfit)} weights do not have the shape that the rest of the file asks for: "
            f"{'; '.join(unfit[:LISTED_NAMES])}"
        )
    unsound = [origins.get(name, name) for name, tensor in converted.items() if not _is_finite(tensor)]
    if unsound:
        raise ValueError(
            f"{len(unsound)} weights hold NaN or infinite values, first {unsound[:LISTED_NAMES]}: the "
            "training diverged, or the file is damaged"
        )
    without_source = []
    for name in state:
        if name in converted:
            continue
        reason = next((reason for pattern, reason in fresh.items() if re.fullmatch(pattern, name)), None)
        if reason is None:
            without_source.append(name)
        else:
            books.fresh[name] = reason
    if without_source:
        raise ValueError(
            f"nothing in the file becomes {len(without_source)} weights of the result, first "
            f"{without_source[:LISTED_NAMES]}: the file is of another version of the model"
        )
    module.load_state_dict(
        {**state, **{name: tensor.to(state[name].dtype) for name, tensor in converted.items()}}
    )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
