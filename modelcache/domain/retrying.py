"""How long a server wants to be left alone, as it says in `Retry-After`."""

from __future__ import annotations


def retry_seconds(text: str, most_s: float) -> float | None:
    """The usual form, whole seconds, at most `most_s`; None for anything else, such as a date."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return min(float(text), most_s)
