"""Configuration files: what is read from them, and that everything wrong with them is said at once, with its key path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.config import find_configuration, load_cluster
from diskhaul.errors import ConfigurationError
from diskhaul.model import Cluster
from diskhaul.trusted_toml import MAX_FILE_BYTES

MINIMAL = """
[cluster]
name = "lab"
[nodes.alpha]
export_dir = "alpha/exports"
"""

WEB = """
[instances."web1.example.com"]
node = "alpha"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "cluster.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def load(write: Callable[[str | bytes], Path]) -> Callable[[str | bytes], Cluster]:
    return lambda text: load_cluster(write(text))


@pytest.fixture
def problems(write: Callable[[str | bytes], Path]) -> Callable[[str | bytes], list[str]]:
    """The problems of a text, without the file's name, which each has to begin with."""

    def find(text: str | bytes) -> list[str]:
        path = write(text)
        with pytest.raises(ConfigurationError) as caught:
            load_cluster(path)
        assert caught.value.exit_code == 2
        assert all(problem.startswith(f"{path}: ") and "\n" not in problem for problem in caught.value.problems)
        return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]

    return find


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_minimal_file_is_a_cluster_with_the_defaults(load: Callable[[str], Cluster], tmp_path: Path) -> None:
    cluster = load(MINIMAL)
    assert (cluster.name, cluster.master, cluster.hook_dir) == ("lab", "", None)
    assert cluster.state_dir == tmp_path / "state"
    assert cluster.compression == ("none", "zstd", "gzip")
    assert [(node.name, node.export_dir, node.offline, node.drained) for node in cluster.nodes] == [
        ("alpha", tmp_path / "alpha/exports", False, False)
    ]
    assert cluster.instances == ()
    assert cluster.source == tmp_path / "cluster.toml"


def test_every_key_arrives_where_the_model_has_it(load: Callable[[str], Cluster], tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    cluster = load("""
[cluster]
name = "lab"
master = "beta"
state_dir = "s"
hook_dir = "hooks"
compression = ["none", "zstd"]
cluster_domain_secret = "certs/secret"
[clusters.west]
command = ["ssh", "west", "diskhaul"]
[defaults]
compress = "zstd:3"
long_sleep = true
shutdown_timeout_s = 30
verify = "full"
[backends]
lock = "file"
cleanup = "keep"
[backend_options.keep]
last = 3
[nodes.alpha]
export_dir = "/srv/alpha"
offline = true
[nodes.beta]
export_dir = "../beta"
drained = true
options = { rack = 4 }
[instances."web1.example.com"]
node = "alpha"
secondaries = ["beta"]
state = "down"
runtime = "command"
os = "debian-12"
memory_mib = 512
vcpus = 2
tags = ["a", "b"]
runtime_options = { start = ["./vm", "start"] }
private = { password = "secret" }
parameters = { hypervisor = { acpi = true } }
[[instances."web1.example.com".disks]]
path = "disks/root.raw"
size = "1.5 GiB"
snapshot = "reflink"
name = "root"
uuid = "u-1"
[[instances."web1.example.com".disks]]
storage = "block"
path = "/dev/vg/web1"
size = 4096
options = { cache = "none" }
[[instances."web1.example.com".disks]]
storage = "san"
[[instances."web1.example.com".nics]]
mac = "aa:00:00:00:00:01"
link = "br0"
""")
    assert (cluster.master, cluster.state_dir, cluster.hook_dir) == ("beta", tmp_path / "s", tmp_path / "hooks")
    assert cluster.compression == ("none", "zstd")
    assert cluster.cluster_domain_secret == tmp_path / "certs/secret"
    assert [(other.name, other.command) for other in cluster.clusters] == [("west", ("ssh", "west", "diskhaul"))]
    assert cluster.defaults == {"compress": "zstd:3", "long_sleep": True, "shutdown_timeout_s": 30, "verify": "full"}
    assert cluster.backends == {"lock": "file", "cleanup": "keep"}
    assert cluster.backend_options == {"keep": {"last": 3}}
    alpha, beta = cluster.nodes
    assert (alpha.export_dir, alpha.offline, alpha.drained) == (Path("/srv/alpha"), True, False)
    assert (beta.export_dir, beta.drained, beta.options) == (tmp_path / "../beta", True, {"rack": 4})
    (web,) = cluster.instances
    assert (web.name, web.node, web.secondaries, web.state) == ("web1.example.com", "alpha", ("beta",), "down")
    assert (web.runtime, web.os, web.memory_mib, web.vcpus, web.tags) == ("command", "debian-12", 512, 2, ("a", "b"))
    assert web.runtime_options == {"start": ["./vm", "start"]}
    assert web.private == {"password": "secret"}
    assert web.parameters == {"hypervisor": {"acpi": True}}
    root, block, san = web.disks
    assert (root.index, root.storage, root.path, root.size) == (0, "file", tmp_path / "disks/root.raw", 3 << 29)
    assert (root.snapshot, root.name, root.uuid) == ("reflink", "root", "u-1")
    assert (block.index, block.storage, block.path, block.size) == (1, "block", Path("/dev/vg/web1"), 4096)
    assert block.options == {"cache": "none"}
    assert (san.index, san.storage, san.path, san.size) == (2, "san", None, None)
    assert (web.nics[0].mac, web.nics[0].link, web.nics[0].ip) == ("aa:00:00:00:00:01", "br0", "")


def test_paths_are_taken_from_the_files_directory_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/cluster.toml").write_text(MINIMAL)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    cluster = load_cluster("link/cluster.toml")
    assert cluster.nodes[0].export_dir == tmp_path / "link/alpha/exports"
    assert cluster.state_dir.is_absolute()


def test_nodes_whose_exports_lie_in_no_directory_need_none(load: Callable[[str], Cluster]) -> None:
    text = '[cluster]\nname = "lab"\n[backends]\ntransfer = "object"\n[nodes.alpha]\noptions = { bucket = "exports" }\n'
    assert load(text).nodes[0].export_dir is None
    with pytest.raises(ConfigurationError, match=r'nodes\.alpha\.export_dir: is missing; add export_dir = "exports"'):
        load(text.replace('"object"', '"tls"'))


def test_reading_creates_nothing(load: Callable[[str], Cluster], tmp_path: Path) -> None:
    load(MINIMAL + WEB)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.toml"]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("1", 1),
        ('"1"', 1),
        ('"512B"', 512),
        ('"4KiB"', 4096),
        ('"512MiB"', 512 << 20),
        ('" 10 GiB "', 10 << 30),
        ('"0.5 KiB"', 512),
        ('"2 TiB"', 2 << 40),
        ('"64M"', 64 << 20),
        ('"1.5 gib"', 3 << 29),
    ],
)
def test_sizes_are_bytes_or_text_with_a_binary_unit(load: Callable[[str], Cluster], size: str, count: int) -> None:
    cluster = load(MINIMAL + WEB + f'disks = [{{path = "d", size = {size}}}]')
    assert cluster.instances[0].disks[0].size == count


def test_a_byte_order_mark_does_no_harm(load: Callable[[bytes], Cluster]) -> None:
    assert load(b"\xef\xbb\xbf" + MINIMAL.encode()).name == "lab"


# --- the file itself --------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_cluster(path)
    (problem,) = caught.value.problems
    assert str(path) in problem
    return problem


def test_a_missing_file_a_directory_and_a_fifo_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.toml")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file/cluster.toml")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="empty or holds a NUL"):
        load_cluster(path)


def test_a_file_that_is_not_readable_is_refused(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(MINIMAL)
    if os.geteuid() != 0:
        path.chmod(0)
        assert "not readable for this user" in refusal(path)
        return
    # Root reads everything: give the work to a child that is somebody else.
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        said = b""
        try:
            directory = os.open(tmp_path, os.O_PATH)  # the directories above belong to root alone
            os.fchdir(directory)
            os.setresuid(65534, 65534, 65534)
            from diskhaul.trusted_toml import read_trusted_toml

            read_trusted_toml(Path("cluster.toml"), "configuration", missing="")
        except ConfigurationError as error:
            said = str(error).encode()
        finally:
            os.write(writer, said or b"read")
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert b"not readable for this user" in answer.read()
    os.wait()


def test_a_file_that_is_not_utf_8_names_the_line(write: Callable[[bytes], Path]) -> None:
    assert "line 2 is not UTF-8" in refusal(write(b'[cluster]\nname = "\xff"\n'))


def test_a_file_of_more_than_16_mib_is_refused(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL)
    os.truncate(path, MAX_FILE_BYTES + 1)
    assert "larger than 16 MiB" in refusal(path)


def test_a_file_that_every_user_may_write_to_is_refused(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL)
    path.chmod(0o666)
    assert f"not trusted: {path} can be written by every user; run: chmod o-w" in refusal(path)


def test_a_directory_where_every_user_can_replace_the_file_is_refused(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(MINIMAL)
    tmp_path.chmod(0o777)
    assert "not trusted: directory" in refusal(path)
    tmp_path.chmod(0o1777)
    assert load_cluster(path).name == "lab"


def test_a_link_is_judged_by_what_it_leads_to(write: Callable[[str], Path], tmp_path: Path) -> None:
    target = write(MINIMAL)
    target.chmod(0o666)
    link = tmp_path / "sub" / "cluster.toml"
    link.parent.mkdir()
    link.symlink_to(target)
    assert "can be written by every user" in refusal(link)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[cluster]\nname = "a"\nname = "b"\n', "not valid TOML.*line 3"),
        ('[cluster]\nname = "a"\n[cluster]\n', "not valid TOML.*twice.*line 3"),
        ("[cluster\n", "not valid TOML.*line 1"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 10000, "nested too deeply"),
    ],
)
def test_what_is_not_toml_is_said_with_its_place(problems: Callable[[str], list[str]], text: str, message: str) -> None:
    import re

    (problem,) = problems(text)
    assert re.search(message, problem, re.IGNORECASE)


# --- what is in it ----------------------------------------------------------------------------------------------------

BASE = MINIMAL + WEB
DISK = BASE + '[[instances."web1.example.com".disks]]\n'
AT = 'instances."web1.example.com"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys
        (MINIMAL + "[nods.beta]\n", "nods: is not a key here; did you mean nodes?"),
        (MINIMAL + "offlin = true\n", "nodes.alpha.offlin: is not a key here; did you mean offline?"),
        (MINIMAL + "zzz = 1\n", "nodes.alpha.zzz: is not a key here; there is drained, export_dir, offline, options"),
        (BASE + 'memory = 5\nmemory_mb = "x"\n', f"{AT}.memory_mb: is not a key here; did you mean memory_mib?"),
        (DISK + 'path = "a"\nsiz = 1', f"{AT}.disks[0].siz: is not a key here; did you mean size?"),
        (BASE + f"[[{AT}.nics]]\nmack = '1'", f"{AT}.nics[0].mack: is not a key here; did you mean mac?"),
        (MINIMAL + '[backends]\nlocks = "file"', "backends.locks: is not a key here; did you mean lock?"),
        (MINIMAL + "[defaults]\nlong-sleep = true", "defaults.long-sleep: is not an export option; did you mean long_sleep?"),
        (MINIMAL + '"a\\u001bb" = 1\n', 'nodes.alpha."a\\x1bb": is not a key here'),
        # missing
        ("", 'cluster: is missing; add a [cluster] section with name = "..."'),
        (
            "[cluster]\n" + MINIMAL.partition("\n")[2].partition("[nodes")[1] + ".a]\n",
            'cluster.name: is missing; add name = "..."',
        ),
        (MINIMAL + "[nodes.beta]\n", 'nodes.beta.export_dir: is missing; add export_dir = "exports"'),
        (MINIMAL + '[instances.web]\nos = "x"\n', "instances.web.node: is missing; add node ="),
        (DISK + "size = 5", f'{AT}.disks[0].path: is missing; add path = "..."'),
        ('[cluster]\nname = "a"\n', "nodes: no node is configured; add a section [nodes.NAME] with export_dir"),
        # mistyped
        (MINIMAL + "offline = 1\n", "nodes.alpha.offline: must be true or false, not a whole number"),
        (MINIMAL + "[nodes.beta]\nexport_dir = 7\n", "nodes.beta.export_dir: must be text in quotes, not a whole number"),
        (
            MINIMAL + "[nodes.beta]\nexport_dir = 1979-05-27\n",
            "nodes.beta.export_dir: must be text in quotes, not a date or time",
        ),
        ("nodes = 5\n[cluster]\nname = 'a'\n", "nodes: must be a table, not a whole number"),
        ("defaults = true\n" + MINIMAL, "defaults: must be a table, not true or false"),
        (BASE + "disks = {}\n", f"{AT}.disks: must be a list in [ ], not a table"),
        (BASE + "disks = ['a']\n", f"{AT}.disks[0]: must be a table, not text"),
        (BASE + "tags = [1]\n", f"{AT}.tags[0]: must be text in quotes, not a whole number"),
        (BASE + "memory_mib = 1.5\n", f"{AT}.memory_mib: must be a whole number, not a number with a fraction"),
        (BASE + "vcpus = true\n", f"{AT}.vcpus: must be a whole number, not true or false"),
        (BASE + "private = 'secret'\n", f"{AT}.private: must be a table, not text"),
        (BASE + "state = 'upp'\n", f'{AT}.state: must be "up" or "down", not "upp"'),
        # numbers
        (BASE + "memory_mib = -1\n", f"{AT}.memory_mib: must not be below 0"),
        (BASE + "memory_mib = nan\n", f"{AT}.memory_mib: must be a whole number"),
        (BASE + "vcpus = 99999999999999999999999\n", f"{AT}.vcpus: must not be above"),
        (DISK + "path = 'a'\nsize = 0", f"{AT}.disks[0].size: must be from 1 byte"),
        (DISK + "path = 'a'\nsize = -1", f"{AT}.disks[0].size: must be from 1 byte"),
        (DISK + "path = 'a'\nsize = 9223372036854775808", f"{AT}.disks[0].size: must be from 1 byte"),
        (DISK + "path = 'a'\nsize = inf", f"{AT}.disks[0].size: must be a whole number of bytes"),
        (DISK + "path = 'a'\nsize = ''", f"{AT}.disks[0].size: cannot be understood"),
        (DISK + "path = 'a'\nsize = '10 GB'", f"{AT}.disks[0].size: cannot be understood as a size: '10 GB'; write for example"),
        (DISK + "path = 'a'\nsize = '-1 GiB'", f"{AT}.disks[0].size: cannot be understood"),
        (DISK + "path = 'a'\nsize = '1e99'", f"{AT}.disks[0].size: cannot be understood"),
        (DISK + "path = 'a'\nsize = '99999999 PiB'", f"{AT}.disks[0].size: must be from 1 byte"),
        (DISK + "path = 'a'\nsize = '0.3 B'", f"{AT}.disks[0].size: is not a whole number of bytes"),
        (
            MINIMAL + "[defaults]\nshutdown_timeout_s = nan",
            "defaults.shutdown_timeout_s: must be from 0 to 31622400 seconds, not nan",
        ),
        (MINIMAL + "[defaults]\nlock_timeout_s = 1e99", "defaults.lock_timeout_s: must be from 0 to"),
        (MINIMAL + "[defaults]\nlock_timeout_s = " + "9" * 400, "defaults.lock_timeout_s: must be from 0 to"),
        (MINIMAL + "[defaults]\nhook_timeout_s = -1", "defaults.hook_timeout_s: must be above 0"),
        (MINIMAL + "[defaults]\nhook_timeout_s = '5'", "defaults.hook_timeout_s: must be a number of seconds, not text"),
        (MINIMAL + "[defaults]\nthreads = 1.5", "defaults.threads: must be a whole number"),
        (MINIMAL + "[defaults]\nchunk_size = 100000", "defaults.chunk_size: must be a power of two"),
        (MINIMAL + "[defaults]\nlong_sleep = 1", "defaults.long_sleep: must be true or false, not a number"),
        (MINIMAL + "[defaults]\nverify = 'maybe'", "defaults.verify: must be one of stored, full, none, not 'maybe'"),
        (MINIMAL + "[defaults]\ncompress = 'zstd:fast'", "defaults.compress: "),
        # empty, NUL, unexpandable
        (MINIMAL + "[nodes.beta]\nexport_dir = ''\n", "nodes.beta.export_dir: is empty"),
        (BASE + "os = ' '\n", f"{AT}.os: is empty"),
        (DISK + "path = ''", f"{AT}.disks[0].path: is empty"),
        (DISK + "path = 'a'\nsnapshot = ''", f"{AT}.disks[0].snapshot: is empty"),
        (DISK + 'path = "a\\u0000b"', f"{AT}.disks[0].path: holds a NUL character"),
        (DISK + "path = '~/a'", f"{AT}.disks[0].path: '~' is not expanded"),
        (MINIMAL + "[backends]\nlock = ''", "backends.lock: is empty"),
        ("[cluster]\nname = ''\n" + MINIMAL.partition('lab"\n')[2], "cluster.name: is empty"),
        # names
        (MINIMAL.replace("lab", "la/b"), "cluster.name: cluster name 'la/b' is not allowed"),
        (MINIMAL + "[nodes.'../x']\nexport_dir = 'x'\n", "nodes.\"../x\": node name '../x' is not allowed"),
        (MINIMAL + "[nodes.'']\nexport_dir = 'x'\n", 'nodes."": node name is empty'),
        (MINIMAL + "[instances.-x]\nnode = 'alpha'\n", "instances.-x: instance name '-x' is not allowed"),
        (MINIMAL + f"[instances.{'a' * 300}]\nnode = 'alpha'\n", "is longer than 253 bytes"),
        (MINIMAL + "[instances.\"a\\nb\"]\nnode = 'alpha'\n", "instance name 'a\\nb' is not allowed"),
        # references
        (MINIMAL.replace('"lab"', '"lab"\nmaster = "alpa"'), "cluster.master: there is no node 'alpa'; did you mean alpha?"),
        (MINIMAL + "[instances.web]\nnode = 'zz'\n", "instances.web.node: there is no node 'zz'; there is alpha"),
        (BASE + "secondaries = ['beta']\n", f"{AT}.secondaries[0]: there is no node 'beta'"),
        (BASE + "secondaries = ['alpha']\n", f"{AT}.secondaries[0]: 'alpha' is the primary node already"),
        # compression
        (
            MINIMAL.replace('"lab"', '"lab"\ncompression = ["lz4"]'),
            "cluster.compression[0]: 'lz4' is unknown; there is gzip, none",
        ),
        (MINIMAL.replace('"lab"', '"lab"\ncompression = ["none", "none"]'), "cluster.compression[1]: 'none' stands twice"),
        (MINIMAL.replace('"lab"', '"lab"\ncompression = []'), "cluster.compression: allows nothing"),
        (
            MINIMAL.replace('"lab"', '"lab"\ncompression = ["none"]') + "[defaults]\ncompress = 'zstd:1'\n",
            "defaults.compress: zstd is not among cluster.compression (none)",
        ),
        # paths
        (MINIMAL.replace('"lab"', '"lab"\nhook_dir = "hooks"'), "/hooks is not a directory; make it, or leave the key out"),
        (MINIMAL.replace('"lab"', '"lab"\nstate_dir = "no/state"'), "/no does not exist; make it first"),
        (MINIMAL.replace('"lab"', '"lab"\nstate_dir = "cluster.toml"'), "cluster.toml is not a directory"),
        (MINIMAL + "[nodes.beta]\nexport_dir = '/'\n", "nodes.beta.export_dir: is the root directory"),
        (MINIMAL + "[nodes.beta]\nexport_dir = 'state/x'\n", "overlaps cluster.state_dir"),
        (MINIMAL + "[nodes.beta]\nexport_dir = '.'\n", "overlaps cluster.state_dir"),
        (DISK + "path = 'alpha/exports/web1/d'", "/alpha/exports/web1/d lies inside nodes.alpha.export_dir"),
        (BASE + "disks = [{path = 'a'}, {path = 'x/../a'}]", f"/x/../a is also {AT}.disks[0].path; each disk needs its own"),
        (
            BASE + "disks = [{path = 'a'}]\n[instances.other]\nnode = 'alpha'\ndisks = [{path = './a'}]",
            f"is also {AT}.disks[0].path",
        ),
        # free-form tables
        (BASE + "runtime_options = {a = [1, {b = nan}]}\n", f"{AT}.runtime_options.a[1].b: is not a number that can be used"),
        (BASE + "private = {p = inf}\n", f"{AT}.private.p: is not a number that can be used"),
        (BASE + "parameters = {d = 1979-05-27}\n", f"{AT}.parameters.d: is a date or time, which cannot be kept here"),
        (BASE + 'parameters = {"" = 1}\n', f"{AT}.parameters: has an empty key"),
        (BASE + 'runtime_options = {a = "x\\u0000"}\n', f"{AT}.runtime_options.a: holds a NUL"),
        (MINIMAL + "options = {a = nan}\n", "nodes.alpha.options.a: is not a number"),
        (DISK + "path = 'a'\noptions = {a = nan}", f"{AT}.disks[0].options.a: is not a number"),
        (MINIMAL + "[backend_options]\nkeep = 5", "backend_options.keep: must be a table, not a whole number"),
        (MINIMAL + "[backend_options.keep]\nlast = nan", "backend_options.keep.last: is not a number"),
    ],
)
def test_a_mistake_is_said_with_its_key_path_and_what_to_do(
    problems: Callable[[str], list[str]], text: str, expected: str
) -> None:
    found = problems(text)
    assert any(expected in problem for problem in found), found


def test_a_hook_directory_that_every_user_may_write_to_is_refused(problems: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks").chmod(0o1777)
    (problem,) = problems(MINIMAL.replace('"lab"', '"lab"\nhook_dir = "hooks"'))
    assert problem.startswith("cluster.hook_dir: is not trusted: directory")


def test_a_state_directory_that_every_user_may_write_to_is_refused(problems: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    (problem,) = problems(MINIMAL)
    assert problem.startswith("cluster.state_dir: is not trusted: directory")


def test_two_links_to_one_disk_are_one_disk(problems: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    (tmp_path / "link").symlink_to("disk")
    (problem,) = problems(BASE + "disks = [{path = 'disk'}, {path = 'link'}]")
    assert "each disk needs its own" in problem


def test_problems_of_different_kinds_are_all_reported_together(problems: Callable[[str], list[str]]) -> None:
    found = problems("""
[cluster]
name = "l b"
master = "nobody"
hook_dir = "missing"
[defaults]
lock_timeout_s = nan
threds = 1
[nodes.alpha]
export_dir = ""
[instances.web]
node = "alfa"
vcpus = -1
private = { x = nan }
[[instances.web.disks]]
size = "big"
""")
    keys = [problem.partition(": ")[0] for problem in found]
    assert sorted(keys) == sorted(
        [
            "cluster.name",
            "cluster.master",
            "cluster.hook_dir",
            "defaults.lock_timeout_s",
            "defaults.threds",
            "nodes.alpha.export_dir",
            "instances.web.node",
            "instances.web.vcpus",
            "instances.web.private.x",
            "instances.web.disks[0].size",
            "instances.web.disks[0].path",
        ]
    )


def test_no_secret_is_repeated_in_a_message(problems: Callable[[str], list[str]]) -> None:
    found = problems(BASE + 'private = "hunter2"\nmemory_mib = "hunter2"\n')
    assert len(found) == 2
    assert not any("hunter2" in problem for problem in found)


def test_nodes_of_another_inventory_may_be_unknown_to_the_file(load: Callable[[str], Cluster]) -> None:
    cluster = load('[cluster]\nname = "lab"\nmaster = "far"\n[backends]\ninventory = "libvirt"\n[instances.web]\nnode = "far"\n')
    assert cluster.instances[0].node == "far"


# --- where it is looked for -------------------------------------------------------------------------------------------


def test_the_configuration_is_looked_for_in_four_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diskhaul.config.SYSTEM_FILE", tmp_path / "etc.toml")
    monkeypatch.delenv("DISKHAUL_CONFIG", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        find_configuration()
    for place in ("--config", "DISKHAUL_CONFIG", str(tmp_path / "cluster.toml"), str(tmp_path / "etc.toml")):
        assert place in str(caught.value)
    (tmp_path / "etc.toml").touch()
    assert find_configuration() == tmp_path / "etc.toml"
    (tmp_path / "cluster.toml").touch()
    assert find_configuration().absolute() == tmp_path / "cluster.toml"
    monkeypatch.setenv("DISKHAUL_CONFIG", "")
    assert find_configuration().absolute() == tmp_path / "cluster.toml"
    monkeypatch.setenv("DISKHAUL_CONFIG", "elsewhere.toml")
    assert find_configuration() == Path("elsewhere.toml")
    assert find_configuration(Path("given.toml")) == Path("given.toml")


KEEP = MINIMAL + '[backends]\ncleanup = "keep"\n'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", ["backend_options.keep: keeps nothing; give at least one of last, daily, weekly, monthly, yearly"]),
        ("last = 0", ["backend_options.keep: keeps nothing; give at least one of last, daily, weekly, monthly, yearly"]),
        ("last = -1", ["backend_options.keep.last: -1 is not a whole number, 0 or more"]),
        ("last = 3\nfoo = 1", ["backend_options.keep.foo: unknown; there is last, daily, weekly, monthly, yearly"]),
        (
            "last = true\nfoo = 1",
            [
                "backend_options.keep.foo: unknown; there is last, daily, weekly, monthly, yearly",
                "backend_options.keep.last: True is not a whole number, 0 or more",
            ],
        ),
    ],
)
def test_what_the_clean_up_keep_cannot_do_is_said_with_everything_else(
    problems: Callable[[str], list[str]], options: str, said: list[str]
) -> None:
    found = problems(KEEP + f"[backend_options.keep]\n{options}\n" + "[defaults]\ncompress = 5\n")
    assert len(found) == len(said) + 1
    for line in said:
        assert any(problem.endswith(line) for problem in found), found


def test_the_clean_up_keep_needs_no_options_where_it_is_not_used(load: Callable[[str], Cluster]) -> None:
    load(KEEP.replace("keep", "others"))


@pytest.mark.parametrize(
    ("defaults", "option"),
    [
        ("shutdown = false\nlong_sleep = true", "long_sleep"),
        ('remove_instance = true\nverify = "none"', "remove_instance"),
        ('zero_free_space = true\ncompress = "none"', "zero_free_space"),
        ('layout = "ganeti"\ncompress = "zstd:3"', "layout"),
        ('zero_free_space = false\nzero_fill = "ext"', "zero_fill"),
    ],
)
def test_defaults_that_contradict_each_other_are_refused(
    problems: Callable[[str], list[str]], defaults: str, option: str
) -> None:
    (problem,) = problems(f"{MINIMAL}[defaults]\n{defaults}\n")
    assert f"defaults.{option}: " in problem


@pytest.mark.parametrize("defaults", ['layout = "ganeti"', 'zero_fill = "ext"', "shutdown = false", "long_sleep = true"])
def test_a_default_that_a_call_can_complete_is_none(load: Callable[[str], Cluster], defaults: str) -> None:
    load(f"{MINIMAL}[defaults]\n{defaults}\n")
