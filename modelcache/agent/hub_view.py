"""Models of this store as huggingface_hub expects its own downloads: `modelcache env hf`.

With the variables that `HubView` names, an unmodified transformers, vLLM or huggingface_hub finds
`org/name` without network. The cache holds, for each model, `models--org--name/snapshots/COMMIT/`
with links to the files, and `refs/REVISION`, which says what commit that is. The first model of a
repository is also its `main`: most programs ask for no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcache.domain.hub import HubKey, is_commit
from modelcache.domain.manifests import File, Manifest, ModelId
from modelcache.domain.places import HubName, Scheme, hub_name
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import InvalidRef, NotInStore, UsageError
from modelcache.store import Store, views
from modelcache.store.views import Shown

COMMIT_DIGITS: Final = 40
MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Exposed:
    """One model as the hub's client sees it. path: the folder with its files."""

    name: str
    revision: str
    commit: str
    model_id: ModelId
    path: Path


@dataclass(frozen=True, slots=True)
class HubView:
    """A cache of the hub's form."""

    cache: Path
    models: tuple[Exposed, ...]

    def variables(self) -> dict[str, str]:
        """The environment that makes the hub's client use it, and nothing else."""
        return {"HF_HUB_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is shown of one model. files: (path inside the repository, file)."""

    name: str
    revision: str
    commit: str
    manifest: Manifest
    files: tuple[tuple[str, File], ...]

    @property
    def folder(self) -> str:
        return f"models--{self.name.replace('/', '--')}"


def hub_view(store: Store, whats: Sequence[str], name: str | None = None) -> HubView:
    """Lay out warm models for the hub's client. whats: refs or model ids; name: `--as`.

    Idempotent. Raises NotInStore for one that is not warm, UsageError for one without a name,
    InvalidRef for a name that no hub would take.
    """
    if name is not None and len(whats) > 1:
        raise UsageError("--as names one model; give a single ref")
    entries = [_entry(store, what, name) for what in whats]
    links: dict[str, Shown] = {}
    texts: dict[str, str] = {}
    for entry in entries:
        for inside, file in entry.files:
            path = f"{entry.folder}/snapshots/{entry.commit}/{inside}"
            links.setdefault(path, Shown(entry.manifest.model_id, file.path))
        texts.setdefault(f"{entry.folder}/refs/{MAIN}", entry.commit)
        if not is_commit(entry.revision):
            _add_revision(texts, entry)
    cache = views.show(store, links, texts)
    for entry in entries:
        store.touch(entry.manifest.model_id)
    return HubView(cache, tuple(_exposed(cache, entry) for entry in entries))


def _add_revision(texts: dict[str, str], entry: _Entry) -> None:
    path = f"{entry.folder}/refs/{entry.revision}"
    if entry.revision != MAIN and texts.setdefault(path, entry.commit) != entry.commit:
        raise UsageError(f"{entry.name}@{entry.revision} is given twice, as two models")


def _exposed(cache: Path, entry: _Entry) -> Exposed:
    path = cache / entry.folder / "snapshots" / entry.commit
    return Exposed(entry.name, entry.revision, entry.commit, entry.manifest.model_id, path)


def _entry(store: Store, what: str, name: str | None) -> _Entry:
    try:
        model_id = store.find(what)
    except NotInStore as error:
        raise NotInStore(f"{error.message}; run `modelcache pull` first") from error
    if store.snapshot_path(model_id) is None:
        raise NotInStore(f"model {model_id[:12]} is not complete yet; pull it again")
    manifest = store.manifest(model_id)
    hub = next(_hub_refs(store, what, manifest), None)
    commit = _commit(manifest)
    if name is not None:
        revision = _revision(hub) if hub else MAIN
        paths = tuple((file.path, file) for file in manifest.files)
        return _Entry(_checked(name), revision, commit, manifest, paths)
    if hub is None:
        raise UsageError(f"{what} has no name at a hub; give it one with --as ORG/NAME")
    place = hub_name(hub.authority, hub.path)
    paths = tuple((_inside(place, file), file) for file in manifest.files)
    return _Entry(_checked(place.repository), _revision(hub), commit, manifest, paths)


def _hub_refs(store: Store, what: str, manifest: Manifest) -> Iterator[Ref]:
    """By what hf:// refs a model is known; that which was asked for first."""
    known = [what] if "://" in what else []
    for text in (*known, *store.refs().get(manifest.model_id, ()), manifest.origin):
        ref = parse_ref(text)
        if ref.scheme is Scheme.HF:
            yield ref


def _revision(ref: Ref) -> str:
    return hub_name(ref.authority, ref.path).revision or ref.option("revision") or MAIN


def _commit(manifest: Manifest) -> str:
    """The hub's commit; for what came from elsewhere the start of the model id stands for it."""
    first = HubKey.parse(manifest.files[0].key) if manifest.files else None
    if first is not None and parse_ref(manifest.origin).scheme is Scheme.HF:
        return first.commit
    return manifest.model_id[:COMMIT_DIGITS]


def _inside(place: HubName, file: File) -> str:
    """A file's path inside the repository, of which the ref may name a folder or a file."""
    folder = place.path.rstrip("/")
    if not folder or folder.rpartition("/")[2] == file.path:
        return folder or file.path
    return f"{folder}/{file.path}"


def _checked(name: str) -> str:
    """Raises InvalidRef for what is not the name of a repository."""
    authority, _, path = name.partition("/")
    place = hub_name(authority, path)
    if place.revision or place.path or "--" in name or ".." in name:
        raise InvalidRef(f"{name[:120]!r} is not the name of a repository; write ORG/NAME")
    return place.repository
