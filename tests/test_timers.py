"""Timers: a packet at its time, exactly one, and none after a cancel that succeeded."""

from __future__ import annotations

import gc
import math
import random
import threading
import time
import warnings
import weakref

import pytest

from completionport import CompletionPort, PortClosed, Strand, Timer, WorkerPool
from support import (
    LONG,
    Background,
    assert_quiet,
    compute_until,
    needs_concurrency,
    needs_fork,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)

HOUR = 3600.0


class Thing:
    """Something that can be weakly referenced."""


def set_in_time(port, seconds, setting):
    """Give `setting` the time, on the clock of `monotonic`, at which its first timer is to be due.

    Once more where this thread was stopped for so long that it was over before all were set.
    Returned: what `setting` returned, a list of timers.
    """
    while True:
        start = time.monotonic() + seconds
        timers = setting(start)
        if time.monotonic() < start:
            return timers
        for timer in timers:
            timer.cancel()
        while port.get(0):
            pass


def test_the_values_come_out_unchanged_and_not_early(port):
    values = (object(), [1, 2], Thing())
    timer = port.post_after(0.02, *values)
    assert isinstance(timer, Timer)
    assert timer.pending
    done = take_one(port)
    assert time.monotonic() >= timer.when
    assert done.transferred is values[0]
    assert done.key is values[1]
    assert done.overlapped is values[2]
    assert done.error is None
    assert not timer.pending
    assert_quiet(port)


def test_the_arguments_have_defaults_and_names(port):
    port.post_after(0)
    assert tuple(take_one(port)) == (0, None, None, None)
    port.post_at(0.0, overlapped="overlapped", key="key", transferred="transferred")
    assert tuple(take_one(port)) == ("transferred", "key", "overlapped", None)


def test_when_is_on_the_clock_of_monotonic(port):
    before = time.monotonic()
    timer = port.post_after(10)
    assert before + 10 <= timer.when <= time.monotonic() + 10.001
    at = port.post_at(before + 20)
    assert at.when == pytest.approx(before + 20, abs=1e-6)
    assert "pending" in repr(timer)
    timer.cancel()
    assert "pending" not in repr(timer)


def test_packets_come_by_time_and_not_by_the_order_of_setting(port):
    order = list(range(100))
    random.Random(5).shuffle(order)
    set_in_time(port, 0.1, lambda start: [port.post_at(start + one * 0.0005, one) for one in order])
    assert [done.transferred for done in take(port, 100)] == list(range(100))


def test_packets_of_equal_time_come_in_the_order_of_setting(port):
    set_in_time(port, 0.1, lambda when: [port.post_at(when, number) for number in range(1000)])
    assert [done.transferred for done in take(port, 1000)] == list(range(1000))


def test_times_that_have_passed_are_due_at_once(port):
    for number, when in enumerate([time.monotonic() - 1, 0, -5.0]):
        port.post_at(when, number)
    assert sorted(done.transferred for done in (port.get(0), port.get(0), port.get(0))) == [0, 1, 2]


def test_a_cancelled_timer_gives_no_packet_and_lets_its_values_go(port):
    thing = Thing()
    seen = weakref.ref(thing)
    timer = port.post_after(HOUR, thing, thing, thing)
    del thing
    assert timer.cancel()
    assert seen() is None
    assert not timer.pending
    assert not timer.cancel()
    assert port.stats()["timers"] == 0
    assert port.get(0.01) is None


def test_a_cancel_is_too_late_once_the_packet_is_there(port):
    timer = port.post_after(0)
    wait_for_stats(port, queued=1)
    assert not timer.cancel()
    assert take_one(port).transferred == 0
    assert not timer.cancel()
    assert_quiet(port)


def test_only_one_of_many_threads_cancels(port):
    timers = [port.post_after(HOUR) for _ in range(200)]
    gate = threading.Barrier(4)

    def cancel_all():
        gate.wait(LONG)
        return sum(timer.cancel() for timer in timers)

    threads = [Background(cancel_all) for _ in range(4)]
    assert sum(thread.outcome() for thread in threads) == 200
    assert port.get(0) is None


def test_each_timer_is_either_cancelled_or_gives_its_packet(port):
    chance = random.Random(7)
    timers = {number: port.post_after(chance.random() * 0.05, number) for number in range(3000)}
    stopped: set[int] = set()

    def cancel_half():
        for number in range(0, 3000, 2):
            if timers[number].cancel():
                stopped.add(number)

    seen: list[int] = []

    def collect():
        while (done := port.get(LONG)).key is None:
            seen.append(done.transferred)

    takers = [Background(collect) for _ in range(2)]
    Background(cancel_half).outcome()
    wait_for_stats(port, timers=0, queued=0)
    for _ in takers:
        port.post(key="stop")
    for taker in takers:
        taker.outcome()
    assert len(seen) == len(set(seen))
    assert sorted([*seen, *stopped]) == list(range(3000))


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_setting_and_cancelling_leaves_the_others_in_order(port, seed):
    chance = random.Random(seed)
    left = {}

    def mixture(start):
        left.clear()
        for number in range(4000):
            when = start + chance.randrange(200) * 0.0005
            left[number] = (when, port.post_at(when, number))
            if chance.random() < 0.6:
                victim = chance.choice(list(left))
                assert left.pop(victim)[1].cancel() or time.monotonic() > start
        return [timer for _, timer in left.values()]

    set_in_time(port, 0.6, mixture)
    expected = sorted(left, key=lambda number: (left[number][0], number))
    numbers = port.stats()
    assert numbers["timers"] + numbers["queued"] == len(expected)
    assert [done.transferred for done in take(port, len(expected))] == expected
    assert_quiet(port)


def test_a_thread_that_sleeps_is_told_of_an_earlier_timer(port):
    port.post_after(HOUR, "late")
    waiting = Background(port.get, LONG)
    wait_for_stats(port, waiting=1)
    start = time.monotonic()
    port.post_after(0.02, "early")
    assert waiting.outcome().transferred == "early"
    assert time.monotonic() - start < LONG / 2


def test_a_thread_that_sleeps_without_a_timer_is_told_of_the_first(port):
    waiting = Background(port.get)
    wait_for_stats(port, waiting=1)
    port.post_after(0.02, "first")
    assert waiting.outcome().transferred == "first"


def test_a_timer_does_not_change_how_long_get_waits(port):
    port.post_after(HOUR)
    start = time.monotonic()
    assert port.get(0.05) is None
    assert time.monotonic() - start >= 0.05 - time.get_clock_info("monotonic").resolution
    set_in_time(port, 0.03, lambda when: [port.post_at(when)])[0].cancel()
    assert port.get(0.05) is None


def test_with_no_thread_there_the_packet_waits_in_the_queue(port):
    port.post_after(0, "due")
    port.post_after(HOUR)
    numbers = port.stats()
    assert (numbers["queued"], numbers["timers"], numbers["posted"]) == (1, 1, 1)
    assert port.get(0).transferred == "due"


def test_the_timers_packet_is_one_of_many_for_get_many(port):
    set_in_time(port, 0.01, lambda when: [port.post_at(when, number) for number in range(10)])
    seen: list[int] = []
    while len(seen) < 10:
        seen += [done.transferred for done in port.get_many(4, LONG)]
    assert seen == list(range(10))


def test_a_program_that_keeps_posting_to_itself_still_sees_its_timers(port):
    port.post_after(0.02, key="timer")
    port.post(key="post")
    deadline = time.monotonic() + LONG
    while take_one(port).key == "post":
        assert time.monotonic() < deadline
        port.post(key="post")
    assert take_one(port).key == "post"


@needs_concurrency
def test_a_timer_that_comes_due_while_all_compute_goes_to_the_first_that_is_free(make_port):
    port = make_port(1)
    port.post(key="work")
    over = threading.Event()

    def work():
        take_one(port)
        port.post_after(0.001, key="timer")
        compute_until(over.is_set)
        return port.get(LONG)

    busy = Background(work)
    wait_for_stats(port, running=1)
    other = Background(port.get, LONG)
    wait_for_stats(port, waiting=1)
    over.set()
    port.post_after(0.01, key="timer")
    assert busy.outcome().key == "timer"
    assert other.outcome().key == "timer"


def test_a_thread_that_blocks_is_replaced_for_a_timer(make_port, engine):
    port = make_port(1)
    port.post(key="work")
    over = threading.Event()

    def work():
        take_one(port)
        if engine == "selectors":
            with port.blocking():
                assert over.wait(LONG)
        else:
            assert over.wait(LONG)

    busy = Background(work)
    wait_until(lambda: port.stats()["taken"] == 1)
    other = Background(port.get, LONG)
    port.post_after(0.02, key="timer")
    assert other.outcome().key == "timer"
    over.set()
    busy.outcome()


def test_a_pool_whose_workers_block_gets_another_one_for_a_timer(make_port, engine):
    port = make_port(1)
    over, came = threading.Event(), threading.Event()

    def work(done):
        if done.key == "timer":
            came.set()
        elif engine == "selectors":
            with port.blocking():
                over.wait(LONG)
        else:
            over.wait(LONG)

    with WorkerPool(port, work, 1, maximum=3):
        port.post(key="block")
        wait_for_stats(port, taken=1)
        port.post_after(0.05, key="timer")
        assert came.wait(LONG)
        over.set()


def test_a_timer_outlives_its_object_and_the_thread_that_set_it(port):
    def set_it():
        port.post_after(0.02, "fired")

    Background(set_it).outcome()
    gc.collect()
    assert take_one(port).transferred == "fired"


def test_a_pending_timer_keeps_its_values_until_its_packet_is_taken(port):
    thing = Thing()
    seen = weakref.ref(thing)
    timer = port.post_after(0.01, key=thing)
    del thing
    gc.collect()
    done = take_one(port)
    assert done.key is seen()
    del done
    gc.collect()
    assert seen() is None
    assert not timer.pending


def test_the_packet_is_bound_to_its_strand(make_port):
    port = make_port(4)
    strand = Strand(port)
    for number in range(3):
        port.post_after(0.001, number, strand=strand)
    assert take_one(port).transferred == 0
    waiting = Background(port.get, LONG)
    wait_for_stats(port, timers=0)
    wait_until(lambda: strand.queued == 2)
    strand.release()
    assert waiting.outcome().transferred == 1
    assert take_one(port).transferred == 2


def test_a_cancelled_timer_lets_its_strand_go(port):
    strand = Strand(port)
    timer = port.post_after(HOUR, strand=strand)
    assert timer.cancel()
    port.post(1, strand=strand)
    assert take_one(port).transferred == 1
    with (
        CompletionPort(engine=port.engine) as other,
        pytest.raises(ValueError, match="another port"),
    ):
        port.post_after(1, strand=Strand(other))


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, 4e9, 10**400])
def test_seconds_that_make_no_sense_are_refused(port, seconds):
    with pytest.raises(ValueError, match="seconds"):
        port.post_after(seconds)
    assert port.stats()["timers"] == 0


@pytest.mark.parametrize("when", [math.nan, math.inf, -math.inf, 1e12, -(10**400)])
def test_times_that_make_no_sense_are_refused(port, when):
    with pytest.raises(ValueError, match="when"):
        port.post_at(when)
    assert port.stats()["timers"] == 0


@pytest.mark.parametrize("value", [None, "1", b"1", True, [1]])
def test_times_that_are_no_numbers_are_refused(port, value):
    with pytest.raises(TypeError, match="seconds"):
        port.post_after(value)
    with pytest.raises(TypeError, match="when"):
        port.post_at(value)


def test_a_hundred_years_can_be_waited_for(port):
    timer = port.post_after(3.1e9)
    assert port.get(0.01) is None
    assert timer.cancel()


def test_a_port_that_is_closed_drops_its_timers(make_port):
    port = make_port()
    thing = Thing()
    seen = weakref.ref(thing)
    timers = [port.post_after(seconds, key=thing) for seconds in (0, 0.001, HOUR)]
    del thing
    port.close()
    gc.collect()
    assert seen() is None
    for timer in timers:
        assert not timer.pending
        assert not timer.cancel()
    assert port.stats()["timers"] == 0
    with pytest.raises(PortClosed):
        port.post_after(1)
    with pytest.raises(PortClosed):
        port.post_at(time.monotonic())


def test_a_waiting_thread_leaves_a_port_that_is_closed_with_timers_pending(make_port):
    port = make_port()
    port.post_after(HOUR)
    waiting = Background(port.get)
    wait_for_stats(port, waiting=1)
    port.close()
    with pytest.raises(PortClosed):
        waiting.outcome()


def test_threads_may_set_timers_while_the_port_is_closed(make_port):
    for _ in range(20):
        port = make_port()
        started = threading.Event()

        def set_them(port=port, started=started):
            while True:
                port.post_after(HOUR, key=Thing())
                started.set()

        setter = Background(set_them)
        assert started.wait(LONG)
        port.close()
        with pytest.raises(PortClosed):
            setter.outcome()
        assert port.stats()["timers"] == 0


def test_a_port_that_is_dropped_with_timers_pending_is_closed(engine):
    port = CompletionPort(engine=engine)
    thing = Thing()
    seen = weakref.ref(thing)
    timer = port.post_after(HOUR, key=thing)
    del thing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del port
        gc.collect()
    assert seen() is None
    assert not timer.pending


def test_a_million_pending_timers_cost_microseconds_each(make_port):
    """To set, to cancel in any order, to pass over, to fire, and to drop with the port.

    A look at all that are pending, for each, would take hours.
    """
    count = 1_000_000
    port = make_port()
    chance = random.Random(3)
    began = time.process_time()
    timers = [port.post_after(HOUR * (1 + chance.random())) for _ in range(count)]
    assert port.stats()["timers"] == count
    # One that is set behind a million is due before all of them.
    for number in range(100):
        port.post_after(0.001, number)
        assert take_one(port).transferred == number
    chance.shuffle(timers)
    assert all(timer.cancel() for timer in timers[::2])
    assert port.stats()["timers"] == count // 2
    assert not any(timer.cancel() for timer in timers[:2000:2])
    port.post_after(0, "now")
    assert take_one(port).transferred == "now"
    port.close()
    assert not any(timer.pending for timer in timers)
    assert (time.process_time() - began) / count < 100e-6


def test_threads_that_set_cancel_and_take_lose_nothing(make_port):
    port = make_port(4)
    rounds = 400

    def set_and_cancel(seed):
        chance = random.Random(seed)
        stopped = 0
        for _ in range(rounds):
            timers = [port.post_after(chance.random() * 0.01, 1) for _ in range(5)]
            stopped += sum(timer.cancel() for timer in timers[:2])
        return 5 * rounds - stopped

    def collect():
        count = 0
        while (done := port.get(LONG)).key is None:
            count += done.transferred
        return count

    takers = [Background(collect) for _ in range(2)]
    setters = [Background(set_and_cancel, seed) for seed in range(3)]
    expected = sum(setter.outcome() for setter in setters)
    wait_for_stats(port, timers=0, queued=0)
    for _ in takers:
        port.post(key="stop")
    assert sum(taker.outcome() for taker in takers) == expected


@needs_fork
def test_a_childs_timers_are_the_parents(engine):
    run = """
import os, warnings
warnings.simplefilter("ignore")
from completionport import CompletionPort, PortForked

port = CompletionPort()
timer = port.post_after(0.2, "mine")
child = os.fork()
if child == 0:
    status = 0
    for call in (timer.cancel, lambda: port.post_after(1), lambda: port.post_at(1)):
        try:
            call()
            status = 1
        except PortForked:
            pass
    with CompletionPort() as own:
        own.post_after(0.01, "own")
        if own.get(10).transferred != "own":
            status = 2
    os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert port.get(10).transferred == "mine"
port.close()
"""
    done = run_python(run, engine=engine, timeout=60)
    assert done.stderr == ""


def test_a_program_may_end_with_timers_pending(engine):
    done = run_python(
        """
from completionport import CompletionPort
port = CompletionPort()
for _ in range(1000):
    port.post_after(3600, key=object())
port.close()
print("over")
""",
        engine=engine,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("over\n", "")
