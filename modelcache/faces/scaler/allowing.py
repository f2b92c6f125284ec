"""Whether a caller may have what it asks for: the API server decides, and is asked every time.

A decision is kept for `KEPT_S`, as Kubernetes' own extension servers do, so that an autoscaler's
round of a thousand objects is not a thousand reviews.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.models.authorization_v1 import (
    NonResourceAttributes,
    ResourceAttributes,
    SubjectAccessReviewSpec,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.authorization_v1 import SubjectAccessReview

from modelcache.errors import SourceUnavailable
from modelcache.faces.scaler.callers import Caller

KEPT_S: Final = 10.0
KEPT_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Deed:
    """What is asked for. path: instead of all others, of what is no resource."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    namespace: str = ""
    path: str = ""


class Allowing:
    """See the module. Thread-safe."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = monotonic) -> None:
        self._client = client
        self._clock = clock
        self._kept: OrderedDict[tuple[Caller, Deed], tuple[float, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, who: Caller, deed: Deed) -> bool | None:
        """What was decided a moment ago; None where that is too long ago."""
        with self._lock:
            kept = self._kept.get((who, deed))
            if kept is not None and self._clock() - kept[0] <= KEPT_S:
                return kept[1]
        return None

    def ask(self, who: Caller, deed: Deed) -> bool:
        """Have the API server decide. Blocks. Raises SourceUnavailable."""
        review = SubjectAccessReview(
            metadata=ObjectMeta(),
            spec=SubjectAccessReviewSpec(
                user=who.user,
                groups=list(who.groups),
                uid=who.uid or None,
                extra={name: list(values) for name, values in who.extra} or None,
                resourceAttributes=_resource(deed),
                nonResourceAttributes=_path(deed),
            ),
        )
        try:
            answer = self._client.create(review)
        except (ApiError, httpx2.HTTPError) as error:
            why = str(error)[:200] or type(error).__name__
            raise SourceUnavailable(
                f"the API server does not say what is allowed: {why}"
            ) from error
        allowed = bool(answer.status is not None and answer.status.allowed)
        with self._lock:
            self._kept[who, deed] = (self._clock(), allowed)
            self._kept.move_to_end((who, deed))
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return allowed


def _resource(deed: Deed) -> ResourceAttributes | None:
    if deed.path:
        return None
    return ResourceAttributes(
        verb=deed.verb,
        group=deed.group,
        version=deed.version,
        resource=deed.resource,
        namespace=deed.namespace,
    )


def _path(deed: Deed) -> NonResourceAttributes | None:
    return NonResourceAttributes(path=deed.path, verb=deed.verb) if deed.path else None
