"""Arguments of the benchmarks' commands: a wrong one is told in a line, and nothing is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

ENGINES = ("io_uring", "epoll", "selectors")


def whole(least: int = 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number, and how small it may be."""

    def whole_number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"it must be {least} or more, not {value}")
        return value

    return whole_number


def duration(text: str) -> float:
    """The type of an argument in seconds."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"it must be more than 0 and finite, not {text}")
    return value


def file_to_write(text: str) -> Path:
    """The type of an argument that is a file's name, whose folder is there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, help="the best one here when left out")


def add_engines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        help="may be given several times; io_uring and epoll when left out",
    )


def engines_of(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(options.engine or ["io_uring", "epoll"]))
