"""`s3://`: what a ref names in a bucket, each object pinned, and where to read it.

Small objects are pinned by the listing's ETag and bring their checksum with the GET; larger ones
are asked for one by one (HEAD), because ranged reads carry no checksum of the whole. The signature
of a GET does not cover its Range header, so one signature serves all ranges of an object.
`File.key` is the object's key; the bucket is that of the origin the source was opened for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final

from modelcache.config import BLOCK_BYTES, S3Settings, TransferSettings
from modelcache.domain.manifests import Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.refs import Ref
from modelcache.errors import (
    CredentialsExpired,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceUnavailable,
)
from modelcache.sources.s3 import checksums
from modelcache.sources.s3.access import REQUESTS_MAX, Access
from modelcache.sources.s3.bucket import Bucket, Head
from modelcache.sources.s3.listing import Listed
from modelcache.sources.s3.refusals import (
    SKEW_MAX,
    SKEWED,
    archived,
    clock_error,
    error_code,
    from_code,
    retry_after_s,
    shown,
    too_skewed,
)
from modelcache.sources.source import HttpTarget

WHOLE_BYTES_MAX: Final = BLOCK_BYTES  # what the engine reads in one GET, checksum included
VERSIONS_DENIED_S: Final = 30.0  # so long, refusals of requests sent before may still come in

_Named = tuple[str, Listed]  # path inside the snapshot, object


class S3Source:
    """See Source. One bucket at one endpoint, with one set of credentials."""

    def __init__(self, origin: Ref, settings: S3Settings, transfer: TransferSettings) -> None:
        """Raises InvalidConfig, InvalidRef, NoCredentials."""
        self._origin = origin
        self._name = origin.authority
        self._version = origin.option("version-id")
        self._access = Access(origin, settings, transfer)
        self._bucket = Bucket(self._access)
        self._versions_denied_s: float | None = None

    # Resolving

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. An object of exactly this key comes before a prefix of this name."""
        bucket = self._bucket
        with ThreadPoolExecutor(REQUESTS_MAX) as pool:
            try:
                files = self._files(bucket, self._find(bucket, ref, pool), pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if not files:
            raise NotFound(f"{self._where(ref.path)} has no object that the ref's filter accepts")
        return Manifest.of(str(self._origin), files)

    def _find(self, bucket: Bucket, ref: Ref, pool: ThreadPoolExecutor) -> list[_Named]:
        path = ref.path
        is_prefix = not path or path.endswith("/")
        if self._version is not None:
            if is_prefix:
                raise InvalidRef("option 'version-id' is for a single object; the ref names many")
            return _accepted(path, bucket.head(path, self._version), ref)
        if is_prefix:
            below, any_below = self._below(bucket, path, ref)
            if not any_below:
                raise NotFound(f"{self._where(path)}: there are no objects below this prefix")
            return below
        return self._exact_or_below(bucket, ref, pool)

    def _exact_or_below(self, bucket: Bucket, ref: Ref, pool: ThreadPoolExecutor) -> list[_Named]:
        """Ask for the object and the prefix at once: which of them it is, only the bucket knows."""
        exact = pool.submit(bucket.head, ref.path)
        listing_error: ModelcacheError | None = None
        below: list[_Named] = []
        any_below = False
        try:
            below, any_below = self._below(bucket, f"{ref.path}/", ref)
        except ModelcacheError as error:
            listing_error = error
        head_error = exact.exception()
        # An empty object beside a prefix of its name is how some tools mark a directory.
        if head_error is None and (exact.result().size_bytes or not any_below):
            return _accepted(ref.path, exact.result(), ref)
        if any_below:
            return below
        if listing_error is not None:
            raise listing_error  # it had a body to say why
        if isinstance(head_error, NotFound):
            raise NotFound(
                f"{self._where(ref.path)}: neither an object nor a prefix with objects below it"
            ) from head_error
        assert head_error is not None  # noqa: S101 - else it was returned above
        raise head_error

    def _below(self, bucket: Bucket, prefix: str, ref: Ref) -> tuple[list[_Named], bool]:
        """What the filter accepts below a prefix, and whether there was anything at all."""
        found = []
        seen = False
        cut = len(prefix)
        accepts = ref.files.accepts
        for item in bucket.objects(prefix):
            seen = True
            if item.key.endswith("/") and not item.size_bytes:
                continue  # a directory marker, as consoles make them
            name = item.key[cut:]
            if accepts(name):
                found.append((name, item))
        return found, seen

    def _files(self, bucket: Bucket, found: list[_Named], pool: ThreadPoolExecutor) -> list[File]:
        # Only what needs a request goes to the threads: handing over 10,000 that do not costs
        # more than listing them.
        asked = [named for named in found if self._needs_head(named[1])]
        plain = [named for named in found if not self._needs_head(named[1])]
        identity = self._access.identity
        files = [
            self._file(identity, name, item.key, item.size_bytes, Pin(etag=item.etag), ())
            for name, item in plain
        ]
        ask: Callable[[_Named], File] = lambda named: self._asked(bucket, identity, *named)  # noqa: E731
        files.extend(pool.map(ask, asked))
        return files

    def _needs_head(self, item: Listed) -> bool:
        """Whether the listing does not say enough: ranged reads bring no checksum with them."""
        return (
            item.size_bytes > WHOLE_BYTES_MAX
            or item.archived
            or not item.etag
            or self._version is not None
        )

    def _asked(self, bucket: Bucket, identity: str, name: str, item: Listed) -> File:
        """A file as HEAD describes it; that is newer than the listing."""
        try:
            head = bucket.head(item.key, self._version)
        except NotFound as error:
            raise OriginChanged(
                f"{self._where(item.key)} vanished while it was listed; pull again"
            ) from error
        if head.archived:
            raise archived(self._where(item.key))
        pin = Pin(etag=head.etag, version=head.version)
        published = checksums.published(head.headers, head.size_bytes)
        parted = checksums.composite(head.headers)
        if parted is not None:
            whole = checksums.with_parts(parted, bucket.parts(item.key, head.version))
            published = (whole, *published) if whole else published
        return self._file(identity, name, item.key, head.size_bytes, pin, published)

    @staticmethod
    def _file(  # noqa: PLR0917
        identity: str,
        name: str,
        key: str,
        size_bytes: int,
        pin: Pin,
        published: tuple[Checksum, ...],
    ) -> File:
        blob = blob_id(
            origin=identity, key=key, size_bytes=size_bytes, pin=pin, checksums=published
        )
        return File(name, size_bytes, key, blob, pin, published)

    # Reading

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source."""
        if fresh:
            self._access.renew()
        pin = file.pin
        if pin.version and self._versions_denied_s is not None:
            pin = Pin(etag=pin.etag)
        checksum = file.size_bytes <= WHOLE_BYTES_MAX
        return self._access.target(file.key, pin, checksum=checksum)

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. Some servers ignore If-Match, so the ETag is compared in any case."""
        pin = file.pin
        version = headers.get("x-amz-version-id")
        if pin.etag and _bare(headers.get("etag", "")) != _bare(pin.etag):
            raise OriginChanged(f"{self._where(file.key)} was changed since it was listed")
        if pin.version and version and version != pin.version:
            raise OriginChanged(f"{self._where(file.key)} has a newer version; pull again")

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source."""
        known = {checksum.algorithm for checksum in file.checksums}
        published = checksums.published(headers, file.size_bytes)
        return tuple(checksum for checksum in published if checksum.algorithm not in known)

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source."""
        code = error_code(status, body)
        where = self._where(file.key)
        if code in SKEWED:
            ahead = clock_error(headers)
            if ahead is not None and abs(ahead) > SKEW_MAX:
                return too_skewed(where, ahead)
        if code == "AccessDenied" and self._reads_without_version(file):
            return CredentialsExpired(f"{where}: may not be read by its version, only as it is")
        self._access.doubt(code)
        found = from_code(code, where, status=status, after_s=retry_after_s(headers))
        if self._access.anonymous and isinstance(found, CredentialsExpired) and code in SKEWED:
            return SourceUnavailable(found.message)  # there is no signature to renew
        return found

    def _reads_without_version(self, file: File) -> bool:
        """Whether leaving out the version may help: reading one is a right of its own.

        It is s3:GetObjectVersion, and many a policy grants s3:GetObject alone. If-Match pins the
        object as well, until somebody replaces it.
        """
        if not file.pin.version or self._version is not None:
            return False
        now_s = monotonic()
        if self._versions_denied_s is None:
            self._versions_denied_s = now_s
        return now_s - self._versions_denied_s < VERSIONS_DENIED_S

    def _where(self, key: str) -> str:
        return shown(self._name, key)


def _accepted(path: str, head: Head, ref: Ref) -> list[_Named]:
    name = path.rpartition("/")[2]
    item = Listed(path, head.size_bytes, head.etag, head.archived)
    return [(name, item)] if ref.files.accepts(name) else []


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
