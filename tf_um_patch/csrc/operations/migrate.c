#include "migrate.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "../cuda_min.h"

/* The names without _v2 have kept their parameters since CUDA 8; later forms have other names. */
#define DRIVER(ROW)                                                                                                    \
    ROW(cuCtxGetDevice, (CUdevice * device))                                                                           \
    ROW(cuPointerGetAttribute, (void *data, int attribute, CUdeviceptr address))                                       \
    ROW(cuMemPrefetchAsync, (CUdeviceptr address, size_t bytes, CUdevice target, CUstream stream))                     \
    ROW(cuMemAdvise, (CUdeviceptr address, size_t bytes, int advice, CUdevice target))                                 \
    ROW(cuStreamCreate, (CUstream * stream, unsigned flags))                                                           \
    ROW(cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                                           \
    ROW(cuEventCreate, (CUevent * event, unsigned flags))                                                              \
    ROW(cuEventRecord, (CUevent event, CUstream stream))                                                               \
    ROW(cuEventDestroy_v2, (CUevent event))

static struct {
#define MEMBER(function, parameters) CUresult(*function) parameters;
    DRIVER(MEMBER)
} driver;
static bool complete; /* every function was found */

enum { MAX_DEVICES = 64 };
static CUstream streams[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum { ENQUEUED = 2 * TFUM_VERBS, NOT_MANAGED, FAILED, NO_DRIVER, COUNTERS };
static const char *const names[COUNTERS] = {"prefetch_calls", "evict_calls",  "advise_calls", "prefetch_bytes",
                                            "evict_bytes",    "advise_bytes", "enqueued",     "not_managed",
                                            "failed",         "no_driver"};
static atomic_ullong counters[COUNTERS];
static uint64_t last_address, last_bytes; /* under the lock */

static void find_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY);
    if (library == NULL)
        return;
    complete = true;
#define FIND(function, parameters)                                                                                     \
    {                                                                                                                  \
        void *found = dlsym(library, #function);                                                                       \
        memcpy(&driver.function, &found, sizeof found);                                                                \
        complete = complete && found != NULL;                                                                          \
    }
    DRIVER(FIND)
}

static void note_failure(const char *function, CUresult result)
{
    if (atomic_fetch_add(&counters[FAILED], 1) == 0)
        fprintf(stderr, "tfum: %s returned %d, so memory stays where it is; later failures are only counted\n",
                function, result);
}

#define TRY(function, arguments)                                                                                       \
    do {                                                                                                               \
        CUresult result = driver.function arguments;                                                                   \
        if (result != CUDA_SUCCESS) {                                                                                  \
            note_failure(#function, result);                                                                           \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

/* The stream of a device on which memory moves, made when it is first needed. */
static bool moving_stream(CUdevice device, CUstream *stream)
{
    pthread_mutex_lock(&lock);
    CUresult result = streams[device] ? CUDA_SUCCESS : driver.cuStreamCreate(&streams[device], CU_STREAM_NON_BLOCKING);
    *stream = streams[device];
    pthread_mutex_unlock(&lock);
    if (result != CUDA_SUCCESS)
        note_failure("cuStreamCreate", result);
    return result == CUDA_SUCCESS;
}

static bool wait_for(CUstream stream, CUevent event, CUstream compute)
{
    TRY(cuEventRecord, (event, compute));
    TRY(cuStreamWaitEvent, (stream, event, 0));
    return true;
}

static bool move(enum tfum_verb verb, CUdeviceptr address, size_t bytes, CUdevice device, CUstream compute)
{
    CUstream stream;
    CUevent event;
    if (!moving_stream(device, &stream))
        return false;
    TRY(cuEventCreate, (&event, CU_EVENT_DISABLE_TIMING));
    bool ordered = wait_for(stream, event, compute);
    TRY(cuEventDestroy_v2, (event)); /* the driver keeps it until it is reached */
    if (!ordered)
        return false;
    TRY(cuMemPrefetchAsync, (address, bytes, verb == TFUM_PREFETCH ? device : CU_DEVICE_CPU, stream));
    pthread_mutex_lock(&lock);
    last_address = address;
    last_bytes = bytes;
    pthread_mutex_unlock(&lock);
    return true;
}

static bool act(enum tfum_verb verb, CUdeviceptr address, size_t bytes, int advice, int on_host, CUstream compute)
{
    CUdevice device;
    TRY(cuCtxGetDevice, (&device));
    if (device < 0 || device >= MAX_DEVICES)
        return false;
    if (verb != TFUM_ADVISE)
        return move(verb, address, bytes, device, compute);
    TRY(cuMemAdvise, (address, bytes, advice, on_host ? CU_DEVICE_CPU : device));
    return true;
}

void tfum_count(enum tfum_verb verb, uint64_t bytes)
{
    atomic_fetch_add(&counters[verb], 1);
    atomic_fetch_add(&counters[TFUM_VERBS + verb], bytes);
}

void tfum_move(enum tfum_verb verb, uint64_t address, uint64_t bytes, int advice, int advice_on_host,
               void *compute_stream)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_driver);
    if (!complete) {
        atomic_fetch_add(&counters[NO_DRIVER], 1);
        return;
    }
    int managed = 0; /* the driver writes one byte of it or all; an unknown address is an error, and host memory */
    if (bytes == 0 ||
        driver.cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address) != CUDA_SUCCESS || !managed) {
        atomic_fetch_add(&counters[NOT_MANAGED], 1);
        return;
    }
    if (act(verb, address, bytes, advice, advice_on_host, compute_stream))
        atomic_fetch_add(&counters[ENQUEUED], 1);
}

void tfum_last_move(uint64_t *address, uint64_t *bytes)
{
    pthread_mutex_lock(&lock);
    *address = last_address;
    *bytes = last_bytes;
    pthread_mutex_unlock(&lock);
}

const char *tfum_counter_name(unsigned number)
{
    return number < COUNTERS ? names[number] : NULL;
}

uint64_t tfum_counter(unsigned number)
{
    return number < COUNTERS ? atomic_load(&counters[number]) : 0;
}

void tfum_reset_counters(void)
{
    for (int i = 0; i < COUNTERS; i++)
        atomic_store(&counters[i], 0);
}
