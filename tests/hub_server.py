# SPDX-License-Identifier: Apache-2.0
"""A Hub on 127.0.0.1, small and real: the official client talks to it over HTTP as it talks to the one of the world.

It knows what pushing and pulling a model need: users and their tokens, repositories (public, private, gated),
branches, tags and commits, small files inside a commit and large ones through LFS, which live on a second origin as on
the Hub (uploads and downloads there carry no token). Every request is recorded, and any can be made to fail: with a
status, or cut off in the middle of its body. Storage by chunks ("xet") is not offered, and the client is told so
(HF_HUB_DISABLE_XET).
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import time
import types
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


OWNER, STRANGER = "somebody", "stranger"
# no real ones; long enough to be found wherever they turn up
TOKEN = "hf_RecognisableTokenOfSomebody"
READ_TOKEN, STRANGERS_TOKEN = "hf_ReadOnlyTokenOfSomebody", "hf_TokenOfAStranger"


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str  # decoded, without query
    token: str | None
    status: int
    origin: str  # "hub" or "storage"
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def file(self) -> str | None:
        """Name of the file that a request to /{repository}/resolve/{revision}/{file} asks for."""
        found = re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", self.path)
        return found.group(2) if found else None

    def revision(self) -> str | None:
        found = re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", self.path)
        return found.group(1) if found else None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path matches."""

    method: str
    path: str  # regular expression
    status: int | None = 503  # None: the answer is right, but stops half way
    times: int = 1


@dataclass
class Blob:
    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """As git names it: the content's, or the pointer's."""
        content = self.content
        if self.is_large:
            lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(content)}")
            content = "".join(f"{line}\n" for line in lines).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    owner: str
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)  # users that a gated repository lets in
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        number = len(self.commits)
        oid = hashlib.sha1(f"{number} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """Branch, tag or commit -> commit."""
        known = {**self.tags, **self.branches}
        return known.get(revision, revision if revision in self.commits else None)


class Refusal(Exception):
    """An answer that is no success, with the Hub's error headers."""

    def __init__(self, status: int, code: str | None = None, message: str = "", **body: Any):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.body = body or {"error": message}


class HubServer:
    """
    Start it with `with HubServer() as hub`. `hub.url` is what HF_ENDPOINT has to be; `hub.requests` what has arrived.

    Attributes:
        large_bytes (`int`): files of so many bytes go through LFS.
        part_bytes (`int`, *optional*): LFS files are asked for in parts of this size.
        repositories (`dict[str, Repository]`): `"user/name"` -> repository.
        listed (`list[dict]`): entries that every listing of a tree has beside the true ones.
    """

    def __init__(self, large_bytes: int = 20_000, part_bytes: int | None = None):
        self.users = {TOKEN: (OWNER, "write"), READ_TOKEN: (OWNER, "read"), STRANGERS_TOKEN: (STRANGER, "write")}
        self.large_bytes, self.part_bytes = large_bytes, part_bytes
        self.token, self.owner = TOKEN, OWNER
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.listed: list[dict[str, Any]] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self.is_up = True
        self._servers = [_Server(self, origin) for origin in ("hub", "storage")]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_up = False  # connections that are open are hung up on
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    # --- what tests ask and arrange -------------------------------------------------------------------------------

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[name]
        return {path: blob.content for path, blob in repository.commits[repository.resolve(revision)].items()}

    def put(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Commits files without asking a client; the repository is made where it is not there."""
        repository = self.repositories.setdefault(name, Repository(name.partition("/")[0]))
        blobs = {path: Blob(content, len(content) >= self.large_bytes) for path, content in files.items()}
        self.objects |= {blob.sha256: blob.content for blob in blobs.values() if blob.is_large}
        before = repository.commits.get(repository.branches.get(revision), {})
        return repository.commit(revision, {**before, **blobs}, "put")

    def fail(self, method: str, path: str, status: int | None = 503, times: int = 1) -> None:
        """The next `times` requests that match fail; with `status=None` their answer is cut off half way."""
        self.faults.append(Fault(method, path, status, times))

    def pulled(self) -> list[Request]:
        """Requests for files of repositories."""
        return [request for request in self.requests if request.file() is not None]

    def requested_code(self) -> list[str]:
        return [request.path for request in self.pulled() if request.path.endswith(".py")]

    # --- what the Hub does ----------------------------------------------------------------------------------------

    def user(self, token: str | None) -> str | None:
        if token is None:
            return None
        if token not in self.users:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.users[token][0]

    def readable(self, name: str, token: str | None, content: bool = False) -> Repository:
        """The repository, if whoever holds the token may see it; with `content`, if they may see its files."""
        user = self.user(token)
        repository = self.repositories.get(name)
        if repository is None or (repository.private and user != repository.owner):
            # who is not logged in is not told which of the two it is
            raise Refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if content and repository.gated and user not in {repository.owner, *repository.allowed}:
            raise Refusal(401 if user is None else 403, "GatedRepo", f"Access to model {name} is restricted.")
        return repository

    def writable(self, name: str, token: str | None) -> Repository:
        repository = self.readable(name, token)
        if self.user(token) != repository.owner:
            raise Refusal(401 if token is None else 403, None, "You don't have the rights to write here")
        if self.users[token][1] != "write":
            raise Refusal(403, None, "this token cannot write: its role is read")
        return repository

    def revision(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def check_metadata(content: str) -> list[str]:
    """What is wrong with a card's metadata, as far as the Hub's documentation of it says."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, flags=re.DOTALL)
    if not found:
        return []
    try:
        metadata = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"not yaml: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata are no mapping"]
    errors = []
    for name in ("library_name", "pipeline_tag", "license", "license_name", "license_link"):
        if name in metadata and not isinstance(metadata[name], str):
            errors.append(f"{name} is no text")
    for name in ("base_model", "datasets", "language", "tags", "metrics"):
        values = metadata.get(name, [])
        if not all(isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            errors.append(f"{name} is neither a text nor a list of texts")
    for model in metadata.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append("an entry of model-index has no name")
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append("a result has no task.type")
            if not all(isinstance(result.get("dataset", {}).get(key), str) for key in ("name", "type")):
                errors.append("a result has no dataset.name or dataset.type")
            for metric in result.get("metrics", [{}]):
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    errors.append("a metric has no type or value")
    return errors


def connect(hub: HubServer, cache: Path, monkeypatch: Any) -> None:
    """
    Makes this process talk to the server: what HF_ENDPOINT, HF_HOME and HF_TOKEN decide when huggingface_hub is first
    imported is set afterwards, and nothing of the client is replaced but its clock: it waits for no bad day to end.
    """
    import huggingface_hub.hf_api
    import transformers.utils.hub
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    for name, value in environment(hub, cache).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "agents.json"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    no_wait = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", no_wait)
    monkeypatch.setattr(file_download, "time", no_wait)


def environment(hub: HubServer, cache: Path) -> dict[str, str]:
    """For a process of its own: variables that make it talk to the server, with a cache of its own."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": hub.token,
    }


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, origin: str):
        self.hub, self.origin = hub, origin
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *arguments: Any) -> None:
        """A client that hangs up is nobody's fault."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Not to stderr; `hub.requests` has it."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        hub = self.server.hub
        if not hub.is_up:
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        self.parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        self.query = dict(urllib.parse.parse_qsl(url.query))
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        self.body = self._read_body()
        path = urllib.parse.unquote(url.path)
        with hub.lock:
            fault = next(
                (
                    fault
                    for fault in hub.faults
                    if fault.times and fault.method == self.command and re.search(fault.path, path)
                ),
                None,
            )
            if fault is not None:
                fault.times -= 1
            try:
                if fault is not None and fault.status is not None:
                    raise Refusal(fault.status, None, "the server is having a bad day")
                status, headers, content = self._route()
            except Refusal as refusal:
                status, content = refusal.status, json.dumps(refusal.body).encode()
                headers = {"Content-Type": "application/json"}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                if refusal.message:
                    headers["X-Error-Message"] = refusal.message
            request = Request(
                self.command, path, self.token, status, self.server.origin, self.query, dict(self.headers.items())
            )
            hub.requests.append(request)
        self._send(status, headers, content, cut=fault is not None and fault.status is None)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, headers: dict[str, str], content: bytes, cut: bool) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        if cut:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _json(self, status: int = 200, **body: Any) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(body).encode()

    # --- which answer ---------------------------------------------------------------------------------------------

    def _route(self) -> tuple[int, dict[str, str], bytes]:
        if self.server.origin == "storage":
            return self._storage()
        match self.command, *self.parts:
            case "GET", "api", "whoami-v2":
                return self._whoami()
            case "POST", "api", "repos", "create":
                return self._create()
            case "POST", "api", "validate-yaml":
                return self._validate()
            case _, "api", "models", user, name, *rest:
                return self._api(f"{user}/{name}", rest)
            case "POST", user, name, "info", "lfs", "objects", "batch" if name.endswith(".git"):
                return self._batch(f"{user}/{name.removesuffix('.git')}")
            case "POST", user, name, "lfs", "verify":
                return self._verify(f"{user}/{name}")
            case "GET" | "HEAD", user, name, "resolve", revision, *path if path:
                return self._resolve(f"{user}/{name}", revision, "/".join(path))
        raise Refusal(404, None, f"nothing here: {self.path}")

    def _whoami(self) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        user = hub.user(self.token)
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        role = hub.users[self.token][1]
        return self._json(
            type="user", id=user, name=user, orgs=[], auth={"type": "access_token", "accessToken": {"role": role}}
        )

    def _create(self) -> tuple[int, dict[str, str], bytes]:
        hub, given = self.server.hub, json.loads(self.body)
        user = hub.user(self.token)
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        owner = given.get("organization") or user
        if owner != user or hub.users[self.token][1] != "write":
            raise Refusal(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{given['name']}"
        url = f"{hub.url}/{name}"
        if name in hub.repositories:
            raise Refusal(409, None, "You already created this model repo", url=url, error="exists")
        private = given.get("visibility") == "private" or bool(given.get("private"))
        repository = hub.repositories[name] = Repository(owner, private=private)
        repository.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return self._json(url=url, name=name, id=name)

    def _validate(self) -> tuple[int, dict[str, str], bytes]:
        errors = check_metadata(json.loads(self.body)["content"])
        if errors:
            raise Refusal(400, None, "", errors=[{"message": error} for error in errors], warnings=[])
        return self._json(errors=[], warnings=[])

    def _api(self, name: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        match self.command, *rest:
            case ("GET",) | ("GET", "revision", _):
                return self._info(name, rest[1] if rest else "main")
            case "GET", "refs":
                repository = hub.readable(name, self.token)
                return self._json(
                    branches=[_ref("heads", *item) for item in repository.branches.items()],
                    tags=[_ref("tags", *item) for item in repository.tags.items()],
                    converts=[],
                )
            case "GET", "tree", revision, *path:
                return self._tree(name, revision, "/".join(path))
            case "POST", "paths-info", revision:
                given = urllib.parse.parse_qs(self.body.decode())["paths"]
                files = self._files(name, revision)
                found = [_entry(path, files[path]) for path in given if path in files]
                return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
            case "POST", "preupload", revision:
                return self._preupload(name, revision)
            case "POST", "commit", revision:
                return self._commit(name, revision)
            case "POST", "branch", branch:
                repository = hub.writable(name, self.token)
                if branch in repository.branches:
                    raise Refusal(409, None, f"Reference already exists: {branch}")
                start = json.loads(self.body or b"{}").get("startingPoint", "main")
                repository.branches[branch] = hub.revision(repository, start)
                return self._json()
            case "POST", "tag", revision:
                repository = hub.writable(name, self.token)
                tag = json.loads(self.body)["tag"]
                if tag in repository.tags:
                    raise Refusal(409, None, f"Tag reference exists already: {tag}")
                repository.tags[tag] = hub.revision(repository, revision)
                return self._json()
        raise Refusal(404, None, f"nothing here: {self.path}")

    def _files(self, name: str, revision: str) -> dict[str, Blob]:
        repository = self.server.hub.readable(name, self.token, content=True)
        return repository.commits[self.server.hub.revision(repository, revision)]

    def _info(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        repository = hub.readable(name, self.token)
        commit = hub.revision(repository, revision)
        return self._json(
            _id=name,
            id=name,
            modelId=name,
            sha=commit,
            private=repository.private,
            gated="auto" if repository.gated else False,
            disabled=False,
            tags=[],
            downloads=0,
            likes=0,
            siblings=[{"rfilename": path} for path in sorted(repository.commits[commit])],
        )

    def _tree(self, name: str, revision: str, under: str) -> tuple[int, dict[str, str], bytes]:
        files = self._files(name, revision)
        prefix = f"{under}/" if under else ""
        entries, folders = [], set()
        for path, blob in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            parents = path.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parents[: depth + 1]) for depth in range(len(parents))}
            if self.query.get("recursive", "false").lower() in ("true", "1") or not parents:
                entries.append(_entry(path, blob))
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        entries += self.server.hub.listed
        return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        repository = hub.readable(name, self.token, content=True)
        commit = hub.revision(repository, revision)
        blob = repository.commits[commit].get(path)
        if blob is None:
            answer = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            return 404, answer, b"Entry not found"
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.is_large:
            # a signed address at the storage, good for whoever has it
            headers |= {
                "X-Linked-Etag": f'"{blob.sha256}"',
                "X-Linked-Size": str(len(blob.content)),
                "Location": f"{hub.storage_url}/{blob.sha256}?signature={_signature(blob.sha256)}",
            }
            return 302, headers, b""
        return self._content(blob.content, {**headers, "ETag": f'"{blob.oid}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted:
            start = int(wanted.group(1))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return 206, headers, content[start:]
        return 200, headers, content

    # --- pushing --------------------------------------------------------------------------------------------------

    def _preupload(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        repository = hub.writable(name, self.token)
        present = repository.commits[hub.revision(repository, revision)]
        files = []
        for given in json.loads(self.body)["files"]:
            path = given["path"]
            is_large = given["size"] >= hub.large_bytes
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    "oid": _known_oid(present.get(path)),
                }
            )
        return self._json(files=files)

    def _batch(self, name: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        hub.writable(name, self.token)
        objects = []
        for given in json.loads(self.body)["objects"]:
            oid, size = given["oid"], given["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in hub.objects:
                upload: dict[str, Any] = {"href": f"{hub.storage_url}/{oid}?signature={_signature(oid)}"}
                if hub.part_bytes:
                    parts = {
                        str(number): f"{hub.storage_url}/{oid}?signature={_signature(oid)}&part={number}"
                        for number in range(1, -(-size // hub.part_bytes) + 1)
                    }
                    upload["header"] = {"chunk_size": str(hub.part_bytes), **parts}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/{name}/lfs/verify"}}
            objects.append(answer)
        return self._json(transfer="multipart" if hub.part_bytes else "basic", objects=objects)

    def _verify(self, name: str) -> tuple[int, dict[str, str], bytes]:
        self.server.hub.writable(name, self.token)
        given = json.loads(self.body)
        if len(self.server.hub.objects.get(given["oid"], b"")) != given["size"]:
            raise Refusal(404, None, f"{given['oid']} has not arrived")
        return self._json()

    def _storage(self) -> tuple[int, dict[str, str], bytes]:
        hub, oid = self.server.hub, self.parts[0]
        if self.query.get("signature") != _signature(oid):
            raise Refusal(403, None, "SignatureDoesNotMatch")
        if self.token is not None:
            raise Refusal(400, None, "a token has no business here")
        match self.command:
            case "PUT" if "part" in self.query:
                hub.parts.setdefault(oid, {})[int(self.query["part"])] = self.body
                return 200, {"ETag": hashlib.md5(self.body).hexdigest()}, b""
            case "POST":  # all parts are there
                self.body = b"".join(part for _, part in sorted(hub.parts.pop(oid).items()))
            case "GET" | "HEAD":
                if oid not in hub.objects:
                    raise Refusal(404, None, "NoSuchKey")
                return self._content(hub.objects[oid], {"ETag": f'"{oid}"'})
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, None, "the content is not what its name says")
        hub.objects[oid] = self.body
        return 200, {}, b""

    def _commit(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.server.hub
        repository = hub.writable(name, self.token)
        hub.revision(repository, revision)
        if revision not in repository.branches:
            raise Refusal(400, None, f"{revision} is no branch")
        files = dict(repository.commits[repository.branches[revision]])
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in hub.objects:
                        raise Refusal(400, None, f"{value['path']} points at an object that has not arrived")
                    files[value["path"]] = Blob(hub.objects[value["oid"]], True)
                case "deletedFile":
                    files.pop(value["path"])
                case key:
                    raise Refusal(400, None, f"unknown operation {key}")
        oid = repository.commit(revision, files, message)
        return self._json(success=True, commitOid=oid, commitUrl=f"{hub.url}/{name}/commit/{oid}", hookOutput="")


def _known_oid(blob: Blob | None) -> str | None:
    """What the client compares with its own file's: the sha256 of a large file, git's name of a small one."""
    if blob is None:
        return None
    return blob.sha256 if blob.is_large else blob.oid


def _signature(oid: str) -> str:
    return hashlib.sha256(f"signed {oid}".encode()).hexdigest()[:16]


def _ref(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.is_large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return entry
