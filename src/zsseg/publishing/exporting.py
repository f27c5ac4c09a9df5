"""A checkpoint → one file that other software runs, at one fixed picture size, checked when it is written."""

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zsseg._version import __version__
from zsseg.durable_files import flush_to_disk
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.base import ZeroShotSegmentationPreTrainedModel
from zsseg.models.inference import encode_vocabulary
from zsseg.publishing.exported_model import (
    DESCRIPTION_FILE,
    OUTPUT_NAMES,
    ExportDescription,
    ExportedModel,
    ExportFormat,
)
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.vocabulary import Vocabulary

TOLERANCE = 1e-4
"""By how much |exported − own| / max(1, |own|) of a logit may differ."""

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What ``pip install "zsseg[export]"`` brings."""

EXPORTED_FILES = frozenset(
    {
        DESCRIPTION_FILE,
        *(each.file_name for each in ExportFormat),
        f"{ExportFormat.ONNX.file_name}.data",
    }
)
"""What an export may consist of; large weights of ONNX lie in a file beside the graph."""

TEXTS_TRACED, TEXTS_CHECKED = 3, 5
"""Of a model whose labels are an input: traced with so many, checked with another number."""


class NamedPrediction(nn.Module):
    """Pictures → logits of fixed labels, whose embeddings become constants of the graph.

    Args:
        model: of any family.
        text_embeds: (T, D).
        texts_of_labels: per label the rows of its texts.
    """

    text_embeds: Tensor
    texts_of_labels: Tensor

    def __init__(
        self, model: nn.Module, text_embeds: Tensor, texts_of_labels: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.model = model
        most = max(len(texts) for texts in texts_of_labels)
        # A graph has no lists of unequal length, and a text that is there twice changes no maximum.
        table = [[*texts, *[texts[0]] * (most - len(texts))] for texts in texts_of_labels]
        self.register_buffer("text_embeds", text_embeds)
        self.register_buffer("texts_of_labels", torch.tensor(table))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) → class logits (1, Q, K + 1) and mask logits (1, Q, h, w)."""
        outputs = self.model(pixel_values, text_embeds=self.text_embeds)
        text_logits, no_object = (
            outputs.class_queries_logits[..., :-1],
            outputs.class_queries_logits[..., -1:],
        )
        label_logits = text_logits[..., self.texts_of_labels].amax(dim=-1)
        return torch.cat([label_logits, no_object], dim=-1), outputs.masks_queries_logits


class OpenPrediction(nn.Module):
    """Pictures and embeddings of any number of texts → logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) and (T, D) → class logits (1, Q, T + 1) and mask logits (1, Q, h, w)."""
        outputs = self.model(pixel_values, text_embeds=text_embeds)
        return outputs.class_queries_logits, outputs.masks_queries_logits


def export_model(
    model: ZeroShotSegmentationPreTrainedModel,
    processor: Any,
    folder: str | os.PathLike[str],
    *,
    export_format: ExportFormat,
    size: tuple[int, int],
    vocabulary: Vocabulary | None = None,
    tolerance: float = TOLERANCE,
) -> ExportDescription:
    """Write the model for ONNX Runtime or ``torch.export``, and ``export.json`` beside it.

    What was written is loaded and run on a random picture; the folder appears only if that gives the model's
    own logits.

    Args:
        model: in float32, on the CPU; it stays as it is.
        processor: of the same checkpoint.
        folder: to write; an earlier export there, in whichever format, is replaced.
        export_format: who is to run it.
        size: (height, width) of the pictures that it will take.
        vocabulary: its labels for good; None for a model that takes ``text_embeds`` beside the picture.
        tolerance: the largest |exported − own| / max(1, |own|) of a logit.

    Returns:
        What ``export.json`` says.

    Raises:
        ModuleNotFoundError: if a package of the extra ``export`` is missing.
        ValueError: if the model cannot be one graph or is not float32 on the CPU, the size is not a multiple
            of the processor's ``size_divisor``, the checkpoint cannot embed a label, or the logits differ by
            more.
        OSError: if ``folder`` holds files that are not of an export; nothing is computed then.

    Example::

        export_model(model, processor, "street", export_format=ExportFormat.ONNX, size=(480, 640),
                     vocabulary=Vocabulary.from_labels(["road", "car|automobile"], stuff_labels=["road"]))
    """
    check_export_packages(export_format)
    check_export_size(size, processor.image_processor.size_divisor)
    check_export_folder(Path(folder))
    model.check_exportable()
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(
            f"expected a float32 model on the CPU, got {model.dtype} on {model.device}: load it with "
            "dtype=torch.float32"
        )
    description = _describe(model, processor, export_format, size, vocabulary)
    prediction: nn.Module
    if vocabulary is None:
        prediction, num_texts = OpenPrediction(model), TEXTS_TRACED
    else:
        prediction, num_texts = _name_labels(model, processor, vocabulary), 0
    with torch.no_grad(), _prediction_alone(model), replacing_folder(Path(folder)) as unfinished:
        program = _trace(prediction, _draw_inputs(description, num_texts))
        model_file = unfinished / export_format.file_name
        if export_format is ExportFormat.ONNX:
            _save_onnx(program, model_file)
        else:
            torch.export.save(program, model_file)
        description.save(unfinished)
        differences = _compare(prediction, unfinished)
        if too_large := {name: value for name, value in differences.items() if not value <= tolerance}:
            raise ValueError(
                f"the exported model differs from the checkpoint by {too_large} of max(1, |logit|), allowed "
                f"{tolerance:g}; nothing was written. Try the other format or another size, or allow more"
            )
        description = replace(description, differences=differences)
        description.save(unfinished)
        for path in (*unfinished.iterdir(), unfinished):
            flush_to_disk(path)
        _remove_earlier_export(Path(folder), {path.name for path in unfinished.iterdir()})
    return description


def check_export_packages(export_format: ExportFormat) -> None:
    """Make sure that what a format needs is installed, before anything slow happens.

    Raises:
        ModuleNotFoundError: with what to install.
    """
    if export_format is ExportFormat.ONNX:
        missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
        if missing:
            raise ModuleNotFoundError(
                f"the format onnx needs {', '.join(missing)}, not installed: pip install 'zsseg[export]'",
                name=missing[0],
            )


def check_export_size(size: tuple[int, int], size_divisor: int) -> None:
    """Make sure that a picture of this size needs no further padding.

    Raises:
        ValueError: with the nearest sizes that do.
    """
    for side, pixels in zip(("height", "width"), size, strict=True):
        if pixels < size_divisor or pixels % size_divisor:
            below = max(size_divisor, pixels // size_divisor * size_divisor)
            raise ValueError(
                f"the {side} must be a multiple of {size_divisor}, to which the processor pads pictures, got "
                f"{pixels}: the nearest are {below} and {below + size_divisor}"
            )


def check_export_folder(folder: Path) -> None:
    """Make sure that a folder can be replaced by an export, before anything slow happens.

    Raises:
        FileExistsError: if it holds files that are not of an export, or is a file itself.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder, or remove it")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(names - EXPORTED_FILES):
        raise FileExistsError(
            f"{folder} holds what is not of an export: {others[:10]}; choose another folder, or remove them"
        )


def _remove_earlier_export(folder: Path, written: Collection[str]) -> None:
    """Remove what an export in the other format left; a folder is replaced only where no name gets lost."""
    check_export_folder(folder)
    for name in EXPORTED_FILES.difference(written):
        (folder / name).unlink(missing_ok=True)


def _describe(
    model: ZeroShotSegmentationPreTrainedModel,
    processor: Any,
    export_format: ExportFormat,
    size: tuple[int, int],
    vocabulary: Vocabulary | None,
) -> ExportDescription:
    settings = processor.image_processor
    categories = () if vocabulary is None else vocabulary.categories
    return ExportDescription(
        format=export_format,
        height=size[0],
        width=size[1],
        image_mean=tuple(settings.image_mean),
        image_std=tuple(settings.image_std),
        rescale_factor=settings.rescale_factor,
        resample=int(settings.resample),
        labels=None if vocabulary is None else tuple(category.spelling for category in categories),
        stuff_labels=tuple(category.name for category in categories if not category.is_thing),
        text_width=model.config.projection_dim,
        threshold=processor.threshold,
        mask_threshold=processor.mask_threshold,
        overlap_mask_area_threshold=processor.overlap_mask_area_threshold,
        differences={},
        model_type=model.config.model_type,
        weights_digest=compute_weights_digest(model),
        zsseg_version=__version__,
    )


def _name_labels(
    model: ZeroShotSegmentationPreTrainedModel, processor: Any, vocabulary: Vocabulary
) -> NamedPrediction:
    encoded = encode_vocabulary(model, processor, vocabulary)
    texts_of_labels: list[list[int]] = [[] for _ in vocabulary]
    for text, label_id in enumerate(encoded["text_label_ids"].tolist()):
        texts_of_labels[label_id].append(text)
    return NamedPrediction(model, encoded["text_embeds"], texts_of_labels)


@contextmanager
def _prediction_alone(model: ZeroShotSegmentationPreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, without the parts that pictures and text embeddings never pass."""
    was_training = model.training
    unused = {name: getattr(model, name) for name in model.unused_with_text_embeds}
    model.eval()
    for name in unused:
        setattr(model, name, None)
    try:
        yield
    finally:
        for name, part in unused.items():
            setattr(model, name, part)
        model.train(was_training)


def _draw_inputs(description: ExportDescription, num_texts: int) -> dict[str, Tensor]:
    """A random picture, always the same, and so many random texts."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, description.height, description.width, generator=generator)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (description.image_mean, description.image_std)
    )
    inputs = {"pixel_values": (picture - mean) / std}
    if num_texts:
        inputs["text_embeds"] = torch.randn(num_texts, description.text_width, generator=generator)
    return inputs


def _trace(prediction: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    dynamic_shapes: dict[str, Any] = {name: None for name in inputs}
    if "text_embeds" in inputs:
        dynamic_shapes["text_embeds"] = {0: torch.export.Dim("texts", min=1)}
    return torch.export.export(prediction, tuple(inputs.values()), dynamic_shapes=dynamic_shapes)


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    with _without_advice():
        onnx_program = torch.onnx.export(program, dynamo=True, output_names=OUTPUT_NAMES, verbose=False)
    onnx_program.save(path)  # type: ignore[union-attr]


@contextmanager
def _without_advice() -> Iterator[None]:
    """What the exporter tells its developers: operators of absent packages, constants it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(prediction: nn.Module, folder: Path) -> dict[str, float]:
    """Per output the largest |exported − own| / max(1, |own|), by the written file."""
    exported = ExportedModel(folder)
    num_texts = TEXTS_CHECKED if exported.description.labels is None else 0
    inputs = _draw_inputs(exported.description, num_texts)
    own = [output.numpy() for output in prediction(**inputs)]
    found = exported.run(**{name: tensor.numpy() for name, tensor in inputs.items()})
    return {
        name: compute_relative_difference(*arrays)
        for name, *arrays in zip(OUTPUT_NAMES, found, own, strict=True)
    }


def compute_relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest |found − expected| / max(1, |expected|).

    Raises:
        ValueError: if the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"expected logits of shape {expected.shape}, got {found.shape}")
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())
