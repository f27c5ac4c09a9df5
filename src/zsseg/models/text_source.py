"""What a new CONCAT takes its words from: a text tower with its tokenizer, or vectors for a closed list."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from zsseg.layers.text_embedding_bank import infer_text_pooling, infer_text_width
from zsseg.models.text_tower import load_text_tower
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings


@dataclass(frozen=True)
class TextSource:
    """Words, as a checkpoint holds them.

    Attributes:
        tower: pretrained text tower; None with vectors.
        config_fields: what :class:`~zsseg.ConcatConfig` says of texts.
        processor_arguments: the processor's part, tokenizer or vectors.
    """

    tower: Any
    config_fields: dict[str, Any]
    processor_arguments: dict[str, Any]


def load_text_source(text: str | Path | PrecomputedTextEmbeddings) -> TextSource:
    """Load a text tower with its tokenizer, or pass vectors on.

    Args:
        text: folder or Hub id of a CLIP, SigLIP or text encoder; or vectors.

    Raises:
        OSError: if a checkpoint is not found.
        ValueError: if it is of another kind or lacks weights.
    """
    if isinstance(text, PrecomputedTextEmbeddings):
        return TextSource(None, {"projection_dim": text.embeddings.shape[1]}, {"text_embeddings": text})
    tower = load_text_tower(str(text))
    pooling = infer_text_pooling(tower.config)
    config_fields = {
        "text_config": tower.config,
        "text_pooling": pooling,
        "projection_dim": infer_text_width(tower.config, pooling),
    }
    return TextSource(tower, config_fields, {"tokenizer": AutoTokenizer.from_pretrained(str(text))})
