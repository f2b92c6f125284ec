"""From a pod's service account to credentials at its cloud, as SDKs exchange them.

The account's annotations say which role it is meant to have (EKS's and GKE's own names, so nothing
has to be written twice). They are not believed: AWS or Google is asked with the account's token,
and gives the role only to accounts that its own policy trusts. The exchange itself is botocore's
and google-auth's, in the process that knows nothing else (`agent.credentials`).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from modelcache.agent.credentials import GOOGLE_TOKEN_FILE
from modelcache.config import AccessSettings
from modelcache.domain.identities import PodIdentity

ROLE: Final = "eks.amazonaws.com/role-arn"
GOOGLE_ACCOUNT: Final = "iam.gke.io/gcp-service-account"
KNOWN_S: Final = 60.0  # an annotation that was set counts after so long
KNOWN_MAX: Final = 1024
_ARN: Final = re.compile(
    r"arn:[a-z0-9-]{1,32}:iam:[a-z0-9-]{0,32}:[0-9]{0,12}:role/[\w+=,.@/-]{1,512}"
)
_EMAIL: Final = re.compile(r"[a-z0-9-]{1,64}@[a-z0-9.-]{1,190}")
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

Annotations = Callable[[str, str], Mapping[str, str]]
"""Of a service account, by namespace and name. Raises SourceUnavailable."""


def nothing_known(_: str, __: str) -> Mapping[str, str]:
    """Where there is no cluster to ask."""
    return {}


class Identities:
    """See the module. Thread-safe."""

    def __init__(self, settings: AccessSettings, annotations: Annotations = nothing_known) -> None:
        self._settings = settings
        self.annotations = annotations
        """Where accounts' annotations come from; set when the cluster is known."""
        self._known: OrderedDict[tuple[str, str], tuple[float, Mapping[str, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def credentials(self, identity: PodIdentity) -> dict[str, str]:
        """What the account can show at its clouds; empty where it has a role at none.

        Raises SourceUnavailable when the cluster cannot be asked.
        """
        said = self._said(identity.namespace, identity.account)
        return {**self._aws(identity, said), **self._google(identity, said)}

    def _aws(self, identity: PodIdentity, said: Mapping[str, str]) -> dict[str, str]:
        token, role = identity.tokens.get(self._settings.aws_audience), said.get(ROLE, "")
        if not token or not _ARN.fullmatch(role):
            return {}
        return {"AWS_WEB_IDENTITY_TOKEN": token, "AWS_ROLE_ARN": role}

    def _google(self, identity: PodIdentity, said: Mapping[str, str]) -> dict[str, str]:
        provider = self._settings.google_provider
        token = identity.tokens.get(token_audience(provider)) if provider else None
        if not token:
            return {}
        plan = {
            "type": "external_account",
            "audience": provider,
            "subject_token_type": _JWT,
            "token_url": self._settings.google_sts,
            "credential_source": {"file": GOOGLE_TOKEN_FILE},
        }
        email = said.get(GOOGLE_ACCOUNT, "")
        if _EMAIL.fullmatch(email):
            plan["service_account_impersonation_url"] = (
                f"{self._settings.google_iam.rstrip('/')}/v1/projects/-/serviceAccounts/{email}"
                ":generateAccessToken"
            )
        return {"GOOGLE_IDENTITY_TOKEN": token, "GOOGLE_CREDENTIALS": json.dumps(plan)}

    def _said(self, namespace: str, account: str) -> Mapping[str, str]:
        key, now_s = (namespace, account), monotonic()
        with self._lock:
            known = self._known.get(key)
        if known is not None and now_s - known[0] < KNOWN_S:
            return known[1]
        found = self.annotations(namespace, account)
        with self._lock:
            self._known[key] = (now_s, found)
            self._known.move_to_end(key)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return found


def token_audience(provider: str) -> str:
    """For whom a token must be made to be taken by a provider of Google's.

    `//iam.googleapis.com/…` takes tokens for its own name as a URL, and GKE's,
    `identitynamespace:POOL:…`, those for its pool.
    """
    if provider.startswith("identitynamespace:"):
        return provider.split(":", 2)[1]
    return f"https:{provider}" if provider.startswith("//") else provider
