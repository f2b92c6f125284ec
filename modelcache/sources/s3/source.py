"""The S3 source: botocore finds credentials, endpoints and regions, lists, heads and signs.

Small objects are pinned by the listing's ETag and bring their checksum with the GET; larger ones
are asked for one by one (HEAD), because ranged reads carry no checksum of the whole. The signature
of a GET does not cover its Range header, so one signature serves all ranges of an object.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import botocore.session
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from modelcache.config import BLOCK_BYTES, S3Settings, TransferSettings
from modelcache.domain.manifests import Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.refs import Ref
from modelcache.errors import InvalidRef, ModelcacheError, NotFound, OriginChanged, SourceRefused
from modelcache.sources.proxies import proxy_for
from modelcache.sources.s3 import checksums
from modelcache.sources.s3.listing import ARCHIVED, Listed, Lister
from modelcache.sources.s3.refusals import error_code, from_code, retry_after_s, translate
from modelcache.sources.source import HttpTarget

HEADS_AT_ONCE: Final = 16
GOOD_FOR_S: Final = 600.0  # S3 accepts a signature for 15 minutes; the clocks may disagree
_REGION_DEFAULT: Final = "us-east-1"  # what S3-compatible servers expect when nobody says
_REGION_HEADER: Final = "x-amz-bucket-region"


class S3Source:
    """See Source. One bucket at one endpoint, with one set of credentials."""

    def __init__(self, origin: Ref, settings: S3Settings, transfer: TransferSettings) -> None:
        """Raises InvalidConfig for a profile that does not exist, InvalidRef, SourceRefused."""
        self._origin = origin
        self._bucket = origin.authority
        self._settings = settings
        self._transfer = transfer
        self._endpoint = origin.option("endpoint") or settings.endpoint or None
        self._anonymous = origin.flag("anonymous") or settings.anonymous
        self._guard = threading.Lock()
        pays = origin.flag("requester-pays") or settings.requester_pays
        self._extra: dict[str, str] = {"RequestPayer": "requester"} if pays else {}
        try:
            profile = origin.option("profile") or settings.profile or None
            self._session = botocore.session.Session(profile=profile)
            self._credentials = None if self._anonymous else self._session.get_credentials()
            self._use_region(origin.option("region") or settings.region or None)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise self._translated(error) from error

    def resolve(self, ref: Ref) -> Manifest:
        """See Source.

        A path names the objects below it (`path/…`); where there are none, the object itself.
        """
        path = ref.path.rstrip("/")
        prefix = f"{path}/" if path else ""
        version = ref.option("version-id")
        try:
            if self._credentials is None and not self._anonymous:
                raise NoCredentialsError
            found = [] if version else self._list(prefix, ref)
            if not found and path and not ref.path.endswith("/"):
                found = self._single(path, version, ref)
            # Only what needs a request goes to the threads: handing over 10,000 that do not
            # costs more than listing them.
            asked = [pair for pair in found if _needs_head(pair[1], version)]
            files = [
                self._file(name, item, version)
                for name, item in found
                if not _needs_head(item, version)
            ]
            if asked:
                with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
                    files += pool.map(lambda pair: self._file(pair[0], pair[1], version), asked)
        except (BotoCoreError, ClientError) as error:
            raise self._translated(error) from error
        if not files:
            raise NotFound(f"s3://{self._bucket}/{ref.path} has no object the ref's filter accepts")
        return Manifest.of(str(self._origin), files)

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """See Source."""
        if fresh:
            self._learn_region()
        base = self._base
        path = base.path + quote(file.key, safe="/~")
        if file.pin.version:
            path += f"?versionId={quote(file.pin.version, safe='')}"
        request = AWSRequest("GET", self._url + path, headers=self._conditions(file))
        if not self._anonymous:
            request.context["payload_signing_enabled"] = False
            try:
                self._signer().add_auth(request)
            except BotoCoreError as error:
                raise self._translated(error) from error
        return HttpTarget(
            base.host,
            base.port,
            base.tls,
            path,
            tuple(request.headers.items()),
            GOOD_FOR_S,
            base.ca_file,
            base.proxy,
        )

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. Some servers ignore If-Match, so the ETag is compared in any case."""
        etag, version = headers.get("etag"), headers.get("x-amz-version-id")
        changed = etag is not None and _bare(etag) != _bare(file.pin.etag or "")
        if changed or (file.pin.version and version and version != file.pin.version):
            raise OriginChanged(f"{self._where(file.key)} was changed since it was listed")

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source."""
        del file
        return checksums.published(headers)

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source."""
        code = error_code(status, body)
        return from_code(code, self._where(file.key), status=status, after_s=retry_after_s(headers))

    # Resolving

    def _list(self, prefix: str, ref: Ref) -> list[tuple[str, Listed]]:
        found = []
        for item in self._lister.list(self._bucket, prefix, self._extra):
            name = item.key[len(prefix) :]
            if item.key.endswith("/") and not item.size_bytes:
                continue  # a directory marker, as consoles make them
            if ref.files.accepts(name):
                found.append((name, item))
        return found

    def _single(self, key: str, version: str | None, ref: Ref) -> list[tuple[str, Listed]]:
        name = key.rpartition("/")[2]
        if not ref.files.accepts(name):
            return []
        try:
            head = self._head(key, version)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:  # noqa: PLR2004
                raise NotFound(
                    f"s3://{self._bucket}/{key}: neither an object nor a prefix with objects"
                ) from error
            raise
        restored = 'ongoing-request="false"' in head.get("Restore", "")
        archived = head.get("StorageClass") in ARCHIVED and not restored
        return [(name, Listed(key, int(head["ContentLength"]), head["ETag"], archived))]

    def _file(self, name: str, item: Listed, version: str | None) -> File:
        if item.archived:
            raise SourceRefused(f"{self._where(item.key)} is archived; restore it, or exclude it")
        pin = Pin(etag=item.etag, version=version)
        published: tuple[Checksum, ...] = ()
        if _needs_head(item, version):
            head = self._head(item.key, version)
            if _bare(head["ETag"]) != _bare(item.etag):
                raise OriginChanged(f"{self._where(item.key)} is being replaced; pull again")
            headers = head["ResponseMetadata"]["HTTPHeaders"]
            found = headers.get("x-amz-version-id")
            pin = Pin(etag=item.etag, version=found if found != "null" else None)
            published = self._published(item.key, pin, headers)
        blob = blob_id(
            origin=self._identity(),
            key=item.key,
            size_bytes=item.size_bytes,
            pin=pin,
            checksums=published,
        )
        return File(name, item.size_bytes, item.key, blob, pin, published)

    def _head(self, key: str, version: str | None) -> dict[str, Any]:
        more = {"VersionId": version} if version else {}
        head: dict[str, Any] = self._client.head_object(
            Bucket=self._bucket, Key=key, ChecksumMode="ENABLED", **more, **self._extra
        )
        return head

    def _published(self, key: str, pin: Pin, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        whole = checksums.published(headers)
        parted = checksums.composite(headers)
        if parted is None:
            return whole
        checksum = checksums.with_parts(*parted, self._parts(key, pin))
        return (checksum, *whole) if checksum else whole

    def _parts(self, key: str, pin: Pin) -> list[dict[str, Any]]:
        """The parts of a multipart object; none where the server or our rights do not tell."""
        more: dict[str, Any] = {"VersionId": pin.version} if pin.version else {}
        parts: list[dict[str, Any]] = []
        marker = 0
        try:
            while True:
                page = self._client.get_object_attributes(
                    Bucket=self._bucket,
                    Key=key,
                    ObjectAttributes=["ObjectParts"],
                    PartNumberMarker=marker,
                    **more,
                    **self._extra,
                ).get("ObjectParts", {})
                parts.extend(page.get("Parts", ()))
                if not page.get("IsTruncated"):
                    return parts
                marker = int(page["NextPartNumberMarker"])
        except ClientError:
            return []  # needs a permission of its own; the object is read without this check

    # Endpoints and signatures

    def _use_region(self, region: str | None) -> None:
        """Make the client, and learn from it how this bucket's URLs look."""
        style = self._origin.option("style") or self._settings.style or "auto"
        if style not in {"auto", "path", "virtual"}:
            raise InvalidRef(f"s3 style must be path or virtual, not {style!r}")
        addressing: Any = {"addressing_style": style}
        config = Config(
            connect_timeout=self._transfer.connect_timeout_s,
            read_timeout=self._transfer.stall_timeout_s,
            max_pool_connections=HEADS_AT_ONCE,
            retries={"mode": "standard", "max_attempts": 4},
            s3=addressing,
            signature_version=UNSIGNED if self._anonymous else "s3v4",
        )
        region = region or self._session.get_config_variable("region") or _REGION_DEFAULT
        client: Any = self._session.create_client(
            "s3",
            region_name=region,
            endpoint_url=self._endpoint,
            verify=self._settings.ca_file or None,
            config=config,
        )
        self._client = client
        self._lister = Lister(client)
        sample: str = client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": "k"}
        )
        parts = urlsplit(sample)
        # The credential scope of the sample names the region that the endpoint rules chose.
        scope = parse_qs(parts.query).get("X-Amz-Credential", [""])[0].split("/")
        self._region = scope[2] if len(scope) == 5 else region  # noqa: PLR2004 - id/date/region/…
        self._url = f"{parts.scheme}://{parts.netloc}"
        tls = parts.scheme == "https"
        self._base = HttpTarget(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            tls,
            parts.path.removesuffix("k"),
            (),
            GOOD_FOR_S,
            self._settings.ca_file or None,
            proxy_for(parts),
        )

    def _learn_region(self) -> None:
        """Ask where the bucket lies, after a request was sent to the wrong region."""
        if self._endpoint or self._client.meta.endpoint_url.find("amazonaws.com") < 0:
            return
        try:
            headers = self._client.head_bucket(Bucket=self._bucket)["ResponseMetadata"]
        except ClientError as error:
            headers = error.response.get("ResponseMetadata", {})
        except BotoCoreError as error:
            raise self._translated(error) from error
        region = headers.get("HTTPHeaders", {}).get(_REGION_HEADER)
        with self._guard:
            if region and region != self._region:
                self._use_region(region)

    def _signer(self) -> S3SigV4Auth:
        if self._credentials is None:
            raise NoCredentialsError
        return S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region)

    def _conditions(self, file: File) -> dict[str, str]:
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if file.pin.etag:
            headers["If-Match"] = file.pin.etag
        if self._extra:
            headers["x-amz-request-payer"] = "requester"
        return headers

    def _identity(self) -> str:
        """What tells this bucket from one of the same name elsewhere."""
        endpoint = self._client.meta.endpoint_url
        host = urlsplit(endpoint).netloc
        return "s3://" + self._bucket + ("" if host.endswith(".amazonaws.com") else f"@{host}")

    def _where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _translated(self, error: Exception) -> ModelcacheError:
        where = f"s3://{self._bucket}"
        if isinstance(error, BotoCoreError | ClientError):
            return translate(error, where)
        return SourceRefused(f"{where}: {error}")


def _bare(etag: str) -> str:
    return etag.strip('"')


def _needs_head(item: Listed, version: str | None) -> bool:
    """Whether the listing does not say enough: ranged reads bring no checksum with them."""
    return item.size_bytes > BLOCK_BYTES or version is not None
