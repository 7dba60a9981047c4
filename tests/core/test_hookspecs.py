"""The hooks as a menu: each is documented, typed, and reaches a plugin through the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul import hookspecs
from diskhaul.events import Warned
from diskhaul.hookspecs import hookimpl
from diskhaul.host import STAGES, PluginHost
from diskhaul.model import Cluster, Instance
from diskhaul.records import Plan

HOOKS: dict[str, Callable[..., object]] = {
    name: hook for name, hook in vars(hookspecs).items() if name.startswith("diskhaul_") and callable(hook)
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_and_typed(name: str) -> None:
    assert len(inspect.getdoc(HOOKS[name]) or "") > 30
    signature = inspect.signature(HOOKS[name])
    assert signature.return_annotation is not signature.empty
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


def test_every_hook_reaches_a_plugin_and_the_order_of_all_calls_is_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISKHAUL_DISABLE_PLUGINS", raising=False)
    called: list[str] = []

    class Everything:
        def __init__(self, name: str) -> None:
            self.name = name

    def implement(hook: str) -> None:
        arguments = list(inspect.signature(HOOKS[hook]).parameters)
        provider = not arguments

        def record(self: Everything) -> object:
            called.append(f"{self.name} {hook.removeprefix('diskhaul_')}")
            return [] if provider else None

        scope = {"record": record}
        exec(f"def {hook}({', '.join(['self', *arguments])}): return record(self)", scope)  # noqa: S102
        setattr(Everything, hook, hookimpl(scope[hook]))

    for hook in HOOKS:
        implement(hook)

    host = PluginHost(Cluster(name="lab", state_dir=tmp_path), [Everything("one"), Everything("two")])
    host.emit(Warned(message="x"))
    plan = Plan(
        operation="export",
        run_id="r",
        cluster="lab",
        instance=Instance(name="web1", node="a"),
        source=None,
        target=None,
        running=False,
        downtime="none",
        steps=(),
    )
    assert host.tunables() == ()
    assert host.prerequisites(plan) == []
    assert host.hook_environment(plan) == {}
    order = (
        "inventories runtimes storages locks snapshots zerofills transfers cleanups engines event tunables prerequisites "
        "hook_environment"
    )
    assert called == [f"{plugin} {hook}" for hook in order.split() for plugin in ("one", "two")]
    assert {name.removeprefix("diskhaul_") for name in HOOKS} == set(order.split())


def test_every_provider_hook_is_a_stage_but_the_one_for_tuning() -> None:
    providers = {name for name, hook in HOOKS.items() if not inspect.signature(hook).parameters}
    assert len(providers - {"diskhaul_tunables"}) == len(providers) - 1 == len(STAGES)
