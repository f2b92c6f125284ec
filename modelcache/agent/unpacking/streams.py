"""Decompressing what arrives in pieces, into pieces of bounded size.

A few bytes can mean gigabytes of zeros, so whatever comes out is handed on piece by piece, and who
takes the pieces may stop it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import IO, Final, Protocol, cast

from modelcache.domain.archives import Compression
from modelcache.domain.ranges import MIB
from modelcache.errors import CorruptData, UsageError

PIECE_BYTES: Final = MIB  # large enough to cost few calls, small enough to have several waiting
INPUT_BYTES: Final = MIB // 4  # at a time: what zlib does not come to use it copies
ZSTD_WINDOW_MAX: Final = 128 * MIB  # what `zstd -d` accepts without being told; its memory
_GZIP: Final = 31  # zlib's window bits for gzip and nothing else
_NONZERO: Final = re.compile(rb"[^\0]")

Emit = Callable[[bytes], None]


class Decoder(Protocol):
    """Decompresses one stream. Use once; hands pieces of at most PIECE_BYTES to its `Emit`."""

    def feed(self, view: memoryview) -> None:
        """Take the next bytes. Raises CorruptData, and what the taker of pieces raises."""
        ...

    def finish(self) -> None:
        """There are no more. Raises CorruptData when there should be."""
        ...


def decoder_for(compression: Compression, emit: Emit) -> Decoder:
    """A decoder. Raises UsageError when the extra that it needs is not installed."""
    try:
        match compression:
            case Compression.NONE:
                return _Copier(emit)
            case Compression.GZIP:
                return _Gunzip(emit)
            case Compression.ZSTD:
                return _Unzstd(emit)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{compression} layers need {error.name}, which is not installed; install "
            "modelcache[oci]"
        ) from error


class _Copier:
    """See Decoder."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def feed(self, view: memoryview) -> None:
        """See Decoder."""
        for start in range(0, len(view), PIECE_BYTES):
            self._emit(bytes(view[start : start + PIECE_BYTES]))

    def finish(self) -> None:
        """See Decoder."""


class _Gunzip:
    """See Decoder. Several members in a row are one stream, as pigz and `cat` make them."""

    def __init__(self, emit: Emit) -> None:
        from isal import isal_zlib  # noqa: PLC0415 - a native library, only where it is needed

        self._library = isal_zlib
        self._error = cast("type[Exception]", isal_zlib.error)  # the stubs call it an instance
        self._emit = emit
        self._stream = isal_zlib.decompressobj(_GZIP)
        self._begun = False  # the member at hand has bytes
        self._padded = False  # zeros follow the last member

    def feed(self, view: memoryview) -> None:
        """See Decoder."""
        for start in range(0, len(view), INPUT_BYTES):
            left: bytes | memoryview = view[start : start + INPUT_BYTES]
            while len(left):
                left = self._member(left)

    def finish(self) -> None:
        """See Decoder."""
        if self._begun or not (self._stream.eof or self._padded):
            raise CorruptData("its gzip data ends too early")

    def _member(self, data: bytes | memoryview) -> bytes | memoryview:
        """Decompress what belongs to the member at hand; returns what is left."""
        if self._stream.eof:
            found = _NONZERO.search(data)
            self._padded = self._padded or data[0] == 0
            if found is None:
                return b""
            if self._padded:
                raise CorruptData("something follows its gzip data")
            self._stream = self._library.decompressobj(_GZIP)
        self._begun = True
        try:
            self._decompress(data)
        except self._error as error:
            raise CorruptData(f"its gzip data is damaged ({error})") from error
        self._begun = not self._stream.eof
        return self._stream.unused_data

    def _decompress(self, data: bytes | memoryview) -> None:
        """Hand on what comes of it, up to the end of the member."""
        more = True
        while more:
            piece = self._stream.decompress(data, PIECE_BYTES)
            if piece:
                self._emit(piece)
            data = self._stream.unconsumed_tail
            more = not self._stream.eof and (len(data) > 0 or len(piece) == PIECE_BYTES)


class _Unzstd:
    """See Decoder. Several frames in a row are one stream.

    The library does not tell whether the last frame is whole; what is in it is a tar, which does.
    """

    def __init__(self, emit: Emit) -> None:
        import zstandard  # noqa: PLC0415 - a native library, only where it is needed

        self._library = zstandard
        self._writer = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX).stream_writer(
            cast("IO[bytes]", _Writer(emit)), write_size=PIECE_BYTES, closefd=False
        )

    def feed(self, view: memoryview) -> None:
        """See Decoder."""
        try:
            self._writer.write(view)
        except self._library.ZstdError as error:
            raise CorruptData(f"its zstd data is damaged ({error})") from error

    def finish(self) -> None:
        """See Decoder."""


class _Writer:
    """What the library takes for a file."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def write(self, data: bytes) -> int:
        """Hand the piece on."""
        self._emit(data)
        return len(data)
