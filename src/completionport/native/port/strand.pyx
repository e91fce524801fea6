# cython: language_level=3, freethreading_compatible=True
"""The strands of the compiled ports, and their way of saying that a thread blocks.

`completionport.Strand` and `completionport.CompletionPort.blocking` document them.
"""

from ..primitives.atomics cimport cp_peek_64
cimport cython

from ..scheduling.scheduler cimport end_blocking, start_blocking, strand_let_go, strand_release
from ..scheduling.strands cimport strand_new
from .core cimport Core

from ...interface.errors import PortForked


# The collector must not take the core away before __dealloc__ has used it.
@cython.no_gc_clear
cdef class Strand:
    def __cinit__(self, Core core not None):
        self.core = core
        self.strand = strand_new(core.scheduler)
        if self.strand == NULL:
            raise MemoryError

    def __dealloc__(self):
        # In a child the scheduler's lock may be held by a thread that is not there.
        if self.strand != NULL and not self.core.forked():
            strand_release(self.strand)

    def __repr__(self):
        return f"<Strand, {self.queued} queued>"

    @property
    def port(self):
        return self.core.port_reference()

    @property
    def queued(self):
        return cp_peek_64(&self.strand.queued)

    def release(self):
        if self.core.forked():
            raise PortForked()
        if not strand_let_go(self.strand):
            raise RuntimeError("the calling thread is not at work on a packet of this strand")


cdef class Blocking:
    """What ``with port.blocking():`` uses."""

    def __cinit__(self, Core core not None):
        self.core = core

    def __enter__(self):
        if self.core.forked():
            raise PortForked()
        self.told = start_blocking(self.core.scheduler)

    def __exit__(self, *exc_info):
        if self.told and not self.core.forked():
            end_blocking(self.core.scheduler)
