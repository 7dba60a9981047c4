"""Exports that a receiver is being sent. What is needed to go on with one lies in the receiver's state directory.

    <state_dir>/receiver-NODE/<session>.json        who sends what, and the files so far; written when one of them changes
    <state_dir>/receiver-NODE/<session>.progress    how far each file has come (`progress`)

The sender chooses the session's id and its key; only a digest of the key is kept. A stream of a file is opened with a token,
which the owner of the session is given for one stream, and with the file's magic value. A session whose machine has been
started anew since is void: what had been acknowledged need not be there. So is one that nobody had a connection for in
`Settings.session_timeout_s`; what it has received is left for ``diskhaul recover``, as that of any sender that died.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import resource
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from diskhaul.errors import DiskhaulError, StorageError
from diskhaul.names import printable

from ..directory import DirectoryFile, DirectoryStore, DirectoryWriter, KeptFile
from .identities import Peer
from .progress import Progress, ProgressFile
from .received_file import ReceivedFile
from .settings import Settings

ID_LENGTH, KEY_LENGTH, TOKEN_LENGTH, MAGIC_LENGTH = 16, 32, 16, 16
MAX_FILES = 4096
_SESSION_DESCRIPTORS = 3  # of two directories and of the progress; beside those of files that are not finished
_FILE_DESCRIPTORS = 2  # one of them for direct I/O
_KEPT_ENDS = 4096  # of ids of sessions that have ended
_TOKEN_LIFE_S = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD, _PROGRESS = ".json", ".progress"
_VERSION = 2  # of both
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class _Token:
    session: Session
    file: ReceivedFile
    round: int
    peer: str
    expires: float


class Session:
    """One export that is being received. `lock` is held while its files or its end are decided.

    Attributes:
        ended: it is no longer being received.
        published: that is why.
        users: connections that have streams or read, while `used` says so; guarded by `Sessions`.
        heard: when it was last asked for, on the monotonic clock; guarded by `Sessions`.
    """

    def __init__(self, id_: bytes, key_digest: bytes, peer: str, instance: str, export_id: str) -> None:
        self.id, self.key_digest, self.peer = id_, key_digest, peer
        self.instance, self.export_id = instance, export_id
        self.files: dict[str, ReceivedFile] = {}
        self.lock = threading.RLock()
        self.ended = self.published = False
        self.users, self.heard = 0, time.monotonic()
        self.writer: DirectoryWriter
        self.progress: ProgressFile

    def record(self) -> Mapping[str, Any]:
        return {
            "version": _VERSION,
            "boot": _boot_id(),
            "key": self.key_digest.hex(),
            "peer": self.peer,
            "instance": self.instance,
            "export_id": self.export_id,
            "files": [{"name": file.name, "magic": file.magic.hex()} for file in self.files.values()],
        }

    @property
    def descriptors(self) -> int:
        """How many descriptors it holds."""
        unfinished = sum(not file.progress.finished for file in list(self.files.values()))
        return _SESSION_DESCRIPTORS + _FILE_DESCRIPTORS * unfinished

    def stop_streams(self) -> None:
        for file in list(self.files.values()):
            file.stop()


class Sessions:
    """All of them. Thread-safe. When a session's lock and that of this object are both taken, the session's comes first.

    Args:
        store: the receiver's own.
        directory: where their state lies.
        log: told, in one line each, of sessions that nobody has asked for in too long.
    """

    def __init__(
        self, store: Callable[[], DirectoryStore], directory: Path, settings: Settings, log: Callable[[str], object]
    ) -> None:
        self._store, self._directory, self._log = store, directory, log
        self._limit, self._timeout_s, self._direct_io = settings.max_sessions, settings.session_timeout_s, settings.direct_io
        self._kept_back = 3 * settings.max_connections + settings.max_pending + 64  # descriptors for anything else
        self._sessions: dict[bytes, Session] = {}
        self._left: dict[bytes, float] = {}  # those of an earlier process that nobody has asked for yet: since when
        self._over: dict[bytes, None] = {}  # by age: sessions that have ended; a dict keeps its order
        self._tokens: dict[bytes, _Token] = {}
        self._lock = threading.RLock()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def sweep(self) -> list[str]:
        """Delete the state of sessions that cannot be gone on with; say which."""
        said = []
        for place in sorted(self._directory.glob(f"*{_RECORD}")):
            try:
                id_ = bytes.fromhex(place.name.removesuffix(_RECORD))
                record = self._record(id_)
                where = f"{record['instance']}@{record['export_id']}"
                if record["export_id"] in self._store().partials(record["instance"]):
                    self._left[id_] = time.monotonic()
                    continue
                said.append(f"{where}: is no longer being received")
            except DiskhaulError as error:  # the store cannot be looked at: nothing is known to be lost
                self._left[id_] = time.monotonic()
                said.append(f"{where}: not known whether it can be gone on with: {error}")
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                said.append(f"{place.name}: cannot be gone on with: {error}")
            place.with_suffix(_PROGRESS).unlink(missing_ok=True)
            place.unlink(missing_ok=True)
        for place in (*self._directory.glob(f"*{_PROGRESS}"), *self._directory.glob("*.tmp")):
            if not place.with_suffix(_RECORD).exists():  # of one that was killed while it began, or ended, a session
                place.unlink(missing_ok=True)
        return said

    # --- an export's life -------------------------------------------------------------------------------------------

    def begin(self, peer: Peer, id_: bytes, key: bytes, instance: str, export_id: str) -> Session:
        """Begin an export; asked again with the same key, it is the one that was begun.

        Raises:
            DiskhaulError: it cannot be begun, or there are too many.
        """
        self._expire()
        with self._lock:
            if id_ in self._over:
                raise NoSessionError(f"{export_id}: is no longer being received", path=instance)
            if (known := self._known(id_)) is not None:
                if (known.instance, known.export_id) != (instance, export_id):
                    raise StorageError("this session is of another export", path=instance)
                self._check_owner(known, peer, key)
                return known
            if len(self._sessions) >= self._limit:
                raise BusyReceiverError(self._why_full(), path=instance)
            self._check_descriptors(_SESSION_DESCRIPTORS, instance)
            session = Session(id_, _digest(key), peer.name, instance, export_id)
            session.writer = self._store().begin(instance, export_id)
            try:
                session.progress = ProgressFile(self._place(id_, _PROGRESS), new=True)
                try:
                    self._write(session)
                except BaseException:
                    session.progress.close()
                    raise
            except BaseException:
                self._forget(id_)
                session.writer.abort()
                raise
            self._sessions[id_] = session
            return session

    def find(self, peer: Peer, id_: bytes, key: bytes) -> Session:
        """The session, also one of a receiver's process that is gone.

        Raises:
            StorageError: there is none, or it is not this peer's.
        """
        with self._lock:
            session = self._known(id_)
            if session is None:
                raise NoSessionError("this receiver knows nothing (any more) of this export being sent", path=id_.hex())
            self._check_owner(session, peer, key)
            session.heard = time.monotonic()
            return session

    @contextmanager
    def used(self, session: Session) -> Iterator[None]:
        """While a connection that may stay long is for `session`: it does not count as left alone."""
        with self._lock:
            session.users += 1
        try:
            yield
        finally:
            with self._lock:
                session.users -= 1
                session.heard = time.monotonic()

    def create(self, session: Session, name: str, magic: bytes) -> ReceivedFile:
        """Make a file of the export; asked again with the same magic value, it is the one that was made."""
        with session.lock:
            self._check_going_on(session)
            known = session.files.get(name)
            if known is not None and known.magic == magic:
                return known
            if len(session.files) >= MAX_FILES:
                raise StorageError(f"{session.export_id}: more than {MAX_FILES} files", path=name)
            self._check_descriptors(_FILE_DESCRIPTORS, name)
            file = self._received(session, len(session.files), session.writer.create(name), magic, None)
            session.files[name] = file
            try:
                self._write(session)
            except BaseException:
                del session.files[name]  # it would not be known after a restart: the export fails now
                raise
            return file

    def tokens(self, session: Session, name: str, count: int) -> tuple[ReceivedFile, Progress, list[bytes]]:
        """Begin the file `name` anew: end its streams, and give out tokens for `count` new ones."""
        with session.lock:
            self._check_going_on(session)
            file = session.files.get(name)
            if file is None:
                raise StorageError(f"{printable(name)} is no file of this export", path=name)
            round_, progress = file.begin_round()
            now = time.monotonic()
            given = [secrets.token_bytes(TOKEN_LENGTH) for _ in range(count)]
            with self._lock:
                self._tokens = {
                    token: entry for token, entry in self._tokens.items() if entry.expires > now and entry.file is not file
                }
                self._tokens |= {token: _Token(session, file, round_, session.peer, now + _TOKEN_LIFE_S) for token in given}
            return file, progress, given

    def redeem(self, peer: Peer, token: bytes, magic: bytes) -> tuple[Session, ReceivedFile, int]:
        """What a stream is for, and its round. A token is good once.

        Raises:
            StorageError: it was never given out, has been used, is too old, another's, or for another file.
        """
        with self._lock:
            entry = self._tokens.pop(token, None)
        if entry is None or entry.peer != peer.name or entry.expires <= time.monotonic():
            raise StorageError("the stream's token is not valid (any more)", path=peer.name)
        if not hmac.compare_digest(entry.file.magic, magic):
            raise StorageError(f"{entry.file.name}: the stream has another file's magic value", path=entry.file.name)
        return entry.session, entry.file, entry.round

    def publish(self, session: Session, manifest: bytes) -> None:
        with session.lock:
            self._check_going_on(session)
            session.writer.publish(manifest)
            session.published = True
            self._end(session)

    def abort(self, session: Session) -> bool:
        """Remove everything of the export; streams end. Returns whether it has been published instead.

        A `publish` that is under way either succeeds before this returns, or fails; none that comes later succeeds.
        """
        session.writer.give_up()
        session.stop_streams()
        with session.lock:
            if not session.ended:
                try:
                    session.writer.abort()
                finally:
                    self._end(session)  # who asks again has what is left removed, as that of a session that is not known
            return session.published

    def forget(self, id_: bytes, instance: str, export_id: str) -> None:
        """Have a session that is not known never begin, and forget others of its export, which is going to be removed."""
        self._remember_end(id_)
        self.drop(instance, export_id)

    def drop(self, instance: str, export_id: str) -> None:
        """Forget sessions of an export that is going to be removed."""
        for session in [session for session in list(self._sessions.values()) if _is_of(session, instance, export_id)]:
            session.writer.give_up()
            session.stop_streams()
            with session.lock:
                session.writer.leave()
                self._end(session)
        for place in self._directory.glob(f"*{_RECORD}"):
            try:
                record = self._record(bytes.fromhex(place.name.removesuffix(_RECORD)))
            except (StorageError, OSError, ValueError):
                continue
            if (record["instance"], record["export_id"]) == (instance, export_id):
                self._forget(bytes.fromhex(place.name.removesuffix(_RECORD)))

    def close(self) -> None:
        """Leave every export as it is, for a later receiver."""
        for session in list(self._sessions.values()):
            session.stop_streams()
            with session.lock:
                session.ended = True
                session.writer.leave()
                session.progress.close()
        with self._lock:
            self._sessions.clear()

    def _expire(self) -> None:
        """End sessions that nobody has asked for in too long: their senders are taken for dead."""
        too_old = time.monotonic() - self._timeout_s
        with self._lock:
            left = [id_ for id_, since in self._left.items() if since <= too_old]
            for id_ in left:
                del self._left[id_]
                self._forget(id_)
            idle = [session for session in self._sessions.values() if not session.users and session.heard <= too_old]
        for session in idle:
            if not session.lock.acquire(blocking=False):
                continue  # it is being worked for
            try:
                with self._lock:
                    came_back = session.users or session.heard > too_old
                if not session.ended and not came_back:
                    session.writer.leave()
                    self._end(session)
                    where = f"{session.instance}@{session.export_id}"
                    self._log(f"{where}: is no longer being received: its sender has been silent for {self._timeout_s:g} s")
            finally:
                session.lock.release()

    def _why_full(self) -> str:
        now = time.monotonic()
        idle_s = [now - session.heard for session in self._sessions.values() if not session.users]
        what = f"{len(self._sessions)} exports are being received already (max_sessions)"
        if not idle_s:
            return what
        rest = f"{len(idle_s)} of them rest, for up to {max(idle_s):.0f} s"
        return f"{what}; {rest}: 'diskhaul recover' ends those whose senders have died"

    def _check_descriptors(self, more: int, path: str) -> None:
        """Raise `StorageError` unless so many more descriptors leave enough for everything else."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return
        room = limit - min(self._kept_back, limit // 2)
        held = sum(session.descriptors for session in list(self._sessions.values()))
        if held + more > room:
            raise StorageError(
                f"{printable(path)}: this receiver has {held} files open for what it is receiving, of {room} that its limit of "
                f"{limit} descriptors leaves: raise LimitNOFILE of its service, or send fewer disks at a time",
                path=path,
            )

    # --- state ------------------------------------------------------------------------------------------------------

    def _known(self, id_: bytes) -> Session | None:
        with self._lock:
            session = self._sessions.get(id_)
            if session is None and self._place(id_, _RECORD).exists():
                session = self._sessions[id_] = self._load(id_)
                self._left.pop(id_, None)
            return session

    def _load(self, id_: bytes) -> Session:
        try:
            record = self._record(id_)
            session = Session(id_, bytes.fromhex(record["key"]), record["peer"], record["instance"], record["export_id"])
            session.progress = ProgressFile(self._place(id_, _PROGRESS), new=False)
            try:
                self._take_up(session, record)
            except BaseException:
                session.progress.close()
                raise
        except (DiskhaulError, OSError, ValueError, KeyError, TypeError) as error:
            if _passes(error):
                raise BusyReceiverError(f"this export cannot be gone on with now: {error}", path=id_.hex()) from error
            raise NoSessionError(f"what is left of this export cannot be gone on with: {error}", path=id_.hex()) from error
        return session

    def _take_up(self, session: Session, record: Mapping[str, Any]) -> None:
        files = [(entry["name"], bytes.fromhex(entry["magic"])) for entry in record["files"]]
        found = []
        for slot, (name, magic) in enumerate(files):
            progress = session.progress.read(slot)
            if progress is None:
                raise ValueError(f"how far {name} had come is not known")
            found.append((slot, name, magic, progress))
        kept = [KeptFile(name, progress.end - len(progress.tail), progress.finished) for _, name, _, progress in found]
        session.writer = self._store().resume(session.instance, session.export_id, kept)
        try:
            for slot, name, magic, progress in found:
                file = session.writer.file(name)
                assert file is not None, "it was kept"
                session.files[name] = self._received(session, slot, file, magic, progress)
        except BaseException:
            session.writer.leave()
            raise

    def _received(
        self, session: Session, slot: int, file: DirectoryFile, magic: bytes, progress: Progress | None
    ) -> ReceivedFile:
        received = ReceivedFile(file, magic, lambda now: session.progress.write(slot, now), progress, direct_io=self._direct_io)
        if progress is None:
            session.progress.write(slot, received.progress)
        return received

    def _check_owner(self, session: Session, peer: Peer, key: bytes) -> None:
        if session.peer != peer.name or not hmac.compare_digest(session.key_digest, _digest(key)):
            raise StorageError("this export is being sent by somebody else", path=session.export_id)

    def _check_going_on(self, session: Session) -> None:
        if session.ended:
            raise NoSessionError(f"{session.export_id}: is no longer being received", path=session.export_id)

    def _end(self, session: Session) -> None:
        session.ended = True
        session.progress.close()
        self._remember_end(session.id)
        with self._lock:
            self._sessions.pop(session.id, None)
            self._tokens = {token: entry for token, entry in self._tokens.items() if entry.file not in session.files.values()}
        self._forget(session.id)

    def _remember_end(self, id_: bytes) -> None:
        """A `begin` that was heard late must not begin it anew."""
        with self._lock:
            self._over[id_] = None
            if len(self._over) > _KEPT_ENDS:
                del self._over[next(iter(self._over))]

    def _forget(self, id_: bytes) -> None:
        self._place(id_, _RECORD).unlink(missing_ok=True)
        self._place(id_, _PROGRESS).unlink(missing_ok=True)

    def _place(self, id_: bytes, suffix: str) -> Path:
        return self._directory / f"{id_.hex()}{suffix}"

    def _record(self, id_: bytes) -> Any:
        record = json.loads(self._place(id_, _RECORD).read_text("ascii"))
        if record["version"] != _VERSION:
            raise ValueError("another version of diskhaul has received it")
        if record["boot"] != _boot_id():
            raise ValueError("this machine has been started anew since")
        return record

    def _write(self, session: Session) -> None:
        place = self._place(session.id, _RECORD)
        beside = place.with_suffix(".tmp")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(session.record(), file)
        beside.rename(place)


class BusyReceiverError(StorageError):
    """There is no room now, and there may be some later."""


class NoSessionError(StorageError):
    """What was begun is not known here: it never was, has ended, or its machine was started anew."""


def _passes(error: Exception) -> bool:
    """Whether the machine only lacks something for now: what is left of an export stays as it is."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _SCARCE


def _is_of(session: Session, instance: str, export_id: str) -> bool:
    return (session.instance, session.export_id) == (instance, export_id)


def _digest(key: bytes) -> bytes:
    return blake3(b"diskhaul-tls session" + key).digest()


def _boot_id() -> str:
    return _BOOT_ID.read_text("ascii").strip()
