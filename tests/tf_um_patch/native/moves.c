/* Moves managed memory from several threads at once, and counts what came of it. Says what is wrong and ends with 1. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "operations/migrate.h"

int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuMemAlloc_v2(unsigned long long *, size_t);
int cuMemAllocManaged(unsigned long long *, size_t, unsigned);
int cuMemRangeGetAttribute(void *, size_t, int, unsigned long long, size_t);
unsigned long fake_calls(const char *);
void fake_fail(const char *, int);

enum { BYTES = 4 << 20, THREADS = 4, ROUNDS = 200, LAST_PREFETCH_LOCATION = 4 };

static unsigned long long managed, plain;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t counter(const char *name)
{
    for (unsigned i = 0; tfum_counter_name(i); i++)
        if (strcmp(tfum_counter_name(i), name) == 0)
            return tfum_counter(i);
    CHECK(!"a counter of that name");
    return 0;
}

static int last_move_is(uint64_t address, uint64_t bytes)
{
    uint64_t found[2];
    tfum_last_move(&found[0], &found[1]);
    return found[0] == address && found[1] == bytes;
}

static int location(void)
{
    int found = 0;
    CHECK(cuMemRangeGetAttribute(&found, sizeof found, LAST_PREFETCH_LOCATION, managed, BYTES) == 0);
    return found;
}

static void use_device(void)
{
    void *context = NULL;
    CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
}

static void *worker(void *unused)
{
    use_device();
    for (int round = 0; round < ROUNDS; round++) {
        tfum_count(TFUM_PREFETCH, 1);
        tfum_move(round % 2 ? TFUM_PREFETCH : TFUM_EVICT, managed, BYTES, 0, 0, NULL);
    }
    return unused;
}

int main(void)
{
    static const char *const functions[] = {"cuCtxGetDevice",    "cuStreamCreate",    "cuEventCreate",
                                            "cuEventRecord",     "cuStreamWaitEvent", "cuEventDestroy_v2",
                                            "cuMemPrefetchAsync"};
    pthread_t threads[THREADS];
    use_device();
    CHECK(cuMemAllocManaged(&managed, BYTES, 1) == 0 && cuMemAlloc_v2(&plain, BYTES) == 0);

    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) { /* before a stream exists */
        fake_fail(functions[i], 719);
        tfum_move(TFUM_PREFETCH, managed, BYTES, 0, 0, NULL);
        fake_fail(functions[i], 0);
        CHECK(counter("failed") == i + 1 && counter("enqueued") == 0);
        CHECK(location() == -2 && last_move_is(0, 0)); /* nowhere yet */
    }
    tfum_reset_counters();

    tfum_move(TFUM_PREFETCH, managed, BYTES, 0, 0, NULL);
    CHECK(location() == 0 && counter("enqueued") == 1 && last_move_is(managed, BYTES));
    tfum_move(TFUM_EVICT, managed, BYTES, 0, 0, NULL);
    CHECK(location() == -1 && counter("enqueued") == 2);
    tfum_move(TFUM_EVICT, managed, BYTES / 2, 0, 0, NULL);
    CHECK(last_move_is(managed, BYTES / 2));
    tfum_reset_counters();
    tfum_move(TFUM_PREFETCH, managed, BYTES, 0, 0, NULL);
    tfum_move(TFUM_EVICT, managed, BYTES, 0, 0, NULL);
    tfum_move(TFUM_ADVISE, managed, BYTES, 3, 1, NULL);
    CHECK(fake_calls("cuMemAdvise") == 1 && counter("enqueued") == 3);
    fake_fail("cuMemAdvise", 719);
    tfum_move(TFUM_ADVISE, managed, BYTES, 3, 1, NULL);
    CHECK(counter("failed") == 1);

    tfum_move(TFUM_PREFETCH, plain, BYTES, 0, 0, NULL);
    tfum_move(TFUM_PREFETCH, 4096, BYTES, 0, 0, NULL);
    tfum_move(TFUM_PREFETCH, managed, 0, 0, 0, NULL);
    CHECK(counter("not_managed") == 3 && counter("failed") == 1 && counter("enqueued") == 3);
    CHECK(last_move_is(managed, BYTES)); /* what was not moved leaves no trace */

    unsigned long streams = fake_calls("cuStreamCreate");
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(counter("enqueued") == 3 + THREADS * ROUNDS && counter("prefetch_calls") == THREADS * ROUNDS);
    CHECK(fake_calls("cuStreamCreate") == streams);                            /* one for all */
    CHECK(fake_calls("cuEventCreate") - fake_calls("cuEventDestroy_v2") <= 1); /* the one whose creation failed */
    return 0;
}
