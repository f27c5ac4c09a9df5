"""MobileNetV2 as a backbone: transformers ships the classifier and its body, but no feature pyramid.

Architecture: MobileNetV2 (arXiv:1801.04381). The features are those the detection literature taps: the last
block before each stride.
"""

import os
from typing import Any, ClassVar, Self

import torch
from transformers import MobileNetV2Config, MobileNetV2Model, MobileNetV2PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

STAGE_LAST_LAYERS = {"stage1": 1, "stage2": 4, "stage3": 11, "stage4": 15}
"""Stage → index of its last inverted residual block; strides 4, 8, 16 and 32."""

NOT_OF_A_BACKBONE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id")
"""What a classifier's config holds beyond the architecture."""


class MobileNetV2BackboneConfig(BackboneConfigMixin, MobileNetV2Config):
    """A :class:`~transformers.MobileNetV2Config` that also says which stages to return.

    Args:
        out_features: names among ``stage1`` … ``stage4`` (strides 4, 8, 16, 32); default all four.
        out_indices: the same as indices.
    """

    model_type = "zsseg-mobilenet_v2"

    def __post_init__(self, **kwargs: object) -> None:
        self.stage_names = list(STAGE_LAST_LAYERS)
        out_features = kwargs.pop("out_features", None)
        out_indices = kwargs.pop("out_indices", None)
        if out_features is None and out_indices is None:
            out_features = list(self.stage_names)
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)


class MobileNetV2Backbone(BackboneMixin, MobileNetV2PreTrainedModel):
    """MobileNetV2 (arXiv:1801.04381) returning feature maps at strides 4, 8, 16 and 32.

    Parameter names equal those of :class:`~transformers.MobileNetV2ForImageClassification`, so
    :meth:`from_image_classifier` reads its checkpoints and drops the classifier.
    """

    config_class = MobileNetV2BackboneConfig
    has_attentions = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"classifier\.", r"conv_1x1\."]

    def __init__(self, config: MobileNetV2BackboneConfig) -> None:
        super().__init__(config)
        self.mobilenet_v2 = MobileNetV2Model(config, add_pooling_layer=False)
        # The widening before the classifier is no feature map, and unused parameters upset data parallelism.
        self.mobilenet_v2.conv_1x1 = torch.nn.Identity()
        layers = self.mobilenet_v2.layer
        self.num_features = [
            layers[index].reduce_1x1.convolution.out_channels for index in STAGE_LAST_LAYERS.values()
        ]
        self.post_init()

    @classmethod
    def from_image_classifier(cls, checkpoint: str | os.PathLike[str], **config_kwargs: Any) -> Self:
        """Start from a MobileNetV2 checkpoint of transformers' own ``mobilenet_v2`` type.

        ``from_pretrained`` is for checkpoints of this class; for others it would warn of their model type.

        Args:
            checkpoint: folder or Hub id, such as ``google/mobilenet_v2_1.0_224``.
            config_kwargs: fields of :class:`MobileNetV2BackboneConfig`, such as ``out_features``.

        Raises:
            OSError: if nothing is found there.
            ValueError: if it is another architecture, or weights are missing.
        """
        settings = MobileNetV2Config.get_config_dict(checkpoint)[0]
        found = settings.pop("model_type", None)
        if found != MobileNetV2Config.model_type:
            raise ValueError(
                f"{str(checkpoint)!r} is a checkpoint of model type {found!r}, expected "
                f"{MobileNetV2Config.model_type!r}: use AutoBackbone for other backbones"
            )
        for name in NOT_OF_A_BACKBONE:
            settings.pop(name, None)
        config = MobileNetV2BackboneConfig(**{**settings, **config_kwargs})
        model, info = cls.from_pretrained(checkpoint, config=config, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(
                f"{str(checkpoint)!r} lacks {len(info['missing_keys'])} weights of {cls.__name__}, first "
                f"{sorted(info['missing_keys'])[:5]}: it is truncated or of another depth; download it again"
            )
        return model

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **_: object
    ) -> BackboneOutput:
        """Feature maps of the configured stages.

        Args:
            pixel_values: (B, 3, H, W).
            output_hidden_states: return every block's too; None asks the configuration.

        Returns:
            ``feature_maps``: one (B, C, H / stride, W / stride) tensor per stage in ``out_features``; and
            ``hidden_states``, one per block, on request.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.mobilenet_v2(
            pixel_values, output_hidden_states=True, return_dict=True
        ).hidden_states
        return BackboneOutput(
            feature_maps=tuple(hidden_states[STAGE_LAST_LAYERS[stage]] for stage in self.out_features),
            hidden_states=hidden_states if output_hidden_states else None,
        )
