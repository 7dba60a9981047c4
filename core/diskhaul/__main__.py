"""``python -m diskhaul``: the command line."""

from __future__ import annotations

from diskhaul.cli import main

if __name__ == "__main__":
    main()
