"""Listings: the XML of ListObjectsV2 as objects, four fields of each, read by the C parser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

from modelcache.errors import SourceRefused, SourceUnavailable
from modelcache.sources.s3.refusals import not_s3

KEYS_MAX: Final = 1_000_000  # of one ref: 200 MB of names here, and no model; a bucket was meant
ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_ETAG: Final = re.compile(r"[\x21-\x7e]{1,256}")  # RFC 9110, section 8.8.3, less what nobody sends

Page = Callable[[str | None], bytes]


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing. etag: in quotes, or empty. archived: unless it was restored."""

    key: str
    size_bytes: int
    etag: str
    archived: bool = False


def list_objects(page: Page, where: str) -> Iterator[Listed]:
    """Every object of a listing, in the server's order.

    page: gets the page that a token stands for. Raises what it raises, SourceRefused beyond
    KEYS_MAX keys, SourceUnavailable when the listing breaks off.
    """
    seen = 0
    token: str | None = None
    while True:
        objects, following = parse_listing(page(token), where)
        yield from objects
        seen += len(objects)
        if following is None:
            return
        if following == token:
            raise SourceUnavailable(f"{where}: the listing does not get on")
        if seen >= KEYS_MAX:
            raise SourceRefused(f"{where} has over {KEYS_MAX} objects; name a model's prefix")
        token = following


def parse_listing(data: bytes, where: str) -> tuple[list[Listed], str | None]:
    """Objects of one page, and the token of the next.

    Raises SourceRefused if it is no listing, SourceUnavailable if it lacks what it promises.
    Format: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # no S3 sends one; entities can explode
        raise not_s3(where)
    try:
        root = ET.fromstring(data)  # noqa: S314 - entities are refused above
    except ET.ParseError as error:
        raise not_s3(where) from error
    space, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise not_s3(where)
    if space:
        space += "}"
    encoded = root.findtext(f"{space}EncodingType") == "url"
    try:
        objects = [_listed(item, space, encoded=encoded) for item in root.iter(f"{space}Contents")]
    except (KeyError, ValueError) as error:
        raise not_s3(where) from error
    if root.findtext(f"{space}IsTruncated") != "true":
        return objects, None
    token = root.findtext(f"{space}NextContinuationToken")
    if not token:
        raise SourceUnavailable(f"{where}: the listing says there is more, and not where")
    return objects, token


def _listed(item: ET.Element, space: str, *, encoded: bool) -> Listed:
    cut = len(space)
    fields = {child.tag[cut:]: child.text or "" for child in item}
    key = fields["Key"]
    if encoded:  # a space comes as +, a plus as %2B
        key = unquote_plus(key)
    return Listed(
        key,
        int(fields["Size"]),
        quoted(fields.get("ETag", "")),
        fields.get("StorageClass") in ARCHIVES,
    )


def quoted(etag: str) -> str:
    """An ETag as a header can carry and a signature cover it; empty if it cannot.

    Some servers list it without its quotes.
    """
    if not _ETAG.fullmatch(etag):
        return ""
    return etag if etag.endswith('"') else f'"{etag}"'
