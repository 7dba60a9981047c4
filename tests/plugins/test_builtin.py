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
        "diskhaul_locks": ["file"],
        "diskhaul_snapshots": ["reflink", "btrfs"],
        "diskhaul_zerofills": ["skip", "ext", "swap", "partclone", "fill", "trim"],
        "diskhaul_transfers": ["directory", "tls"],
        "diskhaul_cleanups": ["others", "keep", "none"],
        "diskhaul_engines": ["local"],
    }


@pytest.mark.parametrize(("provider", "spec"), [*specs()])
def test_each_backend_can_be_made_and_says_whether_it_works(provider: str, spec: Any, tmp_path: Path) -> None:
    assert spec.summary
    assert isinstance(spec.capability(), Capability)
    options = {"last": 1} if spec.name == "keep" else {}
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
