import pytest
from PIL import features

from zsseg.visualization.lettering import Lettering, font_size_for, printable_names, star_points


@pytest.fixture
def lettering():
    return Lettering(14)


def test_font_size_follows_the_picture():
    assert font_size_for(480, 360) == 12
    assert font_size_for(1, 1) == 12
    assert font_size_for(3840, 2160) == 48
    assert font_size_for(2160, 3840) == 48


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("traffic light", "traffic light"),
        ("Straße café łódź", "Strasse cafe lodz"),
        ("line\nbreak\t tab", "line break tab"),
        ("🚗", "automobile"),
        ("red 🚗\N{VARIATION SELECTOR-16}", "red automobile"),
        ("ｆｕｌｌｗｉｄｔｈ", "fullwidth"),
        ("it’s – “so”", 'it\'s - "so"'),
    ],
)
def test_labels_are_written_with_the_characters_the_font_has(lettering, text, shown):
    assert all(lettering.has_glyph(character) for character in shown)
    assert (
        lettering.printable(text).replace("’", "'").replace("–", "-").replace("“", '"').replace("”", '"')
        == shown
    )


def test_a_script_the_font_lacks_is_reported_once_with_the_fix(lettering):
    with pytest.warns(UserWarning, match="pass font=") as caught:
        assert printable_names(["car", "машина", "一二三四五六七八九十"], lettering)[1:] == [
            "машина",
            "一二三四五六七八九十",
        ]
    assert len(caught) == 1


def test_a_cut_text_fits_and_keeps_its_beginning(lettering):
    text = "a label with very many words in it"
    assert lettering.cut(text, lettering.width(text)) == text
    for width in (60, 100, 150):
        cut = lettering.cut(text, width)
        assert lettering.width(cut) <= width
        assert cut.endswith("...")
        assert text.startswith(cut[:-3])
        assert lettering.width(text[: len(cut) - 1] + "...") > width


def test_smaller_text_stays_readable(lettering):
    assert lettering.resized(0.8).size == 11
    assert lettering.resized(0.1).size == 10


def test_a_font_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"font|resource|file"):
        Lettering(14, tmp_path / "absent.ttf")


def test_pillow_without_freetype_is_an_error_with_the_fix(monkeypatch):
    monkeypatch.setattr(features, "check_module", lambda name: name != "freetype2")
    with pytest.raises(ImportError, match="pip install"):
        Lettering(1234)


def test_a_star_has_five_points_around_its_center():
    points = star_points(10, 20, 5)
    assert len(points) == 10
    assert points[0] == (10, 15)
    assert sum(x for x, _ in points) / 10 == pytest.approx(10)
