"""`examples/file_copy.py` against `cp -r`: 10,000 small files, and one of 2 GiB.

The source is in the page cache, the targets are on the same file system. Both start as programs,
so the start of the interpreter counts.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def seconds(command: list[str], target: Path) -> float:
    start = time.perf_counter()
    subprocess.run([*command, str(target)], check=True)
    elapsed = time.perf_counter() - start
    shutil.rmtree(target)
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", default="io_uring")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/var/tmp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        ours = [sys.executable, str(PROGRAM), "--quiet", "--no-check", "--engine", options.engine]
        for name, make, amount in (
            ("10,000 small files", small_files, 10_000),
            ("one file of 2 GiB", one_file, 2 << 30),
        ):
            make(source, amount)
            times: dict[str, list[float]] = {"file_copy": [], "cp -r": []}
            for _ in range(options.rounds):
                times["file_copy"].append(seconds([*ours, str(source)], target))
                times["cp -r"].append(seconds(["cp", "-r", str(source)], target))
            shutil.rmtree(source)
            ratio = statistics.median(
                other / own for own, other in zip(times["file_copy"], times["cp -r"], strict=True)
            )
            print(
                f"{name}: file_copy {statistics.median(times['file_copy']):.2f} s, cp -r "
                f"{statistics.median(times['cp -r']):.2f} s, speed against cp -r {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
