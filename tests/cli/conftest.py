"""What the tests of the commands share: pictures on disk and a way to run a command."""

import logging
from dataclasses import dataclass

import pytest
from PIL import Image
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from testing.tiny_models import build_picture, save_finding_concat


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run():
    """Run ``zsseg`` with these arguments in this process."""

    def run(*arguments):
        from zsseg.cli.main import app

        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    verbosity = transformers_logging.get_verbosity()
    yield run
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()
    assert not logging.getLogger("zsseg").handlers


def build_photos():
    """Three pictures of two sizes."""
    return [build_picture(*size, seed=seed) for seed, size in enumerate([(48, 64), (60, 40), (48, 64)])]


@pytest.fixture
def photos(tmp_path):
    """A folder of the three pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, pixels in enumerate(build_photos()):
        Image.fromarray(pixels).save(folder / f"street{index}.png")
    return folder


@pytest.fixture(scope="session")
def finding_checkpoint(tmp_path_factory):
    """CONCAT of random weights, with a text tower, that finds some label in every query of the photos."""
    folder = tmp_path_factory.mktemp("finding")
    save_finding_concat(folder, build_photos())
    return folder
