"""The rooms of the package: imports point downwards only, as docs/design.md draws them.

Every import counts: one in a function, and one that only a type checker sees, as well.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "completionport"
DESIGN = PACKAGE.parents[1] / "docs" / "design.md"
LEVELS = [
    ["__main__"],
    ["__init__", "cli", "win32"],
    ["directories", "engines"],
    ["windows"],
    ["native", "portable"],
    ["servers", "watches"],
    ["crew"],
    ["shared"],
    ["interface"],
]
"""From the top downwards; those of one level know nothing of each other."""
INSIDE = ["server", "port", "engines", "pool", "channels", "scheduling"]
"""The rooms of the compiled part and of the part in Python, from the top downwards."""
LEVELS_INSIDE = {
    "native": [[room] for room in (*INSIDE, "primitives")],
    "portable": [[room] for room in INSIDE],
}
ROOMS = [room for level in LEVELS for room in level]
KINDS = (".py", ".pyi", ".pyx", ".pxd")
CYTHON = re.compile(r"^\s*from (\.+)([\w.]*) (c?)import (\([^)]*\)|[^\n#]*)", re.MULTILINE)


def sources(folder: Path = PACKAGE) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix in KINDS]
    assert found
    return found


def place(path: Path) -> tuple[str, ...]:
    """From the package on: ``("native", "port", "handles")``."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def statements(path: Path) -> Iterator[tuple[int, str, list[str], bool]]:
    """Imports of what is the package's own: how many dots, from where, names, of declarations."""
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):
        for dots, where, c, names in CYTHON.findall(text):
            yield len(dots), where, re.findall(r"(\w+)(?: as \w+)?(?:,|\s*\)?$)", names), bool(c)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith("completionport") for name in node.names), path
        elif isinstance(node, ast.ImportFrom):
            where, names = node.module or "", [name.name for name in node.names]
            if node.level:
                yield node.level, where, names, False
            elif where.partition(".")[0] == "completionport":
                yield (
                    len(place(path)),
                    where.removeprefix("completionport").strip("."),
                    names,
                    False,
                )


def imports(path: Path) -> set[Path]:
    """The files that a file imports."""
    found = set()
    for dots, where, names, declarations in statements(path):
        base = PACKAGE.joinpath(*place(path)[:-dots], *filter(None, where.split(".")))
        for name in names:
            # A module of a package, or a name in a module.
            inside = base / name
            whole = inside if inside.is_dir() or file_of(inside, declarations) else base
            target = whole / "__init__.py" if whole.is_dir() else file_of(whole, declarations)
            assert target is not None, f"{path} imports {where}.{name}, which is nowhere"
            found.add(target)
    if path.suffix == ".pyx" and path.with_suffix(".pxd").exists():
        found.add(path.with_suffix(".pxd"))
    return found


def file_of(module: Path, declarations: bool) -> Path | None:
    """The file of a module; where only declarations are wanted, that of these."""
    kinds = (".pxd", ".pyx") if declarations else (".py", ".pyx")
    return next((file for kind in kinds if (file := Path(f"{module}{kind}")).exists()), None)


def check(levels: list[list[str]], folder: Path) -> None:
    """What stands in a room of the folder imports, of this folder, from lower levels only."""
    level_of = {room: number for number, level in enumerate(levels) for room in level}
    depth = len(folder.relative_to(PACKAGE).parts)
    for path in sources(folder):
        room = place(path)[depth]
        for target in imports(path):
            if target.is_relative_to(folder) and place(target)[depth] != room:
                other = place(target)[depth]
                assert level_of[other] > level_of[room], (
                    f"{path} imports {target}: {other} is not below {room}"
                )


def test_no_file_is_longer_than_800_lines():
    to_be_cut = {PACKAGE / "windows/scheduler.py"}
    root = PACKAGE.parents[1]
    folders = ("src", "tests", "tools", "benchmarks", "examples")
    for path in (path for folder in folders for path in (root / folder).rglob("*")):
        made = path.suffix == ".c" and path.with_suffix(".pyx").exists()  # by Cython
        if path.suffix in (*KINDS, ".h", ".c") and not made and path not in to_be_cut:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 800, f"{path} has {lines} lines: cut it by its subjects"


def test_each_file_and_folder_has_its_place():
    rooms = {place(path)[0] for path in sources()}
    assert rooms == set(ROOMS)
    for folder, levels in LEVELS_INSIDE.items():
        rooms = {place(path)[1] for path in sources(PACKAGE / folder)} - {"__init__"}
        assert rooms == {room for level in levels for room in level}


def test_a_room_imports_only_from_rooms_below_it():
    check(LEVELS, PACKAGE)


@pytest.mark.parametrize("folder", LEVELS_INSIDE)
def test_a_room_inside_a_room_imports_only_from_those_below_it(folder):
    check(LEVELS_INSIDE[folder], PACKAGE / folder)


def test_no_files_import_each_other_in_a_circle():
    standing = {path: imports(path) for path in sources()}
    while lowest := [path for path, below in standing.items() if not below & standing.keys()]:
        for path in lowest:
            del standing[path]
    # What is on a circle, and what stands on one.
    assert not standing, {
        str(path): sorted(map(str, below & standing.keys())) for path, below in standing.items()
    }


def test_the_picture_draws_what_is_imported_below_what_imports_it():
    shapes = (DESIGN.parent / "rooms.svg").read_text()
    bold = r'<text x="\d+" y="(\d+)" font-weight="bold">(\w+)</text>'
    height = {room: int(y) for y, room in re.findall(bold, shapes)}
    assert sorted(height) == sorted(room for room in ROOMS if not room.startswith("__"))
    for above, below in itertools.pairwise(LEVELS):
        for room, other in itertools.product(height.keys() & above, height.keys() & below):
            assert height[room] < height[other], (room, other)


@pytest.mark.parametrize("room", ROOMS)
def test_the_design_page_names_each_module(room):
    page = DESIGN.read_text()
    rooms = page[page.index("## The rooms") : page.index("## Life of an operation")]
    for path in sources():
        if place(path)[0] == room and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", rooms), path
