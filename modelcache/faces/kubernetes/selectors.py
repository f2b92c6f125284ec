"""Label selectors as the API has them: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. Pure.

As in Kubernetes' `labels.Parse`: what is compared with `!=` or `notin` may also be absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from modelcache.errors import UsageError

SELECTOR_BYTES_MAX: Final = 8 << 10
_KEY: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_VALUE: Final = r"(?:[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)?"
_EXISTS: Final = re.compile(rf"\s*(!?)\s*({_KEY})\s*", re.ASCII)
_EQUALS: Final = re.compile(rf"\s*({_KEY})\s*(==|=|!=)\s*({_VALUE})\s*", re.ASCII)
_AMONG: Final = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*", re.ASCII)
_PLAIN: Final = re.compile(_VALUE, re.ASCII)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition. values: any of them; empty for a label that only has to be there.

    without: the opposite of it.
    """

    key: str
    values: frozenset[str] = frozenset()
    without: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        here = self.key in labels and (not self.values or labels[self.key] in self.values)
        return here is not self.without


def parse_selector(text: str) -> tuple[Requirement, ...]:
    """Read a selector; an empty one selects everything. Raises UsageError."""
    if len(text.encode()) > SELECTOR_BYTES_MAX:
        raise UsageError(f"a label selector has at most {SELECTOR_BYTES_MAX} bytes")
    if not text.strip():
        return ()
    return tuple(map(_requirement, _parts(text)))


def matches(requirements: tuple[Requirement, ...], labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy all of them."""
    return all(each.holds(labels) for each in requirements)


def _parts(text: str) -> list[str]:
    """At commas that stand in no parentheses."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _requirement(part: str) -> Requirement:
    readers: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Requirement]], ...] = (
        (_EQUALS, lambda found: Requirement(found[1], frozenset([found[3]]), found[2] == "!=")),
        (_AMONG, _among),
        (_EXISTS, lambda found: Requirement(found[2], without=bool(found[1]))),
    )
    for pattern, read in readers:
        found = pattern.fullmatch(part)
        if found is not None:
            return read(found)
    raise UsageError(f"{part.strip()[:80]!r} is no label selector")


def _among(found: re.Match[str]) -> Requirement:
    values = frozenset(value.strip() for value in found[3].split(","))
    if not all(_PLAIN.fullmatch(value) for value in values):
        raise UsageError(f"{found[3][:80]!r} has what is no label's value")
    return Requirement(found[1], values, found[2] == "notin")
