"""A volume's secret, or its pod's identity, as the environment of a process that has no other.

Nothing of the node's is in it: no profile, no token, no metadata service, so that no library can
find better credentials by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final

from modelcache.config import Settings
from modelcache.domain.refs import Ref
from modelcache.errors import UsageError

SECRET_BYTES_MAX: Final = 64 << 10
# Keys of a secret by the variable that libraries read, and those whose content must be a file.
VARIABLES: Final = {
    **{
        name: name
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_REGION",
            "HF_TOKEN",
        )
    },
    "http-headers": "MODELCACHE_HTTP_HEADERS",
}
FILES: Final = {
    ".dockerconfigjson": "MODELCACHE_OCI_AUTH_FILE",
    "GOOGLE_CREDENTIALS": "GOOGLE_APPLICATION_CREDENTIALS",
}
# Of a pod's own account (`agent.identities`): not for secrets of people's.
IDENTITY_VARIABLES: Final = {"AWS_ROLE_ARN": "AWS_ROLE_ARN"}
IDENTITY_FILES: Final = {"AWS_WEB_IDENTITY_TOKEN": "AWS_WEB_IDENTITY_TOKEN_FILE"}
GOOGLE_TOKEN_FILE: Final = "google-token"  # noqa: S105 - beside what names it, in the process's folder
_REGION: Final = "us-east-1"  # where nobody says: every STS answers there, and MinIO does not care
# How origins are reached is the node's matter, and says nothing of who may read them.
_SETTINGS: Final = {
    "s3": ("endpoint", "region", "style", "requester_pays", "anonymous", "ca_file"),
    "gcs": ("endpoint", "user_project", "anonymous", "ca_file"),
    "oci": ("plain_http", "platform", "ca_file"),
    "hf": ("endpoint", "ca_file"),
    "http": ("ca_file",),
    "mirrors": ("rewrite", "only"),
    "transfer": ("connect_timeout_s", "stall_timeout_s", "refused_networks"),
}
_PASSED: Final = ("PATH", "PYTHONPATH", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


def check_keys(credentials: Mapping[str, str]) -> None:
    """Refuse a secret with keys that mean nothing, and values that are none. Raises UsageError."""
    for key, value in credentials.items():
        if key not in VARIABLES and key not in FILES:
            known = ", ".join(sorted([*VARIABLES, *FILES]))
            raise UsageError(
                f"the volume's secret has a key {key[:60]!r} that means nothing here; there are "
                f"{known}"
            )
        if len(value) > SECRET_BYTES_MAX or "\0" in value:
            raise UsageError(f"the volume's secret has no usable value under {key!r}")


def command_for(folder: Path, command: str, ref: Ref) -> list[str]:
    """The command line of a process of ours about a ref, which reads no configuration file."""
    nothing = folder / "config.toml"
    nothing.touch()
    ours = [sys.executable, "-m", "modelcache.main", command]
    return [*ours, "--json", f"--config={nothing}", "--", str(ref)]  # a ref is never an option


def environment_of(
    settings: Settings,
    credentials: Mapping[str, str],
    folder: Path,
    *,
    groups: Collection[str] = (),
) -> dict[str, str]:
    """The variables. credentials: as `check_keys` lets pass, or of `Identities`.

    folder: only ours to read, and where the process works.
    groups: of the settings, that are told whole.
    """
    environment = {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_GCE_CHECK": "true",
    }
    for name in _PASSED:
        for either in (name, name.lower()):
            if either in os.environ:
                environment[either] = os.environ[either]
    environment |= dict(_told(settings, groups))
    if "AWS_ROLE_ARN" in credentials:
        environment |= _sts(settings)
    variables, files = VARIABLES | IDENTITY_VARIABLES, FILES | IDENTITY_FILES
    for number, (key, value) in enumerate(credentials.items()):
        if key in variables:
            environment[variables[key]] = value.strip()
        elif key == "GOOGLE_IDENTITY_TOKEN":
            _write(folder / GOOGLE_TOKEN_FILE, value)
        else:
            path = folder / f"secret-{number}"
            _write(path, value)
            environment[files[key]] = str(path)
    return environment


def _write(path: Path, value: str) -> None:
    path.touch(mode=0o600)
    path.write_text(value, encoding="utf-8")


def _sts(settings: Settings) -> dict[str, str]:
    """How the service that exchanges tokens is reached; its region is the node's."""
    region = settings.s3.region or os.environ.get("AWS_REGION") or _REGION
    told = {"AWS_DEFAULT_REGION": region}
    if settings.access.sts_endpoint:
        told["AWS_ENDPOINT_URL_STS"] = settings.access.sts_endpoint
    if settings.s3.ca_file:
        told["AWS_CA_BUNDLE"] = settings.s3.ca_file
    return told


def _told(settings: Settings, groups: Collection[str]) -> Iterator[tuple[str, str]]:
    for name in {*_SETTINGS, *groups}:
        group = getattr(settings, name)
        for field in fields(group):
            if name in groups or field.name in _SETTINGS[name]:
                text = _text(getattr(group, field.name))
                yield f"MODELCACHE_{name}_{field.name}".upper(), text


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "\n".join(value) if isinstance(value, tuple) else str(value)
