"""Manifests into a registry: what a tag shows now, and showing something else under it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from modelcache.domain.places import Scheme, oci_name
from modelcache.domain.refs import Ref
from modelcache.errors import DigestMismatch, InvalidRef, SourceRefused
from modelcache.sources.oci.documents import ACCEPT, DOCUMENT_BYTES_MAX
from modelcache.sources.oci.outgoing import digest_of
from modelcache.sources.oci.packing import Document
from modelcache.sources.oci.uploads import BlobPusher

TAG_DEFAULT: Final = "latest"


@dataclass(frozen=True, slots=True)
class Shown:
    """A manifest that a registry shows. body: empty where it is too long to be one."""

    digest: str
    body: bytes = field(repr=False)


def target_of(ref: Ref) -> tuple[str, str]:
    """Repository and tag to push to. Raises InvalidRef for a ref that names something else."""
    if ref.scheme is not Scheme.OCI:
        raise InvalidRef(
            f"{ref.scheme}:// cannot be pushed to; write oci://registry/repository:tag"
        )
    name = oci_name(ref.path)
    if name.digest:
        raise InvalidRef("a digest is what a push results in; write oci://registry/repository:tag")
    if ref.files.include or ref.files.exclude:
        raise InvalidRef("the ref to push to takes no filter; use --include and --exclude")
    foreign = [option for option, _ in ref.options if option != "plain-http"]
    if foreign:
        raise InvalidRef(f"option {foreign[0]!r} says what to pull; it means nothing to a push")
    return name.repository, name.tag or TAG_DEFAULT


def shown_under(pusher: BlobPusher, tag: str) -> Shown | None:
    """What the tag shows now; None where there is nothing, or where it may not be read.

    What may be done here is told by the uploads that follow. Raises as `Registry.request`.
    """
    path = f"/v2/{pusher.repository}/manifests/{tag}"
    reply = pusher.ask("GET", path, headers={"Accept": ACCEPT})
    if reply.status != 200:  # noqa: PLR2004
        return None
    if reply.too_long:
        return Shown(reply.headers.get("docker-content-digest", "unknown"), b"")
    return Shown(digest_of(reply.body), reply.body)


def check_room(document: Document, where: str) -> None:
    """Raises SourceRefused for a manifest that registries do not take."""
    if len(document.data) > DOCUMENT_BYTES_MAX:
        raise SourceRefused(
            f"{where} would have a manifest of {len(document.data)} bytes, and registries take "
            f"{DOCUMENT_BYTES_MAX}: there are too many files; leave some out with --exclude"
        )


def publish(pusher: BlobPusher, tag: str, document: Document) -> None:
    """Show the manifest under the tag. Its blobs must be there.

    Raises DigestMismatch where the registry then shows another one, and what `denial` gives.
    """
    where = f"{pusher.registry.name}/{pusher.repository}:{tag}"
    path = f"/v2/{pusher.repository}/manifests/{tag}"
    headers = {"Content-Type": document.media_type}
    reply = pusher.ask("PUT", path, headers=headers, data=document.data)
    if reply.status not in {200, 201, 202}:
        raise pusher.denied(f"show {where}", reply)
    pusher.check(reply, document.digest)
    shown = _digest_under(pusher, path)
    if shown != document.digest:
        raise DigestMismatch(
            f"{where} shows {shown or 'nothing'} after {document.digest} was pushed; if nobody "
            "else pushes to this tag, the registry or something before it is at fault"
        )


def _digest_under(pusher: BlobPusher, path: str) -> str | None:
    reply = pusher.ask("HEAD", path, headers={"Accept": ACCEPT})
    named = reply.headers.get("docker-content-digest")
    if reply.status == 200 and named:  # noqa: PLR2004
        return named
    reply = pusher.ask("GET", path, headers={"Accept": ACCEPT})  # not all say it to a HEAD
    return digest_of(reply.body) if reply.status == 200 else None  # noqa: PLR2004
