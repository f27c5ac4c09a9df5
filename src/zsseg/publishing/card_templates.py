"""The texts that cards are filled into."""

from importlib.resources import files
from string import Template


def load_template(name: str) -> Template:
    """A template of the package, such as ``"published.md"``.

    Raises:
        FileNotFoundError: if the package has none of this name.
    """
    return Template(files("zsseg.publishing").joinpath("templates", name).read_text(encoding="utf-8"))
