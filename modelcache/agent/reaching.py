"""Which origins a pod may lead its node's agent to.

An agent stands where a pod does not: on the node, past the network policies of the pod's namespace.
So a pod's ref may name no address of the node and no Service of the cluster, be it by a name that
is resolved to one. By the text what can be told is told when it is asked for; the rest is refused
where connections are made (`transfer.refused_networks`). Nor are headers of the settings, which may
be a token, sent to whatever host a pod names. What somebody else wants too, as a
ModelPrefetch does, and hosts that only settings name, are the platform's own choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from modelcache.config import Settings
from modelcache.domain.reach import (
    NODE_NETWORKS,
    is_allowed,
    named_host,
    names_service,
    reaches_node,
)
from modelcache.domain.refs import Ref
from modelcache.errors import Forbidden


class Reach:
    """See the module. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services = settings.access.services

    def learn(self, services: Iterable[str]) -> None:
        """Networks of Services that the cluster has told, beside those of the settings."""
        self._services = tuple(dict.fromkeys([*self._settings.access.services, *services]))

    def check(self, ref: Ref, tenant: str) -> None:
        """Raise Forbidden where a tenant names what is not for pods. Nobody else is asked that."""
        if not tenant or self._is_free(ref):
            return
        if reaches_node(ref):
            raise Forbidden(
                f"{ref.redacted()} names a file or an address of the node itself, which pods may "
                "not; put the model where all nodes can read it"
            )
        if names_service(ref):
            raise Forbidden(
                f"{ref.redacted()} names a Service of the cluster, which pods may not have the "
                "node ask; list its host in access.hosts to let them"
            )

    def settings_for(self, ref: Ref, *, tenants_only: bool) -> Settings:
        """The settings to ask a ref's origin with. tenants_only: only pods want it."""
        settings = self._settings
        if not tenants_only or not named_host(ref):
            return settings
        if settings.http.headers and not settings.http.hosts:
            settings = replace(settings, http=replace(settings.http, headers=()))
        if self._is_free(ref):
            return settings
        transfer = settings.transfer
        networks = (*transfer.refused_networks, *NODE_NETWORKS, *self._services)
        return replace(settings, transfer=replace(transfer, refused_networks=networks))

    def _is_free(self, ref: Ref) -> bool:
        access = self._settings.access
        return access.local or is_allowed(ref, access.hosts)
