"""What registries answer when they refuse, by the distribution specification's error codes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from modelcache.errors import Forbidden, ModelcacheError, NoCredentials, NotFound, Throttled
from modelcache.sources.web import answers

_CODE: Final = re.compile(r"[A-Z_]{1,40}")
_NOT_FOUND: Final[Mapping[str, str]] = {
    "NAME_UNKNOWN": "the registry knows no such repository",
    "NAME_INVALID": "the registry does not take this name",
    "MANIFEST_UNKNOWN": "the repository has no such tag or digest",
    "BLOB_UNKNOWN": "the layer is missing from the registry; push the model again",
}


def error_codes(body: bytes) -> tuple[str, ...]:
    """The codes of an error document; what else servers say there is not repeated."""
    try:
        document: Any = json.loads(body)
        entries = document["errors"] if isinstance(document, dict) else ()
        codes = [entry["code"] for entry in entries if isinstance(entry, dict)]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(code for code in codes if isinstance(code, str) and _CODE.fullmatch(code))


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is a web page, as portals and front ends give it."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html"


def refusal(
    where: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    registry: str,
    given: bool,
) -> ModelcacheError:
    """What a refusal means. given: whether a credential was sent."""
    codes = error_codes(body)
    login = f"run docker login {registry} or set oci.auth_file"
    if status == 429 or "TOOMANYREQUESTS" in codes:  # noqa: PLR2004
        return Throttled(
            f"{where}: {registry} asks for fewer requests ({status})"
            + ("" if given else "; some allow more to who logs in"),
            retry_after_s=answers.retry_after_s(headers),
        )
    if status == 401 and not given:  # noqa: PLR2004
        return NoCredentials(f"{where} does not exist or wants credentials (401); {login}")
    if status in {401, 403}:
        return Forbidden(
            f"{where} may not be read with the credentials stored for {registry} ({status})"
            if given
            else f"{where} may not be read without credentials ({status}); {login}"
        )
    if status in {404, 410}:
        reason = next((_NOT_FOUND[code] for code in codes if code in _NOT_FOUND), "")
        if not reason and is_page(headers):
            reason = "and the answer is a web page: is it an OCI registry?"
        return NotFound(f"{where} does not exist ({status})" + (f": {reason}" if reason else ""))
    return answers.refusal(where, status, headers, credentials_given=given, advice=login)
