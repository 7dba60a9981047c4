"""Zero-fill ``partclone``: what ``skip`` would leave out of the filesystems that partclone knows, where partclone agrees."""

from __future__ import annotations

import os
import shutil

from diskhaul.api import Capability
from diskhaul.processes import SEARCH_PATH

from .skip import SkipZeroFill


def capability() -> Capability:
    """Works where partclone and FUSE are."""
    if not any(shutil.which(f"partclone.{kind}", path=SEARCH_PATH) for kind in ("xfs", "ntfs", "fat", "exfat", "btrfs", "f2fs")):
        return Capability(works=False, detail="partclone is not installed")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Capability(works=False, detail="/dev/fuse is not there, or not for us")
    return Capability(works=True, detail="partclone")


class PartcloneZeroFill(SkipZeroFill):
    """Has partclone look as well, and leaves out what both call free. Option ``timeout_s`` as that of ``skip``."""

    name = "partclone"
    families = ("partclone",)
