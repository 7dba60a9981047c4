"""What is refused before anything is begun, each in one clear line, and that no secret is in it."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.s3 import ADMIN, READER, S3Server
from tests.s3_proxy import Fate, proxy_to

from diskhaul import certificates
from diskhaul.errors import ConfigurationError, StorageError, UnreachableNodeError
from diskhaul.model import Node
from diskhaul.testing.conformance.transfers import INSTANCE, NEW, content, make
from diskhaul_plugins.transfers.object_store.credentials import Credentials, read_credentials
from diskhaul_plugins.transfers.object_store.settings import Settings, place_of
from diskhaul_plugins.transfers.object_store.signing import signed_headers
from diskhaul_plugins.transfers.object_store.transfer import ObjectTransfer

MakeTransfer = Callable[..., ObjectTransfer]


def use(monkeypatch: pytest.MonkeyPatch, key: tuple[str, str]) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key[1])


def unreachable(transfer: ObjectTransfer, node: Node) -> str:
    with pytest.raises(UnreachableNodeError) as caught:
        transfer.store(node)
    assert caught.value.node == node.name
    line = str(caught.value)
    assert "\n" not in line
    assert ADMIN[1] not in line
    return line


# --- stores that cannot be used -------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_named(transfer: ObjectTransfer, node: Node) -> None:
    line = unreachable(transfer, replace(node, options={**node.options, "bucket": "not-there"}))
    assert "bucket not-there: does not exist: create it, or correct nodes.alpha.options.bucket" in line


@pytest.mark.parametrize("key", [("nobodys-key", ADMIN[1]), (ADMIN[0], "wrong-secret")])
def test_credentials_that_are_not_accepted_are_said_to_be_where_they_are_from(
    transfer: ObjectTransfer, node: Node, monkeypatch: pytest.MonkeyPatch, key: tuple[str, str]
) -> None:
    use(monkeypatch, key)
    line = unreachable(transfer, node)
    assert "does not accept the credentials" in line
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment" in line
    assert key[1] not in line


def test_an_endpoint_where_nobody_listens_does_not_answer(make_transfer: MakeTransfer, node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    down = replace(node, options={**node.options, "endpoint": f"http://127.0.0.1:{port}"})
    line = unreachable(make_transfer(retry_s=0), down)
    assert f"http://127.0.0.1:{port} does not answer: connection refused" in line
    assert "nodes.alpha.options.endpoint" in line


def test_a_key_that_may_only_read_is_refused_for_writing_and_does_for_reading(
    transfer: ObjectTransfer, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(transfer.store(node), NEW)
    use(monkeypatch, READER)
    store = transfer.store(node)
    assert list(store.check(INSTANCE, for_writing=False)) == []
    (problem,) = store.check(INSTANCE, for_writing=True)
    assert "cannot put an object: AccessDenied" in problem
    assert "do not allow it" in problem
    assert "\n" not in problem
    assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"


def test_a_store_without_conditional_writes_is_refused_for_writing(
    transfer: ObjectTransfer, node: Node, server: S3Server, bucket: str
) -> None:
    with proxy_to(server.port) as proxy:
        proxy.rule = lambda method, path: "without conditions"
        store = transfer.store(replace(node, options={**node.options, "endpoint": proxy.endpoint}))
        (problem,) = store.check(INSTANCE, for_writing=True)
    assert "replaces objects in spite of If-None-Match" in problem
    assert server.keys(bucket) == [], "what it was found out with is gone"


def test_a_server_is_trusted_by_the_configured_authority_alone(
    make_transfer: MakeTransfer, node: Node, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    certificates.make_authority(tmp_path / "certs", "lab")
    certificates.issue(tmp_path / "certs", "store", dns=["localhost"])
    whole = random.Random(5).randbytes(11 << 20)
    with proxy_to(server.port, tmp_path / "certs/store.pem") as proxy:
        there = replace(node, options={**node.options, "endpoint": proxy.endpoint})
        assert "certificate" in unreachable(make_transfer(retry_s=0, allow_http=False), there)
        options = {"ca_file": str(tmp_path / "certs/ca.crt"), "allow_http": False, "part_mib": 5}
        store = make_transfer(**options).store(there)
        make(store, NEW, {"disk-0.raw.zst": whole})
        assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole
    assert len([path for _, path in proxy.seen if "partNumber=" in path]) == 3
    with pytest.raises(ConfigurationError, match=r"ca_file: .*missing.crt: No such file"):
        make_transfer(ca_file=str(tmp_path / "missing.crt")).store(node)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "AWS_PROXY_URL"])
def test_a_proxy_of_the_environment_is_not_used(
    transfer: ObjectTransfer, node: Node, server: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    store = transfer.store(replace(node, options={**node.options, "endpoint": f"http://{host}:{server.port}"}))
    make(store, NEW)
    assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_CONDITIONAL_PUT", "disabled"),
        ("AWS_UNSIGNED_PAYLOAD", "true"),
        ("AWS_REQUEST_PAYER", "true"),
        ("AWS_SKIP_SIGNATURE", "true"),
        ("AWS_REGION", "mars-1"),
    ],
)
def test_what_the_environment_says_of_other_programs_requests_changes_none_of_ours(
    transfer: ObjectTransfer, node: Node, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    store = transfer.store(node)
    assert list(store.check(INSTANCE, for_writing=True)) == []
    make(store, NEW)
    with pytest.raises(StorageError, match="exists already"):
        make(store, NEW)


def test_looking_whether_it_can_be_written_leaves_nothing(
    transfer: ObjectTransfer, node: Node, server: S3Server, bucket: str
) -> None:
    assert list(transfer.store(node).check(INSTANCE, for_writing=True)) == []
    assert server.keys(bucket) == []
    assert server.uploads(bucket) == []


@pytest.mark.parametrize(
    ("method", "part", "said"),
    [
        ("PUT", ".diskhaul-probe-", "cannot put an object"),
        ("POST", "?uploads=", "cannot begin an upload"),
        ("DELETE", "?uploadId=", "cannot abort an upload"),
    ],
)
def test_whatever_looking_fails_at_is_named_and_no_object_stays(
    transfer: ObjectTransfer, node: Node, server: S3Server, bucket: str, method: str, part: str, said: str
) -> None:
    asked: list[str] = []

    def rule(asking: str, path: str) -> Fate:
        if asking != method or part not in path:
            return "pass"
        asked.append(path)
        return "pass" if method == "PUT" and len(asked) == 1 else "forbid"  # of the puts the one on a condition

    with proxy_to(server.port) as proxy:
        proxy.rule = rule
        store = transfer.store(replace(node, options={**node.options, "endpoint": proxy.endpoint}))
        (problem,) = store.check(INSTANCE, for_writing=True)
    assert said in problem
    assert "AccessDenied" in problem
    assert server.keys(bucket) == []


# --- options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retrys": 3}, "backend_options.object.'retrys': is not an option of object"),
        ({"retry_s": "long"}, "backend_options.object.retry_s: must be a number"),
        ({"retry_s": True}, "backend_options.object.retry_s: must be a number"),
        ({"part_mib": 4}, "backend_options.object.part_mib: must be from 5 to 5120"),
        ({"part_mib": 8.5}, "backend_options.object.part_mib: must be a whole number"),
        ({"allow_http": "yes"}, "backend_options.object.allow_http: must be true or false"),
        ({"ca_file": ""}, "backend_options.object.ca_file: must be text"),
        ({"secret_access_key": "x"}, "backend_options.object.'secret_access_key': is not an option of object"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(make_transfer: MakeTransfer, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_transfer(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bucket": None}, "options.bucket: is missing"),
        ({"bucket": ""}, "options.bucket: '' cannot be the name of a bucket"),
        ({"bucket": "a/b"}, "options.bucket: 'a/b' cannot be"),
        ({"bucket": 7}, "options.bucket: must be text"),
        ({"prefix": "a/../b"}, "options.prefix: 'a/../b' is not like"),
        ({"prefix": "a b"}, "options.prefix: 'a b' is not like"),
        ({"region": "Mars"}, "options.region: 'Mars' is not like"),
        ({"addressing": "dns"}, 'options.addressing: must be "path" or "virtual"'),
        ({"endpoint": "s3.example.com"}, "options.endpoint: 's3.example.com' is not like"),
        ({"endpoint": "https://user:secret@s3.example.com"}, "options.endpoint: what stands there is not like"),
        ({"endpoint": "https://s3.example.com/bucket"}, "/bucket' is not like"),
        ({"endpoint": "http://s3.example.com"}, "is not encrypted: use https, or set backend_options.object.allow_http = true"),
    ],
)
def test_a_place_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    given = {key: value for key, value in ({"bucket": "exports"} | options).items() if value is not None}
    with pytest.raises(ConfigurationError) as caught:
        place_of(Node(name="alpha", options=given), Settings())
    assert said in str(caught.value)


def test_places_are_the_same_however_they_are_written() -> None:
    def identity(**options: str) -> str:
        return place_of(Node(name="alpha", options={"bucket": "exports", **options}), Settings()).identity

    assert identity(endpoint="https://S3.example.com:443/", prefix="/a/b/") == identity(
        endpoint="https://s3.example.com", prefix="a/b"
    )
    assert identity(endpoint="https://s3.example.com") != identity(endpoint="https://s3.example.com:8443")
    assert identity(prefix="a") != identity(prefix="b")
    assert identity() == identity(endpoint="https://s3.us-east-1.amazonaws.com")
    virtual = place_of(Node(name="alpha", options={"bucket": "exports", "addressing": "virtual"}), Settings())
    assert virtual.url == "https://exports.s3.us-east-1.amazonaws.com"


# --- credentials ----------------------------------------------------------------------------------------------------------

_FILE = "[default]\naws_access_key_id = key\naws_secret_access_key = very-secret\n[other]\naws_session_token = token\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(_FILE)
    path.chmod(0o600)
    return path


def test_credentials_come_from_a_file_or_the_environment_and_are_never_shown(file: Path) -> None:
    found = read_credentials(file, "default", {"AWS_SESSION_TOKEN": "of another key"})
    assert (found.key_id, found.secret, found.token) == ("key", "very-secret", None)
    assert "very-secret" not in repr(found)
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    found = read_credentials(None, "default", environment)
    assert (found.key_id, found.secret, found.token) == ("a", "b", "c")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606])
def test_a_credentials_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"others can read {file}: chmod 600 it"):
        read_credentials(file, "default", {})


@pytest.mark.parametrize("profile", ["missing", "other"])
def test_a_profile_that_has_no_key_is_refused(file: Path, profile: str) -> None:
    with pytest.raises(ConfigurationError, match=profile) as caught:
        read_credentials(file, profile, {})
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["very-secret", "[default]\nvery-secret\n", "[default]\naws_access_key_id = a\nx"])
def test_a_file_that_is_none_is_refused_without_showing_it(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_credentials(file, "default", {})
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_without_credentials_it_is_said_where_they_belong() -> None:
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY not set in the environment"):
        read_credentials(None, "default", {"AWS_ACCESS_KEY_ID": "key"})


def test_a_key_in_a_file_is_used_and_its_environment_s_token_is_not(
    make_transfer: MakeTransfer, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"[backups]\naws_access_key_id = {ADMIN[0]}\naws_secret_access_key = {ADMIN[1]}\n")
    path.chmod(0o600)
    use(monkeypatch, ("nobodys-key", "wrong"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token that goes with another key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = make_transfer(credentials_file=str(path), profile="backups").store(node)
    make(store, NEW)
    assert list(store.exports(INSTANCE)) == [NEW]


def test_a_request_is_signed_as_in_amazon_s_own_example() -> None:
    signed = signed_headers(
        "GET",
        "https://examplebucket.s3.amazonaws.com/test.txt",
        {},
        {"range": "bytes=0-9"},
        b"",
        credentials=Credentials("the example", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        region="us-east-1",
        now=datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert signed["authorization"].endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_without_obstore_it_is_said_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "import diskhaul\n"
        "nodes = [diskhaul.Node(name='alpha', options={'bucket': 'exports'})]\n"
        "cluster = diskhaul.Cluster(name='lab', state_dir=sys.argv[1], backends={'transfer': 'object'}, nodes=nodes)\n"
        "try: print(diskhaul.list_exports(config=cluster).unreachable)\n"
        "except diskhaul.DiskhaulError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "needs obstore: pip install 'diskhaul[object]'" in said
