"""Is a blob what its origin says it is? One check per blob, fed while chunks arrive.

Three ways, chosen by what the origin publishes (`check_for`):

- `CombinedCheck`: CRCs of the chunks, in whatever order they came, combined at the end. Free.
- `PartsCheck`: the same for multipart objects whose checksum is over the checksums of the parts;
  a chunk's bytes are hashed in pieces cut where parts meet.
- `InOrderCheck`: SHA-256, SHA-1 and MD5 cannot be combined, so they follow the contiguous frontier
  of stored chunks. Chunks that land beyond it wait in memory if there is room, or are read back.

Every chunk is also hashed with XXH3-128 for the store; that guards the disk, not the origin.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import xxhash

from modelcache.domain.manifests import Algorithm, Checksum, File
from modelcache.domain.ranges import MIB, ByteRange, ChunkGrid
from modelcache.store import BlobWriter
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.frontier import Frontier, read_back, release

MD5_BYTES_MAX: Final = 64 * MIB  # a tenth of a second on one core; beyond it MD5 would set the pace

Crc = Callable[[memoryview, int], int]
Combine = Callable[[int, int, int], int]  # (crc of A, crc of B, bytes of B) -> crc of A + B


def crc_functions(algorithm: Algorithm) -> tuple[Crc, Combine, int]:
    """The CRC of a buffer (continuing another), the combination of two, and its width in bytes."""
    from awscrt import checksums  # noqa: PLC0415 - a native library; only where a CRC is published

    match algorithm:
        case Algorithm.CRC64NVME:
            return checksums.crc64nvme, checksums.combine_crc64nvme, 8
        case Algorithm.CRC32C:
            return checksums.crc32c, checksums.combine_crc32c, 4
        case Algorithm.CRC32:
            return zlib.crc32, checksums.combine_crc32, 4
        case _:
            raise AssertionError(algorithm)


def new_hash(algorithm: Algorithm, size_bytes: int) -> hashlib._Hash:
    """A hash that must see the bytes in order, of which there will be `size_bytes`."""
    if algorithm is Algorithm.GIT_SHA1:
        return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    return hashlib.new(algorithm.value, usedforsecurity=False)


class ChunkHash:
    """XXH3-128 of one chunk, and its CRC where the check wants one; fed block by block."""

    __slots__ = ("_crc", "_cuts", "_offset", "_xxh3", "pieces")

    def __init__(self, start: int, crc: Crc | None = None, cuts: Sequence[int] = ()) -> None:
        self._xxh3 = xxhash.xxh3_128()
        self._crc = crc
        self._cuts = cuts  # absolute offsets inside the chunk where pieces end
        self._offset = start
        self.pieces: list[tuple[int, int]] = [(start, 0)] if crc else []  # (end so far, crc)

    def update(self, view: memoryview) -> None:
        """Take the next bytes of the chunk."""
        self._xxh3.update(view)
        if self._crc is None:
            return
        while len(view):
            if self._offset in self._cuts:
                self.pieces.append((self._offset, 0))
            cut = next((cut for cut in self._cuts if cut > self._offset), None)
            size = len(view) if cut is None else min(len(view), cut - self._offset)
            end, value = self.pieces[-1]
            self.pieces[-1] = (end + size, self._crc(view[:size], value))
            self._offset += size
            view = view[size:]

    @property
    def xxh3(self) -> bytes:
        """16 bytes."""
        return self._xxh3.digest()

    @property
    def crc(self) -> int | None:
        """CRC of the whole chunk, where it is one piece."""
        return self.pieces[0][1] if len(self.pieces) == 1 else None


class BlobCheck(Protocol):
    """What the engine feeds while a blob arrives, and asks when it is complete. Thread-safe."""

    name: str | None  # for the receipt: which checksum vouches; None: the origin published none
    in_order: bool

    def hasher(self, chunk: int) -> ChunkHash:
        """A fresh hash for one chunk."""
        ...

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """A chunk is in the store. Takes over `blocks`: its bytes, its last few, or none."""
        ...

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """None if the origin's checksum holds; else the chunks in doubt. All chunks are stored.

        Asked again when those have been replaced, each of them told by `stored` as before.
        """
        ...


class Sink(Protocol):
    """Takes a blob's bytes in order while it arrives. One thread at a time.

    The blob itself is not published: it stays a partial, for whoever gave the sink to remove.
    """

    def take(self, view: memoryview) -> None:
        """The next bytes; `view` is not to be kept. What it raises ends the blob for good."""
        ...

    def restart(self) -> None:
        """All bytes taken so far were wrong; they come again from the start."""
        ...

    def complete(self) -> None:
        """All bytes were taken, and they are right. What it raises ends the blob for good."""
        ...


class UncheckedBlob:
    """The origin published nothing we can check: size, pin and our own chunk hashes remain."""

    name: str | None = None
    in_order = False

    def __init__(self, grid: ChunkGrid) -> None:
        self._grid = grid

    def hasher(self, chunk: int) -> ChunkHash:
        """See BlobCheck."""
        return ChunkHash(self._grid.span(chunk).start)

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """See BlobCheck."""
        del chunk, hashed
        release(blocks)

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """See BlobCheck."""
        del writer
        return None


class CombinedCheck:
    """A CRC over the whole blob, combined from its chunks' CRCs, which the journal keeps."""

    in_order = False

    def __init__(self, checksum: Checksum, grid: ChunkGrid) -> None:
        self.name: str | None = checksum.algorithm.value
        self._grid = grid
        self._expected = int(checksum.value, 16)
        self._crc, self._combine, _ = crc_functions(checksum.algorithm)

    def hasher(self, chunk: int) -> ChunkHash:
        """See BlobCheck."""
        return ChunkHash(self._grid.span(chunk).start, self._crc)

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """See BlobCheck."""
        del chunk, hashed
        release(blocks)

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """See BlobCheck."""
        whole = 0
        for chunk in range(self._grid.count):
            span = self._grid.span(chunk)
            crc = writer.crc(chunk)
            if crc is None:  # stored by a pull that knew no checksum
                crc = _crc_of(writer, span, self._crc)
            whole = self._combine(whole, crc, span.size_bytes)
        return None if whole == self._expected else list(range(self._grid.count))


class PartsCheck:
    """A CRC over the CRCs of an object's parts (S3's COMPOSITE checksums)."""

    in_order = False

    def __init__(self, checksum: Checksum, grid: ChunkGrid) -> None:
        self.name: str | None = f"{checksum.algorithm.value}-parts"
        self._grid = grid
        self._checksum = checksum
        self._crc, self._combine, self._width = crc_functions(checksum.algorithm)
        self._pieces: dict[int, list[tuple[int, int]]] = {}
        self._ends: list[int] = []
        for size in checksum.parts:
            self._ends.append((self._ends[-1] if self._ends else 0) + size)

    def hasher(self, chunk: int) -> ChunkHash:
        """See BlobCheck."""
        span = self._grid.span(chunk)
        cuts = [end for end in self._ends if span.start < end < span.end]
        return ChunkHash(span.start, self._crc, cuts)

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """See BlobCheck."""
        self._pieces[chunk] = hashed.pieces
        release(blocks)

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """See BlobCheck."""
        values = self._part_values(writer)
        digest = self._crc(memoryview(b"".join(v.to_bytes(self._width) for v in values)), 0)
        if digest == int(self._checksum.value, 16):
            return None
        found = [value.to_bytes(self._width).hex() for value in values]
        return _chunks_in_doubt(self._checksum, found, self._grid)

    def _part_values(self, writer: BlobWriter) -> list[int]:
        values = [0] * len(self._ends)
        part = 0
        start = 0
        for chunk in range(self._grid.count):
            for end, crc in self._pieces.get(chunk) or self._read_pieces(writer, chunk):
                values[part] = self._combine(values[part], crc, end - start)
                start = end
                while part < len(self._ends) and end == self._ends[part]:  # one may be empty
                    part += 1
        return values

    def _read_pieces(self, writer: BlobWriter, chunk: int) -> list[tuple[int, int]]:
        hashed = self.hasher(chunk)
        read_back(writer, self._grid.span(chunk), hashed.update)
        return hashed.pieces


class InOrderCheck:
    """A hash that must see the bytes in order, over the whole blob or part by part."""

    in_order = True

    def __init__(
        self,
        checksum: Checksum,
        grid: ChunkGrid,
        pool: BufferPool,
        writer: BlobWriter,
        sink: Sink | None = None,
    ) -> None:
        self.name: str | None = checksum.algorithm.value + ("-parts" if checksum.parts else "")
        self._checksum = checksum
        self._grid = grid
        self._blob = writer.blob
        self._sink = sink
        self._frontier = Frontier([writer.blob], pool, self._update)
        self._frontier.open(writer.blob, writer)
        self._restart()

    def hasher(self, chunk: int) -> ChunkHash:
        """See BlobCheck."""
        return ChunkHash(self._grid.span(chunk).start)

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """See BlobCheck."""
        del hashed
        self._frontier.stored(self._blob, chunk, blocks)

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """See BlobCheck."""
        del writer
        self._frontier.finish()
        digests = self._part_digests()
        if self._value_of(digests) == self._checksum.value:
            return None
        self._frontier.restart(self._restart)
        if self._sink is not None:
            self._sink.restart()
        found = [digest.hex() for digest in digests]
        return _chunks_in_doubt(self._checksum, found, self._grid)

    def _restart(self) -> None:
        self._part_left = self._checksum.parts[0] if self._checksum.parts else self._grid.size_bytes
        self._hash = new_hash(self._checksum.algorithm, self._part_left)
        self._digests: list[bytes] = []

    def _update(self, view: memoryview) -> None:
        if self._sink is not None:
            self._sink.take(view)
        while len(view) > self._part_left:
            self._hash.update(view[: self._part_left])
            view = view[self._part_left :]
            self._next_part()
        self._hash.update(view)
        self._part_left -= len(view)

    def _next_part(self) -> None:
        self._digests.append(self._hash.digest())
        self._part_left = self._checksum.parts[len(self._digests)]
        self._hash = new_hash(self._checksum.algorithm, self._part_left)

    def _part_digests(self) -> list[bytes]:
        """Of every part, or of the one that a blob without parts is. All bytes have been seen."""
        while len(self._digests) + 1 < len(self._checksum.parts):  # an empty part at the end
            self._next_part()
        return [*self._digests, self._hash.digest()]

    def _value_of(self, digests: list[bytes]) -> str:
        if not self._checksum.parts:
            return digests[0].hex()
        joined = b"".join(digests)
        whole = new_hash(self._checksum.algorithm, len(joined))
        whole.update(joined)
        return whole.hexdigest()


def _chunks_in_doubt(checksum: Checksum, found: list[str], grid: ChunkGrid) -> list[int]:
    """The chunks of the parts that are wrong; all where the origin does not list its parts'.

    found: hex, of each part.
    """
    expected = checksum.part_values
    chunks: set[int] = set()
    if len(expected) == len(found):
        start = 0
        for size, value, wanted in zip(checksum.parts, found, expected, strict=True):
            if size and value != wanted:
                first, last = start // grid.chunk_bytes, (start + size - 1) // grid.chunk_bytes
                chunks.update(range(first, last + 1))
            start += size
    return sorted(chunks) or list(range(grid.count))


def best_checksum(file: File, *, verify_md5: bool) -> Checksum | None:
    """The first published checksum that is worth its cost; sources list the best first."""
    for checksum in file.checksums:
        if checksum.parts and sum(checksum.parts) != file.size_bytes:
            continue
        costly = checksum.algorithm is Algorithm.MD5 and file.size_bytes > MD5_BYTES_MAX
        if verify_md5 or not costly:
            return checksum
    return None


def check_for(
    file: File,
    writer: BlobWriter,
    pool: BufferPool,
    *,
    verify_md5: bool,
    sink: Sink | None = None,
) -> BlobCheck:
    """The check of what the origin publishes for `file`.

    sink: only for a file whose best checksum must see the bytes in order.
    """
    grid = writer.grid
    checksum = best_checksum(file, verify_md5=verify_md5)
    if sink is not None:
        assert checksum is not None and not checksum.algorithm.combines, "in order"  # noqa: S101, PT018
        return InOrderCheck(checksum, grid, pool, writer, sink)
    if checksum is None:
        return UncheckedBlob(grid)
    if not checksum.algorithm.combines:
        return InOrderCheck(checksum, grid, pool, writer)
    return (PartsCheck if checksum.parts else CombinedCheck)(checksum, grid)


def matches(checksum: Checksum, view: memoryview) -> bool:
    """Whether a blob held in memory has this checksum. Multipart ones are cut at their parts."""
    if not checksum.parts:
        return _digest(checksum.algorithm, view).hex() == checksum.value
    if sum(checksum.parts) != len(view):
        return False
    digests = []
    for size in checksum.parts:
        digests.append(_digest(checksum.algorithm, view[:size]))
        view = view[size:]
    whole = _digest(checksum.algorithm, memoryview(b"".join(digests)))
    return whole.hex() == checksum.value


def _digest(algorithm: Algorithm, view: memoryview) -> bytes:
    if algorithm.combines:
        crc, _, width = crc_functions(algorithm)
        return crc(view, 0).to_bytes(width)
    hashed = new_hash(algorithm, len(view))
    hashed.update(view)
    return hashed.digest()


def _crc_of(writer: BlobWriter, span: ByteRange, crc: Crc) -> int:
    hashed = ChunkHash(span.start, crc)
    read_back(writer, span, hashed.update)
    return hashed.pieces[0][1]
