"""CONCAT: a mask transformer whose queries are named by text (arXiv:2402.13697)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
)
from transformers import initialization as init
from transformers.utils import can_return_tuple

from zsseg.layers.mask_pooling import pool_by_masks
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.layers.open_vocabulary_classifier import compute_cosine_class_logits
from zsseg.layers.text_embedding_bank import infer_text_pooling, infer_text_width
from zsseg.losses.set_criterion import SetCriterion
from zsseg.models.base import (
    ZeroShotSegmentationOutput,
    ZeroShotSegmentationPreTrainedModel,
    compute_valid_fractions,
    load_whole,
)
from zsseg.models.concat.adaptation_concat import AdaptationResult, UnionOptions, adapt_to_labels
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.generator_concat import QueryGenerator, build_query_generator
from zsseg.models.concat.query_memory import NO_OBJECT, QueryMemory
from zsseg.models.text_tower import TextTowerMixin, drop_provenance, load_text_tower
from zsseg.vocabulary import Vocabulary


class ConcatPreTrainedModel(ZeroShotSegmentationPreTrainedModel):
    """Weight initialisation and loading shared by CONCAT's models."""

    config: ConcatConfig
    config_class = ConcatConfig
    base_model_prefix = "segmentor"
    frozen_modules: ClassVar[tuple[str, ...]] = ("text_model",)
    unused_with_text_embeds: ClassVar[tuple[str, ...]] = ("text_model", "generator", "memory")
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ConcatForPanopticSegmentation):
            init.normal_(module.no_object_embedding, std=self.config.no_object_std)
        elif isinstance(module, QueryMemory):
            init.zeros_(module.queries)
            init.constant_(module.label_ids, NO_OBJECT)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


class ConcatForPanopticSegmentation(TextTowerMixin, ConcatPreTrainedModel):
    """Mask transformer, semantic projector, cosine classifier and text tower (arXiv:2402.13697, Sec. 3).

    Labels are inputs, as token ids or as embeddings; no class is stored. CLIP's vision tower is a teacher of
    training only and no part of the model. The text tower is frozen: it takes no gradients and never drops
    out.
    """

    def __init__(self, config: ConcatConfig) -> None:
        super().__init__(config)
        segmentor_config = config.segmentor_config
        self.segmentor = Mask2FormerModel(segmentor_config)
        self.semantic_projector = _build_projector(
            segmentor_config.hidden_dim, config.projection_dim, config.projector_layers
        )
        self.no_object_embedding = nn.Parameter(torch.empty(config.projection_dim))
        self.build_text_model()
        self.generator = (
            None if config.generator_type is None else self._build_generator(config.generator_type)
        )
        self.memory = (
            QueryMemory(config.memory_size, segmentor_config.hidden_dim) if config.memory_size else None
        )
        self.criterion = SetCriterion.from_segmentor_config(
            segmentor_config, ignore_unknown_queries=config.ignore_unknown_queries
        )
        self.post_init()
        self.freeze()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_label_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        label_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ZeroShotSegmentationOutput:
        """Segment a batch by words.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 on picture and 0 on padding at the bottom and right.
            text_embeds: (T, D) embeddings of the texts; or give ``input_ids``.
            text_label_ids: (T,) label of each text, for labels with synonyms; None when text i is label i.
            input_ids: (T, P, L) token ids, P prompts per text.
            attention_mask: (T, P, L).
            mask_labels: with ``class_labels``, for the loss: per image (n, H, W) binary masks.
            class_labels: per image (n,) label ids.
            label_mask: (B, H, W), true where ground truth is known; elsewhere nothing is learned about masks.
            output_hidden_states: return the queries of every decoder layer; None asks the configuration.
            output_attentions: return their attention to each other; None asks the configuration.

        Returns:
            Logits, embeddings and, with labels, the loss over all decoder layers; with ``return_dict=False``
            a tuple of those that are not None.

        Raises:
            ValueError: if neither or both of texts and embeddings are given, only one of ``mask_labels`` and
                ``class_labels``, or shapes do not fit.
        """
        if (mask_labels is None) != (class_labels is None):
            missing = "mask_labels" if mask_labels is None else "class_labels"
            raise ValueError(f"the loss needs mask_labels and class_labels, but {missing} is missing")
        text_embeds = self.resolve_text_embeds(text_embeds, input_ids, attention_mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        features = compute_mask_transformer_features(
            self.segmentor, pixel_values, output_attentions=output_attentions
        )
        semantic_embeds = self.semantic_projector(features.query_embeds[-1])
        class_logits = self.compute_class_logits(semantic_embeds, text_embeds, text_label_ids)

        loss, losses, matches = None, None, None
        if mask_labels is not None and class_labels is not None:
            earlier_logits = [
                self.compute_class_logits(self.semantic_projector(queries), text_embeds, text_label_ids)
                for queries in features.query_embeds[:-1]
            ]
            criterion = self.criterion(
                [*earlier_logits, class_logits], features.mask_logits, mask_labels, class_labels, label_mask
            )
            loss, losses, matches = criterion.loss, criterion.losses, criterion.matches

        return ZeroShotSegmentationOutput(
            loss=loss,
            class_queries_logits=class_logits,
            masks_queries_logits=features.mask_logits[-1],
            query_embeds=features.query_embeds[-1],
            semantic_embeds=semantic_embeds,
            pixel_embeds=features.pixel_embeds,
            valid_fractions=compute_valid_fractions(pixel_values, pixel_mask),
            losses=losses,
            matches=matches,
            hidden_states=features.hidden_states if output_hidden_states else None,
            attentions=features.attentions,
        )

    def compute_class_logits(
        self, semantic_embeds: Tensor, text_embeds: Tensor, text_label_ids: Tensor | None = None
    ) -> Tensor:
        """γ · cos(s, [t, ∅]): (B, Q, D) semantic queries → (B, Q, K + 1) float32 logits."""
        return compute_cosine_class_logits(
            semantic_embeds,
            text_embeds,
            logit_scale=self.config.logit_scale,
            text_label_ids=text_label_ids,
            no_object_embedding=self.no_object_embedding,
        )

    def compute_segment_logits(
        self,
        pixel_values: Tensor,
        masks: Sequence[Tensor],
        text_embeds: Tensor,
        text_label_ids: Tensor | None = None,
    ) -> Tensor:
        """Name given segments from the backbone's features alone; for the first stage of random weights.

        Every level of the backbone is averaged over the segment behind the pixel decoder's own projection of
        that level; the sum takes the way of a pixel embedding to the text space.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            masks: per image (n, H, W) binary masks.
            text_embeds: (T, D).
            text_label_ids: (T,) label of each text; None when text i is label i.

        Returns:
            (N, K) float32 logits of the N segments of all images, without no-object.
        """
        pixel_decoder = self.segmentor.pixel_level_module.decoder
        features = self.segmentor.pixel_level_module.encoder(pixel_values).feature_maps
        fine = features[: pixel_decoder.num_fpn_levels][::-1]
        coarse = features[::-1][: pixel_decoder.num_feature_levels]
        pooled: Any = sum(
            pool_by_masks(project(level), masks)
            for project, level in (
                *zip(pixel_decoder.input_projections, coarse, strict=True),
                *zip(pixel_decoder.lateral_convolutions, fine, strict=True),
            )
        )
        segment_embeds = pixel_decoder.mask_projection(pooled[..., None, None])[..., 0, 0]
        return compute_cosine_class_logits(
            self.semantic_projector(segment_embeds),
            text_embeds,
            logit_scale=self.config.logit_scale,
            text_label_ids=text_label_ids,
        )

    def compute_pixel_embeds(self, pixel_values: Tensor) -> Tensor:
        """The pixel decoder's finest features: (B, 3, H, W) → (B, d, h, w)."""
        return self.segmentor.pixel_level_module(pixel_values).decoder_last_hidden_state

    def compute_dense_logits(
        self, pixel_embeds: Tensor, text_embeds: Tensor, text_label_ids: Tensor | None = None
    ) -> Tensor:
        """Name every pixel by itself: (B, d, h, w) → (B, K, h, w) float32 logits without no-object.

        γ · cos(P(pixel embedding), t). Training warms the backbone, the pixel decoder and the projector P up
        with it before the queries; prediction does not use it.
        """
        logits = compute_cosine_class_logits(
            self.semantic_projector(pixel_embeds.permute(0, 2, 3, 1)),
            text_embeds,
            logit_scale=self.config.logit_scale,
            text_label_ids=text_label_ids,
        )
        return logits.permute(0, 3, 1, 2)

    def compute_pixel_query_masks(self, pixel_embeds: Tensor, positions: Tensor) -> Tensor:
        """The masks that pixels of one image would draw, were they queries; for the warm-up alone.

        Args:
            pixel_embeds: (d, P) finest features of its pixels.
            positions: (N,) int64, the pixels that stand in for queries.

        Returns:
            (N, P) mask logits.
        """
        decoder = self.segmentor.transformer_module.decoder
        queries = decoder.layernorm(pixel_embeds[:, positions].T)
        return decoder.mask_predictor.mask_embedder(queries) @ pixel_embeds

    def attach_generator(
        self,
        generator_type: str = "mlp",
        *,
        noise_dim: int = 64,
        hidden_dim: int = 256,
        num_primitives: int = 400,
    ) -> None:
        """Give the model a query generator of random weights, in place of one it may have.

        Args:
            generator_type: ``"mlp"``, ``"cvae"`` or ``"primitives"``.
            noise_dim: width of the noise it draws.
            hidden_dim: width of its hidden layers.
            num_primitives: learned primitives of ``"primitives"``.

        Raises:
            ValueError: if the type is unknown.
        """
        self.config.generator_type = generator_type
        self.config.generator_noise_dim = noise_dim
        self.config.generator_hidden_dim = hidden_dim
        self.config.generator_num_primitives = num_primitives
        self.generator = self._build_generator(generator_type).to(self.device)

    def _build_generator(self, generator_type: str) -> QueryGenerator:
        config = self.config
        return build_query_generator(
            generator_type,
            embed_dim=config.projection_dim,
            query_dim=config.segmentor_config.hidden_dim,
            noise_dim=config.generator_noise_dim,
            hidden_dim=config.generator_hidden_dim,
            num_primitives=config.generator_num_primitives,
        )

    def remember(self, queries: Tensor, label_ids: Tensor, vocabulary: Vocabulary) -> None:
        """Store real queries and the labels they are of; :meth:`adapt` needs them.

        Args:
            queries: (N, d), such as :func:`~zsseg.models.concat.query_memory.sample_queries` draws.
            label_ids: (N,) int64 into ``vocabulary``, -1 for queries that contain no segment.
            vocabulary: all labels that the model was trained on, those without queries too.

        Raises:
            ValueError: if shapes do not fit, or a label id is outside the vocabulary.
        """
        width = self.config.segmentor_config.hidden_dim
        if queries.ndim != 2 or queries.shape[1] != width or label_ids.shape != queries.shape[:1]:
            raise ValueError(
                f"queries must be (N, {width}) and label_ids (N,), got {tuple(queries.shape)} and "
                f"{tuple(label_ids.shape)}"
            )
        if len(label_ids) and not -1 <= int(label_ids.min()) <= int(label_ids.max()) < len(vocabulary):
            raise ValueError(f"label_ids must lie in [-1, {len(vocabulary)}), got {label_ids.unique()}")
        self.memory = QueryMemory(len(queries), width).to(self.device)
        self.memory.queries.copy_(queries)
        self.memory.label_ids.copy_(label_ids)
        self.config.memory_size = len(queries)
        self.config.set_known_labels(vocabulary)

    def adapt(
        self,
        processor: Any,
        candidate_labels: Sequence[str],
        *,
        stuff_labels: Sequence[str] = (),
        steps: int = 1000,
        options: UnionOptions | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> AdaptationResult:
        """Learn new labels from their names alone, without an image (arXiv:2402.13697, Sec. 3).

        The generator makes pseudo queries of the new labels; the semantic projector and the no-object
        embedding learn them together with the stored real queries of the known labels. Every other weight
        stays as it is, to the last bit. Save the model to keep the result. An adaptation that is interrupted
        changes nothing. Half-precision weights are adapted in float32 and rounded at the end.

        Args:
            processor: of the same checkpoint.
            candidate_labels: the new labels; ``"car|automobile"`` has a synonym.
            stuff_labels: those of them that are stuff.
            steps: optimizer steps.
            options: how pseudo queries are drawn and weighed.
            seed: of the draws.
            progress: show a bar on a terminal.

        Returns:
            What changed.

        Raises:
            ValueError: if the checkpoint holds no generator or no stored queries, there is no new label, one
                is already known, or the tokenizer cannot read one or tell it from another.
        """
        return adapt_to_labels(
            self,
            processor,
            candidate_labels,
            stuff_labels=stuff_labels,
            steps=steps,
            options=options,
            seed=seed,
            progress=progress,
        )

    @classmethod
    def from_mask2former(cls, checkpoint: str, *, clip: str, **config_kwargs: Any) -> Self:
        """Start from a Mask2Former and a text tower, each on the Hub or on disk.

        Segmentor and text tower come with their weights; the semantic projector and the no-object embedding
        are new and need training. Pair it with :meth:`ConcatProcessor.from_mask2former`.

        Args:
            checkpoint: any Mask2Former checkpoint.
            clip: a CLIP checkpoint, or any text encoder ``AutoModel`` loads.
            config_kwargs: further fields of :class:`ConcatConfig`, such as ``projector_layers`` or
                ``text_pooling``, which otherwise follows from the text tower's type.

        Raises:
            OSError: if a checkpoint is not found.
            ValueError: if a checkpoint is of another kind or lacks weights.
        """
        segmentor = load_whole(Mask2FormerForUniversalSegmentation, checkpoint, ("mask2former",)).model
        pooling = config_kwargs.pop("text_pooling", None)
        text_tower = load_text_tower(clip, pooling)
        pooling = infer_text_pooling(text_tower.config) if pooling is None else pooling
        config = ConcatConfig(
            segmentor_config=drop_provenance(segmentor.config),
            text_config=drop_provenance(text_tower.config),
            text_pooling=pooling,
            projection_dim=infer_text_width(text_tower.config, pooling),
            **config_kwargs,
        )
        model = cls(config)
        model.segmentor.load_state_dict(segmentor.state_dict())
        model.text_model.load_state_dict(text_tower.state_dict())
        return model


def _build_projector(hidden_dim: int, projection_dim: int, num_layers: int) -> nn.Module:
    if num_layers < 1:
        raise ValueError(f"projector_layers must be 1 or more, got {num_layers}")
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, projection_dim))
