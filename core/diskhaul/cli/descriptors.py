"""The standard descriptors, also where the process was started without some of them (``2>&-``, a bare daemon)."""

from __future__ import annotations

import os
import sys


def hold_standard_descriptors() -> None:
    """Open ``/dev/null`` on each of the descriptors 0, 1 and 2 that is closed, and give `sys` the streams it lacks then.

    Has to come before any file is opened: the next one would get the free number, a file of an export say, and whatever is
    printed would go into it. Programs that are started inherit them, and so have all three as well.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
    # Python has None for a stream whose descriptor was closed when it started.
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # for as long as Python runs
