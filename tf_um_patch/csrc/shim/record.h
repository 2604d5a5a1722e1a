// clang-format Language: C
/* What the shim says, and the files that it writes: messages, the allocation trace, the statistics at exit. */
#ifndef TFUM_RECORD_H
#define TFUM_RECORD_H

#include <stdint.h>

#include "ledger.h"
#include "options.h"

/* One line on standard error, written at once so that threads do not mix theirs. */
void tfum_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Adds `<nanoseconds> alloc|free <address> <bytes> managed|device <result>` to the trace. The address of a failed
 * allocation is 0. Does nothing where no trace was asked for; a trace that cannot be written is counted. */
void tfum_trace(const struct tfum_options *options, const char *what, struct tfum_entry entry, int result);

/* Writes the statistics to the file that the options name; nothing where they name none. */
void tfum_write_report(const struct tfum_options *options);

/* In a child of fork: its files are its own. Without %p in their names they are the parent's, and it writes none. */
void tfum_record_in_child(void);

#endif
