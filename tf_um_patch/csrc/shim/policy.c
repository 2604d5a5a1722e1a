#include "policy.h"

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

enum tfum_place tfum_choose_place(const struct tfum_options *options, uint64_t bytes, bool works)
{
    /* Managed allocation refuses zero bytes where the original does not. */
    return works && bytes > 0 && bytes >= options->threshold ? TFUM_MANAGED : TFUM_DEVICE;
}

uint64_t tfum_ceiling(const struct tfum_options *options, uint64_t device_free)
{
    return options->ceiling == TFUM_AUTOMATIC ? add(device_free, options->host_budget) : options->ceiling;
}

bool tfum_fits(uint64_t ceiling, uint64_t used, uint64_t bytes)
{
    return used <= ceiling && bytes <= ceiling - used;
}

struct tfum_memory tfum_reported(const struct tfum_options *options, uint64_t device_free, uint64_t device_total,
                                 uint64_t used)
{
    uint64_t ceiling = tfum_ceiling(options, device_free);
    uint64_t available = add(device_free, options->host_budget);
    if (available > ceiling)
        available = ceiling;
    struct tfum_memory memory = {available > used ? available - used : 0, add(device_total, options->host_budget)};
    return memory;
}
