"""What tells one set of weights from another."""

import hashlib

import torch
from torch import nn


def compute_weights_digest(module: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """A digest of names, dtypes, shapes and values of parameters and buffers whose names begin so."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes: NumPy has no bfloat16.
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
