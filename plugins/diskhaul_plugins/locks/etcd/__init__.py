"""Locks ``etcd``: shared and exclusive locks for machines that share no directory, kept by an etcd cluster."""

from __future__ import annotations

from importlib.util import find_spec

from diskhaul.api import Capability


def capability() -> Capability:
    if find_spec("etcd3gw") is None:
        return Capability(works=False, detail="needs etcd3gw: pip install 'diskhaul[etcd]'")
    return Capability(works=True, detail="an etcd cluster is named in [backend_options.etcd]")
