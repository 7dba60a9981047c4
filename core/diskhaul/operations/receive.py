"""Receiving one export from another cluster: a destination is made for it, announced, and waited at."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..api import ExportStore, LockMode, RemoteParty, RemoteReceiver, RemoteTerms
from ..certificates import make_self_signed
from ..errors import DiskhaulError, InterruptedRunError, OperationFailedError, RefusedError, StorageError
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.manifest import Manifest
from ..model import Node
from ..names import expand_name, name_problem
from ..options import MAX_TIMEOUT_S, ImportOptions
from ..records import ExportRecord, ReceiveResult
from ..remote.destination import TOKEN_LENGTH, destination_document
from ..remote.envelope import LIFE, Document
from ..remote.keys import TAKEN, RemoteKeys, TakenExports
from ..remote.prepared import Prepared, check_prepared
from ..remote.secret import read_secret
from .base import LockLevel, Operation, RunContext
from .catalog import on_node, read_valid_manifest, record_of
from .import_targets import ImportTarget
from .plugin_answers import failure_lines

_FAREWELL_S = 60.0
"""How long a source that is not connected may leave a published export without saying that it stands."""
_SWEEP_S = 1.0  # another receiver that sweeps holds the lock of a directory for a moment
_POLL_S = 0.1


class ReceiveOperation(Operation[ReceiveResult]):
    """Takes one prepared export into the export directory of a node, which is this machine.

    Raises (from `run`):
        RefusedError: every reason found; nothing was touched.
        OperationFailedError: nothing came in time, or the source gave up; nothing is listed.
        InterruptedRunError: cancelled; likewise.
    """

    name = "receive"

    def __init__(
        self,
        context: RunContext,
        prepared: Document,
        node: str,
        *,
        instance_name: str | None,
        timeout_s: float,
        announce: Callable[[Mapping[str, Any]], object],
        import_options: ImportOptions | None = None,
    ) -> None:
        """With `import_options`, what an import with them into the instance's configured disks is refused for is refused here."""
        super().__init__(context)
        self._import_options = import_options
        self._document, self._asked_node, self._asked_name = prepared, node, instance_name
        self._timeout_s, self._announce = timeout_s, announce
        self._taken = TakenExports(self.cluster.state_dir)
        self._secret = self._certificate = b""
        self._tokens: tuple[bytes, ...] = ()
        self._receiver_failed: list[BaseException] = []
        self._note: int | None = None
        self._export_id = ""
        self._prepared: Prepared
        self.node: Node
        self.instance = ""

    def describe(self) -> str:
        return f"reception of {self.instance} from cluster {self._prepared.cluster}"

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        problems = [problem for problem in (name_problem("node", self._asked_node), self._name_problem()) if problem]
        if not 0 < self._timeout_s <= MAX_TIMEOUT_S:  # NaN is not either
            problems.append(f"timeout_s: must be above 0 and at most {MAX_TIMEOUT_S} seconds")
        try:
            self._secret = read_secret(self.cluster)
            self._prepared = check_prepared(self._document, self._secret, now=datetime.now(UTC))
            if self._taken.has(self._prepared.id):
                problems.append(TAKEN)
        except RefusedError as error:
            problems += error.problems
        if problems:
            raise RefusedError(problems)

    def _name_problem(self) -> str | None:
        return None if self._asked_name is None else name_problem("instance", self._asked_name)

    def expand_names(self) -> None:
        nodes = self.host.inventory().nodes()
        self.node = nodes[expand_name("node", self._asked_node, nodes)]
        self.instance = self._asked_name or self._prepared.instance.name
        if (
            self.instance == self._prepared.instance.name
            and RemoteKeys(self.cluster.state_dir).problem(self._prepared.id) is None
        ):
            # Its export would wait for the lock that is held here.
            raise RefusedError(
                f"{self.instance} was prepared by this very cluster: export it with --node, or give it another name"
            )

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if level is LockLevel.CLUSTER:
            return {self.cluster.name: LockMode.SHARED}
        if level is LockLevel.INSTANCE:
            return {self.instance: LockMode.EXCLUSIVE}
        return {self.node.name: LockMode.SHARED} if level is LockLevel.NODE else {}

    def check_prerequisites(self) -> None:
        problems: list[str] = []
        if self.node.offline:
            problems.append(f"node {self.node.name} is marked offline: choose another")
        if self.node.drained:
            problems.append(f"node {self.node.name} is drained and takes no exports: choose another")
        if not self._prepared.sizes:
            problems.append("the prepared export has no disks")
        if not self.node.offline:
            try:
                problems += on_node(self.host, self.node, _store_problems, self.instance)
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                problems += failure_lines(f"node {self.node.name}", error)
        if self._import_options is not None:
            problems += self._import_problems(self._import_options)
        if problems:
            raise RefusedError(problems)

    def _import_problems(self, options: ImportOptions) -> list[str]:
        """What an import would be refused for, as far as that can be said before the export is there."""
        instance = self.host.inventory().instances().get(self.instance)
        if instance is None:
            return [f"instance {self.instance} is not configured: it could not be imported"]
        sizes, grow = self._prepared.sizes, dict(options.grow)
        if len(instance.disks) != len(sizes):
            return [f"{self.instance} is configured with {len(instance.disks)} disk(s), and {len(sizes)} are to come"]
        problems: list[str] = []
        for disk, exported in zip(instance.disks, sizes, strict=True):
            size = grow.get(disk.index, disk.size if disk.size is not None else exported)
            if size < exported:
                problems.append(f"{disk.label}: {size} bytes are less than the {exported} to come: a disk may grow, never shrink")
                continue
            try:
                target = ImportTarget(disk=disk, size=size, storage=self.host.storage(disk.storage))
                problems += target.problems(force=options.force, new_directory=None, direct_io=options.direct_io)
            except RefusedError as error:
                problems += error.problems
        return problems

    # --- the work ---------------------------------------------------------------------------------------------------

    def execute(self, feedback: Feedback) -> ReceiveResult:
        now = datetime.now(UTC)
        self._sweep(now)
        with self._at_work():
            return self._receive(now, feedback)

    def _receive(self, now: datetime, feedback: Feedback) -> ReceiveResult:
        receiver = self._listening(now)
        try:
            with self._serving(receiver):
                self._taken.take(self._prepared.id, self._prepared.expires)
                self._tell_where(receiver, now)
                with feedback.stage("receive", f"{self.instance} from cluster {self._prepared.cluster}"):
                    self._wait(receiver)
            export = on_node(self.host, self.node, _published, self.node.name, self.instance, self._export_id)
        except BaseException as error:
            raise self._failure(error) from error
        return ReceiveResult(
            run_id=self.context.run_id,
            instance=self.instance,
            node=self.node.name,
            source_cluster=self._prepared.cluster,
            source_instance=self._prepared.instance.name,
            export=export,
            timings=dict(feedback.timings),
            warnings=tuple(feedback.warnings),
        )

    def _failure(self, error: BaseException) -> DiskhaulError:
        if isinstance(error, InterruptedRunError | RefusedError):
            return error
        if isinstance(error, OperationFailedError) and error.parts:
            return error
        why = f"the export that came is not valid: {error}" if isinstance(error, CorruptError) else error or type(error).__name__
        return OperationFailedError(f"reception of {self.instance} failed: {why}", parts=("reception",))

    @property
    def _receiving(self) -> Path:
        """Holds a directory for each receiver's state."""
        return self.cluster.state_dir / "remote" / "receiving"

    def _sweep(self, now: datetime) -> None:
        """Forget what has expired, and the state of receivers that were killed before an export began.

        One may be at work for longer than what it was given counts: it holds its directory's lock. And what the journal
        names is left to `recover`.
        """
        self._taken.sweep(now)
        noted = {note.data.get("receiving") for run in self.context.journal.unfinished() for note in run.notes}
        for place in self._receiving.glob("*"):
            if place.name in noted:
                continue
            try:
                lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the lock of the directory that the receiver keeps its state in, which is made for that.

        Raises:
            RefusedError: somebody else receives this export.
            StorageError: it cannot be made.
        """
        place = self._receiving / self._prepared.id
        while True:
            try:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # it was swept at that moment
            except OSError as error:
                raise StorageError(f"{place}: cannot be made: {error.strerror}", path=str(place)) from error
            try:
                _lock(lock)
                if _is_still(place, lock):
                    yield
                    return
            finally:
                os.close(lock)

    def _listening(self, now: datetime) -> RemoteReceiver:
        terms, self._certificate = self._terms(now)
        self._tokens = terms.tokens
        return self.host.remote_transfer().remote_receiver(
            self.node, terms, state_dir=self._receiving / self._prepared.id, begun=self._begun, accept=self._accept
        )

    @contextmanager
    def _serving(self, receiver: RemoteReceiver) -> Iterator[None]:
        """Have the receiver serve on a thread of its own; what it leaves unfinished is removed."""

        def serve() -> None:
            try:
                receiver.serve_forever()
            except BaseException as error:  # told by whoever waits
                self._receiver_failed.append(error)

        thread = threading.Thread(target=serve, name="diskhaul-remote-receiver", daemon=True)
        thread.start()
        try:
            yield
        finally:
            receiver.close()
            thread.join()
            try:
                self._clean_up(receiver)
            finally:
                shutil.rmtree(self._receiving / self._prepared.id, ignore_errors=True)

    def _terms(self, now: datetime) -> tuple[RemoteTerms, bytes]:
        prepared = self._prepared
        key, certificate = make_self_signed(self.cluster.name, "receiver", self.node.name, now=now, until=now + LIFE)
        source = prepared.certificate.encode("ascii")
        terms = RemoteTerms(
            source=RemoteParty(cluster=prepared.cluster, name=prepared.instance.name, certificate=source),
            receiver=RemoteParty(cluster=self.cluster.name, name=self.node.name, certificate=certificate),
            own=key + certificate,
            instance=self.instance,
            tokens=tuple(secrets.token_bytes(TOKEN_LENGTH) for _ in prepared.sizes),
        )
        return terms, certificate

    def _tell_where(self, receiver: RemoteReceiver, now: datetime) -> None:
        host, port = receiver.place
        document = destination_document(
            self._secret,
            self._prepared,
            cluster=self.cluster.name,
            node=self.node.name,
            instance=self.instance,
            certificate=self._certificate.decode("ascii"),
            host=host,
            port=port,
            tokens=self._tokens,
            now=now,
            expires=now + timedelta(seconds=min(self._timeout_s, LIFE.total_seconds())),
        )
        self._announce(document)

    def _wait(self, receiver: RemoteReceiver) -> None:
        """Return once an export is there, and looked at by its source; raise when none will be."""
        heard = time.monotonic()
        while True:
            stage = receiver.stage
            if stage == "settled":
                return
            if stage == "given up":
                raise self._given_up("the source has given up; its own error says why")
            if self._receiver_failed:
                raise self._given_up(f"the receiver failed: {self._receiver_failed[0]}")
            now = time.monotonic()
            if receiver.busy:
                heard = now
            limit_s = min(_FAREWELL_S, self._timeout_s) if stage == "published" else self._timeout_s
            if now - heard > limit_s:
                if stage == "published":
                    self.feedback.warn("the source was not heard of after the export was published: it may call it failed")
                    return
                raise self._given_up(f"nothing has come for {self._timeout_s:g} s")
            if self.token.wait(_POLL_S):
                if receiver.stage not in ("published", "settled"):
                    raise InterruptedRunError(f"interrupted: {self.token.reason}")
                time.sleep(_POLL_S)  # an export that is there is waited out

    def _given_up(self, why: str) -> OperationFailedError:
        return OperationFailedError(f"reception of {self.instance} failed: {why}", parts=("reception",))

    # --- what the receiver asks -------------------------------------------------------------------------------------

    def _begun(self, export_id: str) -> None:
        noted: dict[str, object] = {"node": self.node.name, "instance": self.instance, "export_id": export_id, "given_up": False}
        noted |= {"receiving": self._prepared.id}
        self._note = self.context.journal.begin_with(self.context.run_id, self.name, self.instance, "partial", noted)
        self._export_id = export_id

    def _accept(self, data: bytes) -> None:
        """Raise `StorageError` unless the manifest is that of the export which was prepared."""
        try:
            manifest = Manifest.from_bytes(data)
        except CorruptError as error:
            raise StorageError(f"{self.instance}: its manifest is refused: {error}", path=self.instance) from error
        found = (manifest.cluster, manifest.instance["name"], manifest.export_id)
        expected = (self._prepared.cluster, self.instance, self._export_id)
        sizes = tuple(disk.size for disk in manifest.disks)
        if found != expected or sizes != self._prepared.sizes:
            raise StorageError(f"{self.instance}: its manifest is not that of the export that was prepared", path=self.instance)
        self.locks.check()

    def _clean_up(self, receiver: RemoteReceiver) -> None:
        if self._note is None:
            return
        receiver.drop(self._export_id)
        self.context.journal.strike(self._note)
        self.context.journal.finish(self.context.run_id)


def _lock(descriptor: int) -> None:
    until = time.monotonic() + _SWEEP_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise RefusedError(TAKEN) from None
        time.sleep(_POLL_S)


def _is_still(place: Path, descriptor: int) -> bool:
    """Whether an open directory still lies at `place`."""
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _store_problems(store: ExportStore, instance: str) -> list[str]:
    return list(store.check(instance, for_writing=True))


def _published(store: ExportStore, node: str, instance: str, export_id: str) -> ExportRecord:
    reader = store.open(instance, export_id)
    return record_of(read_valid_manifest(reader), node=node, store=store.identity, path=reader.location)
