"""huggingface_hub's snapshot_download: ENDPOINT REPOSITORY TARGET; prints where the files are."""

from __future__ import annotations

import sys

from huggingface_hub import snapshot_download


def main() -> None:
    """Download the whole repository into a cache below the target."""
    endpoint, repository, target = sys.argv[1:4]
    path = snapshot_download(
        repository, endpoint=endpoint, cache_dir=target, max_workers=16, token=False
    )
    print(path)


if __name__ == "__main__":
    main()
