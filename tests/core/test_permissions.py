"""Who else may write to what diskhaul trusts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.permissions import stranger_problems, tampering_problem


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o755)
    (directory / "file").write_text("x")
    return directory / "file"


@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "safe"),
    [
        (0o644, 0o755, True),
        (0o600, 0o700, True),
        (0o664, 0o775, True),
        (0o644, 0o1777, True),
        (0o666, 0o755, False),
        (0o602, 0o755, False),
        (0o644, 0o777, False),
        (0o666, 0o1777, False),
    ],
)
def test_a_file_is_safe_when_others_can_neither_write_nor_replace_it(
    file: Path, file_mode: int, directory_mode: int, safe: bool
) -> None:
    file.chmod(file_mode)
    file.parent.chmod(directory_mode)
    assert (tampering_problem(file) is None) is safe


def test_a_sticky_directory_is_not_safe_for_what_python_imports(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert tampering_problem(file, sticky_directory_is_safe=False) is not None


def test_a_directory_must_not_be_open_to_all_even_when_sticky(file: Path) -> None:
    file.parent.chmod(0o1777)
    problem = tampering_problem(file.parent)
    assert problem == f"directory {file.parent} can be written by every user; run: chmod o-w {file.parent}"


def test_a_link_is_judged_by_its_target(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert tampering_problem(tmp_path / "link") is None
    file.chmod(0o666)
    assert str(file) in (tampering_problem(tmp_path / "link") or "")


def test_what_does_not_exist_is_judged_by_its_directory(file: Path) -> None:
    missing = file.parent / "missing"
    assert tampering_problem(missing) is None
    file.parent.chmod(0o777)
    assert tampering_problem(missing) is not None


# --- owner and mode of one thing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o755, None),
        (0o700, None),
        (0o1755, None),
        (0o775, "can be written by its group; run: chmod g-w"),
        (0o757, "can be written by every user; run: chmod o-w"),
        (0o777, "can be written by every user; run: chmod go-w"),
        (0o1777, "can be written by every user; run: chmod go-w"),
    ],
)
def test_neither_group_nor_others_may_write_and_the_sticky_bit_does_not_help(file: Path, mode: int, said: str | None) -> None:
    file.parent.chmod(mode)
    expected = [f"{file.parent} {said} {file.parent}"] if said else []
    assert stranger_problems(file.parent, os.stat(file.parent)) == expected


@pytest.mark.parametrize(("mode", "safe"), [(0o775, True), (0o757, False), (0o777, False)])
def test_a_group_may_be_trusted(file: Path, mode: int, safe: bool) -> None:
    file.chmod(mode)
    expected = [] if safe else [f"{file} can be written by every user; run: chmod o-w {file}"]
    assert stranger_problems(file, os.stat(file), group_may_write=True) == expected


def test_what_belongs_to_another_user_is_a_problem_of_its_own(file: Path, requires: Callable[..., None]) -> None:
    requires(root=True)
    os.chown(file, 65534, -1)
    file.chmod(0o666)
    assert stranger_problems(file, os.stat(file)) == [
        f"{file} belongs to uid 65534; run: chown root {file}",
        f"{file} can be written by every user; run: chmod go-w {file}",
    ]
