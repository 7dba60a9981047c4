"""What a fleet came to, as text for people. Everything shown is escaped (see `text`)."""

from __future__ import annotations

from ..records import FleetMember, FleetResult
from .text import count, duration, escape, facts, iec, table

_MOST_ROWS = 40
_SLOWEST = 5


def fleet_text(result: FleetResult) -> str:
    """Say what failed and why, the totals, and what took longest; after a dry run, who would go where."""
    if result.dry_run:
        return _would(result)
    by_state = {state: [each for each in result.members if each.state == state] for state in ("done", "failed", "pending")}
    done, failed, pending = by_state["done"], by_state["failed"], by_state["pending"]
    earlier = sum(member.earlier for member in done)
    now = [member for member in done if not member.earlier]
    read, stored = sum(member.bytes_read for member in now), sum(member.stored_bytes for member in now)
    rows: list[tuple[str, object]] = [
        ("plan", result.plan),
        ("exported", f"{len(done)} of {len(result.members)}" + (f" ({earlier} by earlier runs)" if earlier else "")),
        ("failed", len(failed) or ""),
        ("still to do", len(pending) or ""),
        ("tried again", sum(member.attempts > 1 for member in result.members) or ""),
        ("read", f"{iec(read)} in {duration(result.seconds)}"),
        ("stored", iec(stored)),
    ]
    parts = []
    if failed:
        parts += ["Failed:", _rows(failed)]
    head = "Stopped before the end." if result.interrupted else f"Exported {count(len(done), 'instance')}."
    parts += [head, facts(rows)]
    if slowest := sorted(now, key=lambda member: -member.seconds)[:_SLOWEST]:
        cells = [(each.instance, each.source, each.target, iec(each.size), duration(each.seconds)) for each in slowest]
        parts += ["Slowest:", _indented(table(("instance", "from", "to", "size", "time"), cells, right=("size", "time")))]
    if failed or pending:
        parts.append(f"Go on with: diskhaul fleet export --resume --plan {escape(result.plan)}")
    return "\n".join(parts)


def _rows(failed: list[FleetMember]) -> str:
    cells = [
        (member.instance, member.target, member.exit_code, member.attempts, member.error, member.remedy)
        for member in failed[:_MOST_ROWS]
    ]
    shown = _indented(table(("instance", "to", "code", "attempts", "why", "what to do"), cells, right=("code", "attempts")))
    return shown + _rest(len(failed))


def _would(result: FleetResult) -> str:
    cells = [
        (each.instance, each.source, each.target, iec(each.size) if each.size else "") for each in result.members[:_MOST_ROWS]
    ]
    shown = _indented(table(("instance", "from", "to", "size"), cells, right=("size",)))
    total = f"Would export {count(len(result.members), 'instance')}, in this order:"
    return f"{total}\n{shown}{_rest(len(result.members))}\nDry run: nothing was changed, and no instance was looked at closely."


def _rest(number: int) -> str:
    return f"\n  and {number - _MOST_ROWS} more (--json has all)" if number > _MOST_ROWS else ""


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
