#include "ledger.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct tfum_totals totals;

/* Open addressing with linear probing; address 0 marks an empty slot. At most half of the slots are taken, those of
 * allocations under way (`reserved`) included. */
static struct tfum_entry *slots;
static size_t capacity;
static size_t reserved;

static size_t slot_of(uint64_t address)
{
    return (size_t)((address * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & (capacity - 1);
}

/* The slot that holds an address, or the empty one where it belongs. */
static size_t find(uint64_t address)
{
    size_t i = slot_of(address);
    while (slots[i].address != 0 && slots[i].address != address)
        i = (i + 1) & (capacity - 1);
    return i;
}

static void insert(struct tfum_entry entry)
{
    size_t i = find(entry.address);
    totals.live += slots[i].address == 0;
    slots[i] = entry;
}

static bool grow(void)
{
    size_t old_capacity = capacity;
    struct tfum_entry *old = slots;
    size_t larger = capacity ? capacity * 2 : 64;
    struct tfum_entry *fresh = calloc(larger, sizeof *fresh);
    if (fresh == NULL)
        return false;
    slots = fresh;
    capacity = larger;
    totals.live = 0;
    for (size_t i = 0; i < old_capacity; i++)
        if (old[i].address != 0)
            insert(old[i]);
    free(old);
    return true;
}

/* Empties slot `hole` and moves later entries of its run up, so that searches still find them. */
static void erase(size_t hole)
{
    size_t next = hole;
    for (;;) {
        next = (next + 1) & (capacity - 1);
        if (slots[next].address == 0)
            break;
        size_t home = slot_of(slots[next].address);
        if (((next - home) & (capacity - 1)) >= ((next - hole) & (capacity - 1))) {
            slots[hole] = slots[next];
            hole = next;
        }
    }
    memset(&slots[hole], 0, sizeof slots[hole]);
    totals.live--;
}

bool tfum_reserve(uint64_t ceiling, uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    bool room = tfum_fits(ceiling, totals.used, bytes);
    if (room && 2 * (totals.live + reserved + 1) > capacity)
        room = grow();
    if (room) {
        reserved++;
        totals.used += bytes;
        if (totals.used > totals.peak)
            totals.peak = totals.used;
    } else {
        totals.events[TFUM_REFUSED]++;
    }
    pthread_mutex_unlock(&lock);
    return room;
}

void tfum_commit(struct tfum_entry entry)
{
    pthread_mutex_lock(&lock);
    reserved--;
    struct tfum_entry old = slots[find(entry.address)];
    if (old.address != 0) { /* freed behind the shim's back, with its context: the driver gives it out again */
        totals.used -= old.bytes;
        totals.bytes[old.place] -= old.bytes;
    }
    insert(entry);
    totals.allocations[entry.place]++;
    totals.bytes[entry.place] += entry.bytes;
    pthread_mutex_unlock(&lock);
}

void tfum_cancel(uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    reserved--;
    totals.used -= bytes;
    pthread_mutex_unlock(&lock);
}

bool tfum_take(uint64_t address, struct tfum_entry *entry)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    if (capacity != 0 && address != 0) {
        size_t i = find(address);
        found = slots[i].address == address;
        if (found) {
            *entry = slots[i];
            erase(i);
            reserved++; /* tfum_put_back must find room */
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void tfum_put_back(struct tfum_entry entry)
{
    pthread_mutex_lock(&lock);
    reserved--;
    insert(entry);
    pthread_mutex_unlock(&lock);
}

void tfum_release(struct tfum_entry entry)
{
    pthread_mutex_lock(&lock);
    reserved--;
    totals.used -= entry.bytes;
    totals.bytes[entry.place] -= entry.bytes;
    totals.frees++;
    pthread_mutex_unlock(&lock);
}

void tfum_note(enum tfum_event event)
{
    pthread_mutex_lock(&lock);
    totals.events[event]++;
    pthread_mutex_unlock(&lock);
}

struct tfum_totals tfum_totals(void)
{
    pthread_mutex_lock(&lock);
    struct tfum_totals copy = totals;
    pthread_mutex_unlock(&lock);
    return copy;
}

void tfum_ledger_lock(void)
{
    pthread_mutex_lock(&lock);
}

void tfum_ledger_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

void tfum_ledger_reset_and_unlock(void)
{
    /* The table's memory is not freed: malloc's own locks may be in any state in a child of a threaded process. */
    slots = NULL;
    capacity = 0;
    reserved = 0;
    memset(&totals, 0, sizeof totals);
    pthread_mutex_unlock(&lock);
}
