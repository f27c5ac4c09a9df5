"""SCAN: mask proposals named by CLIP-calibrated embeddings and by CLIP itself (arXiv:2312.04089)."""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
)
from transformers import initialization as init
from transformers.utils import can_return_tuple

from zsseg.layers.mask_transformer import MaskTransformerFeatures, compute_mask_transformer_features
from zsseg.layers.open_vocabulary_classifier import compute_cosine_class_logits
from zsseg.layers.vision_language import select_tower_config, without_load_report
from zsseg.losses.set_criterion import SetCriterion
from zsseg.models.base import (
    ZeroShotSegmentationOutput,
    ZeroShotSegmentationPreTrainedModel,
    compute_valid_fractions,
    load_whole,
)
from zsseg.models.scan.configuration_scan import ScanConfig, choose_scan_layers, choose_scan_sigmas
from zsseg.models.scan.contextual_shift import (
    MaskCrops,
    PictureContext,
    choose_shifted_patches,
    encode_context,
    encode_shifted,
    find_background_patches,
    find_sizes,
    iterate_mask_crops,
    resize_whole_pictures,
)
from zsseg.models.scan.semantic_integration import SemanticIntegration
from zsseg.models.text_tower import TextTowerMixin, drop_provenance, load_text_tower

CLIP_MODEL_TYPES = ("clip", "clip_vision_model")
"""Of checkpoints with a vision tower."""
SMALLEST_SCORE = 1e-30
"""Of a label, so that its logit is finite."""
SMALLEST_OBJECTNESS = 1e-12
"""Of a query. Where p(no-object) rounds to 1 its scores need not vanish: they are powers of small numbers."""


class ProposalHead(nn.Module):
    """Layer-normed queries → proposal embeddings in the joint space: linear, ReLU, linear."""

    def __init__(self, query_dim: int, hidden_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(query_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, queries: Tensor) -> Tensor:
        """(..., d) → (..., D)."""
        return self.fc2(F.relu(self.fc1(queries)))


@dataclass(frozen=True)
class ClipNames:
    """What CLIP says of the masks cut out.

    Attributes:
        logits: (B, Q, K) float32, without no-object; 0 where there is no crop.
        is_valid: (B, Q) bool, whether a query's mask is not empty.
    """

    logits: Tensor
    is_valid: Tensor


class ScanPreTrainedModel(ZeroShotSegmentationPreTrainedModel):
    """Weight initialisation and loading shared by SCAN's models."""

    config: ScanConfig
    config_class = ScanConfig
    base_model_prefix = "segmentor"
    frozen_modules: ClassVar[tuple[str, ...]] = ("text_model", "context_tower")
    unused_with_text_embeds: ClassVar[tuple[str, ...]] = ("text_model",)
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ScanForSemanticSegmentation):
            if module.no_object_embedding is not None:
                init.normal_(module.no_object_embedding, std=self.config.no_object_std)
            if module.shifted_logit_scale is not None:
                init.constant_(module.shifted_logit_scale, math.log(self.config.logit_scale))
        elif isinstance(module, SemanticIntegration):
            init.constant_(module.cls_scale, 0.1)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class ScanForSemanticSegmentation(TextTowerMixin, ScanPreTrainedModel):
    """Proposal network, semantic integration and contextual-shift CLIP (arXiv:2312.04089).

    A query is named twice: by its proposal embedding, calibrated by the frozen CLIP's view of the whole
    picture; and by a CLIP that sees its mask cut out. ``config.mode`` says which names count. Things are told
    apart by their queries, so the panoptic task is served too, through the shared merge.

    Labels are inputs; no class is stored. The text tower and the frozen vision tower take no gradients.
    """

    def __init__(self, config: ScanConfig) -> None:
        super().__init__(config)
        config.check()
        segmentor_config = config.segmentor_config
        query_dim, embed_dim = segmentor_config.hidden_dim, config.projection_dim
        self.segmentor = Mask2FormerModel(segmentor_config)
        self.proposal_head: ProposalHead | None = None
        self.no_object_embedding: nn.Parameter | None = None
        self.objectness_head: nn.Linear | None = None
        if config.has_proposal_head:
            self.proposal_head = ProposalHead(query_dim, config.proposal_hidden_dim, embed_dim)
            self.no_object_embedding = nn.Parameter(torch.empty(embed_dim))
        else:
            # Mask2Former's own classes; the last is no-object.
            self.objectness_head = nn.Linear(query_dim, segmentor_config.num_labels + 1)
        self.sim: SemanticIntegration | None = None
        if config.has_semantic_integration:
            self.sim = SemanticIntegration(
                config.vision_config.hidden_size,
                embed_dim,
                sigmas=config.low_frequency_sigmas,
                has_low_frequency_enhancement=config.has_low_frequency_enhancement,
                num_steps=config.integration_steps,
                num_heads=config.integration_heads,
                num_encoder_layers=config.integration_encoder_layers,
                feedforward_dim=config.integration_feedforward_dim,
                dropout=config.integration_dropout,
            )
        self.build_text_model()
        self.context_tower: Any = None
        if config.vision_config is not None:
            self.context_tower = CLIPVisionModelWithProjection(config.vision_config)
        self.shifted_tower: Any = None
        self.shifted_logit_scale: nn.Parameter | None = None
        if config.has_shifted_tower:
            self.shifted_tower = CLIPVisionModelWithProjection(copy.deepcopy(config.vision_config))
            # Of its training alone, as a logarithm.
            self.shifted_logit_scale = nn.Parameter(torch.empty(1))
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
        mode: str | None = None,
        generator: torch.Generator | None = None,
        is_shifted: Tensor | None = None,
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
            mode: ``"ensemble"``, ``"in_vocab_only"`` or ``"clip_only"``; None asks the configuration. With
                labels it is always ``"in_vocab_only"``: the loss knows no crops.
            generator: chooses the shifted patches; None seeds one with ``config.shift_seed`` for every
                picture, so that a picture's result depends on nothing else.
            is_shifted: (B, Q, layers, G²) bool, the shifted patches themselves.
            output_hidden_states: return the queries of every decoder layer; None asks the configuration.
            output_attentions: return their attention to each other; None asks the configuration.

        Returns:
            Logits, embeddings and, with labels, the loss over all decoder layers. Where CLIP names too,
            softmax of the class logits times ``query_weights`` gives the scores S of Sec. 3.3, of which a
            semantic map is made.

        Raises:
            ValueError: if neither or both of texts and embeddings are given, only one of ``mask_labels`` and
                ``class_labels``, the mode lacks its parts or shifts nothing, or shapes do not fit.
        """
        if (mask_labels is None) != (class_labels is None):
            missing = "mask_labels" if mask_labels is None else "class_labels"
            raise ValueError(f"the loss needs mask_labels and class_labels, but {missing} is missing")
        if mask_labels is not None:
            if self.proposal_head is None:
                raise ValueError(
                    "the loss names proposal embeddings, which this model has none of: train one that "
                    "from_parts makes with mode='ensemble'"
                )
            mode = "in_vocab_only"
        mode = self.config.mode if mode is None else mode
        self.config.check_mode(mode)
        if is_shifted is not None and mode == "in_vocab_only":
            raise ValueError(
                "mode 'in_vocab_only' looks at no crops, so there is nothing to shift: leave is_shifted out"
            )
        text_embeds = self.resolve_text_embeds(text_embeds, input_ids, attention_mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions

        features = compute_mask_transformer_features(
            self.segmentor, pixel_values, output_attentions=output_attentions
        )
        valid_fractions = compute_valid_fractions(pixel_values, pixel_mask)
        batch_size, _, height, width = pixel_values.shape
        sizes = [(height, width)] * batch_size if pixel_mask is None else find_sizes(pixel_mask)
        clip_pixels, context = None, None
        if self.sim is not None or mode != "in_vocab_only":
            clip_pixels = self.normalise_for_clip(pixel_values, pixel_mask)
            context = self.encode_context(clip_pixels, sizes)

        proposal_embeds, class_logits, loss, losses, matches = None, None, None, None, None
        if self.proposal_head is not None:
            with_all_layers = mask_labels is not None
            embeds = self._compute_proposal_embeds(features, context, with_all_layers=with_all_layers)
            logits = [self.compute_class_logits(each, text_embeds, text_label_ids) for each in embeds]
            proposal_embeds, class_logits = embeds[-1], logits[-1]
            if mask_labels is not None and class_labels is not None:
                counted = self._select_counted_layers(len(logits))
                criterion = self.criterion(
                    [logits[layer] for layer in counted],
                    [features.mask_logits[layer] for layer in counted],
                    mask_labels,
                    class_labels,
                    label_mask,
                )
                loss, losses, matches = criterion.loss, criterion.losses, criterion.matches

        query_weights = None
        if mode != "in_vocab_only" and clip_pixels is not None and context is not None:
            if class_logits is not None:
                no_object = class_logits.softmax(dim=-1)[..., -1]
            else:
                assert self.objectness_head is not None
                no_object = self.objectness_head(features.query_embeds[-1]).float().softmax(dim=-1)[..., -1]
            is_object = 1 - no_object >= self.config.crop_objectness_threshold
            names = self.name_by_clip(
                clip_pixels, context, features.mask_logits[-1], sizes, text_embeds, text_label_ids,
                generator=generator, is_shifted=is_shifted, is_wanted=is_object,
            )  # fmt: skip
            if mode == "ensemble":
                assert class_logits is not None
                scores = compute_ensemble_scores(
                    class_logits, names.logits, names.is_valid, clip_weight=self.config.ensemble_weight
                )
            else:
                scores = compute_clip_probabilities(names.logits, names.is_valid)
                # CLIP has no word for no-object.
                scores = scores * (1 - no_object)[..., None]
            scores = torch.where(is_object[..., None], scores, 0.0)
            class_logits, query_weights = convert_scores_to_logits(scores, no_object)
            if self.config.has_void_renormalization:
                query_weights = is_object.float()

        return ZeroShotSegmentationOutput(
            loss=loss,
            class_queries_logits=class_logits,
            masks_queries_logits=features.mask_logits[-1],
            query_embeds=features.query_embeds[-1],
            semantic_embeds=proposal_embeds,
            pixel_embeds=features.pixel_embeds,
            query_weights=query_weights,
            valid_fractions=valid_fractions,
            losses=losses,
            matches=matches,
            hidden_states=features.hidden_states if output_hidden_states else None,
            attentions=features.attentions,
        )

    def normalise_for_clip(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """The same pictures in CLIP's normalisation, 0 on padding: (B, 3, H, W) float32 or more."""
        config = self.config
        dtype = torch.promote_types(pixel_values.dtype, torch.float32)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=pixel_values.device)[:, None, None]

        pixels = pixel_values.to(dtype) * column(config.pixel_std) + column(config.pixel_mean)
        pixels = (pixels - column(config.clip_mean)) / column(config.clip_std)
        return pixels if pixel_mask is None else pixels * pixel_mask[:, None].to(pixels.dtype)

    def encode_context(self, clip_pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> PictureContext:
        """The frozen CLIP's view of whole pictures.

        Args:
            clip_pixels: (B, 3, H, W), of :meth:`normalise_for_clip`.
            sizes: per picture its (height, width) without padding.
        """
        with torch.no_grad():
            whole = resize_whole_pictures(clip_pixels, sizes, self.config.vision_config.image_size)
            return encode_context(self.context_tower, whole)

    def compute_class_logits(
        self, proposal_embeds: Tensor, text_embeds: Tensor, text_label_ids: Tensor | None = None
    ) -> Tensor:
        """γ · cos(proposal, [text, ∅]): (B, Q, D) proposal embeddings → (B, Q, K + 1) float32 logits."""
        return compute_cosine_class_logits(
            proposal_embeds,
            text_embeds,
            logit_scale=self.config.logit_scale,
            text_label_ids=text_label_ids,
            no_object_embedding=self.no_object_embedding,
        )

    def encode_crops(
        self, crops: MaskCrops, context: PictureContext, is_shifted: Tensor | None = None
    ) -> Tensor:
        """Embed masks cut out.

        Args:
            crops: N of them.
            context: of their pictures.
            is_shifted: (N, layers, G²) bool, the patches that become the picture's CLS token.

        Returns:
            (N, D), not normalised.
        """
        tower = self.context_tower if self.shifted_tower is None else self.shifted_tower
        if is_shifted is None:
            return encode_shifted(tower, crops.pixel_values)
        return encode_shifted(
            tower,
            crops.pixel_values,
            shift_layers=tuple(self.config.shift_layers),
            context_cls=context.select_cls(self.config.shift_layers)[crops.image_indices],
            is_shifted=is_shifted,
        )

    def attach_shifted_tower(self) -> None:
        """Give the crops a vision tower of their own, to be fine-tuned: a copy of the frozen one.

        Raises:
            ValueError: if there is none to copy, or it has one already.
        """
        if self.context_tower is None or self.shifted_tower is not None:
            found = "no vision tower" if self.context_tower is None else "a shifted tower already"
            raise ValueError(f"expected a model with a frozen vision tower alone, got one with {found}")
        self.config.has_shifted_tower = True
        self.shifted_tower = copy.deepcopy(self.context_tower).requires_grad_(True)
        scale = torch.tensor([math.log(self.config.logit_scale)], device=self.device)
        self.shifted_logit_scale = nn.Parameter(scale)

    def choose_shifted(self, crops: MaskCrops, priorities: Tensor) -> Tensor:
        """Background patches of crops to shift.

        Args:
            crops: N of them.
            priorities: (N, layers, G²) random numbers; the lowest are taken.

        Returns:
            (N, layers, G²) bool.
        """
        is_background = find_background_patches(crops.masks, self.config.vision_config.patch_size)
        return choose_shifted_patches(is_background, self.config.shift_ratio, priorities)

    def _compute_proposal_embeds(
        self, features: MaskTransformerFeatures, context: PictureContext | None, *, with_all_layers: bool
    ) -> list[Tensor]:
        """Per decoder layer, or of the last one alone, (B, Q, D)."""
        assert self.proposal_head is not None
        layers = features.query_embeds if with_all_layers else features.query_embeds[-1:]
        # Queries do not mix from here on, so those of all layers go through together.
        embeds = self.proposal_head(torch.cat(layers, dim=1))
        if self.sim is not None and context is not None:
            tokens = context.select_grids(self.config.integration_layers)
            embeds = self.sim(embeds, tokens, context.image_embeds)
        return list(embeds.chunk(len(layers), dim=1))

    def _select_counted_layers(self, num_layers: int) -> list[int]:
        layers = list(range(num_layers))
        return layers if self.config.keep_last_auxiliary_loss else layers[:-2] + layers[-1:]

    def name_by_clip(
        self,
        clip_pixels: Tensor,
        context: PictureContext,
        mask_logits: Tensor,
        sizes: Sequence[tuple[int, int]],
        text_embeds: Tensor,
        text_label_ids: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        is_shifted: Tensor | None = None,
        is_wanted: Tensor | None = None,
    ) -> ClipNames:
        """Name masks cut out of their pictures.

        Args:
            clip_pixels: (B, 3, H, W), of :meth:`normalise_for_clip`.
            context: of the same pictures.
            mask_logits: (B, Q, h, w) before the sigmoid.
            sizes: per picture its (height, width) without padding.
            text_embeds: (T, D).
            text_label_ids: (T,) label of each text; None when text i is label i.
            generator: as for :meth:`forward`.
            is_shifted: as for :meth:`forward`.
            is_wanted: (B, Q) bool, the masks to show to CLIP; None shows all.

        Raises:
            ValueError: if ``is_shifted`` is of another shape.
        """
        config = self.config
        batch_size, num_queries = mask_logits.shape[:2]
        num_patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        shape = (batch_size, num_queries, len(config.shift_layers), num_patches)
        if is_shifted is not None and (is_shifted.shape != shape or is_shifted.dtype != torch.bool):
            raise ValueError(
                "is_shifted must be (pictures, queries, shift_layers, patches of a crop), "
                f"{shape} of torch.bool, got {tuple(is_shifted.shape)} of {is_shifted.dtype}"
            )
        if is_shifted is not None:
            is_shifted = is_shifted.to(mask_logits.device)
        priorities = None
        if is_shifted is None and config.shift_ratio > 0:
            priorities = self._draw_priorities(shape, generator).to(mask_logits.device)
        # Of the embedding 0 all logits are 0.
        logits = compute_cosine_class_logits(
            mask_logits.new_zeros(batch_size, num_queries, config.projection_dim),
            text_embeds,
            logit_scale=config.logit_scale,
            text_label_ids=text_label_ids,
        )
        is_valid = torch.zeros(batch_size, num_queries, dtype=torch.bool, device=mask_logits.device)
        for crops in iterate_mask_crops(
            clip_pixels,
            mask_logits,
            sizes,
            threshold=config.crop_mask_threshold,
            size=config.vision_config.image_size,
            batch_size=config.crop_batch_size,
            is_wanted=is_wanted,
        ):
            rows = (crops.image_indices, crops.query_indices)
            chosen = None if is_shifted is None else is_shifted[rows]
            if priorities is not None:
                chosen = self.choose_shifted(crops, priorities[rows])
            logits[rows] = compute_cosine_class_logits(
                self.encode_crops(crops, context, chosen),
                text_embeds,
                logit_scale=config.logit_scale,
                text_label_ids=text_label_ids,
            )
            is_valid[rows] = True
        return ClipNames(logits, is_valid)

    def _draw_priorities(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            return torch.rand(shape, generator=generator, device=generator.device)
        # The same for every picture, whichever batch it comes in.
        own = torch.Generator().manual_seed(self.config.shift_seed)
        return torch.rand(shape[1:], generator=own).expand(shape)

    def check_exportable(self) -> None:
        """Check that a prediction cuts no masks out: a graph of fixed shapes cannot.

        Raises:
            ValueError: if ``config.mode`` is another than ``"in_vocab_only"``.
        """
        if self.config.mode != "in_vocab_only":
            raise ValueError(
                f"a model of mode {self.config.mode!r} cuts masks out, as many and as large as they come, "
                "which no exported graph does: set config.mode to 'in_vocab_only' if it has a proposal head"
            )

    @classmethod
    def from_parts(cls, *, mask2former: str, clip: str, mode: str = "ensemble", **config_kwargs: Any) -> Self:
        """Put a Mask2Former and a CLIP together, each on the Hub or on disk.

        With ``mode="clip_only"`` the result works as it is, without training: Mask2Former proposes masks and
        says which are no object, CLIP names them. In the other modes the proposal head, the semantic
        integration and the no-object embedding are new and need training.

        Args:
            mask2former: any Mask2Former checkpoint with an image processor.
            clip: a CLIP checkpoint of transformers with an image processor; one of open_clip is converted
                first, by ``conversion_scripts/convert_open_clip_to_zsseg.py``.
            mode: of the configuration.
            config_kwargs: further fields of :class:`ScanConfig`. Which blocks of the tower are read and
                shifted follows from its depth otherwise, and σ from its grid.

        Raises:
            TypeError: if the configuration has no such field.
            OSError: if a checkpoint is not found.
            ValueError: if a checkpoint is of another kind or lacks weights, or fields do not fit.
        """
        if unknown := sorted(config_kwargs.keys() - {field.name for field in dataclasses.fields(ScanConfig)}):
            raise TypeError(f"ScanConfig has no fields {unknown}: check their spelling")
        parts = load_whole(Mask2FormerForUniversalSegmentation, mask2former, ("mask2former",))
        text_tower = load_text_tower(clip)
        vision_tower = load_vision_tower(clip)
        pixels = AutoImageProcessor.from_pretrained(mask2former, backend="pil")
        clip_pixels = AutoImageProcessor.from_pretrained(clip, backend="pil")
        is_ready = mode == "clip_only"
        fields = {
            "has_proposal_head": not is_ready,
            "has_semantic_integration": not is_ready,
            "has_shifted_tower": False,
            "pixel_mean": tuple(pixels.image_mean),
            "pixel_std": tuple(pixels.image_std),
            "clip_mean": tuple(clip_pixels.image_mean),
            "clip_std": tuple(clip_pixels.image_std),
            "projection_dim": vision_tower.config.projection_dim,
        }
        fields |= _choose_by_tower(vision_tower.config, config_kwargs)
        # The number of its classes shapes Mask2Former's head; which they are is nobody's business here.
        segmentor_settings = drop_provenance(parts.config) | {"num_labels": parts.config.num_labels}
        config = ScanConfig(
            mode=mode,
            segmentor_config=segmentor_settings,
            vision_config=drop_provenance(vision_tower.config),
            text_config=drop_provenance(text_tower.config),
            **fields | config_kwargs,
        )
        model = cls(config)
        model.segmentor.load_state_dict(parts.model.state_dict())
        model.text_model.load_state_dict(text_tower.state_dict())
        model.context_tower.load_state_dict(vision_tower.state_dict())
        if model.shifted_tower is not None:
            model.shifted_tower.load_state_dict(vision_tower.state_dict())
        if model.objectness_head is not None:
            model.objectness_head.load_state_dict(parts.class_predictor.state_dict())
        return model.eval()


def _choose_by_tower(vision_config: CLIPVisionConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that follow from the depth and the grid of a vision tower, where they are not given."""
    chosen: dict[str, Any] = {}
    if not {"integration_layers", "shift_layers"} <= given.keys():
        chosen |= choose_scan_layers(vision_config.num_hidden_layers)
    if "integration_layers" not in given:
        chosen["low_frequency_sigmas"] = choose_scan_sigmas(
            vision_config.image_size // vision_config.patch_size
        )
    return chosen


def compute_ensemble_scores(
    class_logits: Tensor, clip_logits: Tensor, is_valid: Tensor, *, clip_weight: float
) -> Tensor:
    """S = p_in^(1 − w) · p_out^w, what both names say of every label.

    Args:
        class_logits: (B, Q, K + 1) of the proposal embeddings, no-object last: p_in is their softmax without
            that column.
        clip_logits: (B, Q, K) of the masks cut out: p_out is their softmax.
        is_valid: (B, Q) bool; where it is false the mask is empty, and p_out is 1 for every label.
        clip_weight: w, in [0, 1].

    Returns:
        (B, Q, K), at most 1 each.

    Reference:
        SCAN, Sec. 3.3 (arXiv:2312.04089).
    """
    in_vocabulary = class_logits.softmax(dim=-1)[..., :-1]
    return (
        in_vocabulary ** (1 - clip_weight) * compute_clip_probabilities(clip_logits, is_valid) ** clip_weight
    )


def compute_clip_probabilities(clip_logits: Tensor, is_valid: Tensor) -> Tensor:
    """p_out: softmax over (B, Q, K) logits, and 1 for every label where (B, Q) ``is_valid`` is false."""
    return torch.where(is_valid[..., None], clip_logits.softmax(dim=-1), 1.0)


def convert_scores_to_logits(scores: Tensor, no_object: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of labels as class logits, with what else is needed to get the scores back.

    The logits say how likely a query is an object, and how its scores share that among the labels: the merge
    into segments works on these. Softmax of the logits times the weights gives the scores, as a semantic map
    adds them up. With weights of 1 this is the paper's renormalisation of void.

    Args:
        scores: (B, Q, K), 0 or more.
        no_object: (B, Q), the probability that a query is none.

    Returns:
        (B, Q, K + 1) logits and (B, Q) weights.
    """
    is_object = (1 - no_object).clamp(min=SMALLEST_OBJECTNESS)
    positive = scores.clamp(min=SMALLEST_SCORE)
    shares = positive / positive.sum(dim=-1, keepdim=True)
    # Multiplied as logarithms: the product may be too small for float32.
    labels = shares.log() + is_object.log()[..., None]
    logits = torch.cat([labels, no_object.clamp(min=SMALLEST_SCORE).log()[..., None]], dim=-1)
    return logits, scores.sum(dim=-1) / is_object


def load_vision_tower(name_or_path: str) -> CLIPVisionModelWithProjection:
    """The pretrained vision tower of a CLIP checkpoint.

    Raises:
        OSError: if nothing is found there.
        ValueError: if the checkpoint is no CLIP of transformers, or lacks its weights.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    is_clip = config.model_type in CLIP_MODEL_TYPES
    with without_load_report():
        return load_whole(
            CLIPVisionModelWithProjection,
            name_or_path,
            CLIP_MODEL_TYPES,
            config=select_tower_config(config, "vision_config") if is_clip else None,
        )
