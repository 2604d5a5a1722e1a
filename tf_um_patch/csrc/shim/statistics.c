#include "statistics.h"

#include "interpose.h"
#include "ledger.h"

enum {
    USED,
    PEAK,
    LIVE,
    MANAGED_NOW,
    DEVICE_NOW,
    MANAGED_ALLOCATIONS,
    DEVICE_ALLOCATIONS,
    FREES,
    FIRST_EVENT,
    FIRST_CALL = FIRST_EVENT + TFUM_EVENTS,
    COUNT = FIRST_CALL + TFUM_REPLACED_COUNT * TFUM_ROUTES
};

/* Tables: clang-format would tear them apart. */
/* clang-format off */
#define NAME_CALLS(function, library, base, since, parameters, arguments)                                              \
    [FIRST_CALL + TFUM_##function * TFUM_ROUTES + TFUM_SYMBOL] = #function ".symbol",                                  \
    [FIRST_CALL + TFUM_##function * TFUM_ROUTES + TFUM_DLSYM] = #function ".dlsym",                                    \
    [FIRST_CALL + TFUM_##function * TFUM_ROUTES + TFUM_PROC_ADDRESS] = #function ".proc_address",

static const char *const names[COUNT] = {
    [USED] = "used_bytes",
    [PEAK] = "peak_bytes",
    [LIVE] = "live_allocations",
    [MANAGED_NOW] = "managed_bytes",
    [DEVICE_NOW] = "device_bytes",
    [MANAGED_ALLOCATIONS] = "managed_allocations",
    [DEVICE_ALLOCATIONS] = "device_allocations",
    [FREES] = "frees",
    [FIRST_EVENT + TFUM_REFUSED] = "refused_by_ceiling",
    [FIRST_EVENT + TFUM_FAILED] = "failed_calls",
    [FIRST_EVENT + TFUM_FALLEN] = "fallen_back_to_device",
    [FIRST_EVENT + TFUM_UNKNOWN] = "unknown_frees",
    [FIRST_EVENT + TFUM_UNWRITTEN] = "unwritten_trace_lines",
    TFUM_REPLACED(NAME_CALLS)};
/* clang-format on */

const char *tfum_statistic_name(unsigned number)
{
    return number < COUNT ? names[number] : 0;
}

uint64_t tfum_statistic(unsigned number)
{
    if (number >= COUNT)
        return 0;
    if (number >= FIRST_CALL)
        return tfum_calls((number - FIRST_CALL) / TFUM_ROUTES, (number - FIRST_CALL) % TFUM_ROUTES);
    struct tfum_totals totals = tfum_totals();
    switch (number) {
    case USED:
        return totals.used;
    case PEAK:
        return totals.peak;
    case LIVE:
        return totals.live;
    case MANAGED_NOW:
        return totals.bytes[TFUM_MANAGED];
    case DEVICE_NOW:
        return totals.bytes[TFUM_DEVICE];
    case MANAGED_ALLOCATIONS:
        return totals.allocations[TFUM_MANAGED];
    case DEVICE_ALLOCATIONS:
        return totals.allocations[TFUM_DEVICE];
    case FREES:
        return totals.frees;
    default:
        return totals.events[number - FIRST_EVENT];
    }
}
