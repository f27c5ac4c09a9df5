import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from testing.evaluation_reports import AVERAGES, PER_CLASS, build_evaluation_report, compute_digest
from testing.tiny_models import build_bank, build_clip_text_config, build_model, build_processor
from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.evaluations import load_evaluations
from zsseg.publishing.published_card import (
    NO_EVALUATION,
    build_published_card,
    load_family_text,
    update_published_card,
)
from zsseg.registration import FAMILIES

DIGEST = "a" * 64
FACTS = CardFacts(
    license="other",
    license_name="own licence",
    license_link="https://example.org/licence",
    training_data="Streets drawn by hand.",
    training_data_license="cc0-1.0",
    title="Streets by words",
    limits="Not for driving.",
)


@pytest.fixture
def evaluations(tmp_path):
    build_evaluation_report(DIGEST).save(tmp_path / "results.json")
    return load_evaluations([tmp_path / "results.json"], DIGEST)


@pytest.fixture(scope="module")
def model():
    return build_model(text_config=build_clip_text_config())


def build_card(model, evaluations, processor=None, **changes):
    facts = FACTS.override(CardFacts(**changes))
    return build_published_card(model, processor or build_processor(), facts, evaluations, "user/name")


def list_cells(card, first):
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith(f"| {first} |")]
    assert len(lines) == 1, first
    return lines[0][1:]


def test_it_says_where_the_model_comes_from(model, evaluations):
    card = build_card(model, evaluations)
    for text in (
        "# Streets by words",
        "Streets drawn by hand.",
        "Licence of the data: cc0-1.0.",
        "[own licence](https://example.org/licence)",
        "arXiv:2402.13697",
        "@article",
        "Not for driving.",
        'model="user/name"',
        'candidate_labels=["road", "car", "tree"]',
        'zsseg segment picture.jpg --model user/name --labels "road, car, tree"',
        "Seen in training (2): road, tree.",
        "Unseen (1): car.",
    ):
        assert text in card, text
    assert "$" not in card
    assert not re.search(r"\bNone\b|\{|\}\}", card.split("```bibtex")[0].split("---\n", 2)[2])


def test_every_figure_is_there_with_its_command_and_machine(model, evaluations):
    card = build_card(model, evaluations)
    assert list_cells(card, "%") == ["PQ", "SQ", "RQ", "PQ*"]
    assert list_cells(card, "all") == ["41.2", "81.1", "52.3", "40.1"]
    assert list_cells(card, "things") == ["30.7", "–", "–", "–"]
    assert list_cells(card, "unseen") == ["28.9", "–", "–", "–"]
    assert list_cells(card, "unseen things") == ["–", "–", "–", "–"]
    assert "hPQ 35.4 · hPQ present classes 35.4 · seconds per image 0.0421" in card
    assert list_cells(card, "road") == ["seen", "61.2", "80.0", "76.5", "12", "3", "1"]
    assert list_cells(card, "car")[0] == "unseen"
    assert list_cells(card, "tree")[1:] == ["–", "–", "–", "0", "0", "0"]
    report = evaluations[0].report
    assert f"```bash\n{report.command}\n```" in card
    assert report.machine in card
    assert "[street.json](evaluation/street.json)" in card
    body = card.split("---\n", 2)[2]
    for name, value in {**AVERAGES, **PER_CLASS["road"]}.items():
        shown = "–" if value is None else f"{100 * value:.1f}"
        assert shown in body or name in ("seconds_per_image", "TP", "FP", "FN"), name


def test_the_front_matter_and_the_text_show_the_same_numbers(model, evaluations):
    card = build_card(model, evaluations)
    body = card.split("---\n", 2)[2]
    for result in ModelCard(card).data.eval_results:
        assert str(result.metric_value) in body


def test_without_an_evaluation_nothing_is_claimed(model):
    card = build_card(model, [])
    assert NO_EVALUATION in card
    assert ModelCard(card).data.eval_results is None


def test_a_closed_list_of_words_is_called_one():
    card = build_card(build_model(), [], build_processor(text_embeddings=build_bank()))
    assert "knows the vectors of 4 words and no other" in card
    assert '--labels "road, car, traffic light"' in card


@pytest.mark.parametrize("name", ["license", "training_data"])
def test_a_card_says_licence_and_training_data(model, evaluations, name):
    facts = CardFacts(**{"license": "mit", "training_data": "x", name: ""})
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        build_published_card(model, build_processor(), facts, evaluations, "user/name")


def test_the_card_of_each_family_says_what_it_is():
    for family in FAMILIES:
        model_type = family.load("configuration", f"{family.name}Config").model_type
        assert "@" in load_family_text(model_type)
        assert "arXiv" in load_family_text(model_type)


def update(tmp_path, text, evaluations, facts=None, repo_id="user/other"):
    source = tmp_path / "edited.md"
    source.write_text(text, encoding="utf-8")
    update_published_card(
        source, tmp_path / "new.md", build_processor(), facts or CardFacts(), evaluations, repo_id
    )
    assert source.read_text(encoding="utf-8") == text
    return (tmp_path / "new.md").read_text(encoding="utf-8")


def test_an_edited_card_keeps_what_was_written_and_nothing_that_was_made(model, evaluations, tmp_path):
    card = build_card(model, [])
    edited = card.replace("Not for driving.", "Not for flying.").replace(
        "license: other", "license: other\nextra: 5"
    )
    updated = update(tmp_path, edited, evaluations, CardFacts(tags=("street",)))
    assert "Not for flying." in updated
    assert NO_EVALUATION not in updated
    assert 'model="user/other"' in updated
    assert "user/name" not in updated
    data = ModelCard(updated).data
    assert (data.license, data.license_name, data.extra) == ("other", "own licence", 5)
    assert len(data.eval_results) == 8
    assert "street" in data.tags
    # Once more changes nothing.
    assert update(tmp_path, updated, evaluations) == updated


def test_an_edited_card_with_figures_of_its_own_is_refused(model, evaluations, tmp_path):
    card = build_card(model, evaluations)
    assert update(tmp_path, card, evaluations)
    with pytest.raises(ValueError, match=r"model-index of .*edited\.md holds 1 figures.*PQ 99\.2"):
        update(tmp_path, card.replace("value: 41.2", "value: 99.2"), evaluations)
    with pytest.raises(ValueError, match=r"edited\.md holds 8 figures"):
        update(tmp_path, card, [])
    with pytest.raises(ValueError, match=r"edited\.md holds 1 figures.*99\.2 in 'It reaches 99\.2 PQ"):
        update(tmp_path, card.replace("Not for driving.", "It reaches 99.2 PQ."), evaluations)
    # What stands between the marks is made anew, so nobody sees it.
    assert "99.2" not in update(tmp_path, card.replace("| all | 41.2", "| all | 99.2"), evaluations)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: other\n", "", "without a licence"),
        ("license_name: own licence\n", "", "'other' says nothing"),
        ("license: other", "license: [", "cannot be read"),
        ("library_name: zsseg", "library_name: timm", "library_name 'timm', expected 'zsseg'"),
        ("<!-- zsseg-usage -->", "", r"edited\.md must hold the line <!-- zsseg-usage --> once"),
        ("<!-- /zsseg-evaluation -->", "", r"edited\.md must hold the line <!-- zsseg-evaluation -->"),
        ("license: other", "license: Other", r"the metadata of .*edited\.md: a licence is an identifier"),
    ],
)
def test_edited_cards_that_lack_something(model, tmp_path, old, new, message):
    card = build_card(model, [])
    assert old in card
    with pytest.raises(ValueError, match=message):
        update(tmp_path, card.replace(old, new, 1), [])


def test_prose_for_an_edited_card_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"\['training_data'\] have no place in .*edited\.md"):
        update(tmp_path, build_card(model, []), [], CardFacts(training_data="x"))


def test_the_card_that_comes_with_a_package_is_not_for_the_hub(tmp_path, evaluations):
    from zsseg.checkpoints import packaged

    shutil.copyfile(packaged() / "README.md", tmp_path / "README.md")
    with pytest.raises(ValueError, match="no evaluation of these weights backs"):
        update(tmp_path, Path(tmp_path / "README.md").read_text(encoding="utf-8"), evaluations)


def test_digests_are_of_the_weights(concat_checkpoint, bank_checkpoint):
    assert compute_digest(concat_checkpoint) != compute_digest(bank_checkpoint)
