"""Converted models: a CONCAT around a segmentor, or a SCAN; written as a whole, loaded again and checked."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from zsseg.conversion.mask2former_layout import FRESH_WEIGHTS
from zsseg.conversion.pading_layout import GeneratorSizes
from zsseg.conversion.scan_layout import ConvertedScan
from zsseg.conversion.source_weights import ConversionBooks, fill_module
from zsseg.conversion.verification import TOLERANCE, check_differences, format_differences
from zsseg.layers.mask_transformer import MaskTransformerConfig
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.models.text_source import TextSource, load_text_source
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.publishing.checkpoint_files import CARD_FILE, CONVERSION_FILE
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.publishing.marked_sections import CONVERSION_MARK, build_marked_section

NEW_PARTS = {
    r"semantic_projector\..*": "new, random: maps queries into the text space; train it",
    r"no_object_embedding": "new, random: stands for no object; train it",
}
TEXT_TOWER = {r"text_model\..*": "of the text tower's own checkpoint"}

COCO_NOTE = (
    "Public Mask2Former checkpoints of COCO saw all 133 classes in training. They are fine to use and to "
    "start from, but a number measured with them is never a zero-shot number."
)
PADING_NOTE = (
    "PADing trains its segmentor on pictures without unseen segments; a file cannot prove that. Give the "
    "origin of this one with every zero-shot number measured from it."
)
SCAN_NOTE = (
    "The official repository of SCAN is under CC BY-NC 4.0, not for commercial use. SCAN was trained on "
    "COCO-Stuff's 171 classes: a number measured on labels among them is no zero-shot number."
)
UNTRAINED_NOTE = (
    "The semantic projector and the no-object embedding are new and random: masks and queries are those of "
    "the source, names mean nothing before they are trained (`zsseg train`)."
)

Verification = Callable[[Any], dict[str, float]]
"""A converted model, in float64 → largest difference from the source for each output."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a checkpoint comes from, without the folders of the machine it was converted on.

    Attributes:
        layout: whose, such as "Mask2Former (detectron2)".
        script: that converted it.
        name: of the file or Hub id.
        sha256: of the file, None for a folder or a Hub id.
        note: what whoever quotes numbers has to know.
        title: of the card, before the name.
        is_whole: whether the source gave all there is, so that nothing waits for training.
        further_files: others that gave weights: name → SHA-256.
    """

    layout: str
    script: str
    name: str
    sha256: str | None
    note: str
    title: str = "CONCAT with the segmentor of"
    is_whole: bool = False
    further_files: Mapping[str, str] = field(default_factory=dict)


def load_words(clip: str | None, text_embeddings: Path | None) -> TextSource:
    """The words of a new checkpoint: of a text tower, or of a file of vectors.

    Args:
        clip: folder or Hub id; or
        text_embeddings: file of :class:`~zsseg.PrecomputedTextEmbeddings`.

    Raises:
        OSError: if nothing is found there.
        ValueError: if it is of another kind.
    """
    if text_embeddings is None:
        return load_text_source(str(clip))
    if not text_embeddings.is_file():
        raise FileNotFoundError(f"there is no file of text embeddings {text_embeddings}")
    return load_text_source(PrecomputedTextEmbeddings.load(text_embeddings))


def compute_sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_concat(
    converted: Mapping[str, Tensor],
    segmentor_config: MaskTransformerConfig,
    text: TextSource,
    books: ConversionBooks,
    *,
    generator: GeneratorSizes | None = None,
    seed: int = 0,
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor]:
    """A model of converted weights with its processor.

    Args:
        converted: by names of CONCAT's state dict.
        segmentor_config: of the segmentor.
        text: where its words come from.
        books: gain what is new.
        generator: sizes of a converted generator; None for a model without one.
        seed: of what is new.

    Raises:
        ValueError: if weights do not fit.
    """
    if generator is not None and generator.embed_dim != text.config_fields["projection_dim"]:
        raise ValueError(
            f"the generator reads text vectors of {generator.embed_dim} numbers, but the words given have "
            f"{text.config_fields['projection_dim']}: give those that PADing was trained with (512: CLIP "
            "ViT-B/16; 300: word2vec, as --text-embeddings), or convert the segmentor alone "
            "(--without-generator)"
        )
    generator_fields = (
        {}
        if generator is None
        else {
            "generator_type": "primitives",
            "generator_noise_dim": generator.query_dim,
            "generator_hidden_dim": generator.hidden_dim,
            "generator_num_primitives": generator.num_primitives,
        }
    )
    torch.manual_seed(seed)
    model = ConcatForPanopticSegmentation(
        ConcatConfig(segmentor_config=segmentor_config, **text.config_fields, **generator_fields)
    ).eval()
    if text.tower is not None:
        model.text_model.load_state_dict(text.tower.state_dict())
    fill_module(model, converted, FRESH_WEIGHTS | NEW_PARTS | TEXT_TOWER, books)
    return model, ConcatProcessor(ConcatImageProcessorPil(), **text.processor_arguments)


def build_scan(
    converted: ConvertedScan, tokenizer: Any, books: ConversionBooks
) -> tuple[ScanForSemanticSegmentation, ScanProcessor]:
    """A model of converted weights with its processor.

    Args:
        converted: by :func:`~.scan_layout.convert_scan`.
        tokenizer: of its CLIP.
        books: gain what is new.

    Raises:
        ValueError: if weights do not fit.
    """
    model = ScanForSemanticSegmentation(converted.config).eval()
    fill_module(model, converted.tensors, FRESH_WEIGHTS, books)
    return model, ScanProcessor(ScanImageProcessorPil(), tokenizer)


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    books: ConversionBooks,
    origin: Origin,
    verify: Verification | None = None,
) -> dict[str, float]:
    """Write model, processor, card and report; the folder appears whole and checked, or not at all.

    Args:
        folder: to write.
        model: converted.
        processor: with it.
        books: of the conversion.
        origin: of the weights.
        verify: to run on the model as it is read again from the folder.

    Returns:
        The differences that ``verify`` found; none without it.

    Raises:
        OSError: if the folder holds files that are not of a checkpoint.
        ValueError: if what is read again differs, or differs from the source.
    """
    _drop_origins(model.config)
    with replacing_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        reread = type(model).from_pretrained(unfinished)
        _check_same_weights(model, reread)
        differences = {} if verify is None else verify(reread.double().eval())
        check_differences(differences)
        report = {
            "layout": origin.layout,
            "script": origin.script,
            "source": {"name": origin.name, "sha256": origin.sha256},
            "further_sources": dict(origin.further_files),
            "verification": None
            if verify is None
            else {"dtype": "float64", "tolerance": TOLERANCE, "largest_differences": differences},
            "weights": books.to_dict(),
        }
        (unfinished / CONVERSION_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (unfinished / CARD_FILE).write_text(_build_card(origin, differences), encoding="utf-8")
    return differences


def _drop_origins(config: PreTrainedConfig) -> None:
    """Forget from which folders on this machine the parts came."""
    config._name_or_path = ""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _drop_origins(part)


def _check_same_weights(model: PreTrainedModel, reread: PreTrainedModel) -> None:
    found = reread.state_dict()
    if changed := [name for name, value in model.state_dict().items() if not torch.equal(value, found[name])]:
        raise ValueError(
            f"{len(changed)} weights are not read as they were written, first {changed[:5]}: this version of "
            "transformers stores them in a way that the conversion does not know"
        )


def _build_card(origin: Origin, differences: Mapping[str, float]) -> str:
    verified = (
        "Not compared with a forward pass of the source: convert with `--verify` for that."
        if not differences
        else "On a fixed input its outputs differ from those of an independent forward pass of the source by "
        "at most:\n\n| output | largest difference |\n|---|---:|\n"
        + "\n".join(f"| {name} | {value:.1e} |" for name, value in differences.items())
    )
    digest = "" if origin.sha256 is None else f" (SHA-256 `{origin.sha256}`)"
    for name, sha256 in origin.further_files.items():
        digest += f" and `{name}` (SHA-256 `{sha256}`)"
    title = re.sub(r"\.(pth|pt|pkl|bin|safetensors)$", "", origin.name)
    section = "\n\n".join(
        (
            f"Converted by `{origin.script}` from `{origin.name}`{digest}, {origin.layout}. "
            f"`{CONVERSION_FILE}` says of every weight where it comes from.",
            *_list_notes(origin),
            verified,
        )
    )
    return f"""---
library_name: zsseg
---

# {origin.title} {title}

{build_marked_section(CONVERSION_MARK, section)}
"""


def _list_notes(origin: Origin) -> list[str]:
    return [origin.note] if origin.is_whole else [UNTRAINED_NOTE, origin.note]


def describe_result(
    books: ConversionBooks, differences: Mapping[str, float], origin: Origin, folder: Path
) -> str:
    """What a script prints: the books, the differences, what to know and where the result lies."""
    lines = [
        books.format_table(),
        format_differences(differences),
        *_list_notes(origin),
        f"wrote {folder}",
    ]
    return "\n".join(lines)
