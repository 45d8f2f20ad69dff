#!/usr/bin/env python3
"""What a hydration would gain where the file system can clone ranges (XFS, btrfs).

Copies the first half of a file to the second: by clones of 1 MiB (FICLONERANGE), and by reads and writes past the page
cache; then overwrites 4 KiB in each MiB of the second half, one at a time. Medians of 5 turns.

    clone_ranges.py FILE        FILE is made, 1 GiB, and removed
"""

import fcntl
import mmap
import os
import statistics
import struct
import sys
import time

FICLONERANGE = 0x4020940D
MIB = 1 << 20
COUNT = 512
BLOCK = 4096
TURNS = 5


def half_full(path: str) -> tuple[int, mmap.mmap]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    buffer = mmap.mmap(-1, MIB)
    buffer.write(os.urandom(MIB))
    for n in range(COUNT):
        os.pwrite(fd, buffer, n * MIB)
    os.posix_fallocate(fd, COUNT * MIB, COUNT * MIB)
    os.fsync(fd)
    return fd, buffer


def clone(fd: int, _buffer: mmap.mmap) -> None:
    for n in range(COUNT):
        fcntl.ioctl(fd, FICLONERANGE, struct.pack("qQQQ", fd, n * MIB, MIB, (COUNT + n) * MIB))
    os.fsync(fd)


def copy(fd: int, buffer: mmap.mmap) -> None:
    for n in range(COUNT):
        os.preadv(fd, [buffer], n * MIB)
        os.pwrite(fd, buffer, (COUNT + n) * MIB)
    os.fsync(fd)


def overwrite(fd: int) -> None:
    block = mmap.mmap(-1, BLOCK)
    for n in range(COUNT):
        os.pwrite(fd, block, (COUNT + n) * MIB + n * 37 % (MIB // BLOCK) * BLOCK)
    os.fdatasync(fd)


def milliseconds(work, *args) -> float:
    began = time.monotonic()
    work(*args)
    return (time.monotonic() - began) * 1000


def main(path: str) -> None:
    results = {}
    for _ in range(TURNS):
        for work in (clone, copy):
            fd, buffer = half_full(path)
            results.setdefault(work.__name__, []).append(
                (milliseconds(work, fd, buffer), milliseconds(overwrite, fd))
            )
            os.close(fd)
            os.unlink(path)
    for name, turns in results.items():
        moved, written = (statistics.median(column) for column in zip(*turns))
        print(f"{name}: {COUNT} MiB in {moved:.0f} ms; then {COUNT} overwrites in {written:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
