"""The rooms of the compiled part: imports point downwards only, as docs/design.md draws them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parent.parent / "src" / "completionport" / "native"
ROOMS = ["server", "port", "engines", "pool", "channels", "scheduling", "primitives"]
"""From the top downwards."""
IMPORT = re.compile(r"^\s*from \.\.(\w+)(?:\.\w+)? (?:c?import)", re.MULTILINE)


def test_each_folder_is_a_room():
    assert sorted(ROOMS) == sorted(path.parent.name for path in NATIVE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_takes_only_from_rooms_below_it(room):
    below = ROOMS[ROOMS.index(room) + 1 :]
    sources = [*(NATIVE / room).glob("*.pyx"), *(NATIVE / room).glob("*.pxd")]
    assert sources
    for source in sources:
        for other in IMPORT.findall(source.read_text()):
            assert other in below, f"{source.name} takes from {other}, which is not below {room}"


@pytest.mark.parametrize("room", ROOMS)
def test_the_design_page_names_each_module_of_a_room(room):
    page = (NATIVE.parents[2] / "docs" / "design.md").read_text()
    rooms = page[page.index("## The rooms") : page.index("## Life of an operation")]
    for source in (NATIVE / room).glob("*.p[yx]*"):
        name = source.name.partition(".")[0]
        if name != "__init__":
            assert re.search(rf"\b{name}\b", rooms), name
