// clang-format Language: C
/* Moves of managed memory, apart from TensorFlow: the driver is found at run time, and without it nothing is moved. */
#ifndef TFUM_MIGRATE_H
#define TFUM_MIGRATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TFUM_EXPORT __attribute__((visibility("default")))

enum tfum_verb { TFUM_PREFETCH, TFUM_EVICT, TFUM_ADVISE, TFUM_VERBS };

/* Counts one execution of an operation on `bytes` bytes. */
TFUM_EXPORT void tfum_count(enum tfum_verb verb, uint64_t bytes);

/* Enqueues a move to the current device (TFUM_PREFETCH) or to the host (TFUM_EVICT) on a stream of the shim's own, so
 * that it overlaps with what the compute stream does next, after all that is on the compute stream now. Or gives the
 * driver an advice about the memory, at once. Counts what became of it; a hint that fails harms nothing but speed. */
TFUM_EXPORT void tfum_move(enum tfum_verb verb, uint64_t address, uint64_t bytes, int advice, int advice_on_host,
                           void *compute_stream);

/* The memory of the latest move that was enqueued; 0 and 0 before the first. */
TFUM_EXPORT void tfum_last_move(uint64_t *address, uint64_t *bytes);

/* Counters by number, in a fixed order; the name is NULL after the last. */
TFUM_EXPORT const char *tfum_counter_name(unsigned number);
TFUM_EXPORT uint64_t tfum_counter(unsigned number);
TFUM_EXPORT void tfum_reset_counters(void);

#ifdef __cplusplus
}
#endif

#endif
