"""Every random number generator that a training step may draw from: seed them, save them, restore them.

Beside the global ones these are the generators of the model's own parts: attributes of its modules with
``get_rng_state`` and ``set_rng_state``, such as the criterion with its point sampling.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn


def seed_generators(seed: int, model: nn.Module) -> None:
    """Start every generator from one seed."""
    set_seed(seed)
    for part in _parts_with_generator(model).values():
        part.set_rng_state(torch.Generator().manual_seed(seed).get_state())


def capture_rng_states(model: nn.Module) -> dict[str, Any]:
    """The states of every generator, as tensors, texts and plain numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "parts": {path: part.get_rng_state() for path, part in _parts_with_generator(model).items()},
    }


def restore_rng_states(states: Mapping[str, Any], model: nn.Module) -> None:
    """Set every generator to what :func:`capture_rng_states` found.

    Raises:
        ValueError: if the model's own generators, or the number of CUDA devices, differ from those saved.
    """
    parts = _parts_with_generator(model)
    if parts.keys() != states["parts"].keys():
        raise ValueError(
            f"the states hold generators of the parts {sorted(states['parts'])}, the model has "
            f"{sorted(parts)}; restore them into the model that they were captured from"
        )
    if len(states["cuda"]) != torch.cuda.device_count():
        raise ValueError(
            f"the states were captured with {len(states['cuda'])} CUDA device(s), here are "
            f"{torch.cuda.device_count()}; make as many visible with CUDA_VISIBLE_DEVICES"
        )
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    for path, part in parts.items():
        part.set_rng_state(states["parts"][path])


def _parts_with_generator(model: nn.Module) -> dict[str, Any]:
    return {
        f"{path}.{name}" if path else name: part
        for path, module in model.named_modules()
        for name, part in vars(module).items()
        if hasattr(part, "get_rng_state")
    }
