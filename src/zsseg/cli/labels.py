"""Lists of labels as typed on the command line."""

from pathlib import Path

from zsseg.cli.messages import UsageError
from zsseg.vocabulary import Vocabulary

FILE_MARK = "@"
LABELS_SYNTAX = 'Separated by commas, "car|automobile" for synonyms; @FILE reads one a line.'


def parse_labels(text: str) -> list[str]:
    """Split ``"road, car|automobile"`` at its commas, or read ``"@labels.txt"``, one label a line.

    Raises:
        FileNotFoundError: if the file is missing.

    Example:
        >>> parse_labels("road, car|automobile")
        ['road', 'car|automobile']
    """
    text = text.strip()
    if text.startswith(FILE_MARK):
        path = Path(text.removeprefix(FILE_MARK))
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of labels at {path}; {text!r} asks to read one")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return [label.strip() for label in text.split(",")] if text else []


def parse_vocabulary(labels: str, stuff: str, unseen: str) -> Vocabulary:
    """The vocabulary that ``--labels``, ``--stuff`` and ``--unseen`` describe.

    Raises:
        UsageError: if there is no label, one is empty or repeated, or a stuff or unseen label is none of
            them.
        FileNotFoundError: as :func:`parse_labels`.
    """
    candidate_labels = parse_labels(labels)
    if not candidate_labels:
        raise UsageError('--labels holds no label; name what to look for, such as --labels "road, car"')
    try:
        return Vocabulary.from_labels(
            candidate_labels, stuff_labels=parse_labels(stuff), unseen_labels=parse_labels(unseen)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
