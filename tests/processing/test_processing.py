import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor
from transformers.utils import ModelOutput

from testing.tiny_models import (
    BANK_NAMES,
    CONTEXT,
    TEXT_WIDTH,
    build_bank,
    build_clip_text_config,
    build_model,
    build_picture,
    build_processor,
    build_tokenizer,
)
from zsseg import ConcatProcessor, Vocabulary
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.prompts import PADING_PROMPTS

ROAD, CAR, TREE, NOTHING = range(4)


def build_outputs(labels, masks, valid_fractions=None, confidence=30.0):
    """One picture whose query q is surely labels[q], with the mask logits masks[q]."""
    class_logits = torch.zeros(1, len(labels), 4)
    for query, label in enumerate(labels):
        class_logits[0, query, label] = confidence
    outputs = ModelOutput(class_queries_logits=class_logits, masks_queries_logits=masks[None])
    if valid_fractions is not None:
        outputs["valid_fractions"] = torch.tensor([valid_fractions])
    return outputs


def split_columns(height, width, column):
    """Two masks that meet between the columns column − 1 and column."""
    left = torch.full((height, width), -8.0)
    left[:, :column] = 8.0
    return torch.stack([left, -left])


# --- the text half --------------------------------------------------------------------------------------


def test_tokens_of_texts_under_prompts():
    processor, tokenizer = build_processor(), build_tokenizer()
    encoded = processor.encode_labels(["road", "car|automobile"])
    assert encoded["text_label_ids"].tolist() == [0, 1, 1]
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape
    assert encoded["input_ids"].shape[:2] == (3, len(PADING_PROMPTS))
    for row, text in enumerate(["road", "car", "automobile"]):
        for column, template in enumerate(PADING_PROMPTS):
            tokens = encoded["input_ids"][row, column][encoded["attention_mask"][row, column].bool()]
            assert tokens.tolist() == tokenizer(template.replace("{}", text))["input_ids"]
    assert encoded["attention_mask"].any(dim=1).any(dim=0).all(), "no column is padding alone"


def test_templates_for_one_call():
    processor = build_processor(prompt_templates=["a {}", "the {}"])
    assert processor.encode_labels(["road"])["input_ids"].shape[1] == 2
    encoded = processor.encode_labels(["road"], prompt_templates=["{}"])
    assert encoded["input_ids"][0, 0].tolist() == build_tokenizer()("road")["input_ids"]
    assert processor.prompt_templates == ["a {}", "the {}"]


def test_left_padding_tokenizers_pad_right_here():
    tokenizer = build_tokenizer(padding_side="left")
    encoded = build_processor(tokenizer=tokenizer, prompt_templates=["{}"]).encode_labels(
        ["road", "automobile"]
    )
    assert encoded["attention_mask"][0, 0].tolist() == [1] * 6 + [0] * 6


def test_tokenizers_without_a_mask_fill_the_context():
    tokenizer = build_tokenizer(model_input_names=["input_ids"])
    encoded = build_processor(tokenizer=tokenizer, prompt_templates=["{}"]).encode_labels(["road", "car"])
    assert encoded["input_ids"].shape == (2, 1, CONTEXT)
    assert encoded["attention_mask"].all()
    with pytest.raises(ValueError, match="shorten it"):
        build_processor(tokenizer=tokenizer).encode_labels(["x" * CONTEXT])


def test_a_vocabulary_as_labels():
    vocabulary = Vocabulary.from_labels(["road", "car|automobile"], stuff_labels=["road"])
    by_labels, by_vocabulary = (
        build_processor().encode_labels(labels) for labels in (["road", "car|automobile"], vocabulary)
    )
    assert all(torch.equal(by_labels[name], by_vocabulary[name]) for name in by_labels)


def test_emoji_and_accents_have_tokens_of_their_own():
    encoded = build_processor(prompt_templates=["{}"]).encode_labels(["🦒", "🚗", "café"])
    rows = {tuple(row.tolist()) for row in encoded["input_ids"][:, 0]}
    assert len(rows) == 3
    assert build_tokenizer().decode(encoded["input_ids"][0, 0], skip_special_tokens=True) == "🦒"


def test_ten_thousand_labels():
    labels = [f"label {index}" for index in range(10_000)]
    encoded = build_processor(prompt_templates=["{}"]).encode_labels(labels)
    assert encoded["input_ids"].shape == (10_000, 1, len("label 9999") + 2)
    bank = build_bank(labels)
    encoded = build_processor(text_embeddings=bank).encode_labels(labels[::-1])
    assert torch.equal(encoded["text_embeds"], torch.from_numpy(bank.embeddings[::-1].copy()))


def test_precomputed_vectors():
    bank = build_bank()
    encoded = build_processor(text_embeddings=bank).encode_labels(["tree", "road|car"])
    assert encoded["text_label_ids"].tolist() == [0, 1, 1]
    assert np.array_equal(encoded["text_embeds"].numpy(), bank.lookup(["tree", "road", "car"]))
    assert encoded["text_embeds"].shape == (3, TEXT_WIDTH)


LABEL_ERRORS = {
    "none": ([], "at least one label"),
    "empty": (["road", ""], "label 1 holds an empty text"),
    "duplicate": (["road", "car", "road"], r"must be unique.*\['road'\]"),
    "too long": (
        ["road", "very " * 40 + "long car"],
        f"tokens in its prompt, but the text tower reads {CONTEXT}",
    ),
}


@pytest.mark.parametrize(("labels", "message"), LABEL_ERRORS.values(), ids=LABEL_ERRORS.keys())
def test_labels_that_cannot_be_encoded(labels, message):
    with pytest.raises(ValueError, match=message):
        build_processor()(candidate_labels=labels)


def test_a_tokenizer_that_knows_no_limit_leaves_it_to_the_tower():
    processor = build_processor(tokenizer=build_tokenizer(model_max_length=None))
    model = build_model(text_config=build_clip_text_config())
    tokens = processor.encode_labels(["x" * CONTEXT])
    with pytest.raises(ValueError, match=f"but the text tower reads {CONTEXT}: shorten the label"):
        model.encode_text(tokens["input_ids"], tokens["attention_mask"])


def test_labels_outside_the_vectors_list_the_nearest():
    with pytest.raises(ValueError, match="no embedding for 'cars'; nearest names: 'car'"):
        build_processor(text_embeddings=build_bank()).encode_labels(["road", "cars"])


def test_prompts_need_a_text_tower():
    with pytest.raises(ValueError, match="prompt_templates need a text tower"):
        build_processor(text_embeddings=build_bank()).encode_labels(["road"], prompt_templates=["{}"])


# --- both halves ----------------------------------------------------------------------------------------


def test_a_batch_of_images_and_labels():
    batch = build_processor()([build_picture(64, 96), build_picture(96, 64)], ["road", "car"])
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [64 * 96, 96 * 64]
    assert set(batch) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask", "text_label_ids"}
    assert set(build_processor()(build_picture(64, 96))) == {"pixel_values", "pixel_mask"}
    assert set(build_processor()(candidate_labels=["road"])) == {
        "input_ids",
        "attention_mask",
        "text_label_ids",
    }


def test_images_take_options_and_paths(tmp_path):
    from PIL import Image

    picture = Image.fromarray(build_picture(40, 60))
    picture.save(tmp_path / "street.png")
    size = {"height": 32, "width": 64}
    expected = build_processor()(picture, size=size)["pixel_values"]
    assert expected.shape == (1, 3, 32, 64)
    for source in (tmp_path / "street.png", str(tmp_path / "street.png"), (picture,), np.asarray(picture)):
        assert torch.equal(build_processor()(source, size=size)["pixel_values"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass images, candidate_labels or both; got neither"),
        ({"images": []}, "at least one image, got an empty list"),
        ({"images": "missing.png"}, "there is no such file"),
        ({"images": build_picture(8, 8), "return_tensors": "np"}, "return_tensors must be 'pt', got 'np'"),
    ],
)
def test_calls_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_processor()(**arguments)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [({}, "neither"), ({"tokenizer": build_tokenizer(), "text_embeddings": build_bank()}, "both")],
)
def test_one_source_of_text(arguments, given):
    with pytest.raises(ValueError, match=f"either a tokenizer or text_embeddings, got {given}"):
        ConcatProcessor(ConcatImageProcessorPil(), **arguments)


def test_templates_are_checked_at_once():
    with pytest.raises(ValueError, match=r"must contain \{\}"):
        build_processor(prompt_templates=["a photo"])


# --- saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tokenizer", "text_embeddings"])
def test_saved_and_loaded(source, tmp_path):
    own = {"prompt_templates": ["the {}"], "threshold": 0.3, "mask_threshold": 0.4}
    if source == "text_embeddings":
        own["text_embeddings"] = build_bank()
    processor = build_processor(overlap_mask_area_threshold=0.5, **own)
    files = processor.save_pretrained(tmp_path)
    assert [path.rpartition("/")[2] for path in files] == ["processor_config.json"]
    for loaded in (ConcatProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is ConcatProcessor
        assert loaded.to_dict() == processor.to_dict()
        first, second = (p(build_picture(40, 60), list(BANK_NAMES)) for p in (processor, loaded))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert ConcatProcessor.from_pretrained(tmp_path, threshold=0.9).threshold == 0.9
    assert source in json.loads((tmp_path / "processor_config.json").read_text())["text_source"]


def test_other_processors_are_refused(tmp_path):
    with pytest.raises(OSError, match=r"there is no processor_config\.json in"):
        ConcatProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(ValueError, match="processor of class 'CLIPProcessor', expected one saved by Concat"):
        ConcatProcessor.from_pretrained(tmp_path)


def test_publishing_is_another_method(tmp_path):
    with pytest.raises(ValueError, match=r"call push_to_hub\(repo_id\)"):
        build_processor().save_pretrained(tmp_path, push_to_hub=True)


def test_it_can_be_shown():
    assert "ConcatProcessor" in repr(build_processor())


# --- post-processing ------------------------------------------------------------------------------------


def test_padding_is_cropped_and_nothing_is_shifted():
    """A picture of 48 × 64 in a batch padded to 64 × 96: its middle column is 32, not 48."""
    masks = torch.full((2, 16, 24), 8.0)
    masks[:, :12, :16] = split_columns(12, 16, 8)
    outputs = build_outputs([ROAD, CAR], masks, valid_fractions=[48 / 64, 64 / 96])
    expected = np.full((48, 64), ROAD)
    expected[:, 32:] = CAR
    processor = build_processor()
    (semantic,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 64)])
    assert semantic.dtype == torch.int64
    # Half a cell at the border of the padding is interpolated with it.
    assert np.array_equal(semantic[:46, :62], expected[:46, :62])
    (panoptic,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(480, 640)])
    assert panoptic["segmentation"].shape == (480, 640)
    by_label = {info["label_id"]: info for info in panoptic["segments_info"]}
    assert by_label[ROAD]["bbox"][0] == 0
    x, _, width, _ = by_label[CAR]["bbox"]
    assert (x, x + width) == (320, 640)


def test_padding_in_the_batch_against_the_picture_alone():
    """The maps of one grid equal those of the grid cut to the picture, away from the cut."""
    torch.manual_seed(0)
    masks = torch.randn(3, 16, 24)
    padded = build_outputs([ROAD, CAR, TREE], masks, valid_fractions=[0.5, 0.75])
    alone = build_outputs([ROAD, CAR, TREE], masks[:, :8, :18])
    processor = build_processor()
    (found,) = processor.post_process_semantic_segmentation(padded, target_sizes=[(32, 72)])
    (expected,) = processor.post_process_semantic_segmentation(alone, target_sizes=[(32, 72)])
    assert torch.equal(found[:-2, :-2], expected[:-2, :-2])


def test_each_picture_has_its_own_query_weights():
    masks = torch.full((2, 8, 8), 2.0)
    outputs = build_outputs([ROAD, CAR], masks)
    outputs = ModelOutput(**{name: torch.cat([value, value]) for name, value in outputs.items()})
    processor = build_processor()
    expected = processor.post_process_panoptic_segmentation(outputs)
    outputs["query_weights"] = torch.tensor([[0.5, 0.1], [0.1, 0.5]])
    first, second = processor.post_process_semantic_segmentation(outputs)
    assert first.unique().tolist() == [ROAD]
    assert second.unique().tolist() == [CAR]
    # Segments go by the class logits alone.
    for found, same in zip(processor.post_process_panoptic_segmentation(outputs), expected, strict=True):
        assert torch.equal(found["segmentation"], same["segmentation"])
        assert found["segments_info"] == same["segments_info"]


def test_without_target_sizes_the_grid_of_the_picture_remains():
    masks = torch.full((2, 16, 24), 8.0)
    masks[:, :12, :16] = split_columns(12, 16, 8)
    outputs = build_outputs([ROAD, CAR], masks, valid_fractions=[0.75, 16 / 24])
    (semantic,) = build_processor().post_process_semantic_segmentation(outputs)
    assert semantic.tolist() == [[ROAD] * 8 + [CAR] * 8] * 12
    (panoptic,) = build_processor().post_process_panoptic_segmentation(outputs)
    assert panoptic["segmentation"].shape == (12, 16)


def test_panoptic_in_the_form_of_transformers():
    masks = torch.cat([split_columns(8, 8, 2), split_columns(8, 8, 6)[1:]])
    masks[1, :, 6:] = -8.0
    outputs = build_outputs([ROAD, CAR, ROAD], masks)
    (apart,) = build_processor().post_process_panoptic_segmentation(outputs)
    assert [info["label_id"] for info in apart["segments_info"]] == [ROAD, CAR, ROAD]
    assert not any(info["was_fused"] for info in apart["segments_info"])
    (fused,) = build_processor().post_process_panoptic_segmentation(outputs, label_ids_to_fuse=[ROAD])
    assert fused["segmentation"].dtype == torch.int32
    assert fused["segmentation"][0].tolist() == [1, 1, 2, 2, 2, 2, 1, 1]
    road, car = fused["segments_info"]
    assert road == {
        "id": 1,
        "label_id": ROAD,
        "score": pytest.approx(1.0),
        "isthing": False,
        "was_fused": True,
        "area": 32,
        "bbox": [0, 0, 8, 8],
    }
    assert (car["isthing"], car["was_fused"], car["area"], car["bbox"]) == (True, False, 32, [2, 0, 4, 8])


def test_thresholds_of_the_checkpoint_and_of_the_call():
    outputs = build_outputs([ROAD, CAR], split_columns(8, 8, 4), confidence=1.0)
    score = torch.tensor([1.0, 0.0, 0.0, 0.0]).softmax(0)[0].item()
    strict, lenient = build_processor(threshold=score + 0.01), build_processor(threshold=score - 0.01)
    assert strict.post_process_panoptic_segmentation(outputs)[0]["segments_info"] == []
    assert len(lenient.post_process_panoptic_segmentation(outputs)[0]["segments_info"]) == 2
    by_call = strict.post_process_panoptic_segmentation(outputs, threshold=0.0)
    assert len(by_call[0]["segments_info"]) == 2
    assert (
        lenient.post_process_panoptic_segmentation(outputs, mask_threshold=1.0)[0]["segmentation"].max() == 0
    )


def test_queries_of_no_object_are_left_out():
    outputs = build_outputs([ROAD, NOTHING], split_columns(8, 8, 4))
    (panoptic,) = build_processor().post_process_panoptic_segmentation(outputs)
    assert [info["label_id"] for info in panoptic["segments_info"]] == [ROAD]


def test_instances_are_things_and_may_overlap():
    masks = torch.stack([torch.full((8, 8), 8.0), split_columns(8, 8, 4)[0], torch.full((8, 8), -8.0)])
    outputs = build_outputs([CAR, CAR, ROAD], masks)
    (instances,) = build_processor().post_process_instance_segmentation(
        outputs, thing_label_ids=[CAR, TREE], target_sizes=[(16, 16)], top_k=2, threshold=0.5
    )
    assert sorted(instance.area for instance in instances) == [128, 256]
    assert {instance.label_id for instance in instances} == {CAR}
    assert all(instance.mask.shape == (16, 16) for instance in instances)
    assert instances[0].score >= instances[1].score


def test_as_many_target_sizes_as_images():
    outputs = build_outputs([ROAD], torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"one \(height, width\) per image, 1, got 2"):
        build_processor().post_process_semantic_segmentation(outputs, target_sizes=[(8, 8), (8, 8)])


def test_stuff_must_be_a_label():
    outputs = build_outputs([ROAD], torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"stuff_label_ids must lie in \[0, 3\)"):
        build_processor().post_process_panoptic_segmentation(outputs, label_ids_to_fuse=[3])


def test_the_way_of_the_readme():
    """Model and processor as a user combines them, gradients and all."""
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    pictures = [build_picture(64, 96), build_picture(80, 64, seed=1)]
    outputs = model(**processor(images=pictures, candidate_labels=["road", "car"], return_tensors="pt"))
    assert outputs.masks_queries_logits.requires_grad
    sizes = [(64, 96), (80, 64)]
    results = processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes)
    assert [tuple(result["segmentation"].shape) for result in results] == sizes
    for segmentation in processor.merge_panoptic(outputs, stuff_label_ids=[0], target_sizes=sizes):
        segmentation.check_pixels()
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert [tuple(label_map.shape) for label_map in maps] == sizes
    things = processor.post_process_instance_segmentation(outputs, thing_label_ids=[1], target_sizes=sizes)
    assert len(things) == 2


def test_half_precision_outputs():
    outputs = build_outputs([ROAD, CAR], split_columns(8, 8, 4))
    outputs["masks_queries_logits"] = outputs["masks_queries_logits"].bfloat16()
    (semantic,) = build_processor().post_process_semantic_segmentation(outputs)
    assert semantic.tolist() == [[ROAD] * 4 + [CAR] * 4] * 8
