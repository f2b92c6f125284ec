"""`hf://`: a repository at a commit; every file by the digest that the hub lists for it.

LFS and Xet files are named by their SHA-256, and so are one blob with the same weights from
anywhere; small files by git's id of their content, so that two commits share what did not change.
The hub redirects to addresses that are signed, for GET alone, and expire: they are taken from the
redirect without being asked themselves, and found anew when they grow old. `File.key` is commit and
path; hub and repository are those of the origin that the source was opened for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from modelcache.config import BLOCK_BYTES, HfSettings, TransferSettings
from modelcache.domain.hub import HubKey, is_commit
from modelcache.domain.manifests import Algorithm, Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.paths import check_path
from modelcache.domain.places import hub_name
from modelcache.domain.refs import Ref
from modelcache.errors import (
    CredentialsExpired,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
)
from modelcache.sources.hf.access import Access
from modelcache.sources.hf.listing import REVISION_DEFAULT, Listed, Listing
from modelcache.sources.hf.refusals import refused
from modelcache.sources.hf.selection import Candidate, duplicates, note
from modelcache.sources.hf.signatures import good_for_s
from modelcache.sources.source import HttpTarget
from modelcache.sources.web import answers
from modelcache.sources.web.address import Address
from modelcache.sources.web.asking import REDIRECTS_MAX, Answer, Asker, redirected
from modelcache.sources.web.redirects import Redirects

GOOD_FOR_S: Final = 3600.0  # nothing in the hub's own addresses expires
_OTHER_KINDS: Final = frozenset({"buckets", "datasets", "kernels", "spaces"})  # of repositories
_OK: Final = frozenset({200, 206})


class HfSource:
    """See Source. One repository of one hub."""

    def __init__(self, origin: Ref, settings: HfSettings, transfer: TransferSettings) -> None:
        """Raises InvalidRef, InvalidConfig, NoCredentials."""
        self._origin = origin
        self._name = hub_name(origin.authority, origin.path)
        if origin.authority in _OTHER_KINDS and "/" in origin.path:
            raise InvalidRef(f"{origin} is one of the hub's {origin.authority}, and not a model")
        self._revision = _revision(origin, self._name.revision)
        self._access = Access(origin, settings, self._name.repository)
        self._asker = Asker(
            self._access.headers, transfer, self._access.ca_file, ca_setting="hf.ca_file"
        )
        self._listing = Listing(self._access, self._asker)
        self._redirects = Redirects()

    # Resolving

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. A file of exactly this path comes before a folder of this name.

        Unless the ref's filter or `all-files` says what is wanted, weights that are there twice are
        taken once; the manifest's notes say what was left out.
        """
        try:
            commit = self._revision
            if not is_commit(commit):
                commit = self._listing.commit(commit)
            named = self._named(commit)
            named = [(path, item) for path, item in named if ref.files.accepts(path)]
            notes: list[str] = []
            if not ref.files.include and not ref.flag("all-files"):
                named, notes = _without_duplicates(named)
            if not named:
                raise NotFound(f"{self._access.page} has no file that the ref's filter accepts")
            files = self._ranged([_file(path, commit, item) for path, item in named])
            return Manifest.of(str(self._origin), files, notes=notes)
        finally:
            self._asker.close()

    def _named(self, commit: str) -> list[tuple[str, Listed]]:
        """What the ref's path names, by paths relative to it."""
        path = self._name.path
        folder = path.rstrip("/")
        if folder and not path.endswith("/"):
            check_path(folder)
            one = self._listing.at(commit, folder)
            if one is not None:
                return [(folder.rpartition("/")[2], one)]
        prefix = f"{folder}/" if folder else ""
        listed = self._listing.below(commit, folder)
        return [
            (item.path.removeprefix(prefix), item)
            for item in listed
            if item.path.startswith(prefix)  # what else a hub lists is not below the folder
        ]

    def _ranged(self, files: Sequence[File]) -> list[File]:
        """Learn from the largest file of each kind whether a mirror serves ranges; the hub does."""
        found = list(files)
        if self._access.is_public_hub:
            return found
        for algorithm in (Algorithm.SHA256, Algorithm.GIT_SHA1):
            alike = [file for file in found if file.checksums[0].algorithm is algorithm]
            largest = max(alike, key=lambda file: file.size_bytes, default=None)
            if largest is None or largest.size_bytes <= BLOCK_BYTES:
                continue  # read in one GET
            if not self._serves_ranges(largest):
                found = [replace(file, ranges=file.ranges and file not in alike) for file in found]
        return found

    def _serves_ranges(self, file: File) -> bool:
        """Ask for one byte. The address is not kept: it is found when the file is read."""
        address, _ = self._follow(file)
        answer = self._asker.ask("GET", address, {"Range": "bytes=0-0"})
        if answer.status not in _OK:
            raise refused(self._access, _key(file).path, answer.status, answer.headers)
        return answers.total_of(answer.headers) is not None

    # Reading

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source. Small files are asked of the hub itself until it is seen to redirect them."""
        key = file.key
        asked = self._redirects.target(key)
        if fresh or self._redirects.is_due(key) or (asked is None and _is_large(file)):
            asked, seconds = self._follow(file)
            self._redirects.remember(key, asked, good_for_s=seconds)
        if asked is None:
            return self._target(self._access.file(_key(file)), GOOD_FOR_S)
        return self._target(asked, self._redirects.good_for_s(key))

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. What a CDN says says nothing: there the digest of the bytes decides.

        Raises SourceRefused for a compressed body, whose bytes are not the file.
        """
        if answers.is_encoded(headers):
            raise SourceRefused(
                f"{self._shown(file)} is sent compressed although that was not asked for"
            )
        address = self._redirects.target(file.key)
        if address is None or self._access.owns(address):
            self._check_hub(file, headers)

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source. The listing has said it all."""
        del file, headers
        return ()

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source. Where a redirect led may have expired: CredentialsExpired finds it anew."""
        del body
        if status in answers.REDIRECTS and headers.get("location"):
            self._redirects.expect()
            return CredentialsExpired(f"{self._shown(file)} redirects; following it")
        if self._redirects.has_expired(file.key, status):
            return CredentialsExpired(f"{self._shown(file)}: where it redirected to has expired")
        return refused(self._access, _key(file).path, status, headers, revision=_key(file).commit)

    # Locating

    def _follow(self, file: File) -> tuple[Address, float | None]:
        """Where a file's bytes are, and for how many seconds that is good, where it tells.

        A redirect that describes the file, or leads away from the hub, is the last: what it leads
        to may be signed for GET, and a HEAD would be refused.
        """
        address = self._access.file(_key(file))
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._asker.ask("HEAD", address, follow=False)
            self._check_answer(file, answer)
            location = answer.headers.get("location")
            if answer.status not in answers.REDIRECTS or not location:
                return address, GOOD_FOR_S
            address = redirected(address, location)
            if not self._access.owns(address) or "x-linked-etag" in answer.headers:
                return address, _seconds(address, answer.headers)
        raise SourceRefused(f"{self._shown(file)} redirects more than {REDIRECTS_MAX} times")

    def _check_answer(self, file: File, answer: Answer) -> None:
        """Raises what a refusal means, and OriginChanged where the hub now has something else."""
        if answer.status != 200 and answer.status not in answers.REDIRECTS:  # noqa: PLR2004
            key = _key(file)
            raise refused(
                self._access, key.path, answer.status, answer.headers, revision=key.commit
            )
        linked = answer.headers.get("x-linked-size")
        if linked is not None and linked != str(file.size_bytes):
            raise self._changed(file)
        if "x-linked-etag" in answer.headers or answer.status == 200:  # noqa: PLR2004
            self._check_hub(file, answer.headers)

    def _check_hub(self, file: File, headers: Mapping[str, str]) -> None:
        """Compare what the hub itself says of a file with what it listed.

        A mirror that serves large files without a CDN may have tags of its own for them.
        """
        etag = headers.get("x-linked-etag")
        if etag is None and not _is_large(file):
            etag = headers.get("etag")
        if etag is not None and etag.removeprefix("W/").strip('"') != file.pin.version:
            raise self._changed(file)
        commit = headers.get("x-repo-commit")
        if commit is not None and commit != _key(file).commit:
            raise self._changed(file)

    def _changed(self, file: File) -> OriginChanged:
        return OriginChanged(
            f"{self._shown(file)} is not what the hub listed; pull again to resolve it anew"
        )

    def _shown(self, file: File) -> str:
        return f"{self._access.page}/{_key(file).path}"

    def _target(self, address: Address, seconds: float) -> HttpTarget:
        return HttpTarget(
            address.host,
            address.port,
            address.tls,
            address.path,
            self._access.headers(address),
            good_for_s=seconds,
            ca_file=self._access.ca_file,
            proxy=self._asker.proxy(address),
        )


def _revision(origin: Ref, named: str | None) -> str:
    option = origin.option("revision")
    if named and option and named != option:
        raise InvalidRef(
            f"the ref names two revisions, {named[:80]!r} and {option[:80]!r}; leave one out"
        )
    return named or option or REVISION_DEFAULT


def _file(path: str, commit: str, item: Listed) -> File:
    check_path(item.path)  # it becomes part of a URL
    pin = Pin(version=item.checksum.value)
    checksums = (item.checksum,)
    blob = blob_id(
        origin="git",
        key=item.checksum.value,
        size_bytes=item.size_bytes,
        pin=pin,
        checksums=checksums,
    )
    return File(path, item.size_bytes, str(HubKey(commit, item.path)), blob, pin, checksums)


def _key(file: File) -> HubKey:
    key = HubKey.parse(file.key)
    if key is None:
        raise OriginChanged(f"{file.path} was not listed by a hub; pull again to resolve it anew")
    return key


def _is_large(file: File) -> bool:
    return any(checksum.algorithm is Algorithm.SHA256 for checksum in file.checksums)


def _without_duplicates(
    named: Sequence[tuple[str, Listed]],
) -> tuple[list[tuple[str, Listed]], list[str]]:
    left_out = duplicates([Candidate(path, item.size_bytes) for path, item in named])
    if not left_out:
        return list(named), []
    gone = {file.path for file in left_out}
    return [(path, item) for path, item in named if path not in gone], [note(left_out)]


def _seconds(address: Address, headers: Mapping[str, str]) -> float | None:
    """By the hub's own clock, which signed the address."""
    now = answers.http_date(headers.get("date", "")) or datetime.now(UTC)
    return good_for_s(address.path.partition("?")[2], now)
