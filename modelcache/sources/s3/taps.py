"""What passes through a botocore client, taken on its way.

A GetObject is taken before it is sent: it shows what botocore makes of endpoint rules, addressing
style, region and credentials. The body of a listing is taken before it is parsed: botocore's
parser builds a dictionary with a parsed date for every key, a second of CPU for 30,000 keys.
Redirects, retries, signing and errors stay botocore's in both cases.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

_OK: Final = 200
_EMPTY: Final = b"<ListBucketResult/>"


class Taps:
    """On one client, which never sends a GetObject from then on. Thread-safe."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - botocore makes its classes
        self._client = client
        self._taken = threading.local()
        client.meta.events.register("before-send.s3.GetObject", self._take_request)
        client.meta.events.register("before-parse.s3.ListObjectsV2", self._take_body)

    def get_request(self, options: Mapping[str, Any]) -> tuple[SplitResult, Mapping[str, str]]:
        """URL and headers (lower-case names) of a GetObject, ready to be sent.

        Raises what botocore raises.
        """
        self._client.get_object(**options)
        request = self._taken.request
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        return urlsplit(request.url), headers

    def list_body(self, options: Mapping[str, Any]) -> bytes:
        """The XML of one page of ListObjectsV2. Raises what botocore raises."""
        self._taken.body = b""
        self._client.list_objects_v2(**options)
        body: bytes = self._taken.body
        return body

    def _take_request(self, request: Any, **_: object) -> AWSResponse:  # noqa: ANN401 - likewise
        self._taken.request = request
        return AWSResponse(request.url, _OK, HTTPHeaders(), io.BytesIO())

    def _take_body(self, response_dict: dict[str, Any], **_: object) -> None:
        if response_dict["status_code"] == _OK:  # errors are botocore's to parse
            self._taken.body = response_dict["body"]
            response_dict["body"] = _EMPTY
