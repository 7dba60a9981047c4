"""The identity of a store: a uuid in ``.diskhaul-store``, the same for every node that mounts the directory."""

from __future__ import annotations

import os
import uuid

from diskhaul.errors import StorageError

from ..storages.raw import storage_error
from . import beneath

_IDENTITY = ".diskhaul-store"
_IDENTITY_LIMIT = 100  # bytes; an identity file holds a uuid


def read_identity(root: int, place: str) -> str:
    """The uuid that the store keeps, or "" when it has none yet."""
    where = os.path.join(place, _IDENTITY)
    if not beneath.exists(root, _IDENTITY):
        return ""
    descriptor, _ = beneath.open_regular(root, _IDENTITY, where)
    try:
        text = os.read(descriptor, _IDENTITY_LIMIT).decode("ascii", "replace").strip()
        return str(uuid.UUID(text))
    except OSError as error:
        raise storage_error("read", where, error) from error
    except ValueError as error:
        raise StorageError(
            f"{where}: does not hold the store's identity (a uuid): remove it, and a new one will be made", path=where
        ) from error
    finally:
        os.close(descriptor)


def keep_identity(root: int, place: str) -> None:
    """Give the store an identity unless it has one. Of several that try at once, one wins, and all see the same."""
    if not read_identity(root, place):
        identity = str(uuid.uuid4())
        temporary = f"{_IDENTITY}.{identity}.tmp"
        descriptor = beneath.create_file(root, temporary)
        try:
            os.write(descriptor, f"{identity}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            # Without replacing: that would take away the identity which another process has just given the store.
            beneath.rename_new(root, temporary, _IDENTITY)
        except (FileExistsError, FileNotFoundError):
            pass  # another one was first, and may have tidied up as below
        os.fsync(root)
        if not read_identity(root, place):
            raise StorageError(f"{place}: its identity vanished while it was made", path=place)
    for name in beneath.names(root, place):
        if name.startswith(f"{_IDENTITY}.") and name.endswith(".tmp"):
            try:
                os.unlink(name, dir_fd=root)  # of a run that was killed, or of one that lost: the store has its identity
            except FileNotFoundError:
                pass
