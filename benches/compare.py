#!/usr/bin/env python3
"""diskhaul beside the programs that people use for the same work; see --help, and docs/benchmarks.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benches` is a package of the repository, not an installed one
    from benches.comparison.command_line import main

    sys.exit(main())
