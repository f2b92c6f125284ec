"""Our image, really built: from the Containerfile, on a base that Debian's packages make.

No registry is asked. `python -m tests.tools` makes the base, once for all checkouts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.foreign import CACHE
from tests.cluster.installing import DAEMONSET
from tests.servers.process import ServerUnavailable, find_program

BASE = CACHE / "python-base-bookworm.tar"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
NAME = "modelcache.test/modelcache:1"
# How this machine's pip reaches its index; read while building, and no part of the image.
_PIP = ("/etc/pip.conf", "/etc/ssl/certs")
_ROOT = DAEMONSET.parent
_BASE_FILE = """
FROM scratch
ADD base.tar /
RUN ln -sf python3 /usr/bin/python
ENV PATH=/usr/local/bin:/usr/bin:/bin
"""


def make_base() -> str:
    """Have the base here; what went wrong, if so. Needs root."""
    folder = CACHE / ".python-base"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return f"debootstrap failed: {done.stdout[-300:]!r}"
    for each in (
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/locale",
    ):
        shutil.rmtree(folder / each, ignore_errors=True)
    made = BASE.with_name(f".{BASE.name}")
    subprocess.run(["tar", "-C", str(folder), "-cf", str(made), "."], check=True)
    made.rename(BASE)
    shutil.rmtree(folder)
    return ""


def build(folder: Path) -> Path:
    """The image as `docker save` writes it. folder: for everything on the way.

    Raises ServerUnavailable where it cannot be built here.
    """
    if not BASE.exists():
        raise ServerUnavailable("the image's base is not there: run `make test` as root")
    storage = [f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]
    buildah = [find_program("buildah", "apt-get install buildah"), *storage]
    context = folder / "base"
    context.mkdir()
    shutil.copyfile(BASE, context / "base.tar")
    (context / "Containerfile").write_text(_BASE_FILE)
    volumes = [f"--volume={each}:{each}:ro" for each in _PIP if Path(each).exists()]
    common = ["build", "--isolation=chroot", "--network=host", *volumes]
    _run([*buildah, *common, "--tag=localhost/base", str(context)])
    file = DAEMONSET / "image" / "Containerfile"
    _run(
        [
            *buildah,
            *common,
            "--build-arg=BASE=localhost/base",
            "--tag=localhost/modelcache",
            f"--file={file}",
            str(_ROOT),
        ]
    )
    archive = folder / "image.tar"
    _run([*buildah, "push", "localhost/modelcache", f"docker-archive:{archive}:{NAME}"])
    return archive


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "HOME": "/root", "BUILDAH_ISOLATION": "chroot"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert not done.returncode, (done.stdout[-3000:] + done.stderr[-3000:]).decode()
