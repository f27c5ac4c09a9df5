from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, parse_eval_result_entries

from testing.evaluation_reports import build_evaluation_report
from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.evaluations import load_evaluations
from zsseg.publishing.hub_metadata import (
    build_eval_result_files,
    build_front_matter,
    check_model_index,
    check_prose,
    read_benchmarks,
)

DIGEST = "a" * 64
FACTS = CardFacts(
    license="mit", datasets=("user/street",), base_model=("user/start",), tags=("street", "zsseg")
)
EXPECTED = [
    *(("PQ", 41.2), ("SQ", 81.1), ("RQ", 52.3), ("PQ_th", 30.7), ("PQ_st", 61.8)),
    *(("PQ_seen", 45.6), ("PQ_unseen", 28.9), ("hPQ", 35.4)),
]


@pytest.fixture
def evaluations(tmp_path):
    build_evaluation_report(DIGEST).save(tmp_path / "results.json")
    return load_evaluations([tmp_path / "results.json"], DIGEST)


def test_the_front_matter_is_what_the_hub_reads(evaluations):
    front_matter = build_front_matter(FACTS, evaluations, "user/name").to_yaml()
    data = ModelCard(f"---\n{front_matter}\n---\ntext").data
    assert (data.library_name, data.license, data.pipeline_tag) == ("zsseg", "mit", "image-segmentation")
    assert (data.datasets, data.base_model, data.model_name) == (["user/street"], ["user/start"], "name")
    assert data.tags.count("zsseg") == 1
    assert "street" in data.tags
    assert [(each.metric_type, each.metric_value) for each in data.eval_results] == EXPECTED
    (setup,) = {str(each.dataset_args) for each in data.eval_results}
    assert "'images': 7" in setup
    assert {each.source_url for each in data.eval_results} == {
        "https://huggingface.co/user/name/blob/main/evaluation/street.json"
    }


def test_eval_results_are_what_the_hub_reads(evaluations):
    files = build_eval_result_files(evaluations, FACTS, "user/name")
    assert list(files) == [".eval_results/street.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/street.yaml"]))
    assert [(each.task_id, each.value) for each in entries] == [
        (f"own-panoptic/{name}", value) for name, value in EXPECTED
    ]
    assert {each.dataset_id for each in entries} == {"user/street"}
    assert {each.notes for each in entries if each.task_id.endswith("/hPQ")} == {
        "hPQ in percent; street; the data set's id is made of its name"
    }
    benchmarked = CardFacts(license="mit", benchmarks={"street": "city/street"})
    files = build_eval_result_files(evaluations, benchmarked, "user/name")
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/street.yaml"]))
    assert {each.dataset_id for each in entries} == {"city/street"}
    assert {each.notes for each in entries if each.task_id.endswith("/hPQ")} == {"hPQ in percent; street"}


@pytest.mark.parametrize(
    ("dataset", "slug"),
    [("camvid/val", "camvid-val"), ("COCO val2017", "coco-val2017"), ("x" * 120, "x" * 96)],
)
def test_the_name_of_a_data_set_here_is_never_the_id_of_another_on_the_hub(tmp_path, dataset, slug):
    build_evaluation_report(DIGEST, dataset=dataset).save(tmp_path / "results.json")
    evaluations = load_evaluations([tmp_path / "results.json"], DIGEST)
    (content,) = build_eval_result_files(evaluations, FACTS, "ada/name").values()
    entries = parse_eval_result_entries(yaml.safe_load(content))
    assert {each.dataset_id for each in entries} == {f"ada/{slug}"}
    data = build_front_matter(FACTS, evaluations, "ada/name")
    assert {(each.dataset_type, each.dataset_name) for each in data.eval_results} == {(slug, dataset)}
    check_model_index(data, evaluations, Path("README.md"))


def test_without_evaluations_there_are_no_results():
    data = build_front_matter(FACTS, [], "user/name")
    assert "model-index" not in data.to_dict()
    assert build_eval_result_files([], FACTS, "user/name") == {}


def build_result(**changes):
    content = {
        "task_type": "image-segmentation",
        "dataset_type": "street",
        "dataset_name": "street",
        "dataset_config": "own-panoptic",
        "metric_type": "PQ",
        "metric_value": 41.2,
    }
    return ModelCardData(model_name="name", eval_results=[EvalResult(**{**content, **changes})])


def test_figures_that_an_evaluation_has_are_backed(evaluations):
    check_model_index(build_result(), evaluations, Path("README.md"))
    check_model_index(ModelCardData(), [], Path("README.md"))


@pytest.mark.parametrize(
    "changes",
    [
        {"metric_value": 41.3},
        {"metric_value": "41.2"},
        {"metric_type": "SQ"},
        {"dataset_type": "coco"},
        {"dataset_config": "other"},
    ],
)
def test_figures_of_a_card_that_no_evaluation_has_are_refused(evaluations, changes):
    with pytest.raises(
        ValueError, match=r"README\.md holds 1 figures that no evaluation of these weights backs"
    ):
        check_model_index(build_result(**changes), evaluations, Path("README.md"))


def test_figures_without_any_evaluation_are_refused():
    with pytest.raises(ValueError, match=r"PQ 41\.2 on street.*--evaluation"):
        check_model_index(build_result(), [], Path("README.md"))


@pytest.mark.parametrize(("value", "is_backed"), [("41.2", True), ("41.25", False), ("99", False)])
def test_eval_results_that_lie_there_must_be_backed(evaluations, tmp_path, value, is_backed):
    path = tmp_path / ".eval_results" / "street.yaml"
    path.parent.mkdir()
    path.write_text(f"- dataset: {{id: city/street, task_id: own-panoptic/PQ}}\n  value: {value}\n")
    if is_backed:
        found = read_benchmarks(tmp_path, [".eval_results/street.yaml"], evaluations)
        assert found == {"street": "city/street"}
    else:
        with pytest.raises(ValueError, match=r"street\.yaml holds 1 figures that no evaluation"):
            read_benchmarks(tmp_path, [".eval_results/street.yaml"], evaluations)


def test_ids_are_told_apart_by_their_notes(tmp_path):
    paths = [tmp_path / "street.json", tmp_path / "square.json"]
    for path in paths:
        build_evaluation_report(DIGEST, dataset=path.stem).save(path)
    evaluations = load_evaluations(paths, DIGEST)
    benchmarks = {"street": "city/street", "square": "city/square"}
    for given in ({}, {"street": "city/street"}, benchmarks):
        files = build_eval_result_files(evaluations, CardFacts(benchmarks=given), "user/name")
        (tmp_path / ".eval_results").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        assert read_benchmarks(tmp_path, list(files), evaluations) == given
    (tmp_path / "mine.yaml").write_text(
        "- dataset: {id: city/park, task_id: own-panoptic/PQ}\n  value: 41.2\n"
    )
    assert read_benchmarks(tmp_path, ["mine.yaml"], evaluations) == {}


@pytest.mark.parametrize("text", ["PQ: 4", "- PQ", "- dataset: {id: street}\n  value: 1", "a: ["])
def test_eval_results_that_are_none_are_refused(evaluations, tmp_path, text):
    (tmp_path / "street.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"street\.yaml holds no entries"):
        read_benchmarks(tmp_path, ["street.yaml"], evaluations)


@pytest.mark.parametrize(
    "text",
    [
        "It reaches 41.2 PQ, 28.9 of it on unseen labels.",
        "hPQ 0.354",
        "PQ 41 % on seven pictures",
        "See arXiv:2112.01527 for PQ, with torch 2.13.0 and transformers 5.23.",
        "Trained for 12.5 hours at a rate of 0.0001.\nPQ is 41.2.",
        "| metric | value |\n| --- | ---: |\n| PQ | 41.2 |\n| car's SQ | 70.0 |",
        "1. PQ of [street](https://example.org/1.5/street)",
    ],
)
def test_prose_that_says_what_was_measured(evaluations, text):
    if "5.23" in text:
        text = text.replace("transformers 5.23.", "transformers 5.23.0.")
    check_prose(text, evaluations, Path("README.md"))


@pytest.mark.parametrize(
    "text",
    [
        "It reaches 99.9 PQ.",
        "hPQ 0.99",
        "An mIoU of 99 %",
        "PQ: 43.3",
        "PQ 12.0, the number of right roads",
        "| metric | value |\n| --- | ---: |\n| PQ | 99.9 |",
        "| PQ | SQ |\n| ---: | ---: |\n| 41.2 | 99.9 |",
        "pixel accuracy is 12.3",
    ],
)
def test_prose_that_claims_something_else_is_refused(evaluations, text):
    with pytest.raises(ValueError, match=r"README\.md holds 1 figures.*names no metric"):
        check_prose(text, evaluations, Path("README.md"))
