"""Random 4 KiB reads of one file, many in flight: the port, asyncio with threads, and fio.

The port takes its packets with `get_many` and starts a read for each. asyncio runs `os.pread` in
its default executor, one task for each read in flight. fio is the one with the same depth on the
same file, with its engine io_uring. With ``--direct`` all of them go to the disk (O_DIRECT).

Exit status: 0 when all bars hold, 1 when one does not or something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from arguments import add_engines, duration, engines_of, file_to_write, whole
from report import Report, middle, ratio_bar, ratios, times

from completionport import CompletionPort, Overlapped

BLOCK = 4096


class Read(Overlapped):
    """One read in flight, with its memory where the file is read past the page cache."""

    def __init__(self, direct: bool) -> None:
        self.target: int | mmap.mmap = mmap.mmap(-1, BLOCK) if direct else BLOCK


def of_port(
    engine: str, path: str, depth: int, seconds: float, places: list[int], direct: bool
) -> float:
    """Reads a second."""
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    count, total = 0, len(places)
    with CompletionPort(1, engine=engine) as port, port.associate(descriptor, None) as handle:
        read, get_many = handle.read, port.get_many
        for index in range(depth):
            operation = Read(direct)
            read(operation.target, places[index], operation)
        start = time.perf_counter()
        end = start + seconds
        while time.perf_counter() < end:
            for done in get_many(depth):
                operation = done.overlapped
                if done.error is not None:
                    raise done.error
                count += 1
                read(operation.target, places[count % total], operation)
        elapsed = time.perf_counter() - start
        for _ in range(depth):
            port.get()
    return count / elapsed


def of_asyncio(path: str, depth: int, seconds: float, places: list[int]) -> float:
    """Reads a second."""

    async def one(loop: asyncio.AbstractEventLoop, index: int) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await loop.run_in_executor(None, os.pread, descriptor, BLOCK, places[index % total])
            index += depth
            count += 1

    async def all_of_them() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(one(loop, index) for index in range(depth)))

    descriptor = os.open(path, os.O_RDONLY)
    count, total = 0, len(places)
    start = time.perf_counter()
    end = start + seconds
    asyncio.run(all_of_them())
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    return count / elapsed


def of_fio(path: str, depth: int, seconds: float, direct: bool) -> float:
    """Reads a second."""
    done = subprocess.run(
        [
            "fio", "--name=read", f"--filename={path}", "--rw=randread", f"--bs={BLOCK}",
            "--ioengine=io_uring", f"--iodepth={depth}", f"--runtime={seconds}", "--time_based",
            f"--direct={int(direct)}", "--invalidate=0", "--readonly", "--output-format=json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def make_file(path: Path, size: int) -> None:
    if not path.exists() or path.stat().st_size != size:
        block = random.Random(1).randbytes(1 << 20)
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(block)
            os.fsync(file.fileno())
    with path.open("rb", 0) as file:
        while file.read(1 << 20):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_engines(parser)
    parser.add_argument("--rounds", type=whole(), default=5)
    parser.add_argument("--seconds", type=duration, default=1.0, help="of each measurement")
    parser.add_argument("--depth", type=whole(), default=64, help="reads in flight")
    parser.add_argument("--direct", action="store_true", help="past the page cache")
    parser.add_argument("--file", type=file_to_write, default=Path("/var/tmp/completionport-reads"))
    parser.add_argument("--mebibytes", type=whole(), default=256, help="its size")
    options = parser.parse_args()
    if shutil.which("fio") is None:
        parser.error("fio is not there, which this compares with: install the package fio")
    try:
        report = compare(options)
    except OSError as error:
        print(f"files.py: {error}", file=sys.stderr)
        return 1
    report.show()
    return int(report.fails())


def compare(options: argparse.Namespace) -> Report:
    make_file(options.file, options.mebibytes << 20)
    path, depth = str(options.file), options.depth
    chance = random.Random(2)
    blocks = (options.mebibytes << 20) // BLOCK
    places = [chance.randrange(blocks) * BLOCK for _ in range(1 << 16)]
    engines = engines_of(options)
    report = Report(
        f"random reads of {BLOCK} bytes, {depth} in flight, "
        f"{'past the page cache' if options.direct else 'from the page cache'}",
        ["", "reads/s", "to asyncio", "to fio"],
    )

    def note(name: str, rate: float) -> None:
        report.rounds.setdefault(name, []).append({"rate": rate})

    for _ in range(options.rounds):
        for engine in engines:
            note(engine, of_port(engine, path, depth, options.seconds, places, options.direct))
        if not options.direct:
            note("asyncio", of_asyncio(path, depth, options.seconds, places))
        note("fio", of_fio(path, depth, options.seconds, options.direct))
    for name, rounds in report.rounds.items():
        compared = [
            times(ratios(report.rounds, name, other, "rate")) if name != other else "-"
            for other in ("asyncio", "fio")
        ]
        report.rows.append([name, f"{middle(rounds, 'rate'):,.0f}", *compared])
    for engine in engines:
        ratio_bar(report, f"{engine}, reads against asyncio", engine, "asyncio", 3)
        against_fio = 0.9 if options.direct else 0.5
        ratio_bar(report, f"{engine}, reads against fio", engine, "fio", against_fio)
    return report


if __name__ == "__main__":
    sys.exit(main())
