"""transformers' BackboneTesterMixin and ModelTesterMixin on the MobileNetV2 backbone."""

import unittest

import pytest
import torch

from testing.tiny_models import build_backbone_config
from testing.transformers_tests import expecting_failures, import_transformers_tests
from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone, MobileNetV2BackboneConfig

common = import_transformers_tests("test_modeling_common")
backbone_common = import_transformers_tests("test_backbone_common")

pytestmark = pytest.mark.slow

NO_TOKENS_IN = "a backbone takes pixels, not tokens"


class BackboneTester:
    """What transformers' tests ask of a model; (seq_length, hidden_size) is the first map's size."""

    batch_size = 2
    is_training = False
    num_hidden_layers = expected_num_hidden_layers = 16
    seq_length, hidden_size = 16, 24

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.randn(self.batch_size, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        return build_backbone_config("mobilenet_v2"), {"pixel_values": pixel_values}


@expecting_failures(
    {
        "test_config": "no stem, and all four stages by default: what a mask transformer takes",
        "test_num_layers_is_small": "the architecture has 16 blocks, whatever their width",
        "test_model_get_set_embeddings": NO_TOKENS_IN,
        "test_resize_tokens_embeddings": NO_TOKENS_IN,
        "test_retain_grad_hidden_states_attentions": "the first output of a backbone is a tuple of maps",
    }
)
class TestMobileNetV2Backbone(
    common.ModelTesterMixin, backbone_common.BackboneTesterMixin, unittest.TestCase
):
    all_model_classes = (MobileNetV2Backbone,)
    config_class = MobileNetV2BackboneConfig
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = BackboneTester()
