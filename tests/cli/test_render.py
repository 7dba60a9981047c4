from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from diskhaul.cli import render
from diskhaul.model import Disk, Instance, Node
from diskhaul.records import (
    DiskResult,
    ExportRecord,
    ExportResult,
    Finding,
    ImportResult,
    ListResult,
    Plan,
    PlannedDisk,
    RecoverResult,
    RemovalResult,
    VerifyResult,
)

HOSTILE = "evil\x1b[2J\x1b]0;pwned\x07\nrm -rf /\r\u202e"
GIB = 1 << 30

RECORD = ExportRecord(
    export_id="20260131T130500Z-1a2b3c4d",
    instance="web1.example.com",
    node="beta",
    store="store-1",
    path="/srv/beta/web1.example.com/20260131T130500Z-1a2b3c4d",
    created=datetime(2026, 1, 31, 13, 5, tzinfo=UTC),
    compress="zstd:1",
    consistency="stopped",
    disk_count=1,
    disk_bytes=10 * GIB,
    stored_bytes=GIB // 2,
)
PLAN = Plan(
    operation="export",
    run_id="run",
    cluster="lab",
    instance=Instance(name="web1.example.com", node="alpha", disks=[Disk(path=Path("/srv/web1.raw"))]),
    source=Node(name="alpha", export_dir=Path("/srv/alpha")),
    target=Node(name="beta", export_dir=Path("/srv/beta")),
    running=True,
    downtime="snapshot",
    steps=("stop web1.example.com", "snapshot disk 0"),
    disks=(
        PlannedDisk(
            index=0,
            label="disk 0 (/srv/web1.raw)",
            size=10 * GIB,
            data_bytes=2 * GIB,
            hole_bytes=8 * GIB,
            stored_bytes=GIB,
            snapshot="reflink",
        ),
        PlannedDisk(
            index=1,
            label="disk 1",
            size=GIB,
            data_bytes=GIB,
            hole_bytes=0,
            stored_bytes=GIB,
        ),
    ),
    free_bytes=100 * GIB,
    supersedes=(RECORD,),
)
RESULT = ExportResult(
    run_id="run",
    instance="web1.example.com",
    node="beta",
    plan=PLAN,
    export=RECORD,
    consistency="stopped",
    disks=(
        DiskResult(
            index=0,
            label="disk 0 (/srv/web1.raw)",
            size=10 * GIB,
            bytes_read=2 * GIB,
            bytes_skipped=8 * GIB,
            bytes_written=GIB // 2,
            data_bytes=GIB,
            zero_bytes=8 * GIB,
            free_bytes=GIB,
            seconds=4.0,
        ),
    ),
    timings={"shutdown": 1.25, "send": 4.0},
    removed=(replace(RECORD, export_id="20250131T130500Z-1a2b3c4d", node="delta"),),
)


def words(text: str) -> list[str]:
    """Lines with runs of spaces made one, to compare without counting columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_an_export_says_where_it_is_what_was_read_skipped_and_written_and_how_long_the_guest_was_down() -> None:
    assert words(render.export_text(RESULT)) == [
        "Exported web1.example.com to beta.",
        "export /srv/beta/web1.example.com/20260131T130500Z-1a2b3c4d",
        "id web1.example.com@20260131T130500Z-1a2b3c4d",
        "read 2.0 GiB of 10.0 GiB in 4.0 s (512.0 MiB/s)",
        "skipped 8.0 GiB of zeros and 1.0 GiB of free space; 8.0 GiB of it without being read",
        "written 512.0 MiB (20.0 to 1)",
        "consistency stopped (the guest was off)",
        "guest down 1.2 s",
        "removed web1.example.com@20250131T130500Z-1a2b3c4d on delta (superseded)",
    ]


def test_an_export_that_shares_its_disks_blocks_says_so_and_what_it_has_no_digests_of() -> None:
    disk = DiskResult(index=0, label="disk 0", size=10 * GIB, bytes_skipped=10 * GIB, bytes_shared=2 * GIB, zero_bytes=8 * GIB)
    result = replace(RESULT, export=replace(RECORD, digests=False), disks=(disk,), removed=())
    assert words(render.export_text(result))[3:8] == [
        "read 0 B of 10.0 GiB",
        "skipped 10.0 GiB not read; 8.0 GiB of zeros not stored",
        "shared 2.0 GiB with the disks: not copied",
        "written 0 B",
        "digests not yet: diskhaul verify web1.example.com@20260131T130500Z-1a2b3c4d",
    ]
    read = replace(result, export=RECORD, disks=(replace(disk, bytes_read=2 * GIB),), timings={"send": 1.0, "digest": 3.0})
    assert "read 2.0 GiB of 10.0 GiB in 4.0 s (512.0 MiB/s)" in words(render.export_text(read))


def test_an_export_that_never_stopped_the_guest_says_so_and_several_disks_are_a_table() -> None:
    second = DiskResult(index=1, label="disk 1", size=GIB, bytes_read=GIB, bytes_written=GIB)
    result = replace(RESULT, timings={}, consistency="crash", disks=(*RESULT.disks, second))
    text = words(render.export_text(result))
    assert "guest down not at all" in text
    assert "consistency crash (as after a power cut)" in text
    assert "disk size read skipped written time what" in text
    assert "1 1.0 GiB 1.0 GiB 0 B 1.0 GiB 0.00 s disk 1" in text


def test_a_dry_run_shows_the_plan_and_that_nothing_happened() -> None:
    text = render.export_text(replace(RESULT, export=None))
    assert text.startswith("Plan: export web1.example.com to beta\n")
    assert text.endswith("\nDry run: nothing was changed.")


def test_a_plan_shows_downtime_amounts_disks_room_and_numbered_steps() -> None:
    assert words(render.plan_text(PLAN)) == [
        "Plan: export web1.example.com to beta",
        "guest running",
        "downtime until the snapshots exist",
        "to read 3.0 GiB of 11.0 GiB",
        "to write about 2.0 GiB (5.5 to 1)",
        "room 100.0 GiB",
        "supersedes web1.example.com@20260131T130500Z-1a2b3c4d on beta",
        "disk size data holes stored snapshot what",
        "0 10.0 GiB 2.0 GiB 8.0 GiB 1.0 GiB reflink disk 0 (/srv/web1.raw)",
        "1 1.0 GiB 1.0 GiB 0 B 1.0 GiB none disk 1",
        "Steps:",
        "1. stop web1.example.com",
        "2. snapshot disk 0",
    ]


def test_a_plan_says_what_need_not_be_copied_and_counts_what_will_be_read() -> None:
    disks = (replace(PLAN.disks[0], shared=True, stored_bytes=0), PLAN.disks[1])
    now = words(render.plan_text(replace(PLAN, disks=disks)))
    assert now[3:6] == [
        "to read 3.0 GiB of 11.0 GiB",
        "to share 2.0 GiB, which need not be copied",
        "to write about 1.0 GiB (11.0 to 1)",
    ]
    later = words(render.plan_text(replace(PLAN, disks=disks, options={"digest": "later"})))
    assert later[3] == "to read 1.0 GiB of 11.0 GiB"


def test_an_import_says_where_each_disk_is() -> None:
    result = ImportResult(
        run_id="run",
        instance="web1",
        source="/srv/x",
        disks=(DiskResult(index=0, label="disk 0", size=GIB, bytes_written=1024),),
        targets={1: "/dev/vg/b", 0: "/dev/vg/a"},
    )
    assert words(render.import_text(result)) == [
        "Imported web1 from /srv/x.",
        "disk size written target",
        "0 1.0 GiB 1.0 KiB /dev/vg/a",
        "1 /dev/vg/b",
    ]
    dry = render.import_text(replace(result, dry_run=True, disks=()))
    assert dry.startswith("Would import web1 from /srv/x:\n")
    assert dry.endswith("Dry run: nothing was changed.")


def test_a_list_shows_each_export_and_what_is_wrong_with_it() -> None:
    broken = replace(RECORD, node="gamma", problem="torn")
    assert words(render.list_text(ListResult(exports=(RECORD, broken)))) == [
        "instance id node created layout consistency disks size stored state",
        "web1.example.com 20260131T130500Z-1a2b3c4d beta 2026-01-31 13:05:00Z diskhaul/zstd:1 stopped 1 10.0 GiB 512.0 MiB valid",
        "web1.example.com 20260131T130500Z-1a2b3c4d gamma 2026-01-31 13:05:00Z diskhaul/zstd:1 stopped 1 10.0 GiB 512.0 MiB torn",
    ]
    assert render.list_text(ListResult(exports=())) == "No exports."
    unreachable = ListResult(exports=(), unreachable=("beta is offline",))
    assert render.list_text(unreachable) == "No exports on the nodes that answered."
    later = replace(RECORD, digests=False)
    assert words(render.list_text(ListResult(exports=(later,))))[1].endswith(" 512.0 MiB valid; digests: not yet")
    assert "digests" not in render.details_text(RECORD, {})
    assert words(render.details_text(later, {}))[-1] == (
        "digests not yet: diskhaul verify web1.example.com@20260131T130500Z-1a2b3c4d"
    )


def test_details_show_the_whole_manifest_by_key_path() -> None:
    text = words(render.details_text(RECORD, {"version": 1, "disks": [{"file": "disk-0.raw.zst", "size": 5}], "empty": None}))
    assert text[0] == "web1.example.com@20260131T130500Z-1a2b3c4d"
    assert text[-4:] == ["Manifest:", "version 1", "disks[0].file disk-0.raw.zst", "disks[0].size 5"]


def test_a_verification_names_disk_and_offset_of_each_finding_and_counts() -> None:
    finding = Finding(path="/srv/x", file="disk-0.raw.zst", disk=0, offset=4194304, problem="digest differs")
    result = VerifyResult(checked=(RECORD, RECORD), findings=(finding,), bytes_checked=GIB)
    assert words(render.verify_text(result)) == [
        "/srv/x: disk 0 offset 4194304: digest differs",
        "Checked 2 exports, 1.0 GiB: 1 export damaged.",
    ]
    assert render.verify_text(replace(result, findings=())) == "Checked 2 exports, 1.0 GiB: no damage found."
    recorded = VerifyResult(checked=(RECORD,), recorded=(RECORD,), bytes_checked=GIB)
    assert words(render.verify_text(recorded)) == [
        "Recorded the digests of web1.example.com@20260131T130500Z-1a2b3c4d on beta; there had been none to compare with.",
        "Checked 1 export, 1.0 GiB: no damage found.",
    ]
    assert render.verify_text(VerifyResult(checked=())) == "Checked 0 exports, 0 B: nothing to check."


def test_a_removal_says_what_went_and_what_stayed() -> None:
    result = RemovalResult(removed=(RECORD,), kept=(replace(RECORD, node="gamma"),))
    name = "web1.example.com@20260131T130500Z-1a2b3c4d"
    assert render.removal_text(result).splitlines() == [f"Removed {name} on beta", f"Kept {name} on gamma"]
    assert render.removal_text(replace(result, dry_run=True)).splitlines() == [
        f"Would remove {name} on beta",
        f"Would keep {name} on gamma",
        "Dry run: nothing was changed.",
    ]
    assert render.removal_text(RemovalResult()) == "Nothing to remove."


def test_a_recovery_says_what_was_done() -> None:
    assert render.recover_text(RecoverResult(done=("started web1", "removed a snapshot"))) == "started web1\nremoved a snapshot"
    assert render.recover_text(RecoverResult()) == "Nothing to recover."


HOSTILE_RECORD = replace(RECORD, instance=HOSTILE, node=HOSTILE, path=HOSTILE, problem=HOSTILE, export_id=HOSTILE, layout=HOSTILE)
HOSTILE_DISK = DiskResult(index=0, label=HOSTILE, size=1, error=HOSTILE)
HOSTILE_PLAN = replace(
    PLAN, operation=HOSTILE, steps=(HOSTILE,), disks=(replace(PLAN.disks[1], label=HOSTILE, snapshot=HOSTILE),)
)
HOSTILE_EXPORT = replace(
    RESULT, instance=HOSTILE, node=HOSTILE, export=HOSTILE_RECORD, disks=(HOSTILE_DISK, HOSTILE_DISK), removed=(HOSTILE_RECORD,)
)


@pytest.mark.parametrize(
    "text",
    [
        render.export_text(HOSTILE_EXPORT),
        render.export_text(replace(HOSTILE_EXPORT, export=None, plan=HOSTILE_PLAN)),
        render.plan_text(replace(HOSTILE_PLAN, supersedes=(HOSTILE_RECORD,))),
        render.import_text(ImportResult(run_id="", instance=HOSTILE, source=HOSTILE, targets={0: HOSTILE})),
        render.list_text(ListResult(exports=(HOSTILE_RECORD,))),
        render.details_text(HOSTILE_RECORD, {HOSTILE: HOSTILE, "list": [{HOSTILE: [HOSTILE]}]}),
        render.verify_text(
            VerifyResult(checked=(HOSTILE_RECORD,), findings=(Finding(path=HOSTILE, file=HOSTILE, problem=HOSTILE),))
        ),
        render.removal_text(RemovalResult(removed=(HOSTILE_RECORD,), kept=(HOSTILE_RECORD,))),
        render.recover_text(RecoverResult(done=(HOSTILE,))),
    ],
    ids=["export", "dry run", "plan", "import", "list", "show", "verify", "remove", "recover"],
)
def test_texts_from_stores_cannot_act_on_the_terminal_or_start_a_line(text: str) -> None:
    assert r"evil\x1b[2J\x1b]0;pwned\x07\nrm -rf /\r\u202e" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("rm") for line in text.split("\n"))
