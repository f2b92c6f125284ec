"""Everything of the agent that looks at its cluster, begun and ended together."""

from __future__ import annotations

from lightkube import Client

import modelcache
from modelcache.agent.daemon import Daemon
from modelcache.config import KubernetesSettings
from modelcache.faces.kubernetes.accounts import Accounts
from modelcache.faces.kubernetes.connect import connect
from modelcache.faces.kubernetes.events import PodEvents
from modelcache.faces.logs import Log
from modelcache.faces.watcher.pods import PodWatcher
from modelcache.faces.watcher.prefetches import PrefetchWatcher
from modelcache.faces.watcher.reporting import Reporting
from modelcache.faces.watcher.services import ServiceNetworks


class Cluster:
    """See the module. The agent works on while the API server is away."""

    def __init__(
        self,
        daemon: Daemon,
        settings: KubernetesSettings,
        *,
        client: Client | None = None,
        log: Log | None = None,
    ) -> None:
        """client: how to reach the cluster, if not as the settings say. Raises InvalidConfig."""
        self._client = client or connect(settings.kubeconfig)
        name = settings.node or daemon.node.name
        daemon.identities.annotations = Accounts(self._client).annotations
        self._events = PodEvents(self._client, name, log=log)
        self._parts = (
            ServiceNetworks(self._client, daemon.node.reach.learn, log=log),
            PodWatcher(daemon.node, self._client, name, self._events, log=log),
            PrefetchWatcher(daemon.node, self._client, name, log=log),
            Reporting(
                daemon,
                self._client,
                name,
                version=modelcache.__version__,
                every_s=settings.report_s,
                log=log,
            ),
        )

    def start(self) -> None:
        """Begin; after the daemon."""
        self._events.start()
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        """End; before the daemon closes. Idempotent."""
        for part in self._parts:
            part.stop()
        self._events.stop()
        self._client.close()
