/* One record for each thread, found without a lock and given to a destructor when the thread ends. */
#ifndef COMPLETIONPORT_THREAD_RECORD_H
#define COMPLETIONPORT_THREAD_RECORD_H

#include <pthread.h>

static __thread void *cp_thread_record = NULL;
static pthread_key_t cp_thread_key;

static inline int cp_thread_records_open(void (*at_thread_end)(void *))
{
    return pthread_key_create(&cp_thread_key, at_thread_end);
}

/* 0, or an errno (no memory) and the thread has the record that it had. */
static inline int cp_thread_record_set(void *record)
{
    int error = pthread_setspecific(cp_thread_key, record);
    if (error == 0)
        cp_thread_record = record;
    return error;
}

#endif
