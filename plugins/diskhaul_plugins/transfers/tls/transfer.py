"""The backend ``tls``: its own store directly, others through their receivers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from diskhaul.api import (
    BackendContext,
    Capability,
    ExportReader,
    ExportStore,
    Inventory,
    Receiver,
    RemoteReceiver,
    RemoteStore,
    RemoteTerms,
    Transfer,
)
from diskhaul.errors import ConfigurationError, UnreachableNodeError
from diskhaul.model import Node

from ..directory import DirectoryTransfer
from .calls import Caller
from .client_store import TlsStore
from .connection import Dialler
from .identities import Identity
from .receiver import TlsReceiver
from .remote_receiver import RemoteTlsReceiver
from .remote_store import RemoteTlsStore
from .settings import Address, Settings, address_of, read_settings, remote_addresses_of


def capability() -> Capability:
    """Works where Python's ssl has TLS 1.3; making certificates needs more."""
    import ssl

    if not ssl.HAS_TLSv1_3:
        return Capability(works=False, detail=f"{ssl.OPENSSL_VERSION} has no TLS 1.3")
    try:
        import cryptography
    except ImportError:
        return Capability(works=True, detail=f"{ssl.OPENSSL_VERSION}; 'diskhaul certs' needs: pip install 'diskhaul[tls]'")
    return Capability(works=True, detail=f"{ssl.OPENSSL_VERSION}, cryptography {cryptography.__version__}")


class TlsTransfer(Transfer):
    """Reaches nodes by ``[nodes.NAME.options] address``. Thread-safe."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._settings: Settings = read_settings(context)
        self._directories = DirectoryTransfer(context)
        self._identities: dict[str, Identity] = {}
        self._lock = threading.Lock()

    def store(self, node: Node, /) -> ExportStore:
        identity = self._identity(self._settings.this)
        if node.name == identity.this:
            return self._directories.store(node)
        address = address_of(node)
        if address is None:
            why = f'has no address: set [nodes."{node.name}".options] address = "HOST:PORT"'
            raise UnreachableNodeError(node.name, f"node {node.name}: {why}")
        caller = Caller(Dialler(node, address, self._context.cluster.name, identity, self._settings))
        store = TlsStore(caller)
        caller.call("identity")  # whether it is there, and its directory
        return store

    def open_path(self, path: str, /) -> ExportReader:
        return self._directories.open_path(path)

    def receiver(self, node: Node, inventory: Inventory, /) -> Receiver:
        address = address_of(node, listening=True)
        if address is None:
            raise ConfigurationError(f'nodes.{node.name}.options.address: is missing: "HOST:PORT" where its receiver listens')
        cluster = self._context.cluster
        return TlsReceiver(
            node,
            cluster.name,
            address,
            self._identity(node.name),
            self._settings,
            store=lambda: self._directories.store(node),
            state_dir=cluster.state_dir,
            master=cluster.master,
            inventory=inventory,
        )

    def remote_store(self, terms: RemoteTerms, host: str, port: int, /) -> RemoteStore:
        return RemoteTlsStore(terms, Address(host, port), self._settings)

    def remote_receiver(
        self,
        node: Node,
        terms: RemoteTerms,
        /,
        *,
        state_dir: Path,
        begun: Callable[[str], object],
        accept: Callable[[bytes], object],
    ) -> RemoteReceiver:
        listening, reached = remote_addresses_of(node)
        self._directories.store(node)  # whether it has a directory, and that is there
        return RemoteTlsReceiver(
            node,
            listening,
            reached,
            terms,
            self._settings,
            store=lambda: self._directories.store(node),
            state_dir=state_dir,
            begun=begun,
            accept=accept,
        )

    def _identity(self, this: str) -> Identity:
        with self._lock:
            if this not in self._identities:
                self._identities[this] = Identity(self._settings.certificates, this)
            return self._identities[this]
