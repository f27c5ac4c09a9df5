"""transformers' ImageProcessingTestMixin on the families' PIL image processors."""

import unittest

import pytest

from testing.transformers_tests import expecting_failures, import_transformers_tests
from zsseg import ConcatImageProcessorPil, ScanImageProcessorPil

common = import_transformers_tests("test_image_processing_common")

pytestmark = pytest.mark.slow


class ImageProcessingTester(common.ImageProcessingTester):
    batch_size = 3
    num_channels = 3
    min_resolution = 30
    max_resolution = 80
    size = {"shortest_edge": 64, "longest_edge": 96}  # noqa: RUF012

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        # Their expected shapes know of no padding.
        return {"size": self.size, "size_divisor": 1}


EXPECTED_FAILURES = {
    "test_call_numpy_4_channels": "a picture is RGB; the processor opens others with load_image, which "
    "makes them so",
    "test_new_models_require_torchvision_backend": "it takes the folder of this file for the name of a model",
    "test_valid_kwargs_set": "one option more than transformers' own, size_divisor",
}


class ConcatImageProcessingTester(ImageProcessingTester):
    image_processing_classes = {"pil": ConcatImageProcessorPil}  # noqa: RUF012


class ScanImageProcessingTester(ImageProcessingTester):
    image_processing_classes = {"pil": ScanImageProcessorPil}  # noqa: RUF012


@expecting_failures(EXPECTED_FAILURES)
class TestConcatImageProcessorPil(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ConcatImageProcessingTester


@expecting_failures(EXPECTED_FAILURES)
class TestScanImageProcessorPil(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ScanImageProcessingTester
