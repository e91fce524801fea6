"""A mutex for what is locked with each packet: see light_mutex.h."""

cdef extern from "light_mutex.h" nogil:
    ctypedef struct cp_light_mutex:
        pass
    void cp_light_mutex_open(cp_light_mutex *mutex) noexcept
    void cp_light_mutex_lock(cp_light_mutex *mutex) noexcept
    void cp_light_mutex_unlock(cp_light_mutex *mutex) noexcept
