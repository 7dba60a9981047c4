"""``diskhaul plugins`` and ``diskhaul doctor``: what is installed, and what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .invocation import Answer, Command, Invocation, common_options

if TYPE_CHECKING:
    from .diagnosis import Backend


@click.command("plugins", cls=Command)
@common_options(hidden=True)
@click.pass_obj
def plugins_command(invocation: Invocation) -> Answer:
    """List every backend by stage: where it comes from, and whether it works here.

    Backends come from diskhaul itself and from installed packages with an entry point in the group "diskhaul". Names in
    DISKHAUL_DISABLE_PLUGINS (separated by commas) are left out.

    \b
    Examples:
      diskhaul plugins
      diskhaul --json plugins
    """
    import diskhaul

    from .diagnosis import backends

    found = backends(diskhaul.plugins_report())
    return Answer(document={"backends": found}, text=lambda: _backend_table(found))


@click.command("doctor", cls=Command)
@common_options(hidden=True)
@click.pass_obj
def doctor_command(invocation: Invocation) -> Answer:
    """Check this machine, and the configuration where there is one.

    Shows the kernel, Python, the native core, optional programs and every backend. Programs and backends that are missing are
    no problem unless the configuration uses them. The exit code is 0 when all is well, and 2 when there are problems.

    \b
    Examples:
      diskhaul doctor
      diskhaul --config /etc/diskhaul/cluster.toml doctor
    """
    from .diagnosis import examine
    from .text import count, escape, facts, table

    diagnosis = examine(invocation.config)

    def text() -> str:
        parts = [
            "Machine:",
            facts(diagnosis.machine.items()),
            "Programs:",
            table(
                ("  program", "path", "used for"), [(f"  {p.name}", p.path or "not found", p.purpose) for p in diagnosis.programs]
            ),
            "Backends:",
            "\n".join("  " + line for line in _backend_table(diagnosis.backends).splitlines()),
            "Configuration:",
            facts(diagnosis.configuration.items()),
        ]
        if diagnosis.problems:
            parts.append(f"{count(len(diagnosis.problems), 'problem')}:")
            parts += [f"  {escape(problem)}" for problem in diagnosis.problems]
        else:
            parts.append("No problems found.")
        return "\n".join(parts)

    return Answer(document=diagnosis.as_dict(), text=text, exit_code=2 if diagnosis.problems else 0)


def _backend_table(found: tuple[Backend, ...]) -> str:
    from .text import table

    rows = [
        (
            backend.stage,
            backend.name,
            backend.origin,
            ("yes" if backend.works else "no") + (f": {backend.detail}" if backend.detail else ""),
            backend.summary,
        )
        for backend in found
    ]
    return table(("stage", "backend", "from", "works here", "summary"), rows)
