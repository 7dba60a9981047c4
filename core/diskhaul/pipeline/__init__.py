"""The data path: how a disk's chunks get from a reader to a store, and back.

- `source`, `target`: one face for every kind of opened disk, read or written, with or without a descriptor
- `chunk_plan`: which chunks there are, and which parts of them have to be read
- `workers`: the threads that carry chunks of several disks through all steps
- `ordered`: appends what the threads finish in the order of the disk
- `meter`: counts bytes and tells about them
- `send`: disk to store
- `readback`: store to nothing (verify) or to a disk (restore)

A chunk is taken through all its steps by one thread, so it stays in one core's cache; reading, scanning, digesting and
compressing all happen in C without the interpreter's lock. Nothing here knows of guests, snapshots or nodes.
"""
