"""Which files of a model hold its tensors: by its index, or all there are. Pure.

An index (`model.safetensors.index.json`) maps tensors to files. It came with the model, so its
names are nobody's word for a path: only files that are known to be there count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from modelcache.domain.paths import check_path
from modelcache.errors import BadTensors, UnsafePath, UsageError
from modelcache.loader.header import HEADER_BYTES_MAX, Header, parse_object, shown

SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = ".safetensors.index.json"
INDEX_BYTES_MAX: Final = HEADER_BYTES_MAX  # it names each tensor once, as headers do
FILES_MAX: Final = 4096  # descriptors, and far above what anybody shards into


@dataclass(frozen=True, slots=True)
class Shards:
    """The files to read, in order. where: the file of each tensor, if an index says so."""

    files: tuple[str, ...]
    where: Mapping[str, str] = field(default_factory=dict)

    def check(self, file: str, header: Header) -> None:
        """Raises BadTensors when the index names a tensor that its file does not have."""
        if not self.where:
            return
        there = {tensor.name for tensor in header.tensors}
        for name, where in self.where.items():
            if where == file and name not in there:
                raise BadTensors(f"{file} lacks tensor {shown(name)}, which the index says it has")


def find_shards(
    names: Collection[str], read: Callable[[str], bytes], globs: Iterable[str] = ()
) -> Shards:
    """Choose among a model's files. read: all of a small one. globs: these, whatever an index says.

    Without either, the files at the top of the model count. Raises BadTensors, UsageError.
    """
    wanted = tuple(globs)
    if wanted:
        found = [name for name in names if any(fnmatchcase(name, glob) for glob in wanted)]
        return Shards(_some(sorted(name for name in found if name.endswith(SUFFIX)), names))
    top = [name for name in names if "/" not in name]
    indexes = [name for name in top if name.endswith(INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _by_index(indexes[0], set(names), read(indexes[0]))
    files = sorted(name for name in top if name.endswith(SUFFIX))
    if len(indexes) > 1 and len(files) > 1:
        raise UsageError(
            f"the model has {len(indexes)} indexes ({', '.join(sorted(indexes)[:3])}); "
            "say with files=[...] which of its weights are meant"
        )
    return Shards(_some(files, names))


def _by_index(index: str, names: set[str], data: bytes) -> Shards:
    table = parse_object(data, index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(each, str) for each in table.values()):
        raise BadTensors(f"{index} has no weight_map from tensors to files")
    files = sorted(set(table.values()))
    for file in files:
        try:
            check_path(file)
        except UnsafePath as error:
            raise BadTensors(f"{index} names {shown(file)}, which is no file of a model") from error
        if file not in names:
            raise BadTensors(f"{index} names {shown(file)}, which the model does not have")
    return Shards(_some(files, names), table)


def _some(files: list[str], names: Collection[str]) -> tuple[str, ...]:
    if not files:
        raise UsageError(f"no safetensors file is among the {len(names)} files of the model")
    if len(files) > FILES_MAX:
        raise UsageError(f"the model has {len(files)} files of tensors, more than {FILES_MAX}")
    return tuple(files)
