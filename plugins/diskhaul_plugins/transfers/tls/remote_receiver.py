"""The destination's side of an export from another cluster: a receiver for one sender, and for one export of it."""

from __future__ import annotations

import hmac
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diskhaul.api import Inventory, RemoteReceiver, RemoteStage, RemoteTerms
from diskhaul.errors import StorageError
from diskhaul.model import Instance, Node

from ..directory import DirectoryStore
from .authorization import Authorization, ForbiddenError
from .identities import Peer, peer_of
from .pinned import PinnedIdentity
from .receiver import TlsReceiver
from .remote_proofs import PROOF_LENGTH, file_magic, session_proof
from .service import Document, Service
from .sessions import ID_LENGTH, MAGIC_LENGTH, Sessions
from .settings import Address, Settings
from .wire import binary_field, field


class _Nobody(Inventory):
    """Whom the receiver's own cluster knows has no part in this."""

    def nodes(self) -> Mapping[str, Node]:
        return {}

    def instances(self) -> Mapping[str, Instance]:
        return {}


class RemoteAuthorization(Authorization):
    """Lets in the source, to the one instance that is to come."""

    def __init__(self, terms: RemoteTerms) -> None:
        super().__init__("", _Nobody())
        self._peer = Peer(terms.source.cluster, "source", terms.source.name)
        self._instance = terms.instance

    def admit(self, peer: Peer) -> None:
        if peer != self._peer:
            raise ForbiddenError(f"{peer} is not whom this export is expected from")

    def check(self, peer: Peer, instance: str, *, writing: bool) -> None:
        if peer != self._peer or instance != self._instance:
            raise ForbiddenError(f"{peer} may send {self._instance} and nothing else")

    def readable(self, peer: Peer, instances: Sequence[str]) -> list[str]:
        return []


class RemoteService(Service):
    """Takes one export: the first that is begun by somebody who knows the tokens, which are used up by that.

    Attributes:
        stage: how far it has come.
    """

    def __init__(
        self,
        node: Node,
        terms: RemoteTerms,
        store: Callable[[], DirectoryStore],
        sessions: Sessions,
        settings: Settings,
        log: Callable[[str], object],
        *,
        begun: Callable[[str], object],
        accept: Callable[[bytes], object],
    ) -> None:
        super().__init__(node, terms.receiver.cluster, store, sessions, RemoteAuthorization(terms), settings, log)
        self._terms, self._begun, self._accept = terms, begun, accept
        self._bound: tuple[bytes, str] | None = None  # the session that has used up the tokens, and its export's id
        self.stage: RemoteStage = "waiting"
        self._lock = threading.Lock()
        taken = ("identity", "free_bytes", "check", "names", "remove", "remove_partial")
        self._calls = {name: self._calls[name] for name in (*taken, "begin", "create", "restart", "publish", "abort")}
        self._calls |= {"farewell": self._farewell}

    def _begin(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        session, export_id = binary_field(asked, "session", ID_LENGTH), field(asked, "export_id", str)
        proof = binary_field(asked, "proof", PROOF_LENGTH)
        if not hmac.compare_digest(proof, session_proof(self._terms.tokens, session)):
            raise ForbiddenError("the sender does not know the tokens of this destination's disks")
        self._authorization.check(peer, field(asked, "instance", str), writing=True)
        with self._lock:
            if self._bound is None and self.stage == "waiting":
                self._begun(export_id)
                self._bound, self.stage = (session, export_id), "receiving"
            elif self._bound != (session, export_id):
                raise StorageError("this destination has been used: its tokens are good once", path=self._terms.instance)
        return super()._begin(peer, asked, body)

    def _create(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        name, magic = field(asked, "name", str), binary_field(asked, "magic", MAGIC_LENGTH)
        expected = file_magic(self._terms.tokens, binary_field(asked, "session", ID_LENGTH), name)
        if expected is None or not hmac.compare_digest(expected, magic):
            raise ForbiddenError("the sender does not know the token of this file's disk, or it is no disk's")
        return super()._create(peer, asked, body)

    def _publish(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        self._accept(bytes(body))
        answer = super()._publish(peer, asked, body)
        self.stage = "published"
        return answer

    def _abort(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        answer = super()._abort(peer, asked, body)
        if answer["published"] is not True:  # else the answer to the call that published it was lost
            self.stage = "given up"
        elif self.stage == "receiving":
            self.stage = "published"
        return answer

    def _remove(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        answer = super()._remove(peer, asked, body)
        self.stage = "given up"
        return answer

    def _farewell(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        if self.stage == "published":
            self.stage = "settled"
        return {}

    def _instance(self, peer: Peer, asked: Document, *, writing: bool) -> str:
        instance = super()._instance(peer, asked, writing=writing)
        if self._bound is None or field(asked, "export_id", str) != self._bound[1]:
            raise ForbiddenError(f"{peer} may touch no export but the one that it sends")
        return instance


class RemoteTlsReceiver(TlsReceiver, RemoteReceiver):
    """Waits for the one export that `terms` were agreed on for. `close` may be called from any thread."""

    def __init__(
        self,
        node: Node,
        listening: Address,
        reached: Address,
        terms: RemoteTerms,
        settings: Settings,
        *,
        store: Callable[[], DirectoryStore],
        state_dir: Path,
        begun: Callable[[str], object],
        accept: Callable[[bytes], object],
    ) -> None:
        """Listens from here on.

        Raises:
            ConfigurationError: the certificates cannot be used.
            StorageError: it cannot listen there.
        """
        identity = PinnedIdentity(terms.own, terms.source.certificate)

        def began(export_id: str) -> None:
            begun(export_id)
            identity.begun()

        super().__init__(
            node,
            terms.receiver.cluster,
            listening,
            identity,
            settings,
            store=store,
            state_dir=state_dir,
            master="",
            inventory=_Nobody(),
        )
        self._terms, self._reached, self._store = terms, reached, store
        self._remote = RemoteService(node, terms, store, self._sessions, settings, self._log, begun=began, accept=accept)
        self._service = self._remote

    @property
    def place(self) -> tuple[str, int]:
        return self._reached.host, self._reached.port or self._listener.getsockname()[1]

    @property
    def stage(self) -> RemoteStage:
        return self._remote.stage

    @property
    def busy(self) -> bool:
        return bool(self._established)

    def drop(self, export_id: str, /) -> None:
        self._store().remove_partial(self._terms.instance, export_id)

    def _peer(self, tls: ssl.SSLSocket) -> Peer:
        return peer_of(tls, cluster=self._terms.source.cluster, roles=("source",))
