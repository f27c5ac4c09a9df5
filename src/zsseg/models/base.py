"""What every family shares: its output and strict loading."""

import os
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


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
        valid_fractions: (B, 2) float32, the share of height and width that is picture; the rest is padding.
        losses: the parts of the loss by name, detached.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    query_embeds: Tensor | None = None
    semantic_embeds: Tensor | None = None
    pixel_embeds: Tensor | None = None
    valid_fractions: Tensor | None = None
    losses: dict[str, Tensor] | None = None


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


class ZeroShotSegmentationPreTrainedModel(PreTrainedModel):
    """Loads strictly: a checkpoint either fits this family, whole and finite, or an error says why not."""

    main_input_name = "pixel_values"
    input_modalities = ("image", "text")

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
            cls._check_family(pretrained_model_name_or_path, **kwargs)
        # A shape that differs is reported below together with the rest, not as the first error met.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
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
                f"the checkpoint {str(pretrained_model_name_or_path)!r} does not fit {cls.__name__}: "
                f"{'; '.join(problems)}. It may be truncated, or its config.json may not be its own; "
                "download or "
                "convert it again"
            )
        model._check_finite(str(pretrained_model_name_or_path))
        return (model, info) if return_loading_info else model  # type: ignore[return-value]

    @classmethod
    def _check_family(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> None:
        hub_arguments = {
            name: kwargs[name]
            for name in ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
            if name in kwargs
        }
        config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
        expected = cls.config_class.model_type
        if config.get("model_type") != expected:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} is a checkpoint of model type "
                f"{config.get('model_type')!r}, "
                f"but {cls.__name__} loads {expected!r}: use the class of its own family"
            )

    def _check_finite(self, source: str) -> None:
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"the checkpoint {source!r} holds NaN or infinite values in {name!r}: its training "
                    "diverged or "
                    "the file is damaged; use an earlier checkpoint"
                )
