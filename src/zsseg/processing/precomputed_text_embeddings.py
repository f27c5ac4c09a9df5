"""Text embeddings computed elsewhere, with their names: what a checkpoint holds without a text tower."""

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FILE_NAME = "text_embeddings.safetensors"
UNIT_NORM_ROUNDING = 1e-6


class PrecomputedTextEmbeddings:
    """A closed dictionary text → embedding.

    Args:
        names: N texts, unique.
        embeddings: (N, D) finite numbers; kept as float32 with unit norm.

    Raises:
        ValueError: if counts differ, a name repeats, or a vector is zero or not finite.

    Example:
        >>> bank = PrecomputedTextEmbeddings(["road", "car"], np.eye(2))
        >>> bank.lookup(["car"])
        array([[0., 1.]], dtype=float32)
        >>> bank.lookup(["cars"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: no embedding for 'cars'; nearest names: 'car'. This checkpoint holds ...
    """

    def __init__(self, names: Sequence[str], embeddings: NDArray[np.floating]) -> None:
        vectors = np.asarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"expected one vector per name, ({len(names)}, D), got an array {vectors.shape}")
        if len(set(names)) != len(names):
            raise ValueError("names must be unique: drop the repeated ones with their vectors")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        norms[np.abs(norms - 1) < UNIT_NORM_ROUNDING] = 1  # so that what was saved is what is loaded
        if not np.isfinite(vectors).all() or (norms == 0).any():
            raise ValueError("every vector must be finite and not zero")
        self.names = tuple(names)
        self.embeddings: NDArray[np.float32] = vectors / norms
        self._row_by_name = {name: row for row, name in enumerate(names)}

    def lookup(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T, D) embeddings of T texts.

        Raises:
            ValueError: for a text outside the dictionary, with the nearest names.
        """
        for text in texts:
            if text not in self._row_by_name:
                nearest = ", ".join(map(repr, self._nearest(text))) or "none is close"
                raise ValueError(
                    f"no embedding for {text!r}; nearest names: {nearest}. This checkpoint holds "
                    f"{len(self.names)} "
                    "precomputed texts and no text tower: use one of its names, or a checkpoint with a text "
                    "tower"
                )
        return self.embeddings[[self._row_by_name[text] for text in texts]]

    def _nearest(self, text: str) -> list[str]:
        containing = [name for name in self.names if text in name or name in text]
        close = difflib.get_close_matches(text, self.names, n=5, cutoff=0.5)
        return list(dict.fromkeys([*close, *containing]))[:5]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the vectors and, in the file's metadata, the names."""
        save_file(
            {"embeddings": self.embeddings},
            Path(folder) / FILE_NAME,
            metadata={"names": json.dumps(self.names, ensure_ascii=False)},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PrecomputedTextEmbeddings":
        """Read a file written by :meth:`save`.

        Raises:
            ValueError: if the file is damaged or not of this kind.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                return cls(json.loads(file.metadata()["names"]), file.get_tensor("embeddings"))
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} is no file of named text embeddings ({error}): write one with "
                "PrecomputedTextEmbeddings.save"
            ) from error
