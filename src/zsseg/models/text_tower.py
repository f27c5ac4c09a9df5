"""The text tower that lies in a checkpoint: labels of any words, for every family that has one."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from zsseg.layers.text_embedding_bank import (
    TEXT_POOLING,
    TWO_TOWER_TEXT_MODELS,
    TextEmbeddingBank,
    build_text_tower,
    infer_text_width,
)
from zsseg.layers.vision_language import select_tower_config, without_load_report
from zsseg.models.base import load_whole


class TextTowerMixin:
    """A frozen text tower, or none, for a model whose configuration says of it what CONCAT's says.

    The configuration has ``text_config``, ``text_pooling`` and ``projection_dim``. The class lists
    ``text_model`` among its frozen modules.
    """

    config: Any

    def build_text_model(self) -> None:
        """Set ``text_model``, with random weights, and what remembers its embeddings; for ``__init__``.

        Raises:
            ValueError: if the pooling is unknown, or the tower's vectors are of another width than the text
                space.
        """
        config = self.config
        if config.text_pooling not in TEXT_POOLING:
            raise ValueError(f"text_pooling must be one of {TEXT_POOLING}, got {config.text_pooling!r}")
        self.text_bank = TextEmbeddingBank()
        self.text_model: Any = None
        if config.text_config is None:
            return
        width = infer_text_width(config.text_config, config.text_pooling)
        if width != config.projection_dim:
            raise ValueError(
                f"the text tower gives vectors of {width} numbers under text_pooling="
                f"{config.text_pooling!r}, but projection_dim is {config.projection_dim}: make them equal"
            )
        self.text_model = build_text_tower(config.text_config)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embed texts under their prompts; a second call with the same ids runs no text tower.

        Args:
            input_ids: (T, P, L) token ids, P prompts per text.
            attention_mask: (T, P, L); None when nothing is padded.

        Returns:
            (T, D) float32, unit norm, without gradients.

        Raises:
            ValueError: if the checkpoint holds no text tower, or ``input_ids`` is not three-dimensional.
        """
        if self.text_model is None:
            raise ValueError(
                "this checkpoint holds no text tower, only precomputed text embeddings: pass text_embeds, as "
                "its processor does for candidate_labels"
            )
        if input_ids.ndim != 3:
            raise ValueError(
                f"input_ids must be (texts, prompts, tokens), got {tuple(input_ids.shape)}: use the "
                "processor, or add a dimension for a single prompt"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.text_bank.encode(self.text_model, input_ids, mask, self.config.text_pooling)

    def resolve_text_embeds(
        self, text_embeds: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """(T, D) embeddings, as given or of the token ids.

        Raises:
            ValueError: if both or none of them are given.
        """
        if (text_embeds is None) == (input_ids is None):
            given = "neither" if text_embeds is None else "both"
            raise ValueError(
                f"pass either input_ids or text_embeds, got {given}: call the processor with "
                "candidate_labels=[…]"
            )
        if input_ids is not None:
            return self.encode_text(input_ids, attention_mask)
        assert text_embeds is not None
        return text_embeds


def load_text_tower(name_or_path: str, pooling: str | None = None) -> Any:
    """The pretrained text tower of a CLIP or SigLIP checkpoint, or any text encoder.

    Args:
        name_or_path: folder or Hub id.
        pooling: how its tokens will become one vector; None for the usual way of its type.

    Raises:
        OSError: if nothing is found there.
        ValueError: if the checkpoint has no separate text encoder that is known, or lacks its weights.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    two_tower = TWO_TOWER_TEXT_MODELS.get(f"{config.model_type.removesuffix('_text_model')}_text_model")
    if two_tower is not None:
        with without_load_report():
            tower_config = select_tower_config(config, "text_config")
            return load_whole(two_tower, name_or_path, (config.model_type,), config=tower_config)
    if config.sub_configs:
        raise ValueError(
            f"{name_or_path!r} is a composite checkpoint of model type {config.model_type!r}, of which the "
            "text tower is not known: use CLIP, SigLIP or a plain text encoder"
        )
    unused_weights = () if pooling == "pooler" else ("pooler.",)
    return load_whole(AutoModel, name_or_path, (config.model_type,), unused_weights=unused_weights)


def drop_provenance(config: PreTrainedConfig) -> dict[str, Any]:
    """What a pretrained part's config says of its architecture, without its origin and its classes."""
    settings = config.to_dict()
    for nested in (settings, settings.get("backbone_config") or {}):
        for name in ("_name_or_path", "architectures", "id2label", "label2id"):
            nested.pop(name, None)
    return settings
