"""ext2, ext3 and ext4: which blocks are free, by bitmaps that may be believed.

`superblock` reads the filesystem's own description, `libext2fs` hands the rest to that library over a channel of ours,
`journal` finds what a journal would change when it is replayed, and `groups` reads and checks the bitmaps. `reader` puts it
together: nothing is ever written, and whatever does not fit means that nothing is left out.
"""

from __future__ import annotations

from .libext2fs import load
from .reader import read_ext

__all__ = ["prepare", "read_ext"]


def prepare() -> None:
    """Load what a process without rights cannot load any more.

    Raises:
        KeptError: libext2fs is not here.
    """
    load()
