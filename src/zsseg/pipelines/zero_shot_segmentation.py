"""What both tasks share: reading pictures, encoding labels once, batching, reporting unreadable pictures."""

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import ModelOutput, logging

from zsseg.image_loading import ImageLoadError, load_image
from zsseg.models.inference import compute_picture_outputs, encode_vocabulary
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

logger = logging.get_logger(__name__)

PROGRESS_FROM = 10
"""Lists of at least this many pictures show a progress bar on a terminal."""


@dataclass(frozen=True)
class UnreadablePicture:
    """Stands in for a picture that could not be read until its result is due."""

    error: Exception


class _IndexedPictures(Dataset[Any]):
    """A data set of any library as one of PyTorch's, which is what transformers streams."""

    def __init__(self, pictures: Any) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Any:
        return self._pictures[index]


class ZeroShotSegmentationPipeline(Pipeline):
    """Base of the zero-shot segmentation tasks; a task says how logits become its result."""

    _load_processor = True
    _load_image_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.processor, ZeroShotSegmentationProcessor):
            raise ValueError(
                f"expected a checkpoint of a family of zsseg, got {type(self.model).__name__} with "
                f"{type(self.processor).__name__}: start a model from such parts by from_parts or "
                "from_mask2former, and save it with its processor"
            )

    def __call__(
        self, image: Any = None, candidate_labels: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Segment pictures by words.

        Args:
            image: a path, URL, PIL image or array; a list, generator or data set of them (or of mappings
                with the key ``"image"``).
            candidate_labels: the labels; ``"car|automobile"`` is one label with a synonym.
            kwargs: ``stuff_labels``: those of the labels that are stuff; ``prompt_templates``; ``timeout`` in
                seconds for URLs; ``threshold``, ``mask_threshold``, ``overlap_mask_area_threshold``;
                ``batch_size``; ``num_workers``; ``on_error``: ``"raise"`` (default for one picture) or
                ``"report"`` (default for many: the result of an unreadable picture is ``{"error":
                message}``, and the others are done).

        Returns:
            One result for one picture, a list for a list, an iterator for a generator or data set.

        Raises:
            ValueError: for labels or options that do not fit, or an unreadable picture under ``"raise"``.
        """
        if image is None:
            raise ValueError("pass a picture: a path, URL, PIL image or array, or a list of them")
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "text_embeds" not in self._forward_params:
            raise ValueError("candidate_labels are missing: pass them to the pipeline or to the call")
        is_single = _is_one_picture(image)
        if "on_error" not in self._preprocess_params:
            kwargs.setdefault("on_error", "raise" if is_single else "report")
        if is_single:
            return super().__call__(image, **kwargs)
        if isinstance(image, (list, tuple)):
            return super().__call__(list(image), **kwargs) if image else []
        if isinstance(image, Sized) and hasattr(image, "__getitem__"):
            return super().__call__(_IndexedPictures(image), **kwargs)
        return super().__call__((picture for picture in image), **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[str] | None = None,
        stuff_labels: Collection[str] = (),
        prompt_templates: Sequence[str] | None = None,
        timeout: float | None = None,
        on_error: str | None = None,
        **postprocess_params: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := sorted(set(postprocess_params) - set(self.postprocess_options)):
            raise TypeError(
                f"unknown options {unknown}; this task takes candidate_labels, stuff_labels, "
                "prompt_templates, timeout, on_error, batch_size, num_workers, "
                f"{', '.join(self.postprocess_options)}"
            )
        preprocess_params: dict[str, Any] = {}
        forward_params: dict[str, Any] = {}
        if timeout is not None:
            preprocess_params["timeout"] = timeout
        if on_error is not None:
            if on_error not in ("raise", "report"):
                raise ValueError(f"on_error must be 'raise' or 'report', got {on_error!r}")
            preprocess_params["on_error"] = on_error
        if candidate_labels is None and (stuff_labels or prompt_templates is not None):
            needing = "stuff_labels" if stuff_labels else "prompt_templates"
            raise ValueError(f"{needing} needs candidate_labels beside it")
        if candidate_labels is not None:
            vocabulary = Vocabulary.from_labels(candidate_labels, stuff_labels=stuff_labels)
            forward_params = encode_vocabulary(
                self.model, self.processor, vocabulary, prompt_templates=prompt_templates
            )
            postprocess_params["vocabulary"] = vocabulary
        return preprocess_params, forward_params, postprocess_params

    @property
    @abstractmethod
    def postprocess_options(self) -> tuple[str, ...]:
        """Names of the task's own options."""

    def preprocess(
        self, image: Any, timeout: float = 30.0, on_error: str = "raise"
    ) -> dict[str, Any] | UnreadablePicture:
        """Read one picture and prepare its tensors."""
        try:
            picture = load_image(_find_source(image), timeout=timeout)
        except (ImageLoadError, TypeError) as error:
            if on_error == "raise":
                raise
            logger.warning(f"skipped: {error}")
            return UnreadablePicture(error)
        inputs = self.processor.image_processor([picture], return_tensors="pt")
        return {
            "pixel_values": inputs["pixel_values"],
            "pixel_mask": inputs["pixel_mask"],
            "target_size": (picture.height, picture.width),
        }

    def _forward(
        self, model_inputs: list[dict[str, Any]], text_embeds: Tensor, **text_inputs: Tensor
    ) -> list[ModelOutput]:
        outputs = compute_picture_outputs(self.model, model_inputs, text_embeds=text_embeds, **text_inputs)
        for output, inputs in zip(outputs, model_inputs, strict=True):
            output["target_size"] = inputs["target_size"]
        return outputs

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """One picture is a list of one."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Results in the order of the pictures, made as they are asked for."""
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        total = len(inputs) if isinstance(inputs, Sized) else None
        is_long = total is not None and total >= PROGRESS_FROM
        with tqdm(total=total, unit="picture", disable=None if is_long else True) as progress:
            for batch in loader:
                readable = [item for item in batch if not isinstance(item, UnreadablePicture)]
                outputs = iter(self.forward(readable, **forward_params) if readable else [])
                for item in batch:
                    progress.update()
                    if isinstance(item, UnreadablePicture):
                        yield {"error": str(item.error)}
                    else:
                        yield self.postprocess(next(outputs), **postprocess_params)

    @abstractmethod
    def merge(
        self, model_outputs: ModelOutput, vocabulary: Vocabulary, **options: float
    ) -> PanopticSegmentation:
        """Logits of one picture → its map; what files and tables of results are made of."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model and processor; :func:`transformers.pipeline` reads the folder back.

        Args:
            save_directory: folder, made if it is missing.
            kwargs: options of the model's ``save_pretrained``, such as ``max_shard_size``.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def build_records(segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The result of one picture: a dictionary per segment, with its mask as an L image of 0 and 255."""
    return [
        {
            "id": segment.id,
            "label": vocabulary[segment.label_id].name,
            "score": segment.score,
            "isthing": segment.isthing,
            "mask": Image.fromarray(segmentation.mask(segment.id)).convert("L"),
            "area": segment.area,
            "bbox": list(segment.bbox),
        }
        for segment in segmentation.segments
    ]


def _find_source(image: Any) -> Any:
    """The picture itself, also where a data set wraps it in a mapping."""
    if not isinstance(image, Mapping):
        return image
    if "image" not in image:
        raise TypeError(
            f"a mapping must hold the picture under the key 'image', got the keys {list(image)[:10]}"
        )
    return image["image"]


def _is_one_picture(image: Any) -> bool:
    if isinstance(image, (str, bytes, os.PathLike, Image.Image, Mapping)):
        return True
    # Arrays and tensors can be iterated, but are one picture.
    return hasattr(image, "ndim") or not (isinstance(image, Iterable) or hasattr(image, "__getitem__"))
