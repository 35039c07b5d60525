# SPDX-License-Identifier: Apache-2.0
"""A Hub in memory: the official client's requests end here instead of in the network (`set_client_factory`).

It knows what pushing and pulling a model need: users and their tokens, private repositories, branches and commits,
small files inside a commit, large ones through LFS. Every request is recorded, and any can be made to fail: with a
status, or cut off in the middle of its answer. Storage by chunks ("xet") is not offered.
"""

import base64
import contextlib
import hashlib
import importlib
import json
import re
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import constants, file_download, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http


# the HTTP library beneath, httpx or httpx2
httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

OWNER = "somebody"
# no real ones; long enough to be found wherever they turn up
TOKEN, READ_TOKEN, STRANGERS_TOKEN = "hf_RecognisableTokenOfSomebody", "hf_ReadOnlyTokenOfSomebody", "hf_OfAStranger"
NO_FAULT = ("", "", 200)  # patterns of method and path, and the answer
USERS = {TOKEN: OWNER, READ_TOKEN: OWNER, STRANGERS_TOKEN: "stranger", None: None}


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # decoded, without query
    token: str | None
    status: int | None  # None: cut off

    @property
    def file(self) -> tuple[str, str] | None:
        """Revision and name of the file that is asked for."""
        found = re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", self.path)
        return found and (found[1], found[2])


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid


class Refusal(Exception):
    """An answer that is no success, with the Hub's error headers."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, "X-Error-Code": code}


class Hub:
    owner, token, large_bytes = OWNER, TOKEN, 20_000

    def __init__(self) -> None:
        self.is_up = True
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS (files of `large_bytes` or more), by sha256
        self.requests: list[Request] = []
        self.fault: tuple[str, str, int | None] = NO_FAULT
        self.lock = threading.RLock()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[name]
        return repository.commits[repository.branches[revision]]

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commits files without asking a client; the repository is made where it is not there."""
        repository = self.repositories.setdefault(name, Repository())
        before = repository.commits.get(repository.branches.get(branch, ""), {})
        return repository.commit(branch, {**before, **files}, "put")

    def fail(self, method: str, path: str, status: int | None = 503) -> None:
        """What goes wrong from now on: `None` for an answer that is right, but stops half way."""
        self.fault = method, path, status

    def pulled(self) -> list[Request]:
        """Requests for files of repositories."""
        return [request for request in self.requests if request.file]

    def __call__(self, request: Any) -> Any:
        if not self.is_up:
            raise httpx.ConnectError("nobody is there", request=request)
        path, body = unquote(request.url.path), request.read()
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with self.lock:
            how, what, status = self.fault
            if not (re.fullmatch(how, request.method) and re.search(what, path)):
                status = 200
            try:
                if status == 503:
                    raise Refusal(status, "the server is having a bad day")
                if token not in USERS:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                answer = self._answer(request, [unquote(part) for part in path.strip("/").split("/")], token, body)
                if isinstance(answer, dict | list):
                    answer = httpx.Response(200, json=answer)
            except Refusal as refusal:
                answer = httpx.Response(refusal.status, json=refusal.body, headers=refusal.headers)
            is_cut = status is None
            self.requests.append(Request(request.method, path, token, None if is_cut else answer.status_code))
        if is_cut:
            error = httpx.RemoteProtocolError("hung up", request=request)
            if request.method != "GET":
                raise error
            return httpx.Response(answer.status_code, headers=answer.headers, content=_half(answer.content, error))
        return answer

    def _answer(self, request: Any, parts: list[str], token: str | None, body: bytes) -> Any:
        match request.method, *parts:
            case "POST", "api", "repos", "create":
                return self._create(token, json.loads(body))
            case "POST", "api", "validate-yaml":
                return {"errors": [], "warnings": []}
            case "POST", user, name, "info", "lfs", "objects", "batch":
                self._repository(f"{user}/{name.removesuffix('.git')}", token, writes=True)
                return {"transfer": "basic", "objects": [self._upload(**one) for one in json.loads(body)["objects"]]}
            case "PUT", "storage", oid:
                if token is not None or hashlib.sha256(body).hexdigest() != oid:
                    raise Refusal(400, "a token has no business here, or the content is another")
                self.objects[oid] = body
                return {}
            case (("GET" | "HEAD"), user, name, "resolve", revision, *path):
                return self._resolve(self._repository(f"{user}/{name}", token), revision, "/".join(path), request)
            case "GET", "api", "models", user, name, *rest:
                repository = self._repository(f"{user}/{name}", token)
                commit = self._commit_of(repository, rest[1] if rest else "main")
                if rest[:1] == ["tree"]:
                    under = "".join(f"{part}/" for part in rest[2:])
                    files = {path: one for path, one in repository.commits[commit].items() if path.startswith(under)}
                    return [{"type": "file", "path": path, "size": len(one), "oid": self._oid(one)}
                            for path, one in files.items()]  # fmt: skip
                return {"_id": name, "id": f"{user}/{name}", "sha": commit, "siblings": [], "tags": []}
            case "POST", "api", "models", user, name, action, revision:
                repository = self._repository(f"{user}/{name}", token, writes=True)
                if action == "branch":
                    if revision in repository.branches:
                        raise Refusal(409, f"Reference already exists: {revision}")
                    repository.branches[revision] = repository.branches["main"]
                    return {}
                files = dict(repository.commits[self._commit_of(repository, revision)])
                if action == "preupload":
                    return {"files": [self._mode(files, **one) for one in json.loads(body)["files"]]}
                if action == "commit":
                    message = self._changed(files, [json.loads(line) for line in body.splitlines()])
                    oid = repository.commit(revision, files, message)
                    url = f"{constants.ENDPOINT}/{user}/{name}/commit/{oid}"
                    return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}
        raise Refusal(404, f"nothing here: {request.method} {request.url}")

    def _repository(self, name: str, token: str | None, writes: bool = False) -> Repository:
        repository, user = self.repositories.get(name), USERS[token]
        is_owner = user == name.partition("/")[0]
        if repository is None or (repository.private and not is_owner):
            # who is not logged in is not told which of the two it is
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if writes and (not is_owner or token == READ_TOKEN):
            raise Refusal(401 if user is None else 403, "You don't have the rights to write here")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _create(self, token: str | None, asked: dict[str, Any]) -> dict[str, Any]:
        owner = asked.get("organization") or USERS[token]
        if token == READ_TOKEN or owner != USERS[token] or owner is None:
            raise Refusal(401 if token is None else 403, "You don't have the rights to create a model here")
        name = f"{owner}/{asked['name']}"
        url = f"{constants.ENDPOINT}/{name}"
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository(private)
        self.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return {"url": url, "name": name, "id": name}

    def _resolve(self, repository: Repository, revision: str, path: str, request: Any) -> Any:
        commit = self._commit_of(repository, revision)
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return httpx.Response(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{self._oid(content)}"', "Content-Length": str(len(content))}
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)

    def _oid(self, content: bytes) -> str:
        """What the client compares with its own file's: the sha256 of a large file, git's name of a small one."""
        if len(content) >= self.large_bytes:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _mode(self, files: dict[str, bytes], path: str, size: int, **_: Any) -> dict[str, Any]:
        mode = "lfs" if size >= self.large_bytes else "regular"
        oid = self._oid(files[path]) if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _upload(self, oid: str, size: int) -> dict[str, Any]:
        there, upload = {"oid": oid, "size": size}, {"href": f"{constants.ENDPOINT}/storage/{oid}"}
        return there if oid in self.objects else {**there, "actions": {"upload": upload}}

    def _changed(self, files: dict[str, bytes], operations: list[dict[str, Any]]) -> str:
        """Changes files in place; returns the message."""
        message = ""
        for key, value in ((one["key"], one["value"]) for one in operations):
            match key:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        return message


def _half(content: bytes, error: Exception) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise error


@contextlib.contextmanager
def connected(cache: Path, monkeypatch: Any) -> Iterator[Hub]:
    """A Hub that this process talks to as the user `hub.owner`, with an empty cache. No bad day is waited for."""
    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_MODULES_CACHE", str(cache / "modules"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    no_wait = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", no_wait)
    monkeypatch.setattr(file_download, "time", no_wait)
    options = {"event_hooks": {"request": [_http.hf_request_event_hook]}, "follow_redirects": True}
    set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(hub), **options))
    yield hub
    set_client_factory(_http.default_client_factory)
