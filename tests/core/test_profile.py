"""Profiles: what may stand in one, problems told with file and key, written whole, and their place among the defaults."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import diskhaul
from diskhaul.errors import ConfigurationError
from diskhaul.model import Cluster
from diskhaul.profile import PROFILE_OPTION_NAMES, load_profile, profile_target_problem, save_profile
from diskhaul.records import Profile

WHOLE = Profile(
    export={"compress": "zstd:3", "chunk_size": 1 << 20, "threads": 4, "read_ahead": 1, "direct_io": "never", "memory": 64 << 20},
    backend_options={"san": {"streams": 4, "mode": "fast", "checks": True}},
    machine={"cpu": "A CPU", "cores": 2},
    measurements={"verdict": "better", "ratio": 0.9, "found": {"seconds": (1.0, 2.0)}},
)


def written(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_profile(path)
    return list(caught.value.problems)


def test_a_profile_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    save_profile(WHOLE, path)
    loaded = load_profile(path)
    assert (loaded.export, loaded.backend_options, loaded.machine) == (WHOLE.export, WHOLE.backend_options, WHOLE.machine)
    assert loaded.measurements == {"verdict": "better", "ratio": 0.9, "found": {"seconds": [1.0, 2.0]}}
    assert loaded.source == path
    assert os.listdir(tmp_path) == ["profile.toml"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_was_there_is_replaced_and_kept_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    save_profile(WHOLE, path)
    save_profile(Profile(export={"threads": 2}), path)
    assert load_profile(path).export == {"threads": 2}
    with pytest.raises(TypeError):
        save_profile(Profile(export={"threads": object()}), path)  # type: ignore[dict-item]
    assert load_profile(path).export == {"threads": 2}
    assert os.listdir(tmp_path) == ["profile.toml"]
    with pytest.raises(diskhaul.StorageError, match=r"nowhere/profile\.toml"):
        save_profile(WHOLE, tmp_path / "nowhere/profile.toml")


def test_an_empty_profile_sets_nothing(tmp_path: Path) -> None:
    assert load_profile(written(tmp_path, "")).export == {}


def test_every_problem_is_told_at_once_with_file_and_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        exprot = 1
        backend_options = { san = 3, lan = { streams = [1] } }
        [export]
        chunk_size = 5
        threads = "many"
        direct_oi = "auto"
        compress = "lzma"
        remove_instance = true
        "x y" = 1
        [machine]
        cpu = ["A"]
        """,
    )
    told = problems(path)
    assert all(problem.startswith(f"{path}: ") for problem in told)
    keys = [problem.removeprefix(f"{path}: ").partition(": ")[0] for problem in told]
    assert keys == [
        "exprot",
        "export.chunk_size",
        "export.threads",
        "export.direct_oi",
        "export.compress",
        "export.remove_instance",
        "export.'x y'",
        "backend_options.san",
        "backend_options.lan.streams",
        "machine.cpu",
    ]
    assert "did you mean export?" in told[0]
    assert "power of two" in told[1]
    assert "did you mean direct_io?" in told[3]


@pytest.mark.parametrize("section", ["export", "backend_options", "machine", "measurements"])
def test_a_section_that_is_no_table_is_named(tmp_path: Path, section: str) -> None:
    path = written(tmp_path, f"{section} = 1\n")
    assert problems(path) == [f"{path}: {section}: must be a table, not a number"]


def test_what_decides_about_guests_and_exports_cannot_come_from_a_profile() -> None:
    assert set(PROFILE_OPTION_NAMES) == {
        *("compress", "chunk_size", "threads", "read_ahead", "direct_io", "memory", "bwlimit", "nice", "io_priority"),
    }


def test_a_profile_that_every_user_may_write_to_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "[export]\nthreads = 1\n", mode=0o666)
    (told,) = problems(path)
    assert told.startswith(f"{path}: is not trusted: ")
    assert f"chmod o-w {path}" in told


def test_what_is_no_profile_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "diskhaul tune" in problems(tmp_path / "nothing.toml")[0]
    assert "is a directory" in problems(tmp_path)[0]
    assert "not valid TOML" in problems(written(tmp_path, "[export\n"))[0]
    for nonsense in ("", "a\0b"):
        with pytest.raises(ConfigurationError, match="profile's path"):
            load_profile(nonsense)


def test_only_a_profile_is_replaced_by_a_profile(tmp_path: Path) -> None:
    assert profile_target_problem(tmp_path / "new.toml") is None
    path = tmp_path / "profile.toml"
    save_profile(WHOLE, path)
    assert profile_target_problem(path) is None
    path.write_text("[cluster]\nname = 'lab'\n")
    assert "no profile that could be replaced" in str(profile_target_problem(path))
    assert "is not a directory" in str(profile_target_problem(tmp_path / "nowhere/profile.toml"))
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "would not be trusted" in str(profile_target_problem(shared / "profile.toml"))


# --- where it stands --------------------------------------------------------------------------------------------------


def cluster(**defaults: object) -> Cluster:
    return Cluster(
        name="lab", state_dir=Path("/nonexistent"), defaults=defaults, backend_options={"san": {"streams": 1, "host": "a"}}
    )


def test_what_is_given_beats_the_profile_which_beats_the_cluster_which_beats_what_is_built_in() -> None:
    profile = Profile(export={"compress": "zstd:3", "threads": 4})
    lab = cluster(compress="gzip:1", threads=2, read_ahead=7)
    options = diskhaul.export_options(lab, profile=profile, threads=1, read_ahead=None)
    assert options == diskhaul.ExportOptions(compress="zstd:3", threads=1, read_ahead=7)
    assert diskhaul.export_options(diskhaul.with_profile(lab, profile), threads=1) == options


def test_a_cluster_with_a_profile_has_its_backend_options_over_its_own_and_the_cluster_itself_stays() -> None:
    lab = cluster()
    merged = diskhaul.with_profile(lab, WHOLE)
    assert merged.backend_options == {"san": {"streams": 4, "host": "a", "mode": "fast", "checks": True}}
    assert merged.defaults == WHOLE.export
    assert lab.backend_options == {"san": {"streams": 1, "host": "a"}}
    assert lab.defaults == {}


def test_an_import_takes_only_how_bytes_are_moved() -> None:
    options = diskhaul.import_options(profile=WHOLE, threads=None, read_ahead=9, force=True)
    assert options == diskhaul.ImportOptions(threads=4, read_ahead=9, direct_io="never", memory=64 << 20, force=True)
    assert diskhaul.import_options() == diskhaul.ImportOptions()
    with pytest.raises(TypeError, match="compress"):
        diskhaul.import_options(compress="none")
