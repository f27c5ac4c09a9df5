"""What the tests of publishing share: checkpoints that may be changed and their evaluations."""

import shutil

import pytest

from testing.evaluation_reports import write_evaluation
from zsseg.publishing.card_facts import CardFacts


@pytest.fixture
def checkpoint(concat_checkpoint, tmp_path):
    """One that a test may change."""
    return shutil.copytree(concat_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def evaluation(checkpoint, tmp_path):
    return write_evaluation(tmp_path / "results.json", checkpoint)


@pytest.fixture
def facts():
    return CardFacts(license="apache-2.0", training_data="Streets drawn by hand.")
