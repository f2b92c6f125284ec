"""`oci://`: artifacts and images of a registry, pinned and checked by the SHA-256 of every layer.

A tag is looked up once per resolve; everything below it is named by digests. `File.key` is a
layer's digest, followed by `#offset/size` of the layer where the file is a part of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelcache.config import OciSettings, TransferSettings
from modelcache.domain.manifests import Checksum, File, Manifest
from modelcache.domain.places import oci_name
from modelcache.domain.refs import Ref
from modelcache.errors import (
    CredentialsExpired,
    InvalidConfig,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
)
from modelcache.sources.oci.blobs import Blobs
from modelcache.sources.oci.contents import Choice, Contents, contents_of
from modelcache.sources.oci.documents import (
    ACCEPT,
    DOCUMENT_BYTES_MAX,
    ImageManifest,
    Index,
    check_document,
    parse_document,
)
from modelcache.sources.oci.layers import is_image, understand
from modelcache.sources.oci.platforms import choose, parse_platform, this_machine
from modelcache.sources.oci.refusals import is_page, refusal
from modelcache.sources.oci.registry import Registry
from modelcache.sources.source import HttpTarget
from modelcache.sources.web import answers
from modelcache.sources.web.redirects import MOVED_GOOD_FOR_S

TAG_DEFAULT: Final = "latest"
IMAGE_ROOT: Final = "models"  # where modelcars have their files
INDEXES_MAX: Final = 3  # an index may list indexes
GOOD_FOR_S: Final = 3600.0  # of a plain address


class OciSource:
    """See Source. One repository."""

    def __init__(self, origin: Ref, settings: OciSettings, transfer: TransferSettings) -> None:
        """Raises InvalidRef, InvalidConfig, SourceRefused for an unreadable ca_file."""
        name = oci_name(origin.path)
        self._origin = origin
        self._registry = Registry(
            origin.authority, settings, transfer, plain_http=origin.option("plain-http")
        )
        self._repository = self._registry.repository(name.repository)
        self._blobs = Blobs(self._registry, self._repository)
        self._reference = name.digest or name.tag or TAG_DEFAULT
        if option := origin.option("platform"):
            self._platform = parse_platform(option, InvalidRef, "option 'platform'")
        elif settings.platform:
            self._platform = parse_platform(settings.platform, InvalidConfig, "oci.platform")
        else:
            self._platform = this_machine()
        self._below = origin.option("path")

    # Resolving

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. Reads the manifest, and of tar layers the headers."""
        try:
            found = self._manifest()
            where = self._where(self._reference)
            below = self._below
            if below is None:
                below = IMAGE_ROOT if is_image(found) else ""
            choice = Choice(below.strip("/"), ref.files)
            contents = contents_of(understand(found, where), choice, self._blobs, where)
        finally:
            self._registry.close()
        self._check_any(contents, choice)
        return Manifest.of(
            str(self._origin),
            contents.files,
            archives=contents.archives,
            assemblies=contents.assemblies,
        )

    def _check_any(self, contents: Contents, choice: Choice) -> None:
        if contents.files or contents.archives:
            return
        where = self._where(self._reference)
        if choice.below and not contents.any_below:
            raise NotFound(f"{where} has neither a file nor a folder {choice.below[:200]!r}")
        raise NotFound(f"{where} has no file that the ref's filter accepts")

    def _manifest(self) -> ImageManifest:
        """The manifest that the ref means, through indexes."""
        reference = self._reference
        for _ in range(INDEXES_MAX):
            where = self._where(reference)
            document = self._document(reference, where)
            if isinstance(document, ImageManifest):
                return document
            reference = choose(document, self._platform, where).digest
        raise SourceRefused(
            f"{self._where(self._reference)} is an index of indexes, more than {INDEXES_MAX} deep"
        )

    def _document(self, reference: str, where: str) -> ImageManifest | Index:
        reply = self._registry.request(
            "GET",
            f"/v2/{self._repository}/manifests/{reference}",
            repository=self._repository,
            headers={"Accept": ACCEPT},
            body_bytes_max=DOCUMENT_BYTES_MAX,
        )
        if reply.status != 200:  # noqa: PLR2004 - nothing else carries a manifest
            raise self._refused(where, reply.status, reply.headers, reply.body)
        if reply.too_long:
            raise SourceRefused(
                f"{where}: the manifest is larger than {DOCUMENT_BYTES_MAX >> 20} MiB"
            )
        asked = reference if ":" in reference else None
        if not is_page(reply.headers):
            check_document(where, asked, reply.headers.get("docker-content-digest", ""), reply.body)
        return parse_document(where, reply.headers, reply.body)

    # Reading

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source. A fresh one is asked for at the registry, which renews the token as well."""
        digest, window = _of_key(file.key)
        address = self._blobs.locate(digest, file.path, fresh=fresh)
        headers = self._registry.headers_for(address, self._repository)
        good_for_s = GOOD_FOR_S
        if not self._registry.owns(address):
            good_for_s = MOVED_GOOD_FOR_S
        elif (token_s := self._registry.good_for_s(self._repository)) is not None:
            good_for_s = token_s
        return HttpTarget(
            address.host,
            address.port,
            address.tls,
            address.path,
            headers,
            good_for_s,
            self._registry.ca_file,
            self._registry.proxy(address),
            window,
        )

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. A layer is named by its content, which is hashed; this only fails earlier."""
        where = self._blobs.where(file.path)
        if answers.is_encoded(headers):
            raise SourceRefused(
                f"{where} was sent compressed although it was not asked for; a proxy or front end "
                "before the registry must leave layers as they are"
            )
        digest, _ = _of_key(file.key)
        published = headers.get("docker-content-digest", "")
        if published.startswith("sha256:") and published != digest:
            raise OriginChanged(f"{where}: the registry sent another layer than it was asked for")

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source. The digest is all there is, and it stands in the manifest."""
        del file, headers
        return ()

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source. Tokens, and where layers lead, expire in the middle of pulls."""
        where = self._blobs.where(file.path)
        digest, _ = _of_key(file.key)
        if status in answers.REDIRECTS and headers.get("location"):
            self._blobs.expect_redirects()
            return CredentialsExpired(f"{where} redirects; following it")
        if self._blobs.has_expired(digest, status):
            return CredentialsExpired(f"{where}: the address it redirected to has expired")
        if status == 401:  # noqa: PLR2004
            return CredentialsExpired(f"{where}: the registry wants another token")
        return self._refused(where, status, headers, body)

    def _refused(
        self, where: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        return refusal(
            where,
            status,
            headers,
            body,
            registry=self._registry.name,
            given=self._registry.has_credential(self._repository),
        )

    def _where(self, reference: str) -> str:
        mark, shown = ("@", reference[:19] + "…") if ":" in reference else (":", reference)
        return f"{self._registry.name}/{self._repository}{mark}{shown}"


def _of_key(key: str) -> tuple[str, tuple[int, int] | None]:
    """The layer's digest and, for a file inside of it, its offset and the layer's size."""
    digest, mark, place = key.partition("#")
    if not mark:
        return digest, None
    offset, _, size_bytes = place.partition("/")
    return digest, (int(offset), int(size_bytes))
