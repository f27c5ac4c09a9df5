"""CLS tokens of a data set's pictures and segments: computed once by a frozen CLIP, then read from disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.data.examples import ClipTokens, PanopticDataset, PanopticExample, compute_example_digest
from zsseg.data.segment_crops import Color, CropMode, crop_segment, crop_whole
from zsseg.data.tensor_store import TensorStore, TensorStoreError, build_tensor_store
from zsseg.structures import SegmentInfo
from zsseg.vocabulary import Vocabulary

EXAMPLES_PER_CALL = 16
"""Pictures whose crops are encoded together: enough to fill a GPU, few enough for memory."""

Encode = Callable[[NDArray[np.uint8]], Tensor]


def build_clip_tokens(
    dataset: PanopticDataset,
    folder: Path,
    *,
    encode: Encode,
    image_size: int,
    fill_color: Color,
    teacher_hash: str,
    crop_mode: CropMode = "box",
    shard_size: int = 256,
    progress: bool = True,
) -> TensorStore:
    """Compute what is missing of a data set's tokens, and open their store.

    A killed building goes on, see :func:`~zsseg.data.tensor_store.build_tensor_store`. A store of another
    teacher, crop or data set is built anew. A data set is known by its length, its labels and its first
    example.

    Args:
        dataset: examples, the same at every reading: wrap it in transforms afterwards.
        folder: of the store.
        encode: (N, S, S, 3) RGB, 8 bits → (N, D) tokens.
        image_size: S in pixels.
        fill_color: RGB, 8 bits, of what is masked out.
        teacher_hash: changes with anything in ``encode`` that changes tokens.
        crop_mode: how a segment is shown, see :func:`~zsseg.data.segment_crops.crop_segment`.
        shard_size: examples in a file, which is also what is lost when the building is killed.
        progress: show a bar on a terminal.

    Returns:
        By index ``image_token`` (1, D) float16, ``segment_tokens`` (n, D) float16 and ``segment_ids`` (n,)
        int32 of the segments that are no crowds, and ``digest`` (1, 32) uint8 of picture and map.

    Raises:
        FileExistsError: if the folder holds files that no store wrote.

    Reference:
        CONCAT (arXiv:2402.13697), conditional token alignment; keeping the tokens is a choice of ours, as the
        ground-truth segments do not change.
    """
    identity = {
        "teacher": teacher_hash,
        "crop mode": crop_mode,
        "image size": str(image_size),
        "fill color": str(fill_color),
        "labels": json.dumps(dataset.vocabulary.names, ensure_ascii=False),
        "first example": compute_example_digest(dataset[0]).hex(),
    }
    return build_tensor_store(
        folder,
        identity=identity,
        num_items=len(dataset),
        compute=_TokenComputer(dataset, encode, image_size, fill_color, crop_mode),
        shard_size=shard_size,
        description="CLS tokens",
        progress=progress,
    )


class ClipTokenDataset:
    """A data set whose examples carry their tokens.

    Args:
        dataset: the data set that the tokens were computed from.
        store: of :func:`build_clip_tokens`.

    Raises:
        ValueError: if their lengths differ.
    """

    def __init__(self, dataset: PanopticDataset, store: TensorStore) -> None:
        if len(dataset) != len(store):
            raise ValueError(
                f"the data set has {len(dataset)} examples, but {store.folder} holds tokens of {len(store)}: "
                "build the tokens of this data set"
            )
        self.dataset = dataset
        self.store = store

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the data set."""
        return self.dataset.vocabulary

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PanopticExample:
        """Read one example with its tokens.

        Raises:
            TensorStoreError: if the picture or its map is another than the one the tokens belong to.
        """
        example = self.dataset[index]
        tensors = self.store[index]
        if tensors["digest"].numpy().tobytes() != compute_example_digest(example):
            raise TensorStoreError(
                f"{example.file_name} (example {index}): its picture or map has changed since its tokens "
                f"were computed; remove {self.store.folder} and build the tokens again"
            )
        tokens = tensors["segment_tokens"].float().numpy()
        segments = dict(zip(tensors["segment_ids"].tolist(), tokens, strict=True))
        return replace(example, tokens=ClipTokens(tensors["image_token"][0].float().numpy(), segments))

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one target."""
        return self.dataset.label_ids(index)


@dataclass(frozen=True)
class _TokenComputer:
    """Computes the tensors of a range of examples; the attributes are arguments of the building."""

    dataset: PanopticDataset
    encode: Encode
    image_size: int
    fill_color: Color
    crop_mode: CropMode

    def __call__(self, indices: range) -> list[dict[str, Tensor]]:
        tensors = []
        for start in range(indices.start, indices.stop, EXAMPLES_PER_CALL):
            stop = min(start + EXAMPLES_PER_CALL, indices.stop)
            tensors += self._compute_some([self.dataset[index] for index in range(start, stop)])
        return tensors

    def _compute_some(self, examples: Sequence[PanopticExample]) -> list[dict[str, Tensor]]:
        crops = [self._crop(example) for example in examples]
        tokens = self.encode(np.concatenate(crops)).cpu().half().split([len(pictures) for pictures in crops])
        return [
            {
                "image_token": example_tokens[:1],
                "segment_tokens": example_tokens[1:],
                "segment_ids": torch.tensor([segment.id for segment in _list_segments(example)]).int(),
                "digest": torch.frombuffer(bytearray(compute_example_digest(example)), dtype=torch.uint8)[
                    None
                ],
            }
            for example, example_tokens in zip(examples, tokens, strict=True)
        ]

    def _crop(self, example: PanopticExample) -> NDArray[np.uint8]:
        """The whole picture, then each segment: (1 + n, S, S, 3)."""
        pixels = np.asarray(example.image)
        crops = [
            crop_segment(
                pixels,
                example.target.segment_ids,
                segment,
                size=self.image_size,
                fill_color=self.fill_color,
                mode=self.crop_mode,
            )
            for segment in _list_segments(example)
        ]
        return np.stack([crop_whole(pixels, size=self.image_size, fill_color=self.fill_color), *crops])


def _list_segments(example: PanopticExample) -> list[SegmentInfo]:
    """The segments that have a token: nothing is learnt from crowds."""
    return [segment for segment in example.target.segments if not segment.iscrowd]
