"""Views: the layout that another program expects, as symbolic links into snapshots.

A view is a folder below `views/`, named by the hash of all that is in it: its links and its small
files. So it is there or not, never another one; two callers that want the same build the same, and
one that wants another model, name or revision gets another folder. The links are relative, so a
store may be mounted elsewhere, and lead to a snapshot's names, so a repaired file is seen at once.
When a model goes its views lead nowhere, and garbage collection removes them.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import ModelId, canonical_json
from modelcache.domain.paths import check_path, check_tree, parents
from modelcache.store import files
from modelcache.store.snapshots import FOLDER_MODE
from modelcache.store.store import Store

FOLDER: Final = "views"
TEXT_MODE: Final = 0o644  # pods of any user read it
_OURS: Final = re.compile(r"[0-9a-f]{64}|\.tmp-[0-9a-f]{12}")
_UP: Final = "../../"  # from a view's own folder to the store


@dataclass(frozen=True, slots=True)
class Shown:
    """A file of a warm model."""

    model_id: ModelId
    path: str


def show(store: Store, links: Mapping[str, Shown], texts: Mapping[str, str]) -> Path:
    """Build a view, or find that it is there. links, texts: by path inside the view.

    Idempotent, and atomic for whoever looks. Raises UnsafePath, StoreError.
    """
    paths = [*links, *texts]
    for path in paths:
        check_path(path)
    check_tree(paths)
    targets = {path: _target(path, shown) for path, shown in links.items()}
    name = sha256(canonical_json({"links": targets, "texts": dict(texts)})).hexdigest()
    folder = store.layout.root / FOLDER
    view = folder / name
    # The mutex keeps collections and other builders out: links are made in moments.
    with files.translated(view), store.mutex():
        files.ensure_folder(folder, FOLDER_MODE)
        if not _is_whole(view, targets, texts):
            temporary = folder / f".tmp-{secrets.token_hex(6)}"
            _build(temporary, targets, texts)
            store.trash(view)
            files.rename(temporary, view)
    return view


def sweep(store: Store) -> int:
    """Remove views of models that are gone, and what a crash left; returns how many.

    The caller has the mutex, and empties the trash.
    """
    folder = store.layout.root / FOLDER
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    gone = [path for path in found if _OURS.fullmatch(path.name) and not _is_live(path)]
    for path in gone:
        store.trash(path)
    return len(gone)


def _target(path: str, shown: Shown) -> str:
    up = _UP + "../" * path.count("/")
    return f"{up}snapshots/{shown.model_id}/{check_path(shown.path)}"


def _build(root: Path, targets: Mapping[str, str], texts: Mapping[str, str]) -> None:
    files.make_folder(root, FOLDER_MODE)
    known: set[str] = set()
    for path in (*targets, *texts):
        for parent in parents(path):
            if parent not in known:
                files.make_folder(root / parent, FOLDER_MODE)
                known.add(parent)
    for path, target in targets.items():
        files.symlink(target, root / path)
    for path, text in texts.items():
        files.write_new(root / path, text.encode(), TEXT_MODE)


def _is_whole(view: Path, targets: Mapping[str, str], texts: Mapping[str, str]) -> bool:
    try:
        return all(
            os.readlink(view / path) == target  # noqa: PTH115 - Path.readlink parses ten thousand
            and (view / path).exists()
            for path, target in targets.items()
        ) and all((view / path).read_text("utf-8") == text for path, text in texts.items())
    except (OSError, UnicodeDecodeError):
        return False


def _is_live(view: Path) -> bool:
    return not view.name.startswith(".") and all(path.exists() for path in _links(view))


def _links(view: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(view):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                yield path
