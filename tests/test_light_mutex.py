"""The scheduler's mutex: never two holders, nobody left asleep, with membarrier(2) and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parent / "src" / "completionport" / "native" / "primitives"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the compiled engines are Linux'"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    target = tmp_path_factory.mktemp("light_mutex") / "light_mutex"
    flags = ["-O2", "-D_GNU_SOURCE", "-Wall", "-Wno-unused-function", "-pthread", "-I", HEADERS]
    subprocess.run([compiler, *flags, HERE / "light_mutex.c", "-o", target], check=True)
    return target


@pytest.mark.parametrize(
    ("membarrier", "fences", "sleeps"),
    [("membarrier", "paired", True), ("none", "alone", True), ("forbidden later", "paired", False)],
)
def test_threads_exclude_each_other_and_none_is_left_asleep(program, membarrier, fences, sleeps):
    run = subprocess.run([program, membarrier], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    kind, lost, slept, yielded = run.stdout.split()
    if membarrier == "membarrier" and kind == "alone":
        pytest.skip("no membarrier(2) on this kernel")
    assert (kind, int(lost)) == (fences, 0)
    # The long way was gone: by sleep where a fence lets the holder know, else by giving way.
    assert (int(slept) > 0, int(yielded) > 0) == (sleeps, not sleeps)
