/* A stand-in for libcuda.so.1: one device whose memory is host memory. What it computes is in fake_device.c.
 *
 * It keeps the rules of the driver that the shim must not break (initialisation, contexts, processes that fork, null
 * pointers and zero bytes, unknown addresses), counts calls, and fails on demand. Its device is set by environment
 * variables: FAKE_CUDA_DEVICES, FAKE_CUDA_TOTAL and FAKE_CUDA_FREE (bytes), FAKE_CUDA_ATTRIBUTES=<number>:<value>,...
 * and FAKE_CUDA_FAIL=<function>:<result>,... A process that has more than FAKE_CUDA_LIMIT bytes at one time, managed or
 * not, is ended, and one that ends while it has any writes a line to the file FAKE_CUDA_LEFT. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_cuda.h"

enum { OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201 };
enum { MAX_ALLOCATIONS = 1 << 16, MAX_NAMES = 64 };

struct counter {
    char name[48];
    unsigned long calls;
    int result; /* to be returned instead of what was asked for */
};

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
static struct allocation allocations[MAX_ALLOCATIONS];
static struct counter counters[MAX_NAMES];
static size_t live, device_bytes, live_bytes, peak_bytes;
static atomic_int misalign;
static atomic_int initialised; /* the process that called cuInit */
static _Thread_local void *current;

static size_t setting(const char *name, size_t initial)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : initial;
}

/* The value of `key` in a list key:value,key:value in an environment variable. */
static int listed(const char *variable, const char *key, int initial)
{
    const char *text = getenv(variable);
    size_t length = strlen(key);
    for (; text && *text; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL)
        if (strncmp(text, key, length) == 0 && text[length] == ':')
            return atoi(text + length + 1);
    return initial;
}

static struct counter *counter(const char *name)
{
    for (int i = 0; i < MAX_NAMES; i++) {
        if (counters[i].name[0] == 0) {
            snprintf(counters[i].name, sizeof counters[i].name, "%s", name);
            counters[i].result = listed("FAKE_CUDA_FAIL", name, 0);
        }
        if (strcmp(counters[i].name, name) == 0)
            return &counters[i];
    }
    abort();
}

int fake_enter(const char *name, int needs_context)
{
    pthread_mutex_lock(&fake_lock);
    struct counter *mine = counter(name);
    mine->calls++;
    int result = mine->result;
    pthread_mutex_unlock(&fake_lock);
    if (result)
        return result;
    if (strcmp(name, "cuInit") != 0 && initialised != getpid())
        return NOT_INITIALIZED;
    return needs_context && !current ? INVALID_CONTEXT : 0;
}

static void hold(void)
{
    pthread_mutex_lock(&fake_lock);
}

static void let_go(void)
{
    pthread_mutex_unlock(&fake_lock);
}

__attribute__((constructor)) static void survive_forks(void)
{
    pthread_atfork(hold, let_go, let_go);
}

__attribute__((destructor)) static void tell_what_is_left(void)
{
    const char *path = getenv("FAKE_CUDA_LEFT");
    FILE *file = path && live ? fopen(path, "a") : NULL;
    if (file == NULL)
        return;
    fprintf(file, "%zu allocations of process %ld\n", live, (long)getpid());
    fclose(file);
}

/* ---- for tests ---- */

EXPORT unsigned long fake_calls(const char *name)
{
    pthread_mutex_lock(&fake_lock);
    unsigned long calls = counter(name)->calls;
    pthread_mutex_unlock(&fake_lock);
    return calls;
}

EXPORT void fake_fail(const char *name, int result)
{
    pthread_mutex_lock(&fake_lock);
    counter(name)->result = result;
    pthread_mutex_unlock(&fake_lock);
}

EXPORT void fake_misalign(int on)
{
    misalign = on;
}

EXPORT size_t fake_peak_bytes(void)
{
    return peak_bytes;
}

EXPORT size_t fake_live(void)
{
    return live;
}

/* ---- memory ---- */

static size_t total_memory(void)
{
    return setting("FAKE_CUDA_TOTAL", (size_t)8 << 30);
}

static size_t free_memory(void)
{
    return setting("FAKE_CUDA_FREE", total_memory()) - device_bytes;
}

struct allocation *fake_holding(uint64_t address)
{
    for (size_t i = 0; i < live; i++)
        if (address >= (uintptr_t)allocations[i].address &&
            address < (uintptr_t)allocations[i].address + allocations[i].bytes)
            return &allocations[i];
    return NULL;
}

static int allocate(uint64_t *address, size_t bytes, int managed, int flags)
{
    if (address == NULL || bytes == 0)
        return INVALID_VALUE;
    int result = OUT_OF_MEMORY;
    pthread_mutex_lock(&fake_lock);
    size_t shift = managed && misalign ? 8 : 0;
    if (live < MAX_ALLOCATIONS && bytes < (size_t)1 << 46 && (managed || bytes <= free_memory())) {
        void *memory = mmap(NULL, bytes + shift, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
        if (memory != MAP_FAILED) {
            struct allocation made = {(unsigned char *)memory + shift, bytes, managed, NOWHERE, NOWHERE};
            allocations[live++] = made;
            device_bytes += managed ? 0 : bytes;
            live_bytes += bytes;
            peak_bytes = live_bytes > peak_bytes ? live_bytes : peak_bytes;
            if (live_bytes > setting("FAKE_CUDA_LIMIT", SIZE_MAX))
                abort();
            *address = (uintptr_t)made.address;
            result = 0;
        }
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static int release(uint64_t address)
{
    if (address == 0)
        return 0;
    pthread_mutex_lock(&fake_lock);
    struct allocation *found = fake_holding(address);
    int result = found && (uintptr_t)found->address == address ? 0 : INVALID_VALUE;
    if (result == 0) {
        size_t shift = (uintptr_t)found->address & 8;
        munmap(found->address - shift, found->bytes + shift);
        device_bytes -= found->managed ? 0 : found->bytes;
        live_bytes -= found->bytes;
        *found = allocations[--live];
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* As the end of a context does: by none of the functions that a program calls. */
EXPORT int fake_free(unsigned long long address)
{
    return release(address);
}

EXPORT int cuMemAlloc_v2(unsigned long long *address, size_t bytes)
{
    ENTER(cuMemAlloc_v2, 1);
    uint64_t given = 0;
    int result = allocate(address ? &given : NULL, bytes, 0, 0);
    if (result == 0)
        *address = given;
    return result;
}

EXPORT int cuMemAlloc(unsigned *address, unsigned bytes)
{
    ENTER(cuMemAlloc, 1);
    uint64_t given = 0;
    int result = allocate(address ? &given : NULL, bytes, 0, MAP_32BIT);
    if (result == 0)
        *address = (unsigned)given;
    return result;
}

EXPORT int cuMemAllocManaged(unsigned long long *address, size_t bytes, unsigned flags)
{
    ENTER(cuMemAllocManaged, 1);
    uint64_t given = 0;
    int result = flags == 1 ? allocate(address ? &given : NULL, bytes, 1, 0) : INVALID_VALUE;
    if (result == 0)
        *address = given;
    return result;
}

EXPORT int cuMemCreate(uint64_t *handle, size_t bytes, const void *properties, uint64_t flags)
{
    ENTER(cuMemCreate, 1);
    (void)properties;
    *handle = bytes;
    return flags == 0 ? 0 : INVALID_VALUE;
}

EXPORT int cuMemFree_v2(unsigned long long address)
{
    ENTER(cuMemFree_v2, 1);
    return release(address);
}

EXPORT int cuMemFree(unsigned address)
{
    ENTER(cuMemFree, 1);
    return release(address);
}

EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total)
{
    ENTER(cuMemGetInfo_v2, 1);
    pthread_mutex_lock(&fake_lock);
    *free = free_memory();
    *total = total_memory();
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuMemGetInfo(unsigned *free, unsigned *total)
{
    ENTER(cuMemGetInfo, 1);
    *free = *total = UINT32_MAX;
    return 0;
}

EXPORT int cuMemcpyDtoH_v2(void *target, unsigned long long address, size_t count)
{
    ENTER(cuMemcpyDtoH_v2, 1);
    memcpy(target, (void *)(uintptr_t)address, count);
    return 0;
}

EXPORT int cuPointerGetAttribute(void *data, int attribute, unsigned long long address)
{
    ENTER(cuPointerGetAttribute, 0);
    pthread_mutex_lock(&fake_lock);
    struct allocation *found = fake_holding(address);
    unsigned managed = found && found->managed && !fake_faulty("nameless");
    pthread_mutex_unlock(&fake_lock);
    if (found == NULL)
        return INVALID_VALUE;
    /* CUDA does not say how wide its bool is. Volatile, for the sanitizers see calls of memcpy only. */
    volatile size_t width = fake_faulty("wide") ? sizeof managed : 1;
    int zero = 0;
    if (attribute == 8)
        memcpy(data, &managed, width);
    else if (attribute == 9)
        memcpy(data, &zero, sizeof zero);
    else
        return INVALID_VALUE;
    return 0;
}

/* ---- devices, contexts, streams ---- */

EXPORT int cuInit(unsigned flags)
{
    ENTER(cuInit, 0);
    if (flags != 0)
        return INVALID_VALUE;
    if (setting("FAKE_CUDA_DEVICES", 1) == 0)
        return NO_DEVICE;
    if (initialised && initialised != getpid())
        return NOT_INITIALIZED;
    initialised = getpid();
    return 0;
}

EXPORT int cuDriverGetVersion(int *version)
{
    *version = 12040;
    return 0;
}

EXPORT int cuDeviceGetCount(int *count)
{
    ENTER(cuDeviceGetCount, 0);
    *count = (int)setting("FAKE_CUDA_DEVICES", 1);
    return 0;
}

EXPORT int cuDeviceGet(int *device, int ordinal)
{
    ENTER(cuDeviceGet, 0);
    *device = ordinal;
    return 0;
}

EXPORT int cuDeviceGetName(char *name, int length, int device)
{
    ENTER(cuDeviceGetName, 0);
    snprintf(name, (size_t)length, "Stand-in %d", device);
    return 0;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    ENTER(cuDeviceGetAttribute, 0);
    (void)device;
    char key[16];
    snprintf(key, sizeof key, "%d", attribute);
    *value = listed("FAKE_CUDA_ATTRIBUTES", key, attribute == 75 ? 9 : attribute == 76 ? 0 : 1);
    return 0;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device)
{
    ENTER(cuDevicePrimaryCtxRetain, 0);
    *context = &allocations[device];
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease(int device)
{
    ENTER(cuDevicePrimaryCtxRelease, 0);
    (void)device;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER(cuDevicePrimaryCtxRelease_v2, 0);
    (void)device;
    return 0;
}

EXPORT int cuCtxGetCurrent(void **context)
{
    ENTER(cuCtxGetCurrent, 0);
    *context = current;
    return 0;
}

EXPORT int cuCtxSetCurrent(void *context)
{
    ENTER(cuCtxSetCurrent, 0);
    current = context;
    return 0;
}

EXPORT int cuCtxGetDevice(int *device)
{
    ENTER(cuCtxGetDevice, 1);
    *device = 0;
    return 0;
}

/* ---- entry points ---- */

EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status);

EXPORT int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    static const struct {
        const char *name;
        int since;
        void *function;
    } known[] = {
        {"cuMemAlloc", 3020, (void *)cuMemAlloc_v2},
        {"cuMemAlloc", 2000, (void *)cuMemAlloc},
        {"cuMemAllocManaged", 6000, (void *)cuMemAllocManaged},
        {"cuMemCreate", 10020, (void *)cuMemCreate},
        {"cuMemFree", 3020, (void *)cuMemFree_v2},
        {"cuMemFree", 2000, (void *)cuMemFree},
        {"cuMemGetInfo", 3020, (void *)cuMemGetInfo_v2},
        {"cuMemGetInfo", 2000, (void *)cuMemGetInfo},
        {"cuCtxGetDevice", 2000, (void *)cuCtxGetDevice},
        {"cuDeviceGetAttribute", 2000, (void *)cuDeviceGetAttribute},
        {"cuGetProcAddress", 12000, (void *)cuGetProcAddress_v2},
        {"cuGetProcAddress", 11030, (void *)cuGetProcAddress},
    };
    (void)flags;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0 && known[i].since <= version) {
            *function = known[i].function;
            return 0;
        }
    *function = NULL;
    return NOT_FOUND;
}

EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status)
{
    int result = cuGetProcAddress(name, function, version, flags);
    if (status)
        *(int *)status = result ? 1 : 0;
    return result;
}
