"""A block device that logs what is written to it, and the disks that power cuts would have left of it.

A disk may keep writes in memory until it is told to flush them.  After a power cut it holds all that was written before
the last flush, and of what was written since, any part.  So one log gives many disks: cut it anywhere, and leave out
some of the writes after the last flush.

The device is a loop device.  The file below it is a FUSE file system of its own whose root is that file: the kernel
asks a process (this module, run as a script) for each read, write and fsync, and that process notes them in order.
It does nothing else, since a process that waited for its own disk would wait forever.

Needs root, /dev/fuse, and a mount namespace of its own (unshare), so that what is mounted ends with the process; so
does the loop device, and the kernel kills the process that serves the file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_IO_FLUSHER, SIGKILL = 1, 57, 9

# The protocol of /dev/fuse: linux/fuse.h.  A request is a header, what the operation takes, and data.
FORGET, GETATTR, OPEN, READ, WRITE, FSYNC, INIT, INTERRUPT = 2, 3, 14, 15, 16, 20, 26, 36
REQUEST, ANSWER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")  # fuse_in_header, fuse_out_header
PLACE = struct.Struct("<QQI")  # file handle, offset and size: how fuse_read_in and fuse_write_in begin
WRITE_DATA = REQUEST.size + 40  # behind fuse_write_in
MAX_PAGES, MAX_WRITE, NOT_SUPPORTED = 1 << 22, 1 << 20, -38  # FUSE_MAX_PAGES, bytes, -ENOSYS

RECORD = struct.Struct("<QQ")  # in the log: offset and size of a write, whose bytes follow; size 0 is a flush
SECTOR = 4096  # of a write, which a cut may leave in part


def run(*command: str | Path, accept: tuple[int, ...] = (0,)) -> str:
    """Run a program and return its output; another exit code than these is an error with what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in accept:
        raise OSError(f"{' '.join(map(str, command))}: exit {done.returncode}, {done.stderr or done.stdout}")
    return done.stdout.strip()


@contextmanager
def mounted(source: str | Path, target: Path, *options: str) -> Iterator[Path]:
    """Mount a device, or the image of a disk, on a folder."""
    run("mount", *options, source, target)
    try:
        yield target
    finally:
        run("umount", target)


@dataclass(frozen=True)
class Record:
    """A write that was logged; without data, a flush.  ``end`` is the size of the log after it, in bytes."""

    end: int
    offset: int
    data: memoryview | None


@dataclass(frozen=True)
class LoggedDisk:
    """A block device of its own, with all that was written to it.

    Attributes
    ----------
    device : str
        To make a file system on, and mount it.
    folder : Path
        Where its files are, in memory: ``image`` (what it holds), ``log``, and ``disk`` (after a cut).
    size : int
        Bytes of the device.
    """

    device: str
    folder: Path
    size: int

    def position(self) -> int:
        """Return the size of the log, in bytes: what was written before now lies before that."""
        return (self.folder / "log").stat().st_size

    def records(self) -> list[Record]:
        """Return the writes and flushes so far, in order."""
        with open(self.folder / "log", "rb") as log:
            view = memoryview(mmap.mmap(log.fileno(), 0, prot=mmap.PROT_READ))
        records, end = [], 0
        while end < len(view):
            offset, size = RECORD.unpack_from(view, end)
            start, end = end + RECORD.size, end + RECORD.size + size
            records.append(Record(end, offset, view[start:end] if size else None))
        return records

    def disks(self, count: int, chance: random.Random, after: int) -> Iterator[tuple[int, Path]]:
        """Cut the power at random points after a position.

        Of the writes since the last flush a disk holds in turn a random half of their sectors, all, and none.

        Yields
        ------
        position : int
            Of the cut, in the log.
        path : Path
            The image of the disk, which is replaced by the next one.
        """
        records = self.records()
        first = bisect_right(records, after, key=lambda record: record.end)
        flushed, disk, done = self.folder / "flushed", self.folder / "disk", 0
        flushed.touch()
        os.truncate(flushed, self.size)
        for number, cut in enumerate(sorted(chance.choices(range(first, len(records)), k=count))):
            flush = max(at for at in range(cut + 1) if records[at].data is None)
            _apply(flushed, records[done:flush])
            done = flush
            shutil.copyfile(flushed, disk)
            _apply(disk, records[flush : cut + 1], (0.5, 1, 0)[number % 3], chance)
            yield records[cut].end, disk


def _apply(image: Path, records: list[Record], share: float = 1, chance: random.Random | None = None) -> None:
    """Write to an image what was logged, or a share of its sectors."""
    with open(image, "r+b", buffering=0) as file:
        for record in records:
            for start in range(0, len(record.data or b""), SECTOR):
                if chance is None or chance.random() < share:
                    os.pwrite(file.fileno(), record.data[start : start + SECTOR], record.offset + start)


@contextmanager
def logged_disk(folder: Path, megabytes: int) -> Iterator[LoggedDisk]:
    """Make a block device that logs; it ends with the block, its log with the process.

    Everything in ``folder`` is in memory, so that the log never waits for a disk.
    """
    run("mount", "-t", "tmpfs", "disk_log", folder)
    image, log, served = folder / "image", folder / "log", folder / "served"
    for path in (image, log, served):
        path.touch()
    os.truncate(image, megabytes << 20)
    with ExitStack() as stack:
        _serve_in_a_process(stack, image, log, served)
        device = run("losetup", "--find", "--show", "--direct-io=on", served)
        stack.enter_context(open(device, "rb"))
        run("losetup", "--detach", device)  # when it is closed and not mounted any more
        yield LoggedDisk(device, folder, megabytes << 20)


def _serve_in_a_process(stack: ExitStack, image: Path, log: Path, served: Path) -> None:
    """Mount the file system, and start the process that answers for it; both end with the stack."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fuse},rootmode=100600,user_id=0,group_id=0".encode()  # the root is a file
        if LIBC.mount(b"disk_log", os.fsencode(served), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "cannot mount a FUSE file system")
        command = [sys.executable, "-S", __file__, str(fuse), str(image), str(log)]
        process = stack.enter_context(subprocess.Popen(command, pass_fds=[fuse]))
        stack.callback(process.kill)
        stack.callback(run, "umount", "--lazy", served)
    finally:
        os.close(fuse)


def serve(fuse: int, image: int, log: int) -> None:
    """Answer the kernel's requests until the file system is not mounted any more."""
    LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    LIBC.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)  # the kernel never makes it wait for the disk that it serves
    while True:
        try:
            request = os.read(fuse, WRITE_DATA + MAX_WRITE)
        except OSError:
            return
        _, operation, number, *_ = REQUEST.unpack_from(request)
        if operation in (FORGET, INTERRUPT):  # nobody waits for an answer
            continue
        answer = answer_to(operation, request, image, log)
        error, body = (NOT_SUPPORTED, b"") if answer is None else (0, answer)
        os.writev(fuse, [ANSWER.pack(ANSWER.size + len(body), error, number), body])


def answer_to(operation: int, request: bytes, image: int, log: int) -> bytes | None:
    """Do what is asked for, note it, and return the body of the answer; None if it is not supported."""
    if operation == INIT:  # protocol 7.31; 16 requests in the background, 12 are many
        pages = MAX_WRITE // mmap.PAGESIZE
        return struct.pack("<4I2H2IH34x", 7, 31, 0, MAX_PAGES, 16, 12, MAX_WRITE, 1, pages)
    if operation == GETATTR:  # valid for a long time; a regular file of one name
        size = os.fstat(image).st_size
        return struct.pack("<Q8x6Q12x2I20x", 1 << 30, 1, size, size // 512, 0, 0, 0, 0o100600, 1)
    if operation == OPEN:
        return bytes(16)
    if operation == FSYNC:
        os.write(log, RECORD.pack(0, 0))
        return b""
    if operation not in (READ, WRITE):
        return None
    _, offset, size = PLACE.unpack_from(request, REQUEST.size)
    if operation == READ:
        return os.pread(image, size, offset)
    data = memoryview(request)[WRITE_DATA : WRITE_DATA + size]
    os.pwrite(image, data, offset)
    os.writev(log, [RECORD.pack(offset, size), data])
    return struct.pack("<I4x", size)


if __name__ == "__main__":
    serve(int(sys.argv[1]), os.open(sys.argv[2], os.O_RDWR), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND))
