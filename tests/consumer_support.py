"""A consumer of packets that is an object of the test's, on every engine.

On the compiled ones it is compiled against the declarations of the package, as a layer would be.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from completionport.engines import COMPILED

SOURCE = Path(__file__).resolve().parent.parent / "src"
CONSUMER = """
# cython: language_level=3, freethreading_compatible=True
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from completionport.native.port.core cimport Core
from completionport.native.scheduling.scheduler cimport (
    PACKET_SERVED, Consumer, Packet, Scheduler, Waiter, enter, leave, push
)

cdef struct Post:
    Packet packet
    void* consumer
    void* value

cdef Consumer of_an_object
of_an_object.serve = serve
of_an_object.drop = drop

cdef object taken_out(Packet* packet):
    cdef Post* post = <Post*> packet
    consumer, value = <object> post.consumer, <object> post.value
    Py_DECREF(consumer)
    Py_DECREF(value)
    free(post)
    return consumer, value

cdef void serve(Packet* packet, Waiter* me) noexcept:
    consumer, value = taken_out(packet)
    consumer.serve(value)

cdef void drop(Packet* packet) noexcept:
    consumer, value = taken_out(packet)
    consumer.dropped(value)

def post_for(port, consumer, value):
    cdef Core core = port._core
    cdef Post* post
    core.begin()
    post = <Post*> calloc(1, sizeof(Post))
    post.packet.kind = PACKET_SERVED
    post.packet.consumer = &of_an_object
    Py_INCREF(consumer)
    Py_INCREF(value)
    post.consumer = <void*> consumer
    post.value = <void*> value
    push(core.scheduler, &post.packet, True)
    core.end()

cdef Consumer endless
endless.serve = come_again
endless.drop = end
cdef Packet its_packet
its_packet.kind = PACKET_SERVED
its_packet.consumer = &endless
cdef Scheduler* its_scheduler
turns = 0

cdef void come_again(Packet* packet, Waiter* me) noexcept:
    global turns
    turns += 1
    if enter(its_scheduler):
        push(its_scheduler, packet, True)
        leave(its_scheduler)

cdef void end(Packet* packet) noexcept:
    pass

def begin_endless(port):
    '''A packet that comes again whenever it was served, without any code of Python's.'''
    global its_scheduler
    cdef Core core = port._core
    core.begin()
    its_scheduler = core.scheduler
    push(its_scheduler, &its_packet, True)
    core.end()
"""
BUILD = """
import sys
from setuptools import Extension, setup
from Cython.Build import cythonize
source = sys.argv.pop()
headers = [f"{source}/completionport/native/{room}" for room in ("primitives", "engines")]
consumer = Extension(
    "compiled_consumer", ["compiled_consumer.pyx"], include_dirs=headers,
    extra_compile_args=["-O0", "-D_GNU_SOURCE", "-Wno-unused-function"],
)
modules = cythonize([consumer], include_path=[source])
setup(name="compiled_consumer", ext_modules=modules, script_args=["-q", "build_ext", "--inplace"])
"""


def compile_consumer(folder: Path):
    """The module, or a skip where nothing can be compiled."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    (folder / "compiled_consumer.pyx").write_text(CONSUMER)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(SOURCE)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("compiled_consumer*.so")
    spec = importlib.util.spec_from_file_location("compiled_consumer", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def post_in_python(port, consumer, value):
    """The twin of `post_for`, on the engines that are written in Python."""
    port._post_for(_Consumer(consumer), value)


class _Consumer:
    def __init__(self, consumer):
        self.consumer = consumer

    def serve(self, taken):
        self.consumer.serve(taken.pop().key)

    def port_closed(self):
        pass


def is_compiled(engine: str) -> bool:
    return engine in COMPILED
