"""Text embeddings by vocabulary: prompts × texts through a text tower, once per vocabulary."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPTextModelWithProjection, PreTrainedConfig, PreTrainedModel

TEXT_POOLING = ("projection", "pooler", "mean")
ENCODE_CHUNK_SIZE = 256
BANK_SIZE = 16


def build_text_tower(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The text tower a config describes, with random weights; CLIP's comes with its projection."""
    if text_config.model_type == "clip_text_model":
        return CLIPTextModelWithProjection(text_config)
    return AutoModel.from_config(text_config)


def infer_text_pooling(text_config: PreTrainedConfig) -> str:
    """How a text tower makes one vector of its tokens: CLIP projects, SigLIP pools, others average."""
    if text_config.model_type == "clip_text_model":
        return "projection"
    return "pooler" if text_config.model_type.startswith("siglip") else "mean"


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
        (T, D), unit norm.
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
        # Trimming to the chunk's longest prompt changes nothing under a mask and saves most of the work.
        length = int(mask.sum(dim=1).max())
        yield ids[:, :length], mask[:, :length]


def _encode_chunk(text_tower: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: str) -> Tensor:
    outputs = text_tower(input_ids=ids, attention_mask=mask)
    if pooling == "projection":
        return outputs.text_embeds
    if pooling == "pooler":
        return outputs.pooler_output
    weights = mask[..., None].to(outputs.last_hidden_state.dtype)
    return (outputs.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


class TextEmbeddingBank:
    """Remembers the embeddings of the vocabularies used last, so that the same labels run no text tower.

    An entry is found by the token ids and the state of the tower: any in-place change of a weight, another
    dtype or another device misses.
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
        with torch.no_grad():
            embeds = encode_prompts(text_tower, input_ids, attention_mask, pooling)
        self._entries[key] = embeds
        if len(self._entries) > BANK_SIZE:
            self._entries.popitem(last=False)
        return embeds


def _fingerprint(text_tower: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (input_ids, attention_mask):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for parameter in text_tower.parameters():
        state = (parameter.data_ptr(), parameter._version, parameter.dtype, parameter.device)
        digest.update(str(state).encode())
    return digest.hexdigest()
