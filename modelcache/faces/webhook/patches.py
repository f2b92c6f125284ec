"""JSON patches (RFC 6902) that add to what is there, and make what is missing on the way.

Nothing that somebody wrote in a pod is removed, but for what `kserve` takes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Operation = dict[str, Any]


def pointer(*steps: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)


def extending(
    root: Mapping[str, Any],
    path: Sequence[str],
    items: Sequence[Any],
    *,
    at: Sequence[str | int] = (),
) -> list[Operation]:
    """Operations that append items to the list at `path` inside `root`; none for no items.

    at: where root itself stands in the document.
    """
    if not items:
        return []
    here: Any = root
    for depth, name in enumerate(path):
        here = here.get(name)
        if not here:  # missing, null or empty: the first that is made carries all that follows
            value: Any = list(items)
            for inner in reversed(path[depth + 1 :]):
                value = {inner: value}
            return [_add(pointer(*at, *path[: depth + 1]), value)]
    return [_add(pointer(*at, *path, "-"), item) for item in items]


def setting(
    root: Mapping[str, Any], step: str, name: str, value: str, *, at: Sequence[str] = ()
) -> list[Operation]:
    """Operations that set a name in the mapping `root[step]`; none if it is so already."""
    present = root.get(step)
    if not present:
        return [_add(pointer(*at, step), {name: value})]
    if present.get(name) == value:
        return []
    return [_add(pointer(*at, step, name), value)]


def replacing(value: object, *path: str | int, add: bool = False) -> Operation:
    """An operation that replaces what is there. add: which may be nothing (RFC 6902, 4.1)."""
    return {"op": "add" if add else "replace", "path": pointer(*path), "value": value}


def removing(*path: str | int) -> Operation:
    """An operation that removes what is there."""
    return {"op": "remove", "path": pointer(*path)}


def _add(path: str, value: object) -> Operation:
    return {"op": "add", "path": path, "value": value}
