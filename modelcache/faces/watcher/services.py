"""Networks of the cluster's Services, as the cluster tells them: `ServiceCIDR`, from 1.33 on.

Asked until there is an answer: before that, and where the cluster does not tell (an older one, or
no right to ask), what is known is the settings' networks and the API server's own address.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.resources.networking_v1 import ServiceCIDR

from modelcache.faces.logs import Log

AGAIN_S: Final = 30.0
_NEVER: Final = frozenset({401, 403, 404})  # answers that time does not change
_OWN: Final = "KUBERNETES_SERVICE_HOST"


class ServiceNetworks:
    """See the module."""

    def __init__(
        self, client: Client, learn: Callable[[Iterable[str]], None], *, log: Log | None = None
    ) -> None:
        """learn: is told the networks, again when there are more."""
        self._client = client
        self._learn = learn
        self._log = log
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelcache-services", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._learn(_own())
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            try:
                found = [
                    cidr
                    for item in self._client.list(ServiceCIDR)
                    for cidr in (item.spec.cidrs if item.spec is not None else None) or ()
                ]
            except ApiError as error:
                if error.status.code in _NEVER:
                    self._tell("service_networks_unknown", error)
                    return
            except httpx2.HTTPError as error:
                self._tell("service_networks_late", error)
            else:
                self._learn([*_own(), *found])
                return
            if self._stopped.wait(AGAIN_S):
                return

    def _tell(self, event: str, error: Exception) -> None:
        if self._log is not None:
            self._log.warning(event, message=str(error)[:200], setting="access.services")


def _own() -> list[str]:
    """The API server's Service, which every pod is told."""
    try:
        return [str(ip_address(os.environ.get(_OWN, "")))]
    except ValueError:
        return []
