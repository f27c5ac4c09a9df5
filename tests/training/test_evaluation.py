import numpy as np
import pytest
import torch

from testing.tiny_concat_run import (
    build_model,
    build_processor,
    build_processor_with_tokenizer,
    build_text_config,
)
from testing.tiny_semantic_maps import write_semantic_maps
from zsseg.data.seen_filter import SubsetDataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.metrics import MeanIoU, PanopticQuality
from zsseg.models.inference import encode_vocabulary
from zsseg.training.evaluation import build_metric, evaluate_model, score_predictions
from zsseg.vocabulary import Vocabulary

UNTIMED = ("seconds_per_image",)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SemanticMapDataset(write_semantic_maps(tmp_path_factory.mktemp("maps") / "val", count=5))


@pytest.fixture(scope="module")
def model():
    return build_model().train()


@pytest.fixture
def processor():
    return build_processor()


def untimed(results):
    return {name: value for name, value in results.items() if name not in UNTIMED}


def test_semantic_numbers_are_those_of_the_chain_run_by_hand(dataset, model, processor):
    results = evaluate_model(model, processor, dataset, task="semantic", progress=False)
    metric = MeanIoU(dataset.vocabulary)
    model.eval()
    for index, example in enumerate(dataset):
        inputs = processor(images=[example.image], candidate_labels=list(dataset.vocabulary.names))
        with torch.no_grad():
            outputs = model(**inputs)
        prediction = processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 32)])[0]
        metric.update(prediction.numpy(), dataset.semantic_map(index))
    model.train()
    assert untimed(results) == pytest.approx({**metric.compute(), "num_images": 5}, nan_ok=True)
    assert {"mIoU", "mIoU_seen", "mIoU_unseen", "hIoU"} <= results.keys()
    assert results["seconds_per_image"] > 0


def test_panoptic_numbers_are_those_of_its_predictions(dataset, model, processor):
    metric = PanopticQuality(dataset.vocabulary)
    shown = []

    def on_result(example, prediction):
        metric.update(prediction, example.target)
        shown.append(example.file_name)

    results = evaluate_model(
        model, processor, dataset, task="panoptic", threshold=0.0, progress=False, on_result=on_result
    )
    assert shown == list(dataset.file_names)
    assert untimed(results) == pytest.approx({**metric.compute(), "num_images": 5}, nan_ok=True)


def test_thresholds_reach_the_merge(dataset, model, processor):
    counts = []
    for threshold in (0.0, 1.0):
        segments = []
        evaluate_model(
            model,
            processor,
            dataset,
            task="panoptic",
            threshold=threshold,
            overlap_mask_area_threshold=0.0,
            progress=False,
            on_result=lambda _, prediction, found=segments: found.extend(prediction.segments),
        )
        counts.append(len(segments))
    assert counts[0] > counts[1] == 0


def test_batches_and_modes_change_nothing(dataset, model, processor):
    maps = {1: [], 3: []}
    for batch_size, found in maps.items():
        evaluate_model(
            model,
            processor,
            dataset,
            task="semantic",
            batch_size=batch_size,
            progress=False,
            on_result=lambda _, prediction, found=found: found.append(prediction),
        )
        assert model.training
    assert all(np.array_equal(one, three) for one, three in zip(maps[1], maps[3], strict=True))


def test_one_pass_scores_both_tasks_like_one_pass_each(dataset, model, processor):
    metrics = {task: build_metric(task, dataset.vocabulary) for task in ("panoptic", "semantic")}
    seconds = score_predictions(
        model, processor, dataset, metrics=metrics, batch_size=2, threshold=0.0, progress=False
    )
    assert len(seconds) == len(dataset)
    assert seconds[0] == seconds[1] > 0
    for task, metric in metrics.items():
        alone = evaluate_model(model, processor, dataset, task=task, threshold=0.0, progress=False)
        assert metric.compute().items() <= untimed(alone).items()


def test_other_texts_stand_for_the_labels(dataset, model, processor):
    maps = {}
    for order in ((0, 1, 2), (2, 0, 1)):
        found = maps[order] = []
        score_predictions(
            model,
            processor,
            dataset,
            metrics={"semantic": build_metric("semantic", dataset.vocabulary)},
            text_vocabulary=dataset.vocabulary.select(order),
            progress=False,
            on_result=lambda _, predictions, found=found: found.append(predictions["semantic"]),
        )
    for own, other in zip(*maps.values(), strict=True):
        assert np.array_equal(own, np.array((2, 0, 1))[other])
    with pytest.raises(ValueError, match="each of the data set's 3 labels, got 2"):
        score_predictions(
            model, processor, dataset, metrics={}, text_vocabulary=Vocabulary.from_labels(["red", "blue"])
        )


def predict_with_penalty(dataset, model, processor, **options):
    """The figures of both tasks, and the label ids of every pixel and of every segment."""
    metrics = {task: build_metric(task, dataset.vocabulary) for task in ("panoptic", "semantic")}
    found = {"panoptic": [], "semantic": []}

    def note(example, predictions):
        found["panoptic"] += [segment.label_id for segment in predictions["panoptic"].segments]
        found["semantic"] += predictions["semantic"].flatten().tolist()

    score_predictions(
        *(model, processor, dataset),
        metrics=metrics,
        threshold=0.0,
        overlap_mask_area_threshold=0.0,
        progress=False,
        on_result=note,
        **options,
    )
    figures = {f"{task} {name}": value for task in metrics for name, value in metrics[task].compute().items()}
    return figures, found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_huge_penalty_leaves_no_seen_label(dataset, model, processor, batch_size):
    seen, unseen = set(dataset.vocabulary.seen_label_ids), set(dataset.vocabulary.unseen_label_ids)
    plain, found = predict_with_penalty(dataset, model, processor, batch_size=batch_size)
    assert all(set(label_ids) & seen for label_ids in found.values())
    penalised, left = predict_with_penalty(dataset, model, processor, batch_size=batch_size, seen_penalty=1e4)
    assert all(set(label_ids) == unseen for label_ids in left.values())
    assert plain["semantic mIoU_seen"] > penalised["semantic mIoU_seen"] == 0.0
    assert penalised["semantic mIoU_unseen"] > 0.0


def test_no_penalty_changes_nothing(dataset, model, processor):
    plain, found = predict_with_penalty(dataset, model, processor)
    same, unchanged = predict_with_penalty(dataset, model, processor, seen_penalty=0.0)
    assert same == pytest.approx(plain, abs=0.0, nan_ok=True)
    assert unchanged == found


def test_only_the_first_images(dataset, model, processor):
    results = evaluate_model(model, processor, dataset, task="semantic", max_images=2, progress=False)
    assert results["num_images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "instance"}, "task must be one of"),
        ({"task": "semantic", "batch_size": 0}, "must be at least 1, got 0"),
        ({"task": "semantic", "max_images": 0}, "must be at least 1"),
    ],
)
def test_unusable_arguments_are_refused(dataset, model, processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, processor, dataset, **arguments)


def test_an_empty_data_set_is_refused(dataset, model, processor):
    with pytest.raises(ValueError, match="holds no image"):
        evaluate_model(model, processor, SubsetDataset(dataset, []), task="semantic")


def test_precomputed_vectors_serve_as_text_embeddings(dataset, model, processor):
    encoded = encode_vocabulary(model, processor, dataset.vocabulary)
    assert torch.equal(encoded["text_embeds"], torch.eye(8)[:3])
    assert encoded["text_label_ids"].tolist() == [0, 1, 2]


def test_a_text_tower_embeds_each_label_under_the_prompts_asked_for(dataset):
    model, processor = build_model(text_config=build_text_config()), build_processor_with_tokenizer()
    encoded = encode_vocabulary(model, processor, dataset.vocabulary)
    tokens = processor.encode_labels(dataset.vocabulary)
    expected = model.encode_text(tokens["input_ids"], tokens["attention_mask"])
    assert torch.equal(encoded["text_embeds"], expected)
    assert encoded["text_label_ids"].tolist() == [0, 1, 2]
    others = encode_vocabulary(model, processor, dataset.vocabulary, prompt_templates=["{}"])
    assert not torch.allclose(encoded["text_embeds"], others["text_embeds"])
