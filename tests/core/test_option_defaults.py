from __future__ import annotations

from pathlib import Path

import pytest

from diskhaul.errors import ConfigurationError
from diskhaul.model import Cluster
from diskhaul.option_defaults import export_options
from diskhaul.options import ExportOptions


def cluster(**defaults: object) -> Cluster:
    return Cluster(name="lab", state_dir=Path("/nonexistent"), defaults=defaults)


def test_a_given_option_beats_the_cluster_s_default_which_beats_the_built_in_one() -> None:
    options = export_options(cluster(compress="none", long_sleep=True), compress="gzip:6", verify=None, long_sleep=None)
    assert options == ExportOptions(compress="gzip:6", long_sleep=True)


def test_false_and_zero_are_given_and_none_is_not() -> None:
    options = export_options(
        cluster(shutdown=True, shutdown_timeout_s=9.0), shutdown=False, shutdown_timeout_s=0.0, zero_fill=None
    )
    assert (options.shutdown, options.shutdown_timeout_s, options.zero_fill) == (False, 0.0, None)


def test_a_default_that_has_no_meaning_with_what_is_given_is_dropped() -> None:
    defaults = cluster(compress="none", digest="later", long_sleep=True)
    assert export_options(defaults) == ExportOptions(compress="none", digest="later", long_sleep=True)
    assert export_options(defaults, compress="zstd:3") == ExportOptions(compress="zstd:3", long_sleep=True)
    assert export_options(defaults, shutdown=False) == ExportOptions(compress="none", digest="later", shutdown=False)
    assert export_options(defaults, compress="zstd:3", digest="later").digest == "later"  # refused later on


def test_every_default_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        export_options(cluster(compres="none", shutdwn=False))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["defaults.compres", "defaults.shutdwn"]


def test_a_given_option_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="compres"):
        export_options(cluster(), compres="none")
