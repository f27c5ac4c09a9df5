"""What tells one model from another."""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

ORIGIN_KEYS = ("_name_or_path", "transformers_version", "architectures", "dtype")
"""Where a config came from and how it was stored: the same model may say otherwise."""


def compute_weights_digest(module: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """A digest of names, dtypes, shapes and values of parameters and buffers whose names begin so."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes: NumPy has no bfloat16.
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_config(config: PreTrainedConfig) -> str:
    """What a config says of the computation, without where it came from, as JSON with sorted keys."""
    return json.dumps(_without_origins(config.to_dict()), sort_keys=True, default=str)


def _without_origins(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: _without_origins(value) for key, value in content.items() if key not in ORIGIN_KEYS}
