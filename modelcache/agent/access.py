"""Who may have a volume of what: asked at the origin, with the volume's or its pod's credentials.

The question is put by a process of its own, which knows nothing else (`agent.credentials`). What
it was told is remembered for a while, under a hash that says nothing about the secret.
"""

from __future__ import annotations

import hmac
import json
import secrets
import subprocess
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic
from typing import Any, Final

from modelcache.agent.credentials import check_keys, command_for, environment_of
from modelcache.agent.reaching import Reach
from modelcache.config import AccessMode, Settings
from modelcache.domain.refs import Ref
from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NoCredentials,
    SourceUnavailable,
    error_named,
)

ASK_S: Final = 60.0
REFUSED_KEPT_S: Final = 15.0  # whoever was refused may have been given the right meanwhile
REMEMBERED_MAX: Final = 10_000

Answered = tuple[float, tuple[type[ModelcacheError], str] | None]
"""Until when it holds, and what was refused and how."""


class Access:
    """Decides who may have a volume of what. Thread-safe."""

    def __init__(self, settings: Settings, reach: Reach | None = None) -> None:
        """reach: where pods may lead; as the settings have it without."""
        self._reach = reach or Reach(settings)
        self._policy = settings.access
        self._key = secrets.token_bytes(32)  # what is remembered says nothing about the secrets
        self._known: OrderedDict[bytes, Answered] = OrderedDict()
        self._lock = threading.Lock()

    def check(
        self, ref: Ref, credentials: Mapping[str, str], *, tenant: str = "", subject: str = ""
    ) -> bool:
        """Raise Forbidden unless a volume with these credentials may show the model.

        With a secret it must be good for it, whatever the policy; else the policy decides, and
        where it asks for a right of the pod's own, the pod's identity must be good for it.
        credentials: a secret's keys and values; or what an account can show, and then subject names
        the account. Raises UsageError for keys that mean nothing, SourceUnavailable when the origin
        cannot be asked. Returns whether the origin has said so of these credentials.
        """
        self._reach.check(ref, tenant)
        if not credentials or subject:
            if self._policy.mode is AccessMode.NODE or self._is_shared(ref):
                return False
            if not credentials:
                raise _refused(ref, subject)
        else:
            check_keys(credentials)
        key = self._name(ref, _lasting(credentials, subject))
        with self._lock:
            known = self._known.get(key)
        if known is None or known[0] <= monotonic():
            settings = self._reach.settings_for(ref, tenants_only=bool(tenant))
            known = self._ask(settings, ref, credentials, subject)
            with self._lock:
                self._known[key] = known
                while len(self._known) > REMEMBERED_MAX:
                    self._known.popitem(last=False)
        if known[1] is not None:
            family, message = known[1]
            raise family(message)
        return True

    def _is_shared(self, ref: Ref) -> bool:
        return any(fnmatchcase(ref.redacted(), pattern) for pattern in self._policy.shared)

    def _name(self, ref: Ref, credentials: Mapping[str, str]) -> bytes:
        plain = json.dumps([str(ref), sorted(credentials.items())]).encode()
        return hmac.digest(self._key, plain, "sha256")

    def _ask(
        self, settings: Settings, ref: Ref, credentials: Mapping[str, str], subject: str
    ) -> Answered:
        """Ask, and say until when that holds. Raises SourceUnavailable: then nobody has said no."""
        with tempfile.TemporaryDirectory(prefix="modelcache-access-") as name:
            folder = Path(name)  # only ours to read; gone with the question
            answer = _run(ref, folder, environment_of(settings, credentials, folder))
        error = answer.get("error")
        if error is None:
            return monotonic() + self._policy.keep_s, None
        code, said = str(error.get("code")), str(error.get("message"))
        refusal = error_named(code, said, ModelcacheError)
        if isinstance(refusal, SourceUnavailable):
            raise refusal
        family: type[ModelcacheError] = type(refusal)
        if isinstance(refusal, (Forbidden, NoCredentials)):
            family = Forbidden
            who = f"the pod's account {subject}" if subject else "the volume's secret"
            said = f"{who} may not read {ref.redacted()}: {said}"
        return monotonic() + REFUSED_KEPT_S, (family, said)


def _lasting(credentials: Mapping[str, str], subject: str) -> Mapping[str, str]:
    """What stays the same from one pod of an account to the next: tokens do not."""
    if not subject:
        return credentials
    roles = {key: value for key, value in credentials.items() if not key.endswith("_TOKEN")}
    return {**roles, "subject": subject}


def _refused(ref: Ref, subject: str) -> Forbidden:
    name = ref.redacted()
    if not subject:
        return Forbidden(
            f"{name} is mounted only for pods whose own secret may read it; give the volume a "
            "nodePublishSecretRef, or list the model in access.shared"
        )
    return Forbidden(
        f"{name} is mounted only for pods that may read it themselves, and {subject} has no role "
        "at a cloud; annotate the account with one, give the volume a nodePublishSecretRef, or "
        "list the model in access.shared"
    )


def _run(ref: Ref, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command_for(folder, "access", ref),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(f"{ref.redacted()} does not answer who may read it") from error
    except ValueError as error:
        raise SourceUnavailable(f"who may read {ref.redacted()} cannot be found out") from error
    return answer
