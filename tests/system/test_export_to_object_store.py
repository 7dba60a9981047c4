"""Whole exports at the command line into a bucket of a server that is a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.s3 import ADMIN, READER, S3Server, environment
from tests.s3_proxy import S3Proxy, proxy_to

LIMIT_S = 120
MIB = 1 << 20
INSTANCE = "web1.example.com"
PREFIX = "backups/lab"
DISK_SIZE = 64 * MIB

CONFIGURATION = """
[cluster]
name = "lab"
[defaults]
chunk_size = 262144
[backends]
transfer = "object"
[backend_options.object]
allow_http = true
part_mib = 5
memory_mib = 10
retry_s = {retry_s}
[nodes.alpha]
options = {{ bucket = "{bucket}", endpoint = "{endpoint}", prefix = "{prefix}/alpha" }}
[nodes.beta]
options = {{ bucket = "{bucket}", endpoint = "{endpoint}", prefix = "{prefix}" }}
[nodes.gamma]
options = {{ bucket = "{bucket}", endpoint = "{endpoint}/", prefix = "/{prefix}/" }}
[instances."{instance}"]
node = "alpha"
runtime = "command"
[instances."{instance}".runtime_options]
start = ["touch", "running"]
stop = ["sh", "-c", "echo stopped >> log; rm -f running"]
status = ["test", "-e", "running"]
status_off = [1]
[[instances."{instance}".disks]]
path = "disk.raw"
"""


class Lab:
    """A guest with an ext4 disk, a server, and a proxy before it through which everything goes."""

    def __init__(self, work: Path, server: S3Server, proxy: S3Proxy) -> None:
        self.work, self.server, self.proxy = work, server, proxy
        self.bucket = f"exports-{uuid.uuid4().hex[:12]}"
        server.make_bucket(self.bucket)
        (work / "running").touch()
        self.configure()

    def configure(self, *, bucket: str = "", retry_s: float = 20, endpoint: str = "") -> None:
        bucket, endpoint = bucket or self.bucket, endpoint or self.proxy.endpoint
        text = CONFIGURATION.format(bucket=bucket, retry_s=retry_s, endpoint=endpoint, prefix=PREFIX, instance=INSTANCE)
        (self.work / "cluster.toml").write_text(text)

    def start(self, *arguments: str, key: tuple[str, str] = ADMIN) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "diskhaul", "--config", "cluster.toml", *arguments],
            cwd=self.work,
            env=environment(key) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, key: tuple[str, str] = ADMIN) -> str:
        """Run a command, which has to end with `code`; return what it printed."""
        process = self.start(*arguments, key=key)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, out + err
        assert not key[1] or key[1] not in out + err
        return out + err

    def export(self, *more: str, node: str = "beta", code: int = 0, key: tuple[str, str] = ADMIN) -> str:
        return self.run("export", "web1", "--node", node, "--long-sleep", *more, code=code, key=key)

    def listed(self) -> list[tuple[str, str]]:
        """Node and id of each export that is listed, all of which are valid."""
        found: list[dict[str, Any]] = json.loads(self.run("--json", "list", "web1"))["exports"]
        assert [each["problem"] for each in found] == [""] * len(found)
        return [(each["node"], each["export_id"]) for each in found]

    @property
    def guest_runs(self) -> bool:
        return (self.work / "running").exists()

    @property
    def guest_was_touched(self) -> bool:
        return (self.work / "log").exists()

    def objects(self) -> list[str]:
        return self.server.keys(self.bucket)

    def left_in_the_bucket(self) -> tuple[list[str], list[str]]:
        """Objects, and uploads that were not ended, as the server itself lists them."""
        return self.objects(), self.server.uploads(self.bucket)


def make_disk(path: Path) -> None:
    """An ext4 filesystem with files in it that do not compress, and some that do."""
    files = path.with_name("files")
    files.mkdir()
    generator = random.Random(11)
    for number in range(4):
        (files / f"noise-{number}").write_bytes(generator.randbytes(5 * MIB))
    (files / "text").write_text("text that can be compressed\n" * 100_000)
    with path.open("wb") as disk:
        disk.truncate(DISK_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(files), str(path)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """One for all; tests that end it start it again."""
    work = Path(tempfile.mkdtemp(prefix="diskhaul-s3-"))
    try:
        running = S3Server(work / "server")
        try:
            yield running
        finally:
            running.close()
    finally:
        shutil.rmtree(work)


@pytest.fixture
def lab(server: S3Server, tmp_path: Path, requires: Callable[..., None]) -> Iterator[Lab]:
    requires("mkfs.ext4", "e2fsck")
    make_disk(tmp_path / "disk.raw")
    with proxy_to(server.port) as proxy:
        yield Lab(tmp_path, server, proxy)


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_an_export_comes_back_byte_for_byte_and_can_be_removed(lab: Lab, compress: str) -> None:
    lab.export("--compress", compress, "--events", "events")
    assert lab.guest_runs
    ((node, export_id),) = lab.listed()
    assert node == "beta"
    suffix = ".zst" if compress != "none" else ""
    names = ["disk-0.chunks", f"disk-0.raw{suffix}", "manifest.json"]
    assert lab.left_in_the_bucket() == ([f"{PREFIX}/{INSTANCE}/{export_id}/{name}" for name in names], [])
    assert len([path for _, path in lab.proxy.seen if "partNumber=" in path]) >= 5, "it went in parts"

    assert export_id in lab.run("show", f"web1@{export_id}")
    assert "no damage found" in lab.run("verify", "web1")
    lab.run("import", f"web1@{export_id}", "--to-dir", "back")
    (restored,) = (lab.work / "back").glob("*.raw")
    assert restored.read_bytes() == (lab.work / "disk.raw").read_bytes()
    subprocess.run(["e2fsck", "-fn", str(restored)], check=True, capture_output=True)
    manifest = lab.server.get(lab.bucket, f"{PREFIX}/{INSTANCE}/{export_id}/manifest.json").decode()
    for text in (manifest, (lab.work / "events").read_text()):
        assert ADMIN[0] not in text
        assert ADMIN[1] not in text
    lab.run("remove", f"web1@{export_id}")
    assert lab.left_in_the_bucket() == ([], [])


def test_a_new_export_replaces_earlier_ones_also_of_a_node_that_has_the_same_place(lab: Lab) -> None:
    lab.export(node="alpha")
    lab.export(node="gamma")
    lab.export(node="beta")
    ((node, _),) = lab.listed()  # beta and gamma are two names of one place
    assert node == "beta"
    assert "no damage found" in lab.run("verify", "web1")
    assert len(lab.objects()) == 3
    config = lab.work / "cluster.toml"
    config.write_text(config.read_text().replace("[backends]", '[backends]\ncleanup = "none"'))
    lab.export(node="beta")
    lab.export(node="alpha")
    assert len(lab.objects()) == 9
    newest = max(export_id for _, export_id in lab.listed())
    lab.run("prune", "web1", "--keep-last", "1")
    assert lab.listed() == [("alpha", newest)]
    assert [newest in key for key in lab.objects()] == [True] * 3
    assert lab.server.uploads(lab.bucket) == []


def test_a_byte_that_changed_in_the_store_is_found_and_named(lab: Lab) -> None:
    lab.export()
    (key,) = (key for key in lab.objects() if key.endswith(".raw.zst"))
    content = bytearray(lab.server.get(lab.bucket, key))
    content[len(content) // 2] ^= 1
    lab.server.put(lab.bucket, key, bytes(content))
    said = lab.run("verify", "web1", code=6)
    assert "disk 0" in said
    assert "offset" in said
    said = lab.run("import", "web1", "--to-dir", "back", code=6)
    assert "disk 0" in said
    assert "offset" in said


# --- killed ---------------------------------------------------------------------------------------------------------------

_MOMENTS = {
    "when it has said that it began": ("after", "PUT", "/begun"),
    "before an upload is begun": ("before", "POST", ".raw.zst?uploads="),
    "when an upload was begun, and is not noted": ("after", "POST", ".raw.zst?uploads="),
    "when an upload is noted": ("after", "PUT", "/upload-"),
    "before the first part": ("before", "PUT", "partNumber=1&"),
    "after the third part": ("after", "PUT", "partNumber=3&"),
    "before the upload is completed": ("before", "POST", "?uploadId="),
    "when the upload was completed": ("after", "POST", "?uploadId="),
    "while it is read back": ("before", "GET", "disk-0.raw.zst"),
    "before it is published": ("before", "PUT", "/manifest.json"),
}


def kill_at(lab: Lab, when: str, method: str, part: str) -> None:
    """Export, and kill -9 the process at the first request that fits."""
    process = lab.start("export", "web1", "--node", "beta", "--long-sleep")
    met = threading.Event()

    def strike(asked: str, path: str) -> None:
        if asked == method and part in path and not met.is_set():
            met.set()
            process.kill()
            process.wait()

    def rule(asked: str, path: str) -> Any:
        strike(asked, path)
        return "lose the request" if met.is_set() else "pass"

    if when == "before":
        lab.proxy.rule = rule
    else:
        lab.proxy.after = strike
    process.communicate(timeout=LIMIT_S)
    assert met.is_set()
    assert process.returncode == -9
    lab.proxy.rule, lab.proxy.after = (lambda method, path: "pass"), (lambda method, path: None)


@pytest.mark.parametrize("moment", _MOMENTS)
def test_an_export_that_is_killed_is_not_listed_and_recover_leaves_nothing_of_it(lab: Lab, moment: str) -> None:
    kill_at(lab, *_MOMENTS[moment])
    assert lab.listed() == []
    if moment in ("when an upload is noted", "after the third part", "when an upload was begun, and is not noted"):
        assert lab.server.uploads(lab.bucket) != [], "there is something to be aborted"
    lab.run("recover")
    assert lab.guest_runs
    assert lab.listed() == []
    assert lab.left_in_the_bucket() == ([], [])


def test_an_export_that_is_killed_when_it_was_published_is_whole_and_kept(lab: Lab) -> None:
    kill_at(lab, "after", "PUT", "/manifest.json")
    before = lab.listed()
    assert len(before) == 1
    lab.run("recover")
    assert lab.listed() == before
    assert "no damage found" in lab.run("verify", "web1")
    keys, uploads = lab.left_in_the_bucket()
    assert len(keys) == 3
    assert uploads == []


# --- servers that fail ----------------------------------------------------------------------------------------------------


def at_the_third_part(lab: Lab, act: Callable[[], object]) -> None:
    """Have `act` called once, when the third part is about to be passed on to the server."""
    once = threading.Lock()

    def rule(method: str, path: str) -> Any:
        if "partNumber=3&" in path and once.acquire(blocking=False):
            act()
            return "lose the request"
        return "pass"

    lab.proxy.rule = rule


def test_a_server_that_is_killed_and_started_again_in_the_middle_does_not_fail_the_export(lab: Lab) -> None:
    def restart() -> None:
        lab.server.close()
        lab.server.start()

    at_the_third_part(lab, restart)
    lab.configure(retry_s=90)
    lab.export()
    assert lab.guest_runs
    assert "no damage found" in lab.run("verify", "web1")
    assert lab.server.uploads(lab.bucket) == []


def test_a_server_that_stays_away_fails_the_export_the_guest_runs_and_recover_cleans_up(lab: Lab) -> None:
    at_the_third_part(lab, lab.server.close)
    lab.configure(retry_s=1)
    said = lab.export(code=3)
    assert lab.guest_runs
    assert "does not answer" in said
    lab.server.start()
    assert lab.listed() == []
    lab.run("recover")
    assert lab.left_in_the_bucket() == ([], [])


def test_a_manifest_that_the_store_takes_after_the_export_has_failed_is_found_by_recover(lab: Lab) -> None:
    lab.proxy.rule = lambda method, path: "lose the request" if method == "PUT" and "manifest.json" in path else "pass"
    lab.configure(retry_s=1)
    said = lab.export(code=3)
    assert "may take it yet: 'diskhaul recover' looks again" in said
    assert lab.guest_runs
    assert lab.left_in_the_bucket() == ([], [])
    (late,) = {path for method, path in lab.proxy.seen if method == "PUT" and "manifest.json" in path}
    lab.server.put(lab.bucket, late.split("/", 2)[2], b"{}")
    lab.proxy.rule = lambda method, path: "pass"
    assert "was removed" in lab.run("recover")
    assert lab.left_in_the_bucket() == ([], [])


# --- refused before the guest is touched ----------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_before_the_guest_is_touched(lab: Lab) -> None:
    assert "cannot put an object: AccessDenied" in lab.export(code=2, key=READER)
    assert "does not accept the credentials" in lab.export(code=2, key=(ADMIN[0], "wrong-secret"))
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set" in lab.export(code=2, key=("", ""))
    lab.configure(bucket="not-there")
    assert "bucket not-there: does not exist" in lab.export(code=2)
    lab.configure(endpoint="http://127.0.0.1:1", retry_s=0)
    assert "http://127.0.0.1:1 does not answer: connection refused" in lab.export(code=2)
    assert lab.guest_runs
    assert not lab.guest_was_touched
    assert lab.left_in_the_bucket() == ([], [])
