"""What a repository holds at a commit, asked through huggingface_hub.

Every failure of the library, and every document that is not what a hub would send, is translated
here; nothing of it reaches the source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile, RepoFolder

from modelcache.domain.hub import is_commit
from modelcache.domain.manifests import Algorithm, Checksum
from modelcache.errors import InvalidRef, NotFound, SourceRefused
from modelcache.sources.hf.access import Access
from modelcache.sources.hf.refusals import refused
from modelcache.sources.hf.wire import Wire
from modelcache.sources.web.asking import Asker

ENTRIES_MAX: Final = 500_000  # as many as an index of files may have
REVISION_DEFAULT: Final = "main"
_OID: Final = {
    Algorithm.GIT_SHA1: re.compile(r"[0-9a-f]{40}"),
    Algorithm.SHA256: re.compile(r"[0-9a-f]{64}"),
}
# What the library makes of a document that it does not expect.
_NONSENSE: Final = (AttributeError, LookupError, RecursionError, TypeError, ValueError)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Listed:
    """One file. path: inside the repository. checksum: its SHA-256 (LFS, Xet) or git's own."""

    path: str
    size_bytes: int
    checksum: Checksum


class Listing:
    """Asks for one repository."""

    def __init__(self, access: Access, asker: Asker) -> None:
        self._access = access
        self._wire = Wire(access, asker)
        # The token is the Asker's to send, see `wire`; the library must not look for one.
        self._api = HfApi(access.endpoint, token=False, library_name="modelcache")

    def commit(self, revision: str) -> str:
        """The commit that a branch, a tag or the start of a commit means."""
        repository = self._access.repository
        info = self._asked(
            revision, lambda: self._api.model_info(repository, revision=revision, token=False)
        )
        if not isinstance(info.sha, str) or not is_commit(info.sha):
            raise self._nonsense("it names no commit")
        return info.sha

    def below(self, commit: str, folder: str) -> list[Listed]:
        """Every file below a folder (empty: of the repository)."""
        entries = self._entries(commit, folder, recursive=True)
        if len(entries) > ENTRIES_MAX:
            raise SourceRefused(
                f"{self._access.page} has more than {ENTRIES_MAX} files; name a folder of it"
            )
        return [self._listed(entry) for entry in entries if isinstance(entry, RepoFile)]

    def at(self, commit: str, path: str) -> Listed | None:
        """The file of exactly this path; None for a folder. Raises NotFound."""
        folder = path.rpartition("/")[0]
        for entry in self._entries(commit, folder, recursive=False):
            if entry.path == path:
                return self._listed(entry) if isinstance(entry, RepoFile) else None
        raise NotFound(f"{self._access.page}/{path} does not exist")

    def _entries(self, commit: str, folder: str, *, recursive: bool) -> list[RepoFile | RepoFolder]:
        def ask() -> list[RepoFile | RepoFolder]:
            found: Iterable[RepoFile | RepoFolder] = self._api.list_repo_tree(
                self._access.repository,
                folder or None,
                recursive=recursive,
                revision=commit,
                token=False,
            )
            return list(islice(found, ENTRIES_MAX + 1))

        return self._asked(commit, ask, path=folder)

    def _asked(self, revision: str, ask: Callable[[], _Answer], *, path: str = "") -> _Answer:
        """Call the library. What it finds wrong with an answer is a hub that is none."""
        try:
            with self._wire.carrying():
                return ask()
        except HfHubHTTPError as error:
            headers = {name.lower(): text for name, text in error.response.headers.items()}
            status = error.response.status_code
            raise refused(self._access, path, status, headers, revision=revision) from error
        except HFValidationError as error:
            raise InvalidRef(
                f"{self._access.repository[:120]!r} is not the name of a repository; write "
                "hf://org/name"
            ) from error
        except _NONSENSE as error:
            raise self._nonsense(f"{type(error).__name__} in what it sent") from error

    def _listed(self, entry: Any) -> Listed:  # noqa: ANN401 - what a hub sent is of any type
        lfs = entry.lfs
        path, size = entry.path, lfs.size if lfs else entry.size
        oid = lfs.sha256 if lfs else entry.blob_id
        algorithm = Algorithm.SHA256 if lfs else Algorithm.GIT_SHA1
        if not isinstance(oid, str) or not _OID[algorithm].fullmatch(oid):
            raise self._nonsense("a file has no checksum")
        if not isinstance(path, str) or type(size) is not int or size < 0:
            raise self._nonsense("a file has no name or size")
        return Listed(path, size, Checksum(algorithm, oid))

    def _nonsense(self, why: str) -> SourceRefused:
        return SourceRefused(
            f"{self._access.endpoint} does not answer as a hub does ({why}); check hf.endpoint, "
            "HF_ENDPOINT, and proxies on the way"
        )
