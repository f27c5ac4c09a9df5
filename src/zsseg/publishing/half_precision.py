"""Weights at half their size: stored as float16, loaded as float32."""

import os

import torch
from transformers import PreTrainedModel


def save_half_precision(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write a model whose ``from_pretrained`` gives float32 again, every number rounded to float16.

    Args:
        model: with float32 parameters; it stays as it is.
        folder: made if it is missing.

    Raises:
        ValueError: if the model is not float32, or a number is too large for float16.
    """
    if model.dtype != torch.float32:
        # save_pretrained writes the model's own dtype into config.json, and loading follows that.
        raise ValueError(f"expected a float32 model, got {model.dtype}: load it with dtype=torch.float32")
    halved = {}
    for name, tensor in model.state_dict().items():
        halved[name] = tensor.half() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not torch.isfinite(halved[name]).all():
            raise ValueError(
                f"{name!r} holds numbers that float16 cannot hold, the largest {tensor.abs().max():g} (limit "
                f"{torch.finfo(torch.float16).max:g}): save this model with its own save_pretrained"
            )
    # Through save_pretrained: some backbones are stored under other names than their state dict shows.
    model.save_pretrained(folder, state_dict=halved)
