import numpy as np
import pytest

from zsseg.data.collate import PanopticCollator
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose, LargeScaleJitter, RandomHorizontalFlip

TRANSFORM = Compose([LargeScaleJitter((32, 32)), RandomHorizontalFlip()])


def pixels(example):
    return np.asarray(example.image).tobytes(), example.target.segment_ids.tobytes()


def test_items_are_a_function_of_seed_epoch_and_index(coco_dataset):
    dataset = TransformedDataset(coco_dataset, TRANSFORM, seed=3)
    first = [pixels(example) for example in dataset]
    assert [pixels(dataset[1]), pixels(dataset[0])] == first[::-1]
    assert pixels(dataset[-1]) == first[1]
    dataset.set_epoch(1)
    assert [pixels(example) for example in dataset] != first
    dataset.set_epoch(0)
    assert [pixels(example) for example in dataset] == first
    assert pixels(TransformedDataset(coco_dataset, TRANSFORM, seed=4)[0]) != first[0]


def test_what_it_passes_on(coco_dataset):
    dataset = TransformedDataset(coco_dataset, TRANSFORM, seed=0)
    assert len(dataset) == 2
    assert dataset.vocabulary is coco_dataset.vocabulary
    assert dataset.label_ids(1) == {0, 1}


def test_out_of_range(coco_dataset):
    dataset = TransformedDataset(coco_dataset, TRANSFORM, seed=0)
    for index in (2, -3):
        with pytest.raises(IndexError, match=r"\[0, 2\)"):
            dataset[index]
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        dataset.set_epoch(-1)
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        TransformedDataset(coco_dataset, TRANSFORM, seed=-1)


@pytest.mark.slow
def test_data_loader_workers_change_nothing(coco_dataset):
    torch = pytest.importorskip("torch")
    dataset = TransformedDataset(coco_dataset, TRANSFORM, seed=0)
    collate = PanopticCollator((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    batches = [
        next(iter(torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=n, collate_fn=collate)))
        for n in (0, 2)
    ]
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert all(
        torch.equal(a, b) for a, b in zip(batches[0]["mask_labels"], batches[1]["mask_labels"], strict=True)
    )
