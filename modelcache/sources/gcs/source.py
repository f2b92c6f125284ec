"""`gs://`: what a ref names in a bucket, each object pinned by generation, and where to read it.

A listing carries all that is needed (size, generation, CRC32C), so nothing is asked per object. The
bytes come from the JSON API, `/storage/v1/b/BUCKET/o/OBJECT?alt=media&generation=N`: the address
for which Google documents Range headers (objects.get), whose errors carry a reason, and that every
server of this API has. The XML API would need another spelling of projects to bill, and errors.

A generation is one immutable state of the bytes. The ETag is no part of the pin: in the JSON API it
also changes with the metadata. `Accept-Encoding: identity` keeps servers in between from
compressing; GCS itself would gunzip objects stored with `Content-Encoding: gzip`, so those are
refused when listed, and again should a response say that it is stored so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from modelcache.config import GcsSettings, TransferSettings
from modelcache.domain.manifests import Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.paths import check_path
from modelcache.domain.refs import Ref
from modelcache.errors import InvalidRef, ModelcacheError, NotFound, OriginChanged
from modelcache.sources.gcs import checksums
from modelcache.sources.gcs.bucket import Bucket, Object
from modelcache.sources.gcs.endpoint import EMULATOR, Endpoint, choose_endpoint
from modelcache.sources.gcs.refusals import CODINGS, Answer, changed, encoded, from_answer, shown
from modelcache.sources.gcs.tokens import Tokens
from modelcache.sources.source import HttpTarget
from modelcache.sources.web.identity import user_agent
from modelcache.sources.web.proxies import proxy_for

_NOT_FOUND: Final = 404
_UNAUTHORIZED: Final = 401
_GENERATION: Final = re.compile(r"[0-9]{1,19}")  # an int64

_Named = tuple[str, Object]  # path inside the snapshot, object


class GcsSource:
    """See Source. One bucket at one endpoint, with one set of credentials."""

    def __init__(self, origin: Ref, settings: GcsSettings, transfer: TransferSettings) -> None:
        """Raises InvalidConfig, InvalidRef, NoCredentials, SourceUnavailable.

        Sends nothing, except where credentials come from a service: that is asked.
        """
        self._origin = origin
        self._name = origin.authority
        self._generation = _generation(origin)
        self._endpoint = choose_endpoint(origin, settings)
        self._user_project = origin.option("user-project") or settings.user_project or None
        self._tokens = Tokens(
            f"gs://{self._name}", without=_without(origin, settings, self._endpoint)
        )
        # For the bytes the same authorities as Google's client trusts for the listing.
        self._ca_file = (
            settings.ca_file
            or os.environ.get("REQUESTS_CA_BUNDLE")
            or os.environ.get("CURL_CA_BUNDLE")
            or DEFAULT_CA_BUNDLE_PATH
        )
        self._bucket = Bucket(
            self._name, self._endpoint, self._tokens, transfer, self._ca_file, self._user_project
        )
        self._proxy = proxy_for(urlsplit(self._endpoint.address.server))

    # Resolving

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. An object of exactly this name comes before a prefix of this name."""
        files = [self._file(name, item) for name, item in self._find(ref)]
        if not files:
            raise NotFound(f"{self._where(ref.path)} has no object that the ref's filter accepts")
        return Manifest.of(str(self._origin), files)

    def _find(self, ref: Ref) -> list[_Named]:
        path = ref.path
        is_prefix = not path or path.endswith("/")
        if self._generation is not None:
            if is_prefix:
                raise InvalidRef("option 'generation' is for a single object; the ref names many")
            return _accepted(self._bucket.object(path, self._generation), ref)
        if is_prefix:
            below, any_below = self._below(path, ref)
            if not any_below:
                raise NotFound(f"{self._where(path)}: there are no objects below this prefix")
            return below
        with ThreadPoolExecutor(1, "modelcache-resolve") as pool:
            return self._exact_or_below(ref, pool)

    def _exact_or_below(self, ref: Ref, pool: ThreadPoolExecutor) -> list[_Named]:
        """Ask for the object and the prefix at once: which of them it is, only the bucket knows."""
        exact = pool.submit(self._bucket.object, ref.path)
        listing_error: ModelcacheError | None = None
        below: list[_Named] = []
        any_below = False
        try:
            below, any_below = self._below(f"{ref.path}/", ref)
        except ModelcacheError as error:
            listing_error = error
        exact_error = exact.exception()
        # An empty object beside a prefix of its name is how some tools mark a directory.
        if exact_error is None and (exact.result().size_bytes or not any_below):
            return _accepted(exact.result(), ref)
        if any_below:
            return below
        if listing_error is not None:
            raise listing_error
        if isinstance(exact_error, NotFound):
            raise NotFound(
                f"{self._where(ref.path)}: neither an object nor a prefix with objects below it"
            ) from exact_error
        assert exact_error is not None  # noqa: S101 - else it was returned above
        raise exact_error

    def _below(self, prefix: str, ref: Ref) -> tuple[list[_Named], bool]:
        """What the filter accepts below a prefix, and whether there was anything at all."""
        found = []
        seen = False
        cut = len(prefix)
        accepts = ref.files.accepts
        for item in self._bucket.objects(prefix):
            seen = True
            if item.name.endswith("/") and not item.size_bytes:
                continue  # a directory marker, as consoles make them
            name = item.name[cut:]
            if accepts(name):
                found.append((name, item))
        return found, seen

    def _file(self, name: str, item: Object) -> File:
        """Raises UnsafePath, and SourceRefused for an object that GCS would decompress."""
        check_path(name)  # before the name is hashed: JSON can carry what is no Unicode
        if item.coding in CODINGS:
            raise encoded(self._where(item.name))
        pin = Pin(version=item.generation)
        blob = blob_id(
            origin=self._endpoint.identity(self._name),
            key=item.name,
            size_bytes=item.size_bytes,
            pin=pin,
            checksums=item.checksums,
        )
        return File(name, item.size_bytes, item.name, blob, pin, item.checksums)

    # Reading

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source. A token that was refused is renewed when `fresh`."""
        if fresh:
            self._tokens.renew()
        current = self._tokens.current()
        query = {"alt": "media", "generation": file.pin.version or ""}
        if self._user_project:
            query["userProject"] = self._user_project
        address = self._endpoint.address
        common = (("User-Agent", user_agent()), ("Accept-Encoding", "identity"))
        return HttpTarget(
            address.host,
            address.port,
            address.tls,
            f"{self._endpoint.base}/storage/v1/b/{quote(self._name, safe='')}/o/"
            f"{quote(file.key, safe='')}?{urlencode(query)}",
            (*common, *current.headers),
            current.good_for_s,
            self._ca_file if address.tls else None,
            self._proxy,
        )

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. Raises SourceRefused for a body that is not the stored bytes."""
        for name in ("content-encoding", "x-goog-stored-content-encoding"):
            if headers.get(name, "").strip().lower() in CODINGS:
                raise encoded(self._where(file.key))
        generation = headers.get("x-goog-generation")
        if generation is None:
            raise OriginChanged(
                f"{self._where(file.key)}: the endpoint does not tell which generation it sends"
            )
        if generation != file.pin.version:
            raise changed(self._where(file.key))

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source. Nothing where the listing had them, as GCS's own always have."""
        known = {checksum.algorithm for checksum in file.checksums}
        published = checksums.of_whole(headers)
        return tuple(checksum for checksum in published if checksum.algorithm not in known)

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source. A 404 does not tell what is missing, so the bucket is asked."""
        if status == _UNAUTHORIZED:
            self._tokens.doubt()
        error = from_answer(
            self._where(file.key), Answer.of(status, headers, body), self._tokens.advice
        )
        return self._why_gone(file, error) if status == _NOT_FOUND else error

    def _why_gone(self, file: File, error: ModelcacheError) -> ModelcacheError:
        """What has become of an object whose pinned generation was not found."""
        try:
            present = self._bucket.object(file.key)
        except NotFound:
            return OriginChanged(
                f"{self._where(file.key)} was removed since it was listed; pull again"
            )
        except ModelcacheError:
            return error
        return error if present.generation == file.pin.version else changed(self._where(file.key))

    def _where(self, name: str) -> str:
        return shown(self._name, name)


def _generation(origin: Ref) -> str | None:
    generation = origin.option("generation")
    if generation is not None and not _GENERATION.fullmatch(generation):
        raise InvalidRef(f"option 'generation' is a number, not {generation[:40]!r}")
    return generation


def _without(origin: Ref, settings: GcsSettings, endpoint: Endpoint) -> str:
    """Why no credentials are sent, and what to do for some; empty if they are."""
    if origin.flag("anonymous") or settings.anonymous:
        return "it was asked for anonymously; leave that out to send credentials"
    if not endpoint.trusted:
        named = "the ref" if origin.option("endpoint") else EMULATOR
        return (
            f"credentials are not sent to an endpoint that only {named} names; set gcs.endpoint "
            "in the configuration to it"
        )
    return ""


def _accepted(item: Object, ref: Ref) -> list[_Named]:
    name = ref.path.rpartition("/")[2]
    return [(name, item)] if ref.files.accepts(name) else []
