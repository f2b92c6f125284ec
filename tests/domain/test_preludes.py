"""What comes before the weights."""

from __future__ import annotations

from modelcache.domain.manifests import BlobId, File
from modelcache.domain.preludes import HEADERS_MAX, SMALL_BYTES, prelude
from modelcache.domain.ranges import ByteRange


def file(path: str, size: int) -> File:
    return File(path, size, path, BlobId(path))


def test_descriptions_come_whole_the_smallest_first_and_then_headers():
    found = prelude(
        [
            file("model-1.safetensors", 5 << 30),
            file("tokenizer.json", 9_000_000),
            file("pytorch_model.bin", 1 << 30),
            file("config.json", 600),
            file("empty.json", 0),
            file("picture.png", 1000),
            file("data.json", SMALL_BYTES + 1),
        ]
    )
    assert [(each.path, span) for each, span in found] == [
        ("config.json", ByteRange(0, 600)),
        ("tokenizer.json", ByteRange(0, 9_000_000)),
        ("model-1.safetensors", ByteRange(0, 1)),
        ("pytorch_model.bin", ByteRange((1 << 30) - 1, 1 << 30)),
    ]


def test_headers_of_very_many_shards_do_not_come_before_everything_else():
    found = prelude([file(f"{n}.gguf", 1 << 30) for n in range(2 * HEADERS_MAX)])
    assert len(found) == HEADERS_MAX
