from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import Tunable
from diskhaul.errors import PluginError
from diskhaul.model import Cluster, Disk
from diskhaul.operations.tuning.request import TuneRequest
from diskhaul.operations.tuning.space import SMALL_COMPRESSIONS, Space, make_space
from diskhaul.options import ExportOptions
from diskhaul.profile import PROFILE_OPTION_NAMES

SAN = Tunable(backend="san", option="streams", values=(1, 2, 4), default=1)


def space(
    *tunables: Tunable, defaults: ExportOptions | None = None, backend_options: dict[str, Any] | None = None, **asked: Any
) -> Space:
    request = TuneRequest(**({"target": Path("/"), "source": Disk(path=Path("/x"))} | asked))
    cluster = Cluster(name="lab", state_dir=Path("/nonexistent"), backend_options=backend_options or {})
    return make_space(request, defaults or ExportOptions(), cluster, tunables, [Disk(storage="san"), Disk()])


def values(found: Space) -> dict[str, tuple[Any, ...]]:
    return {parameter.name: parameter.values for parameter in found.parameters}


def test_the_fastest_is_searched_without_touching_the_compression() -> None:
    found = space()
    assert list(values(found)) == ["chunk_size", "threads", "read_ahead", "direct_io"]
    assert found.given == {}
    assert found.kept["compress"] == "zstd:1"
    assert set(found.defaults) | set(found.fixed) == set(PROFILE_OPTION_NAMES)


def test_every_default_is_among_the_values_and_every_value_stands_once() -> None:
    odd = ExportOptions(chunk_size=32 << 20, threads=7, read_ahead=3, direct_io="always", compress="gzip:9")
    found = space(defaults=odd, aim="smallest")
    for parameter in found.parameters:
        assert parameter.default == getattr(odd, parameter.name)
        assert parameter.values.count(parameter.default) == 1
        assert len(set(parameter.values)) == len(parameter.values)
    assert values(found)["read_ahead"] == (0, 1, 2, 3, 4, 8), "numbers keep their order"
    assert found.largest_chunk == 32 << 20


def test_the_number_of_threads_that_zero_means_stands_as_zero() -> None:
    threads = values(space())["threads"]
    assert 0 in threads
    assert max(threads) > 1


def test_what_is_given_is_not_searched_and_comes_into_the_profile() -> None:
    found = space(fixed={"threads": 3, "memory": 64 << 20})
    assert "threads" not in values(found)
    assert found.given == {"threads": 3, "memory": 64 << 20}
    assert found.export_settings(found.defaults) == {
        "threads": 3,
        "memory": 64 << 20,
        "chunk_size": 4 << 20,
        "read_ahead": 4,
        "direct_io": "auto",
    }


def test_compressions_are_searched_for_the_smallest_or_when_asked_for() -> None:
    assert values(space(aim="smallest"))["compress"] == SMALL_COMPRESSIONS
    assert values(space(compressions=("zstd:-2..2",)))["compress"] == ("zstd:-2", "zstd:-1", "zstd:1", "zstd:2")
    assert values(space(compressions=("none", "zstd:3")))["compress"] == ("zstd:1", "none", "zstd:3")
    assert "compress" not in values(space(aim="smallest", fixed={"compress": "zstd:3"}))


def test_a_plugin_s_option_is_searched_for_disks_it_applies_to() -> None:
    found = space(SAN)
    assert values(found)["san.streams"] == (1, 2, 4)
    assert found.backend_settings({**found.defaults, "san.streams": 4}) == {"san": {"streams": 4}}
    assert "san.streams" not in found.export_settings(found.defaults)
    elsewhere = Tunable(backend="lan", option="streams", values=(1, 2), default=1)
    assert "lan.streams" not in values(space(elsewhere))
    told = Tunable(backend="lan", option="streams", values=(1, 2), default=1, applies=lambda disk: disk.storage == "file")
    assert "lan.streams" in values(space(told))


def test_a_plugin_that_cannot_say_what_its_option_applies_to_is_named() -> None:
    def fail(disk: Disk) -> bool:
        raise SystemExit(0)

    with pytest.raises(PluginError, match=r"lan\.streams.*SystemExit"):
        space(Tunable(backend="lan", option="streams", values=(1, 2), default=1, applies=fail))


def test_what_the_configuration_says_of_a_backend_is_the_default() -> None:
    found = space(SAN, backend_options={"san": {"streams": 3}})
    assert found.defaults["san.streams"] == 3
    assert values(found)["san.streams"] == (1, 2, 3, 4)


def test_settings_of_another_space_are_told_apart() -> None:
    found = space(SAN)
    assert found.holds(found.defaults)
    assert not found.holds({**found.defaults, "threads": 999})
    assert not found.holds({**found.defaults, "read_ahead": True}), "which equals 1"
    assert not found.holds({**found.defaults, "more": 1})
    assert not found.holds({})


@pytest.mark.parametrize("fixed", [{}, {"threads": 1}])
def test_the_size_counts_all_combinations(fixed: dict[str, Any]) -> None:
    found = space(fixed=fixed)
    size = 1
    for each in values(found).values():
        size *= len(each)
    assert found.size == size
