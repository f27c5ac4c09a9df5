import pytest

from zsseg.publishing.card_facts import CardFacts


def test_facts_come_from_yaml(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(
        "license: mit\ntags: [street]\nbenchmarks: {street: user/street}\nlimits: |\n  - one\n  - two\n"
    )
    assert CardFacts.load(path) == CardFacts(
        license="mit", tags=("street",), benchmarks={"street": "user/street"}, limits="- one\n- two\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence: mit", "unexpected keyword argument 'licence'"),
        ("tags: street", "tags must be a list of texts"),
        ("datasets: [1]", "datasets must be a list of texts"),
        ("title: 5", "title must be a text"),
        ("benchmarks: street", "benchmarks must map"),
        ("license: Apache 2.0", "small letters, such as 'apache-2.0'"),
        ("- license", "expected keys and values"),
        ("a: [", "while parsing"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        CardFacts.load(tmp_path / "card.yaml")
    assert "card.yaml is no YAML of a card's facts" in str(raised.value)
    assert "training_data_license" in str(raised.value)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"license": "other"},
        {"license": "other", "license_name": "own"},
        {"license": "other", "license_link": "x"},
    ],
)
def test_a_licence_that_nobody_can_look_up_is_refused(said):
    with pytest.raises(ValueError, match="licence"):
        CardFacts(**said).check_license()


def test_licences_that_can_be_looked_up():
    CardFacts(license="mit").check_license()
    CardFacts(license="other", license_name="own", license_link="https://example.org").check_license()


def test_what_is_said_later_wins():
    facts = CardFacts(license="other", license_name="own", license_link="x", title="a", tags=("b",))
    assert facts.override(CardFacts(title="c")) == CardFacts(
        license="other", license_name="own", license_link="x", title="c", tags=("b",)
    )
    assert facts.override(CardFacts(license="mit")) == CardFacts(license="mit", title="a", tags=("b",))
