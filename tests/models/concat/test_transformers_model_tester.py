"""transformers' ModelTesterMixin and ConfigTester on CONCAT."""

import unittest

import pytest

from testing.tiny_models import build_clip_text_config, build_config
from testing.transformers_model_tester import (
    EXPECTED_FAILURES,
    HIDDEN_STATES_OF_ALL_LAYERS,
    FamilyModelTests,
    ZeroShotSegmentationTester,
    configuration_common,
)
from testing.transformers_tests import expecting_failures
from zsseg import ConcatConfig, ConcatForPanopticSegmentation

pytestmark = pytest.mark.slow


@expecting_failures(EXPECTED_FAILURES)
class TestConcatByEmbeddings(FamilyModelTests, unittest.TestCase):
    all_model_classes = (ConcatForPanopticSegmentation,)

    def setUp(self):
        self.model_tester = ZeroShotSegmentationTester(build_config, backbone="resnet")


@expecting_failures(EXPECTED_FAILURES | HIDDEN_STATES_OF_ALL_LAYERS)
class TestConcatByWords(FamilyModelTests, unittest.TestCase):
    all_model_classes = (ConcatForPanopticSegmentation,)
    _is_composite = True
    # The generator learns from names, not pictures, and Mask2Former leaves a norm of Swin's unused.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = ZeroShotSegmentationTester(
            build_config,
            backbone="swin",
            text_config=build_clip_text_config(),
            generator_type="mlp",
            memory_size=3,
        )


class TestConcatConfig(unittest.TestCase):
    def setUp(self):
        self.model_tester = None

    def test_config(self):
        configuration_common.ConfigTester(
            self,
            config_class=ConcatConfig,
            has_text_modality=False,
            projection_dim=16,
            logit_scale=50.0,
            known_labels=["road", "car|automobile"],
        ).run_common_tests()
