"""Exports that a receiver is being sent. What is needed to go on with one lies in the receiver's state directory.

    <state_dir>/receiver-NODE/<session>.json        who sends what, and the files so far; written when one of them changes
    <state_dir>/receiver-NODE/<session>.progress    how far each file has come (`progress`)

The sender chooses the session's id and its key; only a digest of the key is kept. A stream of a file is opened with a token,
which the owner of the session is given for one stream, and with the file's magic value. A session whose machine has been
started anew since is void: what had been acknowledged need not be there.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
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

ID_LENGTH, KEY_LENGTH, TOKEN_LENGTH, MAGIC_LENGTH = 16, 32, 16, 16
MAX_FILES = 4096
_TOKEN_LIFE_S = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD, _PROGRESS = ".json", ".progress"


@dataclass(frozen=True, slots=True)
class _Token:
    file: ReceivedFile
    round: int
    peer: str
    expires: float


class Session:
    """One export that is being received. `lock` is held while its files or its end are decided."""

    def __init__(self, id_: bytes, key_digest: bytes, peer: str, instance: str, export_id: str) -> None:
        self.id, self.key_digest, self.peer = id_, key_digest, peer
        self.instance, self.export_id = instance, export_id
        self.files: dict[str, ReceivedFile] = {}
        self.lock = threading.RLock()
        self.ended = False
        self.writer: DirectoryWriter
        self.progress: ProgressFile

    def record(self) -> Mapping[str, Any]:
        return {
            "version": 1,
            "boot": _boot_id(),
            "key": self.key_digest.hex(),
            "peer": self.peer,
            "instance": self.instance,
            "export_id": self.export_id,
            "files": [{"name": file.name, "magic": file.magic.hex()} for file in self.files.values()],
        }

    def stop_streams(self) -> None:
        for file in list(self.files.values()):
            file.stop()


class Sessions:
    """All of them. Thread-safe."""

    def __init__(self, store: Callable[[], DirectoryStore], directory: Path, limit: int) -> None:
        """`store`: the receiver's own; `directory`: where their state lies; `limit`: how many there may be at a time."""
        self._store, self._directory, self._limit = store, directory, limit
        self._sessions: dict[bytes, Session] = {}
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
                    continue
                said.append(f"{where}: is no longer being received")
            except (DiskhaulError, OSError, ValueError, KeyError, TypeError) as error:
                said.append(f"{place.name}: cannot be gone on with: {error}")
            place.with_suffix(_PROGRESS).unlink(missing_ok=True)
            place.unlink(missing_ok=True)
        return said

    # --- an export's life -------------------------------------------------------------------------------------------

    def begin(self, peer: Peer, id_: bytes, key: bytes, instance: str, export_id: str) -> Session:
        """Begin an export; asked again with the same key, it is the one that was begun.

        Raises:
            DiskhaulError: it cannot be begun, or there are too many.
        """
        with self._lock:
            if (known := self._known(id_)) is not None:
                if (known.instance, known.export_id) != (instance, export_id):
                    raise StorageError("this session is of another export", path=instance)
                self._check_owner(known, peer, key)
                return known
            if len(self._sessions) >= self._limit:
                raise StorageError(f"{len(self._sessions)} exports are being received already: try again later", path=instance)
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
        session = self._known(id_)
        if session is None:
            raise NoSessionError("this receiver knows nothing (any more) of this export being sent", path=id_.hex())
        self._check_owner(session, peer, key)
        return session

    def create(self, session: Session, name: str, magic: bytes) -> ReceivedFile:
        """Make a file of the export; asked again with the same magic value, it is the one that was made."""
        with session.lock:
            self._check_going_on(session)
            known = session.files.get(name)
            if known is not None and known.magic == magic:
                return known
            if len(session.files) >= MAX_FILES:
                raise StorageError(f"{session.export_id}: more than {MAX_FILES} files", path=name)
            file = self._received(session, len(session.files), session.writer.create(name), magic, None)
            session.files[name] = file
            self._write(session)
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
                self._tokens |= {token: _Token(file, round_, session.peer, now + _TOKEN_LIFE_S) for token in given}
            return file, progress, given

    def redeem(self, peer: Peer, token: bytes, magic: bytes) -> tuple[ReceivedFile, int]:
        """The file that a stream is for, and its round. A token is good once.

        Raises:
            StorageError: it was never given out, has been used, is too old, another's, or for another file.
        """
        with self._lock:
            entry = self._tokens.pop(token, None)
        if entry is None or entry.peer != peer.name or entry.expires <= time.monotonic():
            raise StorageError("the stream's token is not valid (any more)", path=peer.name)
        if not hmac.compare_digest(entry.file.magic, magic):
            raise StorageError(f"{entry.file.name}: the stream has another file's magic value", path=entry.file.name)
        return entry.file, entry.round

    def publish(self, session: Session, manifest: bytes) -> None:
        with session.lock:
            self._check_going_on(session)
            session.writer.publish(manifest)
            self._end(session)

    def abort(self, session: Session) -> None:
        """Remove everything of the export, which is not being published any more; streams end."""
        session.stop_streams()
        with session.lock:
            if not session.ended:
                session.writer.abort()
                self._end(session)

    def drop(self, instance: str, export_id: str) -> None:
        """Forget sessions of an export that is going to be removed."""
        for session in [session for session in list(self._sessions.values()) if _is_of(session, instance, export_id)]:
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

    # --- state ------------------------------------------------------------------------------------------------------

    def _known(self, id_: bytes) -> Session | None:
        with self._lock:
            session = self._sessions.get(id_)
            if session is None and self._place(id_, _RECORD).exists():
                session = self._sessions[id_] = self._load(id_)
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
        kept = [KeptFile(name, progress.end, progress.finished) for _, name, _, progress in found]
        session.writer = self._store().resume(session.instance, session.export_id, kept)
        for slot, name, magic, progress in found:
            file = session.writer.file(name)
            assert file is not None, "it was kept"
            session.files[name] = self._received(session, slot, file, magic, progress)

    def _received(
        self, session: Session, slot: int, file: DirectoryFile, magic: bytes, progress: Progress | None
    ) -> ReceivedFile:
        received = ReceivedFile(file, magic, lambda now: session.progress.write(slot, now), progress)
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
        with self._lock:
            self._sessions.pop(session.id, None)
            self._tokens = {token: entry for token, entry in self._tokens.items() if entry.file not in session.files.values()}
        self._forget(session.id)

    def _forget(self, id_: bytes) -> None:
        self._place(id_, _RECORD).unlink(missing_ok=True)
        self._place(id_, _PROGRESS).unlink(missing_ok=True)

    def _place(self, id_: bytes, suffix: str) -> Path:
        return self._directory / f"{id_.hex()}{suffix}"

    def _record(self, id_: bytes) -> Any:
        record = json.loads(self._place(id_, _RECORD).read_text("ascii"))
        if record["version"] != 1 or record["boot"] != _boot_id():
            raise ValueError("this machine has been started anew since")
        return record

    def _write(self, session: Session) -> None:
        place = self._place(session.id, _RECORD)
        beside = place.with_suffix(".tmp")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(session.record(), file)
        beside.rename(place)


class NoSessionError(StorageError):
    """What was begun is not known here: it never was, has ended, or its machine was started anew."""


def _is_of(session: Session, instance: str, export_id: str) -> bool:
    return (session.instance, session.export_id) == (instance, export_id)


def _digest(key: bytes) -> bytes:
    return blake3(b"diskhaul-tls session" + key).digest()


def _boot_id() -> str:
    return _BOOT_ID.read_text("ascii").strip()
