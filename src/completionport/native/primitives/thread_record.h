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

static inline void cp_thread_record_set(void *record)
{
    cp_thread_record = record;
    pthread_setspecific(cp_thread_key, record);
}

#endif
