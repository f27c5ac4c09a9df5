import json
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from testing.evaluation_reports import build_evaluation_report, compute_digest, write_evaluation
from testing.tiny_models import build_bank, build_model, build_processor, save_bert, save_clip
from zsseg.checkpoints import packaged
from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.publication import build_publication, compute_probe_outputs, load_checkpoint
from zsseg.training.evaluation_report import EvaluationReport

REPO_ID = "user/name"


@pytest.fixture
def made(tmp_path):
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def test_the_folder_holds_the_checkpoint_its_card_and_its_evaluations(checkpoint, evaluation, made, facts):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    publication = build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])
    assert publication.files == (
        *(".eval_results/street.yaml", "README.md", "config.json", "evaluation/street.json"),
        *("model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    )
    assert {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} == set(
        publication.files
    )
    for name in ("model.safetensors", "tokenizer.json"):
        assert (made / name).read_bytes() == before[name]
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    model, processor = load_checkpoint(made)
    for name, output in compute_probe_outputs(model, processor).items():
        assert torch.equal(output, publication.outputs[name])
    assert len(ModelCard.load(made / "README.md").data.eval_results) == 8
    report = EvaluationReport.load(made / "evaluation" / "street.json")
    assert report.averages == EvaluationReport.load(evaluation).averages


def test_nothing_of_this_machine_is_published(checkpoint, evaluation, made, facts):
    config = json.loads((checkpoint / "config.json").read_text())
    config["_name_or_path"] = config["text_config"]["_name_or_path"] = "/home/somebody/clip"
    (checkpoint / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "name_or_path": "/home/somebody"})
    )
    publication = build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])
    for name in publication.files:
        content = (made / name).read_bytes()
        assert b"somebody" not in content, name
        assert b"/data/street" not in content, name


def test_a_made_folder_is_published_again_as_it_is(checkpoint, evaluation, made, facts, tmp_path):
    first = build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])
    (tmp_path / "again").mkdir()
    again = build_publication(made, REPO_ID, tmp_path / "again", facts=CardFacts())
    assert again.files == first.files
    for name in first.files:
        assert (again.folder / name).read_bytes() == (made / name).read_bytes(), name


def read_ids(folder):
    entries = [
        entry
        for path in (folder / ".eval_results").iterdir()
        for entry in parse_eval_result_entries(yaml.safe_load(path.read_text()))
    ]
    return {entry.dataset_id for entry in entries}


def test_hub_ids_of_data_sets_outlive_the_facts_that_named_them(
    checkpoint, evaluation, made, facts, tmp_path
):
    named = replace(facts, benchmarks={"street": "city/street"})
    first = build_publication(checkpoint, REPO_ID, made, facts=named, evaluations=[evaluation])
    again = [tmp_path / "again", tmp_path / "elsewhere", tmp_path / "renamed"]
    for folder in again:
        folder.mkdir()
    build_publication(made, REPO_ID, again[0], facts=CardFacts())
    for name in first.files:
        assert (again[0] / name).read_bytes() == (made / name).read_bytes(), name
    build_publication(made, "ada/name", again[1], facts=CardFacts())
    assert read_ids(again[1]) == {"city/street"}
    other = CardFacts(benchmarks={"street": "town/street"})
    build_publication(made, REPO_ID, again[2], facts=other)
    assert read_ids(again[2]) == {"town/street"}


def test_ids_made_of_names_follow_the_repository(checkpoint, evaluation, made, facts, tmp_path):
    build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])
    assert read_ids(made) == {"user/street"}
    (tmp_path / "elsewhere").mkdir()
    build_publication(made, "ada/name", tmp_path / "elsewhere", facts=CardFacts())
    assert read_ids(tmp_path / "elsewhere") == {"ada/street"}


def test_a_packaged_checkpoint_comes_with_its_evaluation(made, facts):
    publication = build_publication(packaged(), REPO_ID, made, facts=facts)
    assert "evaluation/patchwork.json" in publication.files
    assert "evaluation.json" not in publication.files
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "checkpoints.packaged" not in card
    assert f"zsseg evaluate patchwork --model {REPO_ID}" in card
    # 64.0 and 53.0: of the labels' own names, and of the control, which is no result.
    values = [each.metric_value for each in ModelCard(card).data.eval_results if each.metric_type == "PQ"]
    assert values == [64.0, 64.9, 51.9]
    assert "| all | 53.0 |" in card


def test_shards_and_words_without_a_text_tower(made, facts, tmp_path):
    folder = tmp_path / "bank"
    build_model().save_pretrained(folder, max_shard_size="100KB")
    build_processor(text_embeddings=build_bank()).save_pretrained(folder)
    publication = build_publication(folder, REPO_ID, made, facts=facts)
    assert sum(name.startswith("model-") for name in publication.files) > 1
    assert "text_embeddings.safetensors" in publication.files


def test_evaluations_of_another_checkpoint_are_refused(checkpoint, bank_checkpoint, made, facts, tmp_path):
    other = write_evaluation(tmp_path / "other.json", bank_checkpoint)
    with pytest.raises(ValueError, match=r"other\.json is of other weights"):
        build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[other])
    assert not any(made.iterdir())


def change_weights(checkpoint, change):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["no_object_embedding"].fill_(float("nan")), "holds NaN"),
        (lambda tensors: tensors.pop("no_object_embedding"), "weights are missing"),
        (
            lambda tensors: tensors.update(extra=torch.ones(2)),
            r"1 weights that its model has no place for.*extra",
        ),
        (lambda tensors: tensors.update(no_object_embedding=torch.ones(2)), "another shape"),
    ],
    ids=["nan", "missing", "left over", "shape"],
)
def test_weights_that_do_not_load_whole_are_refused(checkpoint, made, facts, change, message):
    change_weights(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        build_publication(checkpoint, REPO_ID, made, facts=facts)


def test_damaged_weights_are_refused(checkpoint, made, facts):
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="cut off or damaged"):
        build_publication(checkpoint, REPO_ID, made, facts=facts)


@pytest.mark.parametrize("save", [save_clip, save_bert])
def test_checkpoints_of_other_software_are_refused(tmp_path, made, facts, save):
    save(tmp_path / "other")
    with pytest.raises(ValueError, match="none of zsseg's"):
        build_publication(tmp_path / "other", REPO_ID, made, facts=facts)


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "user/na me", "user/", "/name", "user/x--y", ""])
def test_names_that_are_none_on_the_hub(checkpoint, made, facts, repo_id):
    with pytest.raises(ValueError, match=r"is named user/name|no name on the Hub"):
        build_publication(checkpoint, repo_id, made, facts=facts)


def test_eval_results_in_the_folder_must_be_backed(checkpoint, evaluation, made, facts):
    (checkpoint / ".eval_results").mkdir()
    stray = checkpoint / ".eval_results" / "mine.yaml"
    stray.write_text("- dataset: {id: street, task_id: own-panoptic/PQ}\n  value: 99.9\n")
    with pytest.raises(ValueError, match=r"mine\.yaml holds 1 figures"):
        build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])


def test_the_digest_of_an_evaluation_is_that_of_the_stored_weights(checkpoint, evaluation, made, facts):
    change_weights(checkpoint, lambda tensors: tensors["no_object_embedding"].add_(1e-6))
    with pytest.raises(ValueError, match="is of other weights"):
        build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[evaluation])


def test_the_probe_tells_weights_apart(concat_checkpoint):
    model, processor = load_checkpoint(concat_checkpoint)
    before = compute_probe_outputs(model, processor)
    assert all(
        torch.equal(output, before[name]) for name, output in compute_probe_outputs(model, processor).items()
    )
    other = AutoModel.from_pretrained(concat_checkpoint).eval()
    with torch.no_grad():
        other.segmentor.get_parameter(next(name for name, _ in other.segmentor.named_parameters())).add_(1e-3)
    after = compute_probe_outputs(other, processor)
    assert not all(torch.equal(after[name], output) for name, output in before.items())


def test_a_report_may_be_of_any_machine(checkpoint, made, facts, tmp_path):
    report = replace(build_evaluation_report(compute_digest(checkpoint)), machine="Another GPU")
    report.save(tmp_path / "gpu.json")
    build_publication(checkpoint, REPO_ID, made, facts=facts, evaluations=[tmp_path / "gpu.json"])
    assert "measured on Another GPU" in (made / "README.md").read_text()
