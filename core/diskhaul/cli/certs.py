"""``diskhaul certs``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RefusedError
from .invocation import PATH, Answer, Argument, Command, Invocation, Option, common_options
from .json_output import jsonable
from .text import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..certificates import CertificateInfo

ACTIONS = ("init", "node", "renew", "show", "rotate", "retire", "secret")


@click.command("certs", cls=Command)
@click.argument("action", cls=Argument, metavar="ACTION", type=click.Choice(ACTIONS))
@click.argument("names", cls=Argument, metavar="[NAME]...", nargs=-1)
@click.option(
    "--dir", "directory", cls=Option, type=PATH, metavar="DIR", help="Where certificates and keys lie. [default: certs]"
)
@click.option("--cluster", cls=Option, metavar="NAME", help="init: the cluster's name. [default: that of the configuration]")
@click.option(
    "--role",
    cls=Option,
    type=click.Choice(("node", "source", "receiver")),
    help="node: to send and receive, only to send, or only to receive. [default: node]",
)
@click.option("--dns", cls=Option, multiple=True, metavar="NAME", help="node: a further DNS name; may stand several times.")
@click.option(
    "--days", cls=Option, type=click.IntRange(1, 36500), metavar="N", help="Validity. [default: 397, of an authority 3650]"
)
@click.option("--force", cls=Option, is_flag=True, help="init, node, secret: overwrite what is there.")
@common_options(hidden=True)
@click.pass_obj
def certs_command(
    invocation: Invocation,
    action: str,
    names: tuple[str, ...],
    directory: Path | None,
    cluster: str | None,
    role: str | None,
    dns: tuple[str, ...],
    days: int | None,
    force: bool,
) -> Answer:
    """Make, renew and show the certificates of the transfer 'tls'.

    init makes the cluster's authority, node a key and a certificate for each NAME, renew new ones for each NAME or for all that
    expire within 30 days. show lists everything with its days; exit 2 when something there cannot be used. rotate makes a new
    authority beside the old one, retire ends the trust in the old one. Copy ca.crt and NAME.pem to the node, never ca.key.
    secret makes a cluster-domain secret, which clusters that exchange instances have in common.

    \b
    Examples:
      diskhaul certs init --cluster lab
      diskhaul certs node alpha beta
      diskhaul certs show
      diskhaul certs renew
    """
    from .. import certificates

    where = directory or Path("certs")
    _refuse_misplaced(action, names, cluster=cluster, role=role, dns=dns, days=days, force=force)
    if action == "secret":
        return _secret(where, force=force)
    made: Sequence[CertificateInfo]
    if action == "init":
        lasting = certificates.AUTHORITY_DAYS if days is None else days
        made = [certificates.make_authority(where, cluster or invocation.cluster().name, days=lasting, force=force)]
    elif action == "node":
        kind = next(known for known in certificates.ROLES if known == (role or "node"))
        lasting = certificates.NODE_DAYS if days is None else days
        made = [certificates.issue(where, name, role=kind, dns=dns, days=lasting, force=force) for name in names]
    elif action == "renew":
        made = certificates.renew(where, names, days=certificates.NODE_DAYS if days is None else days)
    elif action == "rotate":
        made = [certificates.rotate_authority(where, days=certificates.AUTHORITY_DAYS if days is None else days)]
    elif action == "retire":
        made = certificates.retire_authorities(where)
    else:
        made = certificates.show(where)
    unusable = action == "show" and any(info.problem for info in made)
    now = datetime.now(UTC)
    return Answer(
        document={
            "directory": str(where),
            "certificates": [jsonable(info) | {"days_left": info.days_left(now)} for info in made],
        },
        text=lambda: _table(made, now) or "nothing is due",
        exit_code=2 if unusable else 0,
        chatter=action != "show",
    )


def _secret(directory: Path, *, force: bool) -> Answer:
    from ..remote.secret import make_secret

    place = make_secret(directory, force=force)
    said = f"{place}: name it as cluster_domain_secret in [cluster], and give the same file to the other cluster"
    return Answer(document={"secret": str(place)}, text=lambda: escape(said), chatter=True)


def _refuse_misplaced(action: str, names: tuple[str, ...], **options: object) -> None:
    """Refuse arguments that the action would not look at."""
    taken = {
        "init": {"cluster", "days", "force"},
        "node": {"role", "dns", "days", "force"},
        "renew": {"days"},
        "secret": {"force"},
        "rotate": {"days"},
    }.get(action, set())
    problems = [f"--{name}: 'certs {action}' does not take it" for name, value in options.items() if value and name not in taken]
    if action == "node" and not names:
        problems.append("certs node: name at least one node")
    if names and action not in ("node", "renew"):
        problems.append(f"certs {action}: takes no names")
    if problems:
        raise RefusedError(problems)


def _table(made: Sequence[CertificateInfo], now: datetime) -> str:
    lines = []
    for info in made:
        until = f"until {info.not_after:%Y-%m-%d} ({info.days_left(now)} days)" if info.not_after else ""
        problem = f"  UNUSABLE: {info.problem}" if info.problem else ""
        lines.append(escape(f"{info.file:<24} {info.role:<10} {info.name:<24} {until}{problem}"))
    return "\n".join(lines)
