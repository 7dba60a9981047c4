"""A fleet over nodes that are processes in network namespaces: one of them dies in the middle, and comes back."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.journal import Journal
from diskhaul.options import MIB

from .. import ext_images
from .three_nodes import LONG_S, SERVED, Nodes, ended

if TYPE_CHECKING:
    from .conftest import Lab

INSTANCES = 12
DISK_MIB = 4
SPEED = ("--bwlimit", "4M", "--chunk-size", "256K", "--compress", "none", "--threads", "1", "--memory", "16M")
"""For exports that are to be met in the middle."""


def add_instance(lab: Lab, number: int) -> None:
    """One that is off, with an ext4 that holds a file."""
    name = f"vm{number:02}.example.com"
    content = lab.path / "content"
    content.mkdir()
    (content / "file").write_bytes(random.Random(number).randbytes(2 * MIB + number))
    disk = lab.disks / f"{name}.raw"
    ext_images.make(disk, DISK_MIB, "-d", content)
    shutil.rmtree(content)
    lab.contents[disk] = disk.read_bytes()
    lab.instances[name] = diskhaul.Instance(
        name=name, node=SERVED[number % len(SERVED)], state="down", runtime="none", disks=[diskhaul.Disk(path=disk, name="root")]
    )


@pytest.fixture
def nodes(plain_lab: Lab, requires: Callable[..., None]) -> Iterator[Nodes]:
    requires("ip", "mkfs.ext4", root=True)
    for number in range(INSTANCES):
        add_instance(plain_lab, number)
    with ExitStack() as stack:
        yield Nodes(plain_lab, stack, retry_s=5)


def of_beta(events: Path) -> dict[str, str]:
    """Instances whose disks are being sent from beta, or to it: which of both."""
    found = {}
    for line in events.read_text().splitlines() if events.exists() else ():
        told: dict[str, Any] = json.loads(line)
        if told.get("event") == "disk-progress" and "beta" in (told.get("source"), told.get("target")):
            found[told["instance"]] = "from" if told["source"] == "beta" else "to"
    return found


def listed(nodes: Nodes) -> dict[str, diskhaul.ExportRecord]:
    """The export of every instance that has one, as all nodes show them; fails where one is not whole, or not the only one."""
    records = diskhaul.list_exports(config=nodes.lab.cluster()).exports
    assert [record.problem for record in records if record.problem] == []
    assert [name for name, number in Counter(record.instance for record in records).items() if number > 1] == []
    return {record.instance: record for record in records}


def partials(nodes: Nodes) -> list[Path]:
    return [path for name in SERVED for path in nodes.lab.export_dir(name).glob("*/.*.partial")]


def test_a_fleet_outlives_a_node_and_is_complete_once_that_is_back(nodes: Nodes) -> None:
    lab, events = nodes.lab, nodes.lab.path / "events"
    served = nodes.serve_all()
    fleet = ("--events", str(events), "fleet", "export")
    asked = ("--all", "--to", "round-robin", "--plan", "nightly", "--retries", "2", "--backoff", "1")
    client = nodes.client(*fleet, *asked, *SPEED)
    until = time.monotonic() + LONG_S
    while set(of_beta(events).values()) != {"from", "to"}:
        assert time.monotonic() < until
        assert client.poll() is None, client.communicate()
        time.sleep(0.02)
    served["beta"].kill()
    code, document = ended(client)

    # What lay on beta and was not done has failed, and says why; all others are where the report says.
    assert code == 3, json.dumps(document)
    failed = {each["instance"]: each for each in document["members"] if each["state"] == "failed"}
    assert failed != {}
    for each in failed.values():
        assert each["source"] == "beta", each
        assert "beta" in each["error"]
        assert each["remedy"] == "bring back node beta, then resume"
        assert each["exit_code"] == 3
    done = {each["instance"]: each for each in document["members"] if each["state"] == "done"}
    assert set(done) | set(failed) == set(lab.instances)
    assert {name for name, instance in lab.instances.items() if instance.node != "beta"} <= set(done)
    before = listed(nodes)
    for name, each in done.items():
        assert (before[name].export_id, before[name].node) == (each["export_id"], each["target"])

    nodes.serve("beta")
    code, document = nodes.run("fleet", "export", "--resume", "--plan", "nightly")
    assert code == 4, json.dumps(document)  # what was exported without beta could not look there for what it superseded
    assert {each["instance"] for each in document["members"] if each["state"] == "done"} == set(lab.instances)
    after = listed(nodes)
    assert set(after) == set(lab.instances)
    for each in document["members"]:
        assert after[each["instance"]].export_id == each["export_id"]
        if each["instance"] in done:
            assert each["export_id"] == done[each["instance"]]["export_id"]  # not made again
            assert all("clean-up: node beta" in line for line in each["incomplete"])
        else:
            assert (each["exit_code"], each["incomplete"]) == (0, [])
    for name, record in after.items():
        lab.check_bytes_of_stopped(record, name)

    code, document = nodes.run("recover")
    assert code == 0, json.dumps(document)
    assert partials(nodes) == []
    assert Journal(lab.state_dir).unfinished() == []
    code, document = nodes.run("verify")
    assert code == 0, json.dumps(document)
