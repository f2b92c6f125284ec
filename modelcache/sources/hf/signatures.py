"""For how long a signed address is good, as its query tells.

S3 and what imitates it (X-Amz-Date, X-Amz-Expires), Google Cloud Storage (X-Goog-…), CloudFront and
old S3 signatures (Expires, in seconds since the epoch), Azure (se).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

MARGIN_S: Final = 30.0  # a request sent this late may arrive too late, and clocks differ
_MOMENTS: Final = ("%Y%m%dT%H%M%SZ", "%Y-%m-%dT%H:%M:%SZ")


def good_for_s(query: str, now: datetime) -> float | None:
    """Seconds that are left, less a margin; 0 for one that is over, None where nothing tells."""
    values = {name.lower(): value for name, value in parse_qsl(query)}
    for until in (
        _dated(values, "x-amz"),
        _dated(values, "x-goog"),
        _epoch(values),
        _azure(values),
    ):
        if until is not None:
            return max(0.0, until - now.timestamp() - MARGIN_S)
    return None


def _dated(values: Mapping[str, str], prefix: str) -> float | None:
    signed = _moment(values.get(f"{prefix}-date", ""))
    lasts_s = _number(values.get(f"{prefix}-expires", ""))
    return signed + lasts_s if signed is not None and lasts_s is not None else None


def _epoch(values: Mapping[str, str]) -> float | None:
    return _number(values.get("expires", ""))


def _azure(values: Mapping[str, str]) -> float | None:
    return _moment(values.get("se", "")) if "sig" in values else None


def _number(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else None  # noqa: PLR2004


def _moment(text: str) -> float | None:
    for form in _MOMENTS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None
