"""Configuration of CONCAT (arXiv:2402.13697)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from zsseg.layers.mask_transformer import MaskTransformerConfig
from zsseg.vocabulary import Vocabulary


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
        generator_type: what makes pseudo queries from text embeddings: ``"mlp"`` (trained by moment
            matching), ``"cvae"`` or ``"primitives"`` (PADing's); None for a checkpoint without a generator.
        generator_noise_dim: width of the noise that the generator draws.
        generator_hidden_dim: width of its hidden layers.
        generator_num_primitives: learned primitives of ``"primitives"``.
        memory_size: stored real queries, against which the model adapts to new labels without an image.
        known_labels: what it was trained on or adapted to, as typed: ``"car|automobile"`` has a synonym. They
            are what adaptation keeps; prediction knows nothing of them.
        known_stuff_labels: those of them that are stuff, by name.

    ``logit_scale``, ``projector_layers``, the learned no-object embedding and the stored queries are choices
    of ours where the paper is silent.
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
    generator_type: str | None = None
    generator_noise_dim: int = 64
    generator_hidden_dim: int = 256
    generator_num_primitives: int = 400
    memory_size: int = 0
    known_labels: list[str] | tuple[str, ...] = ()
    known_stuff_labels: list[str] | tuple[str, ...] = ()

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

    def set_known_labels(self, vocabulary: Vocabulary) -> None:
        """Record what the model was trained on or adapted to."""
        self.known_labels = [category.spelling for category in vocabulary]
        self.known_stuff_labels = [category.name for category in vocabulary if not category.is_thing]
