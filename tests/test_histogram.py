"""`Histogram`: what it says about times, and the times that a port measures."""

from __future__ import annotations

import itertools
import math
import random
import socket
import threading
import time

import pytest

from completionport import Handler, Histogram, Server, Strand
from completionport.interface.histogram import STEPS, upper_limit_ns
from completionport.portable.scheduling.recorder import Recorder, bucket
from support import (
    LONG,
    Background,
    read_exactly,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)


def histogram_of(*nanoseconds):
    recorder = Recorder()
    for one in nanoseconds:
        recorder.add(one)
    return recorder.snapshot()


class TestBuckets:
    def test_they_follow_each_other_without_a_gap(self):
        limits = [upper_limit_ns(index) for index in range(60 * STEPS)]
        assert limits[: STEPS * 2] == list(range(1, STEPS * 2 + 1))
        assert all(low < high for low, high in itertools.pairwise(limits))

    def test_each_is_narrow(self):
        for index in range(STEPS, 60 * STEPS):
            low, high = upper_limit_ns(index - 1), upper_limit_ns(index)
            assert (high - low) / low <= 1 / STEPS

    def test_each_time_falls_between_its_limits(self):
        edges = [upper_limit_ns(index) + step for index in range(40 * STEPS) for step in (-1, 0, 1)]
        dice = random.Random(1)
        times = [0, 1, *edges, *(int(2 ** dice.uniform(0, 62)) for _ in range(5000))]
        for one in times:
            index = bucket(one)
            assert one < upper_limit_ns(index), one
            assert index == 0 or one >= upper_limit_ns(index - 1), one


class TestWhatItSays:
    def test_an_empty_one_says_nothing(self):
        empty = Histogram([])
        assert (empty.count, empty.mean, empty.quantile(0.5)) == (0, 0.0, 0.0)
        assert list(empty.buckets()) == []
        assert Histogram([0, 0, 0]).quantile(1) == 0.0

    def test_the_mean_is_exact(self):
        times = [1_000, 2_000_000, 3_000_000_000]
        assert histogram_of(*times).mean == pytest.approx(sum(times) / 3 / 1e9)

    def test_quantiles_are_within_one_bucket_of_the_true_ones(self):
        dice = random.Random(2)
        times = sorted(int(dice.lognormvariate(10, 3)) for _ in range(2001))
        histogram = histogram_of(*times)
        assert histogram.count == 2001
        for part in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1):
            true = times[math.ceil(part * 2001) - 1] / 1e9
            told = histogram.quantile(part)
            assert true <= told <= true * (1 + 1 / STEPS) + 1e-9, part

    def test_the_buckets_hold_all_times_in_ascending_order(self):
        histogram = histogram_of(5, 5, 1000, 10**9)
        found = list(histogram.buckets())
        assert [count for _, count in found] == [2, 1, 1]
        assert [limit for limit, _ in found] == sorted(limit for limit, _ in found)
        assert found[0][0] == pytest.approx(6e-9)
        assert found[2][0] == pytest.approx(1, rel=1 / STEPS)

    @pytest.mark.parametrize("part", [-0.1, 1.1, float("nan"), float("inf")])
    def test_a_part_out_of_range_is_refused(self, part):
        with pytest.raises(ValueError, match="from 0 to 1"):
            histogram_of(1, 2, 3).quantile(part)

    def test_it_is_a_snapshot(self):
        recorder = Recorder()
        recorder.add(10)
        before = recorder.snapshot()
        recorder.add(10)
        assert (before.count, recorder.snapshot().count) == (1, 2)

    def test_its_repr_tells_the_median(self):
        assert repr(histogram_of(10**6)).startswith("<Histogram of 1: median 0.00")


class TestPorts:
    def test_a_new_port_has_measured_nothing(self, port):
        numbers = port.stats()
        assert isinstance(numbers["queue_time"], Histogram)
        assert isinstance(numbers["work_time"], Histogram)
        assert numbers["queue_time"].count == numbers["work_time"].count == 0

    def test_the_time_in_the_queue_is_measured(self, port):
        for _ in range(64):
            port.post()
        time.sleep(0.05)  # what is measured
        take(port, 64)
        waited = port.stats()["queue_time"]
        assert 1 <= waited.count <= 64
        assert 0.045 <= waited.quantile(0.01) < 10
        assert 0.045 <= waited.mean < 10

    def test_the_time_at_work_is_measured(self, port):
        for _ in range(3):
            port.post()
            take_one(port)
            time.sleep(0.03)  # what is measured
            assert port.get(0) is None
        worked = port.stats()["work_time"]
        assert 1 <= worked.count <= 3
        assert 0.025 <= worked.quantile(0.5) < 10

    @pytest.mark.alone
    def test_waiting_for_packets_is_no_work(self, make_port):
        def measured():
            port = make_port()
            waiter = Background(lambda: [port.get(), port.get(0)])
            wait_for_stats(port, waiting=1)
            time.sleep(0.05)  # what must not be measured
            port.post()
            waiter.outcome()
            numbers = port.stats()
            return max(numbers[name].quantile(1) for name in ("queue_time", "work_time"))

        # A thread may be stopped for so long while it is at work.
        assert any(measured() < 0.05 for _ in range(5))

    def test_the_time_behind_a_strand_counts_as_queued(self, port):
        strand = Strand(port)
        for _ in range(33):  # of so many at least one is measured
            port.post(strand=strand)
        take_one(port)
        time.sleep(0.03)  # what is measured
        take(port, 32)
        assert port.stats()["queue_time"].quantile(1) >= 0.025

    def test_many_threads_are_measured(self, make_port):
        port = make_port(4)
        takers = [Background(count_until_stopped, port) for _ in range(4)]
        for _ in range(2000):
            port.post(1)
        for _ in takers:
            port.post(0)
        assert sum(taker.outcome() for taker in takers) == 2000
        wait_until(lambda: port.stats()["running"] == 0)
        numbers = port.stats()
        for name in ("queue_time", "work_time"):
            assert 2004 / 128 * 0.5 <= numbers[name].count <= 2004, name
            assert 0 < numbers[name].mean < 10


class TestServers:
    def test_a_server_tells_of_its_workers_and_of_how_long_callbacks_took(self, engine):
        inside, go_on = threading.Event(), threading.Event()

        class Slow(Handler):
            def received(self, connection, data):
                if data == b"!":
                    inside.set()
                    with connection.server.completion_port.blocking():
                        go_on.wait(LONG)
                connection.send(data)

        with (
            Server(Slow(), port=0, workers=3, concurrency=1, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as slow,
            socket.create_connection(server.address, timeout=LONG) as other,
        ):
            slow.sendall(b"!")
            assert inside.wait(LONG)
            for _ in range(20 * 32):  # of 32 at least one is measured
                other.sendall(b"x")
                assert read_exactly(other, 1) == b"x"
            wait_until(lambda: server.stats()["waiting"] == 2)
            numbers = server.stats()
            assert (numbers["queued"], numbers["running"], numbers["blocked"]) == (0, 0, 1)
            assert numbers["taken"] >= 20 * 32 + 1
            time.sleep(0.03)  # what is measured
            go_on.set()
            assert read_exactly(slow, 1) == b"!"
            wait_until(lambda: server.stats()["waiting"] == 3)
            numbers = server.stats()
        assert numbers["blocked"] == 0
        if engine != "iocp":  # nor is it known when they came
            assert numbers["queue_time"].count >= 1
        assert 0.025 <= numbers["work_time"].quantile(1) < 10
        assert numbers["work_time"].quantile(0.25) < 0.025


def count_until_stopped(port):
    count = 0
    while port.get(20).transferred:
        count += 1
    return count
