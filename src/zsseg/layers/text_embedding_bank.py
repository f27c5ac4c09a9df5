"""Text embeddings by vocabulary: prompts × texts through a text tower, once per vocabulary."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipTextModel,
)

TEXT_POOLING = ("projection", "pooler", "mean")
TWO_TOWER_TEXT_MODELS = {"clip_text_model": CLIPTextModelWithProjection, "siglip_text_model": SiglipTextModel}
"""Text halves of image-text models, which ``AutoModel`` does not build, or not with their projection."""

ENCODE_CHUNK_SIZE = 256
BANK_SIZE = 16


def build_text_tower(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The text tower a config describes, with random weights; CLIP's comes with its projection."""
    if text_config.model_type in TWO_TOWER_TEXT_MODELS:
        return TWO_TOWER_TEXT_MODELS[text_config.model_type](text_config)
    return AutoModel.from_config(text_config)


def infer_text_pooling(text_config: PreTrainedConfig) -> str:
    """How a text tower makes one vector of its tokens: CLIP projects, SigLIP pools, others average."""
    if text_config.model_type == "clip_text_model":
        return "projection"
    return "pooler" if text_config.model_type == "siglip_text_model" else "mean"


def infer_text_width(text_config: PreTrainedConfig, pooling: str) -> int:
    """D, the width of the vectors that a text tower gives under this pooling."""
    if pooling == "projection":
        return int(text_config.projection_dim)
    if pooling == "pooler":
        return int(getattr(text_config, "projection_size", text_config.hidden_size))
    return int(text_config.hidden_size)


def encode_prompts(
    text_tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, pooling: str
) -> Tensor:
    """Encode texts under several prompts each.

    Every prompt's embedding is L2-normalised, averaged over the prompts of its text and normalised again
    (CLIP, arXiv:2103.00020, Sec. 3.1.4).

    Args:
        text_tower: the encoder.
        input_ids: (T, P, L) token ids of P prompts for each of T texts.
        attention_mask: (T, P, L), 1 on tokens.
        pooling: ``"projection"`` (the tower's ``text_embeds``), ``"pooler"`` (its ``pooler_output``) or
            ``"mean"`` (tokens averaged under the mask).

    Returns:
        (T, D) float32, unit norm.

    Raises:
        ValueError: if a prompt is longer than the tower's context.
    """
    texts, prompts, _ = input_ids.shape
    embeds = torch.cat(
        [
            _encode_chunk(text_tower, ids, mask, pooling)
            for ids, mask in _iterate_chunks(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        ]
    )
    embeds = F.normalize(embeds.float(), dim=-1).view(texts, prompts, -1).mean(dim=1)
    return F.normalize(embeds, dim=-1)


def _iterate_chunks(input_ids: Tensor, attention_mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for ids, mask in zip(
        input_ids.split(ENCODE_CHUNK_SIZE), attention_mask.split(ENCODE_CHUNK_SIZE), strict=True
    ):
        # Cutting columns that are padding in every row changes nothing under a mask and saves most of the
        # work.
        length = int(mask.any(dim=0).nonzero().max()) + 1
        yield ids[:, :length], mask[:, :length]


def _encode_chunk(text_tower: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: str) -> Tensor:
    context = getattr(text_tower.config, "max_position_embeddings", None)
    if context is not None and ids.shape[1] > context:
        raise ValueError(
            f"a prompt takes {ids.shape[1]} tokens, but the text tower reads {context}: shorten the label or "
            "the prompt template"
        )
    outputs = text_tower(input_ids=ids, attention_mask=mask)
    if pooling == "projection":
        return outputs.text_embeds
    if pooling == "pooler":
        return outputs.pooler_output
    weights = mask[..., None].to(outputs.last_hidden_state.dtype)
    return (outputs.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


class TextEmbeddingBank:
    """Remembers the embeddings of the vocabularies used last, so that the same labels run no text tower.

    An entry is found by the token ids and the state of the tower: an optimizer's step, loaded weights,
    another dtype or another device miss. PyTorch counts no writes through ``parameter.data``: call
    :meth:`clear` after those.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def encode(
        self, text_tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, pooling: str
    ) -> Tensor:
        """:func:`encode_prompts` without gradients, or its remembered result."""
        key = _fingerprint(text_tower, input_ids, attention_mask)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        # What is remembered must not depend on who asks first: no autocast, and no inference mode, whose
        # tensors could not serve in training later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(input_ids.device.type, enabled=False),
        ):
            embeds = encode_prompts(text_tower, input_ids.clone(), attention_mask.clone(), pooling)
        self._entries[key] = embeds
        if len(self._entries) > BANK_SIZE:
            self._entries.popitem(last=False)
        return embeds

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def _fingerprint(text_tower: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (input_ids, attention_mask):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for parameter in text_tower.parameters():
        state = (parameter.data_ptr(), parameter._version, parameter.dtype, parameter.device)
        digest.update(str(state).encode())
    return digest.hexdigest()
