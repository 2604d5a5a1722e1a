// clang-format Language: C
/* What is decided, apart from how it is done: no CUDA, no state, no input or output. */
#ifndef TFUM_POLICY_H
#define TFUM_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "options.h"

enum tfum_place { TFUM_DEVICE, TFUM_MANAGED };

/* Where an allocation goes. `works` says whether the device can oversubscribe managed memory. */
enum tfum_place tfum_choose_place(const struct tfum_options *options, uint64_t bytes, bool works);

/* Bytes that may be allocated at one time on a device that had `device_free` bytes free before. */
uint64_t tfum_ceiling(const struct tfum_options *options, uint64_t device_free);

/* Whether `bytes` more fit under the ceiling with `used` taken; never overflows. */
bool tfum_fits(uint64_t ceiling, uint64_t used, uint64_t bytes);

struct tfum_memory {
    uint64_t free;
    uint64_t total;
};

/* What a program is told that the device has: device and host budget, less what it allocated. `device_free` is what
 * was free before its first allocation, since the driver does not subtract managed memory that was never touched. */
struct tfum_memory tfum_reported(const struct tfum_options *options, uint64_t device_free, uint64_t device_total,
                                 uint64_t used);

#endif
