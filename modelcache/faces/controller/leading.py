"""Leader election by a Lease, as Kubernetes' own controllers do it.

Who leads renews the Lease; who does not watches whether it is renewed, by its own clock: times in
the object are other machines', and are never compared with this one's. A leader that could not
renew for `RENEW_WITHIN_S` stops leading before anybody else begins. See the package
`leaderelection` of Kubernetes' client library for the protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease

from modelcache.faces.logs import Log

DURATION_S: Final = 15
RENEW_WITHIN_S: Final = 10.0
RETRY_S: Final = 2.0


class Leading:
    """See the module. `run` calls `lead` while this process leads, and returns when told to."""

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        namespace: str,
        me: str,
        duration_s: int = DURATION_S,
        retry_s: float = RETRY_S,
        log: Log | None = None,
        asked: Callable[[bool], None] | None = None,
    ) -> None:
        """name, namespace: of the Lease. me: this replica, differently named from all others.

        asked: told after each try, and whether the API server has answered.
        """
        self._asked = asked
        self._client = client
        self._name, self._namespace, self._me = name, namespace, me
        self._duration_s = duration_s
        self._renew_within_s = duration_s * RENEW_WITHIN_S / DURATION_S
        self._retry_s = retry_s
        self._log = log
        self._seen: tuple[str, str] = ("", "")
        self._seen_s = monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End; a leader lets go, so that the next need not wait."""
        self._stopped.set()

    def run(self, lead: Callable[[threading.Event], None]) -> None:
        """Wait for leadership, then have `lead` run in a thread; its event says to end.

        Returns after `stop`, or when leadership was lost: the process should begin anew.
        """
        while not self._stopped.is_set():
            if self._try():
                self._hold(lead)
                return
            self._stopped.wait(self._retry_s)

    def _hold(self, lead: Callable[[threading.Event], None]) -> None:
        over = threading.Event()
        worker = threading.Thread(target=lead, args=(over,), name="modelcache-leading")
        worker.start()
        renewed_s = monotonic()
        try:
            while not self._stopped.wait(self._retry_s) and worker.is_alive():
                if self._try():
                    renewed_s = monotonic()
                elif monotonic() - renewed_s > self._renew_within_s:
                    if self._log is not None:
                        self._log.warning("leadership_lost", lease=self._name)
                    return
        finally:
            over.set()
            worker.join()
            self._let_go()

    def _try(self) -> bool:
        """Take or renew the Lease; False if somebody else has it, or nobody can tell."""
        heard = taken = False
        try:
            taken = self._take()
            heard = True
        except ApiError as error:
            heard = error.status.code == httpx2.codes.CONFLICT
            if not heard and self._log is not None:
                self._log.warning("lease_failed", message=str(error)[:200])
        except httpx2.HTTPError as error:
            if self._log is not None:
                self._log.warning("lease_failed", message=str(error)[:200])
        if self._asked is not None:
            self._asked(heard)
        return taken

    def _take(self) -> bool:
        now = datetime.now(UTC)
        try:
            lease = self._client.get(Lease, self._name, namespace=self._namespace)
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:
                raise
            spec = self._spec(now, acquired=now, transitions=0)
            metadata = ObjectMeta(name=self._name, namespace=self._namespace)
            self._client.create(Lease(metadata=metadata, spec=spec))
            return True
        spec = lease.spec or LeaseSpec()
        holder = spec.holderIdentity or ""
        if holder and holder != self._me and not self._is_over(holder, str(spec.renewTime)):
            return False
        transitions = (spec.leaseTransitions or 0) + (holder != self._me)
        acquired = spec.acquireTime if holder == self._me else now
        lease.spec = self._spec(now, acquired=acquired, transitions=transitions)
        self._client.replace(lease)  # with its resource version: of two, one gets a conflict
        return True

    def _is_over(self, holder: str, renewed: str) -> bool:
        """Whether another's Lease has not been renewed for its duration, as seen from here."""
        if (holder, renewed) != self._seen:
            self._seen, self._seen_s = (holder, renewed), monotonic()
        return monotonic() - self._seen_s > self._duration_s

    def _spec(self, now: datetime, *, acquired: datetime | None, transitions: int) -> LeaseSpec:
        return LeaseSpec(
            holderIdentity=self._me,
            leaseDurationSeconds=self._duration_s,
            acquireTime=acquired or now,
            renewTime=now,
            leaseTransitions=transitions,
        )

    def _let_go(self) -> None:
        """Leave the Lease to whoever comes; it is theirs anyway when that fails."""
        try:
            lease = self._client.get(Lease, self._name, namespace=self._namespace)
            if lease.spec is not None and lease.spec.holderIdentity == self._me:
                lease.spec.holderIdentity = ""
                self._client.replace(lease)
        except (ApiError, httpx2.HTTPError) as error:
            if self._log is not None:
                self._log.warning("lease_not_released", message=str(error)[:200])
