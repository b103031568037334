"""
The Hugging Face Hub on loopback, as far as a pull and a push go: real HTTP for the real client. Commits are in memory.

What is asked for decides what is refused: repositories named `gated` are gated, a token with "bad" in it is unknown,
one with "read" in it may only read.
"""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of the folders that the double starts with


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]]  # sha -> file name -> content, the newest last
    private: bool = False

    def add_commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


@dataclass
class Hub:
    """
    Attributes:
        requests: (method, path) of each.
        drop: "PUT" or "commit" -> which of these requests, counted from 1, lose their connection halfway.
        corrupt: the file of which a byte is flipped on download.
        odd: part of a path -> the status and the body that every request for it gets in place of an answer.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS: sha256 -> content
    requests: list[tuple[str, str]] = field(default_factory=list)
    drop: dict[str, Container[int]] = field(default_factory=dict)
    corrupt: str | None = None
    odd: dict[str, tuple[int, str]] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    def add(self, repo: str, folder: Path) -> None:
        """A public repository with one commit, COMMIT."""
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.repositories[repo] = Repository({COMMIT: files})

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repo].commits[self.repositories[repo].resolve(revision)]

    def sent(self) -> list[str]:
        """The paths of the requests that change something."""
        return [path for method, path in self.requests if method not in ("GET", "HEAD")]


@contextmanager
def online(monkeypatch, home: Path, token: str) -> Iterator[Hub]:
    """The Hub of this process and of those that it starts, with a login and with an empty cache in `home`."""
    with serve() as double:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        environment = {"HF_ENDPOINT": double.endpoint, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        for name, value in (environment | {"HF_HOME": str(home)}).items():
            monkeypatch.setenv(name, value)
        # What huggingface_hub has read from the environment in this process.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, double.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", double.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        yield double


@contextmanager
def serve() -> Iterator[Hub]:
    """An empty Hub, to look at and to meddle with while it serves."""
    double = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": double}))
    double.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X_Error_Code": code} if code else {}
        self.answer(status, json.dumps({"error": message}).encode(), X_Error_Message=message, **headers)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path))
        token = self.headers.get("Authorization", "")
        length = int(self.headers.get("Content-Length", 0))
        kind = "commit" if "/commit/" in path else self.command
        self.hub.counts[kind] += 1
        if self.hub.counts[kind] in self.hub.drop.get(kind, ()):
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.shutdown(2)
        body = self.rfile.read(length)
        parts = path.split("/")
        for part, (status, odd) in self.hub.odd.items():
            if part in path:
                return self.answer(status, odd.encode(), Content_Type="application/json")
        if "bad" in token:
            return self.refuse(401, "Invalid credentials in Authorization header")
        if self.command == "PUT":  # the address was handed out to one who may write
            self.hub.objects[hashlib.sha256(body).hexdigest()] = body
            return self.answer(200)
        if path == "api/whoami-v2":
            return self.answer_json({"name": "someone", "type": "user", "orgs": []})
        if path == "api/validate-yaml":
            return self.validate_card(json.loads(body)["content"])
        if self.command == "POST" and ("read" in token or not token):
            return self.refuse(403, "Forbidden: pass a write token")
        if path == "api/repos/create":
            return self.create(json.loads(body))
        is_api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        repo = repo.removesuffix(".git")
        if repo.endswith("/gated"):
            return self.refuse(403, "Access is restricted", "GatedRepo")
        if repo not in self.hub.repositories or (self.hub.repositories[repo].private and not token):
            return self.refuse(401, "Invalid credentials", "RepoNotFound")
        if rest[:2] == ["info", "lfs"]:
            return self.lfs(repo, rest[-1], json.loads(body))
        sha = self.hub.repositories[repo].resolve(rest[1] if len(rest) > 1 else "main")
        if sha is None:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        action = rest[0] if rest else "revision"
        if action == "resolve":
            return self.resolve(repo, sha, "/".join(rest[2:]))
        if action in ("preupload", "commit", "tree", "revision") and is_api:
            return getattr(self, action)(repo, sha, body)
        return self.refuse(404, f"{path} is not doubled", "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # What is read

    def revision(self, repo: str, sha: str, _: bytes) -> None:
        files, private = self.hub.files(repo, sha), self.hub.repositories[repo].private
        info = {"id": repo, "modelId": repo, "sha": sha, "private": private, "tags": []}
        config = json.loads(files.get("config.json", b"{}"))
        info["config"] = {name: config[name] for name in ("architectures", "model_type") if name in config}
        self.answer_json(info | {"siblings": [{"rfilename": name} for name in files]})

    def tree(self, repo: str, sha: str, _: bytes) -> None:
        files = self.hub.files(repo, sha)
        self.answer_json(
            [{"type": "file", "path": name, "size": len(body), "oid": oid(name, body)} for name, body in files.items()]
        )

    def resolve(self, repo: str, sha: str, name: str) -> None:
        body = self.hub.files(repo, sha).get(name)
        if body is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        linked = {"X_Linked_Etag": f'"{oid(name, body)}"', "X_Linked_Size": str(len(body))} if is_lfs(name) else {}
        etag = f'"{oid(name, body)}"'
        if name == self.hub.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            body = body[int(first) : int(last or len(body)) + 1]
            return self.answer(206, body, ETag=etag, X_Repo_Commit=sha, **linked)
        self.answer(200, body, ETag=etag, X_Repo_Commit=sha, **linked)

    # What is sent

    def create(self, wanted: dict) -> None:
        repo = f"{wanted['organization'] or 'someone'}/{wanted['name']}"
        if repo.split("/")[0] != "someone":
            return self.refuse(403, f"You don't have the rights to create a model under {wanted['organization']}")
        if repo in self.hub.repositories:
            return self.answer_json({"url": f"{self.hub.endpoint}/{repo}"}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[repo] = Repository({}, private)
        self.hub.repositories[repo].add_commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer_json({"url": f"{self.hub.endpoint}/{repo}"})

    def validate_card(self, content: str) -> None:
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        errors = [] if isinstance(metadata.get("license", ""), str) else [{"message": '"license" must be a string'}]
        self.answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, sha: str, body: bytes) -> None:
        there, described = self.hub.files(repo, sha), []
        for name in (file["path"] for file in json.loads(body)["files"]):
            mode = {"path": name, "uploadMode": "lfs" if is_lfs(name) else "regular", "shouldIgnore": False}
            described.append(mode | {"oid": oid(name, there[name]) if name in there else None})
        self.answer_json({"files": described})

    def lfs(self, repo: str, action: str, body: dict) -> None:
        if action == "verify":
            return self.answer(200 if body["oid"] in self.hub.objects else 404)
        base = f"{self.hub.endpoint}/{repo}.git/info/lfs"
        for wanted in body["objects"]:
            if wanted["oid"] not in self.hub.objects:
                hrefs = {"upload": f"{self.hub.endpoint}/lfs/{wanted['oid']}", "verify": f"{base}/verify"}
                wanted["actions"] = {name: {"href": href} for name, href in hrefs.items()}
        self.answer_json({"transfer": "basic", "objects": body["objects"]})

    def commit(self, repo: str, sha: str, body: bytes) -> None:
        files = dict(self.hub.files(repo, sha))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.repositories[repo].add_commit(files)
        self.answer_json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"})

    def log_message(self, *_) -> None:
        pass


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def oid(name: str, body: bytes) -> str:
    """The name of the content: of large files by LFS, of others by git."""
    if is_lfs(name):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
