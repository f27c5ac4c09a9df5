import pytest

from zsseg.publishing.marked_sections import replace_marked_section

DOCUMENT = "before\n<!-- table -->\nold\n<!-- /table -->\nafter\n"


def test_only_what_stands_between_the_marks_changes(tmp_path):
    document = tmp_path / "document.md"
    document.write_text(DOCUMENT)
    replace_marked_section(document, "table", "new\nlines")
    assert document.read_text() == "before\n<!-- table -->\nnew\nlines\n<!-- /table -->\nafter\n"
    replace_marked_section(document, "table", "old")
    assert document.read_text() == DOCUMENT


@pytest.mark.parametrize("text", ["nothing", DOCUMENT * 2, "<!-- /table -->\n<!-- table -->\n"])
def test_marks_that_are_missing_doubled_or_turned_round(tmp_path, text):
    document = tmp_path / "document.md"
    document.write_text(text)
    with pytest.raises(ValueError, match="must hold the line <!-- table --> once"):
        replace_marked_section(document, "table", "new")
    assert document.read_text() == text
