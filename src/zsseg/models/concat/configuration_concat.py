"""Configuration of CONCAT (arXiv:2402.13697)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from zsseg.layers.mask_transformer import MaskTransformerConfig


@strict
class ConcatConfig(PreTrainedConfig):
    r"""Configuration of :class:`~zsseg.ConcatForPanopticSegmentation`.

    Args:
        segmentor_config: the mask transformer, as of :class:`~transformers.Mask2FormerConfig`, with any
            backbone of ``AutoBackbone``. Loss weights and point counts are read from it.
        text_config: the text tower saved in the checkpoint; None where text embeddings come precomputed.
        text_pooling: how the tower's tokens become one vector: ``"projection"`` (CLIP), ``"pooler"`` or
            ``"mean"``.
        projection_dim: D, the width of the joint text space.
        projector_layers: linear layers of the semantic projector d → D, 1 (default) or more, ReLU between.
        logit_scale: γ, the inverse temperature of the cosine logits.
        ignore_unknown_queries: in training, as of :class:`~zsseg.losses.set_criterion.SetCriterion`.
        no_object_std: standard deviation of the initial no-object embedding.

    ``logit_scale``, ``projector_layers`` and the learned no-object embedding are choices of ours where the
    paper is silent.
    """

    model_type = "zsseg-concat"
    sub_configs: ClassVar[dict[str, Any]] = {
        "segmentor_config": MaskTransformerConfig,
        "text_config": AutoConfig,
    }

    segmentor_config: Any = None
    text_config: Any = None
    text_pooling: str = "projection"
    projection_dim: int = 512
    projector_layers: int = 1
    logit_scale: float | int = 100.0
    ignore_unknown_queries: bool = False
    no_object_std: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.segmentor_config, PreTrainedConfig):
            self.segmentor_config = MaskTransformerConfig(**(self.segmentor_config or {}))
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)
        # A part loaded by itself brings its own dtype, and a part that keeps it does not follow the model to
        # another.
        for part in (self.segmentor_config, self.segmentor_config.backbone_config, self.text_config):
            if part is not None:
                part.dtype = None
