"""What ``zsseg export`` writes, read and run again: pictures in, segments out."""

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from zsseg.image_loading import ImageSource, load_image
from zsseg.postprocessing.panoptic import merge_panoptic
from zsseg.processing.image_processing import ZeroShotSegmentationImageProcessorPil
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

DESCRIPTION_FILE = "export.json"
OUTPUT_NAMES = ("class_queries_logits", "masks_queries_logits")


class ExportFormat(StrEnum):
    """Who runs the exported model."""

    ONNX = "onnx"
    TORCH = "torch"

    @property
    def file_name(self) -> str:
        """Of the model in its folder."""
        return {ExportFormat.ONNX: "model.onnx", ExportFormat.TORCH: "model.pt2"}[self]


@dataclass(frozen=True)
class ExportDescription:
    """What ``export.json`` says of the model beside it.

    Attributes:
        format: ``"onnx"`` or ``"torch"``.
        height: of the pictures it takes, in pixels.
        width: likewise.
        image_mean: of red, green and blue in [0, 1], subtracted from the picture.
        image_std: by which the rest is divided.
        rescale_factor: from the values of a picture to [0, 1].
        resample: Pillow's number of the filter that resizes.
        labels: as typed, ``"car|automobile"`` with a synonym, in the order of the class logits; None where
            ``text_embeds`` is an input of the model.
        stuff_labels: those of them that are stuff, by name.
        text_width: D, of the vectors that stand for texts.
        threshold: of the merge, as in the checkpoint; the next two likewise.
        mask_threshold: see :func:`~zsseg.postprocessing.panoptic.merge_panoptic`.
        overlap_mask_area_threshold: see there.
        differences: how far each output lay from the checkpoint's own when it was exported: the largest
            |exported − own| / max(1, |own|).
        model_type: of the checkpoint.
        weights_digest: of the checkpoint's weights, as
            :func:`~zsseg.layers.model_identity.compute_weights_digest` gives it.
        zsseg_version: that exported it.
    """

    format: ExportFormat
    height: int
    width: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    labels: tuple[str, ...] | None
    stuff_labels: tuple[str, ...]
    text_width: int
    threshold: float
    mask_threshold: float
    overlap_mask_area_threshold: float
    differences: dict[str, float]
    model_type: str
    weights_digest: str
    zsseg_version: str

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The labels of the class logits; None where they come with ``text_embeds``."""
        if self.labels is None:
            return None
        return Vocabulary.from_labels(self.labels, stuff_labels=self.stuff_labels)

    def save(self, folder: Path) -> None:
        """Write ``export.json`` into the folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``export.json``.

        Raises:
            FileNotFoundError: if the folder holds none.
            ValueError: if it is damaged or of another version.
        """
        path = folder / DESCRIPTION_FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: pass a folder that `zsseg export` wrote")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); export the checkpoint again") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise ValueError(
                f"{path} does not hold exactly the fields {sorted(names)}, so it is of another version of "
                "zsseg; export the checkpoint again"
            )
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "format": ExportFormat(values["format"])})


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as an exported model takes it.

    Attributes:
        pixel_values: (1, 3, H, W) float32, the picture at the top left and zeros around it.
        valid_fraction: shares of H and W that are picture.
        size: (height, width) of the picture itself.
    """

    pixel_values: NDArray[np.float32]
    valid_fraction: tuple[float, float]
    size: tuple[int, int]


def prepare_picture(picture: ImageSource, description: ExportDescription) -> PreparedPicture:
    """Fit a picture into the model's fixed size: its shape is kept, the rest is padding.

    Args:
        picture: whatever :func:`~zsseg.load_image` opens.
        description: of the exported model.

    Raises:
        ImageLoadError: if it cannot be opened.
    """
    image = load_image(picture)
    scale = min(description.height / image.height, description.width / image.width)
    height = min(description.height, max(1, round(image.height * scale)))
    width = min(description.width, max(1, round(image.width * scale)))
    prepare = ZeroShotSegmentationImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=description.image_mean,
        image_std=description.image_std,
        rescale_factor=description.rescale_factor,
        resample=description.resample,
        size_divisor=1,
    )
    pixel_values = np.zeros((1, 3, description.height, description.width), np.float32)
    pixel_values[..., :height, :width] = prepare([image], return_tensors="np")["pixel_values"]
    return PreparedPicture(
        pixel_values,
        valid_fraction=(height / description.height, width / description.width),
        size=(image.height, image.width),
    )


def merge_panoptic_arrays(
    class_logits: NDArray[np.float32], mask_logits: NDArray[np.float32], **options: Any
) -> PanopticSegmentation:
    """:func:`~zsseg.postprocessing.panoptic.merge_panoptic` of what another runtime returned.

    Args:
        class_logits: (Q, K + 1), of one picture.
        mask_logits: (Q, h, w).
        options: those of that function, ``stuff_label_ids`` among them.
    """
    # A runtime's arrays may be read-only, which PyTorch warns of; the merge does not write.
    return merge_panoptic(
        torch.from_numpy(np.require(class_logits, requirements="W")),
        torch.from_numpy(np.require(mask_logits, requirements="W")),
        **options,
    )


class ExportedModel:
    """A model that ``zsseg export`` wrote, ready to run.

    Args:
        folder: that it wrote.
        num_threads: that ONNX Runtime uses; None for its own choice. PyTorch has ``torch.set_num_threads``.

    Attributes:
        description: what ``export.json`` says.

    Raises:
        OSError: if the folder holds no exported model.
        ValueError: if its description is damaged or of another version.

    Example::

        exported = ExportedModel("street")
        segmentation = exported.segment("street.jpg")
        names = [exported.description.vocabulary[s.label_id].name for s in segmentation.segments]
    """

    def __init__(self, folder: str | os.PathLike[str], *, num_threads: int | None = None) -> None:
        self.description = ExportDescription.load(Path(folder))
        path = Path(folder) / self.description.format.file_name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; export the checkpoint again")
        if self.description.format is ExportFormat.ONNX:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            if num_threads is not None:
                options.intra_op_num_threads = num_threads
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        else:
            self._module = torch.export.load(path).module()

    def run(
        self, pixel_values: NDArray[np.float32], text_embeds: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One forward pass.

        Args:
            pixel_values: (1, 3, H, W) float32, see :func:`prepare_picture`.
            text_embeds: (T, D) float32, for a model without labels of its own.

        Returns:
            Class logits (1, Q, K + 1), or (1, Q, T + 1) by ``text_embeds``, the last column no-object; and
            mask logits (1, Q, h, w).

        Raises:
            ValueError: if an array has another shape, or ``text_embeds`` is missing or too much.
        """
        inputs = self._check_inputs(pixel_values, text_embeds)
        if self.description.format is ExportFormat.ONNX:
            class_logits, mask_logits = self._session.run(list(OUTPUT_NAMES), inputs)
            return class_logits, mask_logits
        with torch.no_grad():
            outputs = self._module(*(torch.tensor(array) for array in inputs.values()))
        return outputs[0].numpy(), outputs[1].numpy()

    def segment(
        self,
        picture: ImageSource,
        *,
        text_embeds: NDArray[np.float32] | None = None,
        stuff_label_ids: Collection[int] | None = None,
        **thresholds: float,
    ) -> PanopticSegmentation:
        """Segment one picture.

        Args:
            picture: whatever :func:`~zsseg.load_image` opens.
            text_embeds: (T, D) float32, for a model without labels of its own: row i is label i.
            stuff_label_ids: None for those of the model's own labels, or none.
            thresholds: ``threshold``, ``mask_threshold`` and ``overlap_mask_area_threshold``, instead of the
                checkpoint's.

        Returns:
            A map at the picture's own size.

        Raises:
            ImageLoadError: if the picture cannot be opened.
            ValueError: as :meth:`run`, or for thresholds outside [0, 1].
        """
        prepared = prepare_picture(picture, self.description)
        class_logits, mask_logits = self.run(prepared.pixel_values, text_embeds)
        vocabulary = self.description.vocabulary
        if stuff_label_ids is None:
            stuff_label_ids = () if vocabulary is None else vocabulary.stuff_label_ids
        own_thresholds = {
            name: getattr(self.description, name)
            for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold")
        }
        segmentation = merge_panoptic_arrays(
            class_logits[0],
            mask_logits[0],
            stuff_label_ids=stuff_label_ids,
            target_size=prepared.size,
            valid_fraction=prepared.valid_fraction,
            **{**own_thresholds, **thresholds},
        )
        if vocabulary is None:
            return segmentation
        named = tuple(
            replace(segment, label=vocabulary[segment.label_id].name) for segment in segmentation.segments
        )
        return replace(segmentation, segments=named)

    def _check_inputs(
        self, pixel_values: NDArray[np.float32], text_embeds: NDArray[np.float32] | None
    ) -> dict[str, NDArray[np.float32]]:
        description = self.description
        expected = (1, 3, description.height, description.width)
        if pixel_values.shape != expected:
            raise ValueError(
                f"pixel_values must be {expected}, got {pixel_values.shape}: prepare_picture fits one "
                "picture of any size"
            )
        inputs = {"pixel_values": pixel_values.astype(np.float32, copy=False)}
        if description.labels is not None:
            if text_embeds is not None:
                raise ValueError(
                    f"this model names its own {len(description.labels)} labels, so it takes no text_embeds: "
                    "export the checkpoint without labels for a model that does"
                )
            return inputs
        width = description.text_width
        if text_embeds is None or text_embeds.ndim != 2 or text_embeds.shape[1] != width:
            given = None if text_embeds is None else text_embeds.shape
            raise ValueError(
                f"this model has no labels of its own and needs text_embeds of shape (texts, {width}), got "
                f"{given}: the checkpoint's encode_text makes them"
            )
        return {**inputs, "text_embeds": text_embeds.astype(np.float32, copy=False)}
