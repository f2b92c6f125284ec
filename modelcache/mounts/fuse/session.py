"""Serving one mount: the kernel's requests in, answers out.

A few threads take requests. What can be answered is answered at once; a read of bytes that are not
here is parked, and one more thread looks after those. Another one tells the kernel what it should
forget. Of what a file holds it knows nothing but what its `Contents` says. Whatever goes wrong in
answering is EIO to who asked: an answer that never came would hang the reader for good.

It is longer than others because all requests of a mount are told apart here.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic, monotonic_ns
from typing import Any, Final, Protocol

from modelcache.domain.ranges import ByteRange
from modelcache.errors import ModelcacheError
from modelcache.mounts.fuse import protocol
from modelcache.mounts.fuse.channel import Channel
from modelcache.mounts.fuse.parking import Parked, Parking
from modelcache.mounts.fuse.protocol import Head, Op, ReadRequest
from modelcache.mounts.fuse.tree import Node, Tree
from modelcache.mounts.fuse.windows import Window

THREADS: Final = 3  # two take turns with the interpreter; the third while one waits for the disk
VALID_S: Final = 86_400  # names and sizes never change; epochs are told when they do
LOOK_S: Final = 0.25  # how often it is looked whether files are complete, while something comes
IDLE_S: Final = 5.0  # the same while nothing is heard of: other processes may bring something
AGAIN_S: Final = 5.0  # who waits says so again: nobody may bring anything, until somebody hears it
HANDLES_MAX: Final = 65_536  # open files whose way of being read is remembered


class Contents(Protocol):
    """What the files of a tree hold, as far as it is here. Files are meant by their numbers."""

    def read(self, number: int, offset: int, view: memoryview) -> bool:
        """Fill `view`; False if some of that is not here. Raises ModelcacheError."""
        ...

    def want(self, number: int, span: ByteRange, *, waits: bool) -> None:
        """Somebody waits for a range, or will want it soon. It may end beyond the file."""
        ...

    def open(self, number: int) -> int | None:
        """A descriptor of the file if all of it is here, which the caller closes."""
        ...

    def hopeless(self, number: int) -> bool:
        """Whether what is missing of a file will not come."""
        ...

    @property
    def flights(self) -> int:
        """Rises when somebody new begins to bring what is missing: it has to be wanted of them."""
        ...


class Report(Protocol):
    """Who is told what went wrong for readers."""

    def __call__(self, what: str, **details: Any) -> None:  # noqa: ANN401 - for JSON
        """what: a fixed name: timed_out, failed, doubted, bug."""
        ...


class Descriptor:
    """A file, open until nobody refers to this any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close; also when the interpreter ends, and modules are empty."""
        close(self.fd)


class Session:
    """See the module. Thread-safe."""

    def __init__(
        self,
        channel: Channel,
        tree: Tree,
        contents: Contents,
        report: Report,
        *,
        read_timeout_s: float,
        chunk_bytes: int,
        ahead_bytes_max: int,
        passthrough: bool,
        before: Mapping[str, Any] | None = None,
        keep: Callable[[dict[str, Any]], None] = lambda _: None,
        ended: Callable[[], None] = lambda: None,
        cover: Callable[[], bool] = lambda: True,
    ) -> None:
        """passthrough: let the kernel read complete files itself, where it can.

        before: the state of another process that has served this mount, which the tree has taken
        over. keep: is given the state that the next one needs, before it takes effect. ended:
        called once, when the mount is gone and nobody has a file of it open. cover: asked, where
        the kernel does not read complete files itself, whenever more of them may be; True ends
        that. It may not ask for anything of the mount, nor raise.
        """
        self._channel = channel
        self._tree = tree
        self._contents = contents
        self._report = report
        self._read_timeout_s = read_timeout_s
        self._window = (chunk_bytes, ahead_bytes_max)
        self._wants_passthrough = passthrough
        self._keep = keep
        self._on_end = ended
        self._cover = cover
        self._covered = False  # or never to be
        self._taken_over = before is not None
        self.passthrough = bool(passthrough and before and before.get("passthrough"))
        """Whether the kernel has it."""
        self.resend = bool(before and before.get("resend"))
        """Whether the kernel asks again what a process before has not answered."""
        self._lock = threading.Lock()  # nodes' epochs and backings
        self._parking = Parking()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._windows: dict[int, Window] = {}
        self._handles: dict[int, int] = {}  # open handles of each file, for its descriptor
        self._descriptors: dict[int, Descriptor] = {}
        self._next_handle = monotonic_ns()  # others than those of the process before
        self._handlers: dict[int, Callable[[Head, bytearray, int], bytes | None]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: _refuse(errno.EINVAL),
            Op.OPEN: self._open,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.FLUSH: _refuse(errno.ENOSYS),
            Op.INIT: self._init,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdir,
            Op.RELEASEDIR: lambda *_: b"",
            Op.INTERRUPT: self._interrupt,
            Op.DESTROY: lambda *_: b"",
            Op.FORGET: lambda *_: None,
            Op.BATCH_FORGET: lambda *_: None,
        }
        self._threads = [
            threading.Thread(target=self._serve, name="modelcache-fuse", daemon=True)
            for _ in range(THREADS)
        ]
        self._attendant = threading.Thread(
            target=self._attend, name="modelcache-fuse-parked", daemon=True
        )
        self._completed: SimpleQueue[Node | None] = SimpleQueue()  # at most once for each file
        self._teller = threading.Thread(target=self._tell, name="modelcache-fuse-tell", daemon=True)

    # Life

    def start(self) -> None:
        """Serve until the mount is gone. What the process before left unanswered comes again."""
        for thread in (*self._threads, self._attendant, self._teller):
            thread.start()
        if self._taken_over:
            self._channel.tell(protocol.NOTIFY_RESEND)
            for node in self._tree.files:
                self._tell_epoch(node)

    def agreed(self, timeout_s: float) -> bool:
        """Wait until the kernel has said what it can; False if it has not, or is too old."""
        return self._ready.wait(timeout_s)

    def state(self) -> dict[str, Any]:
        """What the next process has to know."""
        return {
            **self._tree.to_json(),
            "passthrough": self.passthrough,
            "resend": self.resend,
        }

    def _write_down(self) -> None:
        """Have the state kept, unless it is all over. The caller locks."""
        if not self._ended.is_set():
            self._keep(self.state())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the mount is gone and nobody has a file of it open; False if that took longer."""
        return self._ended.wait(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether there is a mount to serve."""
        return not self._ended.is_set()

    # News of the contents

    def news(self) -> None:
        """Something more is here, or will not come: look again. Quick; from any thread."""
        self._wake.set()

    def doubt(self, number: int) -> None:
        """What was read of a file may have been wrong: it is not to be believed any more.

        On return no reader has a byte of it, but in its own memory; who has it open gets EIO.
        """
        node = self._tree.files[number]
        with self._lock:
            node.wrong.add(node.epoch)
            before = node.node_id
            node.begin_epoch()
            self._descriptors.pop(number, None)
            self._write_down()
        for parked in self._parking.all():
            if parked.number == number and self._parking.take(parked.unique):
                self._channel.answer(parked.unique, error=errno.EIO)
        self._channel.tell(protocol.NOTIFY_INVAL_INODE, protocol.forget_pages(before))
        self._tell_epoch(node)
        self._report("doubted", file=self._name(node))

    # Requests

    def _serve(self) -> None:
        try:
            self._take_requests()
        finally:  # there is no mount any more; or a bug, and then there had better be none
            with self._lock:
                first = not self._ended.is_set()
                self._ended.set()
            self._wake.set()
            self._completed.put(None)
            if first:
                self._on_end()

    def _take_requests(self) -> None:
        buffer = bytearray(protocol.REQUEST_BYTES)
        data = memoryview(mmap.mmap(-1, protocol.READ_BYTES_MAX))
        while (size := self._channel.read(buffer)) is not None:
            try:
                head = Head.of(buffer)
            except struct.error:
                continue  # nobody to answer
            with self._answered(head.unique):
                if head.op == Op.READ:
                    self._read(head, ReadRequest.of(buffer), data)
                    continue
                handler = self._handlers.get(head.op)
                if handler is None:
                    raise OSError(errno.ENOSYS, "not a request of a read-only tree")
                answer = handler(head, buffer, size)
                if answer is not None:
                    self._channel.answer(head.unique, answer)

    @contextmanager
    def _answered(self, unique: int) -> Iterator[None]:
        """Answer a request by what handling it raises."""
        try:
            yield
        except OSError as error:
            self._channel.answer(unique, error=error.errno or errno.EIO)
        except KeyError:
            self._channel.answer(unique, error=errno.ESTALE)
        except ModelcacheError as error:
            self._report("failed", message=error.message)
            self._channel.answer(unique, error=errno.EIO)
        except Exception as error:  # noqa: BLE001 - the supervisor: a reader must not hang for it
            self._report("bug", message=f"this is a bug: {type(error).__name__}: {error}")
            self._channel.answer(unique, error=errno.EIO)

    def _init(self, head: Head, data: bytearray, size: int) -> bytes:
        del head, size
        offer = protocol.Offer.of(data)
        if offer.major != protocol.MAJOR or offer.minor < protocol.MINOR_MIN:
            raise OSError(errno.EPROTO, "too old a kernel")
        flags, answer = offer.accept(passthrough=self._wants_passthrough)
        self.passthrough = bool(flags & protocol.PASSTHROUGH)
        self.resend = bool(flags & protocol.HAS_RESEND)
        self._ready.set()
        return answer

    def _lookup(self, head: Head, data: bytearray, size: int) -> bytes:
        folder, _ = self._tree.find(head.node_id)
        name = bytes(data[protocol.HEADER_BYTES : size]).partition(b"\0")[0]
        node = folder.children.get(name)
        if node is None:
            return protocol.no_entry(VALID_S)
        return protocol.entry(node.node_id, node.attributes, VALID_S)

    def _getattr(self, head: Head, data: bytearray, size: int) -> bytes:
        del data, size
        node, _ = self._tree.find(head.node_id)
        return protocol.attributes_answer(node.attributes, VALID_S)

    def _statfs(self, head: Head, data: bytearray, size: int) -> bytes:
        del head, data, size
        return protocol.statfs(self._tree.size_bytes, len(self._tree.files))

    def _opendir(self, head: Head, data: bytearray, size: int) -> bytes:
        del data, size
        self._tree.find(head.node_id)
        return protocol.open_answer(0, protocol.FOPEN_CACHE_DIR | protocol.FOPEN_KEEP_CACHE)

    def _readdir(self, head: Head, data: bytearray, size: int) -> bytes:
        del size
        node, _ = self._tree.find(head.node_id)
        asked = ReadRequest.of(data)
        plus = head.op == Op.READDIRPLUS
        return self._tree.listing(node, asked.offset, asked.size_bytes, plus=plus, valid_s=VALID_S)

    def _open(self, head: Head, data: bytearray, size: int) -> bytes:
        del data, size
        node, epoch = self._tree.find(head.node_id)
        if epoch in node.wrong:
            raise OSError(errno.EIO, "what was read of it was wrong")
        with self._lock:
            handle = self._next_handle
            self._next_handle += 1
            self._handles[node.number] = self._handles.get(node.number, 0) + 1
            backing = self._backing(node) if epoch == node.epoch else 0
        if backing:
            flags = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
            return protocol.open_answer(handle, flags, backing)
        return protocol.open_answer(handle, protocol.FOPEN_KEEP_CACHE | protocol.FOPEN_NOFLUSH)

    def _backing(self, node: Node) -> int:
        """What the kernel shall read instead of asking; 0 if it shall ask. The caller locks.

        An epoch that was opened with pages of the kernel's own stays so, and one id serves all who
        open the file: the kernel refuses to mix them, and another id.
        """
        if node.backing or node.cached:
            return node.backing
        fd = self._contents.open(node.number) if self.passthrough else None
        if fd is None:
            node.cached = True
        else:
            try:
                node.backing = self._channel.add_backing(fd)
            except OSError as error:
                self.passthrough, node.cached = False, True
                self._report("no_passthrough", message=error.strerror or str(error.errno))
                self._wake.set()  # it can be covered instead
            finally:
                os.close(fd)
        self._write_down()
        return node.backing

    def _release(self, head: Head, data: bytearray, size: int) -> bytes:
        del size
        node, _ = self._tree.find(head.node_id)
        with self._lock:
            self._windows.pop(protocol.number_of(data), None)
            left = self._handles.get(node.number, 1) - 1
            if left > 0:
                self._handles[node.number] = left
            else:
                self._handles.pop(node.number, None)
                self._descriptors.pop(node.number, None)
        return b""

    def _interrupt(self, head: Head, data: bytearray, size: int) -> None:
        del head, size
        parked = self._parking.interrupt(protocol.number_of(data))
        if parked is not None:
            self._channel.answer(parked.unique, error=errno.EINTR)

    # Reads

    def _read(self, head: Head, asked: ReadRequest, data: memoryview) -> None:
        node, epoch = self._tree.find(head.node_id)
        if epoch in node.wrong:
            raise OSError(errno.EIO, "what was read of it was wrong")
        left = node.attributes.size_bytes - asked.offset
        size = max(0, min(asked.size_bytes, left, protocol.READ_BYTES_MAX))
        if not size:
            self._channel.answer(head.unique)
            return
        view = data[:size]
        if self._fill(node, asked.offset, view):
            self._channel.answer(head.unique, view)
        else:
            until_s = monotonic() + self._read_timeout_s
            parked = Parked(head.unique, head.node_id, node.number, asked.offset, size, until_s)
            self._park(parked)
        self._ahead(node, asked.handle, ByteRange(asked.offset, asked.offset + size))

    def _fill(self, node: Node, offset: int, view: memoryview) -> bool:
        """Raises ModelcacheError, OSError."""
        descriptor = self._descriptors.get(node.number) or self._describe(node)
        if descriptor is None:
            return self._contents.read(node.number, offset, view)
        filled = 0
        while filled < len(view):
            size = os.preadv(descriptor.fd, [view[filled:]], offset + filled)
            if not size:
                raise OSError(errno.EIO, "the file was cut")
            filled += size
        return True

    def _describe(self, node: Node) -> Descriptor | None:
        """A descriptor to keep while somebody has the file open, if all of it is here."""
        fd = self._contents.open(node.number)
        if fd is None:
            return None
        descriptor = Descriptor(fd)
        with self._lock:
            if self._handles.get(node.number):
                self._descriptors[node.number] = descriptor
        return descriptor

    def _ahead(self, node: Node, handle: int, span: ByteRange) -> None:
        """Have fetched what a reader that reads on will want."""
        if node.number in self._descriptors:
            return
        with self._lock:
            window = self._windows.get(handle)
            if window is None and len(self._windows) < HANDLES_MAX:
                window = self._windows[handle] = Window(*self._window)
            following = window.read(span) if window is not None else None
        if following is not None:
            self._contents.want(node.number, following, waits=False)

    # Parked reads

    def _park(self, parked: Parked) -> None:
        if self._contents.hopeless(parked.number):
            raise OSError(errno.EIO, "it will not come")
        if not self._parking.add(parked):
            raise OSError(errno.EINTR, "interrupted")
        self._ask(parked)
        self._wake.set()  # it may have come between the look and the parking

    def _ask(self, parked: Parked) -> None:
        parked.asked = self._contents.flights
        parked.again_s = monotonic() + AGAIN_S
        span = ByteRange(parked.offset, parked.offset + parked.size_bytes)
        self._contents.want(parked.number, span, waits=True)

    def _attend(self) -> None:
        data = memoryview(mmap.mmap(-1, protocol.READ_BYTES_MAX))
        looked_s = 0.0
        changed = False
        while not self._ended.is_set():
            left_s = self._parking.next_due_s() - monotonic()
            often = changed or len(self._parking) > 0
            woken = self._wake.wait(max(0.0, min(left_s, LOOK_S if often else IDLE_S)))
            changed = changed or woken or not often
            self._wake.clear()
            for parked in self._parking.all():
                with self._answered_parked(parked):
                    self._look(parked, data)
            if changed and monotonic() - looked_s >= LOOK_S:
                self._complete()
                looked_s, changed = monotonic(), False

    @contextmanager
    def _answered_parked(self, parked: Parked) -> Iterator[None]:
        with self._answered(parked.unique):
            try:
                yield
            except BaseException:
                if self._parking.take(parked.unique) is None:
                    return  # somebody else has answered
                raise

    def _look(self, parked: Parked, data: memoryview) -> None:
        """Answer a parked read if that can be; raises what it is answered with."""
        node = self._tree.files[parked.number]
        view = data[: parked.size_bytes]
        if self._fill(node, parked.offset, view):
            if self._parking.take(parked.unique):
                self._channel.answer(parked.unique, view)
        elif self._contents.hopeless(parked.number):
            raise OSError(errno.EIO, "it will not come")
        elif monotonic() >= parked.until_s:
            self._report(
                "timed_out",
                file=self._name(node),
                offset=parked.offset,
                size_bytes=parked.size_bytes,
                seconds=self._read_timeout_s,
            )
            raise OSError(errno.ETIMEDOUT, "not in time")
        elif parked.asked != self._contents.flights or monotonic() >= parked.again_s:
            self._ask(parked)

    def _complete(self) -> None:
        """Files that are complete by now are the kernel's to read for whoever opens them next."""
        if not (self._ready.is_set() or self._taken_over):
            return  # it is not known yet what the kernel can
        if not self.passthrough:
            self._covered = self._covered or self._cover()
            return
        for node in self._tree.files:
            if not node.cached:
                continue
            fd = self._contents.open(node.number)
            if fd is None:
                continue
            os.close(fd)
            with self._lock:
                node.begin_epoch()
                self._write_down()
            self._completed.put(node)

    def _tell(self) -> None:
        """Tell the kernel of complete files, in a thread that answers nobody.

        To forget a name may be to forget the last of a file, and then the kernel waits for the
        pages of it that are still being read: a thread that waits with it must not owe one.
        """
        while (node := self._completed.get()) is not None:
            self._tell_epoch(node)

    def _tell_epoch(self, node: Node) -> None:
        """Have the kernel look a file up again."""
        if node.epoch and node.parent is not None:
            name = protocol.forget_name(node.parent.node_id, node.name)
            self._channel.tell(protocol.NOTIFY_INVAL_ENTRY, name)

    @staticmethod
    def _name(node: Node) -> str:
        names = []
        while node.parent is not None:
            names.append(os.fsdecode(node.name))
            node = node.parent
        return "/".join(reversed(names))


def _refuse(number: int) -> Callable[[Head, bytearray, int], bytes | None]:
    def refuse(*_: object) -> bytes | None:
        raise OSError(number, os.strerror(number))

    return refuse
