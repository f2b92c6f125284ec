"""Volumes: a wanted model, shown at a path as soon as it is warm, until it is taken away.

What is published is written down before it is mounted, in the lease that protects the model: killed
between any two lines, the agent finds at its next start what is mounted and what is not, and asking
again brings either to its end. Nothing here waits for a model: who asked is told how far it is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from modelcache import mounts
from modelcache.agent.access import Access
from modelcache.agent.borrowing import Borrowing
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.identities import Identities
from modelcache.agent.node import Node
from modelcache.agent.streams import Streams
from modelcache.domain.identities import PodIdentity
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import Priority
from modelcache.domain.refs import Ref
from modelcache.domain.volumes import (
    MountMode,
    Volume,
    VolumeRequest,
    check_volume,
    lease_of,
    progress_line,
)
from modelcache.domain.wanted import ModelPhase, Want, WantedStatus, wanted_id
from modelcache.errors import (
    CorruptData,
    Forbidden,
    ModelcacheError,
    MountFailed,
    NoCredentials,
    NotFound,
    NotInStore,
    NotWarmYet,
    UsageError,
    VolumeConflict,
    error_named,
)

_REFUSALS: Final = frozenset({Forbidden.code, NoCredentials.code, NotFound.code})


class Volumes:
    """See the module. Thread-safe: one volume is published or taken away at a time."""

    def __init__(
        self,
        node: Node,
        engine: Engine,
        roots: Sequence[str],
        access: Access,
        borrowing: Borrowing,
        *,
        identities: Identities | None = None,
    ) -> None:
        """roots: folders below which targets may lie. access: who may have what.

        borrowing: for models that only their volumes' secrets may read. identities: of pods.
        """
        self._node = node
        self._store = engine.store
        self._roots = tuple(Path(root) for root in roots)
        self._access = access
        self._borrowing = borrowing
        self._streams = Streams(engine, node.events, node.hurry)
        self._identities = identities
        self._turn = threading.Lock()
        self._known: dict[str, Volume] = {}

    def start(self) -> None:
        """Find what is mounted; forget what is not, as after a reboot. Raises StoreError.

        Before the node begins: until then nothing is evicted.
        """
        with self._turn:
            for volume in self._store.volumes():
                if mounts.mounts_at(Path(volume.target)):
                    self._known[volume.volume_id] = volume
                else:
                    self._store.drop_volume(volume)
            known = self._known.values()
            self._streams.take_over([each for each in known if each.mode is MountMode.STREAM])

    def release_stale(self) -> None:
        """Want nothing for volumes that are not there any more; after the node has begun."""
        known = {lease_of(volume_id) for volume_id in self._known}

        def stale(_: str, want: Want) -> bool:
            ours = want.holder.startswith(lease_of(""))
            return ours and want.holder not in known and want.priority < Priority.MOUNTED

        self._node.release_where(stale)

    def streams(self) -> tuple[int, dict[str, int]]:
        """How many volumes are streamed, and what their readers met so far, by its name."""
        return self._streams.counts()

    def close(self) -> None:
        """Stop looking after what is published; it stays. Idempotent."""
        self._streams.close()

    def volumes(self) -> list[Volume]:
        """All that are published, by id."""
        with self._turn:
            return sorted(self._known.values(), key=lambda volume: volume.volume_id)

    def publish(
        self,
        request: VolumeRequest,
        *,
        refresh: bool = False,
        credentials: Mapping[str, str] | None = None,
        identity: PodIdentity | None = None,
    ) -> Volume:
        """Show a model at a path; idempotent. Have it fetched where it is not warm.

        refresh: resolve the ref anew, once for every volume. credentials: the volume's own, which
        must be good for the model at its origin; it is fetched with them where the node's are not.
        identity: of the pod, which stands for them where there are none.
        Raises NotWarmYet, telling how far the model is; what the model failed with; UsageError,
        Forbidden, VolumeConflict, MountFailed.
        """
        self._check_target(request.target)
        with self._turn:
            known = self._known.get(request.volume_id)
            if known is not None:
                return self._again(known, request)
        proven = self._proven(request, credentials or {}, identity)
        model_id = self._borrowed(request.ref) if proven else None
        borrowed = model_id is not None
        mode = MountMode.FULL
        if model_id is None:
            model_id, mode = self._shown(request, proven, refresh=refresh)
        volume = Volume(
            volume_id=request.volume_id,
            target=request.target,
            model_id=model_id,
            ref=request.ref.redacted(),
            sub_path=request.sub_path,
            since_s=wall_clock_s(),
            mode=mode,
        )
        with self._turn:
            known = self._known.get(request.volume_id)
            if known is not None:
                return self._again(known, request)
            try:
                self._store.keep_volume(volume)
            except NotInStore as error:
                self._borrowing.forget(request.ref)
                raise NotWarmYet(f"{volume.ref} was removed a moment ago; it comes anew") from error
            began_s = monotonic()
            try:
                self._mount(volume, request.ref)
            except ModelcacheError:
                self._store.drop_volume(volume)
                raise
            self._node.foresight.knowledge.mounted(monotonic() - began_s)
            self._known[volume.volume_id] = volume
        # Mounted whole, it waits for nothing: a newer version of it is not urgent.
        if not borrowed and mode is MountMode.FULL:
            self._node.want(
                request.ref,
                priority=Priority.PREWARM,
                lease=request.lease,
                note=request.note,
                tenant=request.tenant,
            )
        self._tell(EventKind.PUBLISHED, volume)
        return volume

    def unpublish(self, volume_id: str, target: str) -> bool:
        """Take a volume away, and end its want; False if there was nothing. Idempotent.

        target: where it is, for one that is not known here. Raises UsageError, Forbidden,
        MountFailed.
        """
        check_volume(volume_id, target)
        self._check_target(target)
        with self._turn:
            volume = self._known.get(volume_id)
            if volume is not None and volume.target != target:
                raise VolumeConflict(f"volume {volume_id} is published at {volume.target}")
            found = self._unmount(Path(target))
            self._streams.end(volume_id)
            if volume is not None:
                self._store.drop_volume(volume)
                del self._known[volume_id]
        released = self._node.release_where(lambda _, want: want.holder == lease_of(volume_id))
        if volume is not None:
            self._tell(EventKind.UNPUBLISHED, volume)
        return found or released or volume is not None

    def usage(self, volume_id: str) -> tuple[Volume, bool, int, int]:
        """A volume; whether it is mounted; bytes and number of its files. Raises NotInStore."""
        with self._turn:
            volume = self._known.get(volume_id)
        if volume is None:
            raise NotInStore(f"volume {volume_id} is not published on this node")
        below = f"{volume.sub_path}/" if volume.sub_path else ""
        sizes = [
            file.size_bytes
            for file in self._store.manifest(volume.model_id).files
            if file.path.startswith(below)
        ]
        return volume, bool(mounts.mounts_at(Path(volume.target))), sum(sizes), len(sizes)

    # Parts

    def _shown(
        self, request: VolumeRequest, credentials: Mapping[str, str], *, refresh: bool
    ) -> tuple[ModelId, MountMode]:
        """The model, and whether it is mounted whole. Raises as `publish`.

        What is warm is; what is fetched with a volume's own secret, by another process, or has to
        be unpacked is only when all of it is here.
        """
        try:
            return self._warm(request, credentials, refresh=refresh), MountMode.FULL
        except NotWarmYet:
            coming = self._coming(request) if request.mode is MountMode.STREAM else None
            if coming is None:
                raise
            return coming, MountMode.STREAM

    def _coming(self, request: VolumeRequest) -> ModelId | None:
        """The model, once it is known what files it has."""
        coming = self._node.coming(request.ref)
        if coming is None:
            return None
        try:
            packed = bool(self._store.manifest(coming).archives)
        except (NotInStore, CorruptData):  # about to be written down
            return None
        return None if packed else coming

    def _proven(
        self,
        request: VolumeRequest,
        credentials: Mapping[str, str],
        identity: PodIdentity | None,
    ) -> Mapping[str, str]:
        """What the origin has said may read the model; none where the policy asks for nothing.

        Then what came with somebody's secret is not for this volume. Raises as `Access.check`.
        """
        subject = ""
        if not credentials and identity is not None and self._identities is not None:
            credentials, subject = self._identities.credentials(identity), identity.subject
        said = self._access.check(request.ref, credentials, tenant=request.tenant, subject=subject)
        return credentials if said else {}

    def _warm(
        self, request: VolumeRequest, credentials: Mapping[str, str], *, refresh: bool
    ) -> ModelId:
        """The model, once it is warm; have it fetched. Raises as `publish`."""
        status = self._want(request, refresh=refresh, with_secret=bool(credentials))
        if status.phase is ModelPhase.WARM:
            return ModelId(status.model_id)
        refused = status.trouble is not None and status.trouble.code in _REFUSALS
        if credentials and refused and status.phase is ModelPhase.FAILED:
            self._node.release(request.ref, request.lease)
            self._borrowing.begin(request.ref, credentials, tenant=request.tenant)
        raise _not_warm(status)

    def _want(self, request: VolumeRequest, *, refresh: bool, with_secret: bool) -> WantedStatus:
        """Have the model fetched, and see how far it is.

        with_secret: a failure is told and not tried again, for something else can be tried.
        """
        with suppress(NotInStore):
            status = self._node.status(request.ref)
            if any(want.holder == request.lease for want in status.wants):
                refresh = False  # asked before: it is being resolved, or was
                if status.phase is not ModelPhase.FAILED or with_secret:
                    return status
            elif status.phase is ModelPhase.WARM and not refresh:
                return status  # others want it: the volume's want need not come first
        self._node.want(
            request.ref,
            priority=request.priority,
            lease=request.lease,
            note=request.note,
            tenant=request.tenant,
            refresh=refresh,
        )
        return self._node.status(request.ref)

    def _borrowed(self, ref: Ref) -> ModelId | None:
        """What was fetched with a volume's secret, while it is here."""
        model_id = self._borrowing.look(ref)
        if model_id is not None and self._store.snapshot_path(model_id) is None:
            self._borrowing.forget(ref)
            return None
        return model_id

    def _again(self, known: Volume, request: VolumeRequest) -> Volume:
        """What is published already, if it is what is asked for. The caller has the turn."""
        asked = (request.target, request.ref.redacted(), request.sub_path)
        if (known.target, known.ref, known.sub_path) != asked:
            raise VolumeConflict(
                f"volume {known.volume_id} is published at {known.target} with {known.ref}"
                f"{'/' + known.sub_path if known.sub_path else ''}; unpublish it first"
            )
        if not mounts.mounts_at(Path(known.target)):
            self._mount(
                known, request.ref
            )  # somebody else has unmounted it; the same model, not a newer one
        return known

    def _mount(self, volume: Volume, ref: Ref) -> None:
        target = Path(volume.target)
        if volume.mode is MountMode.STREAM:
            self._make_folder(target)
            self._streams.begin(volume, wanted_id(ref))
            return
        source = self._store.snapshot_path(volume.model_id)
        if source is None:
            raise NotWarmYet(f"{volume.ref} was removed by force; release it and ask again")
        if volume.sub_path:
            source /= volume.sub_path
            if not source.is_dir():
                raise UsageError(f"{volume.ref} has no folder {volume.sub_path!r}")
        self._make_folder(target)
        mounts.bind_read_only(source, target)

    def _make_folder(self, target: Path) -> None:
        """An empty one, with nothing mounted there."""
        self._unmount(target)  # left by a crash between mounting and telling
        try:
            target.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise MountFailed(f"cannot make the folder {target}: {error.strerror}") from error

    @staticmethod
    def _unmount(target: Path) -> bool:
        """Take away what is mounted, and the empty folder; what is in a folder stays."""
        found = mounts.unmount(target)
        with suppress(OSError):
            target.rmdir()
        return found

    def _check_target(self, target: str) -> None:
        """Raises Forbidden for a place outside the roots, links followed."""
        parent = Path(target).parent.resolve()
        roots = [root.resolve() for root in self._roots]
        if not any(parent.is_relative_to(root) for root in roots):
            where = ", ".join(map(str, self._roots)) or "nowhere"
            raise Forbidden(
                f"volumes may be published below {where}, not at {target}; see agent.volume_roots"
            )

    def _tell(self, kind: EventKind, volume: Volume) -> None:
        self._node.events.add(kind, **volume.to_json())


def _not_warm(status: WantedStatus) -> ModelcacheError:
    line = progress_line(status)
    if status.phase is ModelPhase.FAILED and status.trouble is not None:
        return error_named(status.trouble.code, line, ModelcacheError)
    return NotWarmYet(line)
