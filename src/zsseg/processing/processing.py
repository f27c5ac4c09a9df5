"""Images and labels → one batch; a model's output → maps of segments. Shared by every family."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import ModelOutput, cached_file

from zsseg.image_loading import load_image
from zsseg.postprocessing.instance import InstanceMask, merge_instances
from zsseg.postprocessing.panoptic import merge_panoptic
from zsseg.postprocessing.semantic import merge_semantic
from zsseg.processing.precomputed_text_embeddings import FILE_NAME, PrecomputedTextEmbeddings
from zsseg.prompts import PADING_PROMPTS, fill_prompts
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
UNLIMITED_TOKENS = 1_000_000


@dataclass(frozen=True)
class _ImageLogits:
    """One image's share of a batched output."""

    class_logits: Tensor
    mask_logits: Tensor
    query_weights: Tensor | None
    target_size: tuple[int, int]
    valid_fraction: tuple[float, float]


class ZeroShotSegmentationProcessor(ProcessorMixin):
    """Image processor and text source of a checkpoint, and its post-processing.

    Args:
        image_processor: pictures → ``pixel_values`` and ``pixel_mask``.
        tokenizer: for checkpoints with a text tower.
        text_embeddings: precomputed vectors, for checkpoints without one; exactly one of the two.
        prompt_templates: each label's texts are put into these; only with a tokenizer.
        threshold: default score above which a query is kept.
        mask_threshold: default probability from which a pixel belongs to a mask.
        overlap_mask_area_threshold: default share of its own mask that a query must win to be kept.

    Raises:
        ValueError: if both or none of tokenizer and text embeddings are given.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any = None,
        text_embeddings: PrecomputedTextEmbeddings | None = None,
        prompt_templates: Sequence[str] = PADING_PROMPTS,
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
    ) -> None:
        if (tokenizer is None) == (text_embeddings is None):
            given = "neither" if tokenizer is None else "both"
            raise ValueError(f"pass either a tokenizer or text_embeddings, got {given}")
        fill_prompts("", prompt_templates)
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.text_embeddings = text_embeddings
        self.prompt_templates = list(prompt_templates)
        self.threshold = threshold
        self.mask_threshold = mask_threshold
        self.overlap_mask_area_threshold = overlap_mask_area_threshold
        self.chat_template = None

    def __call__(
        self,
        images: Any = None,
        candidate_labels: Sequence[str] | Vocabulary | None = None,
        *,
        prompt_templates: Sequence[str] | None = None,
        return_tensors: str = "pt",
        **images_kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch; images, labels or both.

        Args:
            images: one image or a list of them: whatever :func:`~zsseg.image_loading.load_image` opens.
            candidate_labels: K labels (``"car|automobile"`` has a synonym), or a vocabulary.
            prompt_templates: instead of the checkpoint's own.
            return_tensors: only ``"pt"``.
            images_kwargs: options of the image processor, such as ``size``.

        Returns:
            ``pixel_values`` (B, 3, H, W) and ``pixel_mask`` (B, H, W); ``text_label_ids`` (T,) with
            ``input_ids`` and ``attention_mask`` (T, P, L), or ``text_embeds`` (T, D).

        Raises:
            ValueError: for unreadable images, empty or repeated labels, or labels too long for the text
                tower.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', got {return_tensors!r}")
        if images is None and candidate_labels is None:
            raise ValueError("pass images, candidate_labels or both; got neither")
        batch = BatchFeature()
        if images is not None:
            sources = list(images) if isinstance(images, (list, tuple)) else [images]
            if not sources:
                raise ValueError("images must hold at least one image, got an empty list")
            pictures = [load_image(source) for source in sources]
            batch.update(self.image_processor(pictures, return_tensors="pt", **images_kwargs))
        if candidate_labels is not None:
            batch.update(self.encode_labels(candidate_labels, prompt_templates=prompt_templates))
        return batch

    def encode_labels(
        self,
        candidate_labels: Sequence[str] | Vocabulary,
        *,
        prompt_templates: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """The text half of a batch; see :meth:`__call__`."""
        vocabulary = (
            candidate_labels
            if isinstance(candidate_labels, Vocabulary)
            else Vocabulary.from_labels(candidate_labels)
        )
        texts = [text for category in vocabulary for text in category.texts]
        label_ids = [label_id for label_id, category in enumerate(vocabulary) for _ in category.texts]
        text_label_ids = torch.tensor(label_ids)
        if self.text_embeddings is not None:
            if prompt_templates is not None:
                raise ValueError(
                    "prompt_templates need a text tower; this checkpoint holds precomputed embeddings"
                )
            embeds = torch.from_numpy(self.text_embeddings.lookup(texts))
            return {"text_embeds": embeds, "text_label_ids": text_label_ids}
        templates = self.prompt_templates if prompt_templates is None else prompt_templates
        return {**self._tokenize(texts, templates), "text_label_ids": text_label_ids}

    def _tokenize(self, texts: Sequence[str], templates: Sequence[str]) -> dict[str, Tensor]:
        prompts = [prompt for text in texts for prompt in fill_prompts(text, templates)]
        tokens = [torch.tensor(ids) for ids in self.tokenizer(prompts, truncation=False)["input_ids"]]
        limit = self.tokenizer.model_max_length
        lengths = torch.tensor([len(ids) for ids in tokens])
        longest = int(lengths.argmax())
        if limit < UNLIMITED_TOKENS and int(lengths[longest]) > limit:
            text = texts[longest // len(templates)]
            raise ValueError(
                f"the label {text[:60]!r}… takes {int(lengths[longest])} tokens in its prompt, but the text "
                f"tower reads {limit}: shorten it"
            )
        padding_id = self.tokenizer.pad_token_id or 0
        input_ids = pad_sequence(tokens, batch_first=True, padding_value=padding_id)
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        if "attention_mask" not in self.tokenizer.model_input_names:
            # The tower of such a tokenizer (SigLIP's) was trained on full contexts, padding included.
            input_ids = F.pad(input_ids, (0, limit - input_ids.shape[1]), value=padding_id)
            attention_mask = torch.ones_like(input_ids)
        shape = (len(texts), len(templates), -1)
        return {"input_ids": input_ids.view(shape), "attention_mask": attention_mask.view(shape)}

    def merge_panoptic(
        self,
        outputs: ModelOutput,
        *,
        stuff_label_ids: Collection[int] = (),
        target_sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
    ) -> list[PanopticSegmentation]:
        """One :class:`~zsseg.PanopticSegmentation` per image; arguments as in ``post_process_`` methods."""
        return [
            merge_panoptic(
                image.class_logits,
                image.mask_logits,
                stuff_label_ids=stuff_label_ids,
                target_size=image.target_size,
                valid_fraction=image.valid_fraction,
                threshold=self.threshold if threshold is None else threshold,
                mask_threshold=self.mask_threshold if mask_threshold is None else mask_threshold,
                overlap_mask_area_threshold=self.overlap_mask_area_threshold
                if overlap_mask_area_threshold is None
                else overlap_mask_area_threshold,
            )
            for image in _split_outputs(outputs, target_sizes)
        ]

    def post_process_panoptic_segmentation(
        self,
        outputs: ModelOutput,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: Collection[int] = (),
        target_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Logits → panoptic maps, in transformers' form.

        Args:
            outputs: of the model.
            threshold: score above which a query is kept; None takes the checkpoint's own, as below.
            mask_threshold: probability from which a pixel belongs to a mask.
            overlap_mask_area_threshold: share of its own mask that a query must win.
            label_ids_to_fuse: the stuff: queries of one such label become one segment.
            target_sizes: (height, width) per image; None keeps the size of the masks, padding cropped.

        Returns:
            Per image ``segmentation`` (H, W) int32, 0 void and 1..S the segments, and ``segments_info``, a
            list of ``id``, ``label_id``, ``score``, ``isthing``, ``was_fused``, ``area`` and ``bbox``
            (x, y, width, height).
        """
        merged = self.merge_panoptic(
            outputs,
            stuff_label_ids=label_ids_to_fuse,
            target_sizes=target_sizes,
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
        )
        return [
            {
                "segmentation": torch.from_numpy(result.segment_ids),
                "segments_info": [
                    {
                        "id": segment.id,
                        "label_id": segment.label_id,
                        "score": segment.score,
                        "isthing": segment.isthing,
                        "was_fused": not segment.isthing,
                        "area": segment.area,
                        "bbox": list(segment.bbox),
                    }
                    for segment in result.segments
                ],
            }
            for result in merged
        ]

    def post_process_semantic_segmentation(
        self, outputs: ModelOutput, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Logits → per image an (H, W) int64 map of label ids; every pixel gets a label."""
        return [
            torch.from_numpy(
                merge_semantic(
                    image.class_logits,
                    image.mask_logits,
                    query_weights=image.query_weights,
                    target_size=image.target_size,
                    valid_fraction=image.valid_fraction,
                )
            )
            for image in _split_outputs(outputs, target_sizes)
        ]

    def post_process_instance_segmentation(
        self,
        outputs: ModelOutput,
        *,
        thing_label_ids: Collection[int],
        target_sizes: Sequence[tuple[int, int]] | None = None,
        top_k: int = 100,
        threshold: float = 0.0,
        mask_threshold: float | None = None,
    ) -> list[list[InstanceMask]]:
        """Logits → per image up to ``top_k`` scored masks of things, which may overlap, best first."""
        return [
            merge_instances(
                image.class_logits,
                image.mask_logits,
                thing_label_ids=thing_label_ids,
                target_size=image.target_size,
                valid_fraction=image.valid_fraction,
                top_k=top_k,
                threshold=threshold,
                mask_threshold=self.mask_threshold if mask_threshold is None else mask_threshold,
            )
            for image in _split_outputs(outputs, target_sizes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds; tokenizer and vectors have files of their own."""
        return {
            "processor_class": type(self).__name__,
            "image_processor": self.image_processor.to_dict(),
            "prompt_templates": self.prompt_templates,
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "overlap_mask_area_threshold": self.overlap_mask_area_threshold,
            "text_source": "tokenizer" if self.text_embeddings is None else "text_embeddings",
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> list[str]:
        """Write everything that :meth:`from_pretrained` reads; returns the processor's own file.

        Raises:
            ValueError: for ``push_to_hub=True``, which is the method :meth:`push_to_hub` here.
        """
        if options.get("push_to_hub"):
            raise ValueError("save_pretrained writes to disk only: call push_to_hub(repo_id) to publish")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.text_embeddings is None:
            self.tokenizer.save_pretrained(folder)
        else:
            self.text_embeddings.save(folder)
        self.to_json_file(folder / "processor_config.json")
        return [str(folder / "processor_config.json")]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Read a processor from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            kwargs: Hub options; ``backend`` (``"pil"`` or ``"torchvision"``) of the image processor; and
                arguments of the class that replace the saved ones.

        Raises:
            OSError: if nothing is found there.
            ValueError: if the folder's processor is not one of zsseg.
        """
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        config, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub_arguments)
        if not config:
            raise OSError(
                f"there is no processor_config.json in {str(pretrained_model_name_or_path)!r}: pass a folder "
                "that save_pretrained wrote, or a Hub id"
            )
        if "text_source" not in config:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds a processor of class "
                f"{config.get('processor_class')!r}, expected one saved by {cls.__name__}: use a checkpoint "
                "saved by zsseg"
            )
        backend = {"backend": kwargs["backend"]} if "backend" in kwargs else {}
        image_processor = AutoImageProcessor.from_pretrained(
            pretrained_model_name_or_path, **hub_arguments, **backend
        )
        if config["text_source"] == "tokenizer":
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
            text_source: dict[str, Any] = {"tokenizer": tokenizer}
        else:
            path = cached_file(pretrained_model_name_or_path, FILE_NAME, **hub_arguments)
            text_source = {"text_embeddings": PrecomputedTextEmbeddings.load(path)}
        options = ("prompt_templates", "threshold", "mask_threshold", "overlap_mask_area_threshold")
        arguments = {name: kwargs.get(name, config[name]) for name in options}
        return cls(image_processor, **text_source, **arguments)


def _split_outputs(
    outputs: ModelOutput, target_sizes: Sequence[tuple[int, int]] | None
) -> Iterator[_ImageLogits]:
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    batch_size, _, grid_height, grid_width = mask_logits.shape
    if target_sizes is not None and len(target_sizes) != batch_size:
        raise ValueError(
            f"target_sizes must hold one (height, width) per image, {batch_size}, got {len(target_sizes)}"
        )
    valid_fractions = getattr(outputs, "valid_fractions", None)
    query_weights = getattr(outputs, "query_weights", None)
    for index in range(batch_size):
        height_share, width_share = (1.0, 1.0) if valid_fractions is None else valid_fractions[index].tolist()
        if target_sizes is None:
            target = (max(1, round(grid_height * height_share)), max(1, round(grid_width * width_share)))
        else:
            target = (int(target_sizes[index][0]), int(target_sizes[index][1]))
        yield _ImageLogits(
            class_logits[index],
            mask_logits[index],
            None if query_weights is None else query_weights[index],
            target,
            (height_share, width_share),
        )
