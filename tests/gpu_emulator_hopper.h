/* gpu_emulator_hopper.h: what gpu/hopper.cuh says in PTX, on the CPU. Read gpu_emulator.h first.
 *
 * mbarriers. The 64 bits in shared memory hold a number, under which the barrier's count, arrivals, bytes and phase are
 * kept here; so one that was never initialised, or was overwritten, is noticed.
 *
 * TMA and bulk copies. A load poisons its destination when it is asked for, and moves its bytes at a random later time,
 * box by box with zeros outside of the matrix; then the barrier gets its bytes. A store reads shared memory and writes
 * global memory at two later times, at the latest when its thread waits for it.
 *
 * wgmma. Its four warps meet; the accumulators become NaN in all threads, as nobody may look at them; the product
 * waits in the warpgroup's queue and is computed at a random time, at the latest when the thread waits for its group,
 * which gives the accumulators back. The operands are read where the descriptors say, through the canonical layouts of
 * CUTLASS (mma_traits_sm90_gmma.hpp) for the 128-byte swizzle. So a stage that is released too early, or a wait too
 * few, spoils numbers; if a load is asked for into a tile that a product still reads, that is said at once.
 * The sum over k here is a chain in fp32; how the hardware rounds inside 16 k is not published.
 *
 * The async proxy. TMA stores and wgmma see ordinary stores only after fence.proxy.async. We keep a second copy of
 * shared memory, as that proxy saw it last, for each 16 bytes, and what it is about to read is compared: where it
 * changed and no thread of the block has fenced since, the fence is missing. (A fence by another thread than the one
 * that wrote hides that. No tool sees all of it, and neither does this.)
 *
 * Complaints: an mbarrier that gets more arrivals than its count, or bytes nobody expected, or two phases while one
 * waits; wgmma without wgmma_fence; copies or products still under way when a block ends; registers (setmaxnreg) that
 * do not add up; a block that a peer still needs but that has ended. */
#ifndef PROMOT_GPU_EMULATOR_HOPPER_H
#define PROMOT_GPU_EMULATOR_HOPPER_H

#include <deque>
#include <list>

namespace emulator
{
struct Mbarrier {
    uint64_t *at;
    uint32_t count, pending, phase;
    int64_t bytes; /* expected and not yet there */
    bool fenced;
};

/* The accumulators of one warpgroup from the first product that uses them to the wait that gives them back. */
struct Accumulators {
    float *d[WARPGROUP];
    unsigned n, group, missing; /* columns; of the last product; threads that have not got them back */
    bool given[WARPGROUP];
    std::vector<float> value; /* [64, n] */
};

struct Product {
    Accumulators *sum;
    uint64_t a, b;
    uint32_t a_registers[WARPGROUP][4];
    bool a_in_registers, trans_a, trans_b, accumulate;
    unsigned group;
    uint32_t first[2], last[2]; /* bytes of shared memory that A and B read; last 0: none */
};

struct Warpgroup {
    Meeting<WARPGROUP> meeting;
    std::deque<Product> queue;
    std::list<Accumulators> sums;
    bool fenced[WARPGROUP];
};

struct BulkStore {
    unsigned thread, group;
    bool has_read, has_written, add;
    TensorBox box; /* rank 0: `bytes` in a row at base */
    int at[3];
    size_t shared_at, bytes;
    std::vector<char> data;
};

struct HopperBlock {
    std::vector<Mbarrier> barriers;
    std::vector<char> seen;      /* shared memory as the async proxy saw it last */
    std::vector<uint32_t> epoch; /* of each 16 bytes: `fences` when it saw them */
    uint32_t fences;
    std::vector<Warpgroup> warpgroups;
    std::list<BulkStore> stores;
    unsigned loads; /* under way into this block */
    size_t free_registers;
    std::vector<unsigned> registers; /* of each thread */
};

static const size_t GRANULE = 16;
static const uint32_t WINDOW = 1024;                              /* see shared_address */
static const uint64_t MBARRIER_MARK = (uint64_t)0x6d626172 << 32; /* "mbar" */

inline void hopper_check_at_end(Block *block)
{
    const HopperBlock *h = (const HopperBlock *)block->hopper.get();
    if (h->loads) fail("the block ends with %u loads under way into its shared memory", h->loads);
    for (const Mbarrier &b : h->barriers)
        if (b.bytes)
            fail("the block ends while the mbarrier at byte %zu expects %lld bytes", (char *)b.at - block->shared,
                 (long long)b.bytes);
    for (const BulkStore &s : h->stores)
        if (!s.has_read) fail("the block ends before a bulk store has read its shared memory (thread %u)", s.thread);
    for (const Warpgroup &w : h->warpgroups)
        if (!w.sums.empty()) fail("the block ends with a wgmma that was not waited for");
}

inline HopperBlock *hopper_of(Block *block)
{
    if (block->hopper) return (HopperBlock *)block->hopper.get();
    if (machine.compute_major != 9) fail("an instruction of sm_90a on compute capability %d", machine.compute_major);
    std::shared_ptr<HopperBlock> h = std::make_shared<HopperBlock>();
    const size_t granules = (block->shared_bytes + GRANULE - 1) / GRANULE;
    h->seen.assign(granules * GRANULE, (char)POISON);
    h->epoch.assign(granules, 0);
    h->warpgroups.resize((block->threads + WARPGROUP - 1) / WARPGROUP);
    h->registers.assign(block->threads, (unsigned)min(65536 / (int)block->threads / 8 * 8, 256));
    block->hopper = h;
    block->check_at_end = hopper_check_at_end;
    return h.get();
}

inline Block *this_block()
{
    return machine.current->block;
}

inline HopperBlock *this_hopper()
{
    return hopper_of(this_block());
}

inline Block *peer_block(uint32_t rank)
{
    if (rank >= machine.cluster) fail("block %u of a cluster of %u", rank, machine.cluster);
    Block *peer = &machine.blocks[rank];
    if (!peer->live) fail("block %u of the cluster has ended, and a peer still needs it", rank);
    return peer;
}

/* --- the async proxy's view of shared memory */
inline size_t shared_offset(const Block *block, const void *at, size_t bytes, size_t alignment, const char *what)
{
    const char *p = (const char *)at;
    if (p < block->shared || p + bytes > block->shared + block->shared_bytes)
        fail("%s: %zu bytes at %p are not in dynamic shared memory", what, bytes, at);
    if ((size_t)(p - block->shared) % alignment) fail("%s: the place is not a multiple of %zu bytes", what, alignment);
    return (size_t)(p - block->shared);
}

inline void async_write(Block *block, size_t offset, const void *data, size_t bytes)
{
    HopperBlock *h = hopper_of(block);
    memcpy(block->shared + offset, data, bytes);
    memcpy(h->seen.data() + offset, data, bytes);
    for (size_t g = offset / GRANULE; g <= (offset + bytes - 1) / GRANULE; g++) h->epoch[g] = h->fences;
}

inline void check_fenced(Block *block, size_t offset, size_t bytes, const char *what)
{
    HopperBlock *h = hopper_of(block);
    if (offset + bytes > block->shared_bytes) fail("%s: reads behind shared memory, at byte %zu", what, offset);
    for (size_t g = offset / GRANULE; g <= (offset + bytes - 1) / GRANULE; g++) {
        const size_t n = min(block->shared_bytes - g * GRANULE, GRANULE);
        char *seen = h->seen.data() + g * GRANULE, *now = block->shared + g * GRANULE;
        if (memcmp(seen, now, n) == 0) continue;
        if (h->epoch[g] == h->fences)
            fail("%s: byte %zu of shared memory was stored to, without fence.proxy.async", what, g * GRANULE);
        memcpy(seen, now, n);
        h->epoch[g] = h->fences;
    }
}

/* --- mbarriers */
inline Mbarrier *find_mbarrier(Block *block, const void *at, const char *what)
{
    HopperBlock *h = hopper_of(block);
    uint64_t word;
    memcpy(&word, at, sizeof word);
    const uint64_t number = word - MBARRIER_MARK;
    if (number >= h->barriers.size() || h->barriers[number].at != at)
        fail("%s: no mbarrier was initialised here (byte %td of shared memory)", what,
             (const char *)at - block->shared);
    return &h->barriers[number];
}

inline void describe_mbarrier(const Fiber *f)
{
    const Mbarrier *b = find_mbarrier(f->block, f->waits_at, "mbarrier");
    fprintf(stderr, " at byte %td, parity %u (in phase %u; %u of %u arrivals and %lld bytes are missing)",
            (const char *)b->at - f->block->shared, f->argument, b->phase, b->pending, b->count, (long long)b->bytes);
}

inline void mbarrier_progress(Mbarrier *b)
{
    if (b->pending || b->bytes) return;
    b->phase++;
    b->pending = b->count;
    for (Block &block : machine.blocks)
        for (unsigned t = 0; t < block.threads; t++) {
            Fiber *f = block.fibers + t;
            if (f->waits_for && f->waits_at == b->at) make_ready(f);
        }
}

inline void mbarrier_count(Block *block, const void *at, uint32_t expected, bool arrives, const char *what)
{
    Mbarrier *b = find_mbarrier(block, at, what);
    b->bytes += expected;
    if (b->bytes >= 1 << 20) fail("%s: an mbarrier expects %lld bytes (below 2^20)", what, (long long)b->bytes);
    if (arrives && b->pending-- == 0)
        fail("%s: more than %u arrivals in phase %u of the mbarrier at byte %td", what, b->count, b->phase,
             (const char *)at - block->shared);
    mbarrier_progress(b);
}

/* Bytes may come before they are expected; but not so that a phase ends for want of an expectation. */
inline void mbarrier_bytes_came(Block *block, const void *at, size_t bytes)
{
    Mbarrier *b = find_mbarrier(block, at, "complete_tx");
    if (!b->pending && b->bytes < (int64_t)bytes)
        fail("%zu bytes came to the mbarrier at byte %td, which expects %lld", bytes, (const char *)at - block->shared,
             (long long)b->bytes);
    b->bytes -= (int64_t)bytes;
    mbarrier_progress(b);
}

/* --- boxes: visit(byte in the tile, address in global memory or NULL) for each element */
template <typename Visit> void visit_box(const TensorBox &t, const int at[3], Visit visit)
{
    size_t byte = 0;
    for (uint32_t i2 = 0; i2 < (t.rank > 2 ? t.box[2] : 1); i2++)
        for (uint32_t i1 = 0; i1 < t.box[1]; i1++)
            for (uint32_t i0 = 0; i0 < t.box[0]; i0++, byte += t.stride[0]) {
                const int64_t c0 = (int64_t)at[0] + i0, c1 = (int64_t)at[1] + i1,
                              c2 = t.rank > 2 ? (int64_t)at[2] + i2 : 0;
                const bool inside = c0 >= 0 && c0 < (int64_t)t.size[0] && c1 >= 0 && c1 < (int64_t)t.size[1] &&
                                    c2 >= 0 && (t.rank < 3 || c2 < (int64_t)t.size[2]);
                const uint64_t place =
                    (uint64_t)c0 * t.stride[0] + (uint64_t)c1 * t.stride[1] + (uint64_t)c2 * t.stride[2];
                visit(byte, inside ? (char *)const_cast<void *>(t.base) + place : NULL);
            }
}

inline size_t box_bytes(const TensorBox &t)
{
    return (size_t)t.stride[0] * t.box[0] * t.box[1] * (t.rank > 2 ? t.box[2] : 1);
}

/* A load must not run over what products and stores still read. */
inline void check_unused(Block *block, size_t offset, size_t bytes)
{
    HopperBlock *h = hopper_of(block);
    for (const Warpgroup &w : h->warpgroups)
        for (const Product &p : w.queue)
            for (int i = 0; i < 2; i++)
                if (p.last[i] > offset && p.first[i] < offset + bytes)
                    fail("a load into bytes %zu ... %zu, from which a wgmma still reads", offset, offset + bytes - 1);
    for (const BulkStore &s : h->stores)
        if (!s.has_read && s.shared_at < offset + bytes && offset < s.shared_at + s.bytes)
            fail("a load into bytes %zu ... %zu, from which a bulk store still reads", offset, offset + bytes - 1);
}

struct Load {
    TensorBox box; /* rank 0: a run of bytes */
    int at[3];
    size_t offset, bytes, barrier_offset;
    uint16_t mask; /* blocks of the cluster */
};

inline void load_finish(const Load &load)
{
    std::vector<char> data(load.bytes);
    if (load.box.rank == 0)
        memcpy(data.data(), load.box.base, load.bytes);
    else
        visit_box(load.box, load.at, [&](size_t byte, const char *from) {
            char *to = data.data() + swizzled((uint32_t)byte);
            if (from)
                memcpy(to, from, load.box.stride[0]);
            else
                memset(to, 0, load.box.stride[0]);
        });
    for (uint32_t rank = 0; rank < 16; rank++) {
        if (!(load.mask >> rank & 1)) continue;
        Block *block = peer_block(rank);
        async_write(block, load.offset, data.data(), load.bytes);
        hopper_of(block)->loads--;
        mbarrier_bytes_came(block, block->shared + load.barrier_offset, load.bytes);
    }
}

inline void load_begin(const TensorBox &box, const int at[3], void *shared, size_t bytes, uint64_t *bar, uint16_t mask,
                       const char *what)
{
    Block *own = this_block();
    const std::vector<char> poison(bytes, (char)POISON);
    Load load = {box, {at[0], at[1], at[2]}, 0, bytes, 0, mask};
    load.offset = shared_offset(own, shared, bytes, box.rank ? (size_t)TILE_ALIGNMENT : GRANULE, what);
    load.barrier_offset = shared_offset(own, bar, sizeof *bar, sizeof *bar, what);
    for (uint32_t rank = 0; rank < 16; rank++) {
        if (!(mask >> rank & 1)) continue;
        Block *block = peer_block(rank);
        if (!find_mbarrier(block, block->shared + load.barrier_offset, what)->fenced)
            fail("%s: mbarrier_init without mbarrier_fence_init", what);
        check_unused(block, load.offset, bytes);
        async_write(block, load.offset, poison.data(), bytes);
        hopper_of(block)->loads++;
    }
    machine.deferred.push_back([load] { load_finish(load); });
}

inline void load_box(void *shared, const CUtensorMap *map, unsigned rank, int c0, int c1, int c2, uint64_t *bar,
                     uint16_t mask, const char *what)
{
    const int at[3] = {c0, c1, c2};
    if (map->facts.rank != rank) fail("%s: the map has rank %u", what, map->facts.rank);
    load_begin(map->facts, at, shared, box_bytes(map->facts), bar, mask, what);
}

/* --- bulk stores */
inline void store_read(Block *block, BulkStore *s)
{
    if (s->has_read) return;
    s->has_read = true;
    s->data.assign(block->shared + s->shared_at, block->shared + s->shared_at + s->bytes);
}

inline void store_element(char *to, const char *from, bool add, size_t size)
{
    float sum, x;
    if (!add) {
        memcpy(to, from, size);
        return;
    }
    if (size != 4) fail("an addition to bf16 in global memory is not emulated");
    memcpy(&sum, to, 4);
    memcpy(&x, from, 4);
    sum += x;
    memcpy(to, &sum, 4);
}

inline void store_write(Block *block, BulkStore *s)
{
    if (s->has_written) return;
    store_read(block, s);
    s->has_written = true;
    if (s->box.rank == 0)
        for (size_t i = 0; i < s->bytes; i += 4)
            store_element((char *)const_cast<void *>(s->box.base) + i, s->data.data() + i, s->add, 4);
    else
        visit_box(s->box, s->at, [&](size_t byte, char *to) {
            if (to) store_element(to, s->data.data() + swizzled((uint32_t)byte), s->add, s->box.stride[0]);
        });
}

inline void store_begin(const TensorBox &box, const int at[3], const void *shared, size_t bytes, bool add,
                        const char *what)
{
    Fiber *f = machine.current;
    std::shared_ptr<void> keep = (this_hopper(), f->block->hopper);
    HopperBlock *h = this_hopper();
    const size_t offset = shared_offset(f->block, shared, bytes, box.rank ? (size_t)TILE_ALIGNMENT : GRANULE, what);
    check_fenced(f->block, offset, bytes, what);
    h->stores.push_back({f->number, f->bulk_groups, false, false, add, box, {at[0], at[1], at[2]}, offset, bytes, {}});
    BulkStore *store = &h->stores.back();
    Block *block = f->block;
    machine.deferred.push_back([keep, block, store] {
        store_read(block, store);
        machine.deferred.push_back([keep, block, store] { store_write(block, store); });
    });
}

inline void store_box(const CUtensorMap *map, const void *shared, unsigned rank, int c0, int c1, int c2, bool add,
                      const char *what)
{
    const int at[3] = {c0, c1, c2};
    if (map->facts.rank != rank) fail("%s: the map has rank %u", what, map->facts.rank);
    store_begin(map->facts, at, shared, box_bytes(map->facts), add, what);
}

inline void store_wait(unsigned allowed, bool written)
{
    Fiber *f = machine.current;
    for (BulkStore &s : this_hopper()->stores) {
        if (s.thread != f->number || s.group + allowed >= f->bulk_groups) continue;
        store_read(f->block, &s);
        if (written) store_write(f->block, &s);
    }
}

inline void check_bulk(const void *global, size_t bytes, const char *what)
{
    if ((uintptr_t)global % 16 || bytes % 16 || !bytes)
        fail("%s: the address or the length (%zu) is not a multiple of 16 bytes", what, bytes);
}

/* --- wgmma
 *
 * visit(row of the tile, first of eight columns, address in the shared window) for each 16 bytes of an operand of
 * `extent` rows or columns and 16 k. K-major: rows are m or n, columns are k. MN-major: rows are k. */
template <typename Visit> void visit_operand(uint64_t descriptor, unsigned extent, bool mn_major, Visit visit)
{
    const uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, lbo = (uint32_t)(descriptor >> 16 & 0x3fff) << 4,
                   sbo = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail("wgmma: the descriptor's swizzle is not that of 128 bytes");
    if (descriptor >> 49 & 7) fail("wgmma: the descriptor has a base offset");
    const unsigned rows = mn_major ? 16 : extent, columns = mn_major ? extent : 16;
    for (unsigned row = 0; row < rows; row++)
        for (unsigned column = 0; column < columns; column += 8)
            visit(row, column,
                  swizzled(start + row % 8 * TILE_ROW_BYTES + row / 8 * sbo + column / 64 * lbo + column % 64 * 2));
}

/* At issue: is what the operand reads there, and fenced? */
inline void check_operand(Block *block, uint64_t descriptor, unsigned extent, bool mn_major, uint32_t *first,
                          uint32_t *last)
{
    *first = UINT32_MAX;
    *last = 0;
    visit_operand(descriptor, extent, mn_major, [&](unsigned, unsigned, uint32_t address) {
        if (address < WINDOW) fail("wgmma: an operand lies before the block's shared memory");
        const uint32_t offset = address - WINDOW;
        check_fenced(block, offset, GRANULE, "wgmma");
        *first = min(*first, offset);
        *last = max(*last, offset + (uint32_t)GRANULE);
    });
}

/* Into to[k * extent + mn]. */
inline void read_operand(const Block *block, uint64_t descriptor, unsigned extent, bool mn_major, float *to)
{
    visit_operand(descriptor, extent, mn_major, [&](unsigned row, unsigned column, uint32_t address) {
        uint16_t bits[8];
        memcpy(bits, block->shared + address - WINDOW, sizeof bits);
        for (unsigned i = 0; i < 8; i++)
            to[mn_major ? row * extent + column + i : (column + i) * extent + row] = bf16_bits_to_float(bits[i]);
    });
}

inline unsigned accumulator_place(unsigned thread, unsigned i, unsigned n)
{
    const unsigned row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2),
                   column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
    return row * n + column;
}

inline void product_run(const Block *block, Warpgroup *w)
{
    typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
    const Product p = std::move(w->queue.front());
    const unsigned n = p.sum->n;
    float a[16][64], b[16 * 256];
    w->queue.pop_front();
    if (p.a_in_registers) {
        for (unsigned t = 0; t < WARPGROUP; t++)
            for (unsigned r = 0; r < 4; r++)
                for (unsigned half = 0; half < 2; half++)
                    a[2 * (t % 4) + 8 * (r / 2) + half][t / 32 * 16 + t % 32 / 4 + 8 * (r % 2)] =
                        bf16_bits_to_float(p.a_registers[t][r] >> 16 * half & 0xffff);
    } else {
        read_operand(block, p.a, 64, p.trans_a, a[0]);
    }
    read_operand(block, p.b, n, p.trans_b, b);
    if (!p.accumulate) p.sum->value.assign(p.sum->value.size(), 0);
    for (unsigned m = 0; m < 64; m++)
        for (unsigned k = 0; k < 16; k++) {
            float *to = p.sum->value.data() + m * n;
            const float x = a[k][m], *row = b + k * n;
            for (unsigned j = 0; j < n; j += 8) *(Eight *)(to + j) += x * *(const Eight *)(row + j);
        }
}

struct WgmmaCall {
    float *d;
    unsigned n, number, group;
    bool a_in_registers, trans_a, trans_b, accumulate;
    uint32_t a_registers[4];
    uint64_t a, b;
};

/* New accumulators come from the threads' registers: their values count where the product accumulates. */
inline Accumulators *accumulators_of(Warpgroup *w, void *const *operand)
{
    const WgmmaCall *first = (const WgmmaCall *)operand[0];
    for (Accumulators &sum : w->sums)
        if (sum.d[0] == first->d && sum.missing == WARPGROUP && sum.n == first->n) return &sum;
    w->sums.emplace_back();
    Accumulators *sum = &w->sums.back();
    sum->n = first->n;
    sum->missing = WARPGROUP;
    sum->value.resize((size_t)64 * sum->n);
    for (unsigned t = 0; t < WARPGROUP; t++) {
        const WgmmaCall *call = (const WgmmaCall *)operand[t];
        if (!w->fenced[t]) fail("wgmma: thread %u has not fenced its accumulators (wgmma_fence)", call->number);
        sum->d[t] = call->d;
        sum->given[t] = false;
        for (unsigned i = 0; i < sum->n / 2; i++) sum->value[accumulator_place(t, i, sum->n)] = call->d[i];
    }
    return sum;
}

inline void perform_wgmma(void *const *operand)
{
    Block *block = this_block();
    const std::shared_ptr<void> keep = block->hopper;
    const WgmmaCall *first = (const WgmmaCall *)operand[0];
    Warpgroup *w = &this_hopper()->warpgroups[first->number / WARPGROUP];
    Product p = {};
    p.sum = accumulators_of(w, operand);
    p.a = first->a, p.b = first->b;
    p.a_in_registers = first->a_in_registers, p.accumulate = first->accumulate;
    p.trans_a = first->trans_a, p.trans_b = first->trans_b;
    p.sum->group = p.group = first->group;
    for (unsigned t = 0; t < WARPGROUP; t++) {
        const WgmmaCall *call = (const WgmmaCall *)operand[t];
        if (call->a != p.a || call->b != p.b || call->accumulate != p.accumulate || call->group != p.group)
            fail("wgmma: thread %u has another descriptor, flag or group than thread %u", call->number, first->number);
        if (call->d != p.sum->d[t]) fail("wgmma: thread %u has other accumulators than before", call->number);
        if (p.a_in_registers && !w->fenced[t]) fail("wgmma: thread %u has not fenced A (wgmma_fence)", call->number);
        memcpy(p.a_registers[t], call->a_registers, sizeof call->a_registers);
        memset(call->d, POISON, first->n / 2 * sizeof *call->d);
    }
    if (!p.a_in_registers) check_operand(block, p.a, 64, p.trans_a, &p.first[0], &p.last[0]);
    check_operand(block, p.b, first->n, p.trans_b, &p.first[1], &p.last[1]);
    w->queue.push_back(std::move(p));
    machine.deferred.push_back([keep, block, w] {
        if (!w->queue.empty()) product_run(block, w);
    });
}

inline void wgmma_call(WgmmaCall *call, const char *what)
{
    Fiber *f = machine.current;
    Block *block = f->block;
    const unsigned group = f->number / WARPGROUP;
    if (block->threads < (group + 1) * WARPGROUP) fail("wgmma: thread %u is not in a whole warpgroup", f->number);
    call->number = f->number;
    call->group = f->wgmma_groups;
    meet(&this_hopper()->warpgroups[group].meeting, block->fibers + group * WARPGROUP, WARPGROUP, what, call,
         perform_wgmma);
}

/* All products of groups that began before the latest `allowed` ones are done, and this thread gets its sums. */
inline void wgmma_wait_for(unsigned allowed)
{
    Fiber *f = machine.current;
    Warpgroup *w = &this_hopper()->warpgroups[f->number / WARPGROUP];
    const unsigned t = f->number % WARPGROUP;
    if (draw(4) == 0) yield();
    while (!w->queue.empty() && w->queue.front().group + allowed < f->wgmma_groups) product_run(f->block, w);
    for (auto sum = w->sums.begin(); sum != w->sums.end();) {
        if (!sum->given[t] && sum->group + allowed < f->wgmma_groups) {
            for (unsigned i = 0; i < sum->n / 2; i++) sum->d[t][i] = sum->value[accumulator_place(t, i, sum->n)];
            sum->given[t] = true;
            sum->missing--;
        }
        sum = sum->missing ? std::next(sum) : w->sums.erase(sum);
    }
    w->fenced[t] = false; /* its registers may be touched again */
}

/* --- registers */
inline void set_registers(unsigned n, bool more)
{
    HopperBlock *h = this_hopper();
    unsigned *own = &h->registers[machine.current->number];
    if (more ? n < *own : n > *own) fail("setmaxnreg.%s from %u to %u registers", more ? "inc" : "dec", *own, n);
    while (more && h->free_registers < n - *own) wait("setmaxnreg.inc: registers that nobody gives", h);
    h->free_registers += *own;
    h->free_registers -= n;
    *own = n;
    for (unsigned t = 0; !more && t < this_block()->threads; t++)
        if (this_block()->fibers[t].waits_for && this_block()->fibers[t].waits_at == h)
            make_ready(this_block()->fibers + t);
}
} // namespace emulator

/* ================================================================================================================
 * The functions of hopper.cuh */
inline void mbarrier_init(uint64_t *bar, uint32_t count)
{
    emulator::HopperBlock *h = emulator::this_hopper();
    emulator::shared_offset(emulator::this_block(), bar, sizeof *bar, sizeof *bar, "mbarrier_init");
    if (count < 1 || count >= 1u << 20) emulator::fail("mbarrier_init: a count of %u", count);
    for (const emulator::Mbarrier &b : h->barriers)
        if (b.at == bar) emulator::fail("mbarrier_init: a second time for the same one");
    *bar = emulator::MBARRIER_MARK + h->barriers.size();
    h->barriers.push_back({bar, count, count, 0, 0, false});
}

inline void mbarrier_fence_init()
{
    for (emulator::Mbarrier &b : emulator::this_hopper()->barriers) b.fenced = true;
}

inline void mbarrier_arrive(uint64_t *bar)
{
    emulator::mbarrier_count(emulator::this_block(), bar, 0, true, "mbarrier_arrive");
}

inline void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t bytes)
{
    emulator::mbarrier_count(emulator::this_block(), bar, bytes, true, "mbarrier_arrive_expect_tx");
}

inline void mbarrier_arrive_cluster(uint64_t *bar, uint32_t cta)
{
    emulator::Block *peer = emulator::peer_block(cta);
    char *there = peer->shared + ((char *)bar - emulator::this_block()->shared);
    if (!emulator::find_mbarrier(peer, there, "mbarrier_arrive_cluster")->fenced)
        emulator::fail("mbarrier_arrive_cluster: mbarrier_init without mbarrier_fence_init");
    emulator::mbarrier_count(peer, there, 0, true, "mbarrier_arrive_cluster");
}

inline void mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    emulator::Fiber *f = emulator::machine.current;
    const uint32_t number =
        (uint32_t)(emulator::find_mbarrier(f->block, bar, "mbarrier_wait") - emulator::this_hopper()->barriers.data());
    const uint32_t phase = emulator::this_hopper()->barriers[number].phase;
    if (parity > 1) emulator::fail("mbarrier_wait: parity %u", parity);
    if ((phase & 1) != parity) {
        if (emulator::draw(4) == 0) emulator::yield();
        return;
    }
    f->describe = emulator::describe_mbarrier;
    f->argument = parity;
    emulator::wait("mbarrier", bar);
    if (emulator::this_hopper()->barriers[number].phase != phase + 1)
        emulator::fail("mbarrier_wait: two phases ended before this thread saw the first");
}

inline void tma_prefetch_map(const CUtensorMap *)
{
}

inline void tma_load_2d(void *shared, const CUtensorMap *map, int c0, int c1, uint64_t *bar)
{
    const uint16_t own = (uint16_t)(1u << emulator::this_block()->rank);
    emulator::load_box(shared, map, 2, c0, c1, 0, bar, own, "tma_load_2d");
}

inline void tma_load_3d(void *shared, const CUtensorMap *map, int c0, int c1, int c2, uint64_t *bar)
{
    const uint16_t own = (uint16_t)(1u << emulator::this_block()->rank);
    emulator::load_box(shared, map, 3, c0, c1, c2, bar, own, "tma_load_3d");
}

inline void tma_load_2d_multicast(void *shared, const CUtensorMap *map, int c0, int c1, uint64_t *bar, uint16_t mask)
{
    emulator::load_box(shared, map, 2, c0, c1, 0, bar, mask, "tma_load_2d_multicast");
}

inline void tma_load_3d_multicast(void *shared, const CUtensorMap *map, int c0, int c1, int c2, uint64_t *bar,
                                  uint16_t mask)
{
    emulator::load_box(shared, map, 3, c0, c1, c2, bar, mask, "tma_load_3d_multicast");
}

inline void tma_store_2d(const CUtensorMap *map, const void *shared, int c0, int c1)
{
    emulator::store_box(map, shared, 2, c0, c1, 0, false, "tma_store_2d");
}

inline void tma_store_3d(const CUtensorMap *map, const void *shared, int c0, int c1, int c2)
{
    emulator::store_box(map, shared, 3, c0, c1, c2, false, "tma_store_3d");
}

inline void tma_reduce_add_2d(const CUtensorMap *map, const void *shared, int c0, int c1)
{
    emulator::store_box(map, shared, 2, c0, c1, 0, true, "tma_reduce_add_2d");
}

inline void tma_store_commit()
{
    emulator::machine.current->bulk_groups++;
}

template <int N> void tma_store_wait_read()
{
    emulator::store_wait(N, false);
}

template <int N> void tma_store_wait()
{
    emulator::store_wait(N, true);
}

inline void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar)
{
    const int nowhere[3] = {0, 0, 0};
    const uint16_t own = (uint16_t)(1u << emulator::this_block()->rank);
    emulator::check_bulk(global, bytes, "bulk_load");
    emulator::load_begin({global, TENSOR_F32, 0, {}, {}, {}}, nowhere, shared, bytes, bar, own, "bulk_load");
}

inline void bulk_store(void *global, const void *shared, uint32_t bytes)
{
    const int nowhere[3] = {0, 0, 0};
    emulator::check_bulk(global, bytes, "bulk_store");
    emulator::store_begin({global, TENSOR_F32, 0, {}, {}, {}}, nowhere, shared, bytes, false, "bulk_store");
}

inline void bulk_reduce_add_f32(float *global, const float *shared, uint32_t bytes)
{
    const int nowhere[3] = {0, 0, 0};
    emulator::check_bulk(global, bytes, "bulk_reduce_add_f32");
    emulator::store_begin({global, TENSOR_F32, 0, {}, {}, {}}, nowhere, shared, bytes, true, "bulk_reduce_add_f32");
}

inline void fence_proxy_async_shared()
{
    emulator::this_hopper()->fences++;
}

inline void fence_proxy_async_global()
{
}

inline void check_named_barrier(uint32_t id, uint32_t threads)
{
    if (id < 1 || id > 15) emulator::fail("named barrier %u", id);
    if (!threads || threads % 32 || threads > emulator::this_block()->threads)
        emulator::fail("named barrier %u for %u threads", id, threads);
}

inline void named_barrier(uint32_t id, uint32_t threads)
{
    check_named_barrier(id, threads);
    emulator::sync_barrier(&emulator::this_block()->barriers[id], threads, "a named barrier", false);
}

inline void named_barrier_arrive(uint32_t id, uint32_t threads)
{
    emulator::Barrier *barrier = &emulator::this_block()->barriers[id];
    check_named_barrier(id, threads);
    if (barrier->arrived && barrier->wanted != threads)
        emulator::fail("named barrier %u: for %u threads here, for %u elsewhere", id, threads, barrier->wanted);
    barrier->wanted = threads;
    if (++barrier->arrived == threads) emulator::release_barrier(barrier);
}

template <int N> void setmaxnreg_inc()
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
    emulator::set_registers(N, true);
}

template <int N> void setmaxnreg_dec()
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
    emulator::set_registers(N, false);
}

inline uint32_t cluster_rank()
{
    return emulator::this_block()->rank;
}

inline void cluster_sync()
{
    emulator::sync_barrier(&emulator::machine.cluster_barrier, emulator::machine.live, "cluster_sync", false);
}

inline void griddepcontrol_wait()
{
}
inline void griddepcontrol_launch()
{
}

inline void stmatrix_x4(void *shared_row, const uint32_t r[4])
{
    emulator::move_tiles<false, true>(const_cast<uint32_t *>(r), shared_row, "stmatrix");
}

inline void stmatrix_x4_trans(void *shared_row, const uint32_t r[4])
{
    emulator::move_tiles<true, true>(const_cast<uint32_t *>(r), shared_row, "stmatrix.trans");
}

inline uint64_t wgmma_descriptor(const void *shared, uint32_t lbo_bytes, uint32_t sbo_bytes)
{
    if ((lbo_bytes | sbo_bytes | shared_address(shared)) % 16) emulator::fail("wgmma_descriptor: not multiples of 16");
    return (uint64_t)1 << 62 | (uint64_t)(sbo_bytes >> 4 & 0x3fff) << 32 | (uint64_t)(lbo_bytes >> 4 & 0x3fff) << 16 |
           (shared_address(shared) >> 4 & 0x3fff);
}

inline void wgmma_fence()
{
    const unsigned number = emulator::machine.current->number;
    emulator::this_hopper()->warpgroups[number / WARPGROUP].fenced[number % WARPGROUP] = true;
}

inline void wgmma_commit()
{
    emulator::machine.current->wgmma_groups++;
}

template <int N> void wgmma_wait()
{
    static_assert(N >= 0 && N <= 7, "wgmma_wait");
    emulator::wgmma_wait_for(N);
}

template <int R> void warpgroup_fence_operand(float (&)[R])
{
}

template <int R> void warpgroup_fence_operand(uint32_t (&)[R][4])
{
}

template <int N, int TRANS_A, int TRANS_B> void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate)
{
    static_assert(N == 64 || N == 96 || N == 128 || N == 192 || N == 256, "wgmma");
    emulator::WgmmaCall call = {d, N, 0, 0, false, TRANS_A, TRANS_B, accumulate, {}, a, b};
    emulator::wgmma_call(&call, "wgmma_ss");
}

template <int N, int TRANS_B> void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate)
{
    static_assert(N == 64 || N == 96 || N == 128 || N == 192 || N == 256, "wgmma");
    emulator::WgmmaCall call = {d, N, 0, 0, true, false, TRANS_B, accumulate, {a[0], a[1], a[2], a[3]}, 0, b};
    emulator::wgmma_call(&call, "wgmma_rs");
}

#endif
