from ..scheduling.scheduler cimport Strand as CStrand
from .core cimport Core

cdef class Strand:
    cdef Core core
    cdef CStrand* strand     # one reference

cdef class Blocking:
    cdef Core core
    cdef bint told           # own thread only
