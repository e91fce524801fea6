"""`examples/file_copy.py` against `cp -r`: 10,000 small files, and one of 2 GiB.

The targets are on the same file system as the source, which is in the page cache, or with
``--cold`` dropped from it before each copy. All start as programs, so the start of the interpreter
counts. Each round runs all of them, in another order each time, and with memory that was used just
before. ``file_copy`` is without its check,
as `cp` has none; ``with check`` is what the program does when it is not told otherwise.

Exit status: 0 when all bars hold, 1 when one does not or something failed.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from arguments import ENGINES, whole
from report import Report, middle, ratio_bar, ratios, times

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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, default="io_uring")
    parser.add_argument("--rounds", type=whole(), default=7)
    parser.add_argument("--cold", action="store_true", help="the source is read from the disk")
    parser.add_argument("--small", type=whole(0), default=10_000, help="how many small files")
    parser.add_argument("--mebibytes", type=whole(0), default=2048, help="size of the one file")
    parser.add_argument("--folder", default="/var/tmp")
    options = parser.parse_args()
    held = True
    try:
        for report in compare(options):
            report.show()
            held = held and not report.fails()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"copying.py: {error}", file=sys.stderr)
        return 1
    return int(not held)


def compare(options: argparse.Namespace) -> Iterator[Report]:
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
            report = Report(
                f"{name}, {'cold' if options.cold else 'in the page cache'}, {options.engine}",
                ["", "s", "speed against cp -r"],
                rounds={command: [] for command in commands},
            )
            order = list(commands)
            for _ in range(options.rounds):
                for command in order:
                    if options.cold:
                        forget(source)
                    touch_memory(2 * max(options.mebibytes, 64) << 20)
                    copies += 1
                    target = targets / f"{copies}"
                    report.rounds[command].append({"s": seconds(commands[command], target)})
                    # Many files stay until the end: ext4 gives a deleted file's number to no other
                    # for some minutes, and passes over all of these for every new file.
                    if make is one_file:
                        shutil.rmtree(target)
                order = order[1:] + order[:1]
            shutil.rmtree(source)
            shutil.rmtree(targets)
            for command, rounds in report.rounds.items():
                speeds = ratios(report.rounds, "cp -r", command, "s")
                report.rows.append([command, f"{middle(rounds, 's'):.2f}", times(speeds)])
            ratio_bar(report, "speed of file_copy against cp -r", "cp -r", "file_copy", 1, "s")
            yield report


if __name__ == "__main__":
    sys.exit(main())
