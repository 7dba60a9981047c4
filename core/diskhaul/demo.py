"""A small cluster to try things with: three nodes, two instances, one of them a real ext4 disk with a guest that holds it.

Everything lies in one directory. The filesystem is made by e2fsprogs straight into the image: nothing is mounted, so no
privilege is needed.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import diskhaul_native as native

from .errors import GuestError, RefusedError, StorageError
from .permissions import tampering_problem
from .processes import SEARCH_PATH, run

MIN_SIZE_MIB = 64
MAX_SIZE_MIB = 1 << 20
PARTITION_OFFSET = 1 << 20
WEB, DB = "web1.example.com", "db1.example.com"
NODES = ("alpha", "beta", "gamma")
_MIB = 1 << 20
_SECTOR = 512
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCluster:
    """What `make_demo` made.

    Attributes:
        directory: holds everything, absolute.
        config: the configuration file in it.
        disk: the disk of web1.
        guest_pid: the process that plays web1's guest, or None when it was not started.
        notes: what is otherwise than described, one line each: a missing program, a filesystem without reflinks.
    """

    directory: Path
    config: Path
    disk: Path
    guest_pid: int | None
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """What was made and what to try next, for a terminal."""
        command = f"diskhaul --config {shlex.quote(str(self.config))}"
        vm = shlex.quote(str(self.directory / "vm"))
        guest = f"up, process {self.guest_pid} holds its disk" if self.guest_pid else f"down; start it with: {vm} start web1"
        lines = [
            f"Made a cluster in {self.directory}",
            f"  nodes                {', '.join(NODES)}: directories here",
            f"  {WEB:<20} {guest}",
            f"  {'':<20} {self.disk} ({os.stat(self.disk).st_size // _MIB} MiB)",
            f"  {DB:<20} down, two small disks",
            *(f"Note: {note}" for note in self.notes),
            "",
            "Next, try:",
            f"  {command} export web1 --node beta",
            f"  {command} list",
            f"  {command} import web1 --to-dir {shlex.quote(str(self.directory / 'restored'))}",
            "",
            f"To end the guest and remove everything: {vm} stop web1 && rm -r {shlex.quote(str(self.directory))}",
        ]
        return "\n".join(lines)


def make_demo(directory: Path | str, size_mib: int = 256, *, start: bool = True) -> DemoCluster:
    """Make a cluster in `directory`, which must not exist or be empty, and start its guest.

    Args:
        directory: made if need be, with those above it.
        size_mib: size of web1's disk in MiB; about a third of it gets used.
        start: start web1's guest: a process of its own session that runs until ``vm stop web1``, or until it finds its
            process file gone.

    Raises:
        RefusedError: the directory is in use, the size is out of range or mke2fs is missing; nothing was changed.
        StorageError: it could not be finished; what was made has been removed.
        GuestError: all is there, but the guest did not start.
    """
    directory = Path(os.path.abspath(directory))
    if isinstance(size_mib, bool) or not isinstance(size_mib, int) or not MIN_SIZE_MIB <= size_mib <= MAX_SIZE_MIB:
        raise RefusedError(f"the size of the demo's disk must be a whole number from {MIN_SIZE_MIB} to {MAX_SIZE_MIB} MiB")
    mke2fs = _program("mke2fs")
    if mke2fs is None:
        raise RefusedError("mke2fs is not installed, and makes the demo's filesystem; install the package e2fsprogs")
    _take(directory)

    with ExitStack() as undo:
        undo.callback(_empty, directory)
        try:
            notes = _fill(directory, size_mib, mke2fs)
        except OSError as error:
            raise StorageError(f"{directory}: the demo could not be made: {error}", path=str(directory)) from error
        undo.pop_all()
    guest_pid = _start_guest(directory) if start else None
    return DemoCluster(
        directory=directory,
        config=directory / "cluster.toml",
        disk=directory / "alpha/disks/web1-root.raw",
        guest_pid=guest_pid,
        notes=notes,
    )


def _take(directory: Path) -> None:
    """Make the directory, or see that it is an empty one."""
    try:
        directory.mkdir(parents=True, mode=0o755)
    except FileExistsError:
        if not directory.is_dir():
            raise RefusedError(f"{directory} is not a directory; name a directory that does not exist yet") from None
        try:
            used = bool(os.listdir(directory))
        except OSError as error:
            raise RefusedError(f"{directory} cannot be looked into: {os.strerror(error.errno or 0)}") from error
        if used:
            remedy = "name another"
            if os.path.lexists(directory / "vm"):
                vm, quoted = shlex.quote(str(directory / "vm")), shlex.quote(str(directory))
                remedy += f", or remove the cluster that is there: {vm} stop web1 && rm -r {quoted}"
            raise RefusedError(f"{directory} is not empty; {remedy}") from None
        problem = tampering_problem(directory / "cluster.toml")
        if problem:
            raise RefusedError(f"a configuration there would not be trusted: {problem}") from None
    except OSError as error:
        raise RefusedError(f"{directory} cannot be made: {os.strerror(error.errno or 0)}") from error
    else:
        os.chmod(directory, 0o755)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _fill(directory: Path, size_mib: int, mke2fs: str) -> tuple[str, ...]:
    for node in NODES:
        _directory(directory / node, 0o755)
        _directory(directory / node / "exports", 0o700)
    disks = directory / "alpha/disks"
    for made, mode in ((disks, 0o700), (directory / "run", 0o755), (directory / "hooks", 0o755)):
        _directory(made, mode)
    notes: list[str] = []
    tree = directory / ".tree"
    _directory(tree, 0o700)
    _populate(tree, size_mib)
    notes += _make_root_disk(disks / "web1-root.raw", size_mib, tree, mke2fs)
    shutil.rmtree(tree)
    _make_data_disks(disks)
    reflinks = _has_reflinks(disks)
    if not reflinks:
        notes.append(
            f"the filesystem of {directory} has no reflinks (XFS and btrfs do), so there are no snapshots: "
            "long_sleep is set, and web1 stays down while its disk is sent"
        )
    for phase, words in (("pre", "is about to be exported to"), ("post", "has been exported to")):
        scripts = directory / f"hooks/instance-export-{phase}.d"
        _directory(scripts, 0o755)
        text = _HOOK.replace("@PHASE@", phase).replace("@WORDS@", words)
        _file(scripts / "10-say", text, 0o755)
    _file(directory / "vm", _vm_script(), 0o755)
    _file(directory / "cluster.toml", _configuration(size_mib, reflinks=reflinks), 0o644)
    return tuple(notes)


def _directory(path: Path, mode: int) -> None:
    path.mkdir(parents=True)
    os.chmod(path, mode)  # whatever the umask: what every user may write to is refused by diskhaul itself


def _file(path: Path, text: str, mode: int) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)


def _program(name: str) -> str | None:
    """Where a program is; the system's own directories are searched even where they are not on this user's path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH_PATH}")


def _run(*argv: str) -> None:
    environment = {"PATH": f"{os.environ.get('PATH', '')}:{SEARCH_PATH}", "LC_ALL": "C"}
    finished = run(argv, environment=environment, timeout_s=_TIMEOUT_S)
    if not finished.ok:
        raise OSError(f"{Path(argv[0]).name}: {finished.describe()}: {finished.last_lines()}")


# --- disks ------------------------------------------------------------------------------------------------------------


def _populate(tree: Path, size_mib: int) -> None:
    """Fill `tree` with what guests have: text, many small files, incompressible data, a sparse file, links.

    The same each time for a size, so that measurements on demos can be compared.
    """
    chance = random.Random(size_mib)
    words = _WORDS.split()
    for name in ("etc", "home/ada", "srv/www", "var/cache", "var/lib/app", "var/log"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/hostname").write_text(f"{WEB}\n")
    (tree / "etc/fstab").write_text("LABEL=web1-root / ext4 errors=remount-ro 0 1\n")
    (tree / "home/ada/www").symlink_to("/srv/www")
    os.link(tree / "etc/hostname", tree / "home/ada/hostname")

    for number in range(400):
        body = " ".join(chance.choices(words, k=chance.randrange(20, 1200)))
        (tree / f"srv/www/page-{number:03}.html").write_text(f"<html><title>Page {number}</title><p>{body}</p></html>\n")
    for log in ("syslog", "access.log"):
        with open(tree / "var/log" / log, "w", encoding="ascii") as file:
            left = size_mib * _MIB // 20
            while left > 0:
                line = f"host {log}[{chance.randrange(9999)}]: {' '.join(chance.choices(words, k=9))}\n" * 3
                left -= file.write(line)
    (tree / "var/lib/app/blob.bin").write_bytes(chance.randbytes(size_mib * _MIB // 10))
    with open(tree / "var/lib/app/sparse.db", "wb") as file:
        for offset in (0, size_mib * _MIB // 8, size_mib * _MIB // 4 - _MIB):
            file.seek(offset)
            file.write(chance.randbytes(_MIB))
    (tree / "var/cache/deleted.bin").write_bytes(chance.randbytes(size_mib * _MIB // 12))


def _make_root_disk(path: Path, size_mib: int, tree: Path, mke2fs: str) -> list[str]:
    """Make a sparse image with a GPT, one partition and ext4 in it, holding `tree`; return what had to be left out."""
    notes: list[str] = []
    _sparse_file(path, size_mib * _MIB)
    sfdisk, debugfs = _program("sfdisk"), _program("debugfs")
    offset, filesystem_mib = 0, size_mib
    if sfdisk is None:
        notes.append("web1's disk has no partition table, just a filesystem: sfdisk is not installed (package fdisk)")
    else:
        # One MiB stays free at the end as well, for the second copy of the table.
        offset, filesystem_mib = PARTITION_OFFSET, size_mib - 2
        script = path.parent / ".table"
        _file(
            script,
            f'label: gpt\nstart={offset // _SECTOR}, size={filesystem_mib * _MIB // _SECTOR}, type=linux, name="root"\n',
            0o600,
        )
        # sfdisk reads its script from standard input, which a program run here does not have.
        _run("/bin/sh", "-c", 'exec "$0" --quiet --no-reread --no-tell-kernel "$1" <"$2"', sfdisk, str(path), str(script))
        script.unlink()
    options = f"offset={offset},root_owner=0:0" if offset else "root_owner=0:0"
    _run(mke2fs, "-q", "-F", "-t", "ext4", "-L", "web1-root", "-d", str(tree), "-E", options, str(path), f"{filesystem_mib}M")
    if debugfs is None:
        notes.append("web1's disk holds no deleted file: debugfs is not installed (package e2fsprogs)")
    else:
        place = f"{path}?offset={offset}" if offset else str(path)
        _run(debugfs, "-w", "-R", "rm /var/cache/deleted.bin", place)
    return notes


def _make_data_disks(disks: Path) -> None:
    chance = random.Random(1)
    for name, size_mib, used_mib in (("db1-system.raw", 16, 2), ("db1-data.raw", 32, 4)):
        _sparse_file(disks / name, size_mib * _MIB)
        with open(disks / name, "r+b") as file:
            for number in range(used_mib):
                file.seek(number * size_mib // used_mib * _MIB)
                file.write(chance.randbytes(_MIB // 2) + b"row " * (_MIB // 8))


def _sparse_file(path: Path, size: int) -> None:
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)


def _has_reflinks(directory: Path) -> bool:
    """Whether files here can share blocks, found out by trying it."""
    source, target = directory / ".probe-1", directory / ".probe-2"
    try:
        source.write_bytes(b"x" * 65536)
        with open(source, "rb") as reader, open(target, "wb") as writer:
            try:
                native.clone(reader.fileno(), writer.fileno(), name=str(target))
            except OSError:  # EOPNOTSUPP, EINVAL, ENOTTY: each filesystem says no in its own way
                return False
            return True
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


# --- the guest --------------------------------------------------------------------------------------------------------


def _start_guest(directory: Path) -> int:
    environment = {"PATH": f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"}
    try:
        finished = run([str(directory / "vm"), "start", "web1"], environment=environment, timeout_s=60, end_group=False)
        if not finished.ok:
            raise GuestError(f"{directory / 'vm'} start web1: {finished.describe()}: {finished.last_lines()}")
        return int((directory / "run/web1.pid").read_text())
    except (OSError, ValueError) as error:
        raise GuestError(f"{directory / 'vm'} start web1: {error}") from error


def _vm_script() -> str:
    python = sys.executable
    if not python or any(character in python for character in "\"'\\$`\n"):
        python = "python3"
    return _VM.replace("@PYTHON@", python)


_WORDS = (
    "disk block extent frame guest node export import digest chunk sector lock lease token snapshot stream transfer manifest "
    "the a of and to in is was read write start stop freeze thaw verify restore publish remove keep older newer"
)

_VM = '''#!/bin/sh
"exec" "@PYTHON@" "-I" "-S" "$0" "$@"  # for sh a command, for Python a string without effect

"""Plays a hypervisor: vm start|stop|status|remove GUEST.

The guest is a process that holds its disks open, as a hypervisor would, and never writes to them, so that a restored disk can be
compared with the original. It holds a lock on run/GUEST.pid as long as it lives: that, not the number in it, says that it runs.
"""

import fcntl
import os
import signal
import struct
import sys
import time

HERE = os.path.dirname(os.path.realpath(__file__))
DISKS = {"web1": ["alpha/disks/web1-root.raw"]}
STOP_SECONDS = float(os.environ.get("DISKHAUL_SHUTDOWN_TIMEOUT", "30"))


def open_pid_file(guest):
    return os.open(os.path.join(HERE, "run", guest + ".pid"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def running(guest):
    """Process id of the guest, 0 when it does not run: asks who has the lock, and takes it not even for a moment."""
    pid_file = open_pid_file(guest)
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(pid_file, fcntl.F_GETLK, question))
    os.close(pid_file)
    return 0 if kind == fcntl.F_UNLCK else pid


def start(guest):
    ready, tell = os.pipe()
    if not os.fork():
        try:
            live(guest, tell)
        except BlockingIOError:  # it runs already
            os._exit(0)
        except OSError as error:
            print("vm:", error, file=sys.stderr)
            os._exit(1)
    os.close(tell)
    os.read(ready, 1)  # ends without a byte when the guest could not begin
    return 0 if running(guest) else 1


def live(guest, tell):
    os.setsid()
    os.chdir("/")
    pid_file = open_pid_file(guest)
    fcntl.lockf(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    disks = [os.open(os.path.join(HERE, disk), os.O_RDWR) for disk in DISKS[guest]]
    os.ftruncate(pid_file, 0)
    os.pwrite(pid_file, b"%d\\n" % os.getpid(), 0)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    for inherited in set(map(int, os.listdir("/proc/self/fd"))) - {0, 1, 2, pid_file, tell, *disks}:
        try:
            os.close(inherited)
        except OSError:  # the one that listed them
            pass
    os.write(tell, b"y")
    os.close(tell)
    while os.fstat(pid_file).st_nlink:  # ends by itself when its cluster is removed
        time.sleep(2)
    os._exit(0)


def stop(guest):
    deadline = time.monotonic() + STOP_SECONDS
    while pid := running(guest):
        try:
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        except ProcessLookupError:
            pass
        time.sleep(0.05)
    return 0


def status(guest):
    return 0 if running(guest) else 3


def remove(guest):
    if running(guest):
        print("stop the guest first", file=sys.stderr)
        return 1
    for disk in DISKS[guest]:
        path = os.path.join(HERE, disk)
        if os.path.lexists(path):
            os.unlink(path)
    os.unlink(os.path.join(HERE, "run", guest + ".pid"))
    return 0


COMMANDS = {"start": start, "stop": stop, "status": status, "remove": remove}
if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS or sys.argv[2] not in DISKS:
    print("usage: vm start|stop|status|remove " + "|".join(DISKS), file=sys.stderr)
    sys.exit(2)
sys.exit(COMMANDS[sys.argv[1]](sys.argv[2]))
'''

_HOOK = """#!/bin/sh
# Runs @PHASE@ every export, on the master, the instance's node and the target. A pre script that fails stops the export
# before anything is touched; a post script that fails is a warning. See the DISKHAUL_ variables with: env
echo "$DISKHAUL_INSTANCE_NAME @WORDS@ $DISKHAUL_EXPORT_NODE"
"""


def _configuration(size_mib: int, *, reflinks: bool) -> str:
    if reflinks:
        long_sleep = """\
# Disks are snapshotted here, so a guest is down for a moment only. Where snapshots are impossible, this would keep it down while
# its disks are sent, instead of failing:
# long_sleep = true
"""
    else:
        long_sleep = """\
# The filesystem of this directory has no reflinks (XFS and btrfs do), so disks cannot be snapshotted. With long_sleep the guest
# stays down while its disks are sent; without it the export would be refused, and the guest not touched.
long_sleep = true
"""
    return _CONFIGURATION.replace("@LONG_SLEEP@", long_sleep).replace("@SIZE@", str(size_mib))


_CONFIGURATION = """\
# A diskhaul cluster to try things with. Paths are relative to this file.

[cluster]
name = "demo"
master = "alpha"                          # hook scripts run here, besides the nodes of an export
state_dir = "state"                       # journal and locks; made when first needed
hook_dir = "hooks"                        # instance-export-pre.d/ and instance-export-post.d/
compression = ["none", "zstd", "gzip"]    # what an export may use

# What an export does unless the command line says otherwise: the options of `diskhaul export`, with _ for -.
[defaults]
compress = "zstd:1"
@LONG_SLEEP@
# Which backend does what. These are the defaults; `diskhaul plugins` lists all there are.
[backends]
lock = "file"
cleanup = "others"                        # a new export replaces those of its instance on every node; "keep" and "none" do not

# Nodes are machines with an export directory. Here they are directories of this one.
[nodes.alpha]
export_dir = "alpha/exports"

[nodes.beta]
export_dir = "beta/exports"

[nodes.gamma]
export_dir = "gamma/exports"
# drained = true                          # takes no new exports
# offline = true                          # is not asked for anything

# A guest. Its short name, web1, will do on the command line.
[instances."web1.example.com"]
node = "alpha"
state = "up"                              # what it should be; the runtime knows what it is
runtime = "command"                       # started and stopped by programs of your own
os = "debian-12"
memory_mib = 512
vcpus = 1

[instances."web1.example.com".runtime_options]
start = ["./vm", "start", "web1"]
stop = ["./vm", "stop", "web1"]
status = ["./vm", "status", "web1"]       # exit code 0: it runs
remove = ["./vm", "remove", "web1"]       # for `diskhaul export --remove-instance`

[[instances."web1.example.com".disks]]
name = "root"
storage = "file"                          # "block" for devices
path = "alpha/disks/web1-root.raw"
size = "@SIZE@ MiB"                       # checked against the file; leave it out to take what is there

# Disks without a guest: runtime "none" never runs.
[instances."db1.example.com"]
node = "alpha"
state = "down"
runtime = "none"

[[instances."db1.example.com".disks]]
name = "system"
path = "alpha/disks/db1-system.raw"

[[instances."db1.example.com".disks]]
name = "data"
path = "alpha/disks/db1-data.raw"
"""
