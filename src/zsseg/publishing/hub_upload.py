"""A folder that is ready → one commit on the Hub, and proof that the Hub gives the same model back."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError is of httpx or httpx2
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from zsseg.publishing.checkpoint_files import is_checkpoint_part
from zsseg.publishing.publication import Publication, compute_probe_outputs, load_checkpoint

logger = logging.getLogger(__name__)

GIT_ATTRIBUTES = ".gitattributes"
TRANSIENT_STATUS_CODES = frozenset({408, 429, 500, 502, 503, 504})
CHANGED_MEANWHILE = 412
RETRY_WAITS = (1.0, 4.0, 10.0)
"""Seconds before each further attempt at what may fail in passing."""

TOKEN_HINT = (
    "make a token with write access at https://huggingface.co/settings/tokens and log in with `hf auth "
    "login`, or set HF_TOKEN"
)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a model stands on the Hub.

    Attributes:
        repo_id: its repository.
        commit: the commit that holds it.
        url: of the commit, or of the pull request.
        is_new: whether anything was sent; otherwise the same files were there already.
    """

    repo_id: str
    commit: str
    url: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one commit does to a repository that stands at ``parent``."""

    parent: str
    deleted: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]


def upload_publication(
    publication: Publication,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    message: str = "Publish with zsseg",
) -> Published:
    """Send a folder to the Hub as one commit, all of it or nothing; a repository is made if there is none.

    What fails in passing is tried again. A commit whose answer got lost is looked for before it is sent
    again, so it never stands there twice.

    Args:
        publication: the folder.
        repo_id: ``user/name``.
        private: visibility of a repository that is made; None takes the account's default.
        revision: branch to commit to, made if there is none; None is the main one.
        create_pr: open a pull request instead.
        overwrite: replace files that are there with other contents, and delete those that would contradict.
        message: of the commit.

    Raises:
        PermissionError: if there is no token, or it may not write there.
        FileExistsError: if the repository holds other files and may not be overwritten.
        OSError: if the Hub cannot be reached, fails, or its repository changes meanwhile.
    """
    api = HfApi()
    with _hub_errors(repo_id):
        check_write_access(api, repo_id, create_pr=create_pr)
        _prepare_repository(api, repo_id, private=private, revision=revision)
        plan = _plan_commit(api, publication, repo_id, revision)
        if not (plan.added or plan.replaced or plan.deleted):
            return Published(repo_id, plan.parent, f"{constants.ENDPOINT}/{repo_id}", is_new=False)
        _check_overwriting(plan, repo_id, overwrite=overwrite)
        commit, url = _commit(api, publication, plan, repo_id, revision, create_pr=create_pr, message=message)
        return Published(repo_id, commit, url, is_new=True)


def check_download(publication: Publication, published: Published) -> None:
    """Download a published model into an empty folder and compare files and outputs, to the last bit.

    Raises:
        OSError: if files are missing or other than those uploaded, or the model gives other outputs.
    """
    repo_id, commit = published.repo_id, published.commit
    with TemporaryDirectory(prefix="zsseg-check-") as cache, _hub_errors(repo_id):
        snapshot = Path(_try_again(lambda: snapshot_download(repo_id, revision=commit, cache_dir=cache)))
        if missing := [name for name in publication.files if not (snapshot / name).is_file()]:
            raise OSError(f"the Hub does not hold {missing} of {repo_id} at {commit}: publish again")
        differing = [
            name
            for name in publication.files
            if _compute_sha256(snapshot / name) != _compute_sha256(publication.folder / name)
        ]
        if differing:
            raise OSError(
                f"the Hub gives other contents for {differing} of {repo_id} at {commit} than were uploaded. "
                "Run the command again: it uploads nothing that is there and checks once more; if it fails "
                "again, the commit must not be used"
            )
        model, processor = load_checkpoint(repo_id, revision=commit, cache_dir=cache)
        outputs = compute_probe_outputs(model, processor)
        for name, expected in publication.outputs.items():
            if not torch.equal(outputs[name], expected):
                raise OSError(
                    f"the model that the Hub gives back for {repo_id} at {commit} computes other {name}"
                )


def check_write_access(api: HfApi, repo_id: str, *, create_pr: bool) -> None:
    """Refuse to begin with a token that cannot write to the repository.

    A fine-grained token shows only when used what it may do.

    Raises:
        PermissionError: saying what is wrong with the token.
    """
    try:
        account = _try_again(api.whoami)
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token to publish with: {TOKEN_HINT}") from error
    name = account["name"]
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"the token of {name!r} may only read: {TOKEN_HINT}")
    namespace = repo_id.partition("/")[0]
    writable = [
        name,
        *(
            each["name"]
            for each in account.get("orgs", [])
            if each.get("roleInOrg") not in ("read", "no_access")
        ),
    ]
    if namespace not in writable and not create_pr:
        raise PermissionError(
            f"the token of {name!r} may write to {writable}, not to {namespace!r}: publish as "
            f"{name}/{repo_id.partition('/')[2]}, use a token of {namespace!r}, or open a pull request with "
            "--create-pr"
        )


def _prepare_repository(api: HfApi, repo_id: str, *, private: bool | None, revision: str | None) -> None:
    try:
        _try_again(lambda: api.repo_info(repo_id))
    except RepositoryNotFoundError:
        _try_again(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if revision is not None:
        try:
            _try_again(lambda: api.repo_info(repo_id, revision=revision))
        except RevisionNotFoundError:
            _try_again(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))


def _plan_commit(api: HfApi, publication: Publication, repo_id: str, revision: str | None) -> _Plan:
    parent = _get_head(api, repo_id, revision)
    remote = _list_files(api, repo_id, parent)
    return _Plan(
        parent=parent,
        deleted=tuple(name for name in remote if name not in publication.files and is_checkpoint_part(name)),
        replaced=tuple(
            name
            for name in publication.files
            if name in remote and not _is_same(remote[name], publication.folder / name)
        ),
        added=tuple(name for name in publication.files if name not in remote),
    )


def _check_overwriting(plan: _Plan, repo_id: str, *, overwrite: bool) -> None:
    if overwrite or not (plan.replaced or plan.deleted):
        return
    what = [
        f"{verb} {len(names)} files, first {list(names[:10])}"
        for verb, names in (("replace", plan.replaced), ("delete", plan.deleted))
        if names
    ]
    raise FileExistsError(
        f"{repo_id} holds other files, and publishing would {' and '.join(what)}: choose another name, or "
        "pass --overwrite (the Hub keeps the earlier commits)"
    )


def _commit(
    api: HfApi,
    publication: Publication,
    plan: _Plan,
    repo_id: str,
    revision: str | None,
    *,
    create_pr: bool,
    message: str,
) -> tuple[str, str]:
    """Commit and URL. The parent is named, so that the Hub refuses a commit upon anything else."""
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(name, publication.folder / name) for name in (*plan.added, *plan.replaced)),
        *(CommitOperationDelete(name) for name in plan.deleted),
    ]
    for wait in (*RETRY_WAITS, None):
        try:
            info = api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                parent_commit=plan.parent,
            )
            return info.oid, info.pr_url or info.commit_url
        except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
            is_conflict = (
                isinstance(error, HfHubHTTPError) and error.response.status_code == CHANGED_MEANWHILE
            )
            if not (is_conflict or _is_transient(error)):
                raise
            if create_pr:
                raise OSError(
                    f"the Hub's answer got lost ({error}), so a pull request may have been opened: look at "
                    f"{constants.ENDPOINT}/{repo_id}/discussions before trying again"
                ) from error
            head = _get_head(api, repo_id, revision)
            if head != plan.parent:
                return _find_own_commit(api, publication, plan, repo_id, head), _build_commit_url(
                    repo_id, head
                )
            if wait is None:
                raise
            logger.info("the commit did not arrive (%s); sending it again", error)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _find_own_commit(api: HfApi, publication: Publication, plan: _Plan, repo_id: str, head: str) -> str:
    """The head, if it is what the lost commit made."""
    remote = _list_files(api, repo_id, head)
    is_own = not set(plan.deleted).intersection(remote) and all(
        name in remote and _is_same(remote[name], publication.folder / name) for name in publication.files
    )
    if not is_own:
        raise OSError(
            f"somebody else changed {repo_id} meanwhile (from {plan.parent[:12]} to {head[:12]}), so "
            "nothing was published: look at what changed, and run the command again"
        )
    return head


def _build_commit_url(repo_id: str, commit: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}/commit/{commit}"


def _get_head(api: HfApi, repo_id: str, revision: str | None) -> str:
    return str(_try_again(lambda: api.repo_info(repo_id, revision=revision)).sha)


def _list_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = _try_again(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)))
    return {
        entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES
    }


def _is_same(remote: RepoFile, path: Path) -> bool:
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == _compute_sha256(path)
    return bool(remote.blob_id == git_hash(path.read_bytes()))


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _try_again(call: Callable[[], Result], waits: Sequence[float] = RETRY_WAITS) -> Result:
    """The result of a call that may be repeated, after failures in passing too."""
    for wait in waits:
        try:
            return call()
        except (HTTPError, json.JSONDecodeError) as error:
            if not _is_transient(error):
                raise
            logger.info("the Hub failed (%s); trying again", error)
            time.sleep(wait)
    return call()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT_STATUS_CODES
    if isinstance(error, RuntimeError):
        # How the upload of a large file ends, whatever the reason.
        return error.__cause__ is not None and _is_transient(error.__cause__)
    # No JSON is what proxies in front of the Hub answer when it fails.
    return isinstance(error, (HTTPError, json.JSONDecodeError))


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Say in our words what is wrong with the token or the connection."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(
                f"the Hub refuses this token ({_shorten(error)}): to write to {repo_id}, {TOKEN_HINT}"
            ) from error
        raise OSError(_describe_failure(repo_id, error)) from error
    except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
        cause: Any = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, (HTTPError, json.JSONDecodeError)):
            raise
        raise OSError(_describe_failure(repo_id, cause)) from error


def _describe_failure(repo_id: str, error: Exception) -> str:
    return (
        f"the Hub could not be used for {repo_id} ({_shorten(error)}): run the command again when it can; "
        "files that arrived are not sent twice"
    )


def _shorten(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
