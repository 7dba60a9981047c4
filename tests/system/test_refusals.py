"""What is refused, through the command line and the library: exit code 2, one line for each problem, and nothing is touched."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.api import BackendContext, LockMode
from diskhaul.errors import LockError

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
MakeUnchanged = Callable[["Lab"], "Unchanged"]


def fingerprint(lab: Lab, *, without: Iterable[Path] = ()) -> dict[str, str]:
    """Every file and directory of the lab with its type, mode, owner and content; disks only where no guest writes to them."""
    running = {guest.disk for guest in lab.guests.values() if guest.running}
    calls = {guest.directory / "calls" for guest in lab.guests.values()}  # asking for the status is not touching
    found = {}
    for root in (lab.path, lab.disks):
        for path in sorted(root.rglob("*")):
            if path in calls or any(path == skip or skip in path.parents for skip in (lab.state_dir, *without)):
                continue
            status = path.lstat()
            content = ""
            if stat.S_ISREG(status.st_mode) and path not in running:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[str(path)] = f"{status.st_mode:o} {status.st_uid} {content}"
    return found


class Untouched:
    """Checks that guests were not stopped or started, and that no file has changed."""

    def __init__(self, lab: Lab, *, without: Iterable[Path] = ()) -> None:
        self._lab, self._without = lab, tuple(without)
        self._guests = self._look()
        self._files = fingerprint(lab, without=self._without)

    def _look(self) -> list[tuple[str, bool, int]]:
        return [(name, guest.running, guest.pid if guest.running else 0) for name, guest in self._lab.guests.items()]

    def check(self) -> None:
        assert self._look() == self._guests
        assert fingerprint(self._lab, without=self._without) == self._files


def refused_by_cli(lab: Lab, *arguments: str, config: Path | None = None) -> list[str]:
    """Run the command line; check that it refused with clear lines and touched nothing; return the lines."""
    untouched = Untouched(lab)
    done = lab.cli("--quiet", *arguments, config=config)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines
    for line in lines:
        assert line.startswith("diskhaul: "), line
        assert line.isprintable()
    untouched.check()
    return [line.removeprefix("diskhaul: ") for line in lines]


def refused_by_library(
    lab: Lab, instance: str = INSTANCE, node: str = "beta", *, without: Iterable[Path] = (), **more: Any
) -> tuple[str, ...]:
    """Call `diskhaul.export`; check that it refused with one line for each problem and touched nothing; return the lines."""
    untouched = Untouched(lab, without=without)
    with pytest.raises(diskhaul.RefusedError) as refused:
        lab.export(instance, node, **more)
    untouched.check()
    assert refused.value.exit_code == 2
    assert refused.value.problems
    for problem in refused.value.problems:
        assert problem.isprintable(), problem
    return refused.value.problems


# --- names ------------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "parent": "../x",
    "absolute": "/x",
    "dot": ".",
    "empty": "",
    "newline": "web1\nweb2",
    "escape": "web1\x1b[31m",
    "dash": "-web1",
    "long": "x" * 300,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_cannot_be_names_are_refused(lab: Lab, name: str) -> None:
    lab.add_guest()
    lab.write_config()

    if name in ("../x", "", "web1\nweb2", "-web1"):  # that these reach the operation unharmed depends on the command line
        lines = refused_by_cli(lab, "export", "--node", "beta", "--", name)
        assert len(lines) == 1
        assert "instance name" in lines[0] or "INSTANCE" in lines[0]

    both = refused_by_library(lab, instance=name, node=name)
    assert [problem.split()[0] for problem in both] == ["instance", "node"]


def test_a_name_with_nul_is_refused(lab: Lab) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, instance="web1\0x")  # no command line can hold it

    assert len(problems) == 1
    assert "'web1\\x00x'" in problems[0]


def test_unknown_instances_and_nodes_are_refused_together_with_those_there_are(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(lab, "export", "wbe1", "--node", "betta")

    assert lines == [
        "instance 'wbe1' is unknown; there is web1.example.com",
        "node 'betta' is unknown; did you mean beta?",
    ]


def test_a_short_name_that_fits_several_instances_is_refused(lab: Lab) -> None:
    lab.add_guest("web1.example.com")
    lab.add_guest("web1.example.org", running=False)
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert lines == ["instance 'web1' fits several: web1.example.com, web1.example.org; give the full name"]


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_an_offline_source_and_a_drained_target_are_refused_together(lab: Lab) -> None:
    lab.add_guest()
    lab.node_settings = {"alpha": {"offline": True}, "beta": {"drained": True}}
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert len(lines) == 2
    assert "node alpha" in lines[0]
    assert "offline" in lines[0]
    assert lines[1] == "node beta is drained and takes no exports: choose another target"


def test_an_offline_target_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.node_settings = {"beta": {"offline": True}}
    lab.write_config()

    assert refused_by_cli(lab, "export", "web1", "--node", "beta") == ["node beta is marked offline: choose another target"]


# --- options ----------------------------------------------------------------------------------------------------------


def test_removing_a_running_instance_without_a_shutdown_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta", "--no-shutdown", "--remove-instance")

    assert len(lines) == 1
    assert f"{INSTANCE} is running: it cannot be removed with --no-shutdown" in lines[0]


def test_long_sleep_without_a_shutdown_and_zeroing_timeouts_without_zeroing_are_refused_together(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(
        lab,
        *("export", "web1", "--node", "beta", "--no-shutdown", "--long-sleep"),
        *("--zeroing-timeout-fixed", "10", "--zeroing-timeout-per-mib", "1"),
    )

    assert [line.partition(":")[0] for line in lines] == ["--long-sleep", "--zeroing-timeout-fixed", "--zeroing-timeout-per-mib"]
    assert all("drop" in line for line in lines)


def test_zeroing_without_compression_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta", "--zero-free-space", "--compress", "none")

    assert len(lines) == 1
    assert "compress" in lines[0]


def test_a_compressor_that_the_cluster_does_not_allow_is_refused(lab: Lab) -> None:
    lab.add_guest()
    document = lab.document()
    document["cluster"]["compression"] = ["zstd", "none"]
    lab.write_config(document)

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta", "--compress", "gzip:1")

    assert lines == ["compress gzip:1: cluster lab allows zstd, none"]


@pytest.mark.parametrize(
    "compress", ["zstd:99", "zstd:", "lz4:1", "gzip:-1", "", "zstd:1e0", "zstd:adaptive:99", "gzip:adaptive"]
)
def test_compressors_that_do_not_exist_are_refused(lab: Lab, compress: str) -> None:
    lab.add_guest()

    lines = refused_by_library(lab, compress=compress)

    assert len(lines) == 1
    assert "compress" in lines[0]


@pytest.mark.parametrize("number", ["nan", "-1", "1e99", ""])
def test_numbers_that_are_none_are_refused_each_with_its_option(lab: Lab, number: str) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(
        lab, "export", "web1", "--node", "beta", f"--shutdown-timeout={number}", f"--zeroing-timeout-fixed={number}"
    )

    assert [line.partition(":")[0] for line in lines] == ["--shutdown-timeout", "--zeroing-timeout-fixed"]


@pytest.mark.parametrize("number", [float("nan"), -1, 1e99, float("inf"), "", None, True])
def test_numbers_that_are_none_are_refused_by_the_library(lab: Lab, number: Any) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, shutdown_timeout_s=number, stall_timeout_s=number, lock_timeout_s=number)

    assert [problem.partition(":")[0] for problem in problems] == ["shutdown_timeout_s", "lock_timeout_s", "stall_timeout_s"]


@pytest.mark.parametrize("chunk_size", [0, 1 << 15, 3 << 20, 1 << 30, True, 4.0])
def test_chunk_sizes_that_are_no_power_of_two_in_range_are_refused(lab: Lab, chunk_size: Any) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, chunk_size=chunk_size)

    assert len(problems) == 1
    assert problems[0].startswith("chunk_size: ")


def test_unknown_options_and_missing_arguments_are_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    assert "--shut-down" in refused_by_cli(lab, "export", "web1", "--node", "beta", "--shut-down")[0]
    assert "--node is missing" in refused_by_cli(lab, "export", "web1")[0]


# --- disks ------------------------------------------------------------------------------------------------------------


def test_an_instance_without_disks_is_refused(lab: Lab) -> None:
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha")

    assert refused_by_library(lab) == (f"{INSTANCE} has no disks: there is nothing to export",)


def test_disks_that_cannot_be_read_are_refused_all_together(lab: Lab, loop_device: Callable[[Path], str]) -> None:
    lab.add_guest(running=False)
    fifo, directory, loop_image = lab.disks / "fifo", lab.disks / "directory", lab.path / "image"
    os.mkfifo(fifo)
    directory.mkdir()
    loop_image.write_bytes(bytes(1 << 20))
    good = lab.disks / f"{INSTANCE}-0.raw"
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        disks=[
            diskhaul.Disk(path=lab.disks / "missing.raw"),
            diskhaul.Disk(path=fifo),
            diskhaul.Disk(path=directory),
            diskhaul.Disk(path=Path(loop_device(loop_image))),
            diskhaul.Disk(path=good, size=12345),
            diskhaul.Disk(path=good),
            diskhaul.Disk(storage="block", path=good),
            diskhaul.Disk(storage="flie", path=good),
            diskhaul.Disk(),
        ],
    )

    problems = refused_by_library(lab)

    def about(index: int) -> str:
        return "; ".join(problem for problem in problems if problem.startswith(f"disk {index}"))

    assert "does not exist" in about(0)
    assert "FIFO" in about(1)
    assert "directory" in about(2)
    assert 'storage = "block"' in about(3)
    assert "12345" in about(4)
    assert f"is the same as disk 4 ({good})" in about(5)
    assert about(6)
    assert "did you mean file?" in about(7)
    assert "'path' is not set" in about(8)


def test_a_disk_that_may_not_be_read_is_refused_for_an_ordinary_user(lab: Lab) -> None:
    # As root every file can be read; a directory in place of the image's directory cannot be entered by anybody.
    lab.add_guest(running=False)
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE, node="alpha", disks=[diskhaul.Disk(path=lab.disks / f"{INSTANCE}-0.raw" / "x")]
    )

    problems = refused_by_library(lab)

    assert len(problems) == 1
    assert "Not a directory" in problems[0]


# --- where the export would go ----------------------------------------------------------------------------------------


def test_a_target_that_does_not_exist_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.export_dir("beta").rmdir()
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert len(lines) == 1
    assert "node beta" in lines[0]
    assert "does not exist" in lines[0]
    assert "create" in lines[0]


def test_a_target_that_is_a_file_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.export_dir("beta").rmdir()
    lab.export_dir("beta").write_text("x")

    problems = refused_by_library(lab)

    assert any("is not a directory" in problem for problem in problems)


def test_a_target_that_everybody_may_write_to_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.export_dir("beta").chmod(0o777)
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert len(lines) == 1
    assert "chmod o-w" in lines[0]


def test_a_target_that_is_mounted_read_only_is_refused(lab: Lab, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    lab.add_guest()
    lab.write_config()
    beta = lab.export_dir("beta")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", str(beta)], check=True)
    try:
        lines = refused_by_cli(lab, "export", "web1", "--node", "beta")
    finally:
        subprocess.run(["umount", str(beta)], check=True)

    assert len(lines) == 1
    assert "read-only" in lines[0]


def test_a_target_that_may_not_be_changed_is_refused(lab: Lab, requires: Callable[..., None]) -> None:
    requires("chattr", root=True)
    lab.add_guest()
    beta = lab.export_dir("beta")
    earlier = lab.export()
    assert earlier.export is not None
    directory = beta / INSTANCE
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "tmpfs", str(beta)], check=True)
    try:
        problems = refused_by_library(lab)
    finally:
        subprocess.run(["umount", str(beta)], check=True)
    assert any("without free inodes" in problem for problem in problems)
    assert (directory / earlier.export.export_id).is_dir()


def test_a_target_without_room_for_the_estimate_is_refused(lab: Lab, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    lab.add_guest()
    lab.write_config()
    beta = lab.export_dir("beta")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(beta)], check=True)
    try:
        lines = refused_by_cli(lab, "export", "web1", "--node", "beta")
    finally:
        subprocess.run(["umount", str(beta)], check=True)

    assert len(lines) == 1
    assert "make room" in lines[0]
    assert "node beta" in lines[0]


def test_a_target_with_files_that_are_not_ours_is_refused(lab: Lab) -> None:
    lab.add_guest()
    directory = lab.export_dir("beta") / INSTANCE
    directory.mkdir()
    (directory / "holiday.jpg").write_bytes(b"x")
    (directory / "20261122T103308Z-1a2b3c4d").write_text("a file, not an export")
    lab.write_config()

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert len(lines) == 2
    assert any("'holiday.jpg', which is no export: move it elsewhere" in line for line in lines)
    assert any("20261122T103308Z-1a2b3c4d" in line for line in lines)


def test_a_target_whose_directory_of_the_instance_is_a_link_is_refused(lab: Lab) -> None:
    lab.add_guest()
    elsewhere = lab.path / "elsewhere"
    elsewhere.mkdir()
    (lab.export_dir("beta") / INSTANCE).symlink_to(elsewhere)

    problems = refused_by_library(lab)

    assert len(problems) == 1
    assert "a link is not followed" in problems[0]
    assert list(elsewhere.iterdir()) == []


def test_a_disk_inside_the_target_is_refused(lab: Lab) -> None:
    place = lab.export_dir("beta") / "images"
    place.mkdir(mode=0o700)
    lab.add_guest(place=place)

    problems = refused_by_library(lab)

    assert any("lies inside node beta's export directory" in problem for problem in problems)
    config = lab.write_config()
    lines = refused_by_cli(lab, "export", "web1", "--node", "gamma", config=config)  # the configuration itself is refused
    assert any("keep disks outside export directories" in line for line in lines)


def test_a_target_that_lies_on_the_disk_itself_is_refused(lab: Lab, loop_filesystem: Callable[..., Any]) -> None:
    filesystem = loop_filesystem("ext4", size_mib=16)
    export_dir = filesystem.path / "exports"
    export_dir.mkdir(mode=0o700)
    lab.node_settings = {"beta": {"export_dir": export_dir}}
    lab.add_guest(running=False)
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha", disks=[diskhaul.Disk(path=filesystem.image)])

    # What the image holds is compared through the filesystem; the kernel writes its own records to it when it likes.
    problems = refused_by_library(lab, without=[filesystem.image])

    assert len(problems) == 2
    assert f"is mounted read-write on {filesystem.path}" in problems[0]
    assert "would be exported into itself" in problems[1]
    assert "choose another node" in problems[1]


# --- guests and plugins -----------------------------------------------------------------------------------------------


def test_a_guest_whose_state_is_unknown_is_refused(lab: Lab) -> None:
    guest = lab.add_guest()
    guest.disturb("status", "fail", times=2)
    (guest.directory / "fail.status").unlink()
    untouched = Untouched(lab)
    guest.disturb("status", "fail")

    with pytest.raises(diskhaul.RefusedError, match="it is unknown whether the guest runs"):
        lab.export()

    untouched.check()


def test_a_runtime_without_its_commands_is_refused_with_each_of_them(lab: Lab) -> None:
    guest = lab.add_guest()
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        runtime="command",
        disks=instance.disks,
        runtime_options={"start": ["./no-slash-allowed-in-code"], "status": "vm status", "freeze": [str(guest.program)]},
    )

    problems = refused_by_library(lab)

    keys = {problem.partition(":")[0].rpartition(".")[2] for problem in problems}
    assert {"start", "stop", "status", "thaw"} <= keys


def test_backends_that_nobody_provides_are_refused_all_together(lab: Lab) -> None:
    lab.add_guest()
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        runtime="comand",
        disks=[diskhaul.Disk(path=disk.path, storage="fiel") for disk in instance.disks],
    )

    problems = refused_by_library(lab)

    assert any("runtime 'comand' is unknown" in problem and "did you mean command?" in problem for problem in problems)
    assert any("storage 'fiel' is unknown" in problem for problem in problems)


@pytest.mark.parametrize("stage", ["lock", "transfer", "cleanup", "engine", "inventory", "snapshot"])
def test_a_missing_plugin_is_refused(lab: Lab, stage: str) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, config=lab.cluster(backends={stage: "nonesuch"}))

    assert len(problems) == 1
    assert f"{stage} 'nonesuch' is unknown" in problems[0]


def test_an_incompatible_plugin_is_refused(lab: Lab) -> None:
    lab.add_guest()

    class FromTheFuture:
        diskhaul_api = 99

        @diskhaul.hookimpl
        def diskhaul_storages(self) -> Iterable[diskhaul.StorageSpec]:
            return []

    problems = refused_by_library(lab, plugins=[FromTheFuture()])

    assert len(problems) == 1
    assert "99" in problems[0]


class Questioning:
    """A plugin with a prerequisite that answers as told."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    @diskhaul.hookimpl
    def diskhaul_prerequisites(self, plan: diskhaul.Plan) -> Any:
        return self._answer()


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: ["not on a Friday", "not at night"], ("not on a Friday", "not at night")),
        (lambda: _raise(ValueError("broken")), ("broken",)),
        (lambda: _raise(SystemExit(0)), ("SystemExit",)),
        (lambda: "a string", ("str",)),
        (lambda: 5, ("int",)),
        (lambda: [5], ("5",)),
    ],
    ids=["reasons", "raises", "exits", "string", "number", "list of numbers"],
)
def test_a_prerequisite_of_a_plugin_refuses(lab: Lab, answer: Callable[[], Any], expected: tuple[str, ...]) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, plugins=[Questioning(answer)])

    assert len(problems) == len(expected)
    if len(expected) > 1:
        assert problems == expected


class Broken:
    """A plugin with one backend whose method `method` does what it is told, for every stage that is asked before the work."""

    def __init__(self, stage: str, method: str, behaviour: Callable[[], Any]) -> None:
        self.stage, self.method, self.behaviour = stage, method, behaviour

    def _backend(self, kind: str, good: Callable[[BackendContext], Any]) -> Callable[[BackendContext], Any]:
        plugin = self

        class Backend:
            def __init__(self, context: BackendContext) -> None:
                self._good = good(context)

            def __getattr__(self, name: str) -> Any:
                if plugin.stage == kind and name == plugin.method:
                    return lambda *_, **__: plugin.behaviour()
                return getattr(self._good, name)

        return Backend

    @diskhaul.hookimpl
    def diskhaul_runtimes(self) -> Iterable[diskhaul.RuntimeSpec]:
        from diskhaul_plugins.runtimes.command import CommandRuntime

        yield diskhaul.RuntimeSpec(name="broken-runtime", create=self._backend("runtime", CommandRuntime))

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterable[diskhaul.StorageSpec]:
        from diskhaul_plugins.storages.file import FileStorage

        yield diskhaul.StorageSpec(name="broken-storage", create=self._backend("storage", FileStorage))

    @diskhaul.hookimpl
    def diskhaul_transfers(self) -> Iterable[diskhaul.TransferSpec]:
        from diskhaul_plugins.transfers.directory import DirectoryTransfer

        yield diskhaul.TransferSpec(name="broken-transfer", create=self._backend("transfer", DirectoryTransfer))

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterable[diskhaul.SnapshotSpec]:
        from diskhaul_plugins.snapshots.reflink import ReflinkSnapshots

        yield diskhaul.SnapshotSpec(name="broken-snapshots", create=self._backend("snapshot", ReflinkSnapshots))

    @diskhaul.hookimpl
    def diskhaul_locks(self) -> Iterable[diskhaul.LockSpec]:
        from diskhaul_plugins.locks.file import FileLocks

        yield diskhaul.LockSpec(name="broken-locks", create=self._backend("lock", FileLocks))


BEFORE_THE_WORK = [
    ("runtime", "check"),
    ("runtime", "is_running"),
    ("storage", "check"),
    ("storage", "open"),
    ("storage", "location"),
    ("transfer", "store"),
    ("snapshot", "refuses"),
    ("lock", "check"),
]


@pytest.mark.parametrize(
    "behaviour",
    [lambda: _raise(ValueError("a bug of the plugin")), lambda: _raise(SystemExit(0)), lambda: 5.5],
    ids=["raises", "exits", "wrong type"],
)
@pytest.mark.parametrize(("stage", "method"), BEFORE_THE_WORK, ids=[".".join(each) for each in BEFORE_THE_WORK])
def test_a_plugin_that_breaks_before_the_work_is_a_refusal(
    lab: Lab, unchanged: MakeUnchanged, stage: str, method: str, behaviour: Callable[[], Any]
) -> None:
    lab.add_guest()
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        runtime="broken-runtime",
        runtime_options=instance.runtime_options,
        disks=[diskhaul.Disk(path=disk.path, storage="broken-storage", snapshot="broken-snapshots") for disk in instance.disks],
    )
    # Reflinks are for storage "file" only; the disks are what they always were, so let it think so.
    if stage != "storage":
        lab.instances[INSTANCE] = diskhaul.Instance(
            name=INSTANCE,
            node="alpha",
            runtime="broken-runtime",
            runtime_options=instance.runtime_options,
            disks=[diskhaul.Disk(path=disk.path, snapshot="broken-snapshots") for disk in instance.disks],
        )
    check = unchanged(lab)
    cluster = lab.cluster(backends={"lock": "broken-locks", "transfer": "broken-transfer"})

    problems = refused_by_library(lab, config=cluster, plugins=[Broken(stage, method, behaviour)], long_sleep=stage == "storage")

    assert problems
    check.check()


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_held_past_the_deadline_is_exit_code_5_and_says_who_holds_it(lab: Lab, unchanged: MakeUnchanged) -> None:
    from diskhaul_plugins.locks.file import FileLocks

    lab.add_guest()
    lab.state_dir.mkdir(mode=0o700)
    check = unchanged(lab)
    locks = FileLocks(BackendContext(cluster=lab.cluster()))
    held = locks.acquire(
        f"instance/{INSTANCE}",
        LockMode.EXCLUSIVE,
        owner="the night's backup",
        deadline_s=1,
        on_wait=print,
        cancelled=lambda: False,
    )
    try:
        untouched = Untouched(lab)
        with pytest.raises(diskhaul.LockTimeoutError) as failed:
            lab.export(lock_timeout_s=0.2)
        untouched.check()
    finally:
        held.release()
    check.check()

    assert failed.value.exit_code == 5
    assert "the night's backup" in failed.value.holder


def test_a_lock_service_that_is_down_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.state_dir.mkdir(mode=0o700)
    (lab.state_dir / "locks").write_text("not a directory")

    problems = refused_by_library(lab)

    assert any("locks" in problem and "is not a directory" in problem for problem in problems)


def test_a_lock_service_that_fails_while_it_is_asked_is_exit_code_5(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest()
    check = unchanged(lab)
    plugin = Broken("lock", "acquire", lambda: _raise(LockError("the lock service does not answer")))

    with pytest.raises(LockError) as failed:
        lab.export(config=lab.cluster(backends={"lock": "broken-locks"}), plugins=[plugin])

    assert failed.value.exit_code == 5
    check.check()


@pytest.mark.parametrize("how", ["file", "world-writable", "parent missing"])
def test_a_state_directory_that_cannot_be_used_is_refused(lab: Lab, how: str) -> None:
    lab.add_guest()
    if how == "file":
        lab.state_dir.write_text("x")
    elif how == "world-writable":
        lab.state_dir.mkdir()
        lab.state_dir.chmod(0o777)
    else:
        lab.settings["state_dir"] = lab.path / "missing" / "state"

    problems = refused_by_library(lab)

    assert any("state" in problem for problem in problems)


# --- the configuration ------------------------------------------------------------------------------------------------


def test_every_problem_of_a_configuration_is_told_with_its_key_path(lab: Lab) -> None:
    lab.add_guest()
    document = lab.document()
    document["cluster"]["nmae"] = "x"
    document["defaults"] = {"compress": "zstd:77", "shutdwon": True, "shutdown_timeout_s": float("nan")}
    document["nodes"]["../up"] = {"export_dir": "x"}
    document["instances"][INSTANCE]["state"] = "sideways"
    document["instances"][INSTANCE]["node"] = "omega"
    document["instances"][INSTANCE]["disks"][0]["size"] = -5
    document["instances"][INSTANCE]["disks"].append({"storage": "file"})
    lab.write_config(document)

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    for key in (
        "cluster.nmae: ",
        "defaults.compress: ",
        "defaults.shutdwon: ",
        "defaults.shutdown_timeout_s: ",
        'nodes."../up": ',
        f'instances."{INSTANCE}".state: ',
        f'instances."{INSTANCE}".node: ',
        f'instances."{INSTANCE}".disks[0].size: ',
        f'instances."{INSTANCE}".disks[1].path: ',
    ):
        assert any(key in line for line in lines), (key, lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cluster"),
        ("[cluster\n", "TOML"),
        ('[cluster]\nname = "a"\nname = "b"\n', "TOML"),
        ('[cluster]\nname = "a"\n[cluster]\n', "TOML"),
        ("\x00", "TOML"),
        ("a = " + "[" * 20_000, ""),
        ('[cluster]\nname = "../x"\n', "cluster name"),
    ],
    ids=["empty", "cut", "duplicate key", "duplicate table", "binary", "deep", "bad name"],
)
def test_files_that_are_no_configuration_are_refused(lab: Lab, text: str, expected: str) -> None:
    lab.write_config(text)

    lines = refused_by_cli(lab, "list")

    assert any(expected in line for line in lines), lines


def test_a_configuration_that_everybody_may_write_to_is_refused(lab: Lab) -> None:
    lab.add_guest()
    config = lab.write_config()
    config.chmod(0o666)

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta")

    assert len(lines) == 1
    assert "chmod o-w" in lines[0]


def test_a_configuration_that_is_missing_or_a_directory_is_refused(lab: Lab) -> None:
    assert "there is no such file" in refused_by_cli(lab, "list", config=lab.path / "none.toml")[0]
    assert "is a directory" in refused_by_cli(lab, "list", config=lab.path)[0]


# --- hook scripts -----------------------------------------------------------------------------------------------------


def hook_script(lab: Lab, phase: str, text: str, *, mode: int = 0o755) -> Path:
    directory = lab.path / "hooks" / f"instance-export-{phase}.d"
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "10-test"
    script.write_text(text)
    script.chmod(mode)
    lab.settings["hook_dir"] = lab.path / "hooks"
    return script


@pytest.mark.parametrize("what", ["script", "its directory", "the hook directory"])
def test_hook_scripts_that_everybody_may_write_to_are_refused(lab: Lab, what: str) -> None:
    lab.add_guest()
    script = hook_script(lab, "pre", "#!/bin/sh\nexit 0\n")
    {"script": script, "its directory": script.parent, "the hook directory": script.parent.parent}[what].chmod(0o777)

    problems = refused_by_library(lab)

    assert len(problems) == 1
    assert "chmod" in problems[0]


def test_a_hook_directory_that_does_not_exist_is_refused(lab: Lab) -> None:
    lab.add_guest()
    lab.settings["hook_dir"] = lab.path / "hooks"

    problems = refused_by_library(lab)

    assert len(problems) == 1
    assert "cluster.hook_dir" in problems[0]


def test_problems_of_all_kinds_are_told_together(lab: Lab) -> None:
    guest = lab.add_guest()
    lab.node_settings = {"beta": {"drained": True}}
    lab.export_dir("beta").chmod(0o777)
    foreign = lab.export_dir("beta") / INSTANCE / "foreign"
    foreign.parent.mkdir()
    foreign.write_text("x")
    os.rename(guest.disk, lab.disks / "moved.raw")
    guest.disk = lab.disks / "moved.raw"
    lab.settings["hook_dir"] = lab.path / "hooks"
    lab.write_config()

    problems = refused_by_library(lab)

    for expected in ("drained", "chmod o-w", "'foreign'", "does not exist", "cluster.hook_dir", "no snapshot is possible"):
        assert sum(expected in problem for problem in problems) >= 1, expected


def test_a_plan_refuses_for_the_same_reasons_and_takes_no_lock(lab: Lab) -> None:
    lab.add_guest()
    lab.node_settings = {"beta": {"drained": True}}
    lab.write_config()

    lines = refused_by_cli(lab, "plan", "web1", "--node", "beta", "--long-sleep")

    assert lines == ["node beta is drained and takes no exports: choose another target"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("remove", "web1"),
        ("remove", "web1@not-an-id"),
        ("remove", "../web1", "--all"),
        ("prune", "web1"),
        ("prune", "web1", "--keep-last", "-1"),
        ("verify", "web1"),
        ("show", "web1@20261122T103308Z-1a2b3c4d"),
        ("recover", "nobody"),
        ("list", "nobody"),
        ("list", "--node", "nobody"),
    ],
    ids=" ".join,
)
def test_other_commands_refuse_bad_input_too(lab: Lab, arguments: tuple[str, ...]) -> None:
    lab.add_guest()
    lab.write_config()

    assert len(refused_by_cli(lab, *arguments)) == 1


# --- everything that can be found, in one refusal -----------------------------------------------------------------------


def test_options_that_cannot_be_and_options_that_contradict_each_other_are_told_together(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(
        lab,
        *("export", "web1", "--node", "beta", "--long-sleep", "--no-shutdown", "--compress", "lz4"),
        *("--layout", "ganeti", "--zeroing-timeout-fixed", "3"),
    )

    assert [line.partition(":")[0] for line in lines] == ["--compress", "--long-sleep", "--zeroing-timeout-fixed"]


def test_names_that_are_unknown_are_told_together_with_contradicting_options(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(lab, "export", "nope", "--node", "nowhere", "--long-sleep", "--no-shutdown")

    assert len(lines) == 3
    assert lines[0].startswith("--long-sleep: ")
    assert lines[1].startswith("instance 'nope' is unknown")
    assert lines[2].startswith("node 'nowhere' is unknown")


def test_a_name_that_cannot_be_one_is_told_once_and_with_the_other_that_is_unknown(lab: Lab) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, "../x", "nowhere")

    assert len(problems) == 2
    assert problems[0].startswith("instance name '../x'")
    assert problems[1].startswith("node 'nowhere' is unknown")


@pytest.mark.parametrize("command", ["export", "plan"])
def test_numbers_that_are_none_hide_nothing_else(lab: Lab, command: str) -> None:
    lab.add_guest()
    lab.write_config()

    lines = refused_by_cli(
        lab, command, "nope", "--node", "nowhere", "--shutdown-timeout=nan", "--long-sleep", "--no-shutdown", "--compress=lz4"
    )

    assert [line.split()[0] for line in lines] == ["--shutdown-timeout:", "compress:", "long_sleep:", "instance", "node"]


def test_numbers_that_are_none_are_told_with_a_configuration_that_cannot_be_used(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config("[cluster]\nname = 5\n")

    lines = refused_by_cli(lab, "export", "web1", "--node", "beta", "--shutdown-timeout=nan")

    assert lines[0].startswith("--shutdown-timeout: ")
    assert any("cluster.name" in line for line in lines[1:])


@pytest.mark.parametrize("name", [5, b"web1", None, ["web1"]])
def test_names_that_are_no_text_are_refused_by_the_library(lab: Lab, name: Any) -> None:
    lab.add_guest()

    problems = refused_by_library(lab, name, name)

    assert [problem.split(":")[0] for problem in problems] == ["instance name", "node name"]
    assert all("must be text" in problem for problem in problems)
    for call in (diskhaul.verify, diskhaul.list_exports, diskhaul.show, diskhaul.prune, diskhaul.recover, diskhaul.import_):
        if name is None and call is not diskhaul.import_:
            continue
        more = {"policy": diskhaul.KeepPolicy(last=1)} if call is diskhaul.prune else {}
        with pytest.raises(diskhaul.RefusedError):
            call(name, config=lab.cluster(), **more)  # type: ignore[operator]


@pytest.mark.parametrize("compress", [None, 5, b"zstd"])
def test_a_compressor_that_is_no_text_is_refused(lab: Lab, compress: Any) -> None:
    lab.add_guest()

    assert [problem.partition(":")[0] for problem in refused_by_library(lab, compress=compress)] == ["compress"]


# --- what would be an export of nothing ---------------------------------------------------------------------------------


def test_an_empty_image_without_a_configured_size_is_refused(lab: Lab) -> None:
    guest = lab.add_guest(running=False)
    guest.disk.write_bytes(b"")

    (problem,) = refused_by_library(lab)

    assert f"disk 0 ({guest.disk})" in problem
    assert "is empty" in problem
    assert "size" in problem


def test_an_empty_image_whose_size_is_configured_as_none_is_exported(lab: Lab) -> None:
    guest = lab.add_guest(running=False)
    guest.disk.write_bytes(b"")
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha", disks=[diskhaul.Disk(path=guest.disk, size=0)])

    result = lab.export()

    assert result.export is not None
    assert result.export.disk_bytes == 0


@pytest.mark.parametrize("running", [True, False])
def test_a_snapshot_backend_that_nobody_provides_is_refused_whether_the_guest_runs_or_not(lab: Lab, running: bool) -> None:
    lab.add_guest(running=running)
    instance = lab.instances[INSTANCE]
    disks = [diskhaul.Disk(path=disk.path, snapshot="zz") for disk in instance.disks]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE, node="alpha", runtime="command", runtime_options=instance.runtime_options, disks=disks
    )

    (problem,) = refused_by_library(lab)

    assert "'zz'" in problem
    assert "reflink" in problem
