"""What an export looks like on disk. Every reader here takes hostile input and answers `corruption.CorruptError`.

- `corruption`: the one error of stored bytes that are not what they should be.
- `export_id`: names of exports, and of their directories while they are written or removed.
- `codec`: how one chunk becomes stored bytes and comes back: raw, zstd, gzip.
- `adaptive_level`: the level of ``zstd:adaptive``, which follows the slower of disk, CPU and target.
- `seekable`: the seek table at the end of a seekable zstd stream.
- `chunk_table`: ``disk-N.chunks``, the digests of a disk's chunks and of what is stored for them.
- `manifest`: ``manifest.json``, and instances as they are recorded in it.
- `ganeti`: ``config.ini``, the description that Ganeti writes beside its dumps.

Nothing is imported here: ``import diskhaul`` must not load what only an export needs.
"""
