"""Engine ``dask``: every node is a Dask worker of its own, and operations run on the node their instance lives on."""

from __future__ import annotations

from importlib.util import find_spec

from diskhaul.api import Capability


def capability() -> Capability:
    """Works where Dask's distributed is installed."""
    if find_spec("distributed") is None:
        return Capability(works=False, detail="needs distributed: pip install 'diskhaul[dask]'")
    return Capability(works=True)
