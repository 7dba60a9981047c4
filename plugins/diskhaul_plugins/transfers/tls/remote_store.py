"""The source's side of an export to another cluster: the store there that takes this one export."""

from __future__ import annotations

import secrets

from diskhaul.api import RemoteStore, RemoteTerms
from diskhaul.errors import StorageError
from diskhaul.model import Node

from .calls import Caller
from .client_store import TlsStore, TlsWriter
from .client_stream import TlsFile
from .connection import Dialler
from .pinned import PinnedIdentity
from .remote_proofs import file_magic, session_proof
from .sessions import ID_LENGTH, KEY_LENGTH
from .settings import Address, Settings


class RemoteTlsStore(TlsStore, RemoteStore):
    """The place that a destination was agreed on for. Keeps nothing open between calls; thread-safe."""

    def __init__(self, terms: RemoteTerms, address: Address, settings: Settings) -> None:
        """Raises `ConfigurationError` when the certificates cannot be used."""
        receiver = Node(name=terms.receiver.name)
        identity = PinnedIdentity(terms.own, terms.receiver.certificate)
        super().__init__(Caller(Dialler(receiver, address, terms.receiver.cluster, identity, settings)))
        self._terms, self._identity = terms, identity

    def begin(self, instance: str, export_id: str, /) -> TlsWriter:
        writer = _RemoteWriter(self._caller, instance, export_id, self._terms)
        self._identity.begun()
        return writer

    def farewell(self) -> None:
        self._caller.call_until_answered("farewell")


class _RemoteWriter(TlsWriter):
    """An export that is being sent to another cluster: its files show that the tokens of their disks are known."""

    def __init__(self, caller: Caller, instance: str, export_id: str, terms: RemoteTerms) -> None:
        self._session, self._tokens = secrets.token_bytes(ID_LENGTH), terms.tokens
        credentials = {
            "session": self._session.hex(),
            "key": secrets.token_bytes(KEY_LENGTH).hex(),
            "proof": session_proof(terms.tokens, self._session).hex(),
        }
        super().__init__(caller, instance, export_id, credentials)

    def create(self, name: str, /) -> TlsFile:
        magic = file_magic(self._tokens, self._session, name)
        if magic is None:
            raise StorageError(f"{name}: a remote export has no such file", path=name)
        self._caller.call_until_answered("create", self._credentials | {"name": name, "magic": magic.hex()})
        file = TlsFile(self._caller, self._credentials, name, magic)
        with self._lock:
            self._files.append(file)
        return file
