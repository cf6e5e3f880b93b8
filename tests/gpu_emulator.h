/* gpu_emulator.h: runs CUDA kernels on the CPU, to find out whether they are right.
 *
 * gpu/common.cuh includes this file in place of CUDA's headers when GPU_EMULATOR is defined. The .cu files then are
 * C++: what CUDA adds to the language is defined here, and so are the few calls of its runtime that gpu/device.cu
 * makes. What only Hopper has is in gpu_emulator_hopper.h.
 *
 * Threads. Each thread of a block is a fiber: a stack of its own, and a switch that exchanges stacks. Only one runs at
 * a time, until it meets a barrier or another lane (__syncthreads, a shuffle, mma, ...) and has to wait; then a
 * *random* one of those that can run goes on. So two threads between which a barrier is missing run in the wrong order
 * half of the time. And so that one warp can be a whole loop behind another, some sleep: a warp, a warpgroup or a block
 * of a cluster, or all but one, run only when nobody else can (priorities, as in Burckhardt et al. 2010). The blocks of
 * a grid run one after another, in an order that is also drawn; those of a cluster together. Everything follows from
 * one seed (PROMOT_EMULATOR_SEED, or seed()), which every complaint names.
 *
 * Memory. Device memory, dynamic and static shared memory are filled with 0xff bytes, NaN in fp32 and bf16, before a
 * kernel sees them. Behind each piece lie guard bytes or, with the address sanitizer, poison; with the sanitizer the
 * host may not touch device memory at all, only copies and kernels may.
 *
 * Asynchrony. What the hardware does later is done later here: a cp.async at the wait that covers it, a copy from
 * pinned host memory when the stream is waited for or used, TMA and wgmma at a random moment before somebody waits for
 * them in vain (deferred). Until then their destination holds NaN. Who reads too early reads NaN; who overwrites too
 * early spoils the copy. What a copy brings to pinned host memory is seen there only by who has waited for it, and no
 * event is reached before somebody has waited for it.
 *
 * PROMOT_EMULATOR_MEMORY=BYTES is what the card has.
 *
 * Counts. PROMOT_EMULATOR_COUNTS=FILE has the number of launches, of waits for the card (asked for, or hidden in a copy
 * that no pinned memory serves), of those that leave it nothing to do, of allocations and frees, of bytes copied to the
 * card, and the most memory that was in use, written there when the program ends.
 *
 * Complaints. What hardware would punish with a hang or with silence ends the program here with a line: a deadlock (who
 * waits for what), lanes of a warp that do different things, misaligned addresses, an access outside of shared memory,
 * memory of the card that is freed before all streams have been waited for.
 *
 * Not seen: the memory model (stores are visible at once, in order), time, bank conflicts, registers, and anything that
 * only the real assembler or driver decides. */
#ifndef PROMOT_GPU_EMULATOR_H
#define PROMOT_GPU_EMULATOR_H

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tuple>
#include <unistd.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define EMULATOR_ASAN 0
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#endif
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_SWITCH 1 /* by hand, in a few nanoseconds; elsewhere the C library does it, with two system calls */
#else
#define EMULATOR_SWITCH 0
#include <ucontext.h>
#endif

/* ================================================================================================================
 * CUDA's words */
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

/* A static variable serves all fibers of a block. They lie in one section, so that each block finds them poisoned. */
#ifdef __APPLE__
#define __shared__ static
#else
#define __shared__ static __attribute__((section("gpu_shared")))
extern "C" char __start_gpu_shared[], __stop_gpu_shared[];
__attribute__((section("gpu_shared"), used)) static char emulator_shared_section = 0; /* it must not be empty */
#endif
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(emulator::machine.current->block->shared)

#define EMULATOR_VECTOR(T, name, bytes2, bytes4)                                                                       \
    struct __align__(bytes2) name##2                                                                                   \
    {                                                                                                                  \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    struct name##3                                                                                                     \
    {                                                                                                                  \
        T x, y, z;                                                                                                     \
    };                                                                                                                 \
    struct __align__(bytes4) name##4                                                                                   \
    {                                                                                                                  \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    inline name##2 make_##name##2(T x, T y)                                                                            \
    {                                                                                                                  \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    inline name##3 make_##name##3(T x, T y, T z)                                                                       \
    {                                                                                                                  \
        return {x, y, z};                                                                                              \
    }                                                                                                                  \
    inline name##4 make_##name##4(T x, T y, T z, T w)                                                                  \
    {                                                                                                                  \
        return {x, y, z, w};                                                                                           \
    }
EMULATOR_VECTOR(float, float, 8, 16)
EMULATOR_VECTOR(double, double, 16, 16)
EMULATOR_VECTOR(int, int, 8, 16)
EMULATOR_VECTOR(unsigned, uint, 8, 16)
EMULATOR_VECTOR(short, short, 4, 8)
EMULATOR_VECTOR(unsigned short, ushort, 4, 8)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

/* ================================================================================================================
 * Fibers */
namespace emulator
{
struct Block;

struct CpAsync {
    void *to;
    const void *from;
    unsigned bytes, group;
};

struct Fiber {
    char *stack;
    void *stack_pointer, *fake_stack; /* fake_stack: the address sanitizer's */
#if !EMULATOR_SWITCH
    ucontext_t context;
#endif
    Block *block;
    uint3 thread;
    unsigned number; /* in the block */
    bool done;
    const char *waits_for; /* NULL: it can run */
    const void *waits_at;
    void (*describe)(const Fiber *fiber); /* prints more about the wait; NULL: there is no more */
    uint32_t argument;                    /* of the wait, for describe */
    unsigned votes;                       /* what __syncthreads_count gives */
    std::vector<CpAsync> copies;
    unsigned copy_groups, wgmma_groups, bulk_groups; /* committed so far */
};

/* Where the lanes of a warp (or the threads of a warpgroup) do something together: each leaves its operands, the last
 * to come works for all. */
typedef void Perform(void *const *operand); /* by lane; NULL: not there */

template <unsigned SIZE> struct Meeting {
    const char *what;
    uint32_t mask;
    unsigned arrived;
    Perform *perform;
    void *operand[SIZE];
};

struct Barrier {
    unsigned wanted, arrived, votes;
    std::vector<Fiber *> waiting;
};

struct Warp {
    uint32_t live;          /* lanes that have not returned */
    Meeting<32> meeting[4]; /* lanes of one warp may meet in disjoint groups */
};

struct Block {
    uint3 index;
    Fiber *fibers;
    unsigned rank, threads, live; /* rank: in the cluster */
    char *shared;
    size_t shared_bytes;
    std::vector<Warp> warps;
    Barrier barriers[16];
    std::shared_ptr<void> hopper;       /* what gpu_emulator_hopper.h knows of it, NULL: nothing */
    void (*check_at_end)(Block *block); /* its complaints when all threads have returned */
};

struct Machine {
    int compute_major = 9, compute_minor = 0, sm_count = 4; /* a test may change these */
    size_t memory = (size_t)1 << 30, memory_used = 0;
    unsigned long launches = 0, waits = 0, idle = 0, allocations = 0; /* see Counts */
    size_t bytes_to_card = 0, most_memory = 0;
    uint64_t seed = 1, random = 1;
    Fiber *current = NULL, host = {};
    std::vector<Fiber> fibers;
    std::vector<Fiber *> ready, sleepy; /* sleepy: can run too, but only when nobody is ready */
    unsigned unit = 0, sleeper = 0; /* so many neighbouring threads sleep together, those of this number; 0: nobody */
    bool others_sleep = false;      /* ... or all but those */
    std::vector<std::function<void()>> deferred; /* what the hardware does at some time, in any order */
    unsigned haste = 0;                          /* one deferred thing is done at one switch of so many; 0: at need */
    std::vector<Block> blocks;                   /* of the cluster that runs */
    Barrier cluster_barrier;
    unsigned live = 0;
    dim3 grid, block;
    unsigned cluster = 1;
    void (*kernel)(void *) = NULL;
    void *arguments = NULL;
    char *stacks = NULL, *shared = NULL;
    size_t stacks_count = 0, shared_size = 0;
};
inline Machine machine;

enum { STACK_BYTES = EMULATOR_ASAN ? 512 << 10 : 128 << 10, GUARD_BYTES = 1024, POISON = 0xff, GUARD = 0xa5 };

inline void complain_place()
{
    const Fiber *f = machine.current;
    if (f && f->block)
        fprintf(stderr, " [block (%u, %u, %u), thread %u]", f->block->index.x, f->block->index.y, f->block->index.z,
                f->number);
    fprintf(stderr, " [seed %llu]\n", (unsigned long long)machine.seed);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "GPU emulator: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    complain_place();
    fflush(NULL);
    _exit(EXIT_FAILURE);
}

inline void seed(uint64_t value)
{
    machine.seed = value;
    machine.random = value * 0x9E3779B97F4A7C15u | 1;
}

inline bool seed_from_environment()
{
    const char *text = getenv("PROMOT_EMULATOR_SEED");
    seed(text ? strtoull(text, NULL, 10) : 1);
    return true;
}
inline const bool is_seeded = seed_from_environment();

/* xorshift64* (Marsaglia 2003; Vigna 2016), uniform below n. */
inline unsigned draw(unsigned n)
{
    machine.random ^= machine.random >> 12;
    machine.random ^= machine.random << 25;
    machine.random ^= machine.random >> 27;
    return (unsigned)((machine.random * 0x2545F4914F6CDD1Du >> 32) * n >> 32);
}

/* --- switching
 *
 * A switch saves the registers that a function call must keep on the old stack, and loads them from the new one. */
#if EMULATOR_SWITCH
extern "C" void emulator_switch(void **save_stack_pointer, void *stack_pointer) __asm__("emulator_switch");
__asm__(".text\n"
        ".p2align 4\n"
        "emulator_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n");
#endif

/* The sanitizer must know on which stack it is. For the host's own, it tells us when the first fiber leaves it. */
inline void arrived_on_this_stack(Fiber *fiber)
{
#if EMULATOR_ASAN
    const void *left;
    size_t left_bytes;
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &left, &left_bytes);
    if (!machine.host.stack) machine.host.stack = (char *)left, machine.host.argument = (uint32_t)left_bytes;
#else
    (void)fiber;
#endif
}

inline void switch_fiber(Fiber *from, Fiber *to)
{
    machine.current = to;
#if EMULATOR_ASAN
    __sanitizer_start_switch_fiber(from->done ? NULL : &from->fake_stack, to->stack,
                                   to == &machine.host ? to->argument : (size_t)STACK_BYTES);
#endif
#if EMULATOR_SWITCH
    emulator_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrived_on_this_stack(from);
}

inline void enqueue(Fiber *fiber)
{
    const size_t place = (size_t)(fiber - machine.fibers.data());
    const bool sleeps = machine.unit && (place / machine.unit == machine.sleeper) != machine.others_sleep;
    (sleeps ? machine.sleepy : machine.ready).push_back(fiber);
}

inline void make_ready(Fiber *fiber)
{
    fiber->waits_for = NULL;
    fiber->describe = NULL;
    enqueue(fiber);
}

inline void draw_sleeper()
{
    if (!machine.unit) return;
    machine.sleeper = draw((unsigned)machine.fibers.size() / machine.unit);
    machine.others_sleep = draw(2);
}

/* Nobody else can run: the sleepers must, and others sleep from now on. */
inline void wake_sleepers()
{
    std::vector<Fiber *> woken;
    woken.swap(machine.sleepy);
    draw_sleeper();
    for (Fiber *fiber : woken) enqueue(fiber);
    if (machine.ready.empty()) machine.ready.swap(machine.sleepy);
}

[[noreturn]] inline void complain_deadlock()
{
    fprintf(stderr, "GPU emulator: deadlock\n");
    for (const Block &block : machine.blocks)
        for (unsigned t = 0, first = 0; t < block.threads; t++) {
            const Fiber *f = block.fibers + t, *next = t + 1 < block.threads ? f + 1 : NULL;
            if (next && next->done == f->done && next->waits_for == f->waits_for && next->waits_at == f->waits_at)
                continue;
            fprintf(stderr, "  block (%u, %u, %u), threads %u ... %u: %s", block.index.x, block.index.y, block.index.z,
                    first, t, f->done ? "returned" : f->waits_for);
            if (!f->done && f->describe) f->describe(f);
            fputc('\n', stderr);
            first = t + 1;
        }
    machine.current = NULL;
    fail("all threads wait");
}

inline void run_deferred()
{
    const unsigned chosen = draw((unsigned)machine.deferred.size());
    std::function<void()> work = std::move(machine.deferred[chosen]);
    machine.deferred[chosen] = std::move(machine.deferred.back());
    machine.deferred.pop_back();
    work();
}

/* The running fiber stops; another one goes on. Returns when this one is chosen again. */
inline void reschedule()
{
    Fiber *self = machine.current;
    while (machine.ready.empty() || (machine.haste && !machine.deferred.empty() && draw(machine.haste) == 0)) {
        if (machine.ready.empty() && !machine.sleepy.empty() && (machine.deferred.empty() || draw(2)))
            wake_sleepers();
        else if (machine.deferred.empty())
            complain_deadlock();
        else
            run_deferred();
    }
    const unsigned chosen = draw((unsigned)machine.ready.size());
    Fiber *next = machine.ready[chosen];
    machine.ready[chosen] = machine.ready.back();
    machine.ready.pop_back();
    if (next != self) switch_fiber(self, next);
}

inline void wait(const char *what, const void *at)
{
    machine.current->waits_for = what;
    machine.current->waits_at = at;
    reschedule();
}

inline void yield()
{
    enqueue(machine.current);
    reschedule();
}

/* --- meetings and barriers */
template <unsigned SIZE> void finish_meeting(Meeting<SIZE> *meeting, Fiber *first)
{
    void *operand[SIZE];
    memcpy(operand, meeting->operand, sizeof operand);
    meeting->arrived = 0;
    memset(meeting->operand, 0, sizeof meeting->operand);
    if (meeting->perform) meeting->perform(operand);
    for (unsigned i = 0; i < SIZE; i++)
        if (operand[i] && first + i != machine.current) make_ready(first + i);
}

template <unsigned SIZE>
void meet(Meeting<SIZE> *meeting, Fiber *first, unsigned wanted, const char *what, void *operand, Perform *perform)
{
    const unsigned place = (unsigned)(machine.current - first);
    if (meeting->arrived && (meeting->perform != perform || strcmp(meeting->what, what)))
        fail("threads that must act together do not: %s here, %s elsewhere", what, meeting->what);
    meeting->what = what;
    meeting->perform = perform;
    meeting->operand[place] = operand;
    if (++meeting->arrived < wanted)
        wait(what, meeting);
    else
        finish_meeting(meeting, first);
}

inline unsigned lane()
{
    return machine.current->number % 32;
}

/* All lanes of the mask that have not returned. operand is never NULL. */
inline void meet_warp(uint32_t mask, const char *what, void *operand, Perform *perform)
{
    Fiber *self = machine.current, *first = self - lane();
    Warp *warp = &self->block->warps[self->number / 32];
    Meeting<32> *chosen = NULL;
    if (!(mask >> lane() & 1)) fail("%s: the mask %08x leaves out the calling lane", what, mask);
    for (Meeting<32> &m : warp->meeting) {
        if (m.arrived && m.mask != mask && (m.mask & mask))
            fail("%s: masks %08x and %08x of one warp overlap", what, mask, m.mask);
        if (m.arrived ? m.mask == mask : !chosen) chosen = &m;
    }
    if (!chosen) fail("%s: more than 4 groups in one warp", what);
    chosen->mask = mask;
    meet(chosen, first, (unsigned)__builtin_popcount(mask & warp->live), what, operand, perform);
}

inline void release_barrier(Barrier *barrier)
{
    for (Fiber *f : barrier->waiting) {
        f->votes = barrier->votes;
        if (f != machine.current) make_ready(f);
    }
    barrier->waiting.clear();
    barrier->arrived = barrier->votes = 0;
}

/* Who comes last does not go on first: it takes its turn like the others. */
inline unsigned sync_barrier(Barrier *barrier, unsigned wanted, const char *what, bool vote)
{
    if (barrier->arrived && barrier->wanted != wanted)
        fail("%s: for %u threads here, for %u elsewhere", what, wanted, barrier->wanted);
    barrier->wanted = wanted;
    barrier->votes += vote;
    barrier->waiting.push_back(machine.current);
    if (++barrier->arrived < wanted) {
        wait(what, barrier);
    } else {
        release_barrier(barrier);
        yield();
    }
    return machine.current->votes;
}

inline unsigned sync_block(bool vote, const char *what)
{
    Block *block = machine.current->block;
    block->barriers[0].wanted = block->live; /* threads that have returned are not waited for */
    return sync_barrier(&block->barriers[0], block->live, what, vote);
}

/* --- a thread's life */
[[noreturn]] inline void fiber_exit()
{
    Fiber *self = machine.current;
    Block *block = self->block;
    Warp *warp = &block->warps[self->number / 32];
    self->done = true;
    block->live--;
    warp->live &= ~(1u << lane());
    for (Meeting<32> &m : warp->meeting)
        if (m.arrived && m.arrived == (unsigned)__builtin_popcount(m.mask & warp->live))
            finish_meeting(&m, self - lane());
    if (block->barriers[0].arrived && block->barriers[0].arrived == block->live) release_barrier(&block->barriers[0]);
    if (!block->live && block->check_at_end) block->check_at_end(block);
    if (--machine.live == 0) switch_fiber(self, &machine.host);
    if (machine.cluster_barrier.arrived == machine.live) release_barrier(&machine.cluster_barrier);
    reschedule();
    abort(); /* nobody makes a returned thread ready */
}

inline void fiber_main()
{
    arrived_on_this_stack(machine.current);
    machine.kernel(machine.arguments);
    fiber_exit();
}

inline void fiber_create(Fiber *f, Block *block, unsigned number)
{
    char *top = f->stack + STACK_BYTES;
    f->block = block;
    f->number = number;
    f->thread.x = number % machine.block.x;
    f->thread.y = number / machine.block.x % machine.block.y;
    f->thread.z = number / machine.block.x / machine.block.y;
    ASAN_UNPOISON_MEMORY_REGION(top - 8192, 8192);
#if EMULATOR_SWITCH
    void **slots = (void **)top - 8; /* six registers, where to return to, and what keeps the stack aligned */
    memset(slots, 0, 8 * sizeof *slots);
    slots[6] = (void *)fiber_main;
    f->stack_pointer = slots;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&f->context, fiber_main, 0);
#endif
    enqueue(f);
}

/* --- a grid */

/* What the address sanitizer noted about a place does not end with its mapping, and a file may be mapped there next. */
inline void give_back(char *memory, size_t bytes)
{
    if (!memory) return;
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    munmap(memory, bytes);
}

inline void reserve(size_t fibers, size_t shared)
{
    if (machine.stacks_count < fibers) {
        give_back(machine.stacks, machine.stacks_count * STACK_BYTES);
        machine.stacks = (char *)mmap(NULL, fibers * STACK_BYTES, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (machine.stacks == MAP_FAILED) fail("no memory for the stacks of %zu threads", fibers);
        for (size_t i = 0; i < fibers; i++) mprotect(machine.stacks + i * STACK_BYTES, 4096, PROT_NONE);
        machine.stacks_count = fibers;
    }
    if (machine.shared_size < shared) {
        give_back(machine.shared, machine.shared_size);
        machine.shared = (char *)mmap(NULL, shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (machine.shared == MAP_FAILED) fail("no memory for %zu bytes of shared memory", shared);
        machine.shared_size = shared;
    }
}

inline size_t shared_pitch(size_t shared_bytes)
{
    return (shared_bytes + 1023) / 1024 * 1024 + GUARD_BYTES;
}

inline void block_begin(Block *block, unsigned rank, size_t linear, unsigned threads, size_t shared_bytes)
{
    const size_t pitch = shared_pitch(shared_bytes);
    *block = Block();
    block->rank = rank;
    block->index.x = (unsigned)(linear % machine.grid.x);
    block->index.y = (unsigned)(linear / machine.grid.x % machine.grid.y);
    block->index.z = (unsigned)(linear / machine.grid.x / machine.grid.y);
    block->threads = block->live = threads;
    block->shared = machine.shared + rank * pitch;
    block->shared_bytes = shared_bytes;
    ASAN_UNPOISON_MEMORY_REGION(block->shared, pitch);
    memset(block->shared, POISON, shared_bytes);
    memset(block->shared + shared_bytes, GUARD, pitch - shared_bytes);
    ASAN_POISON_MEMORY_REGION(block->shared + shared_bytes, pitch - shared_bytes);
    block->warps.assign((threads + 31) / 32, Warp());
    block->fibers = machine.fibers.data() + rank * threads;
    for (unsigned t = 0; t < threads; t++) {
        const size_t place = rank * threads + t;
        block->fibers[t] = Fiber();
        block->fibers[t].stack = machine.stacks + place * STACK_BYTES;
        block->warps[t / 32].live |= 1u << t % 32;
        fiber_create(block->fibers + t, block, t);
    }
}

inline void block_end(Block *block)
{
    const size_t pitch = shared_pitch(block->shared_bytes);
    for (const Barrier &b : block->barriers)
        if (b.arrived) fail("a barrier is left with %u of %u arrivals", b.arrived, b.wanted);
    ASAN_UNPOISON_MEMORY_REGION(block->shared, pitch);
    for (size_t i = block->shared_bytes; i < pitch; i++)
        if ((unsigned char)block->shared[i] != GUARD) fail("a write behind shared memory, at byte %zu", i);
}

inline void run_cluster(size_t first_block, unsigned threads, size_t shared_bytes)
{
#ifndef __APPLE__
    memset(__start_gpu_shared, POISON, (size_t)(__stop_gpu_shared - __start_gpu_shared));
#endif
    const unsigned hastes[] = {0, 2, 16, 256}, units[] = {0, 32, 128, threads};
    machine.haste = hastes[draw(4)];
    machine.unit = units[draw(4)];
    if (machine.unit > threads) machine.unit = threads;
    draw_sleeper();
    machine.blocks.resize(machine.cluster);
    machine.live = machine.cluster * threads;
    machine.cluster_barrier = Barrier();
    for (unsigned rank = 0; rank < machine.cluster; rank++)
        block_begin(&machine.blocks[rank], rank, first_block + rank, threads, shared_bytes);
    machine.current = &machine.host;
    reschedule(); /* comes back when the last thread has returned */
    while (!machine.deferred.empty()) run_deferred();
    for (Block &block : machine.blocks) block_end(&block);
    machine.current = NULL;
}

inline size_t greatest_common_divisor(size_t a, size_t b)
{
    return b ? greatest_common_divisor(b, a % b) : a;
}

inline void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, void (*kernel)(void *),
                     void *arguments)
{
    const unsigned threads = block.x * block.y * block.z;
    const size_t limit = machine.compute_major == 9 ? 232448 : 101376; /* of sm_90, and of the least of sm_8x */
    const size_t clusters = (size_t)grid.x * grid.y * grid.z / cluster;
    if (threads < 1 || threads > 1024) fail("a block of %u threads", threads);
    if (grid.y > 65535 || grid.z > 65535) fail("a grid of (%u, %u, %u) blocks", grid.x, grid.y, grid.z);
    if (grid.x % cluster) fail("a grid of %u blocks in clusters of %u", grid.x, cluster);
    if (cluster > 1 && machine.compute_major < 9) fail("a cluster before compute capability 9.0");
    if (shared_bytes > limit) fail("%zu bytes of shared memory (at most %zu)", shared_bytes, limit);
    machine.grid = grid;
    machine.block = block;
    machine.cluster = cluster;
    machine.kernel = kernel;
    machine.arguments = arguments;
    reserve((size_t)threads * cluster, cluster * shared_pitch(shared_bytes));
    machine.fibers.resize((size_t)threads * cluster);
    /* Steps of a size that has no divisor in common with the number of clusters visit each of them once. */
    size_t step = 1 + draw((unsigned)clusters), at = draw((unsigned)clusters);
    while (greatest_common_divisor(step, clusters) != 1) step++;
    for (size_t i = 0; i < clusters; i++, at = (at + step) % clusters) run_cluster(at * cluster, threads, shared_bytes);
}

/* Is this a place of the block's shared memory, dynamic or static? */
inline void check_shared(const void *at, size_t bytes, size_t alignment, const char *what)
{
    const Block *block = machine.current->block;
    const char *p = (const char *)at;
    bool inside = p >= block->shared && p + bytes <= block->shared + block->shared_bytes;
#ifndef __APPLE__
    inside |= p >= __start_gpu_shared && p + bytes <= __stop_gpu_shared;
#else
    inside = true;
#endif
    if (!inside) fail("%s: %zu bytes at %p are not in shared memory", what, bytes, at);
    if ((uintptr_t)at % alignment) fail("%s: the address is not a multiple of %zu bytes", what, alignment);
}
} // namespace emulator

#define threadIdx (emulator::machine.current->thread)
#define blockIdx (emulator::machine.current->block->index)
inline const dim3 &blockDim = emulator::machine.block, &gridDim = emulator::machine.grid;
enum { warpSize = 32 };

/* ================================================================================================================
 * Barriers, shuffles, votes */
inline void __syncthreads()
{
    emulator::sync_block(false, "__syncthreads");
}

inline int __syncthreads_count(int vote)
{
    return (int)emulator::sync_block(vote != 0, "__syncthreads_count");
}

inline int __syncthreads_or(int vote)
{
    return emulator::sync_block(vote != 0, "__syncthreads_or") != 0;
}

inline int __syncthreads_and(int vote)
{
    return emulator::sync_block(vote == 0, "__syncthreads_and") == 0;
}

inline void __syncwarp(uint32_t mask = 0xffffffffu)
{
    char none;
    emulator::meet_warp(mask, "__syncwarp", &none, NULL);
}

namespace emulator
{
template <typename T> struct Shuffle {
    T value, result;
    unsigned from;
};

template <typename T> T shuffle(uint32_t mask, T value, unsigned from, const char *what)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move words");
    Shuffle<T> own = {value, value, from};
    meet_warp(mask, what, &own, [](void *const *operand) {
        for (unsigned i = 0; i < 32; i++) {
            Shuffle<T> *to = (Shuffle<T> *)operand[i];
            if (!to) continue;
            if (operand[to->from])
                to->result = ((Shuffle<T> *)operand[to->from])->value;
            else
                memset(&to->result, POISON, sizeof to->result); /* a lane that is not there */
        }
    });
    return own.result;
}
} // namespace emulator

template <typename T> T __shfl_sync(uint32_t mask, T value, int from, int width = 32)
{
    const unsigned w = (unsigned)width, lane = emulator::lane();
    return emulator::shuffle(mask, value, (lane & ~(w - 1)) | ((unsigned)from & (w - 1)), "__shfl_sync");
}

template <typename T> T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32)
{
    const unsigned w = (unsigned)width, lane = emulator::lane(), from = lane ^ (unsigned)bits;
    return emulator::shuffle(mask, value, from <= (lane | (w - 1)) ? from : lane, "__shfl_xor_sync");
}

template <typename T> T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32)
{
    const unsigned w = (unsigned)width, lane = emulator::lane(), from = lane + by;
    return emulator::shuffle(mask, value, from <= (lane | (w - 1)) ? from : lane, "__shfl_down_sync");
}

template <typename T> T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32)
{
    const unsigned w = (unsigned)width, lane = emulator::lane();
    return emulator::shuffle(mask, value, (lane & (w - 1)) >= by ? lane - by : lane, "__shfl_up_sync");
}

inline uint32_t __ballot_sync(uint32_t mask, int vote)
{
    uint32_t own[2] = {vote != 0, 0};
    emulator::meet_warp(mask, "a vote of the warp", own, [](void *const *operand) {
        uint32_t ballot = 0;
        for (unsigned i = 0; i < 32; i++)
            if (operand[i]) ballot |= *(uint32_t *)operand[i] << i;
        for (unsigned i = 0; i < 32; i++)
            if (operand[i]) ((uint32_t *)operand[i])[1] = ballot;
    });
    return own[1];
}

inline int __any_sync(uint32_t mask, int vote)
{
    return __ballot_sync(mask, vote) != 0;
}

inline int __all_sync(uint32_t mask, int vote)
{
    return __ballot_sync(mask, !vote) == 0;
}

/* ================================================================================================================
 * Arithmetic */
inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* clang-format off */
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int bits) { return __uint_as_float((uint32_t)bits); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __saturatef(float x) { return x > 1 ? 1 : x > 0 ? x : 0; }
inline int __float2int_rn(float x) { return (int)lrintf(x); }
inline float __int2float_rn(int x) { return (float)x; }
[[noreturn]] inline void __trap() { emulator::fail("__trap"); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { emulator::yield(); }
/* clang-format on */

#define EMULATOR_MIN_MAX(T)                                                                                            \
    inline T min(T a, T b)                                                                                             \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    inline T max(T a, T b)                                                                                             \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
EMULATOR_MIN_MAX(float)
EMULATOR_MIN_MAX(double)

/* clang-format off */
template <typename T> T __ldg(const T *at) { return *at; }
template <typename T> T __ldcs(const T *at) { return *at; }
template <typename T> T __ldcg(const T *at) { return *at; }
template <typename T> T __ldca(const T *at) { return *at; }
template <typename T> T __ldlu(const T *at) { return *at; }
template <typename T> void __stcs(T *at, T value) { *at = value; }
template <typename T> void __stcg(T *at, T value) { *at = value; }
template <typename T> void __stwt(T *at, T value) { *at = value; }
/* clang-format on */

/* ================================================================================================================
 * What common.cuh says in PTX */
inline bf16_t float_to_bf16(float x)
{
    const uint32_t u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

inline uint32_t pack_bf16x2(float low, float high)
{
    return (uint32_t)float_to_bf16(high).bits << 16 | float_to_bf16(low).bits;
}

inline float exp2_approx(float x)
{
    return exp2f(x);
}

inline float tanh_approx(float x)
{
    return tanhf(x);
}

/* Where a place of shared memory lies in the window that 32-bit addresses count from. A kernel's own part begins at
 * 1024, as on sm_90, so that nobody takes an address for an offset. */
inline uint32_t shared_address(const void *shared)
{
    return (uint32_t)((const char *)shared - emulator::machine.current->block->shared) + 1024;
}

namespace emulator
{
inline float bf16_bits_to_float(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

struct Mma {
    float *c;
    const uint32_t *a, *b;
};

/* The warp's fragments (common.cuh has the picture) are gathered, multiplied and handed back. */
inline void perform_mma(void *const *operand)
{
    float a[16][16], b[16][8], c[16][8];
    for (unsigned l = 0, g = 0, q = 0; l < 32; l++, g = l / 4, q = l % 4) {
        const Mma *own = (const Mma *)operand[l];
        if (!own) fail("mma: lane %u has returned", l);
        for (unsigned i = 0; i < 8; i++)
            a[g + 8 * (i / 2 % 2)][2 * q + i % 2 + 8 * (i / 4)] =
                bf16_bits_to_float(own->a[i / 2] >> 16 * (i % 2) & 0xffff);
        for (unsigned i = 0; i < 4; i++) {
            b[2 * q + i % 2 + 8 * (i / 2)][g] = bf16_bits_to_float(own->b[i / 2] >> 16 * (i % 2) & 0xffff);
            c[g + 8 * (i / 2)][2 * q + i % 2] = own->c[i];
        }
    }
    for (unsigned m = 0; m < 16; m++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
    for (unsigned l = 0; l < 32; l++)
        for (unsigned i = 0; i < 4; i++) ((Mma *)operand[l])->c[i] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}

struct Tiles { /* of ldmatrix and stmatrix */
    uint32_t *r;
    char *row;
};

inline uint16_t *tile_element(void *const *operand, unsigned tile, unsigned row, unsigned column)
{
    const Tiles *lane = (const Tiles *)operand[8 * tile + row];
    if (!lane) fail("ldmatrix or stmatrix: lane %u has returned", 8 * tile + row);
    return (uint16_t *)lane->row + column;
}

template <bool TRANS, bool STORE> void perform_tiles(void *const *operand)
{
    for (unsigned l = 0; l < 32; l++)
        for (unsigned i = 0; i < 8; i++) {
            const unsigned g = l / 4, pair = 2 * (l % 4) + i % 2;
            uint16_t *there = tile_element(operand, i / 2, TRANS ? pair : g, TRANS ? g : pair);
            uint16_t *here = (uint16_t *)((Tiles *)operand[l])->r + i; /* the low half of a register comes first */
            if (STORE)
                *there = *here;
            else
                *here = *there;
        }
}

template <bool TRANS, bool STORE> void move_tiles(uint32_t *r, const void *row, const char *what)
{
    Tiles own = {r, (char *)const_cast<void *>(row)};
    check_shared(row, 16, 16, what);
    meet_warp(0xffffffffu, what, &own, perform_tiles<TRANS, STORE>);
}
} // namespace emulator

inline void mma_bf16_16816(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    emulator::Mma own = {c, a, b};
    emulator::meet_warp(0xffffffffu, "mma", &own, emulator::perform_mma);
}

inline void ldmatrix_x4(uint32_t r[4], const void *shared_row)
{
    emulator::move_tiles<false, false>(r, shared_row, "ldmatrix");
}

inline void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row)
{
    emulator::move_tiles<true, false>(r, shared_row, "ldmatrix.trans");
}

inline void cp_async_16(void *shared, const void *global, int bytes)
{
    emulator::Fiber *f = emulator::machine.current;
    emulator::check_shared(shared, 16, 16, "cp.async");
    if ((uintptr_t)global % 16) emulator::fail("cp.async: the global address is not a multiple of 16 bytes");
    if (bytes < 0 || bytes > 16) emulator::fail("cp.async: %d bytes", bytes);
    memset(shared, emulator::POISON, 16);
    f->copies.push_back({shared, global, (unsigned)bytes, f->copy_groups});
}

inline void cp_async_commit()
{
    emulator::machine.current->copy_groups++;
}

template <int N> void cp_async_wait()
{
    emulator::Fiber *f = emulator::machine.current;
    size_t kept = 0;
    for (const emulator::CpAsync &copy : f->copies) {
        if (copy.group + N >= f->copy_groups) {
            f->copies[kept++] = copy;
            continue;
        }
        memset(copy.to, 0, 16);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    f->copies.resize(kept);
}

/* ================================================================================================================
 * The runtime, as far as gpu/device.cu and launch() need it: one card, streams that do their work late */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostRegisterDefault = 0 };

namespace emulator
{
/* Copies and kernels are numbered in the order in which they were asked for. Kernels run at once, copies late; what the
 * host knows to be done is what it has waited for. */
struct Arrival {
    size_t number;
    void *to;
    std::vector<char> bytes;
};

struct Stream {
    std::vector<std::function<void()>> late;
    std::vector<Arrival> arrivals; /* in pinned memory, which the host has not waited for */
    size_t asked = 0, done = 0, known = 0;
    std::map<Stream *, size_t> behind; /* what it has been told to wait for in others */
};

struct Event {
    Stream *stream = NULL;
    size_t after = 0;
};

struct Memory {
    size_t bytes;
    bool on_device;
};
inline std::map<char *, Memory> memories; /* what was allocated, by address */
inline std::vector<Stream *> streams;

inline const std::pair<char *const, Memory> *find_memory(const void *at, size_t bytes)
{
    auto next = memories.upper_bound((char *)const_cast<void *>(at));
    if (next == memories.begin()) return NULL;
    --next;
    return (const char *)at + bytes <= next->first + next->second.bytes ? &*next : NULL;
}

inline void check_device(const void *at, size_t bytes, const char *what)
{
    const auto *found = find_memory(at, bytes);
    if (bytes && (!found || !found->second.on_device))
        fail("%s: %zu bytes at %p are not device memory", what, bytes, at);
}

/* With the address sanitizer, device memory is closed to the host and open to copies and kernels. */
inline void open_device_memory(bool open)
{
    for (const auto &m : memories) {
        if (!m.second.on_device) continue;
        if (open)
            ASAN_UNPOISON_MEMORY_REGION(m.first, m.second.bytes);
        else
            ASAN_POISON_MEMORY_REGION(m.first, m.second.bytes);
    }
}

inline void catch_up(Stream *stream, size_t until)
{
    for (; stream->done < until; stream->done++) {
        std::function<void()> work = std::move(stream->late.front());
        stream->late.erase(stream->late.begin());
        work();
    }
}

/* The host waits for everything up to `until`. */
inline void wait_for(Stream *stream, size_t until)
{
    if (until <= stream->known) return;
    machine.waits++;
    machine.idle += until == stream->asked;
    catch_up(stream, until);
    stream->known = until;
    while (!stream->arrivals.empty() && stream->arrivals.front().number <= until) {
        const Arrival &arrival = stream->arrivals.front();
        memcpy(arrival.to, arrival.bytes.data(), arrival.bytes.size());
        stream->arrivals.erase(stream->arrivals.begin());
    }
}

inline bool memory_from_environment()
{
    const char *text = getenv("PROMOT_EMULATOR_MEMORY");
    if (text) machine.memory = strtoull(text, NULL, 10);
    return true;
}
inline const bool memory_is_set = memory_from_environment();

inline void write_counts()
{
    const char *path = getenv("PROMOT_EMULATOR_COUNTS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file,
            "{\"launches\": %lu, \"waits\": %lu, \"idle\": %lu, \"allocations\": %lu, \"bytes_to_card\": %zu, "
            "\"memory\": %zu}\n",
            machine.launches, machine.waits, machine.idle, machine.allocations, machine.bytes_to_card,
            machine.most_memory);
    fclose(file);
}
inline const bool counts_are_written = atexit(write_counts) == 0;

inline cudaError_t allocate(void **memory, size_t bytes, bool on_device)
{
    machine.allocations++;
    const size_t host_memory = (size_t)1 << 40; /* more than the sanitizer's allocator bears to be asked for */
    if (bytes > (on_device ? machine.memory - machine.memory_used : host_memory)) return cudaErrorMemoryAllocation;
    if (posix_memalign(memory, 256, bytes + (EMULATOR_ASAN ? 0 : GUARD_BYTES))) return cudaErrorMemoryAllocation;
    memset(*memory, POISON, bytes);
    if (!EMULATOR_ASAN) memset((char *)*memory + bytes, GUARD, GUARD_BYTES);
    if (on_device) {
        machine.memory_used += bytes;
        if (machine.memory_used > machine.most_memory) machine.most_memory = machine.memory_used;
        ASAN_POISON_MEMORY_REGION(*memory, bytes);
    }
    memories[(char *)*memory] = {bytes, on_device};
    return cudaSuccess;
}

inline cudaError_t release(void *memory)
{
    if (!memory) return cudaSuccess;
    auto found = memories.find((char *)memory);
    if (found == memories.end()) fail("free of memory that was not allocated");
    machine.allocations++;
    const Memory m = found->second;
    for (const Stream *stream : streams)
        if (m.on_device && stream->known < stream->asked) fail("memory is freed that a stream may still use");
    for (unsigned i = 0; !EMULATOR_ASAN && i < GUARD_BYTES; i++)
        if (((unsigned char *)memory)[m.bytes + i] != GUARD)
            fail("a write behind %zu bytes of memory, by %u", m.bytes, i);
    if (m.on_device) {
        machine.memory_used -= m.bytes;
        ASAN_UNPOISON_MEMORY_REGION(memory, m.bytes);
    }
    memories.erase(found);
    free(memory);
    return cudaSuccess;
}
} // namespace emulator

typedef emulator::Stream *cudaStream_t;
typedef emulator::Event *cudaEvent_t;

inline const char *cudaGetErrorString(cudaError_t status)
{
    return status == cudaErrorMemoryAllocation ? "out of memory"
           : status == cudaErrorNoDevice       ? "no CUDA-capable device is detected"
                                               : "an error of the emulated runtime";
}

/* clang-format off */
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void **memory, size_t bytes) { return emulator::allocate(memory, bytes, true); }
inline cudaError_t cudaMallocHost(void **memory, size_t bytes) { return emulator::allocate(memory, bytes, false); }
inline cudaError_t cudaFree(void *memory) { return emulator::release(memory); }
inline cudaError_t cudaFreeHost(void *memory) { return emulator::release(memory); }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
/* clang-format on */

inline cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned)
{
    if (emulator::find_memory(memory, 1)) emulator::fail("host memory is pinned twice");
    emulator::memories[(char *)memory] = {bytes, false};
    return cudaSuccess;
}

inline cudaError_t cudaHostUnregister(void *memory)
{
    if (!emulator::memories.erase((char *)memory)) emulator::fail("host memory is unpinned that was not pinned");
    for (emulator::Stream *stream : emulator::streams) emulator::wait_for(stream, stream->asked);
    return cudaSuccess;
}

inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = emulator::machine.memory;
    *available = emulator::machine.memory - emulator::machine.memory_used;
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int *count)
{
    *count = emulator::machine.compute_major > 0;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrMultiProcessorCount      ? emulator::machine.sm_count
             : attribute == cudaDevAttrComputeCapabilityMajor ? emulator::machine.compute_major
                                                              : emulator::machine.compute_minor;
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    emulator::streams.push_back(*stream = new emulator::Stream());
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    emulator::wait_for(stream, stream->asked);
    return cudaSuccess;
}

inline cudaError_t cudaDeviceSynchronize()
{
    for (cudaStream_t stream : emulator::streams) cudaStreamSynchronize(stream);
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    for (size_t i = 0; i < emulator::streams.size(); i++)
        if (emulator::streams[i] == stream) emulator::streams.erase(emulator::streams.begin() + (long)i--);
    delete stream;
    return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new emulator::Event();
    return cudaSuccess;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->stream = stream;
    event->after = stream->asked;
    return cudaSuccess;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (event->stream) emulator::wait_for(event->stream, event->after);
    return cudaSuccess;
}

inline cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return !event->stream || event->after <= event->stream->known ? cudaSuccess : cudaErrorNotReady;
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    emulator::Stream *const other = event->stream;
    const size_t after = event->after;
    if (!other) return cudaSuccess;
    size_t &behind = stream->behind[other];
    behind = behind > after ? behind : after;
    stream->late.push_back([=] { emulator::catch_up(other, after); });
    stream->asked++;
    return cudaSuccess;
}

/* What the card sees of pinned memory: it knows its own copies to there, for which the host would have to wait. */
inline void read_pinned(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    for (const emulator::Stream *stream : emulator::streams)
        for (const emulator::Arrival &arrival : stream->arrivals) {
            const char *const begin = std::max((const char *)arrival.to, (const char *)from);
            const char *const end =
                std::min((const char *)arrival.to + arrival.bytes.size(), (const char *)from + bytes);
            if (begin < end)
                memcpy((char *)to + (begin - (const char *)from),
                       arrival.bytes.data() + (begin - (const char *)arrival.to), (size_t)(end - begin));
        }
}

/* From or to pinned memory a copy is done late. From or to other host memory it is done at once, as CUDA does. */
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (kind != cudaMemcpyDeviceToHost) emulator::check_device(to, bytes, "copy");
    if (kind != cudaMemcpyHostToDevice) emulator::check_device(from, bytes, "copy");
    if (kind == cudaMemcpyDeviceToDevice && (const char *)to < (const char *)from + bytes &&
        (const char *)from < (const char *)to + bytes)
        emulator::fail("copy: the two places overlap");
    const void *host = kind == cudaMemcpyHostToDevice ? from : to;
    const bool to_pinned = kind == cudaMemcpyDeviceToHost && emulator::find_memory(host, bytes);
    if (kind == cudaMemcpyHostToDevice) emulator::machine.bytes_to_card += bytes;
    const size_t number = ++stream->asked;
    stream->late.push_back([=] {
        emulator::open_device_memory(true);
        if (to_pinned) {
            const char *const bytes_of = (const char *)from;
            stream->arrivals.push_back({number, to, std::vector<char>(bytes_of, bytes_of + bytes)});
            memset(to, emulator::POISON, bytes);
        } else if (kind == cudaMemcpyHostToDevice) {
            read_pinned(to, from, bytes);
        } else {
            memcpy(to, from, bytes);
        }
        emulator::open_device_memory(false);
    });
    if (!emulator::find_memory(host, bytes)) emulator::wait_for(stream, stream->asked);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    emulator::check_device(memory, bytes, "clear");
    stream->late.push_back([=] {
        emulator::open_device_memory(true);
        memset(memory, value, bytes);
        emulator::open_device_memory(false);
    });
    stream->asked++;
    return cudaSuccess;
}

/* --- launching */
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

inline cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int)
{
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...), Arguments... arguments)
{
    std::tuple<Parameters...> values(arguments...);
    auto body = [&] { std::apply(kernel, values); };
    emulator::catch_up(config->stream, config->stream->asked);
    emulator::open_device_memory(true);
    emulator::run_grid(
        config->gridDim, config->blockDim, config->numAttrs ? config->attrs[0].val.clusterDim.x : 1,
        config->dynamicSmemBytes, [](void *work) { (*(decltype(body) *)work)(); }, &body);
    emulator::open_device_memory(false);
    emulator::machine.launches++;
    config->stream->asked++;
    config->stream->done++;
    return cudaSuccess;
}

#endif
