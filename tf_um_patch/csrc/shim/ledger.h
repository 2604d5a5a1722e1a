// clang-format Language: C
/* What is allocated now, under one lock: addresses with their sizes, the sum that the ceiling bounds, and counts. */
#ifndef TFUM_LEDGER_H
#define TFUM_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "policy.h"

struct tfum_entry {
    uint64_t address;
    uint64_t bytes;
    enum tfum_place place;
};

enum tfum_event {
    TFUM_REFUSED,   /* the ceiling was in the way */
    TFUM_FAILED,    /* a CUDA function returned an error */
    TFUM_FALLEN,    /* managed memory could not be used, device memory was */
    TFUM_UNKNOWN,   /* a freed address that the shim did not allocate */
    TFUM_UNWRITTEN, /* lines of the trace that could not be written */
    TFUM_EVENTS
};

struct tfum_totals {
    uint64_t used;           /* bytes allocated or reserved now */
    uint64_t peak;           /* the largest `used` so far */
    uint64_t live;           /* allocations now */
    uint64_t allocations[2]; /* so far, by enum tfum_place */
    uint64_t bytes[2];       /* now, by enum tfum_place */
    uint64_t frees;          /* so far */
    uint64_t events[TFUM_EVENTS];
};

/* Takes `bytes` from the ceiling before the driver is asked for them, and room in the table, so that the sum never
 * passes the ceiling whatever other threads do. False where they do not fit or the host has no memory for the table. */
bool tfum_reserve(uint64_t ceiling, uint64_t bytes);

/* Ends a reservation: the driver gave `entry`, or it gave nothing. */
void tfum_commit(struct tfum_entry entry);
void tfum_cancel(uint64_t bytes);

/* Removes an address before the driver is asked to free it, so that the driver may give it out again at once; its
 * bytes stay taken until tfum_release says that they are free. False for an address that is not here. */
bool tfum_take(uint64_t address, struct tfum_entry *entry);
void tfum_put_back(struct tfum_entry entry);
void tfum_release(struct tfum_entry entry);

void tfum_note(enum tfum_event event);
struct tfum_totals tfum_totals(void);

/* For pthread_atfork: the lock is held while the process forks; a child has allocated nothing itself. */
void tfum_ledger_lock(void);
void tfum_ledger_unlock(void);
void tfum_ledger_reset_and_unlock(void);

#endif
