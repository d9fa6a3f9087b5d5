"""A hub on loopback for the unmodified client: models and Spaces with commits, branches, large files and owners.

To be imported before `huggingface_hub`, which reads its environment once.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


assert "huggingface_hub" not in sys.modules
SOCKET = socket.socket()
SOCKET.bind(("127.0.0.1", 0))  # refuses connections until the server listens
ENDPOINT = f"http://127.0.0.1:{SOCKET.getsockname()[1]}"
HF_HOME = tempfile.TemporaryDirectory()
os.environ |= {
    "HF_ENDPOINT": ENDPOINT,
    "HF_HOME": HF_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
for variable in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(variable, None)

ANN, ANN_READS, BOB = "hf_AnnWritesHerSecret", "hf_AnnOnlyReadsHerSecret", "hf_BobTheStrangersSecret"
TOKENS = {ANN: ("ann", True), ANN_READS: ("ann", False), BOB: ("bob", True)}
LARGE = (".safetensors", ".bin")


class HubError(Exception):
    def __init__(self, status: int, code: str | None = None, message: str | None = None):
        self.status, self.headers = status, {}
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


@dataclass
class Repository:
    """Files by path in each commit, and the commit of each branch."""

    name: str
    owner: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = os.urandom(20).hex()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.sha(revision)]

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound")
        return sha

    def info(self, revision: str = "main") -> dict:
        siblings = [{"rfilename": path} for path in self.files(revision)]
        name = self.name.removeprefix("spaces/")
        return {"id": name, "sha": self.sha(revision), "private": self.private, "tags": [], "siblings": siblings}


class Hub:
    """
    Attributes:
        repositories (`dict[str, Repository]`): by id, those of Spaces with "spaces/" before it.
        requests (`list[str]`): method and path of all that was asked.
        drop (`str`, *optional*): the method of the large files' requests whose connection is lost midway.
        held (`str`, *optional*): requests with this in their method and path get no answer.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drop: str | None = None
        self.held: str | None = None
        api = "/api/{kind}/{owner}/{name}"
        routes = [
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", self.validate_card),
            ("GET", api, self.info),
            ("GET", api + "/revision/{revision}", self.info),
            ("GET", api + "/tree/{revision}", self.tree),
            ("GET", api + "/auth-check/write", self.auth_check),
            ("POST", api + "/branch/{revision}", self.branch),
            ("POST", api + "/preupload/{revision}", self.preupload),
            ("POST", api + "/commit/{revision}", self.commit),
            ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", self.large_files),
            ("POST", "/{kind}/{owner}/{name}.git/info/lfs/objects/batch", self.large_files),
            ("PUT", "/objects/{oid}", self.upload),
            ("GET", "/{owner}/{name}/resolve/{revision}/{path:path}", self.download),
        ]
        self.app = Starlette(
            routes=[Route(path, self.log(handle), methods=[method]) for method, path, handle in routes],
            exception_handlers={HubError: lambda _, error: JSONResponse({}, error.status, error.headers)},
        )

    def log(self, handle):
        async def endpoint(request: Request):
            asked = f"{request.method} {request.url.path}"
            self.requests.append(asked)
            while self.held is not None and self.held in asked:
                await asyncio.sleep(0.02)
            return await handle(request)

        return endpoint

    def add(self, name: str, files: dict[str, bytes], private: bool = True) -> Repository:
        self.repositories[name] = Repository(name, name.removeprefix("spaces/").split("/")[0], private)
        self.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **files})
        return self.repositories[name]

    @contextmanager
    def losing(self, method: str):
        """While this lasts, connections break off in the middle of large files: PUT of uploads, GET of downloads."""
        self.drop = method
        try:
            yield
        finally:
            self.drop = None

    @contextmanager
    def holding(self, asked: str):
        """While this lasts, requests with this in their method and path wait."""
        self.held = asked
        try:
            yield
        finally:
            self.held = None

    # Who may do what.

    def user(self, request: Request, write: bool = False) -> str | None:
        header = request.headers.get("Authorization")
        if header is None and write:
            raise HubError(401, message="Invalid username or password.")
        if header is None:
            return None
        user, may_write = TOKENS.get(header.removeprefix("Bearer "), (None, False))
        if user is None:
            raise HubError(401, message="Invalid credentials in Authorization header")
        if write and not may_write:
            raise HubError(403, message="This token may only read")
        return user

    def repository(self, request: Request, write: bool = False) -> Repository:
        user = self.user(request)
        name = "{owner}/{name}".format(**request.path_params)
        if request.path_params.get("kind") == "spaces":
            name = f"spaces/{name}"
        repository = self.repositories.get(name)
        if repository is None or repository.private and repository.owner != user:
            raise HubError(404 if user else 401, "RepoNotFound")
        if write and self.user(request, write=True) != repository.owner:
            raise HubError(403, message="This is somebody else's")
        return repository

    # Repositories.

    async def create(self, request: Request):
        user, options = self.user(request, write=True), await request.json()
        owner = options.get("organization") or user
        name = f"{owner}/{options['name']}"
        if owner != user:
            raise HubError(403, message="This is somebody else's namespace")
        if options.get("type") == "space":
            if options.get("sdk") != "gradio":
                raise HubError(400, message="A Space needs an SDK")
            name = f"spaces/{name}"
        if name in self.repositories:
            return JSONResponse({"url": f"{ENDPOINT}/{name}"}, 409)
        private = options.get("visibility") == "private" or options.get("private", False)
        self.add(name, {}, private)
        return JSONResponse({"url": f"{ENDPOINT}/{name}", "name": name})

    async def info(self, request: Request):
        return JSONResponse(self.repository(request).info(request.path_params.get("revision", "main")))

    async def auth_check(self, request: Request):
        return JSONResponse({"id": self.repository(request, write=True).name})

    async def branch(self, request: Request):
        repository, branch = self.repository(request, write=True), request.path_params["revision"]
        if branch in repository.branches:
            raise HubError(409)
        repository.branches[branch] = repository.branches["main"]
        return JSONResponse({})

    # Uploads.

    async def validate_card(self, request: Request):
        text = (await request.json())["content"]
        metadata = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        errors = [] if isinstance(metadata, dict) else [{"message": "metadata is no mapping"}]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def preupload(self, request: Request):
        self.repository(request, write=True).sha(request.path_params["revision"])
        files = [
            {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            for path in (file["path"] for file in (await request.json())["files"])
        ]
        return JSONResponse({"files": files})

    async def large_files(self, request: Request):
        self.repository(request, write=True)
        objects = (await request.json())["objects"]
        for entry in objects:
            if entry["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{ENDPOINT}/objects/{entry['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def upload(self, request: Request):
        content = b""
        async for chunk in request.stream():
            content += chunk
            if self.drop == "PUT":
                self.disconnect(request)
        if hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            raise HubError(400)
        self.objects[request.path_params["oid"]] = content
        return Response()

    async def commit(self, request: Request):
        repository, branch = self.repository(request, write=True), request.path_params["revision"]
        files = dict(repository.files(branch))
        for line in (await request.body()).splitlines():
            line = json.loads(line)
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.objects[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha = repository.commit(branch, files)
        return JSONResponse({"commitOid": sha, "commitUrl": f"{ENDPOINT}/{repository.name}/commit/{sha}"})

    # Downloads.

    async def tree(self, request: Request):
        files = self.repository(request).files(request.path_params["revision"])
        return JSONResponse([{"type": "file", "path": path, **describe(path, data)} for path, data in files.items()])

    async def download(self, request: Request):
        repository, path = self.repository(request), request.path_params["path"]
        sha = repository.sha(request.path_params["revision"])
        content = repository.commits[sha].get(path)
        if content is None:
            raise HubError(404, "EntryNotFound")
        entry = describe(path, content)
        etag = entry.get("lfs", entry)["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Content-Length": str(len(content))}
        start, _, _ = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        content = content[int(start) :]
        headers["Content-Length"] = str(len(content))
        if self.drop == request.method and path.endswith(LARGE):
            if int(start):
                self.disconnect(request)
            content = content[: len(content) // 2]  # and the connection closes before the rest

            async def half():
                yield content
                await asyncio.sleep(0.05)
                self.disconnect(request)

            return StreamingResponse(half(), 200, headers)
        return Response(content, 206 if int(start) else 200, headers)

    @staticmethod
    def disconnect(request: Request):
        request.receive.__self__.transport.abort()  # uvicorn's own

    def clear(self) -> None:
        for state in (self.repositories, self.objects, self.requests):
            state.clear()


def describe(path: str, content: bytes) -> dict:
    blob = {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), "size": len(content)}
    if path.endswith(LARGE):
        blob["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return blob


@contextmanager
def run_hub() -> Iterator[Hub]:
    hub = Hub()
    # where much runs at once, a client may send on a connection just as the server closes it for having been idle
    options = {"http": "h11", "lifespan": "off", "log_level": "critical", "timeout_keep_alive": 3600}
    server = uvicorn.Server(uvicorn.Config(hub.app, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [SOCKET]})
    thread.start()
    yield hub
    server.should_exit = True
    thread.join()
