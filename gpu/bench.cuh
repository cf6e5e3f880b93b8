/* bench.cuh: what bench.cu measures with: the clock, memory and its random numbers, the checks, and the report.
 *
 * The clock. Contestants run in turn, A B A B …, because a card that multiplies at full rate slows its clock down and
 * warms up: who came first would look better. A sample is one call, or several of a short kernel, between two events.
 * Before a short one a large piece of memory is cleared. That empties the L2 cache, and it takes longer than the host
 * needs to ask for the calls, so that the card and not the host is measured. (Long ones follow each other at once: they
 * fill the cache themselves, and the card must not rest between them.) Calls of one sample may use different operands,
 * they are told their number, so that what waits for memory does not find it in the cache. What is told is the median.
 *
 * The checks. Before a kernel is timed its outputs are poisoned, it runs once, and a few hundred of its numbers are
 * computed again, one warp for each, in the plainest way (bench_references.cuh). A kernel that is wrong is not fast. */
#ifndef PROMOT_BENCH_CUH
#define PROMOT_BENCH_CUH

#include <math.h>
#include <type_traits>

#include "common.cuh"

/* The yardstick, where it is installed. */
#if __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
#define HAS_CUBLAS 1
#else
#define HAS_CUBLAS 0
#endif

enum {
    MOST_ROUNDS = 25, /* samples of a contestant */
    LEAST_ROUNDS = 5,
    MOST_CALLS = 16, /* in a sample */
    SAMPLES = 512,   /* numbers that are checked */
    SEQUENCES_MOST = 1024,
    BUCKETS = 32,
    MOST_HEADS = 64,
};

#define SAMPLE_SECONDS 200e-6      /* a sample should last at least so long */
#define CONTEST_SECONDS 0.2        /* and all samples of a contestant */
#define LONG_SECONDS 1e-3          /* from here on a sample is a long one */
#define WEIGHT_DEVIATION 0.015625f /* 1 / sqrt(4096): products of N(0,1) numbers with them are about 1 */

/* ================================================================================================================
 * The marks, and everything that is the same for all measurements */

/* X(name, what it says, the least value, its unit) */
#define MARKS(X)                                                                                                       \
    X(PRODUCTS_LARGE, "our matmul over cuBLAS, XXL, a full batch", 1.0, "x")                                           \
    X(PRODUCTS_ALL, "our matmul over cuBLAS, XXL, all shapes", 0.9, "x")                                               \
    X(ATTENTION_FORWARD, "attention forward, T5 bias, S = 612", 300, "TFLOP/s")                                        \
    X(ATTENTION_BACKWARD, "attention backward, T5 bias, S = 612", 240, "TFLOP/s")                                      \
    X(BANDWIDTH, "norm, Adafactor, loss: share of the copy rate", 0.85, "")

enum MarkName {
#define X(name, what, least, unit) MARK_##name,
    MARKS(X)
#undef X
        N_MARKS,
    NO_MARK = N_MARKS
};

/* The lowest of the values that were measured for it, and where. */
struct Mark {
    const char *what, *unit;
    double least, value;
    char where[96];
};

struct Timing {
    double seconds, spread; /* the median; the longest less the shortest, as a share of it */
};

struct Bench {
    Device *dev;
#if HAS_CUBLAS
    cublasHandle_t cublas;
#endif
    FILE *out;        /* a line of JSON for each measurement; NULL: nowhere */
    const char *only; /* the groups that are wanted, between commas; NULL: all */
    cudaEvent_t event[2][MOST_ROUNDS][2];
    char *arena; /* operands of the measurement under way */
    size_t arena_bytes, arena_used;
    weight_t *weights; /* random, of all measurements */
    weight_t *bias;    /* [BUCKETS, heads] of any model: attention's table, larger numbers */
    size_t n_weights;
    char *flush; /* memory that is cleared to empty the cache */
    size_t flush_bytes;
    float *errors;                  /* [SAMPLES] */
    double product_rate, copy_rate; /* the ceilings: FLOP/s, and bytes/s read and written */
    Mark marks[N_MARKS];
    int wrong; /* results */
};

/* One line of a table. */
struct Row {
    const char *kernel;
    char shape[80];
    double flops, bytes; /* that it cannot do without */
    double error;        /* the worst of the checked numbers, as a share of what rounding explains */
    Timing ours, theirs; /* theirs.seconds 0: nobody ran beside it */
};

static inline size_t at_most(size_t n, size_t limit)
{
    return n < limit ? n : limit;
}

/* ================================================================================================================
 * Memory */

/* Bytes of an array in the arena, whose arrays begin at multiples of 256. */
static size_t padded(size_t bytes)
{
    return ceil_div<size_t>(bytes, 256) * 256;
}

/* Who takes asks rows_that_fit before, so this does not happen to anybody. */
static void *take(Bench *b, size_t bytes)
{
    char *memory = b->arena + b->arena_used;
    b->arena_used += padded(bytes);
    if (b->arena_used <= b->arena_bytes) return memory;
    fprintf(stderr, "gpu-bench: memory: a measurement needs more than %.1f GB\n", (double)b->arena_bytes / 1e9);
    exit(EXIT_FAILED);
}

/* Begins a measurement: the operands of the one before are gone. */
static void take_anew(Bench *b)
{
    b->arena_used = 0;
}

/* As many rows of so many bytes as there is memory for: those that are wanted, or half of them, a quarter, … 0. Beside
 * them are `others` bytes, and some for the padding of arrays. */
static size_t rows_that_fit(const Bench *b, size_t rows, size_t bytes, size_t others)
{
    while (rows && rows * bytes + others + (64 << 10) > b->arena_bytes) rows /= 2;
    return rows;
}

/* Outputs are NaN until they are written: all bits set is one in bf16 and in fp32. */
static void poison(Bench *b, void *memory, size_t bytes)
{
    cuda_check(cudaMemsetAsync(memory, 0xff, bytes, b->dev->stream), "poison");
}

static act_t *take_acts(Bench *b, size_t n)
{
    act_t *acts = (act_t *)take(b, n * sizeof *acts);
    poison(b, acts, n * sizeof *acts);
    return acts;
}

static stat_t *take_stats(Bench *b, size_t n)
{
    stat_t *stats = (stat_t *)take(b, n * sizeof *stats);
    poison(b, stats, n * sizeof *stats);
    return stats;
}

static int32_t *take_indices(Bench *b, const int32_t *host, size_t n)
{
    int32_t *indices = (int32_t *)take(b, n * sizeof *indices);
    device_upload(b->dev, indices, host, n * sizeof *indices);
    return indices;
}

/* ================================================================================================================
 * Random numbers
 *
 * Tensor cores draw more power, and so run slower, on random numbers than on zeros or on a repeated pattern. These are
 * N(0,1) times a deviation: four of them from the four words of one Philox call (Box and Muller 1958). */
enum { FILL_THREADS = 256, FILL_BLOCKS = 4096 };

static __device__ void normal_four(float x[4], uint64_t key, size_t group)
{
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)((uint64_t)group >> 32), 0, 0};
    uint32_t bits[4];
    philox4x32(counter, key, bits);
    for (int i = 0; i < 4; i += 2) {
        const float radius = sqrtf(-2 * logf(((float)(bits[i] >> 8) + 0.5f) * 0x1p-24f)); /* of a number in (0, 1) */
        const float angle = (float)(bits[i + 1] >> 8) * (6.2831853f * 0x1p-24f);
        x[i] = radius * cosf(angle);
        x[i + 1] = radius * sinf(angle);
    }
}

static __device__ __forceinline__ void store_number(bf16_t *to, float x)
{
    *to = float_to_bf16(x);
}

static __device__ __forceinline__ void store_number(float *to, float x)
{
    *to = x;
}

template <typename Number>
static __global__ void fill_kernel(Number *to, size_t n, float mean, float deviation, uint64_t key)
{
    const size_t threads = (size_t)gridDim.x * blockDim.x;
    for (size_t group = blockIdx.x * (size_t)blockDim.x + threadIdx.x; 4 * group < n; group += threads) {
        float x[4];
        normal_four(x, key, group);
        for (size_t i = 0; i < 4 && 4 * group + i < n; i++) store_number(to + 4 * group + i, mean + deviation * x[i]);
    }
}

template <typename Number> static Number *fill(Bench *b, Number *to, size_t n, float mean, float deviation)
{
    static uint64_t key;
    launch(b->dev, fill_kernel<Number>, dim3(FILL_BLOCKS), dim3(FILL_THREADS), 0, to, n, mean, deviation, ++key);
    return to;
}

static act_t *random_acts(Bench *b, size_t n, float deviation)
{
    return fill(b, (act_t *)take(b, n * sizeof(act_t)), n, 0, deviation);
}

static stat_t *random_stats(Bench *b, size_t n, float deviation)
{
    return fill(b, (stat_t *)take(b, n * sizeof(stat_t)), n, 0, deviation);
}

/* The first n weights anew: bf16 numbers, so that their lower halves are 0. */
static void fill_weights(Bench *b, size_t n)
{
    fill(b, b->weights, n, 0, WEIGHT_DEVIATION);
    device_clear(b->dev, weights_remainder(b->weights), n * sizeof(int16_t));
}

/* A cheap generator for what the host makes. */
static uint32_t host_random(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* ================================================================================================================
 * The clock */
struct Nobody {
    void operator()(size_t) const
    {
    }
};

template <typename Call> static void sample(Bench *b, Call &call, size_t calls, bool is_long, cudaEvent_t event[2])
{
    if (!is_long) device_clear(b->dev, b->flush, b->flush_bytes);
    cuda_check(cudaEventRecord(event[0], b->dev->stream), "clock");
    for (size_t i = 0; i < calls; i++) call(i);
    cuda_check(cudaEventRecord(event[1], b->dev->stream), "clock");
}

static double seconds_between(const cudaEvent_t event[2])
{
    float milliseconds = 0;
    cuda_check(cudaEventSynchronize(event[1]), "clock");
    cuda_check(cudaEventElapsedTime(&milliseconds, event[0], event[1]), "clock");
    return 1e-3 * milliseconds;
}

static int compare_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Timing timing_of(const cudaEvent_t event[][2], size_t rounds, size_t calls)
{
    double seconds[MOST_ROUNDS];
    for (size_t i = 0; i < rounds; i++) seconds[i] = seconds_between(event[i]) / (double)calls;
    qsort(seconds, rounds, sizeof *seconds, compare_seconds);
    const double median = (seconds[(rounds - 1) / 2] + seconds[rounds / 2]) / 2;
    return {median, (seconds[rounds - 1] - seconds[0]) / median};
}

static size_t between(double least, double x, double most)
{
    return (size_t)fmin(most, fmax(least, ceil(x)));
}

/* Both have run before: the first call of a kernel loads it and may grow the scratch memory. */
template <typename Ours, typename Theirs = Nobody>
static void measure(Bench *b, Row *row, Ours ours, Theirs theirs = Theirs())
{
    const bool alone = std::is_same<Theirs, Nobody>::value;
    ours(0), theirs(0);
    sample(b, ours, 1, false, b->event[0][0]);
    if (!alone) sample(b, theirs, 1, false, b->event[1][0]);
    const double once = fmax(seconds_between(b->event[0][0]), alone ? 0 : seconds_between(b->event[1][0]));
    const size_t calls = between(1, SAMPLE_SECONDS / once, MOST_CALLS),
                 rounds = between(LEAST_ROUNDS, CONTEST_SECONDS / (once * (double)calls), MOST_ROUNDS);
    const bool is_long = once >= LONG_SECONDS;
    for (size_t i = 0; i < rounds; i++) {
        sample(b, ours, calls, is_long, b->event[0][i]);
        if (!alone) sample(b, theirs, calls, is_long, b->event[1][i]);
    }
    row->ours = timing_of(b->event[0], rounds, calls);
    if (!alone) row->theirs = timing_of(b->event[1], rounds, calls);
}

/* ================================================================================================================
 * The report */
static bool group_wanted(const Bench *b, const char *group)
{
    const size_t length = strlen(group);
    for (const char *at = b->only; at && *at; at += strspn(at, ",")) {
        const size_t n = strcspn(at, ",");
        if (n == length && strncmp(at, group, n) == 0) return true;
        at += n;
    }
    return !b->only;
}

static void table_head(const char *title, const char *beside)
{
    printf("\n%s\n\n%-34s %-22s %9s %4s %8s %5s %7s %5s  %-7s %9s %6s\n", title, "", "shape", "ms", "+-%", "TFLOP/s",
           "%", "TB/s", "%", "check", beside, "ratio");
}

static bool row_is_right(const Row *row)
{
    return row->error <= 1; /* a NaN is not */
}

/* JSON knows no NaN and no infinity. */
static void json_number(FILE *out, const char *name, double value)
{
    if (isfinite(value)) fprintf(out, ", \"%s\": %.9g", name, value);
}

static void json_row(const Bench *b, const char *group, const Row *row)
{
    if (!b->out) return;
    fprintf(b->out, "{\"group\": \"%s\", \"kernel\": \"%s\", \"shape\": \"%s\", \"right\": %s", group, row->kernel,
            row->shape, row_is_right(row) ? "true" : "false");
    json_number(b->out, "seconds", row->ours.seconds);
    json_number(b->out, "spread", row->ours.spread);
    if (row->flops > 0) json_number(b->out, "flops_per_second", row->flops / row->ours.seconds);
    if (row->bytes > 0) json_number(b->out, "bytes_per_second", row->bytes / row->ours.seconds);
    if (row->theirs.seconds > 0) {
        json_number(b->out, "yardstick_seconds", row->theirs.seconds);
        json_number(b->out, "ratio", row->theirs.seconds / row->ours.seconds);
    }
    json_number(b->out, "worst_error", row->error);
    fprintf(b->out, "}\n");
    fflush(b->out);
}

static void print_share(double rate, double ceiling, double unit, const char *format)
{
    char number[16] = "", share[16] = "";
    if (rate > 0) snprintf(number, sizeof number, format, rate / unit);
    if (rate > 0 && ceiling > 0) snprintf(share, sizeof share, "%.0f", 100 * rate / ceiling);
    printf(" %8s %5s", number, share);
}

/* What was measured, as a line of the table and of the file. */
static void report(Bench *b, const char *group, const Row *row)
{
    const double seconds = row->ours.seconds;
    printf("%-34s %-22s %9.4f %4.0f", row->kernel, row->shape, 1e3 * seconds, 100 * row->ours.spread);
    print_share(row->flops / seconds, b->product_rate, 1e12, "%.1f");
    print_share(row->bytes / seconds, b->copy_rate, 1e12, "%.2f");
    printf("  %-7s", row_is_right(row) ? "right" : "WRONG");
    if (row->theirs.seconds > 0) printf(" %9.4f %6.3f", 1e3 * row->theirs.seconds, row->theirs.seconds / seconds);
    printf("\n");
    fflush(stdout);
    json_row(b, group, row);
    b->wrong += !row_is_right(row);
}

/* One more value for a mark, which tells the lowest. A wrong result counts as 0. */
static void mark(Bench *b, MarkName name, double value, const Row *row)
{
    if (name == NO_MARK) return;
    Mark *m = &b->marks[name];
    if (!row_is_right(row)) value = 0;
    if (!isnan(m->value) && m->value <= value) return;
    m->value = value;
    snprintf(m->where, sizeof m->where, "%s, %s", row->kernel, row->shape);
}

static void marks_begin(Bench *b)
{
#define X(name, what, least, unit) b->marks[MARK_##name] = {what, unit, least, NAN, ""};
    MARKS(X)
#undef X
}

static void marks_report(const Bench *b)
{
    int reached = 0, missed = 0;
    printf("\nThe marks, each at the worst of its measurements\n\n");
    for (const Mark &m : b->marks) {
        const char *verdict = isnan(m.value) ? "not measured" : m.value >= m.least ? "reached" : "NOT REACHED";
        char value[32] = "-";
        if (!isnan(m.value)) snprintf(value, sizeof value, "%.3g", m.value);
        printf("%-48s %8s >= %5.3g %-8s %-12s %s\n", m.what, value, m.least, m.unit, verdict, m.where);
        reached += m.value >= m.least;
        missed += m.value < m.least;
        if (!b->out) continue;
        fprintf(b->out, "{\"mark\": \"%s\", \"least\": %g", m.what, m.least);
        json_number(b->out, "value", m.value);
        fprintf(b->out, ", \"verdict\": \"%s\", \"where\": \"%s\"}\n", verdict, m.where);
    }
    printf("%-48s %s\n", "training steps of XXL, both stages", "measured by promot-gpu bench --only steps");
    printf("%-48s %s\n", "beside PyTorch", "measured by tests/bench_pytorch.py --card ./promot-gpu");
    printf("\n%d marks reached, %d not reached, %d not measured; %d results wrong\n", reached, missed,
           N_MARKS - reached - missed, b->wrong);
}

#endif
