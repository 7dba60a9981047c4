"""The parts of a bench run.

- `rates`: how a rate is measured: several threads, several rounds, medians
- `data`: the bytes that are digested and compressed: the source's own, or made up
- `disks`: reading the source, writing and reading the target
- `processor`: memory, zero scan, digest, compression
- `limits`: what an export would run into, from all of that
"""
