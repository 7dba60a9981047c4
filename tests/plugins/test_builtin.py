"""The plugin that announces the built-in backends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskhaul import hookspecs
from diskhaul.api import BackendContext, Capability
from diskhaul.model import Cluster
from diskhaul_plugins import builtin

PROVIDERS = [name for name in vars(hookspecs) if name.startswith("diskhaul_") and hasattr(builtin, name)]


def specs() -> Iterator[Any]:
    for provider in PROVIDERS:
        for spec in getattr(builtin, provider)():
            yield pytest.param(provider, spec, id=f"{provider.removeprefix('diskhaul_')}-{spec.name}")


def test_every_stage_that_comes_with_backends_has_them() -> None:
    names = {provider: [spec.name for spec in getattr(builtin, provider)()] for provider in PROVIDERS}
    assert names == {
        "diskhaul_inventories": ["toml"],
        "diskhaul_runtimes": ["none", "command"],
        "diskhaul_storages": ["file", "block"],
        "diskhaul_locks": ["file", "etcd"],
        "diskhaul_snapshots": ["reflink", "btrfs"],
        "diskhaul_zerofills": ["skip", "ext", "swap", "partclone", "fill", "trim"],
        "diskhaul_transfers": ["directory", "tls", "object"],
        "diskhaul_cleanups": ["others", "keep", "none"],
        "diskhaul_engines": ["local", "dask"],
    }


@pytest.mark.parametrize(("provider", "spec"), [*specs()])
def test_each_backend_can_be_made_and_says_whether_it_works(provider: str, spec: Any, tmp_path: Path) -> None:
    assert spec.summary
    assert isinstance(spec.capability(), Capability)
    plaintext = {"scheduler": "tcp://localhost:8786", "allow_plaintext": True, "shared_state_dir": True}
    needed: dict[str, dict[str, Any]] = {
        "keep": {"last": 1},
        "dask": plaintext,
        "etcd": {"endpoints": ["http://127.0.0.1:2379"]},
    }
    options = needed.get(spec.name, {})
    backend = spec.create(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))
    assert type(backend).__module__.startswith("diskhaul_plugins.")
    assert list(tmp_path.iterdir()) == [], "making a backend changes nothing"


def test_announcing_the_backends_imports_none_of_them() -> None:
    program = (
        "import sys\n"
        "from diskhaul_plugins import builtin\n"
        f"for provider in {PROVIDERS!r}:\n"
        "    list(getattr(builtin, provider)())\n"
        "print([name for name in sys.modules if name.startswith('diskhaul_plugins.') and name != 'diskhaul_plugins.builtin'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stdout == "[]\n"
