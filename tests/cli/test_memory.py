"""Commands that move disks keep the memory that they free; those that serve others give it back."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import diskhaul_native
from diskhaul.cli.main import cli


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["export", "web1", "--node", "beta"], True),
        (["verify"], True),
        (["node", "serve", "--node", "beta"], False),
        (["receive", "prepared.json", "--node", "beta"], False),
        (["list"], False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_freed_memory_is_kept_by_what_moves_disks(monkeypatch: pytest.MonkeyPatch, arguments: list[str], kept: bool) -> None:
    asked = []
    monkeypatch.setattr(diskhaul_native, "keep_freed_memory", lambda: asked.append(True))
    result = CliRunner().invoke(cli, ["--config", "/nowhere.toml", *arguments])
    assert result.exit_code == 2, result.output
    assert bool(asked) == kept
