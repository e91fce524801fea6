from .core cimport Core
from .scheduler cimport Strand as CStrand

cdef class Strand:
    cdef Core core
    cdef CStrand* strand     # one reference

cdef class Blocking:
    cdef Core core
    cdef bint told           # own thread only
