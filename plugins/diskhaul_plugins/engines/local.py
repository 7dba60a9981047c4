"""Engine ``local``: every node is a directory or a bucket that this machine reaches, so a node's functions simply run here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from diskhaul.api import BackendContext, Capability, Engine
from diskhaul.errors import UnreachableNodeError
from diskhaul.model import Node

T = TypeVar("T")


def capability() -> Capability:
    return Capability(works=True)


class LocalEngine(Engine):
    """Runs functions in the calling thread. A node "answers" when it is not offline and its export directory (if any) exists."""

    def __init__(self, context: BackendContext) -> None:
        pass

    def run(self, node: Node, function: Callable[..., T], /, *arguments: Any) -> T:
        """Run ``function(*arguments)`` and return what it returns; what it raises comes through as it is.

        Raises:
            UnreachableNodeError: the node is marked offline, or its export directory is missing or no directory.
        """
        if node.offline:
            raise UnreachableNodeError(node.name, f"node {node.name}: marked offline; remove 'offline' to use it again")
        if node.export_dir is not None and not os.path.isdir(node.export_dir):
            state = "is not a directory" if os.path.lexists(node.export_dir) else "does not exist"
            raise UnreachableNodeError(
                node.name,
                f"node {node.name}: its export directory {node.export_dir} {state}; "
                "create or mount it, or correct nodes." + node.name + ".export_dir",
            )
        return function(*arguments)
