"""Configuration of SCAN (arXiv:2312.04089)."""

from typing import Any, ClassVar, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from zsseg.layers.mask_transformer import MaskTransformerConfig

ScanMode = Literal["ensemble", "in_vocab_only", "clip_only"]
SCAN_MODES: tuple[ScanMode, ...] = get_args(ScanMode)
OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@strict
class ScanConfig(PreTrainedConfig):
    r"""Configuration of :class:`~zsseg.ScanForSemanticSegmentation`.

    Defaults are those of SCAN-B, but for segmentor and towers: these have those of transformers.

    Args:
        segmentor_config: the proposal network, as of :class:`~transformers.Mask2FormerConfig`, with any
            backbone of ``AutoBackbone``. Loss weights and point counts are read from it.
        vision_config: CLIP's vision tower, as of :class:`~transformers.CLIPVisionConfig`; None for a
            checkpoint of mode ``"in_vocab_only"`` without semantic integration, which has no use for it.
        text_config: the text tower saved in the checkpoint; None where text embeddings come precomputed.
        text_pooling: how the tower's tokens become one vector, as in :class:`~zsseg.ConcatConfig`.
        projection_dim: D, the width of the joint space.
        mode: how queries are named. ``"in_vocab_only"``: by the proposal embeddings; ``"clip_only"``: by
            CLIP, from the masks cut out; ``"ensemble"``: by both.
        has_proposal_head: whether there are proposal embeddings. A model made of public parts has none; it
            is left with ``"clip_only"`` and with Mask2Former's own head, which says what is no object.
        proposal_hidden_dim: width of the proposal head's hidden layer.
        has_semantic_integration: whether proposal embeddings are calibrated by CLIP's features (the SIM).
        integration_layers: blocks of the vision tower, counted from 1, whose tokens are integrated.
        low_frequency_sigmas: σ of the low-frequency enhancement of each, in grid cells.
        has_low_frequency_enhancement: whether those tokens are enhanced first.
        integration_steps: cross-attentions of the proposal embeddings to the tokens.
        integration_heads: their heads, and those of the layers that follow.
        integration_encoder_layers: of the per-query layers that follow.
        integration_feedforward_dim: their hidden width.
        integration_dropout: in training.
        has_shifted_tower: whether the crops have a vision tower of their own, fine-tuned for contextual
            shift; without it they go through the frozen one.
        shift_layers: blocks, counted from 1, after which background patches of a crop are overwritten with
            the CLS token of the whole picture.
        shift_ratio: share of a crop's background patches that is overwritten; 0 does without.
        shift_seed: of the choice of those patches, where the call brings no generator.
        crop_mask_threshold: probability above which a pixel belongs to a crop's mask.
        crop_objectness_threshold: queries that are an object with a lower probability are not shown to CLIP
            and count for nothing in a semantic map; 0 shows all, as in the paper. No value up to the merge's
            ``threshold`` changes a panoptic result: the merge keeps no such query. Instances still list
            them, their labels alike.
        crop_batch_size: crops that go through the tower at a time; what bounds memory.
        ensemble_weight: w, the weight of CLIP: scores are p_in^(1 − w) · p_out^w.
        has_void_renormalization: whether the scores of a query sum to 1 − p(no-object), for large
            vocabularies.
        logit_scale: γ, the inverse temperature of the cosine logits.
        pixel_mean: of the normalisation of ``pixel_values``, per channel of pixels in [0, 1].
        pixel_std: of the same.
        clip_mean: of CLIP's normalisation.
        clip_std: of the same.
        keep_last_auxiliary_loss: whether the loss counts the decoder layer before the last; the official
            code loses it.
        ignore_unknown_queries: in training, as of :class:`~zsseg.losses.set_criterion.SetCriterion`.
        no_object_std: standard deviation of the initial no-object embedding.

    Raises:
        ValueError: if a mode lacks its parts, a layer lies beyond the tower's depth, or a number is out of
            range.
    """

    model_type = "zsseg-scan"
    sub_configs: ClassVar[dict[str, Any]] = {
        "segmentor_config": MaskTransformerConfig,
        "vision_config": CLIPVisionConfig,
        "text_config": AutoConfig,
    }

    segmentor_config: Any = None
    vision_config: Any = None
    text_config: Any = None
    text_pooling: str = "projection"
    projection_dim: int = 512
    mode: str = "ensemble"
    has_proposal_head: bool = True
    proposal_hidden_dim: int = 1024
    has_semantic_integration: bool = True
    integration_layers: list[int] | tuple[int, ...] = (6, 9, 12)
    low_frequency_sigmas: list[float | int] | tuple[float | int, ...] = (9.0, 7.0, 3.0)
    has_low_frequency_enhancement: bool = True
    integration_steps: int = 5
    integration_heads: int = 8
    integration_encoder_layers: int = 5
    integration_feedforward_dim: int = 2048
    integration_dropout: float | int = 0.1
    has_shifted_tower: bool = True
    shift_layers: list[int] | tuple[int, ...] = (1, 3, 5)
    shift_ratio: float | int = 0.05
    shift_seed: int = 0
    crop_mask_threshold: float | int = 0.4
    crop_objectness_threshold: float | int = 0.0
    crop_batch_size: int = 32
    ensemble_weight: float | int = 0.7
    has_void_renormalization: bool = False
    logit_scale: float | int = 100.0
    pixel_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    clip_mean: list[float] | tuple[float, ...] = OPENAI_CLIP_MEAN
    clip_std: list[float] | tuple[float, ...] = OPENAI_CLIP_STD
    keep_last_auxiliary_loss: bool = True
    ignore_unknown_queries: bool = False
    no_object_std: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.segmentor_config, PreTrainedConfig):
            self.segmentor_config = MaskTransformerConfig(**(self.segmentor_config or {}))
        if isinstance(self.vision_config, dict):
            self.vision_config = AutoConfig.for_model(
                **{"model_type": CLIPVisionConfig.model_type} | self.vision_config
            )
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)
        # A part loaded by itself brings its own dtype, and a part that keeps it does not follow the model to
        # another.
        segmentor = self.segmentor_config
        for part in (segmentor, segmentor.backbone_config, self.vision_config, self.text_config):
            if part is not None:
                part.dtype = None

    def check(self) -> None:
        """Check that the fields fit each other; the model does so when it is built.

        Raises:
            ValueError: if they do not.
        """
        self.check_mode(self.mode)
        if self.vision_config is None:
            if self.has_semantic_integration or self.has_shifted_tower:
                raise ValueError(
                    "semantic integration and the shifted tower need vision_config: give CLIP's, or set "
                    "has_semantic_integration and has_shifted_tower to False"
                )
        elif not isinstance(self.vision_config, CLIPVisionConfig):
            raise ValueError(
                f"vision_config must be that of a CLIP, of type 'clip_vision_model', got "
                f"{self.vision_config.model_type!r}"
            )
        elif self.vision_config.image_size % self.vision_config.patch_size:
            raise ValueError(
                f"the vision tower's image_size {self.vision_config.image_size} must be a multiple of its "
                f"patch_size {self.vision_config.patch_size}: masks are compared with whole patches"
            )
        elif self.vision_config.projection_dim != self.projection_dim:
            raise ValueError(
                f"the vision tower projects to {self.vision_config.projection_dim} numbers, but "
                f"projection_dim is {self.projection_dim}: take both towers from one CLIP"
            )
        if self.has_semantic_integration:
            if not self.has_proposal_head:
                raise ValueError(
                    "semantic integration calibrates proposal embeddings: has_proposal_head=True"
                )
            self._check_layers("integration_layers", self.integration_layers)
            if len(self.integration_layers) != len(self.low_frequency_sigmas):
                raise ValueError(
                    "low_frequency_sigmas must give one σ for each of the integration_layers, "
                    f"{len(self.integration_layers)}, got {list(self.low_frequency_sigmas)}"
                )
            if not min(self.low_frequency_sigmas) > 0:
                raise ValueError(f"low_frequency_sigmas must be positive, got {self.low_frequency_sigmas}")
            for name in ("integration_steps", "integration_heads", "integration_encoder_layers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
            if self.projection_dim % self.integration_heads:
                raise ValueError(
                    f"integration_heads must divide projection_dim, {self.projection_dim}, got "
                    f"{self.integration_heads}"
                )
        if self.vision_config is not None:
            self._check_layers("shift_layers", self.shift_layers)
        for name in ("shift_ratio", "crop_mask_threshold", "crop_objectness_threshold", "ensemble_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be positive, got {self.logit_scale}")
        if self.crop_batch_size < 1:
            raise ValueError(f"crop_batch_size must be 1 or more, got {self.crop_batch_size}")

    def check_mode(self, mode: str) -> None:
        """Check that a model of this configuration has the parts that a mode runs.

        Raises:
            ValueError: if the mode is unknown or needs other parts.
        """
        if mode not in SCAN_MODES:
            raise ValueError(f"mode must be one of {list(SCAN_MODES)}, got {mode!r}")
        if mode != "clip_only" and not self.has_proposal_head:
            raise ValueError(
                f"mode {mode!r} names by proposal embeddings, which this model has none of, only CLIP's view "
                "of the masks: use mode 'clip_only', or a trained SCAN"
            )
        if mode != "in_vocab_only" and self.vision_config is None:
            raise ValueError(
                f"mode {mode!r} shows masks to CLIP's vision tower, which this model is without: use mode "
                "'in_vocab_only', or give vision_config"
            )

    def _check_layers(self, name: str, layers: list[int] | tuple[int, ...]) -> None:
        depth = self.vision_config.num_hidden_layers
        if not layers or len(set(layers)) != len(layers) or not 1 <= min(layers) <= max(layers) <= depth:
            raise ValueError(
                f"{name} must be different blocks of the vision tower, counted from 1 to {depth}, got "
                f"{list(layers)}"
            )


def choose_scan_layers(num_layers: int) -> dict[str, tuple[int, ...]]:
    """The blocks of a vision tower that SCAN reads and shifts, as fields of :class:`~zsseg.ScanConfig`.

    The paper's for 12 and 24 blocks: tokens of the middle, of three quarters and of the end are integrated;
    patches are shifted behind every second block of the first five or nine.

    Args:
        num_layers: blocks of the tower.

    Raises:
        ValueError: if it has fewer than three.
    """
    if num_layers < 3:
        raise ValueError(f"semantic integration reads three blocks of the vision tower, got {num_layers}")
    quarters = (num_layers // 2, max(3 * num_layers // 4, num_layers // 2 + 1), num_layers)
    return {
        "integration_layers": quarters,
        "shift_layers": tuple(range(1, 3 * num_layers // 8 + 2, 2)),
    }


def choose_scan_sigmas(grid_size: int) -> tuple[float, ...]:
    """The σ of the low-frequency enhancement of three levels, for a CLIP's grid of so many cells a side.

    The paper's 9, 7 and 3 for grids of 14 and 16 cells a side; elsewhere as large in proportion to the grid.
    """
    scale = 1.0 if 14 <= grid_size <= 16 else grid_size / 14
    return tuple(round(sigma * scale, 2) for sigma in (9.0, 7.0, 3.0))
