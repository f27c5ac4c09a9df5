import pytest

from zsseg.prompts import PADING_PROMPTS, VILD_PROMPTS, fill_prompts


def test_every_template_takes_the_text_as_it_is():
    assert fill_prompts("tree {0}", ["a {}.", "{}", "{} or {}"]) == [
        "a tree {0}.",
        "tree {0}",
        "tree {0} or tree {0}",
    ]


def test_shipped_prompts():
    prompts = fill_prompts("cow", PADING_PROMPTS)
    assert len(set(prompts)) == 8
    assert prompts[0] == "itap of a cow."
    assert all("cow" in prompt and "{" not in prompt for prompt in prompts)


def test_vilds_prompts():
    prompts = fill_prompts("cow", VILD_PROMPTS)
    assert len(set(prompts)) == len(prompts) == 14
    sizes = ["small", "medium", "large"]
    assert prompts == [
        "a photo of a cow.",
        "This is a photo of a cow",
        "There is a cow in the scene",
        "There is the cow in the scene",
        "a photo of a cow in the scene",
        *(f"a photo of a {size} cow." for size in sizes),
        *(f"This is a photo of a {size} cow." for size in sizes),
        *(f"There is a {size} cow in the scene." for size in sizes),
    ]


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ([], ValueError, "at least one prompt template"),
        (["a photo"], ValueError, "must contain {} where the label goes, got 'a photo'"),
        (["{}", "{label}"], ValueError, "got '{label}'"),
        ("a {}", TypeError, r"pass \['a {}'\]"),
    ],
)
def test_templates_that_cannot_work(templates, error, message):
    with pytest.raises(error, match=message):
        fill_prompts("cow", templates)
