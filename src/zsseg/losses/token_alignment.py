"""Conditional token alignment: queries in the text space are taught by CLS tokens of a frozen CLIP.

CONCAT (arXiv:2402.13697) aligns whole images and single segments. The formulas here are a choice of ours.
"""

import hashlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.losses.across_processes import gather_rows


def compute_global_alignment_loss(
    semantic_embeds: Tensor,
    image_tokens: Tensor,
    image_keys: Tensor,
    bank_tokens: Tensor,
    bank_keys: Tensor,
    *,
    query_temperature: float = 0.07,
    temperature: float = 0.07,
) -> Tensor:
    """Let the queries of an image, taken together, tell its token from those of other images.

    The queries of an image are averaged, weighted by softmax(cos(token, query) / query_temperature). InfoNCE
    compares the average, by its cosine, with the image's own token and with the tokens of other images, those
    of the batch and those of the bank. A token of the same image is never a negative, wherever it comes from.
    An image without any negative has a loss of 0.

    Args:
        semantic_embeds: (B, Q, D), any norm.
        image_tokens: (B, D) CLS tokens of the complete images, any norm.
        image_keys: (B,) int64, equal for the same image only; see :func:`compute_image_keys`.
        bank_tokens: (M, D) tokens of earlier images, such as ``TokenBank.tokens``; M may be 0.
        bank_keys: (M,) int64, the images of these tokens.
        query_temperature: of the weights of the queries.
        temperature: of InfoNCE.

    Returns:
        Scalar float32, the mean over images; computed in float32 outside autocast.

    Raises:
        ValueError: if shapes disagree or a temperature is not positive.

    Reference:
        CONCAT (arXiv:2402.13697), conditional token alignment; InfoNCE (arXiv:1807.03748).
    """
    _check_temperatures(query_temperature, temperature)
    batch, _, width = semantic_embeds.shape
    _check_shape("image_tokens", image_tokens, (batch, width))
    _check_shape("image_keys", image_keys, (batch,))
    _check_shape("bank_tokens", bank_tokens, (len(bank_tokens), width))
    _check_shape("bank_keys", bank_keys, (len(bank_tokens),))
    device = semantic_embeds.device
    with torch.autocast(device.type, enabled=False):
        queries = F.normalize(semantic_embeds.float(), dim=-1)
        tokens = F.normalize(image_tokens.to(device).float(), dim=-1)
        # (B, Q)
        weights = (torch.einsum("bqd,bd->bq", queries, tokens) / query_temperature).softmax(dim=-1)
        averages = F.normalize(torch.einsum("bq,bqd->bd", weights, queries), dim=-1)
        candidates = torch.cat((tokens, F.normalize(bank_tokens.to(device).float(), dim=-1)))
        candidate_keys = torch.cat((image_keys, bank_keys.to(image_keys.device))).to(device)
        # (B, B + M); the positives lie on the diagonal
        logits = averages @ candidates.T / temperature
        is_same_image = image_keys.to(device)[:, None] == candidate_keys
        own = torch.arange(batch, device=device)
        is_same_image[own, own] = False
        return F.cross_entropy(logits.masked_fill(is_same_image, float("-inf")), own)


def compute_instance_alignment_loss(
    semantic_embeds: Tensor, segment_tokens: Tensor, label_ids: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """Pull each query to the token of the segment it is matched with, away from segments of other labels.

    Symmetric InfoNCE over the matched pairs of a batch, query → token and token → query. All pairs of one
    label are positives of each other: the loss of a row is the mean of −log-probability over its positives,
    as in supervised contrastive learning.

    Args:
        semantic_embeds: (N, D) queries, one for each pair, any norm; N may be 0.
        segment_tokens: (N, D) CLS tokens of pictures with all but the segment masked out, any norm.
        label_ids: (N,) int64.
        temperature: of InfoNCE.

    Returns:
        Scalar float32, the mean over pairs and directions, 0 without pairs; computed in float32 outside
        autocast.

    Raises:
        ValueError: if shapes disagree or the temperature is not positive.

    Reference:
        CONCAT (arXiv:2402.13697), conditional token alignment; supervised contrastive learning
        (arXiv:2004.11362), Eq. 2.
    """
    _check_temperatures(temperature)
    pairs, width = semantic_embeds.shape
    _check_shape("segment_tokens", segment_tokens, (pairs, width))
    _check_shape("label_ids", label_ids, (pairs,))
    if pairs == 0:
        # Part of the graph all the same: every process of a distributed run has to go backward.
        return semantic_embeds.float().sum()
    with torch.autocast(semantic_embeds.device.type, enabled=False):
        queries = F.normalize(semantic_embeds.float(), dim=-1)
        tokens = F.normalize(segment_tokens.to(queries.device).float(), dim=-1)
        logits = queries @ tokens.T / temperature
        labels = label_ids.to(queries.device)
        is_positive = (labels[:, None] == labels).float()
        # The same for both directions: rows and columns have equally many positives.
        weights = is_positive / is_positive.sum(dim=-1, keepdim=True) / pairs
        query_to_token = -(logits.log_softmax(dim=1) * weights).sum()
        token_to_query = -(logits.log_softmax(dim=0) * weights.T).sum()
        return (query_to_token + token_to_query) / 2


def compute_image_keys(image_ids: Iterable[int | str]) -> Tensor:
    """Numbers that stand for image ids, the same in every process and run.

    Returns:
        (B,) int64: the first 64 bits of a digest, so that ids may be strings of any length.
    """
    digests = (hashlib.sha256(str(image_id).encode()).digest() for image_id in image_ids)
    keys = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    return torch.tensor(keys, dtype=torch.int64)


class TokenBank:
    """The image tokens seen last, first in first out, the same in all processes of a distributed run.

    It has no parameters and is no module; :meth:`get_state` and :meth:`set_state` make a resumed training
    continue exactly.

    Args:
        size: how many tokens it keeps, 0 or more; with 0 it stays empty.
        dim: D, width of a token.

    Raises:
        ValueError: if an argument is out of range.

    Attributes:
        tokens: (M, D) float32, oldest first, M ≤ size.
        image_keys: (M,) int64, the images of the tokens.
    """

    def __init__(self, size: int, dim: int) -> None:
        if size < 0 or dim < 1:
            raise ValueError(f"size must be 0 or more and dim 1 or more, got {size} and {dim}")
        self.size = size
        self.tokens = torch.zeros(0, dim)
        self.image_keys = torch.zeros(0, dtype=torch.int64)

    def push(self, tokens: Tensor, image_keys: Tensor) -> None:
        """Add the tokens of a batch, of all processes in the order of their ranks; the oldest make room.

        Args:
            tokens: (B, D).
            image_keys: (B,) int64.

        Raises:
            ValueError: if shapes disagree.
        """
        _check_shape("tokens", tokens, (len(tokens), self.tokens.shape[1]))
        _check_shape("image_keys", image_keys, (len(tokens),))
        device = tokens.device
        gathered = gather_rows(tokens.detach().float()), gather_rows(image_keys.to(device))
        start = max(0, len(self.tokens) + len(gathered[0]) - self.size)
        self.tokens = torch.cat((self.tokens.to(device), gathered[0]))[start:]
        self.image_keys = torch.cat((self.image_keys.to(device), gathered[1]))[start:]

    def get_state(self) -> dict[str, Tensor]:
        """What it holds, to be saved with a checkpoint."""
        return {"tokens": self.tokens.cpu(), "image_keys": self.image_keys.cpu()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of :meth:`get_state`.

        Raises:
            ValueError: if it is of a larger bank or of tokens of another width.
        """
        tokens, image_keys = state["tokens"], state["image_keys"]
        _check_shape("tokens", tokens, (min(len(tokens), self.size), self.tokens.shape[1]))
        _check_shape("image_keys", image_keys, (len(tokens),))
        self.tokens, self.image_keys = tokens, image_keys


def _check_temperatures(*temperatures: float) -> None:
    if not min(temperatures) > 0:
        raise ValueError(f"temperatures must be positive, got {temperatures}")


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"expected {name} {expected}, got {tuple(tensor.shape)}")
