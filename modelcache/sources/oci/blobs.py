"""Layers at a registry: where they lie, whether ranges of them can be had, and short reads.

Many registries answer a layer with a redirect to a signed address in an object store. It is kept
for as long as it can be relied on, and never sees the registry's credentials. What is read here is
what resolving needs: headers of tars, small members, magic numbers.
"""

from __future__ import annotations

import re
from typing import Final

from modelcache.errors import ModelcacheError, SourceRefused, SourceUnavailable
from modelcache.sources.oci.documents import Descriptor
from modelcache.sources.oci.refusals import is_page, refusal
from modelcache.sources.oci.registry import Registry
from modelcache.sources.oci.wire import Reply
from modelcache.sources.web import answers
from modelcache.sources.web.address import Address
from modelcache.sources.web.redirects import Redirects

READ_BYTES_MAX: Final = 4 << 20  # of one read here
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoRanges(Exception):
    """The registry sends whole layers only; first_bytes of one have arrived all the same."""

    def __init__(self, first_bytes: bytes) -> None:
        super().__init__()
        self.first_bytes = first_bytes


class Blobs:
    """The layers of one repository. Safe to use from several threads."""

    def __init__(self, registry: Registry, repository: str) -> None:
        """repository: as the registry's API knows it."""
        self._registry = registry
        self._repository = repository
        self._redirects = Redirects()
        self._ranges: bool | None = None

    def where(self, name: str) -> str:
        """A layer or file for messages."""
        return f"{name} of {self._registry.name}/{self._repository}"

    def own_address(self, digest: str) -> Address:
        """Where the registry itself has a layer."""
        return self._registry.address(f"/v2/{self._repository}/blobs/{digest}")

    def locate(self, digest: str, name: str, *, fresh: bool) -> Address:
        """Where to send requests for a layer now. fresh: what was known has been refused.

        name: for messages. Raises as `read`.
        """
        own = self.own_address(digest)
        if fresh or self._redirects.is_due(own.url):
            reply = self._ask(own, 0, 1)
            if reply.status not in {200, 206, 416}:  # an empty layer has no first byte
                raise self.refused(name, reply)
            self._redirects.remember(own.url, reply.address)
        return self._redirects.target(own.url) or own

    def read(self, layer: Descriptor, start: int, end: int) -> bytes:
        """Bytes of a layer, [start, end). Raises NoRanges, and what a refusal means.

        SourceRefused where the layer has another size than its manifest says.
        """
        assert end - start <= READ_BYTES_MAX, "larger reads are the engine's"  # noqa: S101
        own = self.own_address(layer.digest)
        known = None if self._redirects.is_due(own.url) else self._redirects.target(own.url)
        reply = self._ask(known or own, start, end)
        if known is not None and self._redirects.has_expired(own.url, reply.status):
            reply = self._ask(own, start, end)
        if reply.status not in {200, 206}:
            raise self.refused(layer.short, reply)
        self._redirects.remember(own.url, reply.address)
        return self._checked(layer, reply, start, end)

    def has_ranges(self, layer: Descriptor) -> bool:
        """Whether ranges can be had, found out by one byte of the first layer asked about."""
        if self._ranges is None and layer.size_bytes:
            try:
                self.read(layer, 0, 1)
            except NoRanges:
                self._ranges = False
        return self._ranges is not False

    def expect_redirects(self) -> None:
        """A layer was redirected although none had been."""
        self._redirects.expect()

    def has_expired(self, digest: str, status: int) -> bool:
        """Whether a status is that of an address which a layer led to and which has grown old."""
        return self._redirects.has_expired(self.own_address(digest).url, status)

    def refused(self, name: str, reply: Reply) -> ModelcacheError:
        """What an unsuccessful answer means."""
        return refusal(
            self.where(name),
            reply.status,
            reply.headers,
            reply.body,
            registry=self._registry.name,
            given=self._registry.has_credential(self._repository),
        )

    def _ask(self, address: Address, start: int, end: int) -> Reply:
        return self._registry.request(
            "GET",
            address.url,
            repository=self._repository,
            headers={"Range": f"bytes={start}-{end - 1}"},
            body_bytes_max=max(end - start, 64 << 10),  # an error document is a little longer
        )

    def _checked(self, layer: Descriptor, reply: Reply, start: int, end: int) -> bytes:
        where = self.where(layer.short)
        if is_page(reply.headers) and layer.media_type != "text/html":
            raise SourceRefused(f"{where}: the answer is a web page instead of the layer")
        match = _RANGE.fullmatch(reply.headers.get("content-range", "").strip())
        if match is None:
            self._check_size(layer, answers.length_of(reply.headers))
            if start == 0 and end == layer.size_bytes and len(reply.body) == end:
                return reply.body
            raise NoRanges(reply.body)
        self._check_size(layer, int(match[3]))
        self._ranges = True
        if (int(match[1]), int(match[2])) != (start, end - 1) or len(reply.body) != end - start:
            raise SourceUnavailable(f"{where}: another range was sent than was asked for")
        return reply.body

    def _check_size(self, layer: Descriptor, found: int | None) -> None:
        if found is not None and found != layer.size_bytes:
            raise SourceRefused(
                f"{self.where(layer.short)} has {found} bytes, its manifest says "
                f"{layer.size_bytes}; push the model again"
            )
