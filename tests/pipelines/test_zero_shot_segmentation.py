import logging
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import pipeline

from testing.tiny_models import build_bank, build_model, build_picture, build_processor
from zsseg.pipelines.zero_shot_panoptic_segmentation import ZeroShotPanopticSegmentationPipeline
from zsseg.pipelines.zero_shot_semantic_segmentation import ZeroShotSemanticSegmentationPipeline

PANOPTIC, SEMANTIC = "zero-shot-panoptic-segmentation", "zero-shot-semantic-segmentation"
LABELS = ["road", "car|automobile", "tree"]
OPTIONS = {"candidate_labels": LABELS, "stuff_labels": ["road", "tree"]}


@pytest.fixture(scope="module")
def panoptic(concat_checkpoint):
    return pipeline(PANOPTIC, model=str(concat_checkpoint))


@pytest.fixture(scope="module")
def semantic(concat_checkpoint):
    return pipeline(SEMANTIC, model=str(concat_checkpoint))


@pytest.fixture(scope="module")
def picture():
    return build_picture(64, 96)


@pytest.fixture(scope="module")
def mixed_pictures():
    sizes = [(64, 96), (96, 64), (64, 96), (50, 50), (96, 64)]
    return [build_picture(*size, seed=seed) for seed, size in enumerate(sizes)]


def to_map(records, size):
    """The records' masks as one map of labels, the last one on top, and the labels."""
    drawn = np.full(size, -1)
    for index, record in enumerate(records):
        drawn[np.asarray(record["mask"]) > 0] = index
    return drawn, [record["label"] for record in records]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for records, expected_records in zip(found, expected, strict=True):
        assert [r["label"] for r in records] == [r["label"] for r in expected_records]
        for record, expected_record in zip(records, expected_records, strict=True):
            mask, expected_mask = (np.asarray(r["mask"]) for r in (record, expected_record))
            assert mask.shape == expected_mask.shape
            # Sums of a batch may be rounded otherwise; that may move a pixel on an outline.
            assert (mask != expected_mask).mean() < 1e-3
            assert record.get("score") == pytest.approx(expected_record.get("score"), abs=1e-4)


def test_panoptic_records(panoptic, picture):
    assert type(panoptic) is ZeroShotPanopticSegmentationPipeline
    records = panoptic(picture, **OPTIONS)
    assert records
    covered = np.zeros((64, 96), dtype=int)
    for number, record in enumerate(records, start=1):
        assert set(record) == {"id", "label", "score", "isthing", "mask", "area", "bbox"}
        assert record["id"] == number
        assert record["label"] in ("road", "car", "tree")
        assert record["isthing"] == (record["label"] == "car")
        assert 0 <= record["score"] <= 1
        assert record["mask"].mode == "L"
        assert record["mask"].size == (96, 64)
        mask = np.asarray(record["mask"])
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).sum() == record["area"] > 0
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert record["bbox"] == box
        covered += mask > 0
    assert covered.max() == 1
    stuff = [record["label"] for record in records if not record["isthing"]]
    assert len(stuff) == len(set(stuff))


def test_semantic_records(semantic, picture):
    assert type(semantic) is ZeroShotSemanticSegmentationPipeline
    records = semantic(picture, candidate_labels=LABELS)
    assert sum((np.asarray(record["mask"]) > 0).astype(int) for record in records).tolist() == [[1] * 96] * 64
    assert [record["area"] for record in records] == [(np.asarray(r["mask"]) > 0).sum() for r in records]
    names = [record["label"] for record in records]
    assert names == [name for name in ("road", "car", "tree") if name in names]


def test_the_pipeline_is_processor_and_model(panoptic, picture):
    inputs = panoptic.processor(picture, LABELS)
    with torch.no_grad():
        outputs = panoptic.model(**inputs)
    (expected,) = panoptic.processor.merge_panoptic(outputs, stuff_label_ids=[0, 2], target_sizes=[(64, 96)])
    records = panoptic(picture, **OPTIONS)
    assert [record["area"] for record in records] == [segment.area for segment in expected.segments]
    assert [record["score"] for record in records] == [segment.score for segment in expected.segments]


class Pictures(Dataset):
    """A data set that never raises IndexError, as many do."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return {"image": self.pictures[index % len(self.pictures)]}


class Stream(IterableDataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __iter__(self):
        yield from self.pictures


@pytest.mark.slow
def test_every_kind_of_input(panoptic, mixed_pictures, tmp_path):
    import datasets

    pictures = [Image.fromarray(array) for array in mixed_pictures[:3]]
    paths = []
    for index, picture in enumerate(pictures):
        paths.append(tmp_path / f"{index}.png")
        picture.save(paths[-1])
    expected = [panoptic(picture, **OPTIONS) for picture in pictures]
    columns = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
    inputs = {
        "paths": paths,
        "strings": [str(path) for path in paths],
        "arrays": mixed_pictures[:3],
        "tuple": tuple(pictures),
        "mappings": [{"image": picture} for picture in pictures],
        "generator": (picture for picture in pictures),
        "data set": Pictures(pictures),
        "stream": Stream(pictures),
        "datasets": columns.cast_column("image", datasets.Image()),
    }
    for kind, images in inputs.items():
        results = panoptic(images, **OPTIONS)
        assert isinstance(results, list) == (kind in ("paths", "strings", "arrays", "tuple", "mappings")), (
            kind
        )
        assert_same(list(results), expected)
    assert_same([panoptic(str(paths[0]), **OPTIONS)], expected[:1])
    assert_same([panoptic({"image": pictures[0]}, **OPTIONS)], expected[:1])
    assert panoptic([], **OPTIONS) == []


def test_generators_are_read_as_needed(panoptic, picture):
    read = []

    def generate():
        for index in range(5):
            read.append(index)
            yield picture

    results = panoptic(generate(), **OPTIONS)
    next(results)
    assert len(read) < 5
    assert len(list(results)) == 4


@pytest.mark.parametrize("task", [PANOPTIC, SEMANTIC])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_of_mixed_sizes_are_one_at_a_time(task, batch_size, panoptic, semantic, mixed_pictures):
    segment, options = (panoptic, OPTIONS) if task == PANOPTIC else (semantic, {"candidate_labels": LABELS})
    expected = [segment(picture, **options) for picture in mixed_pictures]
    assert_same(segment(mixed_pictures, batch_size=batch_size, **options), expected)
    assert_same(list(segment(iter(mixed_pictures), batch_size=batch_size, **options)), expected)


def test_equal_sizes_share_a_forward_pass(panoptic, mixed_pictures):
    batch_sizes = []
    hook = panoptic.model.register_forward_pre_hook(
        lambda _, args, kwargs: batch_sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        panoptic(mixed_pictures, batch_size=5, **OPTIONS)
    finally:
        hook.remove()
    assert sorted(batch_sizes) == [1, 2, 2]


def test_workers(panoptic, mixed_pictures):
    expected = panoptic(mixed_pictures[:3], **OPTIONS)
    assert_same(panoptic(mixed_pictures[:3], num_workers=1, **OPTIONS), expected)


def test_the_text_tower_runs_once_for_many_calls(panoptic, mixed_pictures):
    calls = []
    hook = panoptic.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    labels = ["a label of this test alone", "another"]
    try:
        for _ in range(2):
            panoptic(mixed_pictures, candidate_labels=labels)
    finally:
        hook.remove()
    assert len(calls) == 1


def test_labels_and_options_set_once(concat_checkpoint, picture, panoptic):
    segment = pipeline(PANOPTIC, model=str(concat_checkpoint), threshold=0.0, **OPTIONS)
    assert_same([segment(picture)], [panoptic(picture, **OPTIONS)])
    assert segment(picture, threshold=1.0) == []
    other = segment(picture, candidate_labels=["grass"])
    assert {record["label"] for record in other} == {"grass"}
    assert all(record["isthing"] for record in other)


def test_prompts_change_the_result_of_the_text_tower(panoptic, picture):
    expected = panoptic(picture, candidate_labels=LABELS)
    found = panoptic(picture, candidate_labels=LABELS, prompt_templates=["{}"])
    assert [r["score"] for r in found] != [r["score"] for r in expected]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(dtype, concat_checkpoint, mixed_pictures):
    segment = pipeline(SEMANTIC, model=str(concat_checkpoint), dtype=dtype)
    assert segment.model.dtype == getattr(torch, dtype)
    results = segment(mixed_pictures[:2], batch_size=2, candidate_labels=LABELS)
    assert [records[0]["mask"].size for records in results] == [(96, 64), (64, 96)]


def test_device(concat_checkpoint, picture):
    segment = pipeline(PANOPTIC, model=str(concat_checkpoint), device="cpu")
    assert segment.device == torch.device("cpu")
    assert segment(picture, **OPTIONS)


@pytest.mark.gpu
def test_device_cuda(concat_checkpoint, panoptic, mixed_pictures):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    segment = pipeline(PANOPTIC, model=str(concat_checkpoint), device=0)
    expected = panoptic(mixed_pictures, **OPTIONS)
    found = segment(mixed_pictures, batch_size=2, **OPTIONS)
    assert [len(records) for records in found] == [len(records) for records in expected]


@pytest.mark.parametrize("task", [PANOPTIC, SEMANTIC])
def test_saved_pipelines_come_back(task, panoptic, semantic, picture, tmp_path):
    segment, options = (panoptic, OPTIONS) if task == PANOPTIC else (semantic, {"candidate_labels": LABELS})
    segment.save_pretrained(tmp_path)
    assert_same([pipeline(task, model=str(tmp_path))(picture, **options)], [segment(picture, **options)])


def test_precomputed_vectors(bank_checkpoint, picture):
    segment = pipeline(PANOPTIC, model=str(bank_checkpoint))
    assert segment(picture, candidate_labels=["traffic light", "road"])
    with pytest.raises(ValueError, match="no embedding for 'roads'; nearest names: 'road'"):
        segment(picture, candidate_labels=["roads"])


def test_ten_thousand_labels(picture):
    labels = [f"label {index}" for index in range(10_000)]
    segment = ZeroShotPanopticSegmentationPipeline(
        model=build_model(), processor=build_processor(text_embeddings=build_bank(labels))
    )
    records = segment(picture, candidate_labels=labels, threshold=0.0)
    assert records
    assert {record["label"] for record in records} <= set(labels)


def test_vectors_of_another_width(picture):
    segment = ZeroShotSemanticSegmentationPipeline(
        model=build_model(), processor=build_processor(text_embeddings=build_bank(width=7))
    )
    with pytest.raises(ValueError, match=r"text_embeds must be \(texts, 12\).*got \(4, 7\)"):
        segment(picture, candidate_labels=["road", "car", "tree", "traffic light"])


# --- bad input ------------------------------------------------------------------------------------------


@pytest.fixture
def bad_pictures(tmp_path, picture):
    truncated, empty = tmp_path / "truncated.png", tmp_path / "empty.png"
    Image.fromarray(picture).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:200])
    empty.write_bytes(b"")
    return {
        str(truncated): "cut off",
        str(empty): "it is empty",
        str(tmp_path / "missing.png"): "no such file",
    }


def test_bad_pictures_in_a_list_are_reported_and_the_rest_done(panoptic, picture, bad_pictures, caplog):
    expected = panoptic(picture, **OPTIONS)
    bad = list(bad_pictures)
    images = [picture, bad[0], picture, None, bad[1], bad[2], {"img": picture}, picture]
    logging.getLogger("transformers").addHandler(caplog.handler)
    logging.getLogger("zsseg").addHandler(caplog.handler)
    try:
        results = panoptic(images, batch_size=3, **OPTIONS)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
        logging.getLogger("zsseg").removeHandler(caplog.handler)
    assert_same([results[0], results[2], results[7]], [expected] * 3)
    for index, path in ((1, bad[0]), (4, bad[1]), (5, bad[2])):
        assert set(results[index]) == {"error"}
        assert bad_pictures[path] in results[index]["error"]
        assert path in results[index]["error"]
    assert "got NoneType" in results[3]["error"]
    assert "under the key 'image', got the keys ['img']" in results[6]["error"]
    assert caplog.text.count("skipped: ") >= 5


def test_a_batch_of_bad_pictures_alone(panoptic, bad_pictures):
    results = panoptic(list(bad_pictures), batch_size=3, **OPTIONS)
    assert [set(result) for result in results] == [{"error"}] * 3


def test_one_bad_picture_raises(panoptic, bad_pictures):
    for path, message in bad_pictures.items():
        with pytest.raises(ValueError, match=message):
            panoptic(path, **OPTIONS)
    assert "error" in panoptic(path, on_error="report", **OPTIONS)


def test_an_address_nobody_answers_at(panoptic, picture):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/street.jpg"
    with pytest.raises(ValueError, match=r"street\.jpg'?: it cannot be reached"):
        panoptic(url, timeout=2.0, **OPTIONS)
    results = panoptic([url, picture], timeout=2.0, **OPTIONS)
    assert "cannot be reached" in results[0]["error"]
    assert isinstance(results[1], list)


def test_on_error_raise_for_lists(panoptic, concat_checkpoint, picture, bad_pictures):
    images = [picture, *bad_pictures]
    with pytest.raises(ValueError, match="cut off"):
        panoptic(images, on_error="raise", **OPTIONS)
    segment = pipeline(PANOPTIC, model=str(concat_checkpoint), on_error="raise", **OPTIONS)
    with pytest.raises(ValueError, match="cut off"):
        segment(images)
    assert "error" in segment(images, on_error="report")[1]


CALLS = {
    "no labels at all": ({}, ValueError, "candidate_labels are missing"),
    "an empty list": ({"candidate_labels": []}, ValueError, "at least one label"),
    "an empty string": ({"candidate_labels": ["road", " "]}, ValueError, "label 1 holds an empty text"),
    "duplicates": ({"candidate_labels": ["car", "car"]}, ValueError, "must be unique"),
    "a string": ({"candidate_labels": "road, car"}, TypeError, "must be a list of strings"),
    "too long": ({"candidate_labels": ["road " * 50]}, ValueError, "but the text tower reads 77: shorten it"),
    "stuff elsewhere": (
        {"candidate_labels": ["road"], "stuff_labels": ["sky"]},
        ValueError,
        r"stuff_labels must be among the candidate labels, but \['sky'\]",
    ),
    "an unknown option": (
        {"candidate_labels": ["road"], "treshold": 0.5},
        TypeError,
        r"unknown options \['treshold'\]; this task takes candidate_labels",
    ),
    "a threshold out of range": (
        {"candidate_labels": ["road"], "threshold": 80},
        ValueError,
        r"threshold must lie in \[0, 1\]",
    ),
    "another way with errors": (
        {"candidate_labels": ["road"], "on_error": "ignore"},
        ValueError,
        "on_error must be 'raise' or 'report', got 'ignore'",
    ),
    "a template without a place": (
        {"candidate_labels": ["road"], "prompt_templates": ["a photo"]},
        ValueError,
        "must contain {}",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), CALLS.values(), ids=CALLS.keys())
def test_calls_that_do_not_fit(options, error, message, panoptic, picture):
    with pytest.raises(error, match=message):
        panoptic([picture], **options)


@pytest.mark.parametrize("option", [{"stuff_labels": ["road"]}, {"prompt_templates": ["{}"]}])
def test_options_of_labels_need_labels(option, concat_checkpoint, picture):
    segment = pipeline(PANOPTIC, model=str(concat_checkpoint), candidate_labels=["road"])
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs candidate_labels beside it"):
        segment(picture, **option)


def test_semantic_segmentation_takes_no_thresholds(semantic, picture):
    with pytest.raises(TypeError, match=r"unknown options \['threshold'\]"):
        semantic(picture, candidate_labels=["road"], threshold=0.5)


def test_no_picture(panoptic):
    with pytest.raises(ValueError, match="pass a picture"):
        panoptic(candidate_labels=["road"])


@pytest.mark.parametrize("thing", [3, object()])
def test_what_is_no_picture(panoptic, thing):
    with pytest.raises(TypeError, match="an image must be a path"):
        panoptic(thing, **OPTIONS)


def test_emoji_labels(panoptic, picture):
    records = panoptic(picture, candidate_labels=["🦒", "🚗|car"], stuff_labels=["🚗"])
    assert {record["label"] for record in records} <= {"🦒", "🚗"}
    assert records


# --- checkpoints that do not fit ------------------------------------------------------------------------


def test_another_family_through_the_pipeline(clip_checkpoint):
    with pytest.raises(
        ValueError, match="a family of zsseg, got CLIPModel with CLIPProcessor: start a model"
    ):
        pipeline(PANOPTIC, model=str(clip_checkpoint))


def test_a_truncated_checkpoint_through_the_pipeline(panoptic, tmp_path):
    panoptic.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        (ValueError, OSError), match="the file is cut off or damaged; download or convert it again"
    ):
        pipeline(PANOPTIC, model=str(tmp_path))


def test_missing_weights_through_the_pipeline(panoptic, tmp_path):
    panoptic.save_pretrained(tmp_path)
    state = panoptic.model.state_dict()
    state.pop("no_object_embedding")
    panoptic.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"1 weights are missing, first \['no_object_embedding'\]"):
        pipeline(PANOPTIC, model=str(tmp_path))
