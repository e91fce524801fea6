"""`examples/file_copy.py` against `cp -r`: 10,000 small files, and one of 2 GiB.

The targets are on the same file system as the source, which is in the page cache, or with
``--cold`` dropped from it before each copy. All start as programs, so the start of the interpreter
counts. Each round runs all of them, in another order each time, and with memory that was used just
before. ``file_copy`` is without its check,
as `cp` has none; ``with check`` is what the program does when it is not told otherwise.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import middle_half

PROGRAM = Path(__file__).parent.parent / "examples/file_copy.py"


def small_files(root: Path, count: int) -> None:
    chance = random.Random(1)
    for number in range(count):
        folder = root / f"{number % 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(chance.randbytes(chance.randrange(8192)))


def one_file(root: Path, size: int) -> None:
    root.mkdir()
    block = random.Random(1).randbytes(1 << 20)
    with (root / "big").open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)


def touch_memory(size: int) -> None:
    """Use so much memory, and give it back.

    A virtual machine has given back to its host what nobody has used for a while. To get a page
    from there takes longer than to copy it, and who meets such a page is a matter of chance.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    memory = mmap.mmap(-1, size, flags)
    memory.close()


def forget(root: Path) -> None:
    """Have the page cache drop the files; what was written goes to the disk first."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(command: list[str], target: Path) -> float:
    start = time.perf_counter()
    subprocess.run([*command, str(target)], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", default="io_uring")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="the source is read from the disk")
    parser.add_argument("--small", type=int, default=10_000, help="how many small files")
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the one file")
    parser.add_argument("--folder", default="/var/tmp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, targets = Path(folder) / "source", Path(folder) / "targets"
        ours = [sys.executable, str(PROGRAM), "--quiet", "--engine", options.engine, str(source)]
        commands = {
            "file_copy": [*ours, "--no-check"],
            "with check": ours,
            "cp -r": ["cp", "-r", str(source)],
        }
        for name, make, amount in (
            (f"{options.small:,} small files", small_files, options.small),
            (f"one file of {options.mebibytes} MiB", one_file, options.mebibytes << 20),
        ):
            if not amount:
                continue
            make(source, amount)
            targets.mkdir()
            copies = 0
            times: dict[str, list[float]] = {command: [] for command in commands}
            order = list(commands)
            for _ in range(options.rounds):
                for command in order:
                    if options.cold:
                        forget(source)
                    touch_memory(2 * max(options.mebibytes, 64) << 20)
                    copies += 1
                    target = targets / f"{copies}"
                    times[command].append(seconds(commands[command], target))
                    # Many files stay until the end: ext4 gives a deleted file's number to no other
                    # for some minutes, and passes over all of these for every new file.
                    if make is one_file:
                        shutil.rmtree(target)
                order = order[1:] + order[:1]
            shutil.rmtree(source)
            shutil.rmtree(targets)
            print(f"{name}, {'cold' if options.cold else 'in the page cache'}, {options.engine}")
            for command, found in times.items():
                ratios = [other / own for other, own in zip(times["cp -r"], found, strict=True)]
                low, high = middle_half(ratios)
                print(
                    f"  {command:10} {statistics.median(found):5.2f} s, speed against cp -r "
                    f"{statistics.median(ratios):.2f} (middle half {low:.2f} to {high:.2f})"
                )


if __name__ == "__main__":
    main()
