"""What resolving asks a bucket for: objects below a prefix, one object, its generation.

Google's client makes the requests; this module gives it a session that sends our tokens, trusts
what the data connections trust, follows no redirect (GCS sends none, and a token must not travel)
and reads no document without end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import requests
from google.api_core.client_info import ClientInfo
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # type: ignore[import-untyped]

from modelcache.config import TransferSettings
from modelcache.domain.manifests import Checksum
from modelcache.errors import NotFound, SourceRefused, SourceUnavailable
from modelcache.sources.gcs import checksums
from modelcache.sources.gcs.endpoint import Endpoint
from modelcache.sources.gcs.refusals import no_bucket, not_gcs, passes, shown, translating
from modelcache.sources.gcs.tokens import Authorization, Tokens
from modelcache.sources.web.guarding import GuardedAdapter
from modelcache.sources.web.identity import user_agent

OBJECTS_MAX: Final = 1_000_000  # of one ref: no model has so many; a bucket was meant
PAGES_MAX: Final = 20_000  # GCS may send short pages, and even empty ones
PAGE_OBJECTS: Final = 1000  # GCS's own maximum
DOCUMENT_BYTES_MAX: Final = 64 << 20  # a page of a thousand long names has under 4 MiB
PATIENCE_S: Final = 10.0  # for what fails in passing, while somebody waits for a listing
_FIELDS: Final = "name,size,generation,crc32c,md5Hash,contentEncoding"
_PIECE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Object:
    """One generation of one object. coding: its Content-Encoding, lower-case, or empty."""

    name: str
    size_bytes: int
    generation: str
    checksums: tuple[Checksum, ...]
    coding: str


class Bucket:
    """Requests to one bucket, with foreign errors translated. Thread-safe."""

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        endpoint: Endpoint,
        tokens: Tokens,
        transfer: TransferSettings,
        ca_file: str,
        user_project: str | None,
    ) -> None:
        """Sends nothing."""
        self._name = name
        self._advice = tokens.advice
        self._options = {
            "timeout": (transfer.connect_timeout_s, transfer.stall_timeout_s),
            "retry": Retry(
                predicate=passes, initial=0.2, multiplier=2.0, maximum=2.0, timeout=PATIENCE_S
            ),
        }
        self._client: Any = storage.Client(
            project=None,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            _http=_Session(tokens, ca_file, transfer.refused_networks),
            client_info=ClientInfo(user_agent=user_agent()),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": endpoint.url},
        )
        # Where OpenTelemetry is installed it would look at the bucket itself, from another thread.
        self._client._bucket_metadata_cache = None  # noqa: SLF001 - no option says it
        self._bucket: Any = self._client.bucket(name, user_project=user_project)

    def objects(self, prefix: str) -> Iterator[Object]:
        """Every object below `prefix`. Raises as Source.resolve does."""
        where = shown(self._name, prefix)
        with translating(where, self._advice, missing=no_bucket(where)):
            listing = self._client.list_blobs(
                self._bucket,
                prefix=prefix or None,
                page_size=PAGE_OBJECTS,
                fields=f"items({_FIELDS}),nextPageToken",
                **self._options,
            )
            seen = 0
            token = None
            for number, page in enumerate(listing.pages):
                for blob in page:
                    seen += 1
                    yield _object(blob, where)
                following = listing.next_page_token
                if not following:
                    return
                if following == token:
                    raise SourceUnavailable(f"{where}: the listing does not get on")
                token = following
                if seen >= OBJECTS_MAX or number >= PAGES_MAX:
                    raise SourceRefused(
                        f"{where} has over {OBJECTS_MAX} objects; name a model's prefix"
                    )

    def object(self, name: str, generation: str | None = None) -> Object:
        """The object's present generation, or the given one. Raises as Source.resolve does."""
        where = shown(self._name, name)
        what = f" or no generation {generation} of it" if generation else ""
        missing = NotFound(f"{where}: there is no such object{what}")
        with translating(where, self._advice, missing=missing):
            blob = self._bucket.blob(name, generation=int(generation) if generation else None)
            blob.reload(**self._options)
            return _object(blob, where)


class _Session(requests.Session):
    """What Google's client sends its requests through."""

    def __init__(self, tokens: Tokens, ca_file: str, refused: Sequence[str]) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, GuardedAdapter(refused))
        self._tokens = tokens
        self._ca_file = ca_file

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401
        """One request; a second one with a new token where the first was refused for its age."""
        # Not left to requests: its environment would come before what we were told to trust.
        options |= {"stream": True, "allow_redirects": False, "verify": self._ca_file}
        before = self._tokens.current()
        response = self._once(request, before, options)
        if response.status_code == HTTPStatus.UNAUTHORIZED and self._tokens.given:
            self._tokens.doubt()
            self._tokens.renew()
            after = self._tokens.current()
            if after is not before:
                response = self._once(request, after, options)
        return response

    def _once(
        self,
        request: requests.PreparedRequest,
        authorization: Authorization,
        options: Any,  # noqa: ANN401
    ) -> requests.Response:
        request.headers.pop("Authorization", None)  # requests takes one from ~/.netrc
        request.headers.update(dict(authorization.headers))
        response = super().send(request, **options)
        body = bytearray()
        for piece in response.iter_content(_PIECE_BYTES):
            body += piece
            if len(body) > DOCUMENT_BYTES_MAX:
                response.close()
                raise requests.exceptions.ContentDecodingError
        response._content = bytes(body)  # noqa: SLF001 - where `content` and `json` look
        return response


def _object(blob: Any, where: str) -> Object:  # noqa: ANN401 - Google's client is not typed
    size, generation = blob.size, blob.generation
    if not isinstance(blob.name, str) or size is None or size < 0 or generation is None:
        raise not_gcs(where)
    return Object(
        blob.name,
        size,
        str(generation),
        checksums.published(blob.crc32c, blob.md5_hash),
        (blob.content_encoding or "").strip().lower(),
    )
