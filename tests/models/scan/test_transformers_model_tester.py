"""transformers' ModelTesterMixin and ConfigTester on SCAN."""

import unittest

import pytest

from testing.tiny_models import build_clip_text_config, build_scan_config
from testing.transformers_model_tester import (
    EXPECTED_FAILURES,
    HIDDEN_STATES_OF_ALL_LAYERS,
    FamilyModelTests,
    ZeroShotSegmentationTester,
    configuration_common,
)
from testing.transformers_tests import expecting_failures
from zsseg import ScanConfig, ScanForSemanticSegmentation

pytestmark = pytest.mark.slow


@expecting_failures(
    EXPECTED_FAILURES
    | HIDDEN_STATES_OF_ALL_LAYERS
    | {
        "test_can_load_ignoring_mismatched_shapes": "it takes pixel_std, a list, for the spread of initial "
        "weights, and sets it to a number",
    }
)
class TestScan(FamilyModelTests, unittest.TestCase):
    all_model_classes = (ScanForSemanticSegmentation,)
    _is_composite = True
    # The loss knows no crops.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = ZeroShotSegmentationTester(
            build_scan_config, backbone="resnet", text_config=build_clip_text_config()
        )


class TestScanConfig(unittest.TestCase):
    def setUp(self):
        self.model_tester = None

    def test_config(self):
        configuration_common.ConfigTester(
            self,
            config_class=ScanConfig,
            has_text_modality=False,
            projection_dim=16,
            ensemble_weight=0.5,
            shift_layers=[1, 2],
            mode="in_vocab_only",
        ).run_common_tests()
