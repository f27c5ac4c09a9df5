import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

pytest.importorskip("ray", reason="needs the extra scale")

import pyarrow as pa

from zsseg.batch_inference.coco_files import build_segmentation, write_coco_files
from zsseg.batch_inference.picture_segmenter import (
    MAX_ATTEMPTS,
    PartKillsWorkersError,
    PartSegmenter,
    PictureSegmenter,
    SegmenterSettings,
    TableSegmenter,
    encode_settings,
)
from zsseg.batch_inference.picture_sources import PictureReader, list_pictures
from zsseg.batch_inference.results_folder import RESULT_SCHEMA, ResultsFolder
from zsseg.pipelines.records import build_segmentation as build_from_records
from zsseg.vocabulary import Vocabulary

LABELS = ["road", "car|automobile", "tree"]
VOCABULARY = Vocabulary.from_labels(LABELS, stuff_labels=["tree"])


@pytest.fixture(scope="module")
def settings(finding_checkpoint):
    settings = SegmenterSettings(str(finding_checkpoint), VOCABULARY)
    return SegmenterSettings(
        str(finding_checkpoint), VOCABULARY, text_inputs=encode_settings(settings).text_inputs
    )


@pytest.fixture
def results(pictures, tmp_path):
    """Six pictures of three parts; the second is cut off, the last is missing."""
    path = pictures / "street1.png"
    path.write_bytes(path.read_bytes()[:300])
    results = ResultsFolder(tmp_path / "out")
    sources = list_pictures([str(pictures), str(pictures / "missing.png")])
    results.claim({}, sources, part_size=2, about={}, overwrite=False)
    return results


def segment_all(settings, results, **options):
    segmenter = PartSegmenter(settings, results, image_column="image", **options)
    return [segmenter.segment_part(part) for part in range(results.num_parts)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_hold_what_the_pipeline_finds(settings, results, finding_checkpoint, batch_size):
    settings = SegmenterSettings(
        settings.model, VOCABULARY, batch_size=batch_size, text_inputs=settings.text_inputs
    )
    assert segment_all(settings, results) == [2, 2, 2]
    assert len(results.read_failures()) == 2
    segmenter = pipeline("zero-shot-panoptic-segmentation", model=str(finding_checkpoint))
    for row in results.iterate_rows():
        if row["error"] is not None:
            continue
        found = segmenter(row["image"], candidate_labels=LABELS, stuff_labels=["tree"])
        expected = build_from_records(found, VOCABULARY, (row["height"], row["width"]))
        got = build_segmentation(row, VOCABULARY)
        got.check_pixels()
        assert len(got.segments) > 1
        assert row["seconds"] > 0
        if batch_size == 1:
            np.testing.assert_array_equal(got.segment_ids, expected.segment_ids)
            assert got.segments == expected.segments
        else:
            # Sums of a batch may be rounded otherwise; that may move a pixel on an outline.
            assert (got.segment_ids != expected.segment_ids).mean() < 1e-3
            assert [s.label for s in got.segments] == [s.label for s in expected.segments]


def test_a_bad_picture_is_a_row_with_its_error(settings, results):
    segment_all(settings, results)
    rows = list(results.iterate_rows())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    bad = [row for row in rows if row["error"] is not None]
    assert [row["file_name"] for row in bad] == ["street1.png", "missing.png"]
    assert "street1.png': its data are cut off" in bad[0]["error"]
    assert "missing.png': there is no such file" in bad[1]["error"]
    for row in bad:
        assert [row[name] for name in ("width", "height", "segments", "panoptic_png")] == [None] * 4
    assert results.read_failures() == [(row["image"], row["error"]) for row in bad]


def test_what_is_done_stays_and_failures_are_read_again_if_asked_for(settings, results, pictures):
    segment_all(settings, results)
    before = list(results.iterate_rows())
    assert segment_all(settings, results) == [0, 0, 0]
    (pictures / "street1.png").write_bytes((pictures / "street0.png").read_bytes())
    assert segment_all(settings, results, retry_failed=True) == [1, 0, 1]
    assert [row for row, _ in results.read_failures()] == [str(pictures / "missing.png")]
    after = list(results.iterate_rows())
    assert [row["image_id"] for row in after] == [1, 2, 3, 4, 5, 6]
    assert after[1]["panoptic_png"] == after[0]["panoptic_png"]
    assert [after[index] for index in (0, 2, 3, 4)] == [before[index] for index in (0, 2, 3, 4)]


def test_a_part_that_was_begun_too_often_is_given_up(settings, results):
    for _ in range(MAX_ATTEMPTS):
        results.begin_attempt(1)
    segmenter = PartSegmenter(settings, results, image_column="image")
    with pytest.raises(PartKillsWorkersError, match=r"part 1, from .*street2.png to .*street3.png, killed"):
        segmenter.segment_part(1)
    assert results.read_part(1) is None
    assert segmenter.segment_part(0) == 2


def test_a_semantic_run_gives_every_pixel_a_label(finding_checkpoint, results):
    settings = SegmenterSettings(str(finding_checkpoint), VOCABULARY, task="semantic")
    encoded = encode_settings(settings)
    assert encoded.setup["thresholds"] == {}
    settings = SegmenterSettings(
        str(finding_checkpoint), VOCABULARY, task="semantic", text_inputs=encoded.text_inputs
    )
    segment_all(settings, results)
    segmenter = pipeline("zero-shot-semantic-segmentation", model=str(finding_checkpoint))
    for row in (row for row in results.iterate_rows() if row["error"] is None):
        got = build_segmentation(row, VOCABULARY)
        assert (got.segment_ids > 0).all()
        found = segmenter(row["image"], candidate_labels=LABELS)
        assert {s.label: s.area for s in got.segments} == {r["label"]: r["area"] for r in found}
        for record in found:
            label_id = VOCABULARY.label_id(record["label"])
            np.testing.assert_array_equal(got.segment_ids == label_id + 1, np.asarray(record["mask"]) > 0)


def test_coco_files_hold_the_readable_pictures(settings, results):
    segment_all(settings, results)
    content = json.loads(write_coco_files(results, VOCABULARY).read_text())
    assert [image["id"] for image in content["images"]] == [1, 3, 4, 5]
    names = sorted(path.name for path in (results.folder / "panoptic").iterdir())
    assert names == ["street0.png", "street2.png", "street3.png", "street4.png"]


def test_the_setup_tells_what_results_depend_on(finding_checkpoint, concat_checkpoint):
    def setup(model=finding_checkpoint, vocabulary=VOCABULARY, **options):
        return encode_settings(SegmenterSettings(str(model), vocabulary, **options)).setup

    def differing(other):
        return {key for key in base if json.dumps(base[key]) != json.dumps(other[key])}

    base = setup()
    assert not differing(setup(batch_size=7))
    assert not differing(setup(thresholds={"threshold": 0.0}))  # the checkpoint's own
    assert differing(setup(thresholds={"threshold": 0.1})) == {"thresholds"}
    assert "weights" in differing(setup(concat_checkpoint))
    assert differing(setup(vocabulary=Vocabulary.from_labels(LABELS))) == {"stuff"}
    assert "labels" in differing(setup(vocabulary=Vocabulary.from_labels(["car"])))
    assert differing(setup(size={"shortest_edge": 96, "longest_edge": 160})) == {"processor"}
    assert "dtype" in differing(setup(dtype="bfloat16"))


def test_thresholds_size_and_dtype_reach_the_model(settings, pictures):
    def segment(**changes):
        openers = [PictureReader().opener(source) for source in list_pictures([str(pictures)])]
        return list(PictureSegmenter(replace(settings, **changes)).segment(openers))

    usual = segment()
    assert all(row["segments"] for row in usual)
    assert not any(row["segments"] for row in segment(thresholds={"threshold": 1.0}))
    larger = segment(size={"shortest_edge": 128, "longest_edge": 192})
    for row, usual_row in zip(larger, usual, strict=True):
        assert (row["height"], row["width"]) == (usual_row["height"], usual_row["width"])
        assert row["segments"] != usual_row["segments"]
    assert [row["segments"] for row in segment(dtype="bfloat16")] != [row["segments"] for row in usual]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"thresholds": {"score": 0.5}}, TypeError, r"got also \['score'\]"),
        ({"task": "semantic", "thresholds": {"threshold": 0.5}}, ValueError, "has no thresholds"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        SegmenterSettings("model", VOCABULARY, **options)


def test_a_table_gets_columns_and_loses_its_pictures(settings, results, pictures):
    from ray.data.extensions import ArrowTensorArray

    segment_all(settings, results)
    expected = [row for row in results.iterate_rows() if row["file_name"] in ("street0.png", "street2.png")]
    paths = [pictures / "street0.png", pictures / "street2.png"]
    columns = {
        "bytes": pa.array([path.read_bytes() for path in paths]),
        "path": pa.array(list(map(str, paths))),
        "both": pa.array([{"path": path.name, "bytes": path.read_bytes()} for path in paths]),
        "pixels": ArrowTensorArray.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])),
    }
    for name, column in columns.items():
        segmenter = TableSegmenter(settings, image_column=name)
        table = segmenter.segment_table(pa.table({"key": ["a", "b"], name: column}))
        assert table.column_names == ["key", *RESULT_SCHEMA.names]
        for row, wanted in zip(table.to_pylist(), expected, strict=True):
            for result in ("width", "height", "segments", "panoptic_png", "error"):
                assert row[result] == wanted[result], (name, result)


def test_bad_cells_and_columns_of_a_table(settings):
    segmenter = TableSegmenter(settings, image_column="image")
    cells = pa.array([{"path": "a.png", "bytes": b"x"}, {"path": None, "bytes": b"xy"}, None])
    table = segmenter.segment_table(pa.table({"image": cells}))
    errors = table["error"].to_pylist()
    for error, name in zip(errors, ("a.png", "(2 bytes)", "(NoneType)"), strict=True):
        assert error.startswith(f"cannot load the image '{name}': ")
    assert table.schema.field("segments").type == RESULT_SCHEMA.field("segments").type
    with pytest.raises(ValueError, match=r"no column 'image' among \['jpg'\]"):
        segmenter.segment_table(pa.table({"jpg": cells}))
    with pytest.raises(ValueError, match=r"the columns \['width'\] would stand for two things"):
        segmenter.segment_table(pa.table({"image": cells, "width": [1, 2, 3]}))


def test_no_more_pictures_are_read_ahead_than_two_batches(settings):
    def offer():
        for _ in range(20):
            offered.append(None)
            yield lambda: np.zeros((32, 32, 3), np.uint8)

    offered = []
    segmenter = PictureSegmenter(
        SegmenterSettings(settings.model, VOCABULARY, batch_size=3, text_inputs=settings.text_inputs)
    )
    most = 0
    for index, _ in enumerate(segmenter.segment(offer())):
        most = max(most, len(offered) - index)
    assert len(offered) == 20
    assert most == 6
