import hashlib
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from transformers import AutoModel, AutoProcessor, pipeline

from testing.tiny_models import build_clip_text_config, build_model, build_picture
from zsseg.publishing import hub_upload
from zsseg.publishing.hub_upload import check_download, upload_publication
from zsseg.publishing.publication import build_publication

REPO_ID = "user/name"
COMMIT = r"/api/models/user/name/commit/"
STORAGE = r"^/storage/"
LABELS = ["road", "car", "tree"]


@pytest.fixture(scope="module")
def publication(concat_checkpoint, tmp_path_factory):
    from testing.evaluation_reports import write_evaluation
    from zsseg.publishing.card_facts import CardFacts

    folder = tmp_path_factory.mktemp("publication")
    evaluation = write_evaluation(tmp_path_factory.mktemp("scores") / "results.json", concat_checkpoint)
    facts = CardFacts(license="apache-2.0", training_data="Streets drawn by hand.")
    return build_publication(concat_checkpoint, REPO_ID, folder, facts=facts, evaluations=[evaluation])


@pytest.fixture(scope="module")
def other_publication(tmp_path_factory):
    from testing.tiny_models import build_processor
    from zsseg.publishing.card_facts import CardFacts

    checkpoint, folder = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("other_publication")
    build_model(seed=5, text_config=build_clip_text_config()).save_pretrained(
        checkpoint, max_shard_size="100KB"
    )
    build_processor().save_pretrained(checkpoint)
    return build_publication(
        checkpoint, REPO_ID, folder, facts=CardFacts(license="mit", training_data="Others.")
    )


def read(publication):
    return {name: (publication.folder / name).read_bytes() for name in publication.files}


def get_contents(hub, revision="main"):
    files = hub.get_files(REPO_ID, revision)
    return {name: file.content for name, file in files.items() if name != ".gitattributes"}


def count_commits(hub):
    return len(hub.repositories["model", REPO_ID].history) - 1


def test_one_commit_holds_everything(hub, publication):
    published = upload_publication(publication, REPO_ID, message="First")
    assert get_contents(hub) == read(publication)
    assert hub.repositories["model", REPO_ID].history == [("main", "initial"), ("main", "First")]
    assert hub.repositories["model", REPO_ID].refs["main"] == published.commit
    assert published.url == f"{hub.url}/{REPO_ID}/commit/{published.commit}"
    assert published.is_new
    check_download(publication, published)


def test_the_model_from_the_hub_gives_the_same_bits(hub, publication, concat_checkpoint):
    published = upload_publication(publication, REPO_ID)
    picture = build_picture(48, 64)
    outputs = []
    for source, arguments in (
        (concat_checkpoint, {}),
        (REPO_ID, {}),
        (REPO_ID, {"revision": published.commit}),
    ):
        model = AutoModel.from_pretrained(source, **arguments).eval()
        processor = AutoProcessor.from_pretrained(source, **arguments)
        with torch.no_grad():
            outputs.append(model(**processor([picture], LABELS)))
    for found in outputs[1:]:
        assert torch.equal(found.class_queries_logits, outputs[0].class_queries_logits)
        assert torch.equal(found.masks_queries_logits, outputs[0].masks_queries_logits)
    local, remote = (
        pipeline("zero-shot-panoptic-segmentation", model=str(source))(picture, candidate_labels=LABELS)
        for source in (concat_checkpoint, REPO_ID)
    )
    assert [each["label"] for each in local] == [each["label"] for each in remote]
    folder = snapshot_download(REPO_ID)
    assert AutoModel.from_pretrained(folder).config.model_type == "zsseg-concat"


def test_an_earlier_revision_stays(hub, publication, other_publication):
    first = upload_publication(publication, REPO_ID)
    second = upload_publication(other_publication, REPO_ID, overwrite=True)
    assert first.commit != second.commit
    names = {
        revision: snapshot_download(REPO_ID, revision=revision) for revision in (first.commit, second.commit)
    }
    weights = {
        revision: AutoModel.from_pretrained(REPO_ID, revision=revision).no_object_embedding
        for revision in names
    }
    assert not torch.equal(*weights.values())


def test_what_was_downloaded_works_offline(hub, publication, monkeypatch):
    upload_publication(publication, REPO_ID)
    online = AutoModel.from_pretrained(REPO_ID).no_object_embedding
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = hub.requests.total()
    assert torch.equal(AutoModel.from_pretrained(REPO_ID).no_object_embedding, online)
    assert hub.requests.total() == before
    with pytest.raises(OSError, match="couldn't connect"):
        AutoModel.from_pretrained("user/nothing")


def test_the_same_again_sends_nothing(hub, publication):
    first = upload_publication(publication, REPO_ID)
    again = upload_publication(publication, REPO_ID)
    assert (again.commit, again.is_new) == (first.commit, False)
    assert count_commits(hub) == 1
    assert hub.count("PUT", STORAGE) == 1


# Tokens


def test_without_a_token_nothing_begins(hub, publication, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match=r"no token to publish with.*hf auth login"):
        upload_publication(publication, REPO_ID)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_read", REPO_ID, r"token of 'user' may only read.*settings/tokens"),
        ("hf_wrong", REPO_ID, r"refuses this token.*hf auth login"),
        ("hf_write", "somebody/name", r"may write to \['user'\], not to 'somebody'.*user/name.*--create-pr"),
        ("hf_org", "readers/name", r"may write to \['user', 'writers'\], not to 'readers'"),
    ],
)
def test_tokens_without_write_rights(hub, publication, monkeypatch, token, repo_id, message):
    hub.add_token("hf_read", role="read")
    hub.add_token("hf_org", orgs=[("writers", "write"), ("readers", "read")])
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=message):
        upload_publication(publication, repo_id)
    assert not hub.repositories


def test_a_token_that_shows_only_when_used_what_it_may_not_do(hub, publication, monkeypatch):
    hub.add_token("hf_fine", name="user", role="fineGrained")
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    hub.put_files(REPO_ID, {})
    monkeypatch.setattr(hub, "_check_writing", lambda repo_id: (_ for _ in ()).throw(forbidden()))
    with pytest.raises(PermissionError, match=r"refuses this token.*to write to user/name.*settings/tokens"):
        upload_publication(publication, REPO_ID)
    assert count_commits(hub) == 1


def forbidden():
    from testing.hub_server import Answer

    return Answer(403, {"error": "Forbidden"}, X_Error_Message="no write access")


def test_organisations(hub, publication, monkeypatch):
    hub.add_token("hf_org", orgs=[("writers", "write")])
    monkeypatch.setenv("HF_TOKEN", "hf_org")
    assert upload_publication(publication, "writers/name", private=True).is_new
    assert hub.repositories["model", "writers/name"].private


# Repositories that are not empty


def test_other_files_are_not_overwritten(hub, publication):
    hub.put_files(
        REPO_ID, {"README.md": b"mine", "model-00001-of-00002.safetensors": b"old", "a/b.txt": b"kept"}
    )
    with pytest.raises(
        FileExistsError,
        match=r"replace 1 files, first \['README\.md'\] and delete 1 files, first \['model-00001-of-00002",
    ):
        upload_publication(publication, REPO_ID)
    assert count_commits(hub) == 1
    published = upload_publication(publication, REPO_ID, overwrite=True)
    assert get_contents(hub) == {**read(publication), "a/b.txt": b"kept"}
    assert count_commits(hub) == 2
    assert published.is_new


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_of_the_same_length_may_differ(hub, publication, name):
    content = read(publication)[name]
    hub.put_files(REPO_ID, {name: content[:-1] + bytes([content[-1] ^ 1])})
    with pytest.raises(FileExistsError, match=re.escape(f"replace 1 files, first ['{name}']")):
        upload_publication(publication, REPO_ID)
    upload_publication(publication, REPO_ID, overwrite=True)
    assert get_contents(hub)[name] == content


def test_old_shards_go_with_the_commit_that_brings_the_new_weights(hub, publication, other_publication):
    upload_publication(other_publication, REPO_ID)
    upload_publication(publication, REPO_ID, overwrite=True)
    assert get_contents(hub) == read(publication)
    assert count_commits(hub) == 2


def test_strange_files_alone_are_no_obstacle(hub, publication):
    hub.put_files(REPO_ID, {"pictures/a.png": b"a"})
    upload_publication(publication, REPO_ID)
    assert get_contents(hub) == {**read(publication), "pictures/a.png": b"a"}


def test_a_branch_of_its_own(hub, publication):
    upload_publication(publication, REPO_ID, revision="v1")
    assert get_contents(hub) == {}
    assert get_contents(hub, "v1") == read(publication)


def test_a_pull_request(hub, publication):
    hub.put_files("somebody/name", {"README.md": b"theirs"})
    with pytest.raises(FileExistsError, match=r"README\.md"):
        upload_publication(publication, "somebody/name", create_pr=True)
    published = upload_publication(publication, "somebody/name", create_pr=True, overwrite=True)
    assert published.url == f"{hub.url}/somebody/name/discussions/1"
    assert hub.get_files("somebody/name")["README.md"].content == b"theirs"
    check_download(publication, published)


def test_a_licence_that_the_hub_does_not_know(hub, publication, tmp_path):
    card = (publication.folder / "README.md").read_text().replace("license: apache-2.0", "license: apache2")
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match='"license" must be one of'):
        upload_publication(replace(publication, folder=folder, files=("README.md",)), REPO_ID)
    assert count_commits(hub) == 0


# Faults


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/whoami-v2"),
        ("POST", "/api/repos/create"),
        ("GET", r"/api/models/user/name"),
        ("GET", r"/tree/"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", r"/info/lfs/objects/batch"),
        ("PUT", STORAGE),
        ("POST", "^/verify/"),
        ("POST", COMMIT),
    ],
)
@pytest.mark.parametrize("kind", ["error", "drop_before", "drop_after"])
def test_what_fails_in_passing_is_tried_again(hub, publication, method, path, kind):
    hub.fail(method, path, kind, times=2)
    published = upload_publication(publication, REPO_ID)
    assert published.commit == hub.repositories["model", REPO_ID].refs["main"]
    assert get_contents(hub) == read(publication)
    assert count_commits(hub) == 1


@pytest.mark.parametrize("kind", ["error", "drop_before"])
def test_a_hub_that_stays_away_publishes_nothing_and_what_arrived_is_reused(hub, publication, kind):
    hub.fail("POST", COMMIT, kind, times=20)
    with pytest.raises(OSError, match=r"could not be used for user/name.*not sent twice"):
        upload_publication(publication, REPO_ID)
    assert get_contents(hub) == {}
    assert count_commits(hub) == 0
    assert hub.count("POST", COMMIT) == 1 + len(hub_upload.RETRY_WAITS)
    hub.recover()
    upload_publication(publication, REPO_ID)
    assert get_contents(hub) == read(publication)
    assert hub.count("PUT", STORAGE) == 1


def test_an_upload_that_breaks_off_publishes_nothing(hub, publication):
    hub.fail("PUT", STORAGE, "drop_before", times=100)
    with pytest.raises(OSError, match="could not be used for user/name"):
        upload_publication(publication, REPO_ID)
    assert count_commits(hub) == 0
    hub.recover()
    upload_publication(publication, REPO_ID)
    assert count_commits(hub) == 1


def test_a_commit_whose_answer_got_lost_is_not_sent_twice(hub, publication):
    hub.fail("POST", COMMIT, "drop_after")
    published = upload_publication(publication, REPO_ID)
    assert hub.count("POST", COMMIT) == 1
    assert count_commits(hub) == 1
    assert published.commit == hub.repositories["model", REPO_ID].refs["main"]
    assert published.is_new


def test_a_commit_by_somebody_else_meanwhile_is_not_taken_for_ours(hub, publication, monkeypatch):
    upload_publication(publication, REPO_ID)
    plan_commit = hub_upload._plan_commit

    def plan_then_another_commits(*arguments):
        plan = plan_commit(*arguments)
        hub.put_files(REPO_ID, {"README.md": b"theirs"})
        return plan

    hub.put_files(REPO_ID, {"config.json": b"{}"})
    monkeypatch.setattr(hub_upload, "_plan_commit", plan_then_another_commits)
    with pytest.raises(OSError, match=r"somebody else changed user/name meanwhile.*nothing was published"):
        upload_publication(publication, REPO_ID, overwrite=True)
    assert hub.get_files(REPO_ID)["README.md"].content == b"theirs"
    assert count_commits(hub) == 3


def test_a_pull_request_whose_answer_got_lost_is_not_opened_twice(hub, publication):
    hub.put_files(REPO_ID, {})
    hub.fail("POST", COMMIT, "drop_after")
    with pytest.raises(OSError, match=r"may have been opened: look at .*/user/name/discussions"):
        upload_publication(publication, REPO_ID, create_pr=True)
    assert hub.count("POST", COMMIT) == 1


# Downloads


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("HEAD", r"/resolve/", "error"),
        ("HEAD", r"/resolve/", "drop_before"),
        ("GET", r"/tree/", "error"),
        ("GET", STORAGE, "drop_before"),
        ("GET", STORAGE, "slow"),
    ],
)
def test_a_download_that_fails_in_passing_is_tried_again(hub, publication, method, path, kind):
    published = upload_publication(publication, REPO_ID)
    hub.fail(method, path, kind, times=1)
    check_download(publication, published)


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, publication):
    published = upload_publication(publication, REPO_ID)
    hub.fail("GET", STORAGE, "truncate", times=2)
    check_download(publication, published)
    assert hub.count("GET", STORAGE) == 3


def test_a_download_that_never_ends_whole_is_refused(hub, publication):
    published = upload_publication(publication, REPO_ID)
    hub.fail("GET", r"/resolve/.*config\.json", "drop_before", times=100)
    with pytest.raises(OSError):  # noqa: PT011 whichever of huggingface_hub's: it must not pass
        check_download(publication, published)


@pytest.mark.parametrize(
    ("path", "name"), [(STORAGE, "model.safetensors"), (r"/resolve/.*/tokenizer\.json", "tokenizer.json")]
)
def test_other_bytes_of_the_same_length_are_noticed(hub, publication, path, name):
    published = upload_publication(publication, REPO_ID)
    hub.fail("GET", path, "corrupt")
    with pytest.raises(OSError, match=rf"other contents for \['{name}'\]"):
        check_download(publication, published)


def test_a_file_that_did_not_get_there_is_noticed(hub, publication):
    published = upload_publication(publication, REPO_ID)
    del hub.get_files(REPO_ID)["tokenizer.json"]
    with pytest.raises(OSError, match=r"does not hold \['tokenizer\.json'\]"):
        check_download(publication, published)


def test_a_model_that_computes_something_else_is_noticed(hub, publication):
    published = upload_publication(publication, REPO_ID)
    outputs = {
        **publication.outputs,
        "masks_queries_logits": publication.outputs["masks_queries_logits"] + 1e-6,
    }
    with pytest.raises(OSError, match="computes other masks_queries_logits"):
        check_download(replace(publication, outputs=outputs), published)


def test_users_cannot_load_half_a_model(hub, publication):
    upload_publication(publication, REPO_ID)
    hub.fail("GET", STORAGE, "drop_before", times=100)
    with pytest.raises(OSError):  # noqa: PT011
        AutoModel.from_pretrained(REPO_ID)
    hub.recover()
    assert AutoModel.from_pretrained(REPO_ID).config.model_type == "zsseg-concat"


def test_the_server_checks_what_it_is_sent(hub, publication):
    upload_publication(publication, REPO_ID)
    weights = (publication.folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert hub.answer("PUT", f"/storage/{digest}", {}, b"other").status == 400
    assert hub.blobs[digest] == weights
