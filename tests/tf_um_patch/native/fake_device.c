/* What the stand-in's device does: streams, events, moves of managed memory, and the kernels of the checks on a GPU.
 *
 * All work is done when it is enqueued; how long it would have taken is simulated, so that the same calls give the same
 * times on every machine. FAKE_CUDA_FAULTS names, with commas between, how a device may fail without an error:
 *   still     prefetches are taken, and nothing comes of them
 *   pretend   the last prefetch location changes, but the pages stay where they are
 *   forget    pages that move to the host lose what they hold
 *   serial    nothing overlaps
 *   nameless  managed memory is called plain memory
 *   wide      whether it is managed memory is told in four bytes instead of one, which is no fault
 *   slow      kernels are slower on managed memory, wherever its pages are
 *   idle      kernels end, but compute nothing
 *   timeless  nothing takes any time
 *   hang      a wait for a stream or an event never ends */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_cuda.h"

enum { INVALID_HANDLE = 400, INVALID_PTX = 218, NOT_READY = 600 };
enum { MAX_STREAMS = 64, MAX_EVENTS = 1024 };

/* Nanoseconds. */
static const double per_moved_byte = 0.1, per_faulted_byte = 0.5, per_computed_byte = 0.004, per_round = 2.0;

struct timed {
    int used;
    int recorded; /* events */
    double at;    /* a stream: when its work ends; an event: when it was reached */
};

static struct timed streams[MAX_STREAMS]; /* the first is the default stream */
static struct timed events[MAX_EVENTS];
static double host; /* until when the host has waited */
static const char *const kernels[] = {"tfum_spin", "tfum_add", "probe_read", "probe_write"};
enum { SPIN, ADD, READ, WRITE };

int fake_faulty(const char *fault)
{
    const char *text = getenv("FAKE_CUDA_FAULTS");
    size_t length = strlen(fault);
    for (; text && *text; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL)
        if (strncmp(text, fault, length) == 0 && (text[length] == ',' || text[length] == 0))
            return 1;
    return 0;
}

static int make(struct timed *from, struct timed *to, void **made)
{
    int result = NOT_FOUND;
    pthread_mutex_lock(&fake_lock);
    for (struct timed *slot = from; slot < to; slot++)
        if (!slot->used) {
            slot->used = 1;
            slot->recorded = 0;
            slot->at = 0;
            *made = slot;
            result = 0;
            break;
        }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static int unmake(struct timed *from, struct timed *to, void *made)
{
    struct timed *slot = made;
    if (slot < from || slot >= to || !slot->used)
        return INVALID_HANDLE;
    slot->used = 0;
    return 0;
}

static struct timed *stream_of(void *stream)
{
    return stream ? stream : &streams[0];
}

/* When something that is enqueued on a stream now begins; under the lock. */
static double begin(void *stream)
{
    double at = stream_of(stream)->at;
    for (int i = 0; i < MAX_STREAMS && fake_faulty("serial"); i++)
        at = streams[i].at > at ? streams[i].at : at;
    return at > host ? at : host;
}

static void spend(void *stream, double nanoseconds)
{
    stream_of(stream)->at = begin(stream) + (fake_faulty("timeless") ? 0 : nanoseconds);
}

static void wait_until(double at)
{
    while (fake_faulty("hang"))
        pause();
    host = at > host ? at : host;
}

/* ---- where memory is ---- */

static int of_managed(unsigned long long address)
{
    struct allocation *found = fake_holding(address);
    return found && found->managed ? 0 : INVALID_VALUE;
}

static void move(struct allocation *memory, size_t bytes, int device, void *stream)
{
    if (fake_faulty("still"))
        return;
    memory->location = device;
    if (fake_faulty("pretend"))
        return;
    if (device == HOST && fake_faulty("forget"))
        memset(memory->address, 0, 4096);
    spend(stream, memory->resident == device ? 0 : (double)bytes * per_moved_byte);
    memory->resident = device;
}

EXPORT int cuMemPrefetchAsync(unsigned long long address, size_t bytes, int device, void *stream)
{
    ENTER(cuMemPrefetchAsync, 1);
    pthread_mutex_lock(&fake_lock);
    int result = bytes ? of_managed(address) : INVALID_VALUE;
    if (result == 0)
        move(fake_holding(address), bytes, device, stream);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

EXPORT int cuMemAdvise(unsigned long long address, size_t bytes, int advice, int device)
{
    ENTER(cuMemAdvise, 1);
    (void)device;
    pthread_mutex_lock(&fake_lock);
    int result = bytes && advice >= 1 && advice <= 6 ? of_managed(address) : INVALID_VALUE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

EXPORT int cuMemRangeGetAttribute(void *data, size_t size, int attribute, unsigned long long address, size_t bytes)
{
    ENTER(cuMemRangeGetAttribute, 1);
    pthread_mutex_lock(&fake_lock);
    int result = attribute == 4 && size == sizeof(int) && bytes ? of_managed(address) : INVALID_VALUE;
    if (result == 0)
        memcpy(data, &fake_holding(address)->location, sizeof(int));
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* ---- copies between plain memory and pinned host memory ---- */

EXPORT int cuMemHostAlloc(void **address, size_t bytes, unsigned flags)
{
    ENTER(cuMemHostAlloc, 1);
    (void)flags;
    *address = malloc(bytes);
    return *address ? 0 : 2;
}

EXPORT int cuMemFreeHost(void *address)
{
    ENTER(cuMemFreeHost, 1);
    free(address);
    return 0;
}

static int copy(void *to, const void *from, size_t bytes, void *stream)
{
    pthread_mutex_lock(&fake_lock);
    memmove(to, from, bytes);
    spend(stream, (double)bytes * per_moved_byte);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *stream)
{
    ENTER(cuMemcpyHtoDAsync_v2, 1);
    return copy((void *)(uintptr_t)to, from, bytes, stream);
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream)
{
    ENTER(cuMemcpyDtoHAsync_v2, 1);
    return copy(to, (void *)(uintptr_t)from, bytes, stream);
}

EXPORT int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *stream)
{
    ENTER(cuMemcpyDtoDAsync_v2, 1);
    return copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes, stream);
}

/* ---- computing ---- */

/* The time of a kernel that reads or writes all of a range, and what it does to where the pages are. */
static int touch(unsigned long long address, size_t bytes, void *stream)
{
    struct allocation *memory = fake_holding(address);
    if (memory == NULL)
        return INVALID_VALUE;
    double per_byte = per_computed_byte * (memory->managed && fake_faulty("slow") ? 5 : 1);
    if (memory->managed && memory->resident == HOST)
        per_byte += per_faulted_byte;
    if (memory->managed)
        memory->resident = 0;
    spend(stream, (double)bytes * per_byte);
    return 0;
}

EXPORT int cuMemsetD8_v2(unsigned long long address, unsigned char value, size_t count)
{
    ENTER(cuMemsetD8_v2, 1);
    pthread_mutex_lock(&fake_lock);
    int result = touch(address, count, NULL);
    if (result == 0)
        memset((void *)(uintptr_t)address, value, count);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

EXPORT int cuModuleLoadData(void **module, const void *image)
{
    ENTER(cuModuleLoadData, 1);
    if (strstr(image, ".target sm_60") == NULL || strstr(image, ".entry tfum_spin") == NULL)
        return INVALID_PTX;
    *module = (void *)kernels;
    return 0;
}

EXPORT int cuModuleUnload(void *module)
{
    ENTER(cuModuleUnload, 1);
    return module == (void *)kernels ? 0 : INVALID_HANDLE;
}

EXPORT int cuModuleGetFunction(void **function, void *module, const char *name)
{
    ENTER(cuModuleGetFunction, 1);
    (void)module;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i], name) == 0) {
            *function = (void *)&kernels[i];
            return 0;
        }
    return NOT_FOUND;
}

/* The value `rounds` steps on in the sequence of the kernel tfum_spin: a step is affine, and so are two. */
static uint32_t spun(uint32_t value, uint32_t rounds)
{
    uint32_t factor = 1664525, addend = 1013904223;
    for (; rounds; rounds /= 2) {
        if (rounds % 2)
            value = value * factor + addend;
        addend = factor * addend + addend;
        factor *= factor;
    }
    return value;
}

static int spin(void **arguments, unsigned threads, void *stream)
{
    uint64_t out = *(uint64_t *)arguments[0];
    uint32_t rounds = *(uint32_t *)arguments[1];
    if (fake_holding(out) == NULL || rounds == 0)
        return INVALID_VALUE;
    for (unsigned thread = 0; thread < threads && !fake_faulty("idle"); thread++)
        ((uint32_t *)(uintptr_t)out)[thread] = spun(thread, rounds);
    spend(stream, rounds * per_round);
    return 0;
}

static int add(void **arguments, void *stream)
{
    uint64_t words = *(uint64_t *)arguments[0], count = *(uint64_t *)arguments[1];
    uint32_t amount = *(uint32_t *)arguments[2];
    int result = touch(words, count * 4, stream);
    for (uint64_t i = 0; result == 0 && i < count && !(i == 0 && fake_faulty("idle")); i++)
        ((uint32_t *)(uintptr_t)words)[i] += amount;
    return result;
}

/* The kernels of benchmarks/gpu: they read every word, or set it. */
static int probe(void **arguments, int writing, void *stream)
{
    uint64_t words = *(uint64_t *)arguments[0], count = *(uint64_t *)arguments[1], sums = *(uint64_t *)arguments[3];
    uint32_t value = *(uint32_t *)arguments[2];
    int result = fake_holding(sums) ? touch(words, count * 4, stream) : INVALID_VALUE;
    for (uint64_t i = 0; writing && result == 0 && i < count; i++)
        ((uint32_t *)(uintptr_t)words)[i] = value;
    return result;
}

EXPORT int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments,
                          void **extra)
{
    ENTER(cuLaunchKernel, 1);
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared || extra || block_x > 1024)
        return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    int result = function == (void *)&kernels[SPIN]    ? spin(arguments, grid_x * block_x, stream)
                 : function == (void *)&kernels[ADD]   ? add(arguments, stream)
                 : function == (void *)&kernels[READ]  ? probe(arguments, 0, stream)
                 : function == (void *)&kernels[WRITE] ? probe(arguments, 1, stream)
                                                       : INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* ---- streams and events ---- */

EXPORT int cuCtxSynchronize(void)
{
    ENTER(cuCtxSynchronize, 1);
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MAX_STREAMS; i++)
        wait_until(streams[i].at);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuStreamCreate(void **stream, unsigned flags)
{
    ENTER(cuStreamCreate, 1);
    (void)flags;
    return make(streams + 1, streams + MAX_STREAMS, stream);
}

EXPORT int cuStreamDestroy_v2(void *stream)
{
    ENTER(cuStreamDestroy_v2, 1);
    return unmake(streams + 1, streams + MAX_STREAMS, stream);
}

EXPORT int cuStreamSynchronize(void *stream)
{
    ENTER(cuStreamSynchronize, 1);
    pthread_mutex_lock(&fake_lock);
    wait_until(stream_of(stream)->at);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    ENTER(cuStreamWaitEvent, 1);
    (void)flags;
    pthread_mutex_lock(&fake_lock);
    double at = ((struct timed *)event)->at;
    if (stream_of(stream)->at < at)
        stream_of(stream)->at = at;
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuEventCreate(void **event, unsigned flags)
{
    ENTER(cuEventCreate, 1);
    (void)flags;
    return make(events, events + MAX_EVENTS, event);
}

EXPORT int cuEventDestroy_v2(void *event)
{
    ENTER(cuEventDestroy_v2, 1);
    pthread_mutex_lock(&fake_lock);
    int result = unmake(events, events + MAX_EVENTS, event);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

EXPORT int cuEventRecord(void *event, void *stream)
{
    ENTER(cuEventRecord, 1);
    pthread_mutex_lock(&fake_lock);
    struct timed *recorded = event;
    recorded->at = begin(stream);
    recorded->recorded = 1;
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuEventSynchronize(void *event)
{
    ENTER(cuEventSynchronize, 1);
    pthread_mutex_lock(&fake_lock);
    wait_until(((struct timed *)event)->at);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

EXPORT int cuEventElapsedTime(float *milliseconds, void *start, void *end)
{
    ENTER(cuEventElapsedTime, 1);
    const struct timed *from = start, *to = end;
    if (!from->recorded || !to->recorded)
        return INVALID_HANDLE;
    if (from->at > host || to->at > host)
        return NOT_READY;
    *milliseconds = (float)((to->at - from->at) / 1e6);
    return 0;
}
