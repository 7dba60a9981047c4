"""Zero-fill backends: where a disk's free space is, and how to make it zero."""
