"""Ganeti's description of an export."""

from __future__ import annotations

import configparser
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diskhaul.errors import RefusedError
from diskhaul.formats import ganeti
from diskhaul.formats.corruption import CorruptError
from diskhaul.formats.ganeti import GanetiDump, GanetiExport, parse_config_ini, render_config_ini, size_mib
from diskhaul.model import Disk, Instance, Nic

UUIDS = ("7d0a4f0c-1b1c-4b5e-9a57-0d3c1f0b2a11", "b0a7c9de-0f3e-4d55-8b2c-6f0c9e1d3a22")

# As Ganeti 3.0 writes it: key by key from the description of its FinalizeExport step; the values are made up.
FROM_GANETI = f"""\
[export]
version = 0
timestamp = 1763806388
source = 3a1cf0a2-63b5-4c8e-a1f0-0e8b7c6d5e4f
os = debootstrap+default
compression = none

[instance]
name = web1.example.com
maxmem = 1024
minmem = 512
memory = 1024
vcpus = 2
disk_template = drbd
hypervisor = kvm
tags = web prod:eu
nic0_mac = aa:00:00:12:34:56
nic0_ip = None
nic0_network = None
nic0_name = None
nic0_link = br0
nic0_mode = bridged
nic0_vlan =
nic1_mac = aa:00:00:12:34:57
nic1_ip = 192.0.2.7
nic1_network = 5f0b
nic1_name = inner
nic1_link = br1
nic1_mode = bridged
nic1_vlan =
nic_count = 2
disk0_ivname = disk/0
disk0_dump = {UUIDS[0]}
disk0_size = 10240
disk0_name = root
disk1_ivname = disk/1
disk1_dump = {UUIDS[1]}
disk1_size = 1
disk1_name = None
disk_count = 2

[hypervisor]
acpi = True
kernel_args = ro console=ttyS0
kernel_path = None
boot_order = disk

[backend]
always_failover = False
auto_balance = True
maxmem = 1024
minmem = 512
spindle_use = 1
vcpus = 2

[os]
dhcp = no
motd = 100%% yours

[os_private]
root_password = hunter2

""".encode()


def parsed(**changes: bytes) -> GanetiExport:
    return parse_config_ini(FROM_GANETI)


def line(key: str, value: str, data: bytes = FROM_GANETI) -> bytes:
    """The file with one key's first occurrence changed."""
    lines = data.decode().split("\n")
    index = next(index for index, old in enumerate(lines) if old.startswith(f"{key} ="))
    lines[index] = f"{key} = {value}"
    return "\n".join(lines).encode()


def without(key: str) -> bytes:
    return "\n".join(old for old in FROM_GANETI.decode().split("\n") if not old.startswith(f"{key} =")).encode()


def refused(data: bytes) -> str:
    with pytest.raises(CorruptError) as caught:
        parse_config_ini(data)
    problem = caught.value.problem
    assert problem.isprintable()
    assert len(problem) < 400
    return problem


# --- both directions --------------------------------------------------------------------------------------------------


def test_what_ganeti_wrote_is_read() -> None:
    export = parse_config_ini(FROM_GANETI)
    assert export.timestamp == 1763806388
    assert export.compression == "none"
    assert export.source == "3a1cf0a2-63b5-4c8e-a1f0-0e8b7c6d5e4f"
    assert export.dumps == (
        GanetiDump(file=UUIDS[0], size_mib=10240, ivname="disk/0", name="root"),
        GanetiDump(file=UUIDS[1], size_mib=1, ivname="disk/1", name=""),
    )
    instance = export.instance
    assert (instance.name, instance.node, instance.os) == ("web1.example.com", export.source, "debootstrap+default")
    assert (instance.memory_mib, instance.vcpus, tuple(instance.tags)) == (1024, 2, ("web", "prod:eu"))
    assert instance.nics == (
        Nic(mac="aa:00:00:12:34:56", link="br0", mode="bridged"),
        Nic(mac="aa:00:00:12:34:57", ip="192.0.2.7", network="5f0b", name="inner", link="br1", mode="bridged"),
    )
    assert [(disk.index, disk.uuid, disk.name, disk.size) for disk in instance.disks] == [
        (0, UUIDS[0], "root", None),
        (1, UUIDS[1], "", None),
    ]
    assert instance.parameters["minmem"] == 512
    assert instance.parameters["disk_template"] == "drbd"
    assert instance.parameters["hypervisor_parameters"]["kernel_args"] == "ro console=ttyS0"
    assert instance.parameters["backend_parameters"]["spindle_use"] == "1"
    assert instance.parameters["os_parameters"] == {"dhcp": "no", "motd": "100% yours"}
    assert instance.private == {"os_parameters": {"root_password": "hunter2"}}
    assert "hunter2" not in repr(export)


def test_what_ganeti_wrote_goes_back_without_its_secrets() -> None:
    export = parse_config_ini(FROM_GANETI)
    data = render_config_ini(export.instance, export.dumps, timestamp=export.timestamp, source=export.source)
    assert b"hunter2" not in data
    assert b"root_password" not in data
    again = parse_config_ini(data)
    assert again == replace(export, instance=replace(export.instance, private={}))


def test_ganetis_own_way_of_reading_finds_what_was_meant() -> None:
    """Ganeti reads with an interpolating parser and takes the text None for nothing."""
    instance = Instance(
        name="web1.example.com",
        node="alpha",
        os="debian-12",
        disks=(Disk(), Disk()),
        nics=(Nic(ip="192.0.2.1"),),
        memory_mib=512,
        vcpus=2,
        tags=("a", "b"),
        parameters={
            "os_parameters": {"motd": "100% %(name)s ${name}"},
            "hypervisor_parameters": {"acpi": True, "kernel_path": None},
        },
        private={"password": "hunter2"},
    )
    dumps = [
        GanetiDump(file=UUIDS[0], size_mib=size_mib(10 << 20), ivname="disk/0", name="root"),
        GanetiDump(file=UUIDS[1], size_mib=size_mib((10 << 20) + 1), ivname="disk/1"),
    ]
    data = render_config_ini(instance, dumps, timestamp=1763806388, source="alpha")
    parser = configparser.ConfigParser()
    parser.read_string(data.decode())
    assert parser.sections() == ["export", "instance", "hypervisor", "backend", "os", "os_private"]
    assert dict(parser["export"]) == {
        "version": "0",
        "timestamp": "1763806388",
        "source": "alpha",
        "os": "debian-12",
        "compression": "none",
    }
    assert dict(parser["instance"]) == {
        "name": "web1.example.com",
        "maxmem": "512",
        "minmem": "512",
        "memory": "512",
        "vcpus": "2",
        "tags": "a b",
        "disk_template": "plain",
        "hypervisor": "kvm",
        "nic_count": "1",
        "disk_count": "2",
        "nic0_mac": "auto",
        "nic0_ip": "192.0.2.1",
        "nic0_network": "None",
        "nic0_name": "None",
        "nic0_mode": "None",
        "nic0_link": "None",
        "disk0_ivname": "disk/0",
        "disk0_dump": UUIDS[0],
        "disk0_size": "10",
        "disk0_name": "root",
        "disk1_ivname": "disk/1",
        "disk1_dump": UUIDS[1],
        "disk1_size": "11",
        "disk1_name": "None",
    }
    assert dict(parser["backend"]) == {"maxmem": "512", "minmem": "512", "vcpus": "2"}
    assert dict(parser["hypervisor"]) == {"acpi": "True", "kernel_path": "None"}
    assert parser["os"]["motd"] == "100% %(name)s ${name}"
    assert not dict(parser["os_private"])


PLAIN = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=20).map(str.strip)
PARAMETERS = st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,10}", fullmatch=True), PLAIN, max_size=4)


@given(
    os=PLAIN,
    parameters=st.fixed_dictionaries({"hypervisor_parameters": PARAMETERS, "os_parameters": PARAMETERS}),
    tags=st.lists(st.from_regex(r"[\w.+*/:@-]{1,9}", fullmatch=True), max_size=3),
    sizes=st.lists(st.integers(0, 2**40), max_size=4),
    macs=st.lists(st.sampled_from(["", "aa:00:00:12:34:56"]), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_any_instance_comes_back(os: str, parameters: dict[str, Any], tags: list[str], sizes: list[int], macs: list[str]) -> None:
    dumps = tuple(GanetiDump(file=f"dump-{index}", size_mib=size, ivname=f"disk/{index}") for index, size in enumerate(sizes))
    instance = Instance(
        name="web1",
        node="alpha",
        os=os,
        disks=tuple(Disk(uuid=dump.file) for dump in dumps),
        nics=tuple(Nic(mac=mac, link="br0") for mac in macs),
        memory_mib=7,
        vcpus=1,
        tags=tuple(tags),
        parameters=parameters,
    )
    data = render_config_ini(instance, dumps, timestamp=5, source="alpha")
    export = parse_config_ini(data)
    assert export.dumps == dumps
    for name in ("name", "node", "os", "disks", "nics", "memory_mib", "vcpus", "tags"):
        assert getattr(export.instance, name) == getattr(instance, name)
    for name, given_ in parameters.items():
        assert export.instance.parameters[name] == given_
    assert render_config_ini(export.instance, export.dumps, timestamp=5, source="alpha") == data


@pytest.mark.parametrize(("size", "mib"), [(0, 0), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (2**62, 2**42)])
def test_sizes_are_rounded_up_to_mebibytes(size: int, mib: int) -> None:
    assert size_mib(size) == mib


INSTANCE = Instance(name="web1", node="alpha")


@pytest.mark.parametrize(
    ("instance", "dumps"),
    [
        (replace(INSTANCE, tags=("two words",)), []),
        (replace(INSTANCE, tags=("",)), []),
        (replace(INSTANCE, os="a\nb = c"), []),
        (replace(INSTANCE, os="a\x1b[31m"), []),
        (replace(INSTANCE, os="\ud800"), []),
        (replace(INSTANCE, nics=(Nic(link="br0\n[os_private]"),)), []),
        (replace(INSTANCE, parameters={"os_parameters": {"Mixed": "x"}}), []),
        (replace(INSTANCE, parameters={"os_parameters": {"a = b": "x"}}), []),
        (replace(INSTANCE, parameters={"os_parameters": {"[x]": "x"}}), []),
        (replace(INSTANCE, parameters={"os_parameters": ["x"]}), []),
        (replace(INSTANCE, parameters={"os_parameters": {"a": "x\u2028y"}}), []),
        (replace(INSTANCE, parameters={"maxmem": "lots"}), []),
        (replace(INSTANCE, parameters={"os_parameters": {"a": "x" * ganeti.MAX_CONFIG_BYTES}}), []),
        (INSTANCE, [GanetiDump(file="../x", size_mib=1, ivname="disk/0")]),
        (INSTANCE, [GanetiDump(file="config.ini", size_mib=1, ivname="disk/0")]),
        (INSTANCE, [GanetiDump(file="a", size_mib=-1, ivname="disk/0")]),
        (INSTANCE, [GanetiDump(file="a", size_mib=1, ivname="disk/0"), GanetiDump(file="a", size_mib=1, ivname="disk/1")]),
    ],
)
def test_what_the_format_cannot_hold_is_refused(instance: Instance, dumps: list[GanetiDump]) -> None:
    with pytest.raises(RefusedError) as caught:
        render_config_ini(instance, dumps, timestamp=0, source="alpha")
    assert all(problem.isprintable() for problem in caught.value.problems)


# --- damage and hostility ---------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_ours_is_found() -> None:
    export = parse_config_ini(FROM_GANETI)
    data = bytearray(render_config_ini(export.instance, export.dumps, timestamp=5, source="alpha"))
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            refused(bytes(data))
            data[at] ^= 1 << bit


def test_ours_is_refused_wherever_it_was_cut() -> None:
    export = parse_config_ini(FROM_GANETI)
    data = render_config_ini(export.instance, export.dumps, timestamp=5, source="alpha")
    for length in range(len(data)):
        refused(data[:length])


def test_ganetis_is_refused_when_cut_inside_what_matters() -> None:
    for length in range(FROM_GANETI.index(b"disk_count") + len(b"disk_count = 2\n")):
        refused(FROM_GANETI[:length])


UNSAFE = [
    "../../etc/x",
    "/etc/passwd",
    ".",
    "..",
    "",
    ".hidden",
    "-x",
    "a/b",
    "config.ini",
    "manifest.json",
    "a.chunks",
    "x" * 254,
    "a b",
    "a\u00fc",
]
NUMBERS = ["", "-1", "1.0", "1e99", "nan", "0x10", "1 2", "\u0661", "9" * 19, "9" * 5000, "True", "None"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\0" * 100,
        b"\xff\xfe",
        b"[export]\n",
        b"version = 0\n",
        FROM_GANETI[:-2],
        FROM_GANETI + b"\xff\n",
        FROM_GANETI + b"\x1b[2J\n",
        FROM_GANETI + b"[export]\n",
        FROM_GANETI + b"[]\n",
        FROM_GANETI + b"[a\n",
        FROM_GANETI + b"[a]]\n",
        FROM_GANETI + b"no value\n",
        FROM_GANETI + b"=\n",
        FROM_GANETI + b"root_password = twice\n",
        FROM_GANETI.replace(b"vcpus = 2\n", b"vcpus = 2\nvcpus = 2\n", 1),
        FROM_GANETI.replace(b"vcpus = 2\n", b"vcpus = 2\nVCPUS = 2\n", 1),
        FROM_GANETI.replace(b"[export]\n", b"[export]\n   indented = 1\n"),
        FROM_GANETI.replace(b"[export]", b"[Export]"),
        FROM_GANETI.replace(b"[instance]", b"[DEFAULT]"),
        FROM_GANETI.replace(b"\n", b"\r\n"),
        b"# hello\n" + FROM_GANETI,
        b"; hello\n" + FROM_GANETI,
        *(line(f"disk{index}_dump", name) for index in (0, 1) for name in UNSAFE),
        line("disk1_dump", UUIDS[0]),
        *(
            line(key, number)
            for key in ("disk0_size", "disk_count", "nic_count", "vcpus", "maxmem", "timestamp")
            for number in NUMBERS
        ),
        *(line("disk_count", count) for count in ("0", "1", "3", "1025")),
        line("nic_count", "1025"),
        *(line("version", version) for version in ("1", "", "00")),
        *(line("name", name) for name in ("", "../x", "/x", ".", "-x", "x" * 300, "a\tb")),
        *(line("source", name) for name in ("", "../x", "a b")),
        *(line("compression", name) for name in ("", "a b", "/bin/sh", "x" * 33)),
        *(
            without(key)
            for key in ("version", "timestamp", "source", "os", "compression", "name", "disk_count", "nic_count", "vcpus")
        ),
        *(without(key) for key in ("disk0_dump", "disk1_dump", "disk0_size")),
    ],
    ids=lambda data: repr(data[:1]),
)
def test_a_hostile_description_is_refused(data: bytes) -> None:
    refused(data)


def test_sections_cannot_reach_into_each_other() -> None:
    data = b"[DEFAULT]\nname = evil\ntags = %(os)s\n\n" + line("tags", "%(name)s ${export:os} %(__name__)s")
    export = parse_config_ini(data)
    assert export.instance.name == "web1.example.com"
    assert export.instance.tags == ("%(name)s", "${export:os}", "%(__name__)s")
    assert parse_config_ini(b"[DEFAULT]\nevil = 1\n\n" + FROM_GANETI) == parse_config_ini(FROM_GANETI)


@pytest.mark.parametrize(
    "data",
    [
        b"[export]\n" + b"a" * (ganeti.MAX_CONFIG_BYTES - 10) + b"\n",
        b"[export]\na" + b" " * (ganeti.MAX_CONFIG_BYTES - 11) + b"\n",
        b"[export]\na" + b" " * (ganeti.MAX_CONFIG_BYTES - 20) + b"= 1\n",
        b"[export]\na" + b" " * (ganeti.MAX_CONFIG_BYTES - 20) + b"b = 1\n",
        b"[export]\n" + b"a\n" * (ganeti.MAX_CONFIG_BYTES // 2 - 10),
        b"[export]\n" + b"=\n" * (ganeti.MAX_CONFIG_BYTES // 2 - 10),
        b"[" * (ganeti.MAX_CONFIG_BYTES - 1) + b"\n",
        b"[" + b"]" * (ganeti.MAX_CONFIG_BYTES - 2) + b"\n",
        b"[export]\na = 1\n" + b" x\n" * (ganeti.MAX_CONFIG_BYTES // 3 - 10),
        b"[export]\na = 1\n" + b"\n" * (ganeti.MAX_CONFIG_BYTES - 20),
        b"\n" * (ganeti.MAX_CONFIG_BYTES + 1),
    ],
    ids=range(11),
)
def test_a_description_made_to_cost_is_refused_cheaply(data: bytes) -> None:
    """Lines that would take `configparser` quadratic time: minutes and more, which the suite's time limit would show."""
    tracemalloc.start()
    try:
        refused(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


@given(st.binary(max_size=300))
def test_noise_is_no_description(data: bytes) -> None:
    refused(data)


@given(at=st.integers(0, len(FROM_GANETI)), noise=st.text(max_size=30), gone=st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_a_damaged_description_of_ganetis_is_read_or_refused_but_never_unsafe(at: int, noise: str, gone: int) -> None:
    data = FROM_GANETI[:at] + noise.encode("utf-8", "replace") + FROM_GANETI[at + gone :]
    assume(data != FROM_GANETI)
    try:
        export = parse_config_ini(data)
    except CorruptError:
        return
    assert all("/" not in dump.file and not dump.file.startswith(".") for dump in export.dumps)
