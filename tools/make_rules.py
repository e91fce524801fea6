"""Write docs/rules.md: which test holds which rule for which thing that a port takes.

python tools/make_rules.py            writes it
python tools/make_rules.py --check    exit status 1 when it is out of date or a test is not there
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from made_page import write_or_check  # noqa: E402

import test_rules_for_every_row as tests  # noqa: E402
from rows import GROUPS, Row  # noqa: E402

INTRODUCTION = """\
# The rules, and what they are tested on

Seventeen rules hold for a port, whatever is associated with it and whatever engine carries it out.
This page says which test holds each of them for each kind of operation. It is made by
`tools/make_rules.py` from the tests themselves.

All tests of the table run on every engine, with the GIL and without; those of `iocp` under Wine. A
new kind of operation is one more description in `tests/rows/`, and gets them all:

```
make test ARGS="tests/test_rules_for_every_row.py -k sendfile"
```

What races is run with a seed, which is printed: `COMPLETIONPORT_SEED=123` repeats it, and
`COMPLETIONPORT_ROUNDS=1000` runs it longer.

## The rules
"""

RULES = {
    1: "Every operation that was accepted gives exactly one packet",
    2: "Operations on a handle are carried out in the order in which they were posted",
    3: "A send completes when the kernel has taken all of it",
    4: "The end of a stream is a success of 0 bytes, a reset is an error",
    5: "A receive of 0 bytes waits for data, and takes none",
    6: "`cancel()` and `close()` give each pending operation its one packet, and no operation "
    "reaches another file",
    7: "Buffers and Overlapped objects live until the kernel is done with them",
    8: "`port.close()` wakes every thread in `get()`",
    9: "Any number of threads call `get()`",
    10: "What a thread has posted completes although the thread has ended",
    11: "Files in any mode work alike",
    12: "EINTR, EAGAIN, full and overflowing queues do not show",
    13: "After `fork()` the child is refused, and the parent unharmed",
    14: "An idle port uses no processor time",
    15: "All of it holds without the GIL, and the interpreter can exit meanwhile",
    16: "Wrong arguments raise at the call, and say what was expected",
    17: "Its turn comes: while packets keep coming, everything else is heard of within a bounded "
    "number of them",
}

# Where a rule says something of a few kinds of operations alone.
ELSEWHERE = {
    1: ["test_random.py::test_nothing_is_lost_doubled_or_mixed"],
    2: [
        "test_order.py::test_any_sizes_of_receives_and_messages_keep_the_order",
        "test_order.py::test_sends_of_many_threads_do_not_mix",
        "test_file_operations.py::test_writes_that_overlap_leave_what_they_would_one_by_one",
        "test_signals.py::test_each_signal_gives_a_packet_and_they_keep_their_order",
        "test_changes.py::test_several_calls_at_a_time_tell_each_change_once",
    ],
    3: [
        "test_streams.py::test_a_send_completes_when_all_of_it_was_taken",
        "test_shutdown_and_sendfile.py::test_head_and_tail_go_around_it",
        "test_files.py::test_a_write_completes_when_all_of_it_was_taken",
        "test_files.py::test_a_named_pipe_that_is_full_is_written_when_there_is_room",
        "test_files.py::test_what_a_terminal_has_no_room_for_is_written_later",
    ],
    4: [
        "test_streams.py::test_end_of_stream_is_a_receive_of_nothing",
        "test_streams.py::test_a_reset_is_a_packet_with_an_error",
        "test_shutdown_and_sendfile.py::test_a_reset_is_a_packet_with_an_error",
        "test_files.py::test_the_end_of_the_file_is_a_read_of_nothing",
        "test_files.py::test_the_end_of_the_pipe_is_a_read_of_nothing",
        "test_files.py::test_the_last_one_inside_leaves",
    ],
    5: [
        "test_streams.py::test_a_zero_length_receive_tells_that_there_is_data",
        "test_datagrams.py::test_a_size_of_0_waits_and_takes_nothing",
    ],
    6: [
        "test_cancel_and_close.py::test_cancel_of_an_accept_and_a_connect_that_wait",
        "test_cancel_and_close.py::test_operations_never_see_the_next_file_of_that_number",
        "test_file_operations.py::test_what_waits_in_line_is_aborted",
        "test_limits.py::test_a_send_that_fails_in_its_midst_tells_how_far_it_came",
    ],
    7: ["test_messages.py::test_descriptors_that_wait_to_be_sent_may_be_closed"],
    9: [
        "test_threads.py::test_the_thread_that_came_last_is_served_first",
        "test_packets.py::test_get_in_the_main_thread_answers_ctrl_c",
    ],
    12: [
        "test_limits.py::test_a_message_into_many_buffers_comes_whole_or_stays",
        "test_limits.py::test_a_message_of_many_buffers_goes_whole_or_not_at_all",
        "test_streams.py::test_ten_thousand_operations_are_outstanding_at_once",
        "test_streams.py::test_thousands_of_operations_complete_before_anyone_takes_one",
    ],
    13: ["test_fork.py::test_forks_while_threads_are_busy"],
    14: ["test_idle.py::test_a_waiting_thread_is_not_shown_as_iowait"],
    15: ["test_exit.py::test_again_and_again"],
    16: ["test_arguments.py::test_sizes_and_buffers_to_fill"],
    17: [
        "test_turns.py::test_a_receive_is_heard_of_beside_posts",
        "test_turns.py::test_a_quiet_client_is_answered_beside_some_that_flood",
        "test_turns.py::test_a_quiet_peer_is_answered_beside_some_that_flood",
    ],
}


def page() -> str:
    parts = [INTRODUCTION]
    columns: list[tuple[str, str]] = []
    for number, title in RULES.items():
        parts.append(f"{number}. {title}.")
        held = [test for of, test in tests.RULES if of == number]
        for place, test in enumerate(held):
            letter = f"{number}{chr(ord('a') + place)}"
            columns.append((letter, test.__name__))
            parts.append(f"    - {letter}: {inspect.getdoc(test)} (`{test.__name__}`)")
        if number in ELSEWHERE:
            names = ", ".join(f"`{name}`" for name in ELSEWHERE[number])
            parts.append(f"    - {'also' if held else 'held by'}: {names}")
    parts.append(f"\n## The table\n\n| | {' | '.join(letter for letter, _ in columns)} |")
    parts.append(f"|---|{'---|' * len(columns)}")
    reasons: list[str] = []

    def note(why: str) -> str:
        if why not in reasons:
            reasons.append(why)
        return f"({reasons.index(why) + 1})"

    for group, rows in GROUPS.items():
        parts.append(f"| **{group}** |{' |' * len(columns)}")
        for row in rows:
            cells = []
            for _, name in columns:
                cells.append(cell(row, name, note))
            parts.append(f"| {row.title} | {' | '.join(cells)} |")
    parts.append(
        "\n✓: on Unix and on Windows; U: on Unix only; W: on Windows only. Where a rule does not "
        "apply:\n"
    )
    parts += [f"{place}. {why}" for place, why in enumerate(reasons, 1)]
    return "\n".join(parts) + "\n"


def cell(row: type[Row], name: str, note: Callable[[str], str]) -> str:
    """Where a row has the rule, and why not elsewhere."""
    if why := row.without.get(name):
        return note(why)
    if row.not_on_unix:
        return f"W {note(row.not_on_unix)}"
    if why := row.why_not_on_windows(name):
        return f"U {note(why)}"
    return "✓"


def missing() -> list[str]:
    """Tests that are named here and are not there."""
    return [
        name
        for names in ELSEWHERE.values()
        for name in names
        if not re.search(
            rf"^ *def {name.partition('::')[2]}\(",
            (ROOT / "tests" / name.partition("::")[0]).read_text(),
            re.MULTILINE,
        )
    ]


def main() -> int:
    if missing():
        print("no such tests:", ", ".join(missing()))
        return 1
    return write_or_check("rules.md", page(), "make_rules.py")


if __name__ == "__main__":
    sys.exit(main())
