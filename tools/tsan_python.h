/* For ThreadSanitizer, in front of every compiled module (race_check.sh): Python's critical sections
 * are locks of the interpreter, which is not compiled with the tool, so it can't see their order. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
void __tsan_acquire(void *address);
void __tsan_release(void *address);

static inline void cp_watched_begin(PyCriticalSection *section, PyObject *object)
{
    PyCriticalSection_Begin(section, object);
    __tsan_acquire(&object->ob_mutex);
}

static inline void cp_watched_end(PyCriticalSection *section)
{
    /* NULL where the object's lock was held by this thread already. */
    if (section->_cs_mutex)
        __tsan_release(section->_cs_mutex);
    PyCriticalSection_End(section);
}

#define PyCriticalSection_Begin cp_watched_begin
#define PyCriticalSection_End cp_watched_end
#endif
