"""A busy guest: writes to the directory it is given, and says what is durable, until it is ended.

    python ext_writer.py DIRECTORY SEED

A line "+ PATH DIGEST" on its output: that file is on the disk, with that content. A line "- PATH": this will not be so for long.
Lines are written before and after what they are about, never meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import threading
from pathlib import Path

DIRECTORIES = 6
FILES_EACH = 70
LARGEST = 24_000
WRITERS = 3
BALLAST = 0.5
"""So much of the space is full from the beginning, so that what is freed is soon used again."""
JOURNAL_MAGIC = bytes.fromhex("c03b3998")
"""What a journal's own blocks begin with: others that do have to be marked in it."""


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write: lines of threads do not mix


class Writer:
    """One thread's files: nobody else changes them."""

    def __init__(self, root: Path, name: int, seed: int) -> None:
        self.root = root
        self.name = name
        self.random = random.Random(f"{seed} {name}")
        self.files: list[Path] = []
        self.count = 0

    def new_path(self) -> Path:
        self.count += 1
        return self.root / f"d{self.random.randrange(DIRECTORIES)}" / f"{self.name}-{self.count}{'n' * self.random.randrange(60)}"

    def durable(self, path: Path) -> None:
        """Wait until the file is on the disk with what it holds, then say so."""
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
            content = file.read()
        sync_directory(path.parent)
        self.files.append(path)
        say(f"+ {path.relative_to(self.root)} {hashlib.blake2b(content).hexdigest()}")

    def take(self) -> Path:
        """One of the files, which is about to change."""
        path = self.files.pop(self.random.randrange(len(self.files)))
        say(f"- {path.relative_to(self.root)}")
        return path

    def create(self) -> None:
        path = self.new_path()
        content = self.random.randbytes(self.random.randrange(LARGEST))
        path.write_bytes(content if self.random.random() < 0.8 else JOURNAL_MAGIC + content)
        self.durable(path)

    def overwrite(self) -> None:
        path = self.take()
        with open(path, "rb+") as file:
            file.seek(self.random.randrange(LARGEST))
            file.write(self.random.randbytes(self.random.randrange(LARGEST)))
        self.durable(path)

    def rename(self) -> None:
        path, target = self.take(), self.new_path()
        path.rename(target)
        sync_directory(path.parent)
        self.durable(target)

    def truncate(self) -> None:
        path = self.take()
        os.truncate(path, self.random.randrange(LARGEST))
        self.durable(path)

    def delete(self) -> None:
        self.take().unlink()

    def use_and_forget(self) -> None:
        """Directories and files that come and go without ever being durable: their blocks are soon used for something else."""
        path = self.new_path()
        path.mkdir()
        for number in range(self.random.randrange(60)):
            (path / f"{number}{'m' * self.random.randrange(200)}").write_bytes(b"x" * self.random.randrange(3000))
        if self.random.random() < 0.5:
            sync_directory(path)
        shutil.rmtree(path)

    def work(self) -> None:
        """Work for ever; where there is no space left, delete files until there is."""
        steps = [self.create] * 8 + [self.delete] * 3
        steps += [self.overwrite, self.rename, self.truncate, self.use_and_forget] * 2
        while True:
            step = self.random.choice(steps)
            try:
                if len(self.files) > FILES_EACH:
                    self.delete()
                elif self.files or step in (self.create, self.use_and_forget):
                    step()
            except OSError:
                for path in self.root.glob(f"d*/{self.name}-*"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path not in self.files:
                        path.unlink()
                for _ in range(len(self.files) // 2):
                    self.delete()


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    for number in range(DIRECTORIES):
        (root / f"d{number}").mkdir()
    space = os.statvfs(root)
    (root / "ballast").write_bytes(b"b" * int(BALLAST * space.f_bavail * space.f_frsize))
    os.sync()
    for name in range(WRITERS):
        threading.Thread(target=Writer(root, name, seed).work).start()


if __name__ == "__main__":
    main()
