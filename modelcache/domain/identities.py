"""A pod's service account, as kubelet vouches for it: whose identity at its cloud a volume may use.

Kubelet asks the API server for tokens of the pod's account, one for each audience that the
CSIDriver object names, and hands them to the driver with the volume. They are the account's alone;
what they open is the cloud's to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from modelcache.errors import UsageError

TOKENS: Final = "csi.storage.k8s.io/serviceAccount.tokens"
"""In a volume's attributes, or among its secrets (`serviceAccountTokenInSecrets`)."""
_ACCOUNT: Final = "csi.storage.k8s.io/serviceAccount.name"
_NAMESPACE: Final = "csi.storage.k8s.io/pod.namespace"
TOKENS_MAX: Final = 16
TOKEN_CHARACTERS_MAX: Final = 16 << 10  # one has about a thousand


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """One account. tokens: by audience."""

    namespace: str
    account: str
    tokens: Mapping[str, str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, tokens among them."""
        tokens = dict(self.tokens)
        return {"namespace": self.namespace, "account": self.account, "tokens": tokens}

    @property
    def subject(self) -> str:
        """As tokens name the account."""
        return f"system:serviceaccount:{self.namespace}:{self.account}"

    @classmethod
    def of_volume(cls, attributes: Mapping[str, str], secrets: Mapping[str, str]) -> Self | None:
        """What kubelet has handed over; None where it does not.

        Raises UsageError for what cannot be read.
        """
        text = attributes.get(TOKENS) or secrets.get(TOKENS)
        namespace, account = attributes.get(_NAMESPACE, ""), attributes.get(_ACCOUNT, "")
        if not text:
            return None
        if not namespace or not account:
            raise UsageError("a volume has tokens of no account; set podInfoOnMount of CSIDriver")
        try:
            tokens = {str(audience): str(each["token"]) for audience, each in _items(text)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError("the tokens of the pod's account cannot be read") from error
        if len(tokens) > TOKENS_MAX or any(len(t) > TOKEN_CHARACTERS_MAX for t in tokens.values()):
            raise UsageError("the tokens of the pod's account are too many or too long")
        return cls(namespace, account, tokens)


def _items(text: str) -> list[tuple[Any, Any]]:
    return list(json.loads(text).items())
