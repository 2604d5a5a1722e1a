/* Runs the contract of the allocation functions, by one of the routes that programs take to them.
 *
 *   stress symbol|dlsym|proc_address|old_proc_address|runtime    the whole contract; needs TFUM_CEILING
 *   stress replay FILE                                           the allocations of a trace, by symbol
 *
 * Says what is wrong and ends with 1, or ends with 0. It links the stand-in driver and runtime. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long long address_t;

int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuMemAlloc_v2(address_t *, size_t);
int cuMemAlloc(unsigned *, unsigned);
int cuMemAllocManaged(address_t *, size_t, unsigned);
int cuMemFree_v2(address_t);
int cuMemFree(unsigned);
int cuMemGetInfo_v2(size_t *, size_t *);
int cudaMalloc(void **, size_t);
int cudaFree(void *);
int cudaMemGetInfo(size_t *, size_t *);
int cudaGetLastError(void);
unsigned long fake_calls(const char *);
void fake_fail(const char *, int);
void fake_misalign(int);
size_t fake_peak_bytes(void);
size_t fake_live(void);

enum {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_CONTEXT = 201,
    NOT_SUPPORTED = 801,
    MADE_UP = 719
};
enum { SMALL = 1 << 20, LARGE = 4 << 20, THREADS = 6, ROUNDS = 400, HELD = 8 };

/* The three functions as the chosen route finds them. */
static int (*allocate)(address_t *, size_t);
static int (*release)(address_t);
static int (*memory)(size_t *, size_t *);
static bool is_runtime;
static size_t ceiling;
static atomic_ulong allocations, releases;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                            \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static int take(address_t *address, size_t bytes)
{
    allocations++;
    return allocate(address, bytes);
}

static int give(address_t address)
{
    releases++;
    return release(address);
}

/* ---- routes ---- */

static void *found_by_dlsym(const char *name)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY);
    CHECK(library != NULL);
    void *found = dlsym(library, name);
    CHECK(found != NULL);
    return found;
}

static void *found_by_proc_address(const char *name, bool old)
{
    void *function = NULL, *found = found_by_dlsym(old ? "cuGetProcAddress" : "cuGetProcAddress_v2");
    int (*find)(const char *, void **, int, uint64_t, void *);
    int (*old_find)(const char *, void **, int, uint64_t);
    memcpy(&find, &found, sizeof found);
    memcpy(&old_find, &found, sizeof found);
    CHECK((old ? old_find(name, &function, 11040, 0) : find(name, &function, 12040, 0, NULL)) == 0);
    return function;
}

static int runtime_allocate(address_t *address, size_t bytes)
{
    void *given = NULL;
    int result = cudaMalloc(address ? &given : NULL, bytes);
    if (address)
        *address = (uintptr_t)given;
    return result;
}

static int runtime_release(address_t address)
{
    return cudaFree((void *)(uintptr_t)address);
}

static void choose(const char *route)
{
    void *found[3] = {NULL, NULL, NULL};
    allocate = cuMemAlloc_v2;
    release = cuMemFree_v2;
    memory = cuMemGetInfo_v2;
    is_runtime = strcmp(route, "runtime") == 0;
    if (is_runtime) {
        allocate = runtime_allocate;
        release = runtime_release;
        memory = cudaMemGetInfo;
    } else if (strcmp(route, "dlsym") == 0) {
        found[0] = found_by_dlsym("cuMemAlloc_v2");
        found[1] = found_by_dlsym("cuMemFree_v2");
        found[2] = found_by_dlsym("cuMemGetInfo_v2");
    } else if (strcmp(route, "symbol") != 0) {
        bool old = strcmp(route, "old_proc_address") == 0;
        CHECK(old || strcmp(route, "proc_address") == 0);
        found[0] = found_by_proc_address("cuMemAlloc", old);
        found[1] = found_by_proc_address("cuMemFree", old);
        found[2] = found_by_proc_address("cuMemGetInfo", old);
    }
    if (found[0]) {
        memcpy(&allocate, &found[0], sizeof found[0]);
        memcpy(&release, &found[1], sizeof found[1]);
        memcpy(&memory, &found[2], sizeof found[2]);
    }
}

static uint64_t statistic(const char *name)
{
    const char *(*name_of)(unsigned);
    uint64_t (*value_of)(unsigned);
    void *found = dlsym(RTLD_DEFAULT, "tfum_statistic_name");
    CHECK(found != NULL);
    memcpy(&name_of, &found, sizeof found);
    found = dlsym(RTLD_DEFAULT, "tfum_statistic");
    memcpy(&value_of, &found, sizeof found);
    for (unsigned i = 0; name_of(i); i++)
        if (strcmp(name_of(i), name) == 0)
            return value_of(i);
    CHECK(!"a statistic of that name");
    return 0;
}

static void use_device(void)
{
    void *context = NULL;
    CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
}

/* ---- the contract ---- */

static void without_context(void)
{
    address_t address = 77;
    size_t free, total;
    if (is_runtime)
        return; /* it makes one */
    CHECK(take(&address, LARGE) == NOT_INITIALIZED && address == 77);
    CHECK(cuInit(0) == 0);
    CHECK(take(&address, LARGE) == INVALID_CONTEXT && address == 77);
    CHECK(memory(&free, &total) == INVALID_CONTEXT);
}

static void odd_arguments(void)
{
    address_t address = 0;
    CHECK(take(NULL, LARGE) == INVALID_VALUE);
    CHECK(take(&address, 0) == (is_runtime ? 0 : INVALID_VALUE) && address == 0);
    CHECK(give(0) == 0);
    CHECK(give(12345) == INVALID_VALUE);
    CHECK(statistic("used_bytes") == 0 && statistic("unknown_frees") == 1);
    if (is_runtime)
        cudaGetLastError();
}

static void places(void)
{
    address_t small, large;
    unsigned long device_calls = fake_calls("cuMemAlloc_v2"), managed_calls = fake_calls("cuMemAllocManaged");
    CHECK(take(&small, SMALL) == 0 && take(&large, LARGE) == 0);
    CHECK(fake_calls("cuMemAlloc_v2") == device_calls + 1 && fake_calls("cuMemAllocManaged") == managed_calls + 1);
    CHECK(statistic("device_bytes") == SMALL && statistic("managed_bytes") == LARGE);
    CHECK(small % 256 == 0 && large % 256 == 0);
    memset((void *)(uintptr_t)large, 1, LARGE);
    CHECK(give(small) == 0 && give(large) == 0);
    CHECK(give(large) == INVALID_VALUE); /* twice */
    CHECK(statistic("used_bytes") == 0 && fake_live() == 0);
    if (is_runtime)
        cudaGetLastError();
}

static void reported_memory(void)
{
    address_t address;
    size_t free, total, left;
    CHECK(memory(&free, &total) == 0 && free == ceiling && total >= free);
    CHECK(take(&address, LARGE) == 0);
    CHECK(memory(&left, &total) == 0 && left == free - LARGE);
    CHECK(give(address) == 0);
}

static void never_above_the_ceiling(void)
{
    address_t held[1024];
    size_t count = 0;
    int result;
    while ((result = take(&held[count], LARGE)) == 0)
        count++;
    CHECK(result == OUT_OF_MEMORY && count == ceiling / LARGE);
    if (is_runtime)
        CHECK(cudaGetLastError() == OUT_OF_MEMORY && cudaGetLastError() == 0);
    CHECK(take(&held[count], SIZE_MAX) == OUT_OF_MEMORY); /* nor does the sum wrap around */
    CHECK(statistic("refused_by_ceiling") >= 2);
    CHECK(give(held[--count]) == 0 && take(&held[count], LARGE) == 0);
    for (size_t i = 0; i <= count; i++)
        CHECK(give(held[i]) == 0);
    CHECK(statistic("used_bytes") == 0);
    if (is_runtime)
        cudaGetLastError();
}

static void failures(void)
{
    address_t address = 77;
    size_t free, total;
    fake_fail("cuMemAllocManaged", MADE_UP);
    CHECK(take(&address, LARGE) == MADE_UP && (is_runtime || address == 77));
    fake_fail("cuMemAllocManaged", NOT_SUPPORTED);
    CHECK(take(&address, LARGE) == 0 && statistic("device_bytes") == LARGE);
    CHECK(give(address) == 0);
    fake_fail("cuMemAllocManaged", 0);
    fake_misalign(1);
    CHECK(take(&address, LARGE) == 0 && address % 256 == 0 && statistic("device_bytes") == LARGE);
    fake_misalign(0);
    fake_fail("cuMemFree_v2", MADE_UP);
    CHECK(give(address) == MADE_UP && statistic("used_bytes") == LARGE);
    fake_fail("cuMemFree_v2", 0);
    CHECK(give(address) == 0);
    fake_fail("cuMemAlloc_v2", MADE_UP);
    CHECK(take(&address, SMALL) == MADE_UP);
    fake_fail("cuMemAlloc_v2", 0);
    fake_fail("cuMemGetInfo_v2", MADE_UP);
    CHECK(memory(&free, &total) == MADE_UP);
    fake_fail("cuMemGetInfo_v2", 0);
    CHECK(statistic("used_bytes") == 0 && statistic("live_allocations") == 0 && fake_live() == 0);
}

static void other_functions(void)
{
    address_t address;
    unsigned old = 0;
    CHECK(cuMemAllocManaged(&address, ceiling + 1, 1) == OUT_OF_MEMORY);
    CHECK(cuMemAllocManaged(&address, ceiling, 1) == 0 && statistic("managed_bytes") == ceiling);
    CHECK(cuMemAlloc(&old, 4096) == OUT_OF_MEMORY);
    CHECK(cuMemFree_v2(address) == 0);
    CHECK(cuMemAlloc(&old, LARGE) == 0 && statistic("device_bytes") == LARGE && cuMemFree(old) == 0);
}

/* ---- threads and processes ---- */

static void *worker(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    address_t held[HELD] = {0};
    use_device();
    for (int round = 0; round < ROUNDS; round++) {
        unsigned slot = (unsigned)rand_r(&state) % HELD;
        if (held[slot]) {
            CHECK(*(volatile unsigned char *)(uintptr_t)held[slot] == (unsigned char)(slot + 1));
            CHECK(give(held[slot]) == 0);
            held[slot] = 0;
        } else {
            int result = take(&held[slot], (size_t)rand_r(&state) % LARGE + 1);
            CHECK(result == 0 || result == OUT_OF_MEMORY);
            if (result == 0)
                *(volatile unsigned char *)(uintptr_t)held[slot] = (unsigned char)(slot + 1);
            else
                held[slot] = 0;
        }
    }
    for (int slot = 0; slot < HELD; slot++)
        if (held[slot])
            CHECK(give(held[slot]) == 0);
    return NULL;
}

static void child(void)
{
    address_t address;
    CHECK(statistic("used_bytes") == 0 && statistic("live_allocations") == 0);
    if (!is_runtime) /* which would abort */
        CHECK(allocate(&address, LARGE) == NOT_INITIALIZED && statistic("used_bytes") == 0 &&
              statistic("failed_calls") == 1);
    _exit(0);
}

static void threads_and_forks(bool forks)
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)(i + 1)) == 0);
    for (int i = 0; forks && i < 20; i++) {
        pid_t process = fork();
        if (process == 0) {
            alarm(60); /* a lock that was left held would never be given */
            child();
        }
        int status;
        CHECK(process > 0 && waitpid(process, &status, 0) == process && status == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(statistic("used_bytes") == 0 && statistic("live_allocations") == 0 && fake_live() == 0);
    CHECK(statistic("peak_bytes") <= ceiling && fake_peak_bytes() <= ceiling);
}

static void counts(const char *route)
{
    char name[64];
    const char *counted = strcmp(route, "old_proc_address") == 0 ? "proc_address" : is_runtime ? "symbol" : route;
    snprintf(name, sizeof name, "%s.%s", is_runtime ? "cudaMalloc" : "cuMemAlloc_v2", counted);
    CHECK(statistic(name) == allocations);
    snprintf(name, sizeof name, "%s.%s", is_runtime ? "cudaFree" : "cuMemFree_v2", counted);
    CHECK(statistic(name) == releases + (strcmp(name, "cuMemFree_v2.symbol") == 0)); /* other_functions frees one */
    CHECK(statistic("failed_calls") == (is_runtime ? 3 : 5));                        /* failures; without_context */
}

static void contract(const char *route, bool forks)
{
    choose(route);
    without_context();
    use_device();
    odd_arguments();
    places();
    reported_memory();
    never_above_the_ceiling();
    failures();
    other_functions();
    threads_and_forks(forks);
    counts(route);
}

/* ---- replay ---- */

struct replayed {
    address_t recorded, given;
};

static void replay(const char *path)
{
    static struct replayed live[1 << 16];
    size_t count = 0;
    char line[256], event[16];
    address_t recorded, bytes;
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    use_device();
    while (fgets(line, sizeof line, file)) {
        int result = 0;
        if (line[0] == '#')
            continue;
        CHECK(sscanf(line, "%*u %15s %llx %llu %*s %d", event, &recorded, &bytes, &result) == 4);
        if ((strcmp(event, "alloc") == 0 && result == 0) || strcmp(event, "kept") == 0) {
            live[count].recorded = recorded;
            CHECK(cuMemAlloc_v2(&live[count++].given, bytes) == 0);
        } else if (strcmp(event, "free") == 0) {
            size_t i = count;
            while (i-- > 0 && live[i].recorded != recorded)
                ;
            CHECK(i < count && cuMemFree_v2(live[i].given) == 0);
            live[i] = live[--count];
        }
    }
    fclose(file);
}

int main(int count, char **arguments)
{
    ceiling = getenv("TFUM_CEILING") ? strtoull(getenv("TFUM_CEILING"), NULL, 10) : 0;
    if (count == 3 && strcmp(arguments[1], "replay") == 0)
        replay(arguments[2]);
    else if (count >= 2)
        contract(arguments[1], count == 2);
    return count < 2;
}
