import doctest
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import evaluate
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from oracles.mean_iou import confusion_matrix, iou_by_label
from zsseg.metrics import MeanIoU, PanopticQuality, SemanticGuidedIoU
from zsseg.metrics.evaluate_modules import MODULES, locate_evaluate_module
from zsseg.metrics.evaluate_modules.mean_iou.mean_iou import MeanIou
from zsseg.metrics.evaluate_modules.panoptic_quality.panoptic_quality import (
    PanopticQuality as PanopticQualityModule,
)
from zsseg.metrics.evaluate_modules.semantic_guided_iou.semantic_guided_iou import SemanticGuidedIou
from zsseg.metrics.evaluate_modules.space import compute_from_json, read_card
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Vocabulary

LABELS = ["car", "cow", "road", "sky"]
GROUPS = {"labels": LABELS, "stuff_labels": ["road", "sky"], "unseen_labels": ["cow", "sky"]}
VOCABULARY = Vocabulary.from_labels(
    LABELS, stuff_labels=GROUPS["stuff_labels"], unseen_labels=GROUPS["unseen_labels"]
)
PARENTS = {"cow": ["car"], "sky": ["road"]}
SIZES = [(4, 6), (7, 3), (5, 5)]


CLASSES = {
    "mean_iou": MeanIou,
    "panoptic_quality": PanopticQualityModule,
    "semantic_guided_iou": SemanticGuidedIou,
}


@pytest.fixture(params=["folder", "class"])
def load(request, tmp_path):
    """A module as ``evaluate`` loads it from its folder, and by its class."""

    def load(name, **options):
        options = {"cache_dir": str(tmp_path / "cache"), **options}
        if request.param == "folder":
            return evaluate.load(locate_evaluate_module(name), **options)
        return CLASSES[name](**options)

    return load


def build_maps(seed=0):
    """Predictions and references of different sizes; a part of the reference is unknown."""
    generator = np.random.default_rng(seed)
    pairs = []
    for size in SIZES:
        reference = generator.integers(0, len(LABELS), size, dtype=np.uint8)
        prediction = np.where(generator.random(size) < 0.6, reference, generator.integers(0, 4, size))
        reference[generator.random(size) < 0.1] = 255
        pairs.append((prediction.astype(np.uint8), reference))
    return pairs


def build_segmentations(seed=0):
    """Pictures of vertical stripes; predictions move the borders, references hold crowds and void."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(4):
        height, width = 4, int(generator.integers(16, 30))
        label_ids = generator.integers(0, len(LABELS), 4)
        borders = np.sort(generator.integers(2, width - 2, 3))
        moved = np.clip(borders + generator.integers(-2, 3, 3), 1, width - 1)
        pairs.append(
            tuple(
                build_stripes(height, width, np.sort(places), ids, crowd)
                for places, ids, crowd in (
                    (moved, np.where(generator.random(4) < 0.8, label_ids, 0), False),
                    (borders, label_ids, True),
                )
            )
        )
    return pairs


def build_stripes(height, width, borders, label_ids, has_crowd):
    segment_ids = np.tile(np.searchsorted(borders, np.arange(width), side="right") + 1, (height, 1))
    if has_crowd:
        segment_ids[0, :2] = 0
    segments = tuple(
        SegmentInfo(
            id=int(segment_id),
            label_id=int(label_ids[segment_id - 1]),
            isthing=bool(label_ids[segment_id - 1] < 2),
            area=int(np.sum(segment_ids == segment_id)),
            bbox=(0, 0, 1, 1),
            iscrowd=has_crowd and bool(segment_id == 4),
        )
        for segment_id in np.unique(segment_ids[segment_ids > 0])
    )
    return PanopticSegmentation(segment_ids.astype(np.int32), segments)


def as_mapping(segmentation, to_map=torch.from_numpy):
    """The form of transformers' post-processing."""
    return {
        "segmentation": to_map(segmentation.segment_ids),
        "segments_info": [
            {
                "id": each.id,
                "label_id": each.label_id,
                "score": 0.5,
                "was_fused": False,
                "iscrowd": each.iscrowd,
            }
            for each in segmentation.segments
        ],
    }


def panoptic_figures(pairs):
    metric = PanopticQuality(VOCABULARY)
    for prediction, reference in pairs:
        metric.update(prediction, reference)
    return metric


@pytest.mark.parametrize("name", MODULES)
def test_it_loads_from_its_folder_and_its_examples_hold(name, load):
    module = load(name)
    assert (module.name, module.module_type, len(module)) == (name, "metric", 0)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    examples = parser.get_doctest(module.inputs_description, {}, name, None, None)
    assert len(examples.examples) >= 5
    assert runner.run(examples).failed == 0


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, Image.fromarray, np.ndarray.tolist])
def test_mean_iou_is_that_of_zsseg_for_every_form_of_map(load, form):
    pairs = build_maps()
    metric = MeanIoU(VOCABULARY)
    for prediction, reference in pairs:
        metric.update(prediction, reference)
    module = load("mean_iou")
    first, *others = [(form(prediction), form(reference)) for prediction, reference in pairs]
    module.add(prediction=first[0], reference=first[1])
    assert len(module) == 1
    predictions, references = map(list, zip(*others, strict=True))
    results = module.compute(predictions=predictions, references=references, **GROUPS, per_class=True)
    per_class = results.pop("per_class")
    assert results == metric.compute()
    oracle = iou_by_label(confusion_matrix(*zip(*pairs, strict=True), len(LABELS), 255))
    assert [figures["IoU"] for figures in per_class.values()] == pytest.approx(oracle)
    # Nothing of these pictures is left in the next figures.
    assert len(module) == 0
    perfect = module.compute(predictions=[pairs[0][1]], references=[pairs[0][1]], **GROUPS)
    assert perfect["mIoU"] == 1.0


def test_sg_iou_is_that_of_zsseg(load):
    metric = SemanticGuidedIoU(VOCABULARY, PARENTS, count_false_labels=False)
    module = load("semantic_guided_iou")
    for prediction, reference in build_maps():
        metric.update(prediction, reference)
        module.add(prediction=prediction, reference=reference)
    results = module.compute(labels=VOCABULARY, parents=PARENTS, count_false_labels=False, per_class=True)
    per_class = results.pop("per_class")
    assert results == metric.compute()
    assert results["SG-IoU"] > results["mIoU"]
    assert per_class["cow"] == {
        "IoU": metric.compute_per_class()["cow"],
        "SG-IoU": metric.compute_guided_per_class()["cow"],
    }
    module.add(prediction=[[0]], reference=[[0]])
    with pytest.raises(ValueError, match="name the parents"):
        module.compute(labels=LABELS)


@pytest.mark.parametrize(
    "form", [lambda each: each, as_mapping, lambda each: as_mapping(each, np.ndarray.tolist)]
)
def test_panoptic_quality_is_that_of_zsseg(load, form):
    pairs = build_segmentations()
    metric = panoptic_figures(pairs)
    predictions, references = zip(*((form(p), form(r)) for p, r in pairs), strict=True)
    module = load("panoptic_quality")
    module.add_batch(predictions=predictions[:3], references=references[:3])
    results = module.compute(predictions=predictions[3:], references=references[3:], **GROUPS, per_class=True)
    assert results.pop("per_class") == metric.compute_per_class()
    assert results == pytest.approx(metric.compute(), rel=1e-12, nan_ok=True)
    assert 0 < results["hPQ"] < results["SQ"] < 1
    assert any(segment.iscrowd for _, reference in pairs for segment in reference.segments)


def test_a_picture_in_which_nothing_was_found(load):
    truth = {"segmentation": [[1, 1]], "segments_info": [{"id": 1, "label_id": 0}]}
    # What transformers returns then.
    nothing = {"segmentation": -torch.ones(1, 2), "segments_info": []}
    nothing["segmentation"] = nothing["segmentation"].int()
    module = load("panoptic_quality")
    results = module.compute(predictions=[nothing], references=[truth], labels=["car"], per_class=True)
    assert results["per_class"]["car"]["FN"] == 1
    # No segment anywhere is a picture too.
    results = module.compute(predictions=[nothing], references=[nothing], labels=["car"])
    assert np.isnan(results["PQ"])
    assert results["PQ_all_classes"] == 0


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_memory_does_not_grow_with_the_pictures(load, tmp_path, keep_in_memory):
    module = load("mean_iou", keep_in_memory=keep_in_memory)
    generator = np.random.default_rng(0)
    label_map = generator.integers(0, 4, (256, 256), dtype=np.uint8)
    module.add(prediction=label_map, reference=label_map)

    def peak_of(count):
        tracemalloc.start()
        try:
            for _ in range(count):
                module.add(prediction=label_map, reference=label_map)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak_of(2), peak_of(12)
    assert many < few + label_map.nbytes
    assert len(module) == 15
    assert module.compute(labels=LABELS)["pixel_accuracy"] == 1.0
    assert not list((tmp_path / "cache").rglob("*.arrow"))


SHARE = """
import json, sys
import evaluate
from test_evaluate_modules import GROUPS, build_maps, build_segmentations
from zsseg.metrics.evaluate_modules import locate_evaluate_module

process, cache = int(sys.argv[1]), sys.argv[2]
results = {}
for name, pairs in (("mean_iou", build_maps()), ("panoptic_quality", build_segmentations())):
    module = evaluate.load(
        locate_evaluate_module(name), num_process=2, process_id=process, cache_dir=cache, experiment_id="two",
        timeout=180,
    )
    # The second process has no picture of the panoptic data: shares need not be equal.
    share = pairs[process::2] if name == "mean_iou" else (pairs if process == 0 else [])
    for prediction, reference in share:
        module.add(prediction=prediction, reference=reference)
    results[name] = module.compute(**GROUPS)
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_does(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(process), str(tmp_path / "cache")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
            env=environment_of_a_process(),
        )
        for process in (0, 1)
    ]
    try:
        outputs, errors = zip(*(process.communicate(timeout=200) for process in processes), strict=True)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert second == {"mean_iou": None, "panoptic_quality": None}
    whole = MeanIoU(VOCABULARY)
    for prediction, reference in build_maps():
        whole.update(prediction, reference)
    assert first["mean_iou"] == whole.compute()
    expected = panoptic_figures(build_segmentations()).compute()
    assert first["panoptic_quality"] == pytest.approx(expected, rel=1e-12, nan_ok=True)


def environment_of_a_process():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])}


def test_modules_combine(load):
    both = evaluate.combine([load("mean_iou"), load("mean_iou")])
    metric = MeanIoU(VOCABULARY)
    for prediction, reference in build_maps():
        both.add(prediction=prediction, reference=reference)
        metric.update(prediction, reference)
    results = both.compute(**GROUPS)
    for place in (0, 1):
        assert results[f"mean_iou_{place}_hIoU"] == metric.compute()["hIoU"]


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 1]], [[0]], "picture 0 of the batch: prediction and target must have one size"),
        ([0, 1], [0, 1], r"must be an \(H, W\) array of integers"),
        ([[0.5]], [[0]], "integers"),
    ],
)
def test_maps_that_do_not_fit(load, prediction, reference, message):
    module = load("mean_iou")
    with pytest.raises(ValueError, match=message):
        module.add(prediction=prediction, reference=reference)
    assert len(module) == 0


ONE = {"segmentation": [[1]], "segments_info": [{"id": 1, "label_id": 0}]}


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ([[1]], "must hold 'segmentation' and 'segments_info', got list"),
        ({"segmentation": [[1]]}, r"got \['segmentation'\]"),
        ({**ONE, "segments_info": [{"id": 1, "category_id": 3}]}, "needs an 'id' and a 'label_id'"),
        ({**ONE, "segments_info": [{"id": 0, "label_id": 3}]}, "must be positive"),
        ({**ONE, "segments_info": ONE["segments_info"] * 2}, "unique"),
        ({**ONE, "segmentation": [[2]]}, r"ids that no segment lists: \[2\]"),
    ],
)
def test_segments_that_do_not_fit(load, picture, message):
    module = load("panoptic_quality")
    for pair in ({"prediction": picture, "reference": ONE}, {"prediction": ONE, "reference": picture}):
        with pytest.raises(ValueError, match=message):
            module.add(**pair)


def test_arguments_that_do_not_fit_leave_the_pictures(load):
    module = load("panoptic_quality")
    module.add(prediction=ONE, reference=ONE)
    other = {**ONE, "segments_info": [{"id": 1, "label_id": 2}]}
    module.add(prediction=other, reference=other)
    for arguments, error, message in [
        ({}, ValueError, "name the labels"),
        ({"labels": ["car"]}, ValueError, r"label ids \[2\], but labels holds 1 names"),
        ({"labels": LABELS, "unseen_labels": ["dog"]}, ValueError, "unseen_labels must be among"),
        ({"labels": LABELS, "ignore_index": 3}, TypeError, "ignore_index"),
    ]:
        with pytest.raises(error, match=message):
            module.compute(**arguments)
    assert module.compute(labels=LABELS)["PQ_all_classes"] == 0.5
    with pytest.raises(ValueError, match="has seen no picture; call add or add_batch"):
        module.compute(labels=LABELS)
    with pytest.raises(ValueError, match="as many, got 1 predictions and 2 references"):
        module.add_batch(predictions=[ONE], references=[ONE, ONE])
    with pytest.raises(ValueError, match="as many, got 1 predictions and none references"):
        module.add_batch(predictions=[ONE])
    with pytest.raises(ValueError, match=r"got also \['weights'\]"):
        module.add(prediction=ONE, reference=ONE, weights=[1])


def test_no_other_module_is_known():
    with pytest.raises(ValueError, match="no evaluate module 'accuracy'"):
        locate_evaluate_module("accuracy")


@pytest.mark.parametrize("name", MODULES)
def test_each_folder_is_a_space_with_a_card(name, tmp_path):
    folder = Path(locate_evaluate_module(name))
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {f"{name}.py", "README.md", "app.py", "requirements.txt", "__init__.py"}
    card = huggingface_hub.SpaceCard.load(folder / "README.md")
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    assert {"evaluate", "metric"} <= set(card.data.tags)
    assert card.data.title
    assert card.data.to_dict()["description"]
    assert (folder / "requirements.txt").read_text().split() == ["zsseg[evaluate]"]
    text = read_card(folder / "README.md")
    assert text.lstrip().startswith("# Metric card")
    assert "sdk:" not in text

    # The card's own code runs.
    (code,) = (block for block in text.split("```python\n")[1:])
    names = {}
    exec(code.partition("```")[0], names)
    # As does the example of the page, in a folder of another name, as on the Hub.
    space = tmp_path / "app"
    shutil.copytree(folder, space)
    module = evaluate.load(str(space / f"{name}.py"), cache_dir=str(tmp_path / "cache"))
    exec((space / "app.py").read_text(), names)
    figures = compute_from_json(module, json.dumps(names["EXAMPLE"]))
    assert "error" not in figures
    assert len(figures["per_class"]) == 3
    json.dumps(figures, allow_nan=False)


def test_the_page_answers_mistakes(load):
    module = load("mean_iou")
    for text, message in [
        ("{", "Expecting"),
        ("[1]", "one JSON object, got a list"),
        ('{"predictions": [[[0]]]}', "as many"),
        ('{"predictions": [[[0]]], "references": [[[0]]]}', "name the labels"),
    ]:
        assert message in compute_from_json(module, text)["error"]
    assert read_card(Path(__file__)).startswith("import doctest")
