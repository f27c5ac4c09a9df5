"""What every family shares: its output and strict loading."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from zsseg.losses.matching import Match
from zsseg.processing.processing import HUB_ARGUMENTS


@dataclass
class ZeroShotSegmentationOutput(ModelOutput):
    """Output of every family.

    Attributes:
        loss: scalar, with labels only.
        class_queries_logits: (B, Q, K + 1) float32; the last column is no-object.
        masks_queries_logits: (B, Q, h, w) before the sigmoid.
        query_embeds: (B, Q, d) vision queries, layer-normed.
        semantic_embeds: (B, Q, D) queries in the text space, not normalised.
        pixel_embeds: (B, d, h, w) features that the masks are read from.
        query_weights: (B, Q) float32, 0 or more: a semantic map counts each query so many times; None: once.
        valid_fractions: (B, 2) float32, the share of height and width that is picture; the rest is padding.
        losses: the parts of the loss by name, detached.
        matches: with labels only: per image which queries were matched with which of its masks.
        hidden_states: on request: the queries (B, Q, d) before the first decoder layer and behind each.
        attentions: on request: per decoder layer the queries' attention to each other (B, heads, Q, Q).
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    query_embeds: Tensor | None = None
    semantic_embeds: Tensor | None = None
    pixel_embeds: Tensor | None = None
    query_weights: Tensor | None = None
    valid_fractions: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    matches: list[Match] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def compute_valid_fractions(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) share of height and width that ``pixel_mask`` (B, H, W) marks as picture; 1 without it."""
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is None:
        return torch.ones(batch_size, 2, device=pixel_values.device)
    if pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"pixel_mask must be {(batch_size, height, width)} to match pixel_values, got "
            f"{tuple(pixel_mask.shape)}"
        )
    rows = pixel_mask.bool().any(dim=2).sum(dim=1) / height
    columns = pixel_mask.bool().any(dim=1).sum(dim=1) / width
    return torch.stack([rows, columns], dim=1)


def load_whole(
    model_class: Any,
    name_or_path: str | os.PathLike[str],
    model_types: Collection[str],
    *,
    unused_weights: tuple[str, ...] = (),
    allow_left_over: bool = True,
    config: PreTrainedConfig | None = None,
) -> Any:
    """A part's pretrained model, whose checkpoint must be of a known type and hold all weights in use.

    Args:
        model_class: class to load with.
        name_or_path: folder or Hub id.
        model_types: those that ``model_class`` reads.
        unused_weights: beginnings of the names of weights that may be missing.
        allow_left_over: the checkpoint may hold weights that the class does not have.
        config: of the part; None takes what ``model_class`` finds in the checkpoint.

    Raises:
        OSError: if nothing is found there, or the file is damaged.
        ValueError: if the model type is another, or weights are missing, of other shapes or left over.
    """
    _check_model_type(name_or_path, model_types, model_class.__name__)
    model, info = _load(model_class, name_or_path, **({} if config is None else {"config": config}))
    info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith(unused_weights)}
    _check_complete(info, name_or_path, model_class.__name__)
    if not allow_left_over and (left := sorted(map(str, info["unexpected_keys"]))):
        raise ValueError(
            f"the checkpoint {str(name_or_path)!r} holds {len(left)} weights that {model_class.__name__} "
            f"does not have, first {left[:5]}: it is of another model, or of another version of transformers"
        )
    return model


def _load(model_class: Any, name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
    # A shape that differs is reported together with the rest, not as the first error met.
    kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        return model_class.from_pretrained(name_or_path, *args, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"the weights of {str(name_or_path)!r} cannot be read ({error}): the file is cut off or damaged; "
            "download or convert it again"
        ) from error


def _check_model_type(
    name_or_path: str | os.PathLike[str], expected: Collection[str], class_name: str, **kwargs: Any
) -> None:
    hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_arguments)
    if not config:
        raise OSError(
            f"there is no config.json in {str(name_or_path)!r}: pass a folder that save_pretrained wrote, or "
            "a Hub id"
        )
    found = config.get("model_type")
    if found not in expected:
        raise ValueError(
            f"{str(name_or_path)!r} is a checkpoint of model type {found!r}, but {class_name} loads "
            f"{' or '.join(map(repr, expected))}: use the class of its own family"
        )


def _check_complete(info: dict[str, Any], name_or_path: str | os.PathLike[str], class_name: str) -> None:
    problems = [
        f"{len(keys)} {what}, first {sorted(map(str, keys))[:5]}"
        for what, keys in (
            ("weights are missing", info["missing_keys"]),
            ("weights have another shape", info["mismatched_keys"]),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"the checkpoint {str(name_or_path)!r} does not fit {class_name}: {'; '.join(problems)}. It may "
            "be truncated, or its config.json may not be its own; download or convert it again"
        )


class ZeroShotSegmentationPreTrainedModel(PreTrainedModel):
    """Loads strictly: a checkpoint either fits this family, whole and finite, or an error says why not."""

    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    frozen_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the parts, where a model has them, that are never trained and never drop out."""
    unused_with_text_embeds: ClassVar[tuple[str, ...]] = ()
    """Names of the parts that a prediction by ``text_embeds`` never runs; an exported model is without."""

    def freeze(self) -> None:
        """Freeze the frozen modules; for the end of ``__init__``, and done after loading."""
        for module in self._iterate_frozen():
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the frozen modules, which stay in evaluation mode."""
        super().train(mode)
        for module in self._iterate_frozen():
            module.eval()
        return self

    def check_exportable(self) -> None:
        """Check that a prediction by ``text_embeds`` can be one graph of fixed shapes.

        Raises:
            ValueError: if it cannot; families say why.
        """

    def _iterate_frozen(self) -> Iterator[nn.Module]:
        for name in self.frozen_modules:
            module = getattr(self, name)
            if module is not None:
                yield module

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Self:
        """Load a checkpoint of this family from a folder or the Hub.

        Raises:
            ValueError: if it is a checkpoint of another family, lacks weights, holds weights of other shapes,
                or holds NaN or infinite values. Transformers would fill the gaps with random numbers.
            OSError: if nothing is found there or the file is damaged.
        """
        return_loading_info = kwargs.pop("output_loading_info", False)
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            expected = (cls.config_class.model_type,)
            _check_model_type(pretrained_model_name_or_path, expected, cls.__name__, **kwargs)
        model, info = _load(super(), pretrained_model_name_or_path, *model_args, **kwargs)
        _check_complete(info, pretrained_model_name_or_path, cls.__name__)
        # Loading replaces parameters, and with them what was said about gradients.
        model.freeze()
        model._check_finite(str(pretrained_model_name_or_path))
        return (model, info) if return_loading_info else model  # type: ignore[return-value]

    def _check_finite(self, source: str) -> None:
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"the checkpoint {source!r} holds NaN or infinite values in {name!r}: its training "
                    "diverged or the file is damaged; use an earlier checkpoint"
                )
