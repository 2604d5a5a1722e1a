// clang-format Language: C
/* What the two halves of the stand-in for the driver share; see fake_cuda.c and fake_device.c. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum { INVALID_VALUE = 1, NOT_FOUND = 500 };
enum { HOST = -1, NOWHERE = -2 };

struct allocation {
    unsigned char *address;
    size_t bytes;
    int managed;
    int location; /* of the last prefetch */
    int resident; /* where its pages are, as the simulated times see it */
};

extern pthread_mutex_t fake_lock;

/* The allocation that holds an address, or NULL; under the lock. */
struct allocation *fake_holding(uint64_t address);

/* Whether FAKE_CUDA_FAULTS names a fault. */
int fake_faulty(const char *fault);

/* Counts a call of a function; other than 0 is what it shall return. */
int fake_enter(const char *name, int needs_context);

#define ENTER(name, needs_context)                                                                                     \
    do {                                                                                                               \
        int entered = fake_enter(#name, needs_context);                                                                \
        if (entered)                                                                                                   \
            return entered;                                                                                            \
    } while (0)

#endif
