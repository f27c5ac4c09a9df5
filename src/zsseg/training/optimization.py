"""Parameter groups, the learning-rate schedule, and which layers stay as they were pretrained."""

import math
from typing import Any

import torch
from torch import nn

from zsseg.training.arguments import TrainerArguments
from zsseg.training.stage import Stage

UNDECAYED_MODULES = (
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def compute_learning_rate_factor(step: int, arguments: TrainerArguments) -> float:
    """Factor on every learning rate at optimizer step ``step``, counted from 0.

    It depends on nothing but the step, so a resumed run needs no scheduler state.
    """
    if step < arguments.warmup_steps:
        return (step + 1) / (arguments.warmup_steps + 1)
    if arguments.schedule == "milestones":
        passed = sum(step >= round(milestone * arguments.steps) for milestone in arguments.milestones)
        return arguments.gamma**passed
    remaining = (arguments.steps - step) / (arguments.steps - arguments.warmup_steps)
    if arguments.schedule == "polynomial":
        return remaining**arguments.polynomial_power
    if arguments.schedule == "cosine":
        return (1 - math.cos(math.pi * remaining)) / 2
    return 1.0


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep batch norms as pretrained: running statistics in use, scale and offset untrained.

    Batches of dense training are too small for batch statistics; the reference recipe freezes them too.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.requires_grad_(requires_grad=False)


def prepare_trainable(model: nn.Module, stage: Stage, arguments: TrainerArguments) -> None:
    """Let gradients flow to the stage's parameters and to no others.

    Raises:
        ValueError: if a backbone prefix matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.backbone_prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"stage {stage.name!r} names the backbone {prefix!r}, but no parameter of "
                f"{type(model).__name__} starts so; the first ones are {names[:3]}"
            )
    for name, parameter in model.named_parameters():
        is_frozen = (
            name.startswith(stage.backbone_prefixes) and not arguments.backbone_learning_rate_multiplier
        )
        parameter.requires_grad_(stage.is_trainable(name) and not is_frozen)
    freeze_batch_norm(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"stage {stage.name!r} trains no parameter of {type(model).__name__}")


def build_parameter_groups(
    model: nn.Module, stage: Stage, arguments: TrainerArguments
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Weight matrices and kernels decay; norms, biases, embeddings and free-standing parameters (queries,
    level embeddings, the no-object embedding) do not.

    Returns:
        at most four groups with ``params``, ``lr``, ``base_lr``, ``weight_decay`` and ``names``, in an
        order that depends only on the model.
    """
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_backbone = name.startswith(stage.backbone_prefixes) if stage.backbone_prefixes else False
        is_decayed = (
            parameter.ndim >= 2
            and name.rpartition(".")[2].endswith("weight")
            and not isinstance(owners[name], UNDECAYED_MODULES)
        )
        if (is_backbone, is_decayed) not in groups:
            multiplier = arguments.backbone_learning_rate_multiplier if is_backbone else 1.0
            learning_rate = arguments.learning_rate * multiplier
            groups[is_backbone, is_decayed] = {
                "params": [],
                "names": [],
                "lr": learning_rate,
                "base_lr": learning_rate,
                "weight_decay": arguments.weight_decay if is_decayed else 0.0,
            }
        groups[is_backbone, is_decayed]["params"].append(parameter)
        groups[is_backbone, is_decayed]["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, stage: Stage, arguments: TrainerArguments) -> torch.optim.Optimizer:
    """The optimizer over the stage's parameters."""
    groups = build_parameter_groups(model, stage, arguments)
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=arguments.momentum)
    return torch.optim.AdamW(groups, betas=arguments.adam_betas)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to ``factor`` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
