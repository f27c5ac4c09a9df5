"""What a card says that no file tells: licence, training data, limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import yaml

LICENSE_PATTERN = re.compile(r"[a-z0-9][a-z0-9.+-]*")
TEXTS = (
    *("license", "license_name", "license_link", "training_data", "training_data_license"),
    *("title", "description", "limits"),
)
LISTS = ("base_model", "datasets", "tags")
PROSE = ("training_data", "training_data_license", "title", "description", "limits")
"""Facts that only a card which is written anew has a place for."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the one who publishes knows; empty where not said.

    Attributes:
        license: of the weights: an identifier of the Hub's list, such as "apache-2.0", or "other".
        license_name: what the licence is called, if it is "other".
        license_link: where its text is, if it is "other".
        training_data: what the model was trained on, in words.
        training_data_license: that of the data.
        title: of the card; the repository's name without one.
        description: a sentence or two under the title.
        limits: what the model should not be used for or is known to get wrong, as Markdown.
        base_model: Hub ids of the models that training began with.
        datasets: Hub ids of the training data.
        tags: further ones.
        benchmarks: name of a data set in an evaluation → its Hub id, for the Hub's leaderboards.

    Raises:
        TypeError: if a text is no text, or a list no list of texts.
        ValueError: if the licence is no identifier.
    """

    license: str = ""
    license_name: str = ""
    license_link: str = ""
    training_data: str = ""
    training_data_license: str = ""
    title: str = ""
    description: str = ""
    limits: str = ""
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    benchmarks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in TEXTS:
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a text, got {getattr(self, name)!r}")
        for name in LISTS:
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
                raise TypeError(f"{name} must be a list of texts, got {value!r}")
        if not isinstance(self.benchmarks, Mapping):
            raise TypeError(f"benchmarks must map names of data sets to Hub ids, got {self.benchmarks!r}")
        if self.license and not LICENSE_PATTERN.fullmatch(self.license):
            raise ValueError(
                f"a licence is an identifier of the Hub's list in small letters, such as 'apache-2.0' or "
                f"'cc-by-4.0', or 'other', got {self.license!r}"
            )

    def check_license(self) -> None:
        """Refuse to publish under no licence, or under one that nobody can look up.

        Raises:
            ValueError: if there is no licence, or it is "other" without a name and a link.
        """
        if not self.license:
            raise ValueError(
                "a model without a licence may be used by nobody: name one of the Hub's list with --license, "
                "such as apache-2.0"
            )
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError(
                "the licence 'other' says nothing by itself: give its name and a link to its text with "
                "--license-name and --license-link"
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read facts from a YAML file whose keys are the attributes.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no YAML of known keys, or a value is wrong; the message names the file.
        """
        try:
            return cls.from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, yaml.YAMLError) as error:
            known = ", ".join(each.name for each in fields(cls))
            raise ValueError(
                f"{path} is no YAML of a card's facts ({error}); its keys may be {known}"
            ) from error

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Self:
        """From the keys and values of a YAML file.

        Raises:
            TypeError: as for the class, or for a key that is none.
            ValueError: as for the class.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"expected keys and values, got {content!r}")
        values: dict[str, Any] = {
            name: tuple(value) if name in LISTS and isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**values)

    def override(self, other: Self) -> Self:
        """These facts, with everything that ``other`` says in place of what they say.

        Another licence takes the name and the link of the old one with it.
        """
        base = replace(self, license_name="", license_link="") if other.license else self
        said = {each.name: getattr(other, each.name) for each in fields(other) if getattr(other, each.name)}
        return replace(base, **said)
