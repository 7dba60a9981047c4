"""Hook scripts: which are run, with what, and how they end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from diskhaul.errors import HookScriptError, InterruptedRunError
from diskhaul.hook_scripts import HookScriptResult, Phase, hook_problems, run_hooks
from diskhaul.processes import SEARCH_PATH, process_stat

OPERATION = "instance-export"
LONG_S = 60.0


@pytest.fixture
def hook_dir(tmp_path: Path) -> Path:
    path = tmp_path / "hooks"
    path.mkdir(mode=0o755)
    return path


def script(hook_dir: Path, phase: Phase, name: str, text: str, mode: int = 0o755) -> Path:
    folder = hook_dir / f"{OPERATION}-{phase}.d"
    folder.mkdir(mode=0o755, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(mode)
    return path


def hooks(
    hook_dir: Path,
    phase: Phase = "pre",
    *,
    environment: Mapping[str, str] | None = None,
    nodes: Sequence[str] = ("alpha",),
    timeout_s: float = LONG_S,
    cancelled: Callable[[], bool] = lambda: False,
) -> Sequence[HookScriptResult]:
    return run_hooks(
        hook_dir, phase, OPERATION, environment=environment or {}, nodes=nodes, timeout_s=timeout_s, cancelled=cancelled
    )


def test_without_scripts_nothing_happens(hook_dir: Path) -> None:
    assert hooks(hook_dir) == ()
    (hook_dir / "instance-export-pre.d").mkdir()
    assert hooks(hook_dir) == ()
    assert hook_problems(hook_dir, OPERATION) == []


def test_scripts_run_in_the_order_of_their_names_on_each_node_in_turn(hook_dir: Path, tmp_path: Path) -> None:
    for name in ("20-b", "10-a.sh", "30_C.py"):
        script(hook_dir, "pre", name, f'echo "$DISKHAUL_NODE {name}" >> {tmp_path}/order')
    results = hooks(hook_dir, nodes=["beta", "alpha", "beta"])
    names = ["10-a.sh", "20-b", "30_C.py"]
    assert (tmp_path / "order").read_text().splitlines() == [f"{node} {name}" for node in ("beta", "alpha") for name in names]
    assert [(result.node, result.script.name) for result in results] == [(n, name) for n in ("beta", "alpha") for name in names]
    assert all(result.ok and result.exit_code == 0 for result in results)


def test_only_the_scripts_of_the_phase_and_operation_run(hook_dir: Path, tmp_path: Path) -> None:
    script(hook_dir, "pre", "a", f"touch {tmp_path}/pre")
    script(hook_dir, "post", "a", f"touch {tmp_path}/post")
    hooks(hook_dir, "post")
    assert not (tmp_path / "pre").exists()
    assert (tmp_path / "post").exists()


@pytest.mark.parametrize("name", ["a~", "#a#", ".hidden", "a.dpkg-old", "a.bak", "a.sh.swp", "a b", "a.", "ä", "a.sh\n"])
def test_files_with_other_names_are_no_scripts(hook_dir: Path, tmp_path: Path, name: str) -> None:
    script(hook_dir, "pre", name, f"touch {tmp_path}/ran")
    assert hooks(hook_dir) == ()
    assert not (tmp_path / "ran").exists()


def test_files_that_nobody_may_execute_directories_and_broken_links_are_no_scripts(hook_dir: Path) -> None:
    script(hook_dir, "pre", "switched-off", "exit 1", mode=0o644)
    folder = hook_dir / "instance-export-pre.d"
    (folder / "directory").mkdir()
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "fifo", 0o755)
    assert hooks(hook_dir) == ()
    assert hook_problems(hook_dir, OPERATION) == []


def test_the_environment_holds_the_given_variables_with_prefix_and_nothing_of_ours(
    hook_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLERS_SECRET", "x")
    monkeypatch.setenv("DISKHAUL_CALLERS", "x")
    script(hook_dir, "pre", "show", f"env > {tmp_path}/shown; pwd > {tmp_path}/place; umask >> {tmp_path}/place")
    hooks(hook_dir, environment={"INSTANCE_NAME": "web1.example.com", "EXPORT_NODE": "a b;c", "POST_X": "1"}, nodes=["beta"])
    shown = dict(line.split("=", 1) for line in (tmp_path / "shown").read_text().splitlines())
    shown.pop("PWD")  # the shell's own
    assert {name: value for name, value in shown.items() if name not in ("_", "SHLVL", "OLDPWD")} == {
        "PATH": SEARCH_PATH,
        "DISKHAUL_INSTANCE_NAME": "web1.example.com",
        "DISKHAUL_EXPORT_NODE": "a b;c",
        "DISKHAUL_POST_X": "1",
        "DISKHAUL_NODE": "beta",
        "DISKHAUL_OPERATION": OPERATION,
        "DISKHAUL_HOOKS_PHASE": "pre",
    }
    assert (tmp_path / "place").read_text().split() == ["/", "0077"]


@pytest.mark.parametrize("variables", [{"A=B": "1"}, {"": "1"}, {"A": "1\0"}, {"A B": "1"}, {"A\n": "1"}])
def test_variables_that_no_environment_can_hold_are_an_error(hook_dir: Path, variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be a variable"):
        hooks(hook_dir, environment=variables)


def test_a_failing_pre_script_stops_everything_and_is_named_with_node_code_and_output(hook_dir: Path, tmp_path: Path) -> None:
    script(hook_dir, "pre", "10-bad", r"echo a; echo b; printf 'no \033[31mway\n' >&2; exit 9")
    script(hook_dir, "pre", "20-after", f"touch {tmp_path}/ran")
    with pytest.raises(HookScriptError) as caught:
        hooks(hook_dir, nodes=["alpha", "beta"])
    text = str(caught.value)
    assert "10-bad on node alpha: exit code 9: a | b | no \\x1b[31mway" in text
    assert "\x1b" not in text
    assert not (tmp_path / "ran").exists()


def test_a_failing_post_script_is_reported_and_the_others_run(hook_dir: Path, tmp_path: Path) -> None:
    script(hook_dir, "post", "10-bad", "echo broken; exit 9")
    script(hook_dir, "post", "20-killed", "kill -KILL $$")
    script(hook_dir, "post", "30-after", f"touch {tmp_path}/ran")
    bad, killed, after = hooks(hook_dir, "post")
    assert (bad.ok, bad.exit_code, bad.output) == (False, 9, "broken")
    assert "post hook script" in bad.problem
    assert "10-bad on node alpha: exit code 9: broken" in bad.problem
    assert "killed by SIGKILL" in killed.problem
    assert after.ok
    assert (tmp_path / "ran").exists()


def test_a_script_without_interpreter_is_a_failure_not_a_crash(hook_dir: Path) -> None:
    path = script(hook_dir, "post", "a", "")
    path.write_bytes(b"#!/no/such/interpreter\n")
    (result,) = hooks(hook_dir, "post")
    assert "cannot be run: No such file" in result.problem
    pre = script(hook_dir, "pre", "a", "")
    pre.write_bytes(b"\x00\x01")
    with pytest.raises(HookScriptError, match="cannot be run"):
        hooks(hook_dir, "pre")


def test_a_hanging_script_is_ended_at_its_limit(hook_dir: Path) -> None:
    script(hook_dir, "pre", "hang", "sleep 1000 & wait")
    with pytest.raises(HookScriptError, match=r"hang on node alpha: did not end within [0-9]"):
        hooks(hook_dir, timeout_s=0.3)


def alive(pid_file: Path) -> bool:
    stat = process_stat(int(pid_file.read_text()))
    return stat is not None and stat[0] not in ("Z", "X")


def test_what_a_script_leaves_in_the_background_is_ended(hook_dir: Path, tmp_path: Path) -> None:
    script(hook_dir, "pre", "fork", f"sleep 1000 & echo $! > {tmp_path}/pid")
    (result,) = hooks(hook_dir)
    assert result.ok
    assert not alive(tmp_path / "pid")


def test_a_script_that_forks_away_and_keeps_its_output_makes_nobody_wait(hook_dir: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    away = f"setsid sh -c 'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000' &"
    script(hook_dir, "pre", "daemon", f"{away}\nwhile ! test -e {pid_file}; do :; done")
    (result,) = hooks(hook_dir)
    assert alive(pid_file)
    os.kill(int(pid_file.read_text()), 9)
    assert result.ok


def test_cancelling_ends_the_script_with_its_children_and_the_run(hook_dir: Path, tmp_path: Path) -> None:
    ready, child, parent = tmp_path / "ready", tmp_path / "child", tmp_path / "parent"
    script(hook_dir, "pre", "10-slow", f"sleep 1000 & echo $! > {child}; echo $$ > {parent}; touch {ready}; wait")
    script(hook_dir, "pre", "20-after", f"touch {tmp_path}/ran")
    with pytest.raises(InterruptedRunError, match="10-slow"):
        hooks(hook_dir, cancelled=ready.exists)
    assert not alive(child)
    assert not alive(parent)
    assert not (tmp_path / "ran").exists()


# --- who may have written them ----------------------------------------------------------------------------------------


def test_a_missing_hook_directory_is_a_problem(tmp_path: Path) -> None:
    assert "does not exist" in hook_problems(tmp_path / "missing", OPERATION)[0]
    (tmp_path / "file").touch()
    assert "is not a directory" in hook_problems(tmp_path / "file", OPERATION)[0]


OTHERS = [
    (0o775, "can be written by its group; run: chmod g-w"),
    (0o757, "can be written by every user; run: chmod o-w"),
    (0o1777, "can be written by every user; run: chmod go-w"),
]


@pytest.mark.parametrize(("mode", "said"), OTHERS)
def test_a_script_that_others_may_write_is_a_problem_and_is_not_run(hook_dir: Path, tmp_path: Path, mode: int, said: str) -> None:
    path = script(hook_dir, "pre", "a", f"touch {tmp_path}/ran")
    path.chmod(mode)
    assert hook_problems(hook_dir, OPERATION) == [f"hook script {path} {said} {path}"]
    with pytest.raises(HookScriptError, match=said):
        hooks(hook_dir)
    assert not (tmp_path / "ran").exists()


def test_a_post_script_that_others_may_write_is_not_run_and_reported(hook_dir: Path, tmp_path: Path) -> None:
    script(hook_dir, "post", "a", f"touch {tmp_path}/ran").chmod(0o777)
    (result,) = hooks(hook_dir, "post")
    assert "not run: " in result.problem
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("which", ["hook_dir", "folder"])
@pytest.mark.parametrize("phase", ["pre", "post"])
@pytest.mark.parametrize(("mode", "said"), OTHERS)
def test_scripts_in_a_directory_that_others_may_write_are_not_run(
    hook_dir: Path, tmp_path: Path, which: str, phase: Phase, mode: int, said: str
) -> None:
    path = script(hook_dir, phase, "a", f"touch {tmp_path}/ran")
    directory = hook_dir if which == "hook_dir" else path.parent
    directory.chmod(mode)
    assert hook_problems(hook_dir, OPERATION) == [f"hook directory {directory} {said} {directory}"]
    if phase == "pre":
        with pytest.raises(HookScriptError, match=said):
            hooks(hook_dir, phase)
    else:
        (result,) = hooks(hook_dir, phase)
        assert said in result.problem
    assert not (tmp_path / "ran").exists()


def test_a_script_or_directory_of_another_user_is_a_problem(hook_dir: Path, requires: Callable[..., None]) -> None:
    requires(root=True)
    path = script(hook_dir, "pre", "a", "exit 0")
    os.chown(path, 65534, -1)
    assert hook_problems(hook_dir, OPERATION) == [f"hook script {path} belongs to uid 65534; run: chown root {path}"]
    with pytest.raises(HookScriptError, match="belongs to uid 65534"):
        hooks(hook_dir)
    os.chown(path, 0, -1)
    os.chown(path.parent, 65534, -1)
    assert "belongs to uid 65534" in hook_problems(hook_dir, OPERATION)[0]


def test_a_link_is_judged_by_what_it_leads_to(hook_dir: Path, tmp_path: Path) -> None:
    place = tmp_path / "library"
    place.mkdir(mode=0o755)
    target = place / "real-script"
    target.write_text("#!/bin/sh\nexit 0\n")
    target.chmod(0o755)
    (hook_dir / "instance-export-pre.d").mkdir(mode=0o755)
    (hook_dir / "instance-export-pre.d" / "10-linked").symlink_to(target)
    assert hook_problems(hook_dir, OPERATION) == []
    assert [result.ok for result in hooks(hook_dir)] == [True]
    place.chmod(0o775)
    assert f"hook directory {place} can be written" in hook_problems(hook_dir, OPERATION)[0]
    with pytest.raises(HookScriptError, match=f"hook directory {place} can be written"):
        hooks(hook_dir)
    place.chmod(0o755)
    target.chmod(0o777)
    assert f"hook script {hook_dir}/instance-export-pre.d/10-linked can be written" in hook_problems(hook_dir, OPERATION)[0]


def test_problems_of_both_phases_are_told_together(hook_dir: Path) -> None:
    script(hook_dir, "pre", "a", "").chmod(0o777)
    script(hook_dir, "post", "b", "").chmod(0o777)
    assert len(hook_problems(hook_dir, OPERATION)) == 2


def test_a_script_that_appears_between_the_check_and_the_run_is_judged_again(hook_dir: Path) -> None:
    path = script(hook_dir, "pre", "10-a", "")
    later = path.parent / "20-b"
    path.write_text(f"#!/bin/sh\numask 0; cp $0 {later}; chmod 777 {later}\n")
    assert hook_problems(hook_dir, OPERATION) == []
    assert [result.script.name for result in hooks(hook_dir)] == ["10-a"], "those found at the beginning"
    with pytest.raises(HookScriptError, match="20-b"):
        hooks(hook_dir)
