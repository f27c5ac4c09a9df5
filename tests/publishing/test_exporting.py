import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from testing.tiny_models import (
    TEXT_WIDTH,
    build_bank,
    build_clip_text_config,
    build_model,
    build_picture,
    build_processor,
    build_scan,
    build_scan_processor,
)
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.inference import encode_vocabulary
from zsseg.publishing.exported_model import (
    ExportDescription,
    ExportedModel,
    ExportFormat,
    merge_panoptic_arrays,
    prepare_picture,
)
from zsseg.publishing.exporting import compute_relative_difference, export_model
from zsseg.vocabulary import Vocabulary

HEIGHT, WIDTH = 64, 96
VOCABULARY = Vocabulary.from_labels(["road", "car|automobile|lorry", "tree"], stuff_labels=["tree"])


def build_checkpoint():
    model = build_model(text_config=build_clip_text_config(), generator_type="mlp", memory_size=3)
    return model, build_processor(mask_threshold=0.4)


@dataclass(frozen=True)
class Export:
    """A checkpoint and what was exported of it."""

    model: ConcatForPanopticSegmentation
    processor: ConcatProcessor
    folder: Path
    exported: ExportedModel


def export(folder, export_format, vocabulary):
    model, processor = build_checkpoint()
    size = (HEIGHT, WIDTH)
    export_model(
        model.train(), processor, folder, export_format=export_format, size=size, vocabulary=vocabulary
    )
    assert model.training
    return Export(model.eval(), processor, folder, ExportedModel(folder, num_threads=1))


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """With labels."""
    return export(tmp_path_factory.mktemp("named") / "model", ExportFormat.ONNX, VOCABULARY)


@pytest.fixture(scope="module", params=list(ExportFormat))
def open_to_texts(request, tmp_path_factory):
    """Without."""
    return export(tmp_path_factory.mktemp("open") / "model", request.param, None)


def draw_pixels(seed=11):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(1, 3, HEIGHT, WIDTH)).astype(np.float32)


def assert_same_logits(found, outputs):
    for logits, own in zip(found, (outputs.class_queries_logits, outputs.masks_queries_logits), strict=True):
        assert logits.dtype == np.float32
        assert logits.shape == own.shape
        limits = 1e-4 * np.maximum(1.0, own.abs().numpy())
        assert (np.abs(logits - own.numpy()) <= limits).all()


@pytest.mark.slow
def test_labels_become_part_of_the_file(named):
    model, processor, exported, pixels = named.model, named.processor, named.exported, draw_pixels()
    with torch.no_grad():
        outputs = model(torch.from_numpy(pixels), **encode_vocabulary(model, processor, VOCABULARY))
    assert_same_logits(exported.run(pixels), outputs)
    assert exported.description.vocabulary == VOCABULARY
    with pytest.raises(ValueError, match="names its own 3 labels, so it takes no text_embeds"):
        exported.run(pixels, np.ones((1, TEXT_WIDTH), np.float32))


@pytest.mark.slow
def test_any_number_of_texts_is_a_second_input(open_to_texts):
    model, exported, pixels = open_to_texts.model, open_to_texts.exported, draw_pixels()
    for count in (1, 2, 9):
        embeds = np.random.default_rng(count).normal(size=(count, TEXT_WIDTH)).astype(np.float32)
        with torch.no_grad():
            outputs = model(torch.from_numpy(pixels), text_embeds=torch.from_numpy(embeds))
        assert outputs.class_queries_logits.shape[-1] == count + 1
        assert_same_logits(exported.run(pixels, embeds), outputs)
    assert exported.description.vocabulary is None
    for embeds, given in ((None, "None"), (np.ones((2, 7), np.float32), r"\(2, 7\)")):
        with pytest.raises(ValueError, match=rf"needs text_embeds of shape \(texts, 12\), got {given}"):
            exported.run(pixels, embeds)


@pytest.mark.slow
def test_a_picture_gives_the_segments_of_the_checkpoint(named):
    model, processor, exported, picture = (
        named.model,
        named.processor,
        named.exported,
        build_picture(40, 90, seed=2),
    )
    prepared = prepare_picture(picture, exported.description)
    pixel_mask = torch.zeros(1, HEIGHT, WIDTH)
    pixel_mask[:, :43] = 1  # 40 · 96 / 90 rows of picture
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(prepared.pixel_values),
            pixel_mask=pixel_mask,
            **encode_vocabulary(model, processor, VOCABULARY),
        )
    (expected,) = processor.merge_panoptic(outputs, stuff_label_ids=[2], target_sizes=[(40, 90)])
    found = exported.segment(picture)
    # In this picture the model finds two things and, by two queries, one piece of stuff.
    assert [segment.isthing for segment in found.segments] == [True, True, False]
    assert np.array_equal(found.segment_ids, expected.segment_ids)
    for segment, own in zip(found.segments, expected.segments, strict=True):
        assert segment.label == VOCABULARY[own.label_id].name
        assert segment.isthing == own.isthing
        assert segment.score == pytest.approx(own.score, abs=1e-4)
    assert exported.segment(picture, threshold=1.0).segments == ()
    assert all(segment.isthing for segment in exported.segment(picture, stuff_label_ids=()).segments)


@pytest.mark.slow
def test_segments_by_text_embeddings(open_to_texts):
    exported, picture = open_to_texts.exported, build_picture(HEIGHT, WIDTH)
    embeds = np.random.default_rng(1).normal(size=(4, TEXT_WIDTH)).astype(np.float32)
    found = exported.segment(picture, text_embeds=embeds, stuff_label_ids=[1, 2])
    class_logits, mask_logits = exported.run(
        prepare_picture(picture, exported.description).pixel_values, embeds
    )
    expected = merge_panoptic_arrays(
        class_logits[0],
        mask_logits[0],
        stuff_label_ids=[1, 2],
        target_size=(HEIGHT, WIDTH),
        threshold=0.0,
        mask_threshold=0.4,
        overlap_mask_area_threshold=0.0,
    )
    assert np.array_equal(found.segment_ids, expected.segment_ids)
    assert found.segments == expected.segments
    assert {segment.label for segment in found.segments} == {None}


@pytest.mark.slow
def test_the_description_says_what_was_exported(named):
    processor, description = named.processor, ExportDescription.load(named.folder)
    assert description.weights_digest == compute_weights_digest(named.model)
    assert description.model_type == "zsseg-concat"
    assert (description.height, description.width) == (HEIGHT, WIDTH)
    assert description.labels == ("road", "car|automobile|lorry", "tree")
    assert description.stuff_labels == ("tree",)
    assert list(description.image_mean) == list(processor.image_processor.image_mean)
    assert (description.threshold, description.mask_threshold) == (0.0, 0.4)
    assert set(description.differences) == {"class_queries_logits", "masks_queries_logits"}
    assert all(0.0 <= value <= 1e-4 for value in description.differences.values())
    assert {path.name for path in named.folder.iterdir()} == {"export.json", description.format.file_name}


@pytest.mark.slow
def test_parts_that_no_picture_passes_are_left_out_and_the_model_keeps_them(open_to_texts):
    folder = open_to_texts.folder
    assert compute_weights_digest(open_to_texts.model) == compute_weights_digest(build_checkpoint()[0])
    if open_to_texts.exported.description.format is ExportFormat.TORCH:
        names = torch.export.load(folder / "model.pt2").state_dict
    else:
        names = [initializer.name for initializer in onnx.load(folder / "model.onnx").graph.initializer]
    parts = {name.split(".")[1] for name in names if name.startswith("model.")}
    # ONNX keeps the direction of the no-object embedding alone, under a name of its own.
    assert parts - {"no_object_embedding"} == {"segmentor", "semantic_projector"}


@pytest.mark.slow
def test_scan_by_its_vocabulary(tmp_path):
    model = build_scan(text_config=build_clip_text_config(), mode="in_vocab_only")
    processor, pixels = build_scan_processor(), draw_pixels()
    export_model(
        model,
        processor,
        tmp_path / "model",
        export_format=ExportFormat.TORCH,
        size=(HEIGHT, WIDTH),
        vocabulary=VOCABULARY,
    )
    with torch.no_grad():
        outputs = model(torch.from_numpy(pixels), **encode_vocabulary(model, processor, VOCABULARY))
    assert_same_logits(ExportedModel(tmp_path / "model", num_threads=1).run(pixels), outputs)


@pytest.mark.parametrize("mode", ["ensemble", "clip_only"])
def test_scan_by_masks_cut_out_is_refused(mode, tmp_path):
    with pytest.raises(ValueError, match=f"mode '{mode}' cuts masks out, .* set config.mode to"):
        export_model(
            build_scan(mode=mode),
            build_scan_processor(),
            tmp_path / "model",
            export_format=ExportFormat.TORCH,
            size=(HEIGHT, WIDTH),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_logits_that_differ_write_nothing(tmp_path):
    model, processor = build_checkpoint()
    folder = tmp_path / "model"
    arguments = {"export_format": ExportFormat.TORCH, "size": (HEIGHT, WIDTH)}
    with pytest.raises(
        ValueError, match=r"differs from the checkpoint by .*class_queries_logits.*allowed -1"
    ):
        # No difference is below zero.
        export_model(model, processor, folder, tolerance=-1.0, **arguments)
    assert not list(tmp_path.iterdir())
    assert model.text_model is not None


def test_what_is_in_the_way_is_found_before_anything_is_traced(tmp_path, monkeypatch):
    def trace(prediction, inputs):
        raise RuntimeError("traced")

    monkeypatch.setattr("zsseg.publishing.exporting._trace", trace)
    model, processor = build_checkpoint()
    arguments = {"export_format": ExportFormat.TORCH, "size": (HEIGHT, WIDTH)}
    folder = tmp_path / "model"
    folder.mkdir()
    earlier = ("model.onnx", "model.onnx.data", "model.pt2", "export.json")
    for name in earlier:
        (folder / name).write_text(name)
    with pytest.raises(RuntimeError, match="traced"):
        export_model(model, processor, folder, **arguments)
    assert {path.name for path in folder.iterdir()} == set(earlier)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"model holds .*thesis\.txt.*choose another folder"):
        export_model(model, processor, folder, **arguments)
    with pytest.raises(FileExistsError, match="is a file"):
        export_model(model, processor, folder / "thesis.txt", **arguments)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_relative_difference():
    expected = np.array([[0.5, -200.0]], np.float32)
    found = np.array([[0.75, -201.0]], np.float32)
    assert compute_relative_difference(found, expected) == pytest.approx(0.25)
    assert compute_relative_difference(found[:, 1:], expected[:, 1:]) == pytest.approx(1 / 200)
    assert math.isnan(compute_relative_difference(expected * math.nan, expected))
    with pytest.raises(ValueError, match=r"expected logits of shape \(1, 2\), got \(1, 1\)"):
        compute_relative_difference(found[:, 1:], expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((64, 100), "width must be a multiple of 32, .* got 100: the nearest are 96 and 128"),
        ((16, 96), "height must be a multiple of 32, .* got 16: the nearest are 32 and 64"),
        ((0, 96), "height must be a multiple of 32, .* got 0"),
    ],
)
def test_sizes_that_need_padding_are_refused(size, message, tmp_path):
    model, processor = build_checkpoint()
    with pytest.raises(ValueError, match=message):
        export_model(model, processor, tmp_path / "model", export_format=ExportFormat.TORCH, size=size)
    assert not list(tmp_path.iterdir())


def test_other_mistakes_write_nothing(tmp_path, monkeypatch):
    model, processor = build_checkpoint()
    arguments = {"export_format": ExportFormat.ONNX, "size": (HEIGHT, WIDTH)}
    with pytest.raises(ValueError, match=r"expected a float32 model on the CPU, got torch\.bfloat16 on cpu"):
        export_model(build_model().to(torch.bfloat16), processor, tmp_path / "model", **arguments)
    bank = build_processor(text_embeddings=build_bank())
    labels = Vocabulary.from_labels(["zebra"])
    with pytest.raises(ValueError, match="zebra"):
        export_model(build_model(), bank, tmp_path / "model", vocabulary=labels, **arguments)
    monkeypatch.setattr("zsseg.publishing.exporting.ONNX_PACKAGES", ("numpy", "no_such_runtime"))
    with pytest.raises(ModuleNotFoundError, match=r"needs no_such_runtime, .*pip install 'zsseg\[export\]'"):
        export_model(model, processor, tmp_path / "model", **arguments)
    assert not list(tmp_path.iterdir())


DESCRIPTION = ExportDescription(
    format=ExportFormat.TORCH,
    height=64,
    width=96,
    image_mean=(0.1, 0.2, 0.3),
    image_std=(0.4, 0.5, 0.6),
    rescale_factor=1 / 255,
    resample=2,
    labels=None,
    stuff_labels=(),
    text_width=12,
    threshold=0.8,
    mask_threshold=0.5,
    overlap_mask_area_threshold=0.8,
    differences={"class_queries_logits": 0.0, "masks_queries_logits": 1e-6},
    model_type="zsseg-concat",
    weights_digest="0",
    zsseg_version="1",
)


def test_descriptions_are_read_as_written(tmp_path):
    for description in (DESCRIPTION, replace(DESCRIPTION, labels=("Straße|路",), stuff_labels=("Straße",))):
        description.save(tmp_path)
        assert ExportDescription.load(tmp_path) == description


def test_folders_that_hold_no_exported_model(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*export\.json: pass a folder that `zsseg export`"
    ):
        ExportedModel(tmp_path)
    DESCRIPTION.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.pt2 is missing"):
        ExportedModel(tmp_path)
    values = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**values, "later": 1}))
    with pytest.raises(ValueError, match="of another version of zsseg"):
        ExportedModel(tmp_path)
    (tmp_path / "export.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"is damaged .*export the checkpoint again"):
        ExportedModel(tmp_path)


def test_a_picture_of_the_model_s_size_is_prepared_as_by_the_processor():
    processor = build_processor()
    settings = processor.image_processor
    description = replace(
        DESCRIPTION, image_mean=tuple(settings.image_mean), image_std=tuple(settings.image_std)
    )
    picture = build_picture(128, 192)
    prepared = prepare_picture(picture, description)
    expected = settings([picture.transpose(2, 0, 1)], return_tensors="np", size={"height": 64, "width": 96})
    assert np.array_equal(prepared.pixel_values, expected["pixel_values"])
    assert prepared.valid_fraction == (1.0, 1.0)
    assert prepared.size == (128, 192)


@pytest.mark.parametrize(
    ("size", "height", "width"), [((300, 100), 64, 21), ((10, 60), 16, 96), ((1, 5000), 1, 96)]
)
def test_other_pictures_keep_their_shape_and_are_padded_with_zeros(size, height, width):
    picture = np.full((*size, 3), (255, 0, 51), np.uint8)
    prepared = prepare_picture(picture, DESCRIPTION)
    assert prepared.valid_fraction == (height / 64, width / 96)
    assert prepared.size == size
    values = np.array([(1 - 0.1) / 0.4, (0 - 0.2) / 0.5, (0.2 - 0.3) / 0.6], np.float32)
    expected = np.zeros((1, 3, 64, 96), np.float32)
    expected[:, :, :height, :width] = values[:, None, None]
    np.testing.assert_allclose(prepared.pixel_values, expected, atol=1e-6)


@pytest.mark.slow
def test_arrays_of_another_shape_are_refused(named):
    with pytest.raises(ValueError, match=r"must be \(1, 3, 64, 96\), got \(2, 3, 64, 96\)"):
        named.exported.run(np.zeros((2, 3, HEIGHT, WIDTH), np.float32))
