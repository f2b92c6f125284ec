"""A hub that speaks Hugging Face's HTTP API as far as pulling needs it, with a CDN beside it.

tests/sources/test_hf_hub.py has the unmodified huggingface_hub client download from it, so that
what our source is tested against is known to be faithful.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.sources.scripted import Answering, Asked, Reply, ScriptedServer, StaticFile

LFS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")


def git_oid(content: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A model repository. moved_to: the name that it has now."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    moved_to: str = ""

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Add a commit and let a branch point to it."""
        text = "".join(f"{name}\0{git_oid(content)}\0" for name, content in sorted(files.items()))
        stem = f"{len(self.commits)}\0{text}".encode()
        sha = hashlib.sha1(stem, usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[revision] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit's name means."""
        return self.refs.get(revision, revision if revision in self.commits else None)


class _Everywhere(dict[str, Answering]):
    """One who answers for every path."""

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self._answering = answering

    def get(self, *_: object) -> Answering:  # type: ignore[override]
        return self._answering


class Hub:
    """Use as a context manager. `readers`: which repositories a token may read, besides public."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.readers: dict[str, set[str]] = {}
        self.page_entries = 1000
        self.throttled: list[Reply] = []  # answers of the next requests
        self.link_good_for_s = 3600
        self.small_files_redirect = False  # as the real hub does, to a cache of its own
        self.serves_large = False  # without a CDN, as some mirrors do
        self.ranges = True
        self.damaged: dict[str, bytes] = {}  # by file name: what is served in place of it
        self.before_cdn: Answering | None = None  # called first; a status other than 200 is sent
        self._generation = 0
        self.api = ScriptedServer(certificate)
        self.cdn = ScriptedServer()
        self.api.answers = _Everywhere(self._answer)
        self.cdn.answers = _Everywhere(self._answer_cdn)

    @property
    def url(self) -> str:
        return self.api.url("")

    def repository(self, name: str = "org/name") -> Repository:
        return self.repositories.setdefault(name, Repository())

    def expire_links(self) -> None:
        """From now on the CDN refuses every address that was handed out before."""
        self._generation += 1

    def __enter__(self) -> Self:
        self.api.__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.cdn.__exit__()
        self.api.__exit__()

    # The API

    def _answer(self, asked: Asked) -> Reply:
        if self.throttled:
            return self.throttled.pop(0)
        path = urlsplit(asked.path).path
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return self._api(asked, parts[2:])
        if parts[:3] == ["api", "resolve-cache", "models"]:
            return self._cached(asked, parts[3:])
        for length in (2, 1):
            if parts[length : length + 1] == ["resolve"]:
                name = "/".join(parts[:length])
                return self._resolve(asked, name, parts[length + 1], "/".join(parts[length + 2 :]))
        return Reply(404)

    def _api(self, asked: Asked, parts: list[str]) -> Reply:
        length = 1 if len(parts) == 1 or parts[1] in {"revision", "tree"} else 2
        name, rest = "/".join(parts[:length]), parts[length:]
        refused = self._refused(asked, name)
        if refused is not None:
            return refused
        repository = self.repositories[name]
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repository.find(revision)
        if sha is None:
            return Reply(404, {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["tree"]:
            return self._tree(asked, repository.commits[sha], "/".join(rest[2:]))
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        document = {"id": name, "modelId": name, "sha": sha, "siblings": siblings}
        document |= {"private": repository.private, "gated": repository.gated, "tags": []}
        return _json({**document, "downloads": 0, "likes": 0})

    def _tree(self, asked: Asked, files: dict[str, bytes], folder: str) -> Reply:
        query = {name: values[0] for name, values in parse_qs(urlsplit(asked.path).query).items()}
        recursive = query.get("recursive", "false").lower() == "true"
        entries = _entries(files, folder, recursive=recursive)
        if folder and not entries:
            return Reply(404, {"X-Error-Code": "EntryNotFound"})
        start = int(query.get("cursor", "0"))
        page = entries[start : start + self.page_entries]
        reply = _json(page)
        if start + len(page) < len(entries):
            path = urlsplit(asked.path).path
            following = f"recursive={recursive}&cursor={start + len(page)}"
            reply.headers["Link"] = f'<{self.url}{path}?{following}>; rel="next"'
        return reply

    def _refused(self, asked: Asked, name: str, *, reads: bool = False) -> Reply | None:
        """Whom the hub turns away, in its words."""
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        if scheme and (scheme != "Bearer" or token not in self.readers):
            message = "Invalid credentials in Authorization header"
            return Reply(401, {"X-Error-Message": message})
        repository = self.repositories.get(name)
        permitted = name in self.readers.get(token, ())
        if repository is None or (repository.private and not permitted):
            return Reply(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        if repository.moved_to:
            old, new = f"/{name}", f"/{repository.moved_to}"
            return Reply(307, {"Location": asked.path.replace(old, new, 1)})
        if reads and repository.gated and not permitted:
            return Reply(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        return None

    # Files

    def _resolve(self, asked: Asked, name: str, revision: str, path: str) -> Reply:
        refused = self._refused(asked, name, reads=True)
        if refused is not None:
            return refused
        repository = self.repositories[name]
        sha = repository.find(revision)
        if sha is None:
            return Reply(404, {"X-Error-Code": "RevisionNotFound"})
        content = repository.commits[sha].get(path)
        if content is None:
            return Reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        large = path.endswith(LFS)
        oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
        known = {"X-Repo-Commit": sha}
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"'}
        if large and not self.serves_large:
            return Reply(302, known | linked | {"Location": self._link(oid)})
        if not large and self.small_files_redirect:
            cached = f"/api/resolve-cache/models/{name}/{sha}/{quote(path)}?etag=%22{oid}%22"
            return Reply(307, known | linked | {"Location": cached})
        return self._file(self.damaged.get(path, content), known | {"ETag": f'"{oid}"'})(asked)

    def _cached(self, asked: Asked, parts: list[str]) -> Reply:
        name, sha, path = "/".join(parts[:2]), parts[2], "/".join(parts[3:])
        content = self.repositories[name].commits[sha][path]
        headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": sha}
        return self._file(self.damaged.get(path, content), headers)(asked)

    def _file(self, content: bytes, headers: dict[str, str]) -> StaticFile:
        return StaticFile(content, headers, ranges=self.ranges)

    def _link(self, oid: str) -> str:
        """A signed address, of the form that CloudFront's have."""
        until_s = int(time.time()) + self.link_good_for_s  # noqa: TID251 - a server's clock
        signed = f"Expires={until_s}&Policy=e30_&Signature=secret-{self._generation}&Key-Pair-Id=K"
        return self.cdn.url(f"/repos/{oid}?{signed}")

    def _answer_cdn(self, asked: Asked) -> Reply:
        if self.before_cdn is not None:
            reply = self.before_cdn(asked)
            if reply.status != 200:
                return reply
        parts = urlsplit(asked.path)
        query = parse_qs(parts.query)
        signature = query.get("Signature", [""])[0]
        if asked.method != "GET" or signature != f"secret-{self._generation}":
            return Reply(403, body=b"<Error><Code>AccessDenied</Code></Error>")
        oid = parts.path.rpartition("/")[2]
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for path, content in files.items():
                    if path.endswith(LFS) and hashlib.sha256(content).hexdigest() == oid:
                        served = self.damaged.get(path, content)
                        return self._file(served, {"ETag": '"of-the-store"'})(asked)
        return Reply(404)


def _entries(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        inside = path.removeprefix(prefix).split("/")
        for depth in range(1, len(inside)):
            name = prefix + "/".join(inside[:depth])
            if recursive or depth == 1:
                oid = git_oid(name.encode())
                found[name] = {"type": "directory", "oid": oid, "size": 0, "path": name}
        if recursive or len(inside) == 1:
            found[path] = _entry(path, content)
    return list(found.values())


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "size": len(content), "path": path}
    if not path.endswith(LFS):
        return {**entry, "oid": git_oid(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
    ).encode()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {**entry, "oid": git_oid(pointer), "lfs": lfs}


def _json(value: object) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())
