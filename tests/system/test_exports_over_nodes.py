"""Exports on several nodes: what a new one supersedes, what it leaves alone, who waits for whom, what can be done with them."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.events import Event, ExportRemoved, LockWaiting, StageStarted

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
OTHER = "db1.example.com"
MakeUnchanged = Callable[["Lab"], "Unchanged"]
PATIENCE_S = 60.0


def keeping(lab: Lab, **more: Any) -> diskhaul.Cluster:
    """The cluster with a clean-up that removes nothing."""
    return lab.cluster(backends={"cleanup": "none"}, **more)


def exported(result: diskhaul.ExportResult) -> diskhaul.ExportRecord:
    assert result.export is not None
    return result.export


@pytest.fixture
def bind_mount() -> Iterator[Callable[[Path, Path], None]]:
    """Show one directory in a second place, as nodes do that mount the same network filesystem."""
    mounted: list[Path] = []

    def bind(source: Path, target: Path) -> None:
        subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
        mounted.append(target)

    yield bind
    for target in reversed(mounted):
        subprocess.run(["umount", str(target)], check=True)


# --- what a new export supersedes -------------------------------------------------------------------------------------


def test_a_new_export_leaves_exactly_itself_over_all_nodes(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    lab.add_guest(OTHER, running=False)
    earlier = [exported(lab.export(node=node, config=keeping(lab))) for node in ("alpha", "beta", "delta")]
    of_the_other = exported(lab.export(OTHER, node="beta"))
    check = unchanged(lab)
    events: list[Event] = []

    result = lab.export(node="gamma", on_event=events.append)

    assert result.exit_code == 0
    assert lab.listed() == [("gamma", exported(result).export_id)]
    assert {record.export_id for record in result.removed} == {record.export_id for record in earlier}
    assert {(e.node, e.export_id) for e in events if isinstance(e, ExportRemoved)} == {
        (record.node, record.export_id) for record in earlier
    }
    assert {record.export_id for record in result.plan.supersedes} == {record.export_id for record in earlier}
    assert lab.listed(OTHER) == [("beta", of_the_other.export_id)]
    lab.check_bytes_of_stopped(exported(result))
    check.check(but=("exports",))


def test_an_older_export_beside_the_new_one_is_superseded_too(plain_lab: Lab) -> None:
    plain_lab.add_guest(running=False)
    plain_lab.export()

    result = plain_lab.export()

    assert plain_lab.listed() == [("beta", exported(result).export_id)]
    assert len(result.removed) == 1


def test_earlier_exports_are_removed_only_after_the_new_one_was_read_back_and_published(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    earlier = exported(lab.export(node="gamma"))
    seen: list[tuple[str, bool]] = []

    def watch(event: Event) -> None:
        if isinstance(event, StageStarted | ExportRemoved):
            seen.append((getattr(event, "stage", "removed"), Path(earlier.path).exists()))

    lab.export(on_event=watch)

    stages = [stage for stage, _ in seen if stage in ("send", "verify", "publish", "cleanup", "removed")]
    assert stages == ["send", "verify", "publish", "cleanup", "removed"]
    assert all(exists for stage, exists in seen if stage != "removed")
    assert not Path(earlier.path).exists()


@pytest.mark.parametrize("how", ["bind mount", "symbolic link", "same path"])
@pytest.mark.parametrize("earlier", ["with an earlier export", "the first export"])
def test_two_nodes_that_mount_one_directory_do_not_delete_the_new_export(
    plain_lab: Lab, bind_mount: Callable[[Path, Path], None], requires: Callable[..., None], how: str, earlier: str
) -> None:
    requires("mount", root=True)
    lab = plain_lab
    lab.add_guest(running=False)
    beta, delta = lab.export_dir("beta"), lab.export_dir("delta")
    if how == "bind mount":
        bind_mount(beta, delta)
    elif how == "symbolic link":
        delta.rmdir()
        delta.symlink_to(beta)
    else:
        lab.node_settings["delta"] = {"export_dir": beta}
    if earlier == "with an earlier export":
        lab.export(node="delta")

    result = lab.export(node="beta")

    assert result.exit_code == 0
    assert [export_id for _, export_id in lab.listed()] == [exported(result).export_id]
    assert Path(exported(result).path).is_dir()
    assert len(result.removed) == (1 if earlier == "with an earlier export" else 0)
    assert diskhaul.verify(INSTANCE, config=lab.cluster()).exit_code == 0


@pytest.mark.parametrize("how", ["missing", "offline"])
def test_a_node_that_does_not_answer_is_told_and_the_others_are_cleaned(plain_lab: Lab, how: str) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    for node in ("alpha", "beta", "delta"):
        lab.export(node=node, config=keeping(lab))
    if how == "missing":
        lab.export_dir("delta").rename(lab.path / "unplugged")
    else:
        lab.node_settings["delta"] = {"offline": True}

    result = lab.export(node="gamma")

    assert result.exit_code == 4
    assert len(result.incomplete) == 1
    assert "node delta" in result.incomplete[0]
    assert lab.listed() == [("gamma", exported(result).export_id)]
    if how == "missing":
        (lab.path / "unplugged").rename(lab.export_dir("delta"))
    else:
        del lab.node_settings["delta"]
    assert len(lab.listed()) == 2  # what could not be reached is still there, and goes with the next export
    assert lab.export(node="gamma").exit_code == 0
    assert len(lab.listed()) == 1


def test_the_clean_up_keep_keeps_what_its_policy_says_and_the_new_one(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    cluster = lab.cluster(backends={"cleanup": "keep"}, backend_options={"keep": {"last": 2}})
    ids = [exported(lab.export(node=node, config=cluster)).export_id for node in ("alpha", "beta", "gamma", "beta")]

    assert {export_id for _, export_id in lab.listed()} == set(ids[-2:])


def test_the_clean_up_none_keeps_everything(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    ids = {exported(lab.export(node=node, config=keeping(lab))).export_id for node in ("alpha", "beta", "beta")}

    assert {export_id for _, export_id in lab.listed()} == ids


def test_an_export_that_nobody_has_read_back_supersedes_nothing(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    earlier = exported(lab.export(node="gamma"))

    result = lab.export(verify="none")

    assert result.exit_code == 0
    assert result.removed == result.plan.supersedes == ()
    assert any("verify = none" in warning for warning in result.warnings)
    assert sorted(lab.listed()) == [("beta", exported(result).export_id), ("gamma", earlier.export_id)]


def test_a_damaged_export_is_not_cleaned_up(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    damaged = exported(lab.export(node="gamma"))
    (Path(damaged.path) / "manifest.json").write_text("{")

    result = lab.export()

    assert result.exit_code == 0
    assert result.removed == ()
    listed = diskhaul.list_exports(INSTANCE, config=lab.cluster())
    assert {(record.export_id, record.valid) for record in listed.exports} == {
        (damaged.export_id, False),
        (exported(result).export_id, True),
    }


# --- several at a time ------------------------------------------------------------------------------------------------


class Background:
    """Runs an export on a thread."""

    def __init__(self, export: Callable[[], diskhaul.ExportResult]) -> None:
        self._export = export
        self._outcome: diskhaul.ExportResult | BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._export()
        except BaseException as error:
            self._outcome = error

    def result(self) -> diskhaul.ExportResult:
        self._thread.join(2 * PATIENCE_S)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None, "the export hangs"
        return self._outcome


def test_exports_of_different_instances_overlap(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    lab.add_guest(OTHER, running=False)
    check = unchanged(lab)
    both_send = threading.Barrier(2)

    def meet(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            both_send.wait(PATIENCE_S)  # breaks, and tells us no more, unless the other one gets here too

    exports = [
        Background(lambda instance=instance: lab.export(instance, on_event=meet))  # type: ignore[misc]
        for instance in (INSTANCE, OTHER)
    ]
    results = [export.result() for export in exports]

    assert not both_send.broken
    assert [result.exit_code for result in results] == [0, 0]
    assert not any("on_event raised" in warning for result in results for warning in result.warnings)
    assert len(lab.listed(None)) == 2
    check.check(but=("exports",))


def test_of_two_exports_of_one_instance_the_second_waits_and_says_for_whom(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    check = unchanged(lab)
    waiting = threading.Event()
    waits: list[LockWaiting] = []
    order: list[str] = []
    second: list[Background] = []

    def of_the_second(event: Event) -> None:
        if isinstance(event, LockWaiting):
            waits.append(event)
            waiting.set()
        elif isinstance(event, StageStarted) and event.stage == "prerequisites":
            order.append("second begins")

    def of_the_first(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            second.append(Background(lambda: lab.export(node="gamma", on_event=of_the_second)))
            order.append("first sends" if waiting.wait(PATIENCE_S) else "nobody waited")
        elif isinstance(event, StageStarted) and event.stage == "cleanup":
            order.append("first cleans up")

    first = lab.export(on_event=of_the_first)
    result = second[0].result()

    assert order == ["first sends", "first cleans up", "second begins"]
    assert [wait.lock for wait in waits] == [f"instance/{INSTANCE}"]
    assert f"export of {INSTANCE} to beta" in waits[0].holder
    assert first.run_id[:8] in waits[0].holder
    assert lab.listed() == [("gamma", exported(result).export_id)]
    assert [record.export_id for record in result.removed] == [exported(first).export_id]
    check.check(but=("exports",))


def test_waiting_for_a_lock_can_be_cancelled(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    check = unchanged(lab)
    interrupted: list[bool] = []

    def of_the_first(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            token = diskhaul.CancellationToken()

            def of_the_second(other: Event) -> None:
                if isinstance(other, LockWaiting):
                    token.cancel()

            second = Background(lambda: lab.export(node="gamma", on_event=of_the_second, cancel=token))
            try:
                second.result()
            except diskhaul.InterruptedRunError:
                interrupted.append(True)

    result = lab.export(on_event=of_the_first)

    assert interrupted == [True]
    assert lab.listed() == [("beta", exported(result).export_id)]
    check.check(but=("exports",))


def test_an_export_that_is_being_verified_is_not_removed(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    earlier = exported(lab.export(node="gamma"))
    name = f"{INSTANCE}@{earlier.export_id}"
    waits: list[LockWaiting] = []
    waiting = threading.Event()
    removals: list[Background] = []

    def of_the_removal(event: Event) -> None:
        if isinstance(event, LockWaiting):
            waits.append(event)
            waiting.set()

    def of_the_verification(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "verify":
            removals.append(
                Background(lambda: diskhaul.remove(name, config=lab.cluster(), on_event=of_the_removal))  # type: ignore[arg-type,return-value]
            )
            assert waiting.wait(PATIENCE_S)
            assert Path(earlier.path).is_dir()

    verified = diskhaul.verify(name, config=lab.cluster(), on_event=of_the_verification)

    assert (verified.exit_code, len(verified.checked)) == (0, 1)
    removals[0].result()
    assert [wait.lock for wait in waits] == [f"export/{earlier.export_id}"]
    assert "verify" in waits[0].holder
    assert lab.listed() == []


# --- list, show, verify, remove, prune --------------------------------------------------------------------------------


@pytest.fixture
def spread(plain_lab: Lab) -> tuple[Lab, list[diskhaul.ExportRecord]]:
    """A lab with exports of one instance on three nodes, and one of an instance that does not exist any more on delta."""
    lab = plain_lab
    lab.add_guest(running=False)
    lab.add_guest(OTHER, running=False)
    records = [exported(lab.export(node=node, config=keeping(lab))) for node in ("alpha", "beta", "gamma")]
    records.append(exported(lab.export(OTHER, node="delta")))
    del lab.instances[OTHER]
    return lab, records


def test_exports_are_listed_over_all_nodes_or_one_and_for_deleted_instances_too(
    spread: tuple[Lab, list[diskhaul.ExportRecord]],
) -> None:
    lab, records = spread
    everything = diskhaul.list_exports(config=lab.cluster())

    assert everything.exit_code == 0
    assert sorted((r.instance, r.node, r.export_id) for r in everything.exports) == sorted(
        (r.instance, r.node, r.export_id) for r in records
    )
    assert all(record.valid and record.disk_count == 1 and record.stored_bytes for record in everything.exports)
    assert [r.node for r in diskhaul.list_exports("web1", config=lab.cluster(), node="beta").exports] == ["beta"]
    assert [r.node for r in diskhaul.list_exports(OTHER, config=lab.cluster()).exports] == ["delta"]
    assert [r.node for r in diskhaul.list_exports("db1", config=lab.cluster()).exports] == ["delta"]


def test_a_node_that_does_not_answer_is_named_and_the_rest_is_listed(spread: tuple[Lab, list[diskhaul.ExportRecord]]) -> None:
    lab, _ = spread
    lab.export_dir("beta").rename(lab.path / "unplugged")

    listed = diskhaul.list_exports(config=lab.cluster())

    assert listed.exit_code == 4
    assert len(listed.unreachable) == 1
    assert "beta" in listed.unreachable[0]
    assert sorted(record.node for record in listed.exports) == ["alpha", "delta", "gamma"]
    assert diskhaul.verify(config=lab.cluster()).exit_code == 4


def test_show_tells_everything_about_one_export(spread: tuple[Lab, list[diskhaul.ExportRecord]]) -> None:
    lab, records = spread

    by_id = diskhaul.show(f"web1@{records[0].export_id}", config=lab.cluster())
    by_path = diskhaul.show(records[0].path)
    deleted = diskhaul.show(OTHER, config=lab.cluster())

    assert (by_id.record.node, by_id.manifest["export_id"]) == ("alpha", records[0].export_id)
    assert by_path.manifest == by_id.manifest
    assert deleted.record.export_id == records[3].export_id
    with pytest.raises(diskhaul.UnknownNameError, match="does not exist; there is"):
        diskhaul.show(f"{INSTANCE}@20200101T000000Z-00000000", config=lab.cluster())


def test_verify_reads_every_export_and_finds_the_one_that_is_damaged(spread: tuple[Lab, list[diskhaul.ExportRecord]]) -> None:
    lab, records = spread
    assert diskhaul.verify(config=lab.cluster()).exit_code == 0
    data = Path(records[1].path) / "disk-0.raw.zst"
    with open(data, "r+b") as file:
        file.seek(300_000)
        byte = file.read(1)
        file.seek(300_000)
        file.write(bytes([byte[0] ^ 1]))

    result = diskhaul.verify(config=lab.cluster())

    assert result.exit_code == 6
    assert len(result.checked) == 4
    assert [(finding.path, finding.disk) for finding in result.findings] == [(records[1].path, 0)]
    assert result.findings[0].offset is not None


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "for real"])
def test_one_export_is_removed_and_nothing_else(spread: tuple[Lab, list[diskhaul.ExportRecord]], dry_run: bool) -> None:
    lab, records = spread

    result = diskhaul.remove(f"web1@{records[1].export_id}", config=lab.cluster(), dry_run=dry_run)

    assert result.exit_code == 0
    assert result.dry_run == dry_run
    assert [record.export_id for record in result.removed] == [records[1].export_id]
    assert Path(records[1].path).exists() == dry_run
    assert all(Path(record.path).exists() for record in (records[0], *records[2:]))


def test_all_exports_of_a_deleted_instance_are_removed_by_its_full_name(
    spread: tuple[Lab, list[diskhaul.ExportRecord]], unchanged: MakeUnchanged
) -> None:
    lab, records = spread
    check = unchanged(lab)

    assert diskhaul.remove(OTHER, config=lab.cluster(), all_exports=True, dry_run=True).removed[0].node == "delta"
    check.check()
    result = diskhaul.remove(OTHER, config=lab.cluster(), all_exports=True)

    assert [record.export_id for record in result.removed] == [records[3].export_id]
    assert len(diskhaul.list_exports(config=lab.cluster()).exports) == 3
    check.check(but=("exports",))


def test_removing_all_names_the_node_that_does_not_answer(spread: tuple[Lab, list[diskhaul.ExportRecord]]) -> None:
    lab, _ = spread
    lab.export_dir("beta").rename(lab.path / "unplugged")

    result = diskhaul.remove(INSTANCE, config=lab.cluster(), all_exports=True)

    assert result.exit_code == 4
    assert sorted(record.node for record in result.removed) == ["alpha", "gamma"]
    assert any("beta" in line for line in result.incomplete)


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "for real"])
def test_prune_keeps_what_the_policy_says(spread: tuple[Lab, list[diskhaul.ExportRecord]], dry_run: bool) -> None:
    lab, records = spread
    before = _digests(lab)

    result = diskhaul.prune("web1", config=lab.cluster(), policy=diskhaul.KeepPolicy(last=1), dry_run=dry_run)

    newest = records[2].export_id  # by the time in its manifest: ids tell ages apart only by the second
    assert [record.export_id for record in result.kept] == [newest]
    assert len(result.removed) == 2
    left = {record.export_id for record in diskhaul.list_exports(config=lab.cluster()).exports}
    if dry_run:
        assert _digests(lab) == before
    else:
        assert left == {newest, records[3].export_id}


def test_a_half_removed_export_is_not_listed_and_in_nobodys_way(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest(running=False)
    record = exported(lab.export())
    directory = Path(record.path)
    directory.rename(directory.with_name(f".{record.export_id}.removing"))

    assert lab.listed() == []
    result = lab.export()
    assert lab.listed() == [("beta", exported(result).export_id)]


def _digests(lab: Lab) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for node in ("alpha", "beta", "gamma", "delta")
        for path in lab.export_dir(node).rglob("*")
        if path.is_file()
    }
