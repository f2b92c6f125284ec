"""`make demo`: the main job on real input, from nothing to an open tensor.

Starts an S3 server on loopback, uploads a model of about 1 GiB to it, pulls it with the command
line as it is installed, tells where the time went and how much of what this machine can do that
was, pulls again, reads a tensor, and then lets three agents want the model at once. Leaves the
store it names, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors

from bench.demo_cluster import demonstrate_cluster
from modelcache.faces import units
from tests.servers.models import write_model
from tests.servers.process import ServerUnavailable
from tests.servers.rclone_s3 import RcloneS3
from tests.servers.uploads import s3_client, upload_tree

BUCKET = "models"
PREFIX = "llama"
REF = f"s3://{BUCKET}/{PREFIX}"
SHARD = "model-00001-of-00004.safetensors"
MODELCACHE = Path(sys.executable).with_name("modelcache")


def main() -> int:
    """Run; 1 when something of it went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("demo-store"), help="made anew")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the model (1024)")
    options = parser.parse_args()
    store: Path = options.store.absolute()
    if store.exists():
        if not (store / "store.json").exists():
            say(f"{store} exists and is no modelcache store; name another with --store")
            return 2
        shutil.rmtree(store)
    try:
        with (
            tempfile.TemporaryDirectory(dir=store.parent, prefix=".modelcache-demo-") as name,
            RcloneS3() as server,
        ):
            demonstrate(server, Path(name), store, options.size_mib << 20)
    except ServerUnavailable as error:
        say(f"the demo could not go on: {error}")
        return 1
    except subprocess.CalledProcessError as error:
        say(f"the demo could not go on: {' '.join(error.cmd[:3])} failed")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


def demonstrate(server: RcloneS3, folder: Path, store: Path, size_bytes: int) -> None:
    """Everything, with the server running."""
    title(f"1. An S3 server on {server.url}, and a model of {units.size(size_bytes)} in it")
    write_model(folder / "model", size_bytes)
    for path in sorted((folder / "model").iterdir()):
        say(f"   {units.size(path.stat().st_size):>9}  {path.name}")
    upload_tree(server, BUCKET, PREFIX, folder / "model", checksums=False)
    shutil.rmtree(folder / "model")
    os.sync()  # or the disk would still be writing this while it is read
    environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL": server.url}

    title("2. Pull it")
    snapshot = Path(modelcache(["pull", REF, "--store", str(store)], environment))

    title("3. Where the time went")
    say(modelcache(["explain", REF, "--store", str(store)], environment))
    report = json.loads(modelcache(["explain", REF, "--store", str(store), "--json"], environment))
    network, disk = limits(server, folder)
    share(report, network, disk)

    title("4. Pull it again")
    for more in ([], ["--max-age", "1h"]):
        command = ["pull", REF, "--store", str(store), *more]
        say(f"$ modelcache {' '.join(command)}")
        start_s = perf_counter()
        modelcache(command, environment)
        say(f"  the whole process took {units.duration(perf_counter() - start_s)}")

    title("5. Open a tensor")
    with safetensors.safe_open(snapshot / SHARD, framework="numpy") as shard:
        name = min(shard.keys())
        tensor = shard.get_tensor(name)
    say(f"   {name}: {tensor.dtype} {tensor.shape}, mean {tensor.mean(dtype='float64'):.6f}")

    title("6. Three nodes want it at once: three agents, one origin")
    demonstrate_cluster(server.url, environment, REF, folder, size_bytes)

    title("Left behind")
    say(f"   the store {store}; look at it with {MODELCACHE} ls --store {store}")


def modelcache(arguments: list[str], environment: dict[str, str]) -> str:
    """Run the command line; what it shows on standard error is shown. Raises CalledProcessError."""
    done = subprocess.run(
        [str(MODELCACHE), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.rstrip("\n")


def limits(server: RcloneS3, folder: Path) -> tuple[float, float]:
    """Bytes per second of this server into memory, and of O_DIRECT writes to this disk."""
    client = s3_client(server)
    head = client.head_object(Bucket=BUCKET, Key=f"{PREFIX}/{SHARD}")
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": BUCKET, "Key": f"{PREFIX}/{SHARD}"}
    )
    size = int(head["ContentLength"])
    network = max(
        size / measured("to_memory", url, str(size), str(connections)) for connections in (4, 8)
    )
    disk = size / measured("to_disk", str(folder / "limit"), str(size))
    return network, disk


def measured(module: str, *arguments: str) -> float:
    """Seconds that plain code needs, in a process of its own."""
    command = [sys.executable, "-m", f"bench.peers.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def share(report: dict[str, Any], network: float, disk: float) -> None:
    """Compare the pull with what the machine can do at most."""
    rate = report["fetched_bytes"] / max(report["transfer_s"], 1e-9)
    limit = min(network, disk)
    say("What this machine can do, measured just now with a few lines of plain code:")
    say(f"   server to memory    {units.rate(network)}")
    say(f"   memory to this disk {units.rate(disk)} past the page cache")
    say(
        f"The transfer ran at {units.rate(rate)}, {100 * rate / limit:.0f} % of the lesser of both."
    )


def title(text: str) -> None:
    """A heading."""
    say(f"\n{text}")


def say(text: str) -> None:
    """A line, now."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
