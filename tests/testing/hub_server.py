"""A small Hub on loopback: repositories, commits, large files and downloads as huggingface_hub asks for them.

Every endpoint can be told to fail a number of times, see :meth:`HubServer.fail`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants, hf_api
from huggingface_hub.utils.sha import git_hash

LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".pt", ".pkl", ".tar", ".zip")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
FAULTS = ("error", "truncate", "corrupt", "drop_before", "drop_after", "slow")
REPOSITORY = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<type>model|dataset)s/{REPOSITORY}"
PLAIN = rf"/(?:(?P<type>dataset)s/)?{REPOSITORY}"


@dataclass
class File:
    content: bytes
    is_large: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self):
        return self.sha256 if self.is_large else git_hash(self.content)

    def describe(self, path):
        described = {"type": "file", "path": path, "size": len(self.content), "oid": git_hash(self.content)}
        if self.is_large:
            described["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return described


@dataclass
class Repository:
    private: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    history: list = field(default_factory=list)

    def commit(self, ref, files, title):
        oid = hashlib.sha1(f"{len(self.commits)} {title} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        self.history.append((ref, title))
        return oid

    def resolve(self, revision):
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    method: str
    path: re.Pattern
    kind: str
    times: int


class Answer(Exception):
    """What a request is answered with."""

    def __init__(self, status, content=b"", **headers):
        self.status = status
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}


def not_found(code, **headers):
    return Answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)


class HubServer:
    """Runs while its ``with`` block does.

    Attributes:
        url: for ``HF_ENDPOINT``.
        repositories: by type and id.
        blobs: large files by SHA-256, uploaded or committed.
        requests: how often each method and path was asked for, whatever became of it.
        tokens: token → what whoami says of it.
    """

    def __init__(self):
        self.repositories, self.blobs, self.requests = {}, {}, Counter()
        self.tokens = {}
        self.add_token("hf_write")
        self._faults, self._lock = [], threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home):
        """Variables that point a new process here; ``home`` is its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_write",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def take_over(self, monkeypatch, home):
        """Point this process here, which read the variables long ago; ``home`` is its cache.

        Waits between attempts are cut short.
        """
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))

    def add_token(self, token, name="user", role="write", orgs=()):
        self.tokens[token] = {
            "type": "user",
            "name": name,
            "orgs": [{"name": org, "roleInOrg": role_in_org} for org, role_in_org in orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": token, "role": role}},
        }

    def fail(self, method, path, kind, times=1):
        """Let the next requests of this method, whose path matches, fail.

        ``error`` answers 500, ``truncate`` breaks the connection halfway through the body, ``corrupt``
        changes a byte of it, ``drop_before`` and ``drop_after`` break it without an answer, before or after
        the request was carried out, and ``slow`` waits a little first.
        """
        assert kind in FAULTS
        self._faults.append(Fault(method, re.compile(path), kind, times))

    def recover(self):
        """Let nothing fail any more."""
        self._faults.clear()

    def get_files(self, repo_id, revision="main", repo_type="model"):
        repository = self.repositories[repo_type, repo_id]
        return repository.commits[repository.resolve(revision)]

    def put_files(self, repo_id, files, repo_type="model", private=False):
        """Commit files, name → bytes, beside those that are there; no request is made."""
        repository = self._create(repo_type, repo_id, private)
        current = dict(repository.commits[repository.refs["main"]])
        current |= {name: File(content, name.endswith(LARGE_SUFFIXES)) for name, content in files.items()}
        return repository.commit("main", current, "put")

    def count(self, method, path):
        """How often a method was asked for on paths that match."""
        pattern = re.compile(path)
        return sum(
            times
            for (asked_method, path), times in self.requests.items()
            if asked_method == method and pattern.search(path)
        )

    def take_fault(self, method, path):
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault.kind
        return None

    def answer(self, method, target, headers, body):
        """The :class:`Answer` to one request."""
        parts = urlsplit(target)
        path, query = parts.path, parse_qs(parts.query)
        with self._lock:
            for pattern, methods, name in ROUTES:
                match = pattern.fullmatch(path)
                if match and method in methods:
                    named = {key: unquote(value) for key, value in match.groupdict().items() if value}
                    self.query, self.headers = query, headers
                    self.account = self.tokens.get(headers.get("Authorization", "").removeprefix("Bearer "))
                    try:
                        return getattr(self, f"_{name}")(body, **named)
                    except Answer as answer:
                        return answer
        return not_found("EntryNotFound")

    # What follows is one method an endpoint.

    def _whoami(self, body):
        return Answer(200, self.account) if self.account else Answer(401, {"error": "Invalid credentials"})

    def _create_repository(self, body):
        content = json.loads(body)
        repo_id = f"{content.get('organization') or (self.account or {}).get('name')}/{content['name']}"
        repo_type = content.get("type") or "model"
        self._check_writing(repo_id)
        url = f"{self.url}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
        if (repo_type, repo_id) in self.repositories:
            return Answer(409, {"error": "You already created this repo", "url": url})
        self._create(repo_type, repo_id, content.get("visibility") == "private")
        return Answer(200, {"url": url, "id": repo_id})

    def _delete_repository(self, body):
        content = json.loads(body)
        repo_id = f"{content.get('organization') or (self.account or {}).get('name')}/{content['name']}"
        self._check_writing(repo_id)
        self._find(content.get("type") or "model", repo_id)
        del self.repositories[content.get("type") or "model", repo_id]
        return Answer(200, {})

    def _validate_yaml(self, body):
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else {}
        errors = []
        if metadata.get("license") not in LICENSES:
            errors.append({"message": f'"license" must be one of {sorted(LICENSES)}'})
        return Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _repository_info(self, body, id, type="model", revision="main"):
        repository = self._find(type, id)
        oid = self._find_revision(repository, revision)
        files = [{"rfilename": name} for name in repository.commits[oid]]
        return Answer(
            200,
            {
                "id": id,
                "modelId": id,
                "sha": oid,
                "private": repository.private,
                "siblings": files,
                "tags": [],
            },
        )

    def _tree(self, body, id, revision, type="model", path=""):
        repository = self._find(type, id)
        files = repository.commits[self._find_revision(repository, revision)]
        inside = {name: file for name, file in files.items() if name.startswith(f"{path}/" if path else "")}
        if path and not inside:
            return not_found("EntryNotFound")
        start = len(path) + 1 if path else 0
        if self.query.get("recursive", [""])[0].lower() != "true":
            folders = {name[: name.index("/", start)] for name in inside if "/" in name[start:]}
            inside = {name: file for name, file in inside.items() if "/" not in name[start:]}
        else:
            folders = {name[:at] for name in inside for at in range(start, len(name)) if name[at] == "/"}
        entries = [
            {"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)
        ]
        return Answer(200, entries + [file.describe(name) for name, file in sorted(inside.items())])

    def _paths_info(self, body, id, revision, type="model"):
        repository = self._find(type, id)
        files = repository.commits[self._find_revision(repository, revision)]
        asked = (
            json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        )
        return Answer(200, [files[name].describe(name) for name in asked if name in files])

    def _refs(self, body, id, type="model"):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in self._find(type, id).refs.items()
        ]
        return Answer(200, {"branches": branches, "tags": [], "converts": []})

    def _branch(self, body, id, branch, type="model"):
        self._check_writing(id)
        repository = self._find(type, id)
        if branch in repository.refs:
            return Answer(409, {"error": "Reference already exists"})
        repository.refs[branch] = repository.refs["main"]
        return Answer(200, {})

    def _preupload(self, body, id, revision, type="model"):
        self._check_writing(id)
        repository = self._find(type, id)
        files = repository.commits[self._find_revision(repository, revision)]
        answer = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LARGE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": files[each["path"]].oid if each["path"] in files else None,
            }
            for each in json.loads(body)["files"]
        ]
        return Answer(200, {"files": answer})

    def _batch(self, body, id, type="model"):
        if self.account is None:  # whoever may open a pull request may send its files
            return Answer(401, {"error": "Unauthorized"})
        objects = []
        for each in json.loads(body)["objects"]:
            if each["oid"] not in self.blobs:
                each["actions"] = {
                    "upload": {"href": f"{self.url}/storage/{each['oid']}"},
                    "verify": {"href": f"{self.url}/verify/{each['oid']}"},
                }
            objects.append(each)
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer(400, {"error": "checksum"})
        self.blobs[oid] = body
        return Answer(200)

    def _verify(self, body, oid):
        return Answer(200 if oid in self.blobs else 404, {})

    def _commit(self, body, id, revision, type="model"):
        self._check_writing(id)
        repository = self._find(type, id)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        head = self._find_revision(repository, revision)
        if header.get("parentCommit") not in (None, head):
            return Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(repository.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_large=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return Answer(400, {"error": f"LFS pointer to {value['oid']}, which was not uploaded"})
                files[value["path"]] = File(self.blobs[value["oid"]], is_large=True)
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    return not_found("EntryNotFound")
                del files[value["path"]]
            else:
                return Answer(400, {"error": f"unknown operation {line['key']}"})
        pull_request = None
        if "create_pr" in self.query:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            revision, pull_request = f"refs/pr/{number}", f"{self.url}/{id}/discussions/{number}"
        oid = repository.commit(revision, files, header["summary"])
        return Answer(
            200,
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.url}/{id}/commit/{oid}",
                "pullRequestUrl": pull_request,
            },
        )

    def _resolve(self, body, id, revision, path, type="model"):
        repository = self._find(type, id)
        oid = self._find_revision(repository, revision)
        file = repository.commits[oid].get(path)
        if file is None:
            return not_found("EntryNotFound", X_Repo_Commit=oid)
        headers = {"X_Repo_Commit": oid, "ETag": f'"{file.oid}"', "Accept_Ranges": "bytes"}
        if not file.is_large:
            return Answer(200, file.content, **headers)
        self.blobs[file.sha256] = file.content
        return Answer(
            302,
            # Another host, as the Hub's own storage is: no token goes there.
            Location=f"{self.url.replace('127.0.0.1', 'localhost')}/storage/{file.sha256}",
            X_Linked_Etag=f'"{file.sha256}"',
            X_Linked_Size=len(file.content),
            **headers,
        )

    def _fetch(self, body, oid):
        return Answer(200, self.blobs[oid], ETag=f'"{oid}"') if oid in self.blobs else Answer(404)

    def _create(self, repo_type, repo_id, private=False):
        if (repo_type, repo_id) not in self.repositories:
            repository = self.repositories[repo_type, repo_id] = Repository(private)
            repository.commit(
                "main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial"
            )
        return self.repositories[repo_type, repo_id]

    def _find(self, repo_type, repo_id):
        repository = self.repositories.get((repo_type, repo_id))
        if repository is None or (repository.private and self.account is None):
            headers = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository not found"}
            raise Answer(401 if self.account is None else 404, {"error": "Repository not found"}, **headers)
        return repository

    def _find_revision(self, repository, revision):
        oid = repository.resolve(revision)
        if oid is None:
            raise not_found("RevisionNotFound")
        return oid

    def _check_writing(self, repo_id):
        if self.account is None:
            raise Answer(401, {"error": "Unauthorized"}, X_Error_Message="Invalid username or password.")
        writable = [self.account["name"], *(org["name"] for org in self.account["orgs"])]
        may_write = self.account["auth"]["accessToken"]["role"] != "read"
        if not may_write or (repo_id.partition("/")[0] not in writable and "create_pr" not in self.query):
            raise Answer(403, {"error": "Forbidden"}, X_Error_Message="You don't have the rights for it")


REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (re.compile(pattern), methods, name)
    for pattern, methods, name in (
        (r"/api/whoami-v2", ("GET",), "whoami"),
        (r"/api/repos/create", ("POST",), "create_repository"),
        (r"/api/repos/delete", ("DELETE",), "delete_repository"),
        (r"/api/validate-yaml", ("POST",), "validate_yaml"),
        (rf"{API}", ("GET",), "repository_info"),
        (rf"{API}/revision/{REVISION}", ("GET",), "repository_info"),
        (rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", ("GET",), "tree"),
        (rf"{API}/paths-info/{REVISION}", ("POST",), "paths_info"),
        (rf"{API}/refs", ("GET",), "refs"),
        (rf"{API}/branch/(?P<branch>[^/]+)", ("POST",), "branch"),
        (rf"{API}/preupload/{REVISION}", ("POST",), "preupload"),
        (rf"{API}/commit/{REVISION}", ("POST",), "commit"),
        (rf"{PLAIN}\.git/info/lfs/objects/batch", ("POST",), "batch"),
        (rf"{PLAIN}/resolve/{REVISION}/(?P<path>.+)", ("GET", "HEAD"), "resolve"),
        (r"/storage/(?P<oid>[0-9a-f]{64})", ("PUT",), "store"),
        (r"/storage/(?P<oid>[0-9a-f]{64})", ("GET", "HEAD"), "fetch"),
        (r"/verify/(?P<oid>[0-9a-f]{64})", ("POST",), "verify"),
    )
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for an acknowledgement of its headers
    hub = None

    def do_GET(self):
        body = self._read_body()
        self.hub.requests[self.command, unquote(urlsplit(self.path).path)] += 1
        fault = self.hub.take_fault(self.command, unquote(self.path))
        if fault == "drop_before":
            return self._hang_up()
        if fault == "slow":
            threading.Event().wait(0.2)
        answer = (
            Answer(500, {"error": "Internal Error"})
            if fault == "error"
            else self.hub.answer(self.command, self.path, self.headers, body)
        )
        if fault == "drop_after":
            return self._hang_up()
        return self._send(answer, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer, fault):
        content, status, headers = answer.content, answer.status, dict(answer.headers)
        if fault == "corrupt" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and status == 200:
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault == "truncate" else content)
        if fault == "truncate":
            self.wfile.flush()
            self._hang_up()
