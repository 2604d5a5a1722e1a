// clang-format Language: C
/* The shim's statistics, which programs can find in it by dlsym: the proof that it is there, and what it did. */
#ifndef TFUM_STATISTICS_H
#define TFUM_STATISTICS_H

#include <stdint.h>

/* By number, in a fixed order; the name is NULL after the last. Names have no spaces: "peak_bytes", and for calls
 * "<function>.<route>". */
const char *tfum_statistic_name(unsigned number);
uint64_t tfum_statistic(unsigned number);

#endif
