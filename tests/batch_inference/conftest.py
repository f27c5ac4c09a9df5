"""What the tests of batch inference share: pictures, a checkpoint, and Ray on this machine alone."""

import os

import numpy as np
import pytest
from PIL import Image

from testing.tiny_models import build_picture, save_finding_concat

# Ray reads both when it is imported: nothing leaves the loopback interface.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SIZES = [(48, 64), (60, 40), (48, 64), (33, 64), (64, 33)]


def build_pictures():
    return [build_picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="session")
def finding_checkpoint(tmp_path_factory):
    """CONCAT of random weights that finds segments in the pictures."""
    folder = tmp_path_factory.mktemp("finding")
    save_finding_concat(folder, build_pictures()[:3])
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures of several sizes, and what they hold."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, pixels in enumerate(build_pictures()):
        Image.fromarray(pixels).save(folder / f"street{index}.png")
    return folder


@pytest.fixture
def assert_shows():
    """A picture's pixels are those of a file."""

    def check(image, path):
        with Image.open(path) as expected:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))

    return check
