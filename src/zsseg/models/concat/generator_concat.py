"""Generators of CONCAT's cycle transition: text embeddings → pseudo vision queries (arXiv:2402.13697).

A moment matching network and a conditional variational autoencoder, and PADing's primitive generator as the
baseline. All take any label's text embedding and draw as many different queries for it as asked.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.losses.semantic_alignment import (
    compute_relation_loss,
    compute_semantic_alignment_loss,
    compute_softmax_divergence,
)
from zsseg.losses.variational import compute_standard_normal_divergence

GENERATOR_KINDS = ("mlp", "cvae", "primitives")


@dataclass(frozen=True, kw_only=True)
class GeneratorBatch:
    """What a step of generator training learns from.

    Attributes:
        real_queries: (N, d) matched queries, without gradients.
        pseudo_queries: (N, d) drawn for the texts of the same labels.
        label_ids: (N,) int64, rows of ``vocabulary_embeds``.
        unseen_queries: (U, d) drawn for labels without real queries; U is 0 in inductive training.
        unseen_label_ids: (U,) int64, their rows of ``vocabulary_embeds``.
        vocabulary_embeds: (K, D) text embeddings of all labels known to training.
    """

    real_queries: Tensor
    pseudo_queries: Tensor
    label_ids: Tensor
    unseen_queries: Tensor
    unseen_label_ids: Tensor
    vocabulary_embeds: Tensor


class QueryGenerator(nn.Module, ABC):
    """Draws pseudo vision queries for text embeddings.

    Attributes:
        embed_dim: D, width of the text embeddings.
        query_dim: d, width of the queries.
        noise_dim: numbers of noise per draw.
        own_loss_weights: weight of each of the losses of :meth:`compute_own_losses`.
    """

    def __init__(self, *, embed_dim: int, query_dim: int, noise_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.query_dim = query_dim
        self.noise_dim = noise_dim
        self.own_loss_weights: dict[str, float] = {}

    @abstractmethod
    def forward(
        self, text_embeds: Tensor, *, noise_scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw one pseudo query per text embedding, with fresh noise at every call.

        Args:
            text_embeds: (N, D), unit norm; a row may come several times.
            noise_scale: standard deviation of the noise; 0 gives the same query at every call.
            generator: source of the noise, on any device; None for the global one.

        Returns:
            (N, d), like layer-normed vision queries.

        Raises:
            ValueError: if ``text_embeds`` is of another width.
        """

    def compute_own_losses(
        self, batch: GeneratorBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The losses that this kind of generator adds to those of the cycle transition.

        To be summed with ``own_loss_weights``. Gradients also flow through the pseudo queries.

        Args:
            batch: real and pseudo queries.
            generator: source of noise; None for the global one.

        Returns:
            Scalars by name, unweighted; none by default.
        """
        return {}


class MomentMatchingGenerator(QueryGenerator):
    """A perceptron of three layers on text embedding and noise, to be trained by moment matching.

    Reference:
        Generative moment matching networks (arXiv:1502.02761), as in zero-shot segmentation since ZS3Net
        (arXiv:1906.00817). The sizes are a choice of ours.
    """

    def __init__(self, *, embed_dim: int, query_dim: int, noise_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim=embed_dim, query_dim=query_dim, noise_dim=noise_dim)
        self.layers = _build_perceptron(embed_dim + noise_dim, hidden_dim, query_dim)

    def forward(
        self, text_embeds: Tensor, *, noise_scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw queries, as of :meth:`QueryGenerator.forward`."""
        conditions = _scale_text_embeds(text_embeds, self.embed_dim)
        noise = noise_scale * _draw_noise(conditions, self.noise_dim, generator)
        return self.layers(torch.cat([conditions, noise], dim=1))


class ConditionalVaeGenerator(QueryGenerator):
    """A conditional variational autoencoder: encoder E([q; a]) → μ, log σ²; decoder [a; z] → q̃.

    Its own losses are ``reconstruction``, the mean squared error per coordinate, and ``divergence``, that of
    z from the standard normal, weighted as for a decoder with normal noise of ``DECODER_VARIANCE``.

    Reference:
        Learning structured output representation using deep conditional generative models (NeurIPS 2015).
        The sizes and the variance are a choice of ours.
    """

    DECODER_VARIANCE = 0.1
    """Squared noise of the decoder per coordinate, of layer-normed queries with a mean square of one."""

    def __init__(self, *, embed_dim: int, query_dim: int, noise_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim=embed_dim, query_dim=query_dim, noise_dim=noise_dim)
        self.encoder = _build_perceptron(query_dim + embed_dim, hidden_dim, 2 * noise_dim)
        self.decoder = _build_perceptron(embed_dim + noise_dim, hidden_dim, query_dim)
        # ‖q − q̃‖² / 2v + KL, times 2v / d
        self.own_loss_weights = {"reconstruction": 1.0, "divergence": 2 * self.DECODER_VARIANCE / query_dim}

    def forward(
        self, text_embeds: Tensor, *, noise_scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw queries, as of :meth:`QueryGenerator.forward`; the noise is z."""
        conditions = _scale_text_embeds(text_embeds, self.embed_dim)
        noise = noise_scale * _draw_noise(conditions, self.noise_dim, generator)
        return self.decoder(torch.cat([conditions, noise], dim=1))

    def reconstruct(
        self, queries: Tensor, text_embeds: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode queries, draw z from what the encoder says and decode it again.

        Args:
            queries: (N, d).
            text_embeds: (N, D), unit norm, of each query's label.
            generator: source of the noise; None for the global one.

        Returns:
            Reconstructed queries (N, d), μ (N, z) and log σ² (N, z).
        """
        conditions = _scale_text_embeds(text_embeds, self.embed_dim)
        mean, log_variance = self.encoder(torch.cat([queries, conditions], dim=1)).chunk(2, dim=1)
        noise = _draw_noise(conditions, self.noise_dim, generator)
        latents = mean + (log_variance / 2).exp() * noise
        return self.decoder(torch.cat([conditions, latents], dim=1)), mean, log_variance

    def compute_own_losses(
        self, batch: GeneratorBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """``reconstruction`` and ``divergence``, of the real queries alone."""
        reconstructed, mean, log_variance = self.reconstruct(
            batch.real_queries, batch.vocabulary_embeds[batch.label_ids], generator=generator
        )
        return {
            "reconstruction": F.mse_loss(reconstructed, batch.real_queries),
            "divergence": compute_standard_normal_divergence(mean, log_variance),
        }


class PrimitiveDecoderLayer(nn.Module):
    """One layer of PADing's generator: a text attends to the primitives, noise is added, then a perceptron.

    Its self-attention sees a single token, the text itself, where attention is a linear map.
    """

    def __init__(self, query_dim: int, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_projection = nn.Linear(query_dim, query_dim)
        self.self_projection_norm = nn.LayerNorm(query_dim)
        self.cross_attention = nn.MultiheadAttention(query_dim, num_heads, dropout, batch_first=True)
        self.cross_attention_norm = nn.LayerNorm(query_dim)
        self.perceptron = nn.Sequential(
            nn.Linear(query_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, query_dim)
        )
        self.perceptron_norm = nn.LayerNorm(query_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, primitives: Tensor, noise: Tensor) -> Tensor:
        """(N, d) hidden states, (R, d) primitives and (N, d) noise → (N, d)."""
        projected = self.dropout(self.self_projection(hidden_states))
        hidden_states = self.self_projection_norm(hidden_states + projected)
        memory = primitives[None]
        attended = self.cross_attention(hidden_states[None], memory, memory, need_weights=False)[0][0]
        hidden_states = self.cross_attention_norm(hidden_states + self.dropout(attended) + noise)
        widened = self.dropout(self.perceptron(hidden_states))
        return self.perceptron_norm(hidden_states + widened)


class PrimitiveGenerator(QueryGenerator):
    """PADing's generator: texts assemble queries from learned primitives, with fresh noise in every layer.

    Beside the generator it holds what its own losses need: the projections to the related and the unrelated
    part of a query, the relation network and the decoder that puts both parts together again. The losses,
    each a mean over seen and unseen labels, are ``alignment``, ``unrelated``, ``relation`` and
    ``reconstruction``. PADing's total has them beside moment matching at weight 1 and the cross-entropy of
    pseudo queries, here the cycle loss, at 0.001.

    The noise has the width of the queries. In training mode dropout, which draws from the global generator,
    adds to what tells the queries of a label apart, so PADing draws in that mode for the classifier too.

    Reference:
        PADing (arXiv:2306.11087); sizes and weights of its official code.
    """

    NUM_LAYERS = 3
    NUM_HEADS = 8
    DROPOUT = 0.1

    def __init__(self, *, embed_dim: int, query_dim: int, hidden_dim: int, num_primitives: int) -> None:
        super().__init__(embed_dim=embed_dim, query_dim=query_dim, noise_dim=query_dim)
        if query_dim % self.NUM_HEADS:
            raise ValueError(
                f"the primitive generator has {self.NUM_HEADS} attention heads, so query_dim must be a "
                f"multiple of {self.NUM_HEADS}, got {query_dim}: use another kind of generator"
            )
        self.text_projection = nn.Linear(embed_dim, query_dim)
        self.primitives = nn.Embedding(num_primitives, query_dim)
        self.layers = nn.ModuleList(
            PrimitiveDecoderLayer(query_dim, hidden_dim, self.NUM_HEADS, self.DROPOUT)
            for _ in range(self.NUM_LAYERS)
        )
        self.norm = nn.LayerNorm(query_dim)

        self.related_projection = self._build_part_projection()
        self.unrelated_projection = self._build_part_projection()
        # The first layer of the relation network, on pairs, is the sum of one map of each side.
        self.relation_query_projection = nn.Linear(query_dim, query_dim)
        self.relation_text_projection = nn.Linear(query_dim, query_dim, bias=False)
        self.relation_score = nn.Linear(query_dim, 1)
        self.part_decoder = nn.Sequential(
            nn.Linear(2 * query_dim, query_dim),
            nn.LeakyReLU(0.2),
            nn.Dropout(self.DROPOUT),
            nn.Linear(query_dim, query_dim),
            nn.LeakyReLU(0.2),
            nn.Dropout(self.DROPOUT),
        )
        self.own_loss_weights = {
            "alignment": 1e-4,
            "unrelated": 1e-4 * 0.5,
            "relation": 1e-4 * 0.2,
            "reconstruction": 1e-4 * 0.5,
        }

    def _build_part_projection(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(self.query_dim, self.query_dim),
            nn.Linear(self.query_dim, self.query_dim),
            nn.LeakyReLU(0.2),
            nn.Dropout(self.DROPOUT),
        )

    def forward(
        self, text_embeds: Tensor, *, noise_scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw queries, as of :meth:`QueryGenerator.forward`."""
        _check_text_embeds(text_embeds, self.embed_dim)
        hidden_states = self.text_projection(text_embeds)
        for layer in self.layers:
            noise = noise_scale * _draw_noise(hidden_states, self.noise_dim, generator)
            hidden_states = layer(hidden_states, self.primitives.weight, noise)
        return self.norm(hidden_states)

    def compute_relation_logits(self, related: Tensor, projected_texts: Tensor) -> Tensor:
        """(N, d) related parts and (K, d) projected texts → (N, K) scores before the sigmoid."""
        of_queries = self.relation_query_projection(related)
        of_texts = self.relation_text_projection(projected_texts)
        return self.relation_score(F.relu(of_queries[:, None] + of_texts))[..., 0]

    def compute_own_losses(
        self, batch: GeneratorBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """``alignment``, ``unrelated``, ``relation`` and ``reconstruction``, of the pseudo queries alone."""
        texts = self.text_projection(batch.vocabulary_embeds)
        groups = [(batch.pseudo_queries, batch.label_ids, torch.arange(len(texts), device=texts.device))]
        if len(batch.unseen_queries):
            # Queries of unseen labels are told apart among these alone.
            groups.append((batch.unseen_queries, batch.unseen_label_ids, batch.unseen_label_ids.unique()))
        parts, unrelated, relation, reconstruction = [], [], [], []
        for queries, labels, candidates in groups:
            related_part = self.related_projection(queries)
            unrelated_part = self.unrelated_projection(queries)
            parts.append((related_part, texts[labels]))
            noise = _draw_noise(unrelated_part, self.query_dim, generator)
            unrelated.append(compute_softmax_divergence(unrelated_part, noise))
            logits = self.compute_relation_logits(related_part, texts[candidates])
            relation.append(compute_relation_loss(logits, torch.searchsorted(candidates, labels)))
            rebuilt = self.part_decoder(torch.cat([related_part, unrelated_part], dim=1))
            reconstruction.append(F.l1_loss(rebuilt, queries))
        alignment = [
            compute_semantic_alignment_loss(first, second, first_texts, second_texts)
            for index, (first, first_texts) in enumerate(parts)
            for second, second_texts in parts[index:]
        ]
        return {
            "alignment": torch.stack(alignment).mean(),
            "unrelated": torch.stack(unrelated).mean(),
            "relation": torch.stack(relation).mean(),
            "reconstruction": torch.stack(reconstruction).mean(),
        }


def build_query_generator(
    kind: str,
    *,
    embed_dim: int,
    query_dim: int,
    noise_dim: int,
    hidden_dim: int,
    num_primitives: int,
) -> QueryGenerator:
    """A new generator of a kind.

    Args:
        kind: ``"mlp"`` (moment matching), ``"cvae"`` (conditional VAE) or ``"primitives"`` (PADing).
        embed_dim: D, width of the text embeddings.
        query_dim: d, width of the vision queries.
        noise_dim: numbers of noise per draw; ``"primitives"`` has ``query_dim`` of them instead.
        hidden_dim: width of the hidden layers.
        num_primitives: for ``"primitives"`` only.

    Raises:
        ValueError: if there is no such kind, or a size does not fit it.
    """
    if kind == "mlp":
        return MomentMatchingGenerator(
            embed_dim=embed_dim, query_dim=query_dim, noise_dim=noise_dim, hidden_dim=hidden_dim
        )
    if kind == "cvae":
        return ConditionalVaeGenerator(
            embed_dim=embed_dim, query_dim=query_dim, noise_dim=noise_dim, hidden_dim=hidden_dim
        )
    if kind == "primitives":
        return PrimitiveGenerator(
            embed_dim=embed_dim, query_dim=query_dim, hidden_dim=hidden_dim, num_primitives=num_primitives
        )
    raise ValueError(f"the kind of generator must be one of {GENERATOR_KINDS}, got {kind!r}")


def _build_perceptron(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden_dim, hidden_dim),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden_dim, output_dim),
    )


def _check_text_embeds(text_embeds: Tensor, embed_dim: int) -> None:
    if text_embeds.ndim != 2 or text_embeds.shape[1] != embed_dim:
        raise ValueError(
            f"text_embeds must be (N, {embed_dim}) for this generator, got {tuple(text_embeds.shape)}: use "
            "the text tower (or vectors) that it was trained with"
        )


def _scale_text_embeds(text_embeds: Tensor, embed_dim: int) -> Tensor:
    """Unit vectors (N, D) → norm √D, so that each coordinate weighs as much as one of the noise."""
    _check_text_embeds(text_embeds, embed_dim)
    return math.sqrt(embed_dim) * text_embeds


def _draw_noise(like: Tensor, width: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal (N, width), of the dtype and on the device of ``like`` (N, …)."""
    source = like.device if generator is None else generator.device
    return torch.randn(len(like), width, dtype=like.dtype, device=source, generator=generator).to(like.device)
