"""What a program imports says where it was imported from, wherever in the package it stands."""

from __future__ import annotations

import pickle
import traceback

import pytest

import completionport
from completionport import Change, ChangeAction, Histogram

PUBLIC = sorted(set(completionport.__all__) - {"Completion"})  # compiled: its module stays


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_that_it_is_the_packages(name):
    thing = getattr(completionport, name)
    assert (thing.__module__, thing.__qualname__) == ("completionport", name)


def test_a_traceback_has_the_name_that_a_program_catches():
    (line,) = traceback.format_exception_only(completionport.PortClosed("it is closed"))
    assert line == "completionport.PortClosed: it is closed\n"


@pytest.mark.parametrize(
    "value",
    [
        Change(ChangeAction.ADDED, "name"),
        completionport.Operation.RECV,
        completionport.PortClosed(),
        completionport.PortForked(),
        completionport.HandleClosed(),
        completionport.OperationAborted("the handle was closed"),
        completionport.EngineUnavailable("io_uring", "the kernel has none", "take another one"),
    ],
)
def test_a_value_comes_out_of_a_pickle_as_it_went_in(value):
    data = pickle.dumps(value)
    back = pickle.loads(data)
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    assert getattr(back, "__dict__", None) == getattr(value, "__dict__", None)
    assert b"completionport." not in data  # no place inside the package


def test_a_histogram_comes_out_of_a_pickle_with_its_counts():
    before = Histogram([1, 2, 3], 40)
    after = pickle.loads(pickle.dumps(before))
    assert list(after.buckets()) == list(before.buckets())
    assert after.mean == before.mean
