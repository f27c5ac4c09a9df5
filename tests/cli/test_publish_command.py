import os
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from testing.evaluation_reports import write_evaluation
from testing.hub_server import HubServer
from testing.tiny_models import build_picture

LABELS = "road, car, tree"
CARD = ("--license", "mit", "--training-data", "Streets drawn by hand.", "--training-data-license", "cc0-1.0")


@pytest.fixture
def evaluation(finding_checkpoint, tmp_path):
    return write_evaluation(tmp_path / "results.json", finding_checkpoint)


def test_published_and_used_by_its_name(run, hub, finding_checkpoint, evaluation, photos, tmp_path):
    outcome = run(
        "publish", finding_checkpoint, "user/name", "-e", evaluation, *CARD, "--dataset", "user/street"
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    commit = hub.repositories["model", "user/name"].refs["main"]
    assert f"published {hub.url}/user/name/commit/{commit}" in outcome.stdout
    assert "downloaded again: the same 8 files, the same bits from the model" in outcome.stdout
    assert (
        f"{(finding_checkpoint / 'model.safetensors').stat().st_size:,}  model.safetensors" in outcome.stdout
    )
    card = hub.get_files("user/name")["README.md"].content.decode()
    assert "Streets drawn by hand." in card
    assert "- user/street" in card
    results = []
    for model in (finding_checkpoint, "user/name"):
        folder = tmp_path / f"out{len(results)}"
        assert run("segment", photos, "--labels", LABELS, "-m", model, "-o", folder).code == 0
        results.append({path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))})
    assert results[0] == results[1]
    assert results[0]
    again = run(
        "publish", finding_checkpoint, "user/name", "-e", evaluation, *CARD, "--dataset", "user/street"
    )
    assert again.code == 0
    assert f"already there {hub.url}/user/name" in again.stdout


def test_a_dry_run_writes_the_folder_that_is_published(run, hub, finding_checkpoint, evaluation, tmp_path):
    folder = tmp_path / "ready"
    outcome = run("publish", finding_checkpoint, "user/name", "-e", evaluation, *CARD, "--dry-run", folder)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "nothing was sent" in outcome.stdout
    assert not hub.requests
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card.replace("Streets drawn", "Roads drawn"), encoding="utf-8")
    assert run("publish", folder, "user/name").code == 0
    sent = {
        name: file.content for name, file in hub.get_files("user/name").items() if name != ".gitattributes"
    }
    assert sent.pop("README.md") == contents.pop("README.md").replace(b"Streets drawn", b"Roads drawn")
    assert sent == contents
    (folder / "README.md").write_text(card.replace("value: 41.2", "value: 91.2"), encoding="utf-8")
    refused = run("publish", folder, "user/name", "--overwrite")
    assert refused.code == 1
    assert "figures that no evaluation of these weights backs" in refused.stderr


def test_what_a_dry_run_prints_can_be_run(run, hub, finding_checkpoint, evaluation, tmp_path):
    (tmp_path / "card.yaml").write_text("benchmarks: {street: city/street}")
    folder = tmp_path / "my model"
    options = (*CARD, "--card-data", tmp_path / "card.yaml", "--dry-run", folder)
    outcome = run("publish", finding_checkpoint, "user/name", "-e", evaluation, *options)
    assert outcome.code == 0
    command = shlex.split(outcome.stdout.splitlines()[-1].rpartition(": ")[2])
    assert command == ["zsseg", "publish", str(folder), "user/name"]
    again = run(*command[1:])
    assert (again.code, again.stderr) == (0, "")
    assert b"id: city/street" in hub.get_files("user/name")[".eval_results/street.yaml"].content


def test_a_dry_run_that_fails_at_the_end_claims_nothing(run, hub, finding_checkpoint, tmp_path):
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "thesis.txt").write_text("mine")
    options = (*CARD, "--dry-run", tmp_path / "ready", "--overwrite")
    outcome = run("publish", finding_checkpoint, "user/name", *options)
    assert outcome.code == 1
    assert "thesis.txt" in outcome.stderr
    assert "wrote" not in outcome.stdout


@pytest.mark.parametrize("folder", [".", "..", "file"])
def test_where_no_dry_run_can_be_written(run, hub, finding_checkpoint, tmp_path, monkeypatch, folder):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "file").write_text("mine")
    options = (*CARD, "--dry-run", folder, "--overwrite")
    outcome = run("publish", finding_checkpoint, "user/name", *options)
    assert outcome.code == 2
    assert f"--dry-run {folder} is" in outcome.stderr
    assert "name a new folder" in outcome.stderr
    assert not outcome.stdout


def test_facts_from_a_file_give_way_to_options(run, hub, finding_checkpoint, tmp_path):
    facts = {"license": "mit", "training_data": "Nothing.", "tags": ["street"], "limits": "Not for driving."}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(facts))
    options = ("--card-data", tmp_path / "card.yaml", "--license", "cc-by-4.0")
    outcome = run("publish", finding_checkpoint, "user/name", *options, "--private", "--revision", "v1")
    assert outcome.code == 0
    assert "note: the card has no figures" in outcome.stderr
    repository = hub.repositories["model", "user/name"]
    assert repository.private
    card = repository.commits[repository.refs["v1"]]["README.md"].content.decode()
    assert "license: cc-by-4.0" in card
    assert "Not for driving." in card
    assert list(repository.commits[repository.refs["main"]]) == [".gitattributes"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 1, "name one of the Hub's list with --license"),
        (("--license", "mit"), 1, "name it with --training-data"),
        (("--license", "other", "--training-data", "x"), 1, "--license-name and --license-link"),
        (("--license", "MIT", "--training-data", "x"), 1, "small letters"),
        ((*CARD, "-e", "nowhere.json"), 1, "nowhere.json"),
        ((*CARD, "--card-data", "nowhere.yaml"), 1, "nowhere.yaml"),
        ((*CARD, "--include", "*.csv"), 1, "include no file"),
        ((*CARD, "--create-pr", "--revision", "v1"), 2, "leave out --revision"),
    ],
)
def test_mistakes_are_said_in_one_line_and_nothing_is_sent(
    run, hub, finding_checkpoint, options, code, message
):
    outcome = run("publish", finding_checkpoint, "user/name", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not hub.requests


def test_folders_that_are_none_and_repositories_of_others(
    run, hub, finding_checkpoint, tmp_path, monkeypatch
):
    assert "holds no config.json" in run("publish", tmp_path, "user/name", *CARD).stderr
    assert (
        "a checkpoint on the Hub is downloaded first"
        in run("publish", "someone/model", "user/name", *CARD).stderr
    )
    (tmp_path / "README.md").write_text("mine")
    in_the_way = run("publish", finding_checkpoint, "user/name", *CARD, "--dry-run", tmp_path)
    assert in_the_way.code == 2
    assert "is not empty; choose another folder" in in_the_way.stderr
    assert (tmp_path / "README.md").read_text() == "mine"
    hub.put_files("user/name", {"config.json": b"{}"})
    assert "pass --overwrite" in run("publish", finding_checkpoint, "user/name", *CARD).stderr
    hub.add_token("hf_read", role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    refused = run("publish", finding_checkpoint, "user/name", *CARD)
    assert (refused.code, refused.stderr.count("\n")) == (1, 1 + 1)  # with the note that there are no figures
    assert "may only read" in refused.stderr


def test_what_is_left_out_is_said(run, hub, finding_checkpoint, evaluation, tmp_path):
    import shutil

    run_folder = tmp_path / "run"
    shutil.copytree(finding_checkpoint, run_folder / "checkpoint-000010")
    (run_folder / "best").symlink_to("checkpoint-000010")
    (run_folder / "metrics.jsonl").write_text("{}")
    (run_folder / "best" / "trainer").mkdir()
    torch.save({}, run_folder / "best" / "trainer" / "optimizer.pt")
    outcome = run("publish", run_folder / "best", "user/name", "-e", evaluation, *CARD)
    assert outcome.code == 0
    assert "note: not published: trainer/optimizer.pt" in outcome.stderr
    assert not any("optimizer" in name for name in hub.get_files("user/name"))
    assert "did you mean" in run("publish", run_folder, "user/name", *CARD).stderr


AS_A_NEWCOMER = """
import sys
from zsseg.cli.main import app

picture, output, *publish = sys.argv[1:]
app(["publish", *publish], standalone_mode=False)

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel, pipeline

segment = pipeline("zero-shot-panoptic-segmentation", model="user/name")
assert segment(picture, candidate_labels=["road", "car", "tree"])
torch.save(AutoModel.from_pretrained(snapshot_download("user/name")).state_dict(), output)
"""


@pytest.mark.slow
def test_a_new_process_that_is_pointed_to_the_hub_by_its_environment(
    finding_checkpoint, evaluation, tmp_path
):
    """As anybody meets the Hub: no part of this process' set-up takes part."""
    Image.fromarray(build_picture(48, 64)).save(tmp_path / "picture.png")
    with HubServer() as server:
        used = subprocess.run(
            [
                *(sys.executable, "-c", AS_A_NEWCOMER, tmp_path / "picture.png", tmp_path / "weights.pt"),
                *(finding_checkpoint, "user/name", "-e", evaluation, *CARD),
            ],
            env={
                **os.environ,
                **server.environment(tmp_path / "home"),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert used.returncode == 0, used.stderr
    assert "the same bits from the model" in used.stdout
    expected = AutoModel.from_pretrained(finding_checkpoint).state_dict()
    found = torch.load(tmp_path / "weights.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (tmp_path / "home" / "hub" / "models--user--name").is_dir()
