from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from diskhaul.cli.failures import exit_code, problems
from diskhaul.cli.json_output import dumps, error_document, jsonable
from diskhaul.errors import AmbiguousNameError, LockTimeoutError, OperationFailedError, StorageError, VerificationError
from diskhaul.model import Disk, Instance
from diskhaul.records import DiskResult, Finding, ImportResult


def test_secrets_of_an_instance_never_come_out() -> None:
    instance = Instance(name="web1", node="alpha", private={"password": "hunter2"}, disks=[Disk(path=Path("/srv/x"))])
    document = jsonable({"plan": {"instance": instance}})
    assert "hunter2" not in dumps(document)
    assert "private" not in document["plan"]["instance"]
    assert document["plan"]["instance"]["disks"][0]["path"] == "/srv/x"


def test_every_type_of_a_result_has_a_json_form() -> None:
    class Colour(Enum):
        RED = "red"

    values = {
        "moment": datetime(2026, 1, 31, tzinfo=UTC),
        "naive": datetime(2026, 1, 31),
        "nan": math.nan,
        "infinite": math.inf,
        "enum": Colour.RED,
        "set": {1},
        "bytes": b"x",
        5: (1, 2.5, None, True),
        "result": ImportResult(run_id="r", instance="i", source="s", disks=(DiskResult(index=0, label="l"),), targets={0: "/x"}),
    }
    document = json.loads(dumps(values))
    assert document["moment"] == document["naive"] == "2026-01-31T00:00:00+00:00"
    assert document["nan"] is document["infinite"] is None
    assert (document["enum"], document["set"], document["bytes"]) == ("red", [1], "b'x'")
    assert document["5"] == [1, 2.5, None, True]
    assert document["result"]["disks"][0]["label"] == "l"
    assert document["result"]["targets"] == {"0": "/x"}


def test_hostile_texts_come_out_as_plain_ascii_on_one_line_and_unharmed() -> None:
    hostile = "\x1b[2J\n\u202e\udcff\u2028"
    text = dumps({"problem": hostile})
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["problem"] == hostile


def document_of(error: BaseException) -> dict[str, object]:
    document = error_document(error, problems(error), exit_code(error))["error"]
    assert isinstance(document, dict)
    return document


def test_errors_bring_their_type_problems_exit_code_and_attributes() -> None:
    ambiguous = document_of(AmbiguousNameError("instance", "web", ["web.b", "web.a"]))
    assert ambiguous["type"] == "AmbiguousNameError"
    assert ambiguous["exit_code"] == 2
    assert ambiguous["candidates"] == ["web.a", "web.b"]
    assert ambiguous["problems"] == [ambiguous["message"]]

    lock = document_of(LockTimeoutError("instance/web1", "pid 7", 3.0))
    assert (lock["exit_code"], lock["lock"], lock["holder"]) == (5, "instance/web1", "pid 7")

    storage = document_of(StorageError("read failed", path="/srv/x", offset=4096))
    assert (storage["exit_code"], storage["path"], storage["offset"]) == (3, "/srv/x", 4096)

    finding = Finding(path="/x", file="disk-0.raw", problem="digest differs", disk=0, offset=8)
    wrong = document_of(VerificationError("damaged", findings=[finding]))
    assert wrong["exit_code"] == 6
    assert wrong["findings"] == [
        {"path": "/x", "file": "disk-0.raw", "problem": "digest differs", "disk": 0, "offset": 8, "file_offset": None}
    ]
    assert wrong["problems"] == ["damaged", "/x: disk 0 offset 8: digest differs"]


def test_a_failed_operation_brings_its_result_and_what_went_wrong_while_cleaning_up() -> None:
    result = ImportResult(run_id="r", instance="web1", source="s")
    error = OperationFailedError("disk export failed", parts=["disk export: disk(s) 0, 2"], result=result)
    error.add(OSError("busy"), "removing a snapshot")
    document = document_of(error)
    assert document["parts"] == ["disk export: disk(s) 0, 2"]
    assert document["also"] == ["busy"]
    assert isinstance(document["result"], dict)
    assert document["result"]["instance"] == "web1"


def test_unexpected_errors_are_told_with_their_type() -> None:
    document = document_of(KeyError("x"))
    assert (document["type"], document["exit_code"]) == ("KeyError", 1)
