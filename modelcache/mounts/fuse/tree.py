"""The tree that a mount shows: fixed from its first moment, whatever is here of its files.

The kernel knows a node by an id. A file's changes with its *epoch*: of one epoch the kernel keeps
pages itself or reads from the file behind, never both, and what it may have been told wrongly is
ended by beginning another. Old ids stay good for who has them open.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from modelcache.mounts.fuse import protocol
from modelcache.mounts.fuse.protocol import ROOT_ID, Attributes

EPOCH_SHIFT: Final = 40  # bits of a node id that number nodes; above them stands the epoch
_INDEX_MASK: Final = (1 << EPOCH_SHIFT) - 1
NO_FILE: Final = -1


@dataclass(slots=True)
class Node:
    """A file or a folder. number: the file's among those the tree was made of."""

    index: int
    name: bytes
    parent: Node | None
    attributes: Attributes
    number: int = NO_FILE
    children: dict[bytes, Node] = field(default_factory=dict)
    epoch: int = 0
    cached: bool = False  # opened in this epoch, with pages kept by the kernel
    backing: int = 0  # in this epoch: what the kernel reads instead; 0 for nothing
    wrong: set[int] = field(default_factory=set)  # epochs of which nothing is to be believed

    @property
    def node_id(self) -> int:
        """In the present epoch."""
        return (self.index + ROOT_ID) | self.epoch << EPOCH_SHIFT

    def begin_epoch(self) -> None:
        """Whoever looks the file up from now on gets another id."""
        self.epoch += 1
        self.cached, self.backing = False, 0

    def to_json(self) -> dict[str, Any]:
        """What the next process has to know to go on with the same mount."""
        return {
            "epoch": self.epoch,
            "cached": self.cached,
            "backing": self.backing,
            "wrong": sorted(self.wrong),
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        self.epoch = int(plain["epoch"])
        self.cached = bool(plain["cached"])
        self.backing = int(plain["backing"])
        self.wrong = {int(epoch) for epoch in plain["wrong"]}


class Tree:
    """See the module. Its shape never changes; nodes do, under the lock of who serves it."""

    def __init__(self, files: Iterable[tuple[str, int]], mtime_s: int) -> None:
        """files: paths that were checked, and sizes in bytes, in the order of their numbers."""
        self.root = Node(0, b"", None, Attributes(ROOT_ID, 0, mtime_s, folder=True))
        self.nodes = [self.root]
        self.files: list[Node] = []
        self._mtime_s = mtime_s
        for path, size_bytes in files:
            *folders, name = map(os.fsencode, path.split("/"))
            folder = self.root
            for each in folders:
                folder = folder.children.get(each) or self._add(folder, each, 0, NO_FILE)
            self.files.append(self._add(folder, name, size_bytes, len(self.files)))
        self.size_bytes = sum(node.attributes.size_bytes for node in self.files)
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}

    def _add(self, parent: Node, name: bytes, size_bytes: int, number: int) -> Node:
        index = len(self.nodes)
        folder = number == NO_FILE
        attributes = Attributes(index + ROOT_ID, size_bytes, self._mtime_s, folder=folder)
        node = Node(index, name, parent, attributes, number)
        parent.children[name] = node
        self.nodes.append(node)
        return node

    def find(self, node_id: int) -> tuple[Node, int]:
        """A node and the epoch that is meant. Raises KeyError for an id that never was."""
        index, epoch = (node_id & _INDEX_MASK) - ROOT_ID, node_id >> EPOCH_SHIFT
        if not 0 <= index < len(self.nodes) or epoch > self.nodes[index].epoch:
            raise KeyError(node_id)
        return self.nodes[index], epoch

    def listing(
        self, node: Node, start: int, most_bytes: int, *, plus: bool, valid_s: int
    ) -> bytes:
        """Entries of a folder from the `start`th on, as many as fit."""
        entries = self._listings.get(node.index)
        if entries is None:
            entries = [(b".", node), (b"..", node.parent or node), *node.children.items()]
            self._listings[node.index] = entries
        packed = bytearray()
        for at, (name, each) in enumerate(entries[start:], start):
            attributes = each.attributes
            kind = protocol.DIRECTORY_TYPE if attributes.folder else protocol.FILE_TYPE
            one = protocol.dirent(attributes.inode, at + 1, kind, name)
            if plus:
                known = at > 1  # the folder itself and its parent are not looked up by that
                before = protocol.entry(each.node_id, attributes, valid_s)
                one = (before if known else bytes(len(before))) + one
            if len(packed) + len(one) > most_bytes:
                break
            packed += one
        return bytes(packed)

    def to_json(self) -> dict[str, Any]:
        """Of the files that are not as they were at first."""
        changed = {
            str(node.number): node.to_json()
            for node in self.files
            if node.epoch or node.cached or node.backing
        }
        return {"files": changed}

    def restore(self, plain: dict[str, Any]) -> None:
        """Inverse of `to_json`. Raises KeyError, TypeError, ValueError, IndexError."""
        for number, state in plain["files"].items():
            self.files[int(number)].restore(state)
