"""Peers from a Service's EndpointSlices: addresses as pods come and go, and the zones they are in.

A headless Service's name gives the same addresses by DNS, later and without zones. See
`peers.membership` for what this stands in for.
"""

from __future__ import annotations

from typing import Any, Final

from lightkube import Client
from lightkube.resources.discovery_v1 import EndpointSlice

from modelcache.domain.addresses import is_host, is_zone
from modelcache.domain.members import Member
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.logs import Log

SERVICE_LABEL: Final = "kubernetes.io/service-name"


class EndpointMembers:
    """Thread-safe. The last that was known holds while the API server is away."""

    def __init__(self, client: Client, service: str, port: int, *, log: Log | None = None) -> None:
        """service: `namespace/name`. port: of the peer plane, where the slices name none."""
        namespace, _, name = service.partition("/")
        self._port = port
        self._slices: Informer[EndpointSlice] = Informer(
            client, EndpointSlice, namespace=namespace, labels={SERVICE_LABEL: name}, log=log
        )

    def start(self) -> None:
        """Begin to watch."""
        self._slices.start()

    def stop(self) -> None:
        """End."""
        self._slices.stop()

    def members(self) -> tuple[Member, ...]:
        """See Membership: agents that are ready, or end but still serve."""
        found = {
            member
            for each in self._slices.items()
            for endpoint in each.endpoints or []
            for member in self._members(each, endpoint)
        }
        return tuple(sorted(found))

    def _members(self, found: EndpointSlice, endpoint: Any) -> list[Member]:  # noqa: ANN401
        conditions = endpoint.conditions
        if conditions is not None and conditions.ready is False and not conditions.serving:
            return []
        ports = [port.port for port in found.ports or [] if port.name == "peers" and port.port]
        zone = endpoint.zone or ""
        return [
            Member(address, ports[0] if ports else self._port, zone if is_zone(zone) else "")
            for address in endpoint.addresses or []
            if is_host(address)
        ]
