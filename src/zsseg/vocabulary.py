"""Labels as data: names, synonyms, thing or stuff, seen or unseen. A model never stores one."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

SYNONYM_SEPARATOR = "|"
Value = TypeVar("Value", str, int)


@dataclass(frozen=True, slots=True)
class Category:
    """One label.

    Attributes:
        name: what results call it.
        synonyms: further texts for the same label; a query's score is the largest over name and synonyms.
        is_thing: countable (a thing) or not (stuff).
        is_seen: whether training may show its masks.
        category_id: the data set's own id, if it comes from one.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    is_thing: bool = True
    is_seen: bool = True
    category_id: int | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The name and its synonyms, in that order."""
        return (self.name, *self.synonyms)

    @property
    def spelling(self) -> str:
        """As users type it: ``"car|automobile"`` has a synonym."""
        return SYNONYM_SEPARATOR.join(self.texts)


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of categories; a category's position is its ``label_id``.

    Raises:
        ValueError: if it is empty, a text is empty or blank, or a name or category id occurs twice.

    Example:
        >>> vocabulary = Vocabulary.from_labels(["road", "car|automobile"], stuff_labels=["road"])
        >>> vocabulary.names
        ('road', 'car')
        >>> vocabulary[1].texts
        ('car', 'automobile')
        >>> vocabulary.stuff_label_ids
        (0,)
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        if not self.categories:
            raise ValueError(
                "a vocabulary needs at least one label, got none: pass candidate_labels=['road', …]"
            )
        for label_id, category in enumerate(self.categories):
            if any(not isinstance(text, str) or not text.strip() for text in category.texts):
                raise ValueError(
                    f"label {label_id} holds an empty text: {category.texts!r}; remove or name it"
                )
        if repeated := _repeated([category.name for category in self.categories]):
            raise ValueError(f"labels must be unique, but these occur more than once: {repeated[:10]}")
        ids = [category.category_id for category in self.categories if category.category_id is not None]
        if repeated_ids := _repeated(ids):
            raise ValueError(
                f"category ids must be unique, but these occur more than once: {repeated_ids[:10]}"
            )

    @classmethod
    def from_labels(
        cls,
        candidate_labels: Sequence[str],
        *,
        stuff_labels: Collection[str] = (),
        unseen_labels: Collection[str] = (),
    ) -> "Vocabulary":
        """Read labels as users type them: ``"car|automobile"`` is one label with a synonym.

        Args:
            candidate_labels: the labels, in the order that label ids will follow.
            stuff_labels: those that are stuff; by name (``"car"``) or as typed (``"car|automobile"``).
            unseen_labels: those to mark as unseen, named in the same way.

        Raises:
            TypeError: if a single string is given for the list.
            ValueError: if a stuff or unseen label is not among the candidates, a text occurs twice, or as for
                the class.
        """
        for argument, value in (
            ("candidate_labels", candidate_labels),
            ("stuff_labels", stuff_labels),
            ("unseen_labels", unseen_labels),
        ):
            if isinstance(value, str):
                raise TypeError(
                    f"{argument} must be a list of strings, got the string {value!r}: pass [{value!r}]"
                )
        texts = [_split_synonyms(label) for label in candidate_labels]
        names = [name for name, *_ in texts]
        if repeated := _repeated([text for label_texts in texts for text in label_texts if text]):
            # Labels that share a text would tie on it, and the first would always win.
            raise ValueError(
                f"every name and synonym must be unique among the labels, but these occur more than once: "
                f"{repeated[:10]}"
            )
        stuff = _names_among(names, stuff_labels, "stuff_labels")
        unseen = _names_among(names, unseen_labels, "unseen_labels")
        return cls(
            tuple(
                Category(name, tuple(synonyms), is_thing=name not in stuff, is_seen=name not in unseen)
                for name, *synonyms in texts
            )
        )

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def __getitem__(self, label_id: int) -> Category:
        return self.categories[label_id]

    @property
    def names(self) -> tuple[str, ...]:
        """Label names by label id."""
        return tuple(category.name for category in self.categories)

    @property
    def thing_label_ids(self) -> tuple[int, ...]:
        """Label ids of the things."""
        return tuple(i for i, category in enumerate(self.categories) if category.is_thing)

    @property
    def stuff_label_ids(self) -> tuple[int, ...]:
        """Label ids of the stuff."""
        return tuple(i for i, category in enumerate(self.categories) if not category.is_thing)

    @property
    def seen_label_ids(self) -> tuple[int, ...]:
        """Label ids whose masks training may show."""
        return tuple(i for i, category in enumerate(self.categories) if category.is_seen)

    @property
    def unseen_label_ids(self) -> tuple[int, ...]:
        """Label ids whose masks training never shows."""
        return tuple(i for i, category in enumerate(self.categories) if not category.is_seen)

    @cached_property
    def label_id_by_category_id(self) -> Mapping[int, int]:
        """The data set's category ids → label ids."""
        return {c.category_id: i for i, c in enumerate(self.categories) if c.category_id is not None}

    def label_id(self, name: str) -> int:
        """The label id of a name.

        Raises:
            KeyError: if no label has this name.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(
                f"no label {name!r} in this vocabulary of {len(self)}: {list(self.names[:10])}…"
            ) from None

    def select(self, label_ids: Sequence[int]) -> "Vocabulary":
        """The vocabulary of these label ids alone, in this order."""
        return Vocabulary(tuple(self.categories[i] for i in label_ids))


def _split_synonyms(label: str) -> list[str]:
    if not isinstance(label, str):
        raise TypeError(f"a label must be a string, got {type(label).__name__}: {label!r}")
    return [text.strip() for text in label.split(SYNONYM_SEPARATOR)]


def _names_among(names: Sequence[str], chosen: Collection[str], argument: str) -> frozenset[str]:
    chosen_names = frozenset(_split_synonyms(label)[0] for label in chosen)
    if unknown := sorted(chosen_names - set(names)):
        raise ValueError(
            f"{argument} must be among the candidate labels, but {unknown} are not: {list(names)[:20]}"
        )
    return chosen_names


def _repeated(values: Sequence[Value]) -> list[Value]:
    return [value for value, count in Counter(values).items() if count > 1]
