"""The command line: ``diskhaul`` and ``python -m diskhaul``.

Layers: `main` is the group; `export`, `restore`, `exports`, `recover`, `inspection`, `tuning`, `machine` and `demo` hold the
commands, which only parse, call the library, and return an `Answer`; `invocation` prints answers and owns everything commands
share. Importing this package loads nothing else; a command loads the library only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (of this process, unless `arguments` are given) and exit with its code.

    Raises:
        SystemExit: always.
    """
    from .descriptors import hold_standard_descriptors
    from .signals import interrupt_once

    hold_standard_descriptors()
    try:
        interrupt_once()
        from .main import cli

        cli.main(args=arguments, prog_name="diskhaul")
    except KeyboardInterrupt:  # before a command could take signals over: nothing has been touched
        sys.exit(130)
