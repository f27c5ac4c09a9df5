"""Every random number generator that a training step may draw from: seed them, save them, restore them.

Beside the global ones these are the generators of the model's own parts: attributes of its modules with
``get_rng_state`` and ``set_rng_state``, such as the criterion with its point sampling. In a distributed run
the parts draw the same in all processes, as one process draws once for its whole batch.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn


def seed_generators(seed: int, model: nn.Module, *, process_index: int = 0) -> None:
    """Start every generator from one seed; the global ones of each process from another."""
    set_seed(seed + process_index)
    for part in _parts_with_generator(model).values():
        part.set_rng_state(torch.Generator().manual_seed(seed).get_state())


def capture_rng_states(model: nn.Module) -> dict[str, Any]:
    """The states of every generator, as tensors, texts and plain numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "parts": {path: part.get_rng_state() for path, part in _parts_with_generator(model).items()},
    }


def restore_rng_states(states: Mapping[str, Any], model: nn.Module) -> None:
    """Set every generator to what :func:`capture_rng_states` found.

    Raises:
        ValueError: if the model's own generators differ from those saved, or CUDA was used then or is now.
    """
    parts = _parts_with_generator(model)
    if parts.keys() != states["parts"].keys():
        raise ValueError(
            f"the states hold generators of the parts {sorted(states['parts'])}, the model has "
            f"{sorted(parts)}; restore them into the model that they were captured from"
        )
    if (states["cuda"] is not None) != torch.cuda.is_available():
        then, now = ("without", "with") if states["cuda"] is None else ("with", "without")
        raise ValueError(
            f"the states were captured {then} CUDA, and this process runs {now} it: go on as it was, or "
            "start a new run from the weights"
        )
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
    restore_parts(states, model)


def restore_parts(states: Mapping[str, Any], model: nn.Module) -> None:
    """Set the generators of the model's parts alone: they are the same in all processes."""
    for path, part in _parts_with_generator(model).items():
        part.set_rng_state(states["parts"][path])


def derive_seed(seed: int, step: int) -> int:
    """Another seed for each step at which generators start anew, with room above it for process indices."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0]) // 2


def _parts_with_generator(model: nn.Module) -> dict[str, Any]:
    return {
        f"{path}.{name}" if path else name: part
        for path, module in model.named_modules()
        for name, part in vars(module).items()
        if hasattr(part, "get_rng_state")
    }
