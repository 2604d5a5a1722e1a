/* What each replaced function does. The contract of the original is kept: what it refuses is refused with its own code
 * (a missing context, a null pointer), zero bytes are its business, addresses are aligned as it promises, any thread
 * may call, and an allocation that fails leaves nothing behind. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "interpose.h"
#include "ledger.h"
#include "policy.h"
#include "record.h"
#include "statistics.h"

extern char **environ;

static struct tfum_options options;

/* Free device memory before this process allocated any; see tfum_reported. */
static atomic_ullong device_free = TFUM_AUTOMATIC;

enum { MAX_DEVICES = 64, UNKNOWN = 0, WORKS, WORKS_NOT };
static atomic_int oversubscription[MAX_DEVICES];

/* ---- start, fork and exit ---- */

static void child_of_fork(void)
{
    tfum_ledger_reset_and_unlock();
    tfum_forget_calls();
    tfum_record_in_child();
}

static void start(void)
{
    char error[400];
    if (!tfum_options_read(environ, &options, error, sizeof error)) {
        /* Going on would mean without the ceiling that was meant. */
        tfum_say("error: %s", error);
        _exit(2);
    }
    int failed = pthread_atfork(tfum_ledger_lock, tfum_ledger_unlock, child_of_fork);
    if (failed)
        tfum_say("pthread_atfork failed with %d: do not fork while other threads allocate", failed);
    if (!options.show)
        return;
    if (options.ceiling == TFUM_AUTOMATIC)
        tfum_say("active in process %ld (%s): managed memory from %" PRIu64 " bytes on, never more than the free "
                 "device memory and %" PRIu64 " bytes",
                 (long)getpid(), program_invocation_short_name, options.threshold, options.host_budget);
    else
        tfum_say("active in process %ld (%s): managed memory from %" PRIu64 " bytes on, never more than %" PRIu64
                 " bytes",
                 (long)getpid(), program_invocation_short_name, options.threshold, options.ceiling);
}

__attribute__((constructor)) void tfum_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

__attribute__((destructor)) static void finish(void)
{
    struct tfum_totals totals = tfum_totals();
    uint64_t allocations = totals.allocations[TFUM_DEVICE] + totals.allocations[TFUM_MANAGED];
    if (allocations || totals.events[TFUM_FAILED] || totals.events[TFUM_REFUSED])
        tfum_write_report(&options); /* not for every shell that a script starts */
}

/* ---- the driver's and the runtime's functions in one form ---- */

struct api {
    int (*allocate)(uint64_t *address, uint64_t bytes);
    int (*allocate_managed)(uint64_t *address, uint64_t bytes); /* NULL where addresses have 32 bits */
    int (*release)(uint64_t address);
    int (*memory)(size_t *free, size_t *total);
    int (*device)(int *device);
    int (*attribute)(int *value, int attribute, int device);
};

static int driver_allocate(uint64_t *address, uint64_t bytes)
{
    CUdeviceptr given = 0;
    int result = TFUM_REAL(cuMemAlloc_v2)(&given, bytes);
    *address = given;
    return result;
}

static int driver_allocate_managed(uint64_t *address, uint64_t bytes)
{
    CUdeviceptr given = 0;
    tfum_type_cuMemAllocManaged *real = TFUM_REAL(cuMemAllocManaged);
    int result = real ? real(&given, bytes, CU_MEM_ATTACH_GLOBAL) : CUDA_ERROR_NOT_SUPPORTED;
    *address = given;
    return result;
}

static int driver_release(uint64_t address)
{
    tfum_type_cuMemFree_v2 *real = TFUM_REAL(cuMemFree_v2);
    return real ? real(address) : CUDA_ERROR_NOT_FOUND;
}

static int driver_memory(size_t *free, size_t *total)
{
    tfum_type_cuMemGetInfo_v2 *real = TFUM_REAL(cuMemGetInfo_v2);
    return real ? real(free, total) : CUDA_ERROR_NOT_FOUND;
}

static int driver_device(int *device)
{
    tfum_type_cuCtxGetDevice *real = TFUM_REAL(cuCtxGetDevice);
    return real ? real(device) : CUDA_ERROR_NOT_FOUND;
}

static int driver_attribute(int *value, int attribute, int device)
{
    tfum_type_cuDeviceGetAttribute *real = TFUM_REAL(cuDeviceGetAttribute);
    return real ? real(value, attribute, device) : CUDA_ERROR_NOT_FOUND;
}

static const struct api driver = {driver_allocate, driver_allocate_managed, driver_release,
                                  driver_memory,   driver_device,           driver_attribute};

static int old_allocate(uint64_t *address, uint64_t bytes)
{
    CUdeviceptr_v1 given = 0;
    int result = TFUM_REAL(cuMemAlloc)(&given, (unsigned)bytes);
    *address = given;
    return result;
}

static int old_release(uint64_t address)
{
    return TFUM_REAL(cuMemFree)((CUdeviceptr_v1)address);
}

static const struct api old_driver = {old_allocate, NULL, old_release, driver_memory, driver_device, driver_attribute};

/* What the runtime calls in the driver meanwhile was decided here: tfum_depth says so. */
#define RUNTIME_CALL(result, function, arguments)                                                                      \
    do {                                                                                                               \
        tfum_type_##function *real = TFUM_REAL(function);                                                              \
        tfum_depth++;                                                                                                  \
        result = real ? real arguments : CUDA_ERROR_NOT_SUPPORTED;                                                     \
        tfum_depth--;                                                                                                  \
    } while (0)

static int runtime_allocate(uint64_t *address, uint64_t bytes)
{
    void *given = NULL;
    int result;
    RUNTIME_CALL(result, cudaMalloc, (&given, bytes));
    *address = (uintptr_t)given;
    return result;
}

static int runtime_allocate_managed(uint64_t *address, uint64_t bytes)
{
    void *given = NULL;
    int result;
    RUNTIME_CALL(result, cudaMallocManaged, (&given, bytes, CU_MEM_ATTACH_GLOBAL));
    *address = (uintptr_t)given;
    return result;
}

static int runtime_release(uint64_t address)
{
    int result;
    RUNTIME_CALL(result, cudaFree, ((void *)(uintptr_t)address));
    return result;
}

static int runtime_memory(size_t *free, size_t *total)
{
    int result;
    RUNTIME_CALL(result, cudaMemGetInfo, (free, total));
    return result;
}

static int runtime_device(int *device)
{
    int result;
    RUNTIME_CALL(result, cudaGetDevice, (device));
    return result;
}

static int runtime_attribute(int *value, int attribute, int device)
{
    int result;
    RUNTIME_CALL(result, cudaDeviceGetAttribute, (value, attribute, device));
    return result;
}

static const struct api runtime = {runtime_allocate, runtime_allocate_managed, runtime_release,
                                   runtime_memory,   runtime_device,           runtime_attribute};

/* ---- allocate, free, report ---- */

/* Whether the current device can hold more managed memory than it has; where not, says so once per device. */
static bool oversubscribes(const struct api *api)
{
    int device = -1;
    if (api->allocate_managed == NULL || api->device(&device) != CUDA_SUCCESS || device < 0 || device >= MAX_DEVICES)
        return false;
    int known = atomic_load(&oversubscription[device]);
    if (known == UNKNOWN) {
        int managed = 0, concurrent = 0;
        if (api->attribute(&managed, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, device) != CUDA_SUCCESS ||
            api->attribute(&concurrent, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, device) != CUDA_SUCCESS) {
            tfum_note(TFUM_FAILED);
            return false;
        }
        known = managed && concurrent ? WORKS : WORKS_NOT;
        if (atomic_exchange(&oversubscription[device], known) == UNKNOWN && known == WORKS_NOT)
            tfum_say("device %d cannot oversubscribe managed memory, so all allocations stay in device memory: use a "
                     "GPU of compute capability 6.0 or later under Linux",
                     device);
    }
    return known == WORKS;
}

/* Keeps what the device has free while this process has nothing there. */
static void note_device_free(size_t free)
{
    if (atomic_load(&device_free) == TFUM_AUTOMATIC || tfum_totals().used == 0)
        atomic_store(&device_free, free);
}

/* Takes bytes from the ceiling. Where the device cannot be asked what is free, it is not known, and nothing is
 * allocated: the answer is that of the driver, which is that of an allocation too (no context, say). */
static int reserve(const struct api *api, uint64_t bytes)
{
    bool automatic = options.ceiling == TFUM_AUTOMATIC;
    if (automatic && (atomic_load(&device_free) == TFUM_AUTOMATIC || tfum_totals().used == 0)) {
        size_t free, total;
        int result = api->memory(&free, &total);
        if (result != CUDA_SUCCESS) {
            tfum_note(TFUM_FAILED);
            return result;
        }
        note_device_free(free);
    }
    uint64_t ceiling = tfum_ceiling(&options, atomic_load(&device_free));
    return tfum_reserve(ceiling, bytes) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Managed memory, or the place changed to device memory where the driver gives none that keeps the contract. */
static int allocate_managed(const struct api *api, struct tfum_entry *entry)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    int result = api->allocate_managed(&entry->address, entry->bytes);
    if (result == CUDA_SUCCESS && entry->address % CUDA_ALIGNMENT != 0) {
        if (api->release(entry->address) != CUDA_SUCCESS)
            tfum_note(TFUM_FAILED);
        result = CUDA_ERROR_NOT_SUPPORTED;
    }
    if (result == CUDA_ERROR_NOT_SUPPORTED) {
        entry->place = TFUM_DEVICE;
        tfum_note(TFUM_FALLEN);
        if (!atomic_flag_test_and_set(&said))
            tfum_say("this driver gives no managed memory, so allocations stay in device memory: see python -m "
                     "tf_um_patch doctor");
    }
    return result;
}

static int allocate(const struct api *api, uint64_t *address, uint64_t bytes)
{
    struct tfum_entry entry = {0, bytes, tfum_choose_place(&options, bytes, oversubscribes(api))};
    int result = reserve(api, bytes);
    if (result != CUDA_SUCCESS) {
        tfum_trace(&options, "alloc", entry, result);
        return result;
    }
    if (entry.place == TFUM_MANAGED)
        result = allocate_managed(api, &entry);
    if (entry.place == TFUM_DEVICE)
        result = api->allocate(&entry.address, bytes);
    if (result != CUDA_SUCCESS)
        entry.address = 0;
    if (entry.address == 0) {
        tfum_cancel(bytes);
        tfum_note(TFUM_FAILED);
    } else {
        tfum_commit(entry);
    }
    *address = entry.address;
    tfum_trace(&options, "alloc", entry, result);
    return result;
}

static int release(const struct api *api, uint64_t address)
{
    struct tfum_entry entry;
    if (!tfum_take(address, &entry)) {
        if (address != 0)
            tfum_note(TFUM_UNKNOWN);
        return api->release(address);
    }
    tfum_trace(&options, "free", entry, CUDA_SUCCESS); /* first: the address may be given out again meanwhile */
    int result = api->release(address);
    if (result == CUDA_SUCCESS) {
        tfum_release(entry);
    } else {
        tfum_put_back(entry);
        tfum_note(TFUM_FAILED);
        tfum_trace(&options, "kept", entry, result);
    }
    return result;
}

static int memory(const struct api *api, size_t *free, size_t *total)
{
    size_t free_now = 0, total_now = 0;
    int result = api->memory(&free_now, &total_now);
    if (result != CUDA_SUCCESS)
        return result;
    note_device_free(free_now);
    struct tfum_memory told = tfum_reported(&options, atomic_load(&device_free), total_now, tfum_totals().used);
    if (free)
        *free = told.free;
    if (total)
        *total = told.total;
    return result;
}

/* ---- the hooks ---- */

int tfum_on_cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    uint64_t given;
    if (address == NULL || bytes == 0)
        return TFUM_REAL(cuMemAlloc_v2)(address, bytes);
    int result = allocate(&driver, &given, bytes);
    if (result == CUDA_SUCCESS)
        *address = given;
    return result;
}

int tfum_on_cuMemAlloc(CUdeviceptr_v1 *address, unsigned bytes)
{
    uint64_t given;
    if (address == NULL || bytes == 0)
        return TFUM_REAL(cuMemAlloc)(address, bytes);
    int result = allocate(&old_driver, &given, bytes);
    if (result == CUDA_SUCCESS)
        *address = (CUdeviceptr_v1)given;
    return result;
}

/* The runtime remembers the last error for cudaGetLastError, and only it can: an allocation larger than any address
 * space makes it remember "out of memory", which the ceiling returned without it. */
static void set_last_error(void)
{
    uint64_t never = 0;
    if (runtime_allocate(&never, UINT64_C(1) << 62) == CUDA_SUCCESS && runtime_release(never) != CUDA_SUCCESS)
        tfum_note(TFUM_FAILED);
}

int tfum_on_cudaMalloc(void **address, size_t bytes)
{
    uint64_t given = 0;
    int result;
    if (address == NULL || bytes == 0) {
        RUNTIME_CALL(result, cudaMalloc, (address, bytes));
        return result;
    }
    result = allocate(&runtime, &given, bytes);
    if (result == CUDA_SUCCESS)
        *address = (void *)(uintptr_t)given;
    else if (result == CUDA_ERROR_OUT_OF_MEMORY)
        set_last_error();
    return result;
}

/* Memory that a program asks to be managed itself, as TensorFlow does with per_process_gpu_memory_fraction above 1:
 * the ceiling holds for it too. */
int tfum_on_cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned flags)
{
    if (address == NULL || bytes == 0)
        return TFUM_REAL(cuMemAllocManaged)(address, bytes, flags);
    struct tfum_entry entry = {0, bytes, TFUM_MANAGED};
    CUdeviceptr given = 0;
    int result = reserve(&driver, bytes);
    if (result == CUDA_SUCCESS) {
        result = TFUM_REAL(cuMemAllocManaged)(&given, bytes, flags);
        if (result == CUDA_SUCCESS) {
            entry.address = *address = given;
            tfum_commit(entry);
        } else {
            tfum_cancel(bytes);
            tfum_note(TFUM_FAILED);
        }
    }
    tfum_trace(&options, "alloc", entry, result);
    return result;
}

/* Left alone, since such memory cannot be managed; but whoever counts on the ceiling shall know. */
int tfum_on_cuMemCreate(uint64_t *handle, size_t bytes, const void *properties, uint64_t flags)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&said))
        tfum_say("process %ld (%s) takes memory by cuMemCreate, which the shim leaves alone: it stays plain device "
                 "memory, and the ceiling does not hold it",
                 (long)getpid(), program_invocation_short_name);
    return TFUM_REAL(cuMemCreate)(handle, bytes, properties, flags);
}

int tfum_on_cuMemFree_v2(CUdeviceptr address)
{
    return release(&driver, address);
}

int tfum_on_cuMemFree(CUdeviceptr_v1 address)
{
    return release(&old_driver, address);
}

int tfum_on_cudaFree(void *address)
{
    return release(&runtime, (uintptr_t)address);
}

int tfum_on_cuMemGetInfo_v2(size_t *free, size_t *total)
{
    return memory(&driver, free, total);
}

int tfum_on_cudaMemGetInfo(size_t *free, size_t *total)
{
    return memory(&runtime, free, total);
}

int tfum_on_cuMemGetInfo(unsigned *free, unsigned *total)
{
    size_t wide_free = 0, wide_total = 0;
    int result = memory(&driver, &wide_free, &wide_total);
    if (result != CUDA_SUCCESS)
        return result;
    if (free)
        *free = wide_free > UINT32_MAX ? UINT32_MAX : (unsigned)wide_free;
    if (total)
        *total = wide_total > UINT32_MAX ? UINT32_MAX : (unsigned)wide_total;
    return result;
}

int tfum_on_cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status)
{
    int result = TFUM_REAL(cuGetProcAddress_v2)(name, function, version, flags, status);
    if (result == CUDA_SUCCESS && name && function)
        *function = tfum_proc_address(name, version, *function);
    return result;
}

int tfum_on_cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    int result = TFUM_REAL(cuGetProcAddress)(name, function, version, flags);
    if (result == CUDA_SUCCESS && name && function)
        *function = tfum_proc_address(name, version, *function);
    return result;
}
