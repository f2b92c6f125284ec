"""How the API server is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx2
from lightkube import Client, KubeConfig
from lightkube.core.exceptions import ConfigError

from modelcache.errors import InvalidConfig
from modelcache.faces.kubernetes.names import FIELD_MANAGER

ANSWER_S: Final = 15.0


def connect(kubeconfig: str = "") -> Client:
    """A client; nothing is asked yet.

    kubeconfig: a file; empty for the pod's own account, else `$KUBECONFIG` or the usual place.
    Raises InvalidConfig when there is no way to a cluster.
    """
    try:
        config = (
            KubeConfig.from_file(Path(kubeconfig).expanduser())
            if kubeconfig
            else KubeConfig.from_env()
        )
        return Client(
            config.get(),
            timeout=httpx2.Timeout(ANSWER_S),
            field_manager=FIELD_MANAGER,
            trust_env=False,
        )
    except (ConfigError, OSError, ValueError) as error:
        where = f"kubernetes.kubeconfig {kubeconfig}" if kubeconfig else "no cluster is configured"
        raise InvalidConfig(f"{where}: {str(error)[:200]}") from error
