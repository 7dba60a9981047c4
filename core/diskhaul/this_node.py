"""Which node this process is: set once by ``diskhaul node serve``, and asked by what other processes have run here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisNode:
    """A node, and the configuration by which it goes: its own file, whatever those who ask it for something have.

    Attributes:
        name: full name, as in the configuration.
    """

    name: str
    config: Path


_serving: ThisNode | None = None


def serve_as(node: ThisNode) -> None:
    """From here on this process works for `node`."""
    global _serving
    _serving = node


def this_node() -> ThisNode | None:
    """The node that this process works for, or None in a program of somebody who only uses the cluster."""
    return _serving
