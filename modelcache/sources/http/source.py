"""The source for http(s): pins by ETag or Last-Modified, probes for ranges, follows redirects."""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import unquote, urlsplit

from modelcache.config import HttpSettings, TransferSettings
from modelcache.domain.manifests import Algorithm, Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import Ref
from modelcache.errors import (
    CredentialsExpired,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
)
from modelcache.sources.http.asking import Answer, Asker, refusal, request_path, shown
from modelcache.sources.http.index import Entry, read_index
from modelcache.sources.proxies import proxy_for
from modelcache.sources.source import HttpTarget

HEAD_BYTES_MIN: Final = 16 * MIB  # index entries below that give date and size need no HEAD
HEADS_AT_ONCE: Final = 16
GOOD_FOR_S: Final = 3600.0  # an address without signature; redirects are followed again on failure
_DIGEST: Final = re.compile(r"([A-Za-z0-9-]+)=:?([A-Za-z0-9+/]+=*):?")
_ALGORITHMS: Final = {
    "sha-256": Algorithm.SHA256,
    "crc32c": Algorithm.CRC32C,
    "md5": Algorithm.MD5,
}


class HttpSource:
    """See Source."""

    def __init__(self, origin: Ref, settings: HttpSettings, transfer: TransferSettings) -> None:
        self._origin = origin
        self._asker = Asker(origin.authority, settings, transfer.connect_timeout_s)
        self._final: dict[str, str] = {}  # URL -> where its redirects lead
        self._bases: dict[str, HttpTarget] = {}  # scheme and host -> what all its targets share
        self._guard = threading.Lock()

    def resolve(self, ref: Ref) -> Manifest:
        """See Source."""
        url = f"{ref.scheme}://{ref.authority}/{ref.path}"
        if ref.flag("index") or urlsplit(url).path.endswith("/"):
            entries = read_index(url, self._get)
        else:
            name = unquote(urlsplit(url).path.rpartition("/")[2])
            entries = [Entry(name, url)]
        wanted = [entry for entry in entries if ref.files.accepts(entry.path)]
        if not wanted:
            raise NotFound(f"{shown(url)} names no file that the ref's filter accepts")
        with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
            files = list(pool.map(self._file, wanted))
        return Manifest.of(str(self._origin), files)

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source."""
        url = self._final.get(file.key)
        if fresh and url is not None:
            url = self._asker.ask("HEAD", file.key).url
            self._final[file.key] = url
        url = url or file.key
        scheme, _, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        base = self._bases.get(f"{scheme}://{host}") or self._base(url, f"{scheme}://{host}")
        condition = _condition(file.pin)
        headers = (*base.headers, condition) if condition else base.headers
        return HttpTarget(
            base.host,
            base.port,
            base.tls,
            slash + path.partition("#")[0] if slash else request_path(urlsplit(url)),
            headers,
            GOOD_FOR_S,
            base.ca_file,
            base.proxy,
        )

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source."""
        if headers.get("content-encoding", "identity") != "identity":
            raise SourceRefused(f"{shown(file.key)} is sent compressed though that was not asked")
        pin = file.pin
        etag = headers.get("etag")
        if pin.etag and etag and _opaque(etag) != _opaque(pin.etag):
            raise OriginChanged(f"{shown(file.key)} was changed since it was listed; pull again")
        modified = headers.get("last-modified")
        if pin.modified and not pin.etag and modified and modified != pin.modified:
            raise OriginChanged(f"{shown(file.key)} was changed since it was listed; pull again")

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source."""
        del file
        return _published(headers)

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source."""
        del body
        if status in {301, 302, 303, 307, 308}:
            self._final.setdefault(file.key, file.key)  # `fresh` follows it
            return CredentialsExpired(f"{shown(file.key)} has moved")
        if status in {401, 403} and self._final.get(file.key, file.key) != file.key:
            return CredentialsExpired(f"the redirect of {shown(file.key)} has expired")
        return refusal(file.key, status, headers)

    def _get(self, url: str) -> bytes:
        answer = self._asker.ask("GET", url, headers={"Accept": "application/json"}, body=True)
        if answer.status != 200:  # noqa: PLR2004 - nothing else carries an index
            raise refusal(url, answer.status, answer.headers)
        return answer.body

    def _file(self, entry: Entry) -> File:
        size, modified = entry.size_bytes, entry.modified
        if entry.sha256 is not None and size is not None:
            checksum = Checksum(Algorithm.SHA256, entry.sha256)
            return self._make(entry, size, Pin(version=entry.sha256), (checksum,), ranges=True)
        if modified is not None and size is not None and size < HEAD_BYTES_MIN:
            return self._make(entry, size, Pin(modified=modified), (), ranges=True)
        answer, size, ranges = self._head(entry.url)
        if entry.size_bytes is not None and entry.size_bytes != size:
            raise OriginChanged(f"{shown(entry.url)} has another size than its index says")
        pin = _pin_of(answer.headers)
        published = _published(answer.headers)
        if entry.sha256 is not None:
            published = (Checksum(Algorithm.SHA256, entry.sha256), *published)
        return self._make(entry, size, pin, published, ranges=ranges and pin.holds)

    def _make(
        self, entry: Entry, size: int, pin: Pin, checksums: tuple[Checksum, ...], *, ranges: bool
    ) -> File:
        blob = blob_id(origin="http", key=entry.url, size_bytes=size, pin=pin, checksums=checksums)
        return File(entry.path, size, entry.url, blob, pin, checksums, ranges)

    def _head(self, url: str) -> tuple[Answer, int, bool]:
        """Validators, size and whether ranges work, by HEAD or, where that fails, by one byte."""
        answer = self._asker.ask("HEAD", url)
        length = answer.headers.get("content-length", "")
        accepts = answer.headers.get("accept-ranges", "").lower()
        if answer.status == 200 and length.isdigit() and accepts in {"bytes", "none"}:  # noqa: PLR2004
            self._remember(url, answer)
            return answer, int(length), accepts == "bytes"
        probe = self._asker.ask("GET", url, headers={"Range": "bytes=0-0"})
        self._remember(url, probe)
        total = probe.headers.get("content-range", "").rpartition("/")[2]
        if total.isdigit():
            return probe, int(total), True
        if probe.status == 416:  # noqa: PLR2004 - an empty file has no first byte
            return probe, 0, False
        if probe.status != 200:  # noqa: PLR2004
            raise refusal(url, probe.status, probe.headers)
        length = probe.headers.get("content-length", "") or length
        if not length.isdigit():
            raise SourceRefused(
                f"{shown(url)} does not tell its size; a server has to send Content-Length"
            )
        return probe, int(length), False

    def _remember(self, url: str, answer: Answer) -> None:
        if answer.url != url:
            self._final[url] = answer.url

    def _base(self, url: str, key: str) -> HttpTarget:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        base = HttpTarget(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            tls,
            "/",
            self._asker.headers(url),
            GOOD_FOR_S,
            self._asker.ca_file,
            proxy_for(parts),
        )
        with self._guard:
            return self._bases.setdefault(key, base)


def _condition(pin: Pin) -> tuple[str, str] | None:
    if pin.etag and not pin.etag.startswith("W/"):
        return ("If-Match", pin.etag)
    if pin.modified and not pin.etag:
        return ("If-Unmodified-Since", pin.modified)
    return None


def _pin_of(headers: Mapping[str, str]) -> Pin:
    etag, modified = headers.get("etag"), headers.get("last-modified")
    if etag or modified:
        return Pin(etag=etag, modified=modified)
    return Pin(nonce=os.urandom(16).hex())


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")


def _published(headers: Mapping[str, str]) -> tuple[Checksum, ...]:
    """Digests of the whole representation: Repr-Digest (RFC 9530), Digest (RFC 3230)."""
    found: dict[Algorithm, str] = {}
    for name in ("repr-digest", "digest"):
        for algorithm, value in _DIGEST.findall(headers.get(name, "")):
            known = _ALGORITHMS.get(algorithm.lower())
            if known is not None and known not in found:
                try:
                    found[known] = base64.b64decode(value, validate=True).hex()
                except binascii.Error:
                    continue  # not a digest we can read: as if it were not there
    return tuple(Checksum(known, found[known]) for known in Algorithm if known in found)
