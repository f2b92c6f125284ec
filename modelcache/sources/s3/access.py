"""The way to one bucket: credentials, endpoint, region, and GET requests signed for it.

botocore knows a great many rules about these, so it is asked: a GetObject that it has prepared and
signed shows host, path style, region and signing of all others. Credentials are botocore's whole
chain; they are read again when S3 calls them expired.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlsplit

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.httpsession import get_cert_path

from modelcache.config import S3Settings, TransferSettings
from modelcache.domain.manifests import Pin
from modelcache.domain.refs import Ref
from modelcache.errors import Forbidden, InvalidConfig, InvalidRef, SourceRefused
from modelcache.sources.s3.refusals import EXPIRED, MISPLACED, shown, translating
from modelcache.sources.s3.signing import GetSigner, Scope, reproduces, scope_of
from modelcache.sources.s3.taps import Taps
from modelcache.sources.source import HttpTarget, ProxyAddress
from modelcache.sources.web.guarding import guarded_pools
from modelcache.sources.web.proxies import proxy_for

REQUESTS_MAX: Final = 16  # at once while resolving; beyond that the interpreter is the limit
GOOD_FOR_S: Final = 600.0  # S3 accepts a signature for 15 minutes; the clocks may disagree
SESSION_GOOD_FOR_S: Final = 60.0  # S3 Express: botocore renews its sessions a minute before the end
RENEWED_S: Final = 30.0  # refusals of requests signed before a renewal trickle in for so long
REGION_DEFAULT: Final = "us-east-1"  # what S3-compatible servers expect when nobody says
ATTEMPTS_MAX: Final = 3  # of one listing request, with botocore's pauses of up to 3 s in all
_AWS_HOSTS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_KEY: Final = "k"  # of the sample request


@dataclass(frozen=True, slots=True)
class _Shape:
    """What all GETs of a bucket share. scope: None where only botocore can sign."""

    tls: bool
    host: str
    port: int
    netloc: str
    prefix: str
    proxy: ProxyAddress | None
    scope: Scope | None
    payload: str


class Access:
    """One bucket, one set of credentials. Thread-safe."""

    def __init__(self, origin: Ref, settings: S3Settings, transfer: TransferSettings) -> None:
        """Raises InvalidConfig, InvalidRef for what cannot be; NoCredentials. Sends nothing.

        Except where credentials come from a service (a role, an instance): that is asked.
        """
        self._origin = origin
        self._settings = settings
        self._transfer = transfer
        self._guard = threading.RLock()
        self._expired = self._misplaced = False
        self._renewed_s = -RENEWED_S
        self._shape: _Shape | None = None
        self.bucket = origin.authority
        self.anonymous = origin.flag("anonymous") or settings.anonymous
        pays = origin.flag("requester-pays") or settings.requester_pays
        self.extra: dict[str, str] = {"RequestPayer": "requester"} if pays else {}
        self._open()

    @property
    def identity(self) -> str:
        """What tells this bucket from one of the same name elsewhere; AWS's own need no more."""
        meta = self.client.meta
        netloc = urlsplit(meta.endpoint_url).netloc.lower()
        if not netloc.endswith(_AWS_HOSTS):
            return f"s3://{self.bucket}@{netloc}"
        return f"s3://{self.bucket}" + (f"@{meta.partition}" if meta.partition != "aws" else "")

    def target(self, key: str, pin: Pin, *, checksum: bool) -> HttpTarget:
        """A GET of the object's pinned state. checksum: ask for the checksum of a whole body."""
        shape = self._shape or self._learn()
        headers = [("host", shape.netloc)]
        if pin.etag:
            headers.append(("if-match", pin.etag))
        if checksum:
            headers.append(("x-amz-checksum-mode", "ENABLED"))
        query = f"versionId={quote(pin.version, safe='-_.~')}" if pin.version else ""
        path = shape.prefix + quote(key, safe="/~")
        good_for_s = GOOD_FOR_S
        if self.anonymous:
            if self.extra:
                headers.append(("x-amz-request-payer", "requester"))
        elif shape.scope is not None:
            self._sign(headers, path, query, shape)
        else:
            headers = self._signed_by_botocore(key, pin, checksum=checksum)
            good_for_s = SESSION_GOOD_FOR_S
        return HttpTarget(
            shape.host,
            shape.port,
            shape.tls,
            f"{path}?{query}" if query else path,
            tuple(headers),
            good_for_s,
            self._ca_file if shape.tls else None,
            shape.proxy,
        )

    def list_page(self, prefix: str, token: str | None) -> bytes:
        """The XML of one page of a listing. Raises as Source.resolve does."""
        options = {"Bucket": self.bucket, "Prefix": prefix, **self.extra}
        if token:
            options["ContinuationToken"] = token
        with translating(shown(self.bucket, prefix)):
            return self._taps.list_body(options)

    def doubt(self, code: str) -> None:
        """Take note of the code with which S3 refused a signed request, for `renew`."""
        self._expired = self._expired or code in EXPIRED
        self._misplaced = self._misplaced or code in MISPLACED

    def renew(self) -> None:
        """Read credentials again, or look for the bucket's region, if S3 found them wrong.

        Cheap when it did not. Raises Forbidden, SourceRefused when there is nothing newer.
        """
        if not (self._expired or self._misplaced):
            return
        with self._guard, translating(f"s3://{self.bucket}"):
            expired, self._expired = self._expired, False
            misplaced, self._misplaced = self._misplaced, False
            if monotonic() - self._renewed_s < RENEWED_S:
                return
            if expired:
                self._reload()
            elif misplaced:
                self._relocate()
            self._renewed_s = monotonic()

    # Opening

    def _open(self) -> None:
        """Make session and client anew."""
        with translating(f"s3://{self.bucket}"):
            profile = self._origin.option("profile") or self._settings.profile or None
            session: Any = botocore.session.Session(profile=profile)
            self._credentials = None if self.anonymous else session.get_credentials()
            self._ca_file = self._bundle(session)
            client = session.create_client(
                "s3",
                region_name=self._region(session),
                endpoint_url=_checked(self._origin.option("endpoint") or self._settings.endpoint),
                verify=self._ca_file,
                config=self._config(),
            )
        self._guard_connections(client)
        self.client: Any = client
        self._taps = Taps(client)
        self._signer: GetSigner | None = None
        self._shape = None

    def _guard_connections(self, client: Any) -> None:  # noqa: ANN401 - botocore makes its classes
        """Of the bucket's requests; those for credentials are none that a ref can lead astray."""
        sender = client._endpoint.http_session  # noqa: SLF001 - no option says it
        pools = sender._pool_classes_by_scheme  # noqa: SLF001
        pools |= guarded_pools(
            pools, self._transfer.refused_networks
        )  # in place: managers share it

    def _region(self, session: Any) -> str:  # noqa: ANN401 - botocore makes its classes
        named = self._origin.option("region") or self._settings.region
        return named or session.get_config_variable("region") or REGION_DEFAULT

    def _bundle(self, session: Any) -> str:  # noqa: ANN401 - likewise
        """The authorities to trust: the same for the bytes as botocore trusts for the listing."""
        named = self._settings.ca_file or session.get_config_variable("ca_bundle")
        return str(named or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(verify=True))

    def _config(self) -> Config:
        style = self._origin.option("style") or self._settings.style
        if style not in {"", "path", "virtual"}:
            raise InvalidRef(f"option 'style' of an s3 ref must be path or virtual, not {style!r}")
        addressing: Any = {"addressing_style": style} if style else None
        return Config(
            connect_timeout=self._transfer.connect_timeout_s,
            read_timeout=self._transfer.stall_timeout_s,
            max_pool_connections=REQUESTS_MAX,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
            s3=addressing,
            signature_version=UNSIGNED if self.anonymous else None,
        )

    def _reload(self) -> None:
        before = self._credentials and self._credentials.get_frozen_credentials()
        self._open()
        if self._credentials and self._credentials.get_frozen_credentials() == before:
            raise Forbidden(
                f"s3://{self.bucket}: the credentials have expired; renew them, for example with "
                "`aws sso login`, and pull again: what arrived is kept"
            )

    def _relocate(self) -> None:
        """Have botocore follow S3 to the bucket's region, and see where that led."""
        before = self._shape
        with suppress(ClientError):  # it has learnt the region all the same, or has not: see below
            self.client.list_objects_v2(Bucket=self.bucket, MaxKeys=1, **self.extra)
        if self._learn() == before:
            raise SourceRefused(
                f"s3://{self.bucket} lies in another region than {self.client.meta.region_name}, "
                "and S3 does not say in which; add ?region=NAME to the ref"
            )

    # Signing

    def _sign(self, headers: list[tuple[str, str]], path: str, query: str, shape: _Shape) -> None:
        """Add what a signature needs, in alphabetical order, and the signature."""
        signer = self._signer_for(shape.scope)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers += (("x-amz-content-sha256", shape.payload), ("x-amz-date", stamp))
        if self.extra:
            headers.append(("x-amz-request-payer", "requester"))
        if signer.credentials.token:
            headers.append(("x-amz-security-token", signer.credentials.token))
        value = signer.authorization(path, query, headers, shape.payload, stamp)
        headers.append(("authorization", value))

    def _signer_for(self, scope: Scope | None) -> GetSigner:
        with translating(f"s3://{self.bucket}"):
            if self._credentials is None:
                raise NoCredentialsError
            credentials = self._credentials.get_frozen_credentials()  # renews what is about to end
        signer = self._signer
        if signer is None or signer.credentials != credentials or signer.scope != scope:
            assert scope is not None  # noqa: S101 - else botocore signs
            signer = self._signer = GetSigner(credentials, scope)
        return signer

    def _signed_by_botocore(self, key: str, pin: Pin, *, checksum: bool) -> list[tuple[str, str]]:
        _, headers = self._prepared(key, pin, checksum=checksum)
        return [pair for pair in headers.items() if not pair[0].startswith("amz-sdk-")]

    def _learn(self) -> _Shape:
        """Find the shape by the sample. Raises what `translating` makes of botocore's errors."""
        with self._guard:
            parts, headers = self._prepared(_KEY, Pin(), checksum=True)
            tls = parts.scheme == "https"
            shape = _Shape(
                tls=tls,
                host=parts.hostname or "",
                port=parts.port or (443 if tls else 80),
                netloc=headers.get("host", parts.netloc),
                prefix=parts.path.removesuffix(_KEY),
                proxy=proxy_for(parts),
                scope=scope_of(headers.get("authorization", "")),
                payload=headers.get("x-amz-content-sha256", ""),
            )
            if shape.scope is not None:
                signer = self._signer_for(shape.scope)
                if not reproduces(signer, parts.path, parts.query, headers):
                    shape = replace(shape, scope=None)
            self._shape = shape
            return shape

    def _prepared(
        self, key: str, pin: Pin, *, checksum: bool
    ) -> tuple[SplitResult, Mapping[str, str]]:
        """URL and headers (lower-case names) of a GetObject as botocore would send it."""
        options = {
            "IfMatch": pin.etag,
            "VersionId": pin.version,
            "ChecksumMode": "ENABLED" if checksum else None,
            **self.extra,
        }
        given = {name: value for name, value in options.items() if value}
        with translating(shown(self.bucket, key)):
            return self._taps.get_request({"Bucket": self.bucket, "Key": key, **given})


def _checked(endpoint: str) -> str | None:
    if not endpoint:
        return None
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidConfig(
            f"S3 endpoint must be a URL such as http://minio:9000, not {endpoint[:80]!r}"
        )
    return endpoint
