"""`http(s)://`: one file, or a JSON index of many, pinned by ETag or Last-Modified.

A file is asked for by HEAD, and by a one-byte GET where HEAD does not tell enough. Index entries
that carry what is needed cost no request, so that 10,000 small files resolve as fast as their index
is read. `File.key` is the URL before redirects; where those lead is found again when it expires.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote

from modelcache.config import BLOCK_BYTES, HttpSettings, TransferSettings
from modelcache.domain.manifests import Algorithm, Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.paths import check_path
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import Ref
from modelcache.errors import (
    CredentialsExpired,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
    UnsafePath,
)
from modelcache.sources.http.credentials import Credentials
from modelcache.sources.http.index import Document, Entry, read_index
from modelcache.sources.source import HttpTarget
from modelcache.sources.web import answers
from modelcache.sources.web.address import Address, parse_address
from modelcache.sources.web.asking import Answer, Asker
from modelcache.sources.web.redirects import MOVED_GOOD_FOR_S, Redirects

ENTRY_BYTES_MAX: Final = 16 * MIB  # larger index entries are worth a HEAD: ETag, ranges, redirects
PROBE_BYTES_MIN: Final = BLOCK_BYTES + 1  # smaller files are read whole: ranges do not matter
REQUESTS_MAX: Final = 16  # at once while resolving
GOOD_FOR_S: Final = 3600.0  # nothing in a plain address expires
_NO_HEAD: Final = frozenset({403, 405, 501})  # URLs signed for GET alone say 403


@dataclass(frozen=True, slots=True)
class _Found:
    """What asking for a file told."""

    address: Address
    size_bytes: int
    headers: Mapping[str, str]
    ranges: bool


class HttpSource:
    """See Source."""

    def __init__(self, origin: Ref, settings: HttpSettings, transfer: TransferSettings) -> None:
        """Raises InvalidRef, InvalidConfig."""
        try:
            self._own = parse_address(f"{origin.scheme}://{origin.authority}/{origin.path}")
        except ValueError as error:
            raise InvalidRef(f"URL cannot be used: {error}") from error
        self._origin = origin
        self._ca_file = settings.ca_file or None
        self._credentials = Credentials(self._own, settings)
        self._asker = Asker(self._credentials.headers, transfer, self._ca_file)
        self._guard = threading.Lock()
        self._targets: dict[str, HttpTarget] = {}  # by server: what all its targets share
        self._redirects = Redirects()

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. At most REQUESTS_MAX connections; all are closed on return."""
        try:
            if self._own.is_directory or ref.flag("index"):
                entries = read_index(self._own, ref.files, self._get_index)
            else:
                entries = [self._single()]
                entries = [entry for entry in entries if ref.files.accepts(entry.path)]
            if not entries:
                raise NotFound(f"{self._own} names no file that the ref's filter accepts")
            return Manifest.of(str(self._origin), self._files(entries))
        finally:
            self._asker.close()

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source. Follows redirects again when `fresh` or when what is known grows old."""
        if fresh or self._redirects.is_due(file.key):
            address: Address | None = self._follow(file)
        else:
            address = self._redirects.target(file.key)
        if address is None:
            scheme, _, rest = file.key.partition("://")
            host, _, path = rest.partition("/")
            base = self._targets.get(f"{scheme}://{host}") or self._target_for(file.key)
            return _target(base, f"/{path}", file.pin, GOOD_FOR_S)
        base = self._targets.get(address.server) or self._target_for(address.url)
        return _target(base, address.path, file.pin, MOVED_GOOD_FOR_S)

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. Raises SourceRefused for a compressed body, whose bytes are not the file."""
        if answers.is_encoded(headers):
            raise _encoded(_shown(file.key))
        if answers.contradicts(file.pin, headers):
            raise OriginChanged(
                f"{_shown(file.key)} was changed since it was listed; pull again to resolve it anew"
            )

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source."""
        known = {checksum.algorithm for checksum in file.checksums}
        published = answers.published_checksums(headers)
        return tuple(checksum for checksum in published if checksum.algorithm not in known)

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source. Where a redirect led may have expired: CredentialsExpired finds it anew."""
        del body
        shown = _shown(file.key)
        if status in answers.REDIRECTS and headers.get("location"):
            self._redirects.expect()
            return CredentialsExpired(f"{shown} redirects; following it")
        if self._redirects.has_expired(file.key, status):
            return CredentialsExpired(f"{shown}: the address it redirected to has expired")
        return answers.refusal(shown, status, headers, credentials_given=self._credentials.given)

    # Resolving

    def _single(self) -> Entry:
        name = unquote(
            self._own.path.partition("?")[0].rpartition("/")[2], errors="surrogateescape"
        )
        check_path(name)
        if "/" in name:
            raise UnsafePath(f"file name {name[:200]!r} has a slash in it")
        return Entry(name, self._own)

    def _get_index(self, address: Address) -> Document:
        answer = self._asker.ask("GET", address, {"Accept": "application/json"}, wants_body=True)
        if answer.status != 200:  # noqa: PLR2004 - nothing else carries an index
            raise self._refused(address, answer)
        if answers.is_encoded(answer.headers):
            raise _encoded(str(address))
        return Document(answer.address, answer.body)

    def _files(self, entries: Iterable[Entry]) -> list[File]:
        """Pin every entry: from the index where that is enough, else by asking, in parallel."""
        files: list[File] = []
        asked: list[Entry] = []
        for entry in entries:
            file = _from_index(entry)
            if file is None:
                asked.append(entry)
            else:
                files.append(file)
        if len(asked) <= 1:
            return files + [self._ask(entry) for entry in asked]
        pool = ThreadPoolExecutor(min(REQUESTS_MAX, len(asked)), "modelcache-resolve")
        try:
            return files + list(pool.map(self._ask, asked))
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, entry: Entry) -> File:
        found = self._find(entry.address)
        if entry.size_bytes is not None and entry.size_bytes != found.size_bytes:
            raise OriginChanged(
                f"{entry.address} has {found.size_bytes} bytes, its index says {entry.size_bytes}; "
                "the index is out of date"
            )
        if found.address != entry.address:
            self._redirects.remember(entry.address.url, found.address)
        if entry.sha256 is not None:
            file = _from_index(replace(entry, size_bytes=found.size_bytes), asked=True)
            assert file is not None  # noqa: S101 - it has a digest and a size
            return replace(file, ranges=found.ranges)
        pin = answers.pin_of(found.headers)
        published = answers.published_checksums(found.headers)
        ranges = found.ranges and (pin.holds or bool(published))
        return _file(entry, found.size_bytes, pin, published, ranges=ranges)

    def _find(self, address: Address) -> _Found:
        """Size, validators and whether ranges work, by HEAD or, where that fails, one byte."""
        answer = self._asker.ask("HEAD", address)
        if answer.status not in {200, *_NO_HEAD}:
            raise self._refused(address, answer)
        length = answers.length_of(answer.headers)
        if answer.status == 200 and length:  # noqa: PLR2004 - some answer every HEAD with length 0
            _check_content(address, answer)
            accepts = answer.headers.get("accept-ranges", "").strip().lower()
            if accepts in {"bytes", "none"} or length < PROBE_BYTES_MIN:
                return _Found(answer.address, length, answer.headers, accepts == "bytes")
        return self._probe(address)

    def _probe(self, address: Address) -> _Found:
        answer = self._asker.ask("GET", address, {"Range": "bytes=0-0"})
        total = answers.total_of(answer.headers)
        if answer.status == 416 and not total:  # noqa: PLR2004 - an empty file has no first byte
            return _Found(answer.address, 0, answer.headers, ranges=False)
        if answer.status not in {200, 206}:
            raise self._refused(address, answer)
        _check_content(address, answer)
        if total is not None:  # even with a 200: some servers get the status wrong
            return _Found(answer.address, total, answer.headers, ranges=True)
        length = answers.length_of(answer.headers)
        if length is None:
            raise SourceRefused(
                f"{address} does not tell its size: the server sends neither Content-Length nor "
                "Content-Range, so a complete file could not be told from a cut one"
            )
        return _Found(answer.address, length, answer.headers, ranges=False)

    def _refused(self, address: Address, answer: Answer) -> ModelcacheError:
        given = self._credentials.given and self._credentials.owns(answer.address)
        return answers.refusal(str(address), answer.status, answer.headers, credentials_given=given)

    # Locating

    def _follow(self, file: File) -> Address:
        """Where the file's redirects lead now, if to the pinned state."""
        address = parse_address(file.key)
        found = self._find(address)
        if found.size_bytes != file.size_bytes or answers.contradicts(file.pin, found.headers):
            raise OriginChanged(
                f"{address} was changed since it was listed; pull again to resolve it anew"
            )
        self._redirects.remember(file.key, found.address)
        return found.address

    def _target_for(self, url: str) -> HttpTarget:
        address = parse_address(url)
        target = HttpTarget(
            address.host,
            address.port,
            address.tls,
            "/",
            self._credentials.headers(address),
            GOOD_FOR_S,
            self._ca_file,
            self._asker.proxy(address),
        )
        with self._guard:
            return self._targets.setdefault(address.server, target)


def _target(base: HttpTarget, path: str, pin: Pin, good_for_s: float) -> HttpTarget:
    condition = answers.condition(pin)
    return HttpTarget(
        base.host,
        base.port,
        base.tls,
        path,
        (*base.headers, condition) if condition else base.headers,
        good_for_s,
        base.ca_file,
        base.proxy,
    )


def _from_index(entry: Entry, *, asked: bool = False) -> File | None:
    """The file as its index describes it, or None when the server has to be asked for more.

    A digest pins by content alone, so that the same weights from two mirrors are one model.
    """
    size = entry.size_bytes
    if size is None or (size > ENTRY_BYTES_MAX and not asked):
        return None
    if entry.sha256 is not None:
        pin = Pin(version=f"sha256:{entry.sha256}")
        return _file(entry, size, pin, (Checksum(Algorithm.SHA256, entry.sha256),), ranges=True)
    if entry.modified is not None:
        return _file(entry, size, Pin(modified=entry.modified), (), ranges=True)
    return None


def _file(
    entry: Entry, size_bytes: int, pin: Pin, checksums: tuple[Checksum, ...], *, ranges: bool
) -> File:
    key = entry.address.url
    blob = blob_id(origin="http", key=key, size_bytes=size_bytes, pin=pin, checksums=checksums)
    return File(entry.path, size_bytes, key, blob, pin, checksums, ranges)


def _check_content(address: Address, answer: Answer) -> None:
    """Raises SourceRefused when what is served is not the bytes of a file."""
    if answer.address.is_directory and not address.is_directory:
        raise SourceRefused(f"{address} is a directory; to list it end the URL with a slash")
    if answers.is_encoded(answer.headers):
        raise _encoded(str(address))


def _encoded(shown: str) -> SourceRefused:
    return SourceRefused(
        f"{shown} is sent compressed although that was not asked for; turn off Content-Encoding "
        "for weights at the server"
    )


def _shown(url: str) -> str:
    """The URL without its query, which may be a credential."""
    return url.partition("?")[0]
