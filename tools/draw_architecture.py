"""Draw docs/architecture.svg, what a byte goes through, and docs/rooms.svg, what imports what.

python tools/draw_architecture.py            draws them
python tools/draw_architecture.py --check    exit status 1 when one is out of date
"""

from __future__ import annotations

import sys
from html import escape

from made_page import write_or_check

WIDTH = 1080
INK, LINE, PAPER = "#1d2733", "#5b6b7b", "#ffffff"
KERNEL, SHARED, THREAD, USER = "#e8eef5", "#e6f2ea", "#fdf3df", "#f7e6e6"
NATIVE = ["server", "port", "engines", "pool", "channels", "scheduling", "primitives"]
PORTABLE = NATIVE[:-1]


def box(x: int, y: int, w: int, h: int, fill: str, title: str, *lines: str) -> str:
    parts = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{fill}" stroke="{LINE}"/>',
        f'<text x="{x + 12}" y="{y + 24}" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [
        f'<text x="{x + 12}" y="{y + 46 + 19 * number}" font-size="13">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    return "".join(parts)


def arrow(x1: int, y1: int, x2: int, y2: int, label: str, lx: int, ly: int) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.6" '
        f'marker-end="url(#tip)"/><text x="{lx}" y="{ly}" font-size="13">{escape(label)}</text>'
    )


def draw() -> str:
    shapes = [
        box(30, 60, 250, 230, KERNEL, "Kernel", "sockets, pipes, files", "",
            "io_uring: one ring; in it the head of", "each queue of a channel (of a file all",
            "that need not wait), and buffers for", "the server", "",
            "epoll: an edge says that a file", "is ready"),
        box(390, 60, 270, 230, SHARED, "Engine  (one file each)",
            "the leader waits here for everybody", "and reaps; it holds no lock meanwhile", "",
            "channel: a descriptor of its own, and", "the queues of reads and of writes",
            "(channel lock)", "", "operation done: to the packet queue"),
        box(770, 60, 280, 230, SHARED, "Scheduler",
            "packets: first in, first out", "waiting threads: last in, first out",
            "places: at most `concurrency` threads", "hold a packet (scheduler lock)", "",
            "nothing here knows Python objects", "beyond the references it carries"),
        box(770, 400, 280, 190, THREAD, "Workers", "threads in get(), or a server's own", "",
            "running: holds a place", "leading: waits in the kernel",
            "parked: waits on its own futex"),
        box(390, 400, 270, 190, THREAD, "Connection  (a strand)",
            "one worker at a time", "bytes object made from the buffer,", "buffer given back", "",
            "send: at once, or queued in blocks"),
        box(30, 400, 250, 190, USER, "Handler (yours)", "connected, received,",
            "end_of_stream, drained, closed", "",
            "or with the low-level API:", "port.get() gives a Completion"),
        arrow(280, 130, 388, 130, "1 completed", 294, 122),
        arrow(660, 130, 768, 130, "2 packet", 682, 122),
        arrow(910, 290, 910, 398, "3 taken", 920, 350),
        arrow(770, 470, 662, 470, "4 served", 684, 462),
        arrow(390, 470, 282, 470, "5 received", 300, 462),
        arrow(280, 550, 388, 550, "6 send", 310, 542),
        arrow(525, 400, 525, 292, "7 SEND, or send(2)", 535, 350),
        arrow(390, 230, 282, 230, "8 to the peer", 294, 222),
    ]  # fmt: skip
    return picture("What a byte goes through, from the socket to received() and back", 640, shapes)


def floors(x: int, y: int, w: int, names: list[str]) -> str:
    """Rooms inside of one, each on those below it."""
    return "".join(
        f'<rect x="{x}" y="{y + 26 * number}" width="{w}" height="22" rx="4" fill="{PAPER}" '
        f'stroke="{LINE}"/><text x="{x + 8}" y="{y + 16 + 26 * number}" font-size="13">'
        f"{escape(name)}</text>"
        for number, name in enumerate(names)
    )


def draw_rooms() -> str:
    shapes = [
        box(60, 60, 190, 62, USER, "cli", "the command line"),
        box(270, 60, 480, 62, USER, "win32", "Win32's names, on Windows the real functions"),
        box(60, 146, 340, 62, THREAD, "directories", "opens a directory for a port"),
        box(420, 146, 330, 62, THREAD, "engines", "which run here; chooses the implementation"),
        box(420, 232, 330, 62, SHARED, "windows", "iocp: the ports of Windows, through ctypes"),
        box(60, 318, 340, 242, SHARED, "native", "io_uring, epoll: compiled, on Linux"),
        floors(200, 372, 186, NATIVE),
        box(420, 318, 330, 242, SHARED, "portable", "selectors: the standard library alone"),
        floors(550, 372, 186, PORTABLE),
        box(60, 584, 340, 62, KERNEL, "servers", "servers and their callbacks; pools of threads"),
        box(420, 584, 330, 62, KERNEL, "watches", "signals, processes, changes of a directory"),
        box(60, 670, 340, 62, KERNEL, "crew", "threads that take a port's packets"),
        box(60, 756, 690, 62, KERNEL, "shared", "what every engine checks and does the same way"),
        box(60, 842, 690, 82, KERNEL, "interface",
            "CompletionPort, Handle, Overlapped, Completion, Strand, Timer, the errors:",
            "what a program sees, documented once; it knows no engine"),
        arrow(30, 60, 30, 924, "", 0, 0),
        '<text x="20" y="470" font-size="13" transform="rotate(-90 20 470)">imports</text>',
        f'<path d="M750 883H800V177H752" fill="none" stroke="{INK}" stroke-width="1.6" '
        'stroke-dasharray="5 4" marker-end="url(#tip)"/>',
        *(
            f'<text x="812" y="{470 + 20 * number}" font-size="13">{escape(line)}</text>'
            for number, line in enumerate([
                "CompletionPort(engine=...)",
                "imports no implementation: it asks",
                "what engines has put there",
                "(CompletionPort._choose)",
            ])
        ),
    ]  # fmt: skip
    return picture("The rooms: each imports only from those below it", 956, shapes)


def picture(title: str, height: int, shapes: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="15" fill="{INK}">'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>'
        f'<text x="30" y="36" font-size="18" font-weight="bold">{escape(title)}</text>'
        + "".join(shapes)
        + "</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(
        write_or_check("architecture.svg", draw(), "draw_architecture.py")
        or write_or_check("rooms.svg", draw_rooms(), "draw_architecture.py")
    )
