"""obstore, ranges in threads, each written at its place.

`s3 BUCKET PREFIX TARGET` or `http URL NAME TARGET`.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.store import HTTPStore, S3Store

THREADS = 8
THREADS_SMALL = 32
PART_BYTES = 16 << 20


def main() -> None:
    """Download everything."""
    kind, where, what, target = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    options: Any = {"allow_http": True}
    if os.environ.get("SSL_CERT_FILE"):
        options["allow_invalid_certificates"] = True  # it takes no authority of one's own
    store: Any
    if kind == "http":
        store = HTTPStore.from_url(where, client_options=options)
        files = [(what, int(obstore.head(store, what)["size"]), target / what)]
    else:
        store = S3Store(
            where,
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            virtual_hosted_style_request=False,
            client_options=options,
        )
        prefix = what.rstrip("/") + "/"
        files = [
            (item["path"], item["size"], target / item["path"].removeprefix(prefix))
            for page in obstore.list(store, prefix)
            for item in page
        ]
    download(store, files)


def download(  # noqa: C901 - a plain script reads best in one piece
    store: Any,  # noqa: ANN401 - two classes without a common one
    files: list[tuple[str, int, Path]],
) -> None:
    """Ranges of all files over one pool."""
    for folder in {path.parent for _, _, path in files}:
        folder.mkdir(parents=True, exist_ok=True)

    def whole(key: str, path: Path) -> None:
        path.write_bytes(memoryview(obstore.get(store, key).bytes()))

    def part(key: str, start: int, end: int, file: int) -> None:
        data = memoryview(obstore.get_range(store, key, start=start, end=end))
        while data:
            count = os.pwrite(file, data, start)
            data, start = data[count:], start + count

    small = all(size <= PART_BYTES for _, size, _ in files)
    waiting = []
    opened = []
    with ThreadPoolExecutor(THREADS_SMALL if small else THREADS) as pool:
        for key, size, path in files:
            if size <= PART_BYTES:
                waiting.append(pool.submit(whole, key, path))
                continue
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            opened.append(file)
            os.posix_fallocate(file, 0, size)
            waiting += [
                pool.submit(part, key, start, min(start + PART_BYTES, size), file)
                for start in range(0, size, PART_BYTES)
            ]
        for each in waiting:
            each.result()
    for file in opened:
        os.close(file)


if __name__ == "__main__":
    main()
