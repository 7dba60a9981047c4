"""Suites that every backend of a stage has to pass: subclass one in a test module, and give it your backend."""

from __future__ import annotations

import pytest

# So that a failing assert shows its values in authors' runs, as it does in a test module.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{suite}"
        for suite in (
            "cleanups",
            "engines",
            "inventories",
            "locks",
            "runtimes",
            "snapshots",
            "storages",
            "transfers",
            "zerofills",
        )
    )
)
