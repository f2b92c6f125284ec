"""Service accounts' annotations, which say what role an account is meant to have at its cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.resources.core_v1 import ServiceAccount

from modelcache.errors import SourceUnavailable

_NOT_FOUND: Final = 404


class Accounts:
    """See the module. Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def annotations(self, namespace: str, name: str) -> Mapping[str, str]:
        """Of one account; nothing of one that is not there. Raises SourceUnavailable."""
        try:
            found = self._client.get(ServiceAccount, name, namespace=namespace)
        except ApiError as error:
            if error.status.code == _NOT_FOUND:
                return {}
            raise SourceUnavailable(
                f"the account {namespace}/{name} cannot be read: {error.status.reason}"
            ) from error
        except httpx2.HTTPError as error:
            raise SourceUnavailable(
                f"the account {namespace}/{name} cannot be read: no API server answers"
            ) from error
        return (found.metadata.annotations if found.metadata else None) or {}
