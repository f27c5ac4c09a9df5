import pytest
from convert_mask2former_detectron2_to_zsseg import convert
from convert_scan_original_to_zsseg import convert_size
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from testing.detectron2_checkpoints import build_mask2former, save_pkl, save_pth
from testing.scan_checkpoints import build_scan, build_size, save_tokenizer
from zsseg.cli.main import app

CARD = ("--license", "mit", "--training-data", "Streets drawn by hand.")


@pytest.fixture
def converted(tmp_path, embeddings_file):
    save_pkl(build_mask2former(), tmp_path / "model_final.pkl")
    convert(
        tmp_path / "model_final.pkl", tmp_path / "converted", text_embeddings=embeddings_file, verify=True
    )
    return tmp_path / "converted"


@pytest.fixture
def publish(tmp_path):
    verbosity = transformers_logging.get_verbosity()
    yield lambda folder, ready, *options: CliRunner().invoke(
        app, ["publish", str(folder), "user/name", *options, "--dry-run", str(tmp_path / ready)]
    )
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


def test_a_converted_checkpoint_is_published_with_its_origin(converted, publish, tmp_path):
    outcome = publish(converted, "ready", *CARD)
    assert outcome.exit_code == 0, outcome.output
    ready = tmp_path / "ready"
    assert (ready / "conversion.json").read_bytes() == (converted / "conversion.json").read_bytes()
    card = (ready / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "Streets drawn by hand." in card
    origin = card.partition("## Origin")[2].partition("## Training data")[0]
    for text in (
        "from `model_final.pkl` (SHA-256",
        "never a zero-shot number",
        "are new and random",
        "| masks |",
    ):
        assert text in origin
        assert text in (converted / "README.md").read_text(encoding="utf-8")
    assert "zsseg-conversion" not in card

    # From then on it is a card like any other: what is edited stays.
    (ready / "README.md").write_text(card.replace("are new and random", "were trained"), encoding="utf-8")
    outcome = publish(ready, "again")
    assert outcome.exit_code == 0, outcome.output
    again = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert "were trained" in again
    assert "never a zero-shot number" in again


def test_a_converted_scan_is_published_with_its_licence(tmp_path, publish):
    source = build_scan()
    save_pth(source, tmp_path / "SCAN.pth")
    save_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "converted"
    convert_size(tmp_path / "SCAN.pth", folder, build_size(source), str(tmp_path / "tokenizer"), verify=True)
    outcome = publish(folder, "ready", "--license", "cc-by-nc-4.0", "--training-data", "COCO-Stuff.")
    assert outcome.exit_code == 0, outcome.output
    card = (tmp_path / "ready" / "README.md").read_text(encoding="utf-8")
    origin = card.partition("## Origin")[2].partition("## Training data")[0]
    for text in ("from `SCAN.pth` (SHA-256", "under CC BY-NC 4.0", "no zero-shot number", "| class logits |"):
        assert text in origin
    assert "are new and random" not in card


def test_figures_and_cards_of_others_are_refused(converted, publish):
    card = converted / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("are new and random", "reach 99.2 PQ"), encoding="utf-8")
    outcome = publish(converted, "ready", *CARD)
    assert outcome.exit_code == 1
    assert "99.2" in outcome.stderr
    # Without the converter's marks, somebody wrote it, and it is not replaced.
    card.write_text(text.replace("<!-- zsseg-conversion -->", ""), encoding="utf-8")
    outcome = publish(converted, "ready", "--license", "mit")
    assert outcome.exit_code == 1
    assert "must hold the line <!-- zsseg-usage -->" in outcome.stderr
