"""What resolving asks a bucket for: keys below a prefix, the state of one object, its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError

from modelcache.errors import ModelcacheError, NotFound, SourceRefused
from modelcache.sources.s3.access import Access
from modelcache.sources.s3.listing import ARCHIVES, Listed, list_objects, quoted
from modelcache.sources.s3.refusals import shown, translate, translating

PARTS_PER_PAGE: Final = 1000  # S3's own maximum; an object has at most 10,000
_NO_DOCUMENT: Final = frozenset({"400", "403"})  # what HEAD makes of an error: a bare status


@dataclass(frozen=True, slots=True)
class Head:
    """One state of one object. headers: of the answer, lower-case names."""

    size_bytes: int
    etag: str
    version: str | None
    archived: bool
    headers: Mapping[str, str]


class Bucket:
    """Requests to one bucket, with botocore's errors translated. Thread-safe."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def objects(self, prefix: str) -> Iterator[Listed]:
        """Every object below `prefix`. Raises as Source.resolve does."""
        where = shown(self._access.bucket, prefix)
        return list_objects(lambda token: self._access.list_page(prefix, token), where)

    def head(self, key: str, version: str | None = None) -> Head:
        """The object's present state, or that of a version. Raises as Source.resolve does."""
        where = shown(self._access.bucket, key)
        try:
            with translating(where):
                headers = self._head(key, version)
        except NotFound as error:
            if version is None:
                raise
            raise NotFound(
                f"{where}: there is no such object, or no version {version[:80]!r} of it"
            ) from error
        except ModelcacheError as error:
            raise self._explained(error, key, version) from error
        size = headers.get("content-length", "")
        etag = quoted(headers.get("etag", ""))
        if not size.isdecimal() or not etag:
            raise SourceRefused(f"{where}: the server tells no size or no ETag, so it is not S3")
        found = headers.get("x-amz-version-id")
        return Head(
            int(size), etag, found if found != "null" else None, _archived(headers), headers
        )

    def parts(self, key: str, version: str | None) -> list[dict[str, Any]]:
        """The parts of a multipart object; none where the server or our rights do not tell."""
        more: dict[str, Any] = {"VersionId": version} if version else {}
        parts: list[dict[str, Any]] = []
        with translating(shown(self._access.bucket, key)):
            while True:
                try:
                    answer = self._access.client.get_object_attributes(
                        Bucket=self._access.bucket,
                        Key=key,
                        ObjectAttributes=["ObjectParts"],
                        MaxParts=PARTS_PER_PAGE,
                        **more,
                        **self._access.extra,
                    )
                except ClientError as error:
                    if _unsupported(error):
                        return []
                    raise
                page = answer.get("ObjectParts", {})
                parts.extend(page.get("Parts", ()))
                following = int(page.get("NextPartNumberMarker") or 0)
                if not page.get("IsTruncated") or following <= more.get("PartNumberMarker", 0):
                    return parts
                more["PartNumberMarker"] = following

    def _head(self, key: str, version: str | None) -> Mapping[str, str]:
        more = {"VersionId": version} if version else {}
        answer = self._access.client.head_object(
            Bucket=self._access.bucket,
            Key=key,
            ChecksumMode="ENABLED",
            **more,
            **self._access.extra,
        )
        headers: Mapping[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
        return headers

    def _explained(self, error: ModelcacheError, key: str, version: str | None) -> ModelcacheError:
        """Why a HEAD was refused: only a body tells, so ask by a listing."""
        cause = error.__cause__
        if not isinstance(cause, ClientError) or _code(cause) not in _NO_DOCUMENT:
            return error
        where = shown(self._access.bucket, key)
        try:
            self._access.client.list_objects_v2(
                Bucket=self._access.bucket, Prefix=key, MaxKeys=1, **self._access.extra
            )
        except ClientError as reason:
            return translate(reason, where)
        if version and _code(cause) == "400":
            return NotFound(f"{where}: there is no version {version[:80]!r} of it")
        return error


def _archived(headers: Mapping[str, str]) -> bool:
    """Whether the object must be restored before it can be read; restored copies have a date."""
    if 'ongoing-request="false"' in headers.get("x-amz-restore", ""):
        return False
    return "x-amz-archive-status" in headers or headers.get("x-amz-storage-class") in ARCHIVES


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _unsupported(error: ClientError) -> bool:
    """Whether S3 said no to the question rather than to this moment.

    The model id hangs on the answer, so what may be otherwise in a minute must not pass for a no.
    500 counts as one: servers without this request say so, and botocore has repeated it.
    """
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status in {400, 403, 405, 500, 501}
