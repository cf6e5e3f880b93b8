/* promot.c: T5, prompt tuning and ProMoT, by hand.
 *
 * [0] What this file is
 *
 * ProMoT (Wang et al. 2022, arXiv 2211.00635) fine-tunes a T5 in two stages. Stage 1 learns a soft prompt, P vectors
 * put in front of the encoder's input, with the model frozen: the *format* of the task (answer True or False) goes
 * into the prompt. Stage 2 fine-tunes the model with that prompt attached and frozen: what is left to learn is the
 * task itself. Afterwards the prompt is used for the tuned task and removed for everything else, and the model's
 * in-context learning is still there. This file holds all of it: the network forward and backward, Adafactor,
 * decoding, training and evaluation. It refuses to be a framework: there is no graph, no autograd,
 * no plug-in.
 *
 * Read it from top to bottom; nothing is used before it is explained. Search for "[5]" to jump to chapter 5.
 *
 *   [0] What this file is
 *   [1] Errors, memory, random numbers
 *   [2] Kernels
 *   [3] The model
 *   [4] Soft prompts and LoRA
 *   [5] Adafactor
 *   [6] Decoding
 *   [7] Training
 *   [8] Evaluation
 *   [9] Analysis
 *   [10] Command line, whose commands are in commands/
 *
 * Notation, here and in promot.h: B sequences, S source and T target tokens, P prompt rows, D d_model, H heads, K d_kv,
 * I = H*K inner width, F d_ff, V vocabulary, L layers, N rows of a packed matrix. A matrix is row-major, weights are
 * [out, in] as Hugging Face stores them, and y = x · wᵀ. `d` in front of a name is its gradient.
 *
 * Only chapter 2 reads or writes the memory of a tensor. A GPU build leaves chapter 2 out (-DPROMOT_GPU) and links
 * other definitions of the same kernels. -DPROMOT_NO_MAIN leaves out main, so that a test can include this file;
 * -DPROMOT_DOUBLE makes every element type double; -DPROMOT_KERNELS_ONLY ends the file after chapter 2, so that the
 * CUDA kernels can be held against these where there is nothing but a compiler. */
#include "promot.h"

#ifndef PROMOT_KERNELS_ONLY
#include <cjson/cJSON.h>
#endif
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef PROMOT_KERNELS_ONLY
#include "data/files.h"
#include "data/lora_file.h"
#include "data/metrics.h"
#include "data/options.h"
#include "data/prompt_file.h"
#include "data/report.h"
#include "data/results.h"
#include "data/study_report.h"
#endif

#define PROMOT_VERSION "0.1.0"

/* ================================================================================================================
 * [1] Errors, memory, random numbers
 *
 * A function that can fail fills an Error and returns -1 or NULL; its caller hands it on, and main alone prints it.
 * Host memory that is small against a model (lists, names, a batch's ids) comes from the two functions below, which
 * end the program when there is none: there is nothing left to save then, and every file is written atomically. What
 * host_alloc returns is zeroed. Model-sized memory is asked for with device_alloc, and its lack is an Error. */

static void *host_alloc(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory) {
        fprintf(stderr, "promot: memory: none left (asked for %zu bytes)\n", count * size);
        exit(EXIT_FAILED);
    }
    return memory;
}

static void *host_grow(void *memory, size_t count, size_t size)
{
    void *grown = realloc(memory, count && size ? count * size : 1);
    if (!grown) {
        fprintf(stderr, "promot: memory: none left (asked for %zu bytes)\n", count * size);
        exit(EXIT_FAILED);
    }
    return grown;
}

static char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *text_format(const char *format, ...) /* a new string; to be freed */
{
    va_list arguments;
    char *text;
    int length;
    va_start(arguments, format);
    length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    text = host_alloc((size_t)length + 1, 1);
    va_start(arguments, format);
    vsnprintf(text, (size_t)length + 1, format, arguments);
    va_end(arguments);
    return text;
}

/* An arena hands out pieces of one block of device memory. With base NULL it hands out NULL and only counts: the code
 * that lays out a pass's buffers is also the code that foretells how much memory it needs. */
typedef struct {
    char *base;
    size_t used;
} Arena;

static void *arena_take(Arena *arena, size_t count, size_t size)
{
    size_t at = arena->used;
    arena->used += (count * size + 63) / 64 * 64;
    return arena->base ? arena->base + at : NULL;
}

static inline size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static inline size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- random numbers: pure functions of a key and a place
 *
 * Nothing here has a state, so a run that was killed goes on with the same numbers, and no result depends on which
 * thread asked first. */

/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): ten rounds, each two 32 x 32 bit
 * multiplications whose high halves are mixed with the key and whose low halves change places. */
static inline void philox4x32(const uint32_t counter[4], uint64_t key, uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1, in 32 bits */
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The finaliser of SplitMix64 (Steele et al. 2014): every bit of x moves about half of the bits of the result. */
static uint64_t random_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* A new key from a key and a number: what fold_in is in JAX (not with JAX's bits). Keys are folded again and again: the
 * key of a training step comes from the seed, the stage and the step in turn. */
static uint64_t random_fold(uint64_t key, uint64_t data)
{
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    return random_mix(random_mix(key + golden) + golden * (data + 1));
}

/* The index-th number of a key's stream, uniform in [0, 1) with 53 bits. */
static double random_uniform(uint64_t key, uint64_t index)
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t bits[4];
    philox4x32(counter, key, bits);
    return (double)(((uint64_t)bits[1] << 32 | bits[0]) >> 11) * 0x1p-53;
}

/* Standard normal, by Box and Muller: sqrt(-2 ln u) cos(2 pi v), u in (0, 1]. Another stream than random_uniform's. */
static double random_normal(uint64_t key, uint64_t index)
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 1, 0};
    uint32_t bits[4];
    philox4x32(counter, key, bits);
    double u = (double)((((uint64_t)bits[1] << 32 | bits[0]) >> 11) + 1) * 0x1p-53;
    double v = (double)(((uint64_t)bits[3] << 32 | bits[2]) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v);
}

/* ================================================================================================================
 * [2] Kernels
 *
 * Everything that reads or writes the memory of a tensor, each _forward beside its _backward with the formula. promot.h
 * declares them and says what they mean; a GPU build leaves this chapter out and links its own.
 */
#ifndef PROMOT_GPU

/* --- vectors
 *
 * Loops are plain where the compiler makes vectors of them ("omp simd"). Where it cannot, as with exp and with sums, we
 * say it in GNU C's vector types: the same source for AVX-512, AVX, SSE and NEON. */
#if defined VECTOR_BYTES
/* the tests', which want the shortest and the longest there are on every machine */
#elif defined __AVX512F__
#define VECTOR_BYTES 64
#elif defined __AVX__
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
enum { LANES = VECTOR_BYTES / sizeof(real_t) };

/* aligned(sizeof(real_t)): a vector may begin at any element, whatever the width of a row; may_alias: plain numbers may
 * be read through a vec_t pointer. */
typedef real_t vec_t __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real_t)), may_alias));
#ifdef PROMOT_DOUBLE
typedef int64_t lane_bits_t;
#else
typedef int32_t lane_bits_t;
#endif
typedef lane_bits_t vec_bits_t __attribute__((vector_size(VECTOR_BYTES))); /* what a comparison of vectors gives */

static inline vec_t vec_set(real_t x)
{
    return x - (vec_t){0};
}

static inline vec_t vec_select(vec_bits_t mask, vec_t yes, vec_t no)
{
    return (vec_t)((mask & (vec_bits_t)yes) | (~mask & (vec_bits_t)no));
}

/* The end of a row takes the same code as the rest of it. n is what is left of the row, which may be more than a vector
 * holds; if it is less, the lanes behind it get `fill`, and are not stored. */
static inline vec_t vec_load_some(const real_t *from, size_t n, real_t fill)
{
    if (n >= LANES) return *(const vec_t *)from;
    vec_t x = vec_set(fill);
    memcpy(&x, from, n * sizeof *from);
    return x;
}

static inline void vec_store_some(real_t *to, size_t n, vec_t x)
{
    if (n >= LANES)
        *(vec_t *)to = x;
    else
        memcpy(to, &x, n * sizeof *to);
}

/* e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2. About 1 ulp; 0 below, infinity above, NaN for NaN. */
static inline vec_t vec_exp(vec_t x)
{
#ifdef PROMOT_DOUBLE /* finite differences want all 53 bits */
    for (int lane = 0; lane < LANES; lane++) x[lane] = exp(x[lane]);
    return x;
#else
    x = vec_select(x < vec_set(-104.0f), vec_set(-104.0f), x); /* e^-104 rounds to 0, e^89 is infinite: n stays in */
    x = vec_select(x > vec_set(89.0f), vec_set(89.0f), x);     /* [-150, 128], which two exponents can hold */
    const vec_t magic = vec_set(0x1.8p23f); /* adding it leaves round(x / ln 2) in the low bits of the mantissa */
    vec_t shifted = x * 0x1.715476p0f + magic, n = shifted - magic;
    vec_bits_t power = (vec_bits_t)shifted - (vec_bits_t)magic, half = power >> 1;
    /* ln 2 in two parts, the first so short that n times it is exact */
    vec_t r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    /* e^r = 1 + r + r^2 q(r): least largest relative error (4e-9) over |r| <= 0.3473 */
    vec_t q = 0x1.6a2256p-10f + (vec_t){0};
    q = q * r + 0x1.123b02p-7f;
    q = q * r + 0x1.5558f8p-5f;
    q = q * r + 0x1.55549p-3f;
    q = q * r + 0x1.fffffcp-2f;
    vec_t e = 1.0f + (r + r * r * q);
    /* 2^n in two factors, so that neither leaves the range of exponents */
    return e * (vec_t)((half + 127) << 23) * (vec_t)((power - half + 127) << 23);
#endif
}

/* Sums and maxima of a row are written out: compilers may not reorder a sum, and keep a maximum scalar for fear of NaN.
 * (A maximum may miss a NaN. Sums do not, and there is one beside every maximum.) */
static inline vec_t vec_max(vec_t a, vec_t b)
{
    return vec_select(a > b, a, b);
}

static inline real_t max_lanes(vec_t v)
{
    real_t max = v[0];
    for (int lane = 1; lane < LANES; lane++) max = v[lane] > max ? v[lane] : max;
    return max;
}

static real_t max_of(const real_t *x, size_t n)
{
    vec_t max = vec_load_some(x, n, x[0]);
    for (size_t i = LANES; i < n; i += LANES) max = vec_max(vec_load_some(x + i, n - i, x[0]), max);
    return max_lanes(max);
}

static inline real_t sum_lanes(vec_t v)
{
    real_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

static real_t sum_of(const real_t *x, size_t n)
{
    vec_t sum = {0};
    for (size_t i = 0; i < n; i += LANES) sum += vec_load_some(x + i, n - i, 0);
    return sum_lanes(sum);
}

static real_t sum_of_squares(const real_t *x, size_t n)
{
    vec_t sum = {0};
    for (size_t i = 0; i < n; i += LANES) {
        vec_t v = vec_load_some(x + i, n - i, 0);
        sum += v * v;
    }
    return sum_lanes(sum);
}

static real_t largest_magnitude(const real_t *x, size_t n)
{
    vec_t largest = {0};
    for (size_t i = 0; i < n; i += LANES) {
        const vec_t v = vec_load_some(x + i, n - i, 0);
        largest = vec_max(vec_select(v < 0, -v, v), largest);
    }
    return max_lanes(largest);
}

static inline size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* A sum over all rows is made of sums over blocks of rows, and these blocks follow from the number of rows alone: so
 * any number of threads adds the same numbers in the same order. At most 256 blocks, of at least 32 rows. */
static size_t rows_per_block(size_t rows)
{
    size_t share = ceil_div(rows, 256);
    return share > 32 ? share : 32;
}

/* ----------------------------------------------------------------------------------------------------------------
 * The device and its memory: on the CPU, a number of threads and one scratch buffer. */
struct Device {
    int threads;
    MatmulPrecision precision;
    char *scratch;
    size_t scratch_bytes;
};

Device *device_open(int threads, MatmulPrecision precision, Error *error)
{
    if (threads < 0) {
        error_set(error, EXIT_USAGE, "threads: must not be negative (found %d)", threads);
        return NULL;
    }
    if (precision == MATMUL_BF16 && !device_has_bf16()) {
        error_set(error, EXIT_USAGE, "precision: bf16 needs a processor with AVX512_BF16 (use fp32)");
        return NULL;
    }
    Device *dev = calloc(1, sizeof *dev);
    if (!dev) {
        error_set(error, EXIT_FAILED, "device: no memory");
        return NULL;
    }
    dev->threads = threads ? threads : omp_get_num_procs();
    dev->precision = precision;
    return dev;
}

void device_close(Device *dev)
{
    if (!dev) return;
    device_free(dev->scratch);
    free(dev);
}

/* How many threads a kernel with so much to do takes: below some ten microseconds of work, waking the others costs more
 * than it brings. work: multiply-adds, or numbers that are read and written. */
static int threads_for(const Device *dev, size_t work)
{
    enum { SMALL_WORK = 64 << 10 };
    return work < SMALL_WORK ? 1 : dev->threads;
}

int device_threads(const Device *dev)
{
    return dev->threads;
}

void device_wait(Device *dev)
{
    (void)dev; /* a kernel returns when it is done */
}

/* What the system says it could give without swapping. */
size_t device_memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    size_t kilobytes = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %zu kB", &kilobytes) == 1) break;
    if (file) fclose(file);
    return kilobytes * 1024;
}

/* Large tensors ask for pages of 2 MiB: a fine-tuning step walks through gigabytes, and small pages would cost it a TLB
 * miss every 4 KiB. */
void *device_alloc(size_t bytes)
{
    const size_t huge_page = (size_t)2 << 20;
    size_t alignment = bytes >= 4 * huge_page ? huge_page : 64;
    if (bytes > SIZE_MAX - alignment) return NULL;
    size_t whole = bytes ? ceil_div(bytes, alignment) * alignment : alignment;
    void *memory = aligned_alloc(alignment, whole);
#ifdef MADV_HUGEPAGE
    if (memory && alignment == huge_page) madvise(memory, whole, MADV_HUGEPAGE); /* a wish: refusal does no harm */
#endif
    return memory;
}

void device_free(void *memory)
{
    free(memory);
}

weight_t *weights_alloc(size_t n)
{
    return n <= SIZE_MAX / sizeof(weight_t) ? device_alloc(n * sizeof(weight_t)) : NULL;
}

void weights_free(weight_t *weights)
{
    device_free(weights);
}

/* The one scratch buffer of a device, for one kernel at a time: the next call may move it, and nothing in it is kept.
 * Kernels return nothing, so there is nobody to tell when it cannot grow: this is the one way out. */
static void *device_scratch(Device *dev, size_t bytes)
{
    if (bytes > dev->scratch_bytes) {
        device_free(dev->scratch);
        dev->scratch = device_alloc(bytes);
        dev->scratch_bytes = bytes;
        if (!dev->scratch) {
            fprintf(stderr, "promot: scratch memory: %zu bytes are not to be had\n", bytes);
            exit(EXIT_FAILED);
        }
    }
    return dev->scratch;
}

void device_clear(Device *dev, void *memory, size_t bytes)
{
    (void)dev;
    memset(memory, 0, bytes);
}

void device_copy(Device *dev, void *to, const void *from, size_t bytes)
{
    (void)dev;
    memmove(to, from, bytes);
}

void device_upload(Device *dev, void *to, const void *host, size_t bytes)
{
    device_copy(dev, to, host, bytes);
}

void device_download(Device *dev, void *host, const void *from, size_t bytes)
{
    device_copy(dev, host, from, bytes);
}

int weights_park(Device *dev, weight_t *weights, bool parked, Error *error)
{
    (void)dev, (void)weights, (void)parked, (void)error; /* there are no halves */
    return 0;
}

int weights_offload(Device *dev, weight_t *weights, size_t n, Error *error)
{
    (void)dev, (void)weights, (void)n, (void)error;
    return 0;
}

/* The host is the device: whatever lies on the one is on the other. */
void device_stream_weights(Device *dev)
{
    (void)dev;
}

weight_t *weights_alloc_model(const Device *dev, size_t n)
{
    (void)dev;
    return weights_alloc(n);
}

bool weights_are_streamed(const weight_t *weights)
{
    (void)weights;
    return false;
}

size_t weights_device_bytes(const weight_t *weights, size_t n)
{
    (void)weights;
    return n * sizeof *weights;
}

int weights_keep(const weight_t *first, size_t n, size_t count, size_t stride, Error *error)
{
    (void)first, (void)n, (void)count, (void)stride, (void)error;
    return 0;
}

void weights_stream(Device *dev, WeightPiece now, WeightPiece next)
{
    (void)dev, (void)now, (void)next;
}

void weights_copy(Device *dev, weight_t *to, const weight_t *from, size_t n)
{
    device_copy(dev, to, from, n * sizeof *to);
}

static void numbers_from_floats(Device *dev, real_t *to, const float *from, size_t n)
{
#pragma omp parallel for simd num_threads(dev->threads)
    for (size_t i = 0; i < n; i++) to[i] = from[i];
}

static void numbers_to_floats(Device *dev, float *to, const real_t *from, size_t n)
{
#pragma omp parallel for simd num_threads(dev->threads)
    for (size_t i = 0; i < n; i++) to[i] = (float)from[i];
}

void weights_upload(Device *dev, weight_t *to, const float *host, size_t n)
{
    numbers_from_floats(dev, to, host, n);
}

void weights_download(Device *dev, float *host, const weight_t *from, size_t n)
{
    numbers_to_floats(dev, host, from, n);
}

void activations_download(Device *dev, float *host, const act_t *from, size_t n)
{
    numbers_to_floats(dev, host, from, n);
}

void logits_download(Device *dev, float *host, const logit_t *from, size_t n)
{
    numbers_to_floats(dev, host, from, n);
}

void stats_upload(Device *dev, stat_t *to, const float *host, size_t n)
{
    numbers_from_floats(dev, to, host, n);
}

void stats_download(Device *dev, float *host, const stat_t *from, size_t n)
{
    numbers_to_floats(dev, host, from, n);
}

/* Whatever is asked for is done at once here, so it is always there. */
struct Readback {
    char *memory;
};

Readback *readback_create(Device *dev, size_t bytes)
{
    Readback *readback = calloc(1, sizeof *readback);
    (void)dev;
    if (readback && (readback->memory = malloc(bytes))) return readback;
    free(readback);
    return NULL;
}

void readback_free(Readback *readback)
{
    if (readback) free(readback->memory);
    free(readback);
}

void readback_copy(Readback *readback, size_t at, const void *from, size_t bytes)
{
    memcpy(readback->memory + at, from, bytes);
}

bool readback_is_there(const Readback *readback)
{
    (void)readback;
    return true;
}

const void *readback_wait(Readback *readback)
{
    return readback->memory;
}

/* ----------------------------------------------------------------------------------------------------------------
 * Embedding: out[r] = table[ids[r]]. T5 does not multiply by sqrt(D). A negative id is a row of a soft prompt. */
void embedding_forward(Device *dev, act_t *out, const weight_t *table, const weight_t *prompts, const int32_t *ids,
                       size_t rows, size_t width)
{
    const int threads = threads_for(dev, rows * width);
#pragma omp parallel for num_threads(threads)
    for (size_t r = 0; r < rows; r++) {
        const weight_t *from = ids[r] >= 0 ? table + (size_t)ids[r] * width : prompts + (size_t)(-1 - ids[r]) * width;
        memcpy(out + r * width, from, width * sizeof *out);
    }
}

/* dtable[t] += sum of the gradient rows listed for t. One thread owns one target, so no two add to the same number. */
void embedding_backward(Device *dev, stat_t *dtable, const act_t *dout, const int32_t *first, const int32_t *source,
                        size_t targets, size_t width)
{
#pragma omp parallel for schedule(dynamic, 16) num_threads(dev->threads)
    for (size_t t = 0; t < targets; t++) {
        stat_t *to = dtable + t * width;
        for (int32_t i = first[t]; i < first[t + 1]; i++) {
            const act_t *from = dout + (size_t)source[i] * width;
#pragma omp simd
            for (size_t c = 0; c < width; c++) to[c] += from[c];
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Dropout. The mask is never stored: forward and backward both make it anew from (key, site, example, row, column). */

/* The factors of columns [first_column, first_column + columns) of one row: 0 where dropped, else 1 / (1 - rate). */
static void dropout_row(real_t *scale, const Dropout *d, uint32_t site, uint32_t example, uint32_t row,
                        size_t first_column, size_t columns)
{
    const uint32_t threshold = d->rate < 1 ? (uint32_t)((double)d->rate * 0x1p32) : UINT32_MAX;
    const real_t kept = d->rate < 1 ? (real_t)(1.0 / (1.0 - (double)d->rate)) : 0;
    const size_t end = first_column + columns;
    for (size_t column = first_column; column < end;) {
        const uint32_t counter[4] = {(uint32_t)(column / 4), d->shared ? 0 : row, example, site};
        uint32_t bits[4] = {0};
        if (threshold) philox4x32(counter, d->key, bits);
        for (size_t i = column % 4; i < 4 && column < end; i++, column++)
            scale[column - first_column] = bits[i] < threshold ? 0 : kept;
    }
}

/* Dropout of activations works element by element, with the operation beside it (attention's, of probabilities, is done
 * there). The work is cut into pieces of at most 64 rows of one sequence and 1024 columns; a mask that the rows of a
 * sequence share is made once for each piece. A RowKernel does n columns of one row, from `column` on; `row` counts in
 * the packed matrix. It multiplies by factor[0 … n-1], which is 1 without dropout. */
enum { PIECE_ROWS = 64, PIECE_COLUMNS = 1024 };

typedef struct {
    real_t *out;
    const real_t *a, *b;
    size_t width; /* of the rows that dropout sees */
} Operands;

typedef void RowKernel(const Operands *operands, size_t row, size_t column, size_t n, const real_t *factor);

static void for_each_piece(Device *dev, RowKernel *kernel, const Operands *operands, const Sequences *seqs,
                           const Dropout *dropout)
{
    const size_t width = operands->width;
    const size_t down = ceil_div(seqs->longest, PIECE_ROWS), across = ceil_div(width, PIECE_COLUMNS);
    const int threads = threads_for(dev, seqs->rows * width);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t piece = 0; piece < seqs->count * down * across; piece++) {
        real_t factor[PIECE_COLUMNS] __attribute__((aligned(64)));
        const size_t b = piece / (down * across), length = (size_t)seqs->length[b];
        const size_t first = piece / across % down * PIECE_ROWS, last = min_size(first + PIECE_ROWS, length);
        const size_t column = piece % across * PIECE_COLUMNS, n = min_size(width - column, PIECE_COLUMNS);
        const bool each_row = !dropout->shared && dropout->rate > 0;
        const uint32_t example = (uint32_t)(seqs->first_example + b);
        for (size_t row = first; row < last; row++) {
            if (row == first || each_row)
                dropout_row(factor, dropout, dropout->site, example, (uint32_t)row, column, n);
            kernel(operands, (size_t)seqs->start[b] + row, column, n, factor);
        }
    }
}

static void row_dropout(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const size_t at = row * o->width + column;
#pragma omp simd
    for (size_t c = 0; c < n; c++) o->out[at + c] = o->a[at + c] * factor[c];
}

void dropout_forward(Device *dev, act_t *x, const Sequences *seqs, size_t width, const Dropout *dropout)
{
    if (dropout->rate > 0) for_each_piece(dev, row_dropout, &(Operands){x, x, NULL, width}, seqs, dropout);
}

/* The residual stream: out = x + dropout(branch). */
static void row_residual(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const size_t at = row * o->width + column;
#pragma omp simd
    for (size_t c = 0; c < n; c++) o->out[at + c] = o->a[at + c] + o->b[at + c] * factor[c];
}

void residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *branch, const Sequences *seqs, size_t width,
                      const Dropout *dropout)
{
    for_each_piece(dev, row_residual, &(Operands){out, x, branch, width}, seqs, dropout);
}

/* dbranch = dout * mask / (1 - rate); dx = dout needs no work. */
void residual_backward(Device *dev, act_t *dbranch, const act_t *dout, const Sequences *seqs, size_t width,
                       const Dropout *dropout)
{
    for_each_piece(dev, row_dropout, &(Operands){dbranch, dout, NULL, width}, seqs, dropout);
}

/* ----------------------------------------------------------------------------------------------------------------
 * T5's layer norm (T5X layers.py): y = s x r, r = 1 / sqrt(mean(x^2) + epsilon). No mean is subtracted. */
void rmsnorm_forward(Device *dev, act_t *y, stat_t *rstd, const act_t *x, const weight_t *scale, size_t rows,
                     size_t width, float epsilon)
{
    const int threads = threads_for(dev, rows * width);
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < rows; row++) {
        const act_t *in = x + row * width;
        act_t *out = y + row * width;
        const stat_t r = (stat_t)(1.0 / sqrt((double)sum_of_squares(in, width) / (double)width + (double)epsilon));
#pragma omp simd
        for (size_t c = 0; c < width; c++) out[c] = scale[c] * (in[c] * r);
        rstd[row] = r;
    }
}

/* With n = x r and h = s dy:  dx += r (h - n mean(h n)),  ds += sum over rows of dy n. One row; ds may be NULL. */
static void rmsnorm_backward_row(act_t *dx, stat_t *ds, const act_t *dy, const act_t *x, stat_t r, const weight_t *s,
                                 size_t width)
{
    vec_t dot = {0};
    for (size_t c = 0, left = width; c < width; c += LANES, left = width - c)
        dot += vec_load_some(s + c, left, 0) * vec_load_some(dy + c, left, 0) * vec_load_some(x + c, left, 0);
    const stat_t pull = sum_lanes(dot) * r * r / (stat_t)width; /* n mean(h n) = x r^2 mean(h x) */
#pragma omp simd
    for (size_t c = 0; c < width; c++) dx[c] += r * (s[c] * dy[c] - x[c] * pull);
    if (!ds) return;
#pragma omp simd
    for (size_t c = 0; c < width; c++) ds[c] += dy[c] * x[c] * r;
}

void rmsnorm_backward(Device *dev, act_t *dx, stat_t *dscale, const act_t *dy, const act_t *x, const stat_t *rstd,
                      const weight_t *scale, size_t rows, size_t width)
{
    const size_t height = rows_per_block(rows), blocks = ceil_div(rows, height);
    stat_t *partial = dscale ? device_scratch(dev, blocks * width * sizeof *partial) : NULL;
#pragma omp parallel for num_threads(dev->threads)
    for (size_t b = 0; b < blocks; b++) {
        stat_t *ds = partial ? partial + b * width : NULL;
        if (ds) memset(ds, 0, width * sizeof *ds);
        for (size_t row = b * height; row < min_size((b + 1) * height, rows); row++) {
            const size_t at = row * width;
            rmsnorm_backward_row(dx + at, ds, dy + at, x + at, rstd[row], scale, width);
        }
    }
    for (size_t b = 0; dscale && b < blocks; b++) {
#pragma omp simd
        for (size_t c = 0; c < width; c++) dscale[c] += partial[b * width + c];
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * The middle of the MLP. Gated gelu (T5 1.1 and mT5): h = gelu(a0) a1; relu (T5 1.0): h = max(a, 0); then dropout.
 *
 * gelu(a) = a/2 (1 + tanh(u)), u = sqrt(2/pi) (a + 0.044715 a^3) (Hendrycks and Gimpel 2016; "gelu_new"). As
 * (1 + tanh u) / 2 = 1 / (1 + e^-2u) =: g, gelu(a) = a g, and gelu'(a) = g + a g (1 - g) 2 u'(a). */
#define GELU_2C ((real_t)1.5957691216057308) /* 2 sqrt(2 / pi) */
#define GELU_CUBIC ((real_t)0.044715)

static inline vec_t gelu_gate(vec_t a)
{
    return 1 / (1 + vec_exp(-GELU_2C * a * (1 + GELU_CUBIC * a * a)));
}

static void row_gelu(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const act_t *a0 = o->a + row * 2 * o->width + column, *a1 = a0 + o->width;
    act_t *h = o->out + row * o->width + column;
    for (size_t c = 0; c < n; c += LANES) {
        vec_t a = vec_load_some(a0 + c, n - c, 0), b = vec_load_some(a1 + c, n - c, 0);
        vec_store_some(h + c, n - c, a * gelu_gate(a) * b * vec_load_some(factor + c, n - c, 0));
    }
}

/* da0 = dh a1 gelu'(a0), da1 = dh gelu(a0), where dh already has the dropout factor. */
static void row_gelu_backward(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const act_t *a0 = o->b + row * 2 * o->width + column, *a1 = a0 + o->width;
    const act_t *dh = o->a + row * o->width + column;
    act_t *da0 = o->out + row * 2 * o->width + column, *da1 = da0 + o->width;
    for (size_t c = 0; c < n; c += LANES) {
        vec_t a = vec_load_some(a0 + c, n - c, 0), b = vec_load_some(a1 + c, n - c, 0);
        vec_t d = vec_load_some(dh + c, n - c, 0) * vec_load_some(factor + c, n - c, 0);
        vec_t gate = gelu_gate(a), slope = GELU_2C * (1 + 3 * GELU_CUBIC * a * a);
        vec_store_some(da0 + c, n - c, d * b * (gate + a * gate * (1 - gate) * slope));
        vec_store_some(da1 + c, n - c, d * a * gate);
    }
}

static void row_relu(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const size_t at = row * o->width + column;
#pragma omp simd
    for (size_t c = 0; c < n; c++) { /* "a < 0 ? 0 : a" lets a NaN through, to be seen */
        o->out[at + c] = (o->a[at + c] < 0 ? 0 : o->a[at + c]) * factor[c];
    }
}

static void row_relu_backward(const Operands *o, size_t row, size_t column, size_t n, const real_t *factor)
{
    const size_t at = row * o->width + column;
#pragma omp simd
    for (size_t c = 0; c < n; c++) o->out[at + c] = o->b[at + c] > 0 ? o->a[at + c] * factor[c] : 0;
}

void mlp_activation_forward(Device *dev, MlpKind kind, act_t *h, const act_t *a, const Sequences *seqs, size_t d_ff,
                            const Dropout *dropout)
{
    RowKernel *kernel = kind == MLP_RELU ? row_relu : row_gelu;
    for_each_piece(dev, kernel, &(Operands){h, a, NULL, d_ff}, seqs, dropout);
}

void mlp_activation_backward(Device *dev, MlpKind kind, act_t *da, const act_t *dh, const act_t *a,
                             const Sequences *seqs, size_t d_ff, const Dropout *dropout)
{
    RowKernel *kernel = kind == MLP_RELU ? row_relu_backward : row_gelu_backward;
    for_each_piece(dev, kernel, &(Operands){da, dh, a, d_ff}, seqs, dropout);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The head: softmax over the vocabulary and the loss. */
enum { SCAN_BLOCK = 16 * LANES }; /* a row is scanned in blocks that stay in the first cache */

typedef struct {
    real_t max;
    double sum;   /* of e^(x - max): the normaliser Z is sum * e^max */
    double total; /* of x */
} RowSums;

static double log_normaliser(const RowSums *s)
{
    return (double)s->max + log(s->sum);
}

/* One pass over a row (Milakov and Gimelshein 2018): when a block raises the maximum, the sum so far is rescaled. */
static RowSums row_sums(const logit_t *x, size_t n)
{
    RowSums s = {.max = -(real_t)FLT_MAX}; /* finite: -infinity less itself would be NaN */
    for (size_t first = 0; first < n; first += SCAN_BLOCK) {
        const logit_t *block = x + first;
        const size_t count = min_size(n - first, SCAN_BLOCK);
        const real_t max = max_of(block, count);
        if (max > s.max) {
            s.sum *= exp((double)s.max - (double)max);
            s.max = max;
        }
        vec_t sum = {0};
        for (size_t c = 0; c < count; c += LANES)
            sum += vec_exp(vec_load_some(block + c, count - c, -INFINITY) - s.max);
        s.sum += (double)sum_lanes(sum);
        s.total += (double)sum_of(block, count);
    }
    return s;
}

/* d loss / d logits = scale [(1 + 2 z logZ) p - q]: p is the softmax, and q the target with label smoothing e, 1 - e at
 * the target and low = e / (n - 1) elsewhere. */
static void loss_gradient(act_t *dlogits, const logit_t *logits, size_t n, int32_t target, const RowSums *s,
                          const LossSettings *settings)
{
    const double smooth = settings->label_smoothing, low = smooth / (double)(n - 1);
    const double grow = settings->scale * (1 + 2 * (double)settings->z_loss * log_normaliser(s)) / s->sum;
    const double at_target = grow * exp((double)logits[target] - (double)s->max) - settings->scale * (1 - smooth);
    const real_t factor = (real_t)grow, shift = (real_t)(settings->scale * low), max = s->max;
    for (size_t c = 0; c < n; c += LANES)
        vec_store_some(dlogits + c, n - c, factor * vec_exp(vec_load_some(logits + c, n - c, 0) - max) - shift);
    dlogits[target] = (real_t)at_target;
}

/* T5X losses.py: loss = - sum q log p + z logZ^2 - C, and C makes a perfect prediction cost 0. log p = x - logZ gives
 * - sum q log p = (1 - e) (logZ - x_target) + low [(n - 1) logZ - sum of the other x]. Rows are independent. */
void softmax_cross_entropy(Device *dev, stat_t *loss, act_t *dlogits, const logit_t *logits, const int32_t *targets,
                           size_t rows, size_t vocabulary, const LossSettings *settings)
{
    const double smooth = settings->label_smoothing, others = (double)vocabulary - 1, low = smooth / others;
    const double constant = -((1 - smooth) * log(1 - smooth) + others * low * log(low + 1e-20));
#pragma omp parallel for num_threads(dev->threads)
    for (size_t row = 0; row < rows; row++) {
        const logit_t *x = logits + row * vocabulary;
        const RowSums s = row_sums(x, vocabulary);
        const double log_z = log_normaliser(&s), at_target = x[targets[row]];
        double cross_entropy = (1 - smooth) * (log_z - at_target);
        if (smooth > 0) cross_entropy += low * (others * log_z - (s.total - at_target));
        loss[row] = (stat_t)(settings->scale * (cross_entropy + settings->z_loss * log_z * log_z - constant));
        if (dlogits) loss_gradient(dlogits + row * vocabulary, x, vocabulary, targets[row], &s, settings);
    }
}

/* The k largest of a row, best first. Only a block whose maximum beats the k-th best so far is looked at closely; after
 * the first few blocks that is rare. Ids rise, and equals do not pass each other, so the lower id comes first. */
static void row_top(stat_t *value, int32_t *word, const logit_t *x, size_t n, size_t k)
{
    size_t found = 0;
    for (size_t first = 0; first < n; first += SCAN_BLOCK) {
        const size_t last = min_size(first + SCAN_BLOCK, n);
        if (found == k && !(max_of(x + first, last - first) > value[k - 1])) continue;
        for (size_t i = first; i < last; i++) {
            if (found == k && !(x[i] > value[k - 1])) continue;
            size_t place = found < k ? found++ : k - 1;
            for (; place > 0 && x[i] > value[place - 1]; place--) {
                value[place] = value[place - 1];
                word[place] = word[place - 1];
            }
            value[place] = x[i];
            word[place] = (int32_t)i;
        }
    }
}

/* logp [rows, k] (=), word [rows, k] (=). */
static void top_log_probabilities(Device *dev, stat_t *logp, int32_t *word, const logit_t *logits, size_t rows,
                                  size_t vocabulary, size_t k)
{
#pragma omp parallel for num_threads(dev->threads)
    for (size_t row = 0; row < rows; row++) {
        const logit_t *x = logits + row * vocabulary;
        const RowSums s = row_sums(x, vocabulary);
        row_top(logp + row * k, word + row * k, x, vocabulary, k);
        for (size_t i = 0; i < k; i++) logp[row * k + i] = (stat_t)((double)logp[row * k + i] - log_normaliser(&s));
    }
}

void scale_forward(Device *dev, act_t *x, float factor, size_t n)
{
#pragma omp parallel for simd num_threads(dev->threads)
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

/* ----------------------------------------------------------------------------------------------------------------
 * Adafactor (Shazeer and Stern 2018), as t5x/adafactor.py does it. For a tensor p with gradient g:
 *
 *     G = g^2 + epsilon1
 *     factored:  row = (1 - alpha) row + alpha mean over columns of G      whole:  v = (1 - alpha) v + alpha G
 *                column = (1 - alpha) column + alpha mean over rows of G
 *                y = g / sqrt(row column / mean)                                   y = g / sqrt(v)
 *     p <- (1 - weight_decay) p - lr max(epsilon2, RMS(p)) / max(1, RMS(y) / clip) y
 *
 * RMS(p) is taken before the update. `mean` is that of the moment with fewer entries; the two means are equal in exact
 * arithmetic. Nothing but RMS(p) and RMS(y) couples the elements, and
 *
 *     sum of y^2 = mean * sum over j of W_j / column_j,      W_j = sum over i of g_ij^2 / row_i,
 *
 * where row_i is final as soon as row i of g has been read. So one pass over g makes all statistics and a second one
 * applies them; and since that leaves every row of p in the nearest cache, it sums the row's squares for the next
 * update's RMS(p), which then need not be read from p. The same passes over the touched rows alone update an embedding:
 * an untouched row has G = epsilon1 and y = 0. */
typedef struct {
    weight_t *p;
    const stat_t *g;
    const int32_t *index; /* row k of g belongs to row index[k] of p; NULL: to row k */
    size_t n;             /* rows of g */
    const SecondMoment *moment;
    size_t rows, columns;
    const AdafactorStep *step;
} FactoredUpdate;

static size_t touched_row(const FactoredUpdate *u, size_t k)
{
    return u->index ? (size_t)u->index[k] : k;
}

/* The first pass over rows [first, last) of g. `row` comes as (1 - alpha) row + alpha epsilon1 and is finished here;
 * squares[j] (+=) sum of g_ij^2, weighted[j] (+=) sum of g_ij^2 / row_i. Returns the sum of p^2 of these rows.
 *
 * The sum of a row and its inverse are a long chain of operations, each waiting for the one before it, and while the
 * second loop waits for them nothing is fetched. So a few rows go together: their chains run side by side, and the
 * sums over columns stay in registers for all of them. */
static double factored_statistics(const FactoredUpdate *u, size_t first, size_t last, stat_t *squares, stat_t *weighted)
{
    enum { TOGETHER = 8 };
    const stat_t *known = u->moment->row_squares;
    double parameter_squares = 0;
    for (size_t k = first; k < last; k += TOGETHER) {
        const stat_t *g = u->g + k * u->columns;
        const size_t n = min_size(TOGETHER, last - k);
        stat_t inverse[TOGETHER];
        for (size_t i = 0; i < n; i++) {
            const size_t row = touched_row(u, k + i);
            const double sum = (double)sum_of_squares(g + i * u->columns, u->columns);
            u->moment->row[row] += (stat_t)(u->step->alpha * sum / (double)u->columns);
            inverse[i] = 1 / u->moment->row[row];
            if (u->step->scale_by_parameter)
                parameter_squares += (double)(known ? known[row] : sum_of_squares(u->p + row * u->columns, u->columns));
        }
        for (size_t j = 0; j < u->columns; j += LANES) {
            const size_t left = u->columns - j;
            vec_t square_sum = vec_load_some(squares + j, left, 0), weighted_sum = vec_load_some(weighted + j, left, 0);
            for (size_t i = 0; i < n; i++) {
                const vec_t v = vec_load_some(g + i * u->columns + j, left, 0), square = v * v;
                square_sum += square;
                weighted_sum += square * inverse[i];
            }
            vec_store_some(squares + j, left, square_sum);
            vec_store_some(weighted + j, left, weighted_sum);
        }
    }
    return parameter_squares;
}

/* The second pass over one row: p <- (1 - weight_decay) p - scale g sqrt(mean / column) / sqrt(row). */
static void factored_apply(const FactoredUpdate *u, size_t k, const stat_t *column_factor, double scale)
{
    const size_t row = touched_row(u, k);
    const stat_t *g = u->g + k * u->columns;
    weight_t *p = u->p + row * u->columns;
    const real_t keep = (real_t)(1 - u->step->weight_decay);
    const real_t factor = (real_t)(scale / sqrt((double)u->moment->row[row]));
    vec_t squares = {0}; /* in sum_of_squares's order: the bits that rows_sum_of_squares would give */
    for (size_t j = 0; j < u->columns; j += LANES) {
        const size_t left = u->columns - j;
        const vec_t update = vec_load_some(g + j, left, 0) * vec_load_some(column_factor + j, left, 0);
        const vec_t next = keep * vec_load_some(p + j, left, 0) - factor * update;
        vec_store_some(p + j, left, next);
        squares += next * next;
    }
    if (u->moment->row_squares) u->moment->row_squares[row] = sum_lanes(squares);
}

static double sum_in_double(const stat_t *x, size_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    return sum;
}

static double mean_of(const stat_t *x, size_t n)
{
    return sum_in_double(x, n) / (double)n;
}

/* lr max(epsilon2, RMS(p)) / max(1, RMS(y) / clip) from the sums of p^2 and y^2. */
static double update_scale(const AdafactorStep *step, double parameter_squares, double update_squares, size_t elements)
{
    double scale = step->learning_rate;
    if (step->scale_by_parameter) scale *= fmax(step->epsilon2, sqrt(parameter_squares / (double)elements));
    if (step->clip > 0) scale /= fmax(1, sqrt(update_squares / (double)elements) / step->clip);
    return scale;
}

static void factored_update(Device *dev, const FactoredUpdate *u)
{
    const size_t rows = u->rows, columns = u->columns, height = rows_per_block(u->n), blocks = ceil_div(u->n, height);
    const size_t scratch = blocks * sizeof(double) + (blocks * 2 + 2) * columns * sizeof(stat_t);
    double *parameter_squares = device_scratch(dev, scratch); /* [blocks] */
    stat_t *partial = (stat_t *)(parameter_squares + blocks); /* [blocks][squares, weighted][columns] */
    stat_t *weighted = partial + blocks * 2 * columns, *column_factor = weighted + columns;
    stat_t *row = u->moment->row, *column = u->moment->column;
    const double alpha = u->step->alpha, kept = 1 - alpha, least = alpha * u->step->epsilon1;

#pragma omp parallel for simd num_threads(dev->threads)
    for (size_t i = 0; i < rows; i++) row[i] = (stat_t)(kept * (double)row[i] + least);
#pragma omp parallel for num_threads(dev->threads)
    for (size_t b = 0; b < blocks; b++) {
        stat_t *sums = partial + b * 2 * columns;
        memset(sums, 0, 2 * columns * sizeof *sums);
        parameter_squares[b] =
            factored_statistics(u, b * height, min_size((b + 1) * height, u->n), sums, sums + columns);
    }
#pragma omp parallel for num_threads(dev->threads)
    for (size_t j = 0; j < columns; j++) {
        double square = 0, weight = 0;
        for (size_t b = 0; b < blocks; b++) {
            square += (double)partial[b * 2 * columns + j];
            weight += (double)partial[(b * 2 + 1) * columns + j];
        }
        column[j] = (stat_t)(kept * (double)column[j] + alpha * square / (double)rows + least);
        weighted[j] = (stat_t)weight;
    }

    const double mean = columns <= rows ? mean_of(column, columns) : mean_of(row, rows);
    /* RMS(p) is that of all rows; with an index factored_statistics saw the touched ones only. */
    double p2 = u->index ? sum_in_double(u->moment->row_squares, rows) : 0, y2 = 0;
    for (size_t b = 0; !u->index && b < blocks; b++) p2 += parameter_squares[b];
    for (size_t j = 0; j < columns; j++) {
        y2 += (double)weighted[j] * mean / (double)column[j];
        column_factor[j] = (stat_t)sqrt(mean / (double)column[j]);
    }
    const double scale = update_scale(u->step, p2, y2, rows * columns);
#pragma omp parallel for num_threads(dev->threads)
    for (size_t k = 0; k < u->n; k++) factored_apply(u, k, column_factor, scale);
}

/* The update where the second moment is whole. Sums go over blocks of 4096 elements, whatever the threads are, and the
 * blocks are added in their order. */
static void whole_update(Device *dev, weight_t *p, const stat_t *g, stat_t *v, size_t n, const AdafactorStep *step)
{
    const size_t block = 4096, blocks = ceil_div(n, block);
    double *sums = device_scratch(dev, 2 * blocks * sizeof *sums), p2 = 0, y2 = 0;
#pragma omp parallel for num_threads(dev->threads)
    for (size_t b = 0; b < blocks; b++) {
        const size_t first = b * block, last = min_size(first + block, n);
        double squares = 0;
#pragma omp simd reduction(+ : squares)
        for (size_t i = first; i < last; i++) {
            const double square = (double)g[i] * (double)g[i];
            v[i] = (stat_t)((1 - step->alpha) * (double)v[i] + step->alpha * (square + step->epsilon1));
            squares += square / (double)v[i];
        }
        sums[2 * b] = squares;
        sums[2 * b + 1] = (double)sum_of_squares(p + first, last - first);
    }
    for (size_t b = 0; b < blocks; b++) y2 += sums[2 * b], p2 += sums[2 * b + 1];
    const double scale = update_scale(step, p2, y2, n), keep = 1 - step->weight_decay;
#pragma omp parallel for num_threads(dev->threads)
    for (size_t i = 0; i < n; i++) p[i] = (weight_t)(keep * (double)p[i] - scale * (double)g[i] / sqrt((double)v[i]));
}

void adafactor_update(Device *dev, weight_t *p, const stat_t *g, const SecondMoment *moment, size_t rows,
                      size_t columns, const AdafactorStep *step)
{
    const FactoredUpdate update = {p, g, NULL, rows, moment, rows, columns, step};
    if (moment->whole)
        whole_update(dev, p, g, moment->whole, rows * columns, step);
    else
        factored_update(dev, &update);
}

void adafactor_update_rows(Device *dev, weight_t *p, const stat_t *g, const int32_t *index, size_t n,
                           const SecondMoment *moment, size_t rows, size_t columns, const AdafactorStep *step)
{
    const FactoredUpdate update = {p, g, index, n, moment, rows, columns, step};
    factored_update(dev, &update);
}

void rows_sum_of_squares(Device *dev, stat_t *out, const weight_t *x, size_t rows, size_t columns)
{
#pragma omp parallel for num_threads(dev->threads)
    for (size_t row = 0; row < rows; row++) out[row] = sum_of_squares(x + row * columns, columns);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Measuring. */
void dot_product(Device *dev, double *dot, const stat_t *a, const stat_t *b, size_t n)
{
    const size_t block = 65536, blocks = ceil_div(n, block);
    double *partial = device_scratch(dev, blocks * sizeof *partial);
#pragma omp parallel for num_threads(dev->threads)
    for (size_t k = 0; k < blocks; k++) {
        const size_t last = min_size((k + 1) * block, n);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = k * block; i < last; i++) sum += (double)a[i] * (double)b[i];
        partial[k] = sum;
    }
    *dot = 0;
    for (size_t k = 0; k < blocks; k++) *dot += partial[k];
}
/* ----------------------------------------------------------------------------------------------------------------
 * Matrix multiplication
 *
 * Nine tenths of the arithmetic of T5 is here. A linear layer needs three products, and one routine serves them all:
 *
 *     forward          y [rows, out] = x · wᵀ       sums over in
 *     input gradient  dx [rows, in]  = dy · w       sums over out
 *     weight gradient dw [out, in]   = dyᵀ · x      sums over rows
 *
 * All of them are C [m, n] (+)= A · Bᵀ, that is C(i, j) = sum over k of A(i, k) B(j, k), when A and B may be read with
 * any strides. The sum runs along the `depth` of the operands.
 *
 * A processor core does two multiply-adds of whole vectors per cycle, but fetches only about as many vectors from its
 * nearest cache and far fewer from memory. So every number that was fetched must be used many times. Three levels of
 * blocking do that (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"):
 *
 *   registers   a tile of C, TILE_ROWS x TILE_COLUMNS, stays in registers while the sum runs along the depth. Each step
 *               loads TILE_ROWS + TILE_VECTORS values and does TILE_ROWS * TILE_VECTORS multiply-adds.
 *   caches      operands are first copied ("packed") into panels in which the tile's loop reads strictly forwards. A
 *               panel is DEPTH_BLOCK steps long: one of A fits in the first cache, one of B in the second.
 *   threads     the smaller operand is *held*: packed by all threads together, at most HELD_ELEMENTS of it at a time,
 *               and then read by all. The larger one is *streamed* past it: each thread takes a chunk of it, packs that
 *               for itself, and owns the rows (or columns) of C that belong to the chunk.
 *
 * The depth is always cut at multiples of DEPTH_BLOCK and a tile always sums in the same order, so that the result does
 * not depend on the number of threads, nor a row of C on how many others there are. */

/* An operand seen from the product: element (i, k) is data[i * row + k * depth]. One of the two strides is 1. */
typedef struct {
    const real_t *data;
    size_t row, depth;
} Operand;

/* The same operand from element (row, depth) on. */
static Operand operand_from(Operand from, size_t row, size_t depth)
{
    return (Operand){from.data + row * from.row + depth * from.depth, from.row, from.depth};
}

/* The tile fills the register file: with 32 registers 12 x 2 sums, 2 vectors of B and a spare for A; with 16, 4 x 3
 * sums, 3 of B, one of A. Both are more than the 8 to 10 independent sums that keep two multiply-add units busy. Panels
 * are multiples of 4 wide, because packing transposes 4 x 4 blocks (hence fewer vectors where they hold but two
 * doubles). */
#if VECTOR_BYTES == 64 || defined(__aarch64__)
enum { TILE_ROWS = 12, TILE_VECTORS = 2 };
#else
enum { TILE_ROWS = 4, TILE_VECTORS = LANES == 2 ? 2 : 3 };
#endif
enum {
    TILE_COLUMNS = TILE_VECTORS * LANES,
    TILE_SUMS = TILE_ROWS * TILE_VECTORS,
    MOST_VECTORS = LANES == 2 ? 2 : 3, /* of B in any tile */
    DEPTH_BLOCK = 512,                 /* the depth of a panel */
    SLICE = 64,                        /* the depth that is packed at a time */
    HELD_ROWS = 1536,                  /* of the held operand at a time: a multiple of both panel widths */
    HELD_ELEMENTS = 2 << 20,           /* of the held operand at a time: 8 MB */
    CHUNK_ROWS = 96,                   /* of the streamed operand at a time: a multiple of both panel widths */
    FEW_QUERIES = 8,                   /* rows of A: up to here matmul_block reads both operands in place */
};

#define UNROLLED _Pragma("GCC unroll 16")
/* A vector that many operations in a row use shall be loaded once: where registers are few, compilers would rather give
 * each operation the address, and then the loads take longer than the multiplications. */
#if defined(__x86_64__) && (VECTOR_BYTES < 64 || defined(__AVX512F__))
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__) && VECTOR_BYTES == 16
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) (void)(v)
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static size_t round_up(size_t n, size_t multiple)
{
    return ceil_div(n, multiple) * multiple;
}

ALWAYS_INLINE vec_t vec_load(const real_t *p)
{
    return *(const vec_t *)p;
}

ALWAYS_INLINE void vec_store(real_t *p, vec_t v)
{
    *(vec_t *)p = v;
}

/* --- bfloat16: the upper half of a float. In double there is none, and rounding does nothing. */

#ifndef PROMOT_DOUBLE
/* x rounded to the nearest bf16, ties to even, as the upper half of a float's bits: add just under half of the last
 * kept place (0x7fff), and 1 more if the last kept bit is odd, so that a tie goes to even; then cut. */
ALWAYS_INLINE uint32_t bf16_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}
#endif

ALWAYS_INLINE real_t bf16_round(real_t x)
{
#ifndef PROMOT_DOUBLE
    const uint32_t bits = bf16_bits(x);
    memcpy(&x, &bits, sizeof x);
#endif
    return x;
}

ALWAYS_INLINE vec_t vec_bf16_round(vec_t x)
{
#ifndef PROMOT_DOUBLE
    typedef uint32_t bits_t __attribute__((vector_size(VECTOR_BYTES)));
    const bits_t bits = (bits_t)x;
    return (vec_t)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
#else
    return x;
#endif
}

/* Two neighbours along the depth, in the space of one fp32: the first in the lower half. */
ALWAYS_INLINE real_t bf16_pair(real_t first, real_t second)
{
#ifndef PROMOT_DOUBLE
    const uint32_t bits = bf16_bits(first) >> 16 | bf16_bits(second);
    memcpy(&first, &bits, sizeof first);
#endif
    (void)second;
    return first;
}

ALWAYS_INLINE vec_t vec_bf16_pair(vec_t first, vec_t second)
{
#ifndef PROMOT_DOUBLE
    typedef uint32_t bits_t __attribute__((vector_size(VECTOR_BYTES)));
    return (vec_t)((bits_t)vec_bf16_round(first) >> 16 | (bits_t)vec_bf16_round(second));
#else
    (void)second;
    return first;
#endif
}

bool device_has_bf16(void)
{
#if defined(__AVX512BF16__) && !defined(PROMOT_DOUBLE)
    return __builtin_cpu_supports("avx512bf16");
#elif defined(BF16_IN_SOFTWARE) /* the tests', so that what surrounds the instruction runs on every machine */
    return true;
#else
    return false;
#endif
}

/* --- packing: panel p holds rows p * width … of an operand. At each step of the depth it has `width` numbers side by
 * side; rows that do not exist are zeros. In bf16 a step takes two places of the depth, each pair in the space of one
 * fp32. */

/* One slice of a panel in fp32. Where the operand's rows are neighbours in memory this is a copy, otherwise a
 * transposition, in blocks of 4 x 4. */
ALWAYS_INLINE void pack_slice(real_t *to, size_t width, Operand from, size_t rows, size_t depth)
{
    typedef real_t four_t __attribute__((vector_size(4 * sizeof(real_t)), aligned(sizeof(real_t)), may_alias));
    if (from.row == 1 && rows == width) {
        for (size_t k = 0; k < depth; k++) memcpy(to + k * width, from.data + k * from.depth, width * sizeof *to);
        return;
    }
    for (size_t i = 0; i < width; i += 4) {
        size_t k = 0;
        if (from.depth == 1 && i + 4 <= rows) {
            const real_t *const p = from.data + i * from.row;
            for (; k + 4 <= depth; k += 4) {
                const four_t a = *(const four_t *)(p + k), b = *(const four_t *)(p + from.row + k);
                const four_t c = *(const four_t *)(p + 2 * from.row + k), d = *(const four_t *)(p + 3 * from.row + k);
                const four_t ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
                const four_t ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
                const four_t cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
                const four_t cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
                *(four_t *)(to + k * width + i) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
                *(four_t *)(to + (k + 1) * width + i) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
                *(four_t *)(to + (k + 2) * width + i) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
                *(four_t *)(to + (k + 3) * width + i) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
            }
        }
        for (; k < depth; k++)
            for (size_t r = i; r < i + 4; r++)
                to[k * width + r] = r < rows ? from.data[r * from.row + k * from.depth] : 0;
    }
}

/* Slices of 64 keep what is being written in the first cache while the transposition comes by again for more rows. */
ALWAYS_INLINE void pack_panel(real_t *to, size_t width, Operand from, size_t rows, size_t depth,
                              MatmulPrecision precision)
{
    for (size_t k = 0; k < depth; k += SLICE) {
        const size_t n = min_size(SLICE, depth - k);
        const Operand slice = {from.data + k * from.depth, from.row, from.depth};
        if (precision == MATMUL_FP32) {
            pack_slice(to + k * width, width, slice, rows, n);
            continue;
        }
        real_t rounded[SLICE * (TILE_ROWS > (int)TILE_COLUMNS ? TILE_ROWS : (int)TILE_COLUMNS)];
        pack_slice(rounded, width, slice, rows, n);
        if (n % 2) memset(rounded + n * width, 0, width * sizeof *rounded);
        for (size_t s = 0; s < (n + 1) / 2; s++)
            for (size_t i = 0; i < width; i++) {
                const real_t *const pair = rounded + 2 * s * width + i;
                to[(k / 2 + s) * width + i] = bf16_pair(pair[0], pair[width]);
            }
    }
}

/* The number of steps that a panel of this depth has. */
static size_t panel_steps(size_t depth, MatmulPrecision precision)
{
    return precision == MATMUL_BF16 ? (depth + 1) / 2 : depth;
}

/* Packs `rows` rows as panels one behind another. Each width has its own copy of the packing loops, where it is a
 * constant. Memory is best read along its rows: where those run along the depth, panel by panel; where they run across
 * the panels, a slice of all panels after another. */
static void pack_panels(real_t *to, size_t width, Operand from, size_t rows, size_t depth, MatmulPrecision precision)
{
    const size_t panel_size = width * panel_steps(depth, precision), stretch = from.row == 1 ? SLICE : depth;
    for (size_t k = 0; k < depth; k += stretch)
        for (size_t i = 0; i < rows; i += width) {
            real_t *const panel = to + i / width * panel_size + width * panel_steps(k, precision);
            const Operand part = operand_from(from, i, k);
            const size_t n = min_size(width, rows - i), deep = min_size(stretch, depth - k);
            if (width == TILE_ROWS)
                pack_panel(panel, TILE_ROWS, part, n, deep, precision);
            else
                pack_panel(panel, TILE_COLUMNS, part, n, deep, precision);
        }
}

/* --- the innermost loop: one tile of C from one panel of A and one of B. */

/* sum += a * b, with one value (or, in bf16, one pair) of A for all lanes. The products of a bf16 pair are exact in
 * fp32. The sum is claimed for a register because gcc, when it tunes for Zen, rounds between product and sum where a
 * sum stands alone, and not where there are several: a row's bits would depend on the rows beside it. */
ALWAYS_INLINE vec_t multiply_add(vec_t sum, const real_t *a, vec_t b, bool bf16)
{
#if defined(__AVX512BF16__) && !defined(PROMOT_DOUBLE)
    if (bf16) {
        int32_t pair;
        memcpy(&pair, a, sizeof pair);
        return (vec_t)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
    }
#elif defined(BF16_IN_SOFTWARE)
    if (bf16) {
        const vec_bits_t pairs[] = {(vec_bits_t)vec_set(*a), (vec_bits_t)b};
        sum += (vec_t)(pairs[0] << 16) * (vec_t)(pairs[1] << 16);
        return sum + (vec_t)(pairs[0] & (int32_t)0xffff0000) * (vec_t)(pairs[1] & (int32_t)0xffff0000);
    }
#endif
    (void)bf16;
    sum += *a * b;
    IN_REGISTER(sum);
    return sum;
}

/* Memory that will be packed next: `runs` stretches of `run` bytes, `stride` bytes apart. While the processor
 * multiplies, it can already fetch them into the second cache, a few lines at a time; otherwise packing would mostly
 * wait for memory. */
typedef struct {
    const char *at;
    size_t runs, run, stride;
    size_t done; /* bytes of the present run */
} Ahead;

enum { LINE = 64 };

static Ahead ahead_of(Operand next, size_t rows, size_t depth)
{
    const size_t runs = next.row == 1 ? depth : rows, run = next.row == 1 ? rows : depth;
    const size_t stride = next.row == 1 ? next.depth : next.row;
    return (Ahead){(const char *)next.data, run ? runs : 0, run * sizeof *next.data, stride * sizeof *next.data, 0};
}

ALWAYS_INLINE void fetch_ahead(Ahead *ahead, size_t lines)
{
    for (; lines > 0 && ahead->runs > 0; lines--) {
        __builtin_prefetch(ahead->at + ahead->done, 0, 2);
        ahead->done += LINE;
        if (ahead->done < ahead->run) continue;
        ahead->at += ahead->stride, ahead->done = 0, ahead->runs--;
    }
}

/* One tile's place among the others: which part of C it makes, and what it fetches on the way. */
typedef struct {
    real_t *c;
    size_t c_row, m, n; /* m, n: the rows and columns of C that it writes; at an edge fewer than it computes */
    const char *next_b; /* of the next panel of B, this tile's share: next_b_step bytes at each step */
    size_t next_b_step;
    Ahead *ahead; /* ahead_lines of it for each SLICE of steps */
    size_t ahead_lines;
} Tile;

/* c [m, n] (=) or (+=) a · bᵀ, in height x vectors sums. Row i of A has its k-th number at a[i * a_row + k * a_step]:
 * in a panel a_row is 1 and a_step the height. */
ALWAYS_INLINE void multiply_tile(const Tile *t, size_t height, size_t vectors, const real_t *a, size_t a_row,
                                 size_t a_step, const real_t *b, size_t steps, bool accumulate, bool bf16)
{
    const char *next_b = t->next_b;
    vec_t sum[TILE_SUMS];
    UNROLLED for (size_t i = 0; i < height; i++)
    {
        UNROLLED for (size_t j = 0; j < vectors; j++) sum[i * vectors + j] = (vec_t){0};
    }
    /* C is wanted at the end of the loop, and has to come from far: say so now. */
    for (size_t i = 0; i < t->m; i++)
        for (size_t j = 0; j < t->n; j += LINE / sizeof(real_t)) __builtin_prefetch(t->c + i * t->c_row + j, 1);
    for (size_t slice = 0; slice < steps; slice += SLICE) {
        fetch_ahead(t->ahead, t->ahead_lines);
        for (size_t k = min_size(SLICE, steps - slice); k > 0; k--) {
            vec_t column[MOST_VECTORS];
            __builtin_prefetch(next_b, 0, 2);
            UNROLLED for (size_t j = 0; j < vectors; j++)
            {
                column[j] = vec_load(b + j * LANES);
                IN_REGISTER(column[j]);
            }
            UNROLLED for (size_t i = 0; i < height; i++)
            {
                UNROLLED for (size_t j = 0; j < vectors; j++)
                {
                    sum[i * vectors + j] = multiply_add(sum[i * vectors + j], a + i * a_row, column[j], bf16);
                }
            }
            a += a_step, b += vectors * LANES, next_b += t->next_b_step;
        }
    }
    if (t->m == height && t->n == vectors * LANES) {
        UNROLLED for (size_t i = 0; i < height; i++)
        {
            UNROLLED for (size_t j = 0; j < vectors; j++)
            {
                real_t *const p = t->c + i * t->c_row + j * LANES;
                if (accumulate) sum[i * vectors + j] += vec_load(p);
                vec_store(p, sum[i * vectors + j]);
            }
        }
        return;
    }
    real_t edge[TILE_SUMS * LANES];
    memcpy(edge, sum, height * vectors * sizeof *sum);
    for (size_t i = 0; i < t->m; i++)
        for (size_t j = 0; j < t->n; j++) {
            real_t *const p = t->c + i * t->c_row + j;
            const real_t product = edge[i * vectors * LANES + j];
            *p = accumulate ? *p + product : product;
        }
}

/* c [m, n] (=) or (+=), from panels of m rows of A and n rows of B: a panel of B stays near while those of A pass. */
static void multiply_panels(real_t *c, size_t c_row, const real_t *a, const real_t *b, size_t m, size_t n, size_t depth,
                            bool accumulate, MatmulPrecision precision, Ahead ahead)
{
    const size_t steps = panel_steps(depth, precision);
    const size_t tiles = ceil_div(m, TILE_ROWS), slices = ceil_div(steps, SLICE);
    const size_t all_tiles = tiles * ceil_div(n, TILE_COLUMNS), lines = ahead.runs * (ahead.run / LINE + 1);
    Tile t = {.c_row = c_row,
              .next_b_step = TILE_COLUMNS * sizeof *b / tiles,
              .ahead = &ahead,
              .ahead_lines = lines / (all_tiles * slices) + 1};
    for (size_t j = 0; j < n; j += TILE_COLUMNS, b += TILE_COLUMNS * steps)
        for (size_t i = 0; i < m; i += TILE_ROWS) {
            const real_t *const next_b = b + (j + TILE_COLUMNS < n ? TILE_COLUMNS * steps : 0);
            t.c = c + i * c_row + j, t.m = min_size(TILE_ROWS, m - i), t.n = min_size(TILE_COLUMNS, n - j);
            t.next_b = (const char *)next_b + i / TILE_ROWS * t.next_b_step * steps;
            if (precision == MATMUL_BF16)
                multiply_tile(&t, TILE_ROWS, TILE_VECTORS, a + i * steps, 1, TILE_ROWS, b, steps, accumulate, true);
            else
                multiply_tile(&t, TILE_ROWS, TILE_VECTORS, a + i * steps, 1, TILE_ROWS, b, steps, accumulate, false);
        }
}

/* --- few queries: when one token looks back on the others (decoding), packing what it sees would cost more than the
 * product. It is read in place. */

/* rows x columns dot products along the depth, which is contiguous in both operands. */
ALWAYS_INLINE void dot_tile(real_t *c, size_t c_row, Operand a, Operand b, size_t rows, size_t columns, size_t depth,
                            bool accumulate, bool bf16)
{
    vec_t sum[4][4] = {{{0}}};
    size_t k = 0;
    for (; k + LANES <= depth; k += LANES) {
        vec_t x[4], w[4];
        UNROLLED for (size_t i = 0; i < rows; i++) x[i] = vec_load(a.data + i * a.row + k);
        UNROLLED for (size_t j = 0; j < columns; j++) w[j] = vec_load(b.data + j * b.row + k);
        if (bf16) {
            UNROLLED for (size_t i = 0; i < rows; i++) x[i] = vec_bf16_round(x[i]);
            UNROLLED for (size_t j = 0; j < columns; j++) w[j] = vec_bf16_round(w[j]);
        }
        UNROLLED for (size_t i = 0; i < rows; i++)
        {
            UNROLLED for (size_t j = 0; j < columns; j++) sum[i][j] += x[i] * w[j];
        }
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            real_t total = sum_lanes(sum[i][j]);
            for (size_t t = k; t < depth; t++)
                total += bf16 ? bf16_round(a.data[i * a.row + t]) * bf16_round(b.data[j * b.row + t])
                              : a.data[i * a.row + t] * b.data[j * b.row + t];
            c[i * c_row + j] = accumulate ? c[i * c_row + j] + total : total;
        }
}

/* c (=) or (+=) a · bᵀ where both are contiguous along the depth: 4 rows of B at a time meet all rows of A. */
static void in_place_dot(real_t *c, size_t c_row, Operand a, Operand b, size_t m, size_t n, size_t depth,
                         bool accumulate, bool bf16)
{
    for (size_t j = 0; j < n; j += n - j >= 4 ? 4 : 1)
        for (size_t i = 0; i < m; i += m - i >= 4 ? 4 : 1) {
            const Operand x = {a.data + i * a.row, a.row, 1}, w = {b.data + j * b.row, b.row, 1};
            real_t *const tile = c + i * c_row + j;
            const bool four_rows = m - i >= 4, four_columns = n - j >= 4;
            if (four_rows && four_columns)
                dot_tile(tile, c_row, x, w, 4, 4, depth, accumulate, bf16);
            else if (four_columns)
                dot_tile(tile, c_row, x, w, 1, 4, depth, accumulate, bf16);
            else if (four_rows)
                dot_tile(tile, c_row, x, w, 4, 1, depth, accumulate, bf16);
            else
                dot_tile(tile, c_row, x, w, 1, 1, depth, accumulate, bf16);
        }
}

/* c (=) or (+=) a · bᵀ where the rows of B are neighbours in memory: each row of C is a weighted sum of vectors. */
static void in_place_sum(real_t *c, size_t c_row, Operand a, Operand b, size_t m, size_t n, size_t depth,
                         bool accumulate, bool bf16)
{
    for (size_t i = 0; i < m; i++) {
        const real_t *const weight = a.data + i * a.row;
        real_t *const row = c + i * c_row;
        size_t j = 0;
        for (; j + LANES <= n; j += LANES) {
            vec_t sum = {0};
            if (accumulate) sum = vec_load(row + j);
            for (size_t k = 0; k < depth; k++) {
                const vec_t v = vec_load(b.data + k * b.depth + j);
                sum += bf16 ? bf16_round(weight[k]) * vec_bf16_round(v) : weight[k] * v;
            }
            vec_store(row + j, sum);
        }
        for (; j < n; j++) {
            real_t sum = accumulate ? row[j] : 0;
            for (size_t k = 0; k < depth; k++)
                sum += bf16 ? bf16_round(weight[k]) * bf16_round(b.data[k * b.depth + j])
                            : weight[k] * b.data[k * b.depth + j];
            row[j] = sum;
        }
    }
}

/* --- the product of one block, by one thread: this is what attention uses. A tile reads A one number at a time, so
 * where a block is in the cache anyhow it may as well be read where it lies: packing pays for B, whose numbers are read
 * as vectors. Only the last rows, fewer than a tile has, are packed with zeros below them. */

static void multiply_in_place(real_t *c, size_t c_row, Operand a, const real_t *b, size_t m, size_t n, size_t depth,
                              bool accumulate, real_t *last_rows)
{
    const size_t whole = m / TILE_ROWS * TILE_ROWS;
    Ahead nothing = {0};
    Tile t = {.c_row = c_row, .ahead = &nothing};
    if (whole < m) pack_panels(last_rows, TILE_ROWS, operand_from(a, whole, 0), m - whole, depth, MATMUL_FP32);
    for (size_t j = 0; j < n; j += TILE_COLUMNS, b += TILE_COLUMNS * depth)
        for (size_t i = 0; i < m; i += TILE_ROWS) {
            const real_t *const rows = a.data + i * a.row;
            t.c = c + i * c_row + j, t.m = min_size(TILE_ROWS, m - i), t.n = min_size(TILE_COLUMNS, n - j);
            t.next_b = (const char *)b;
            if (i == whole)
                multiply_tile(&t, TILE_ROWS, TILE_VECTORS, last_rows, 1, TILE_ROWS, b, depth, accumulate, false);
            else if (a.row == 1)
                multiply_tile(&t, TILE_ROWS, TILE_VECTORS, rows, 1, a.depth, b, depth, accumulate, false);
            else
                multiply_tile(&t, TILE_ROWS, TILE_VECTORS, rows, a.row, 1, b, depth, accumulate, false);
        }
}

/* How many reals matmul_block needs to pack its operands. */
static size_t matmul_block_scratch(size_t m, size_t n, size_t depth)
{
    return (round_up(m, TILE_ROWS) + round_up(n, TILE_COLUMNS)) * depth;
}

/* c [m, n] (=) or (+=) a · bᵀ by one thread. In bf16 both operands are packed, for they must come in pairs. */
static void matmul_block(real_t *c, size_t c_row, Operand a, Operand b, size_t m, size_t n, size_t depth,
                         bool accumulate, MatmulPrecision precision, real_t *scratch)
{
    if (m <= FEW_QUERIES && a.depth == 1 && b.depth == 1) {
        in_place_dot(c, c_row, a, b, m, n, depth, accumulate, precision == MATMUL_BF16);
    } else if (m <= FEW_QUERIES && a.depth == 1) {
        in_place_sum(c, c_row, a, b, m, n, depth, accumulate, precision == MATMUL_BF16);
    } else {
        real_t *const b_panels = scratch + round_up(m, TILE_ROWS) * depth;
        pack_panels(b_panels, TILE_COLUMNS, b, n, depth, precision);
        if (precision == MATMUL_FP32) {
            multiply_in_place(c, c_row, a, b_panels, m, n, depth, accumulate, scratch);
            return;
        }
        pack_panels(scratch, TILE_ROWS, a, m, depth, precision);
        multiply_panels(c, c_row, scratch, b_panels, m, n, depth, accumulate, precision, (Ahead){0});
    }
}

/* --- the product of whole matrices, by all threads. */

typedef struct {
    Operand operand;
    size_t rows, width; /* width: of its panels */
} Side;

/* At most `rows` rows of a side, from (row, depth) on. */
static Side side_from(Side from, size_t row, size_t depth, size_t rows)
{
    return (Side){operand_from(from.operand, row, depth), min_size(rows, from.rows - row), from.width};
}

/* One chunk of the streamed side against the held rows, along a stretch of the depth. `next` is the chunk that this
 * thread will probably be given after this one. */
static void multiply_chunk(real_t *c, size_t c_row, Side chunk, Side next, const real_t *held, size_t held_rows,
                           bool hold_b, size_t depth, bool accumulate, MatmulPrecision precision, real_t *scratch)
{
    for (size_t k = 0; k < depth; k += DEPTH_BLOCK) {
        const size_t n = min_size(DEPTH_BLOCK, depth - k), rest = depth - k - n;
        const bool add = accumulate || k > 0;
        const Ahead ahead =
            rest > 0 ? ahead_of(operand_from(chunk.operand, 0, k + n), chunk.rows, min_size(DEPTH_BLOCK, rest))
                     : ahead_of(next.operand, next.rows, min_size(DEPTH_BLOCK, depth));
        pack_panels(scratch, chunk.width, operand_from(chunk.operand, 0, k), chunk.rows, n, precision);
        if (hold_b)
            multiply_panels(c, c_row, scratch, held, chunk.rows, held_rows, n, add, precision, ahead);
        else
            multiply_panels(c, c_row, held, scratch, held_rows, chunk.rows, n, add, precision, ahead);
        held += round_up(held_rows, hold_b ? TILE_COLUMNS : TILE_ROWS) * panel_steps(n, precision);
    }
}

/* c [m, n] (=) or (+=) a · bᵀ. The smaller side is held, the larger streamed in chunks. */
static void matmul(Device *dev, real_t *c, Operand a, Operand b, size_t m, size_t n, size_t depth, bool accumulate)
{
    if (m == 0 || n == 0) return;
    const MatmulPrecision precision = dev->precision;
    const bool hold_b = n <= m;
    const Side side_a = {a, m, TILE_ROWS}, side_b = {b, n, TILE_COLUMNS};
    const Side hold = hold_b ? side_b : side_a, stream = hold_b ? side_a : side_b;
    const int threads = threads_for(dev, m * n * depth);
    const size_t held_rows = min_size(HELD_ROWS, round_up(hold.rows, hold.width));
    const size_t held_depth = HELD_ELEMENTS / held_rows / DEPTH_BLOCK * DEPTH_BLOCK; /* at least one DEPTH_BLOCK */
    /* At least four chunks for each thread, where there are rows enough, but none smaller than a panel. */
    const size_t share = round_up(stream.rows / (4 * (size_t)threads) + 1, stream.width);
    const size_t chunk_rows = min_size(round_up(CHUNK_ROWS, stream.width), share);
    const size_t chunk_elements = round_up(chunk_rows * min_size(depth, DEPTH_BLOCK), 16);
    const size_t held_elements = round_up(held_rows * min_size(depth, held_depth), 16);
    real_t *const held = device_scratch(dev, (held_elements + (size_t)threads * chunk_elements) * sizeof *held);

    /* Every thread runs the two outer loops. The two "omp for" share out their work, and all threads wait at the end of
     * each, so that no panel is read before it is packed, or packed over while another thread reads it. */
#pragma omp parallel num_threads(threads)
    for (size_t k = 0; k < depth; k += held_depth)
        for (size_t h = 0; h < hold.rows; h += held_rows) {
            const size_t rows = min_size(held_rows, hold.rows - h), deep = min_size(held_depth, depth - k);
            const size_t panels = ceil_div(rows, hold.width), blocks = ceil_div(deep, DEPTH_BLOCK);
            const size_t block = panels * hold.width * panel_steps(DEPTH_BLOCK, precision);
#pragma omp for
            for (size_t p = 0; p < panels * blocks; p++) {
                const size_t i = p % panels * hold.width, from = p / panels * DEPTH_BLOCK;
                const size_t n_deep = min_size(DEPTH_BLOCK, deep - from);
                pack_panels(held + p / panels * block + i * panel_steps(n_deep, precision), hold.width,
                            operand_from(hold.operand, h + i, k + from), min_size(hold.width, rows - i), n_deep,
                            precision);
            }
#pragma omp for schedule(dynamic)
            for (size_t s = 0; s < stream.rows; s += chunk_rows) {
                const size_t after = min_size(s + (size_t)threads * chunk_rows, stream.rows);
                const Side chunk = side_from(stream, s, k, chunk_rows), next = side_from(stream, after, k, chunk_rows);
                multiply_chunk(c + (hold_b ? s * n + h : h * n + s), n, chunk, next, held, rows, hold_b, deep,
                               accumulate || k > 0, precision,
                               held + held_elements + (size_t)omp_get_thread_num() * chunk_elements);
            }
        }
}

/* --- few tokens: when one to FEW_ROWS of them meet a large weight (decoding), each weight is used so seldom that
 * packing it would cost more than the product. It is read in place, once, as fast as memory gives it, and transposed in
 * registers: lanes then run along the rows of w, and every sum runs along the depth as that of a tile does, block by
 * block. So a row of y has the same bits however many others there are. FEW_ROWS: rows of x at most. */
#if VECTOR_BYTES == 64
enum { FEW_ROWS = 2 * LANES };
#else
enum { FEW_ROWS = 4 }; /* with shorter vectors the next way is the better one sooner */
#endif
enum { FEW_COLUMNS = LINE / sizeof(real_t) }; /* rows of w at a time; also the numbers in a cache line */

/* Lists of lanes for a shuffle of two vectors, where those of the second count on from those of the first. In lanes
 * whose bit d is set, UPPER takes the second vector's number of d places before and LOWER its own; in the others UPPER
 * takes the first vector's own and LOWER that of d places after. */
#define UPPER(lane, d) ((lane) & (d) ? LANES + (lane) - (d) : (lane))
#define LOWER(lane, d) (((lane) & (d) ? LANES + (lane) : (lane) + (d)) % (2 * LANES))
#define LANES_2(f, lane, d) f(lane, d), f(lane + 1, d)
#define LANES_4(f, lane, d) LANES_2(f, lane, d), LANES_2(f, lane + 2, d)
#define LANES_8(f, lane, d) LANES_4(f, lane, d), LANES_4(f, lane + 4, d)
#define LANES_16(f, lane, d) LANES_8(f, lane, d), LANES_8(f, lane + 8, d)
#if VECTOR_BYTES == 16 && defined PROMOT_DOUBLE
#define ALL_LANES LANES_2
#elif VECTOR_BYTES == 16 || (VECTOR_BYTES == 32 && defined PROMOT_DOUBLE)
#define ALL_LANES LANES_4
#elif VECTOR_BYTES == 32 || defined PROMOT_DOUBLE
#define ALL_LANES LANES_8
#else
#define ALL_LANES LANES_16
#endif

/* Exchanges the d x d blocks beside the diagonal of each 2d x 2d block; nothing where d >= LANES. (The % are for such d
 * only: the loop's body must still compile.) */
#define EXCHANGE(v, d)                                                                                                 \
    UNROLLED for (int i = 0; i < LANES; i++) if ((d) < LANES && !(i & (d)))                                            \
    {                                                                                                                  \
        const vec_t a = v[i], b = v[(i + (d)) % LANES];                                                                \
        v[i] = __builtin_shufflevector(a, b, ALL_LANES(UPPER, 0, d));                                                  \
        v[(i + (d)) % LANES] = __builtin_shufflevector(a, b, ALL_LANES(LOWER, 0, d));                                  \
    }

/* A block of LANES x LANES numbers (Eklundh 1972). */
ALWAYS_INLINE void transpose(vec_t v[LANES])
{
    EXCHANGE(v, 8);
    EXCHANGE(v, 4);
    EXCHANGE(v, 2);
    EXCHANGE(v, 1);
}

/* A sum is a chain of operations, each waiting for the one before: those of four rows go side by side. */
ALWAYS_INLINE void few_rows_chains(vec_t *sum, const real_t *x, size_t x_row, size_t rows, const vec_t *column,
                                   size_t steps, bool bf16)
{
    vec_t total[4];
    UNROLLED for (size_t i = 0; i < rows; i++) total[i] = sum[i];
    UNROLLED for (size_t s = 0; s < steps; s++)
    {
        UNROLLED for (size_t i = 0; i < rows; i++)
        {
            total[i] = multiply_add(total[i], x + i * x_row + s, column[s], bf16);
        }
    }
    UNROLLED for (size_t i = 0; i < rows; i++) sum[i] = total[i];
}

/* sum[i] += row i of x times `deep` columns. */
ALWAYS_INLINE void few_rows_add(vec_t *sum, Operand x, size_t m, vec_t *column, size_t deep, bool bf16)
{
    if (bf16) UNROLLED for (int s = 0; s < LANES / 2; s++) column[s] = vec_bf16_pair(column[2 * s], column[2 * s + 1]);
    const size_t steps = bf16 ? (deep + 1) / 2 : deep;
    size_t i = 0;
    for (; i + 4 <= m; i += 4) few_rows_chains(sum + i, x.data + i * x.row, x.row, 4, column, steps, bf16);
    for (; i < m; i++) few_rows_chains(sum + i, x.data + i * x.row, x.row, 1, column, steps, bf16);
}

/* The first `deep` <= LANES numbers of n <= LANES rows of w, a vector for each place; what is not there is 0. */
ALWAYS_INLINE void load_columns(vec_t column[LANES], Operand w, size_t n, size_t deep)
{
    if (n == LANES && deep == LANES) {
        UNROLLED for (size_t j = 0; j < LANES; j++) column[j] = vec_load(w.data + j * w.row);
        transpose(column);
        return;
    }
    memset(column, 0, LANES * sizeof *column);
    for (size_t j = 0; j < n; j++)
        for (size_t s = 0; s < deep; s++) column[s][j] = w.data[j * w.row + s];
}

/* few_rows_add with the first `deep` <= LANES places of n <= LANES rows of w. The usual `deep` is passed as a constant,
 * so that its loop unrolls. */
ALWAYS_INLINE void few_rows_block(vec_t *sum, Operand x, Operand w, size_t m, size_t n, size_t deep, bool bf16)
{
    vec_t column[LANES];
    load_columns(column, w, n, deep);
    if (deep == LANES)
        few_rows_add(sum, x, m, column, LANES, bf16);
    else
        few_rows_add(sum, x, m, column, deep, bf16);
}

/* y [m, n] (=) x · wᵀ for n <= FEW_COLUMNS rows of w. In bf16 the numbers of x come in pairs. The rows of w that begin
 * `ahead` numbers later will be wanted next; they are fetched in the order of their addresses. */
ALWAYS_INLINE void few_rows_tile(real_t *y, size_t y_row, Operand x, Operand w, size_t m, size_t n, size_t depth,
                                 size_t ahead, bool bf16)
{
    for (size_t start = 0; start < depth; start += DEPTH_BLOCK) {
        const size_t end = min_size(start + DEPTH_BLOCK, depth);
        vec_t sum[FEW_COLUMNS / LANES][FEW_ROWS];
        for (size_t j = 0; j < FEW_COLUMNS / LANES; j++) memset(sum[j], 0, m * sizeof(vec_t));
        for (size_t k = start; k < end; k += LANES) {
            const Operand x_k = operand_from(x, 0, bf16 ? k / 2 : k), w_k = operand_from(w, 0, k);
            if (ahead > 0 && k % FEW_COLUMNS == 0)
                UNROLLED for (size_t j = 0; j < FEW_COLUMNS; j++)
                    __builtin_prefetch(w.data + ahead + (k + j) * FEW_COLUMNS, 0, 2);
            UNROLLED for (size_t j = 0; j < FEW_COLUMNS; j += LANES) if (j < n)
                few_rows_block(sum[j / LANES], x_k, operand_from(w_k, j, 0), m, min_size(LANES, n - j),
                               min_size(LANES, end - k), bf16);
        }
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j += LANES) {
                real_t *const p = y + i * y_row + j;
                vec_t total = sum[j / LANES][i];
                if (start > 0) total += vec_load_some(p, n - j, 0);
                vec_store_some(p, n - j, total);
            }
    }
}

static void few_rows_forward(Device *dev, real_t *y, Operand x, Operand w, size_t rows, size_t in, size_t out)
{
    const bool bf16 = dev->precision == MATMUL_BF16;
    const int threads = threads_for(dev, rows * in * out);
    /* A processor's prefetcher follows one stream in each page of 4 KB. Where rows are shorter than a page, several
     * streams share one, and it must be told what comes next. */
    const size_t ahead = in * sizeof(real_t) < 4096 ? FEW_COLUMNS * in : 0;
    if (bf16) {
        const size_t steps = panel_steps(in, MATMUL_BF16);
        real_t *const pairs = device_scratch(dev, rows * steps * sizeof *pairs);
        for (size_t i = 0; i < rows; i++)
            for (size_t k = 0; k < in; k += 2)
                pairs[i * steps + k / 2] = bf16_pair(x.data[i * in + k], k + 1 < in ? x.data[i * in + k + 1] : 0);
        x = (Operand){pairs, steps, 1};
    }
#pragma omp parallel for num_threads(threads)
    for (size_t j = 0; j < out; j += FEW_COLUMNS) {
        const size_t n = min_size(FEW_COLUMNS, out - j), next = out - j >= 2 * FEW_COLUMNS ? ahead : 0;
        if (bf16)
            few_rows_tile(y + j, out, x, operand_from(w, j, 0), rows, n, in, next, true);
        else
            few_rows_tile(y + j, out, x, operand_from(w, j, 0), rows, n, in, next, false);
    }
}

/* --- more tokens: up to SOME_ROWS of them (the beams of a batch) are too many to meet a weight in registers, and still
 * so few that packing it costs a fifth of the product. So the sides change places. The product is yᵀ = w · xᵀ: x, which
 * is small, is packed, lanes run along its rows, and a tile reads the rows of w where they lie, one number at a time.
 * Tiles have up to three vectors of x, and as many rows of w as then make TILE_SUMS sums. yᵀ is transposed on its way
 * to y. Sums run as in every tile, so the bits are those of the other ways. Not in bf16: a tile wants pairs of both
 * sides, and w would have to be packed after all. */

enum { SOME_ROWS = 6 * LANES, SOME_COLUMNS = 48 }; /* SOME_COLUMNS: rows of w at a time */

/* How many vectors of x the next panel takes when `rows` rows are left. One alone is the least efficient, so 4 are
 * 2 + 2; where panels have at most two, all have two, because a panel must be 4 numbers wide. */
static size_t some_rows_vectors(size_t rows)
{
    const size_t left = ceil_div(rows, LANES);
    if (left == 1 && MOST_VECTORS > 2) return 1;
    return MOST_VECTORS == 2 || left == 2 || left == 4 ? 2 : 3;
}

/* product [n, vectors * LANES] (=) or (+=) w · xᵀ, n <= SOME_COLUMNS, for a panel of x. On the way `lines` of what will
 * be wanted next are fetched. */
ALWAYS_INLINE void some_rows_panel(real_t *product, Operand w, const real_t *panel, size_t n, size_t depth,
                                   size_t vectors, bool accumulate, Ahead *ahead, size_t lines)
{
    /* 8 sums suffice; and where rows of w are whole pages long, those of a tile share a set of the first cache, which
     * on many processors has 8 places. */
    const size_t height = vectors == 1 ? 8 : TILE_SUMS / vectors, tiles = n / height + n % height;
    Tile t = {.c_row = SOME_ROWS,
              .n = vectors * LANES,
              .next_b = (const char *)panel,
              .ahead = ahead,
              .ahead_lines = lines / (tiles * ceil_div(depth, SLICE)) + 1};
    size_t j = 0;
    for (; j + height <= n; j += height) {
        t.c = product + j * SOME_ROWS, t.m = height;
        multiply_tile(&t, height, vectors, w.data + j * w.row, w.row, 1, panel, depth, accumulate, false);
    }
    for (; j < n; j++) {
        t.c = product + j * SOME_ROWS, t.m = 1;
        multiply_tile(&t, 1, vectors, w.data + j * w.row, w.row, 1, panel, depth, accumulate, false);
    }
}

/* y [rows, n] (=) x · wᵀ for n <= SOME_COLUMNS rows of w. The rows from `next` on will be wanted next. */
static void some_rows_columns(real_t *y, size_t y_row, const real_t *panels, Operand w, Operand next, size_t rows,
                              size_t n, size_t depth)
{
    real_t product[SOME_COLUMNS * SOME_ROWS];
    const size_t n_panels = ceil_div(rows, MOST_VECTORS * LANES);
    for (size_t k = 0, deep; k < depth; k += deep) {
        deep = min_size(DEPTH_BLOCK, depth - k);
        const size_t rest = depth - k - deep;
        const Operand w_k = operand_from(w, 0, k);
        Ahead ahead = rest > 0 ? ahead_of(operand_from(w_k, 0, deep), n, min_size(DEPTH_BLOCK, rest))
                               : ahead_of(next, n, min_size(DEPTH_BLOCK, depth));
        const size_t lines = ahead.runs * (ahead.run / LINE + 1) / n_panels;
        for (size_t i = 0, vectors; i < rows; i += vectors * LANES) {
            vectors = some_rows_vectors(rows - i);
            const real_t *const panel = panels + i * depth + k * vectors * LANES;
            if (vectors == 1)
                some_rows_panel(product + i, w_k, panel, n, deep, 1, k > 0, &ahead, lines);
            else if (vectors == 2)
                some_rows_panel(product + i, w_k, panel, n, deep, 2, k > 0, &ahead, lines);
            else
                some_rows_panel(product + i, w_k, panel, n, deep, 3, k > 0, &ahead, lines);
        }
    }
    for (size_t i = 0; i < rows; i += LANES)
        for (size_t j = 0; j < n; j += LANES) {
            vec_t v[LANES]; /* of rows of w behind the last, whatever is there: it is not stored */
            UNROLLED for (size_t s = 0; s < LANES; s++) v[s] = vec_load(product + (j + s) * SOME_ROWS + i);
            transpose(v);
            for (size_t r = 0; r < min_size(LANES, rows - i); r++) vec_store_some(y + (i + r) * y_row + j, n - j, v[r]);
        }
}

static void some_rows_forward(Device *dev, real_t *y, Operand x, Operand w, size_t rows, size_t in, size_t out)
{
    const int threads = threads_for(dev, rows * in * out);
    /* + LANES: where all panels have two vectors, the last one may have one too many */
    real_t *const panels = device_scratch(dev, (round_up(rows, LANES) + LANES) * in * sizeof *panels);
    for (size_t i = 0, width; i < rows; i += width) {
        width = some_rows_vectors(rows - i) * LANES;
        pack_panel(panels + i * in, width, operand_from(x, i, 0), min_size(width, rows - i), in, MATMUL_FP32);
    }
#pragma omp parallel for num_threads(threads) schedule(guided)
    for (size_t j = 0; j < out; j += SOME_COLUMNS) {
        const size_t n = min_size(SOME_COLUMNS, out - j), after = min_size(j + n, out - n);
        some_rows_columns(y + j, out, panels, operand_from(w, j, 0), operand_from(w, after, 0), rows, n, in);
    }
}

/* y [rows, out] (=) x [rows, in] · w [out, in]ᵀ. */
void linear_forward(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out)
{
    const Operand a = {x, in, 1}, b = {w, in, 1};
    if (rows <= FEW_ROWS)
        few_rows_forward(dev, y, a, b, rows, in, out);
    else if (rows <= SOME_ROWS && dev->precision == MATMUL_FP32)
        some_rows_forward(dev, y, a, b, rows, in, out);
    else
        matmul(dev, y, a, b, rows, out, in, false);
}

/* y = x · wᵀ is linear in x: dx [rows, in] = dy [rows, out] · w [out, in]. */
void linear_backward_input(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                           size_t out, bool accumulate)
{
    matmul(dev, dx, (Operand){dy, out, 1}, (Operand){w, 1, in}, rows, in, out, accumulate);
}

/* … and in w: dw [out, in] = dyᵀ [out, rows] · x [rows, in]. */
void linear_backward_weight(Device *dev, stat_t *dw, const act_t *dy, const act_t *x, size_t rows, size_t in,
                            size_t out, bool accumulate)
{
    matmul(dev, dw, (Operand){dy, 1, out}, (Operand){x, 1, in}, out, in, rows, accumulate);
}

void linear_forward_layers(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out,
                           size_t layers, size_t w_stride, size_t y_stride)
{
    for (size_t l = 0; l < layers; l++) linear_forward(dev, y + l * y_stride, x, w + l * w_stride, rows, in, out);
}

void linear_backward_input_layers(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                                  size_t out, size_t layers, size_t w_stride, size_t dy_stride)
{
    for (size_t l = layers; l-- > 0;) /* in the order of a backward pass */
        linear_backward_input(dev, dx, dy + l * dy_stride, w + l * w_stride, rows, in, out, l + 1 < layers);
}

void head_forward(Device *dev, logit_t *logits, const act_t *x, const weight_t *w, size_t rows, size_t in,
                  size_t vocabulary)
{
    linear_forward(dev, logits, x, w, rows, in, vocabulary);
}

void head_top_log_probabilities(Device *dev, stat_t *logp, int32_t *word, logit_t *logits, const act_t *x,
                                const weight_t *w, size_t rows, size_t in, size_t vocabulary, size_t k)
{
    head_forward(dev, logits, x, w, rows, in, vocabulary);
    top_log_probabilities(dev, logp, word, logits, rows, vocabulary, k);
}

/* Kernels that a card can do in one go. Here they are a product and what follows it, one call after the other. */
void linear_residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *y, const weight_t *w, act_t *scratch,
                             const Sequences *seqs, size_t in, size_t width, const Dropout *dropout)
{
    linear_forward(dev, scratch, y, w, seqs->rows, in, width);
    residual_forward(dev, out, x, scratch, seqs, width, dropout);
}

void linear_mlp_forward(Device *dev, MlpKind kind, act_t *h, act_t *a, const act_t *x, const weight_t *w,
                        const Sequences *seqs, size_t in, size_t d_ff, const Dropout *dropout)
{
    linear_forward(dev, a, x, w, seqs->rows, in, kind == MLP_GATED_GELU ? 2 * d_ff : d_ff);
    mlp_activation_forward(dev, kind, h, a, seqs, d_ff, dropout);
}

void linear_mlp_backward(Device *dev, MlpKind kind, act_t *da, act_t *dh, act_t *h, const act_t *dy, const weight_t *w,
                         const act_t *a, const Sequences *seqs, size_t out, size_t d_ff, const Dropout *dropout)
{
    linear_backward_input(dev, dh, dy, w, seqs->rows, d_ff, out, false);
    mlp_activation_backward(dev, kind, da, dh, a, seqs, d_ff, dropout);
    if (h) mlp_activation_forward(dev, kind, h, a, seqs, d_ff, dropout);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The best word of each row, from a sketch of the head: the exact arg-max for a quarter of the bytes.
 *
 * Greedy decoding asks V logits for one thing only, where the largest is, and with few rows its time is that of reading
 * the head. So the head is kept once more in 8 bits, w_v = step_v q_v + a rest r_v, and x·w_v lies between
 *
 *     step_v (x·q_v) - |x| |r_v|   and   step_v (x·q_v) + |x| |r_v|                              (Cauchy and Schwarz).
 *
 * A word whose upper bound is below the largest of all lower bounds is not the best one. The blocks of words that have
 * others get their logits, summed as head_forward sums them. The bounds hold for numbers as they are computed, too:
 * error_v is |r_v| and what rounding can do to both sums (Higham 2002, "Accuracy and Stability of Numerical
 * Algorithms", section 3.1: a sum of n products errs by at most n u of the sum of their sizes, in whatever order, to
 * first order in the unit roundoff u).
 *
 * Four numbers of a word share a 32-bit lane, and with many rows unpacking them would cost more than reading them. So
 * number k is read by shifting its byte to the top, and the bytes below it, which come along, are no error: they are
 * a fraction of its unit that was known when the byte was chosen. With q0 … q3 from the lowest byte up, the lane gives
 *
 *     q0,   q1 + q0 / 256,   q2 + q1 / 256 + q0 / 256²,   q3 + q2 / 256 + q1 / 256² + q0 / 256³
 *
 * (q0 … q2 without a sign where they are fractions), all times SKETCH_UNIT, by which step_v is divided. */
enum {
    SKETCH_VECTORS = 3,
    SKETCH_WORDS = SKETCH_VECTORS * LANES, /* a block: words side by side */
    SKETCH_GROUP = 4,                      /* numbers of the depth in one 32-bit lane, the first in the lowest byte */
    SKETCH_UNIT = 1 << 24,                 /* what 1 in the highest byte of a lane counts */
    SKETCH_ROWS = 4,                       /* of x that meet a number of the head as soon as it is unpacked */
    SKETCH_BLOCKS = 64,                    /* a row that has more candidates than these blocks gets all its logits */
};
typedef int32_t lanes_t __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));
typedef uint32_t unsigned_lanes_t __attribute__((vector_size(LANES * sizeof(uint32_t))));
/* Limits of a step and of |x| that no model comes near. Within them no sum overflows, and no step is so small that the
 * error bounds underflow to 0. */
static const real_t SKETCH_SMALLEST = (real_t)1e-20, SKETCH_LARGEST = (real_t)1e15;
static const double UNIT_ROUNDOFF = (sizeof(real_t) == sizeof(double) ? DBL_EPSILON : FLT_EPSILON) / 2;

struct HeadSketch {
    lanes_t *q;           /* [blocks, groups, SKETCH_VECTORS] */
    real_t *step, *error; /* [blocks * SKETCH_WORDS]; error: infinity of a word that is always a candidate, and
                           * -infinity of one that is not there, which no bound then speaks of */
    size_t vocabulary, blocks, groups;
};

static void sketch_layout(HeadSketch *s, char *memory, size_t *bytes, size_t vocabulary, size_t in)
{
    s->vocabulary = vocabulary;
    s->blocks = ceil_div(vocabulary, SKETCH_WORDS);
    s->groups = round_up(in, max_size(LANES, SKETCH_GROUP)) / SKETCH_GROUP;
    const size_t q = s->blocks * s->groups * SKETCH_VECTORS * sizeof *s->q, words = s->blocks * SKETCH_WORDS;
    *bytes = q + 2 * words * sizeof(real_t);
    if (!memory) return;
    s->q = (lanes_t *)memory;
    s->step = (real_t *)(memory + q);
    s->error = s->step + words;
}

/* Step and error of n <= LANES words, rows of w, whose 8 bits go to q, a vector for each group. Where its numbers are
 * not finite or too large, a word's are 0 and infinity; where there is no word, 0 and -infinity. Sizes are counted in
 * steps, so that no square is too small or too large. */
static void sketch_words(lanes_t *q, real_t *step, real_t *error, Operand w, size_t n, size_t in, size_t groups)
{
    const double rounding = UNIT_ROUNDOFF * (double)(in + 8); /* 8: of the few operations before and behind a sum */
    const vec_t half = vec_set((real_t)0.5);
    vec_t inverse = {0}, squares = {0}, rest = {0};
    lanes_t packed = {0};
    for (size_t j = 0; j < LANES; j++) {
        const real_t largest = j < n ? largest_magnitude(w.data + j * w.row, in) : 0;
        step[j] = largest > SKETCH_SMALLEST ? largest / INT8_MAX : SKETCH_SMALLEST;
        inverse[j] = 1 / step[j];
    }
    for (size_t k = 0; k < groups * SKETCH_GROUP; k += LANES) {
        vec_t column[LANES];
        load_columns(column, operand_from(w, 0, k), n, in > k ? min_size(LANES, in - k) : 0);
        UNROLLED for (size_t c = 0; c < LANES; c++)
        {
            const size_t place = (k + c) % SKETCH_GROUP;
            const vec_t scaled = column[c] * inverse, number = vec_select(scaled == scaled, scaled, vec_set(0));
            const vec_t fraction = __builtin_convertvector(packed, vec_t) / (real_t)(1 << 8 * place);
            const vec_t whole = number - fraction; /* from -128 to 127 */
            const lanes_t nearest = __builtin_convertvector(whole + vec_select(whole < 0, -half, half), lanes_t);
            const vec_t left = whole - __builtin_convertvector(nearest, vec_t);
            squares += scaled * scaled; /* NaN, if one of the numbers is infinite or NaN */
            rest += left * left;
            packed |= (nearest & 0xff) << 8 * place;
            if (place < SKETCH_GROUP - 1) continue;
            q[(k + c) / SKETCH_GROUP * SKETCH_VECTORS] = packed;
            packed = (lanes_t){0};
        }
    }
    for (size_t j = 0; j < LANES; j++) {
        const double length = sqrt((double)squares[j]), left = sqrt((double)rest[j]);
        /* 4: twice what the two sums can err by. The rest covers the rounding of `whole`. The last term is for a word
         * of subnormal numbers, whose squares are lost. */
        const double bound =
            (double)step[j] * (left + 4 * rounding * (length + left)) + (double)FLT_MIN * sqrt((double)in);
        const bool useful = j < n && isfinite(length) && step[j] < SKETCH_LARGEST;
        error[j] = useful ? (real_t)bound : j < n ? INFINITY : -INFINITY;
        step[j] = useful ? step[j] / SKETCH_UNIT : 0;
    }
}

HeadSketch *head_sketch_create(Device *dev, const weight_t *w, size_t in, size_t vocabulary)
{
    HeadSketch *s = dev->precision == MATMUL_FP32 ? calloc(1, sizeof *s) : NULL;
    size_t bytes = s ? head_sketch_bytes(in, vocabulary) : 0;
    char *memory = s ? device_alloc(bytes) : NULL;
    if (!memory) {
        free(s);
        return NULL;
    }
    sketch_layout(s, memory, &bytes, vocabulary, in);
#pragma omp parallel for num_threads(dev->threads)
    for (size_t word = 0; word < s->blocks * SKETCH_WORDS; word += LANES) {
        const size_t n = word < vocabulary ? min_size(LANES, vocabulary - word) : 0;
        const Operand rows = {w + (n ? word : 0) * in, in, 1};
        sketch_words(s->q + word / SKETCH_WORDS * s->groups * SKETCH_VECTORS + word % SKETCH_WORDS / LANES,
                     s->step + word, s->error + word, rows, n, in, s->groups);
    }
    return s;
}

size_t head_sketch_bytes(size_t in, size_t vocabulary)
{
    HeadSketch s;
    size_t bytes;
    sketch_layout(&s, NULL, &bytes, vocabulary, in);
    return bytes;
}

void head_sketch_free(HeadSketch *s)
{
    if (!s) return;
    device_free(s->q);
    free(s);
}

/* sum [rows, SKETCH_WORDS] (=) x · q, for so many rows of x, each `depth` long; in SKETCH_UNITs. */
ALWAYS_INLINE void sketch_tile(vec_t sum[SKETCH_ROWS][SKETCH_VECTORS], const real_t *x, size_t depth, const lanes_t *q,
                               size_t rows)
{
    vec_t total[SKETCH_ROWS][SKETCH_VECTORS] = {{{0}}};
    for (size_t g = 0; g < depth; g += SKETCH_GROUP, q += SKETCH_VECTORS, x += SKETCH_GROUP)
        UNROLLED for (size_t k = 0; k < SKETCH_GROUP; k++)
        {
            vec_t column[SKETCH_VECTORS];
            UNROLLED for (size_t v = 0; v < SKETCH_VECTORS; v++)
            {
                const lanes_t on_top = (lanes_t)((unsigned_lanes_t)q[v] << 8 * (SKETCH_GROUP - 1 - k));
                column[v] = __builtin_convertvector(on_top, vec_t);
                IN_REGISTER(column[v]);
            }
            UNROLLED for (size_t i = 0; i < rows; i++) UNROLLED for (size_t v = 0; v < SKETCH_VECTORS; v++)
            {
                total[i][v] += x[i * depth + k] * column[v];
                IN_REGISTER(total[i][v]); /* gcc would put some of them into memory between two steps */
            }
        }
    UNROLLED for (size_t i = 0; i < rows; i++) UNROLLED for (size_t v = 0; v < SKETCH_VECTORS; v++) sum[i][v] =
        total[i][v];
}

/* What bounds the logits of one block: upper and lower [rows, blocks] (=), the largest of its words' upper bounds and
 * of their lower ones. x [rows, padded depth], length [rows] = |x|. */
static void sketch_block(const HeadSketch *s, size_t block, real_t *upper, real_t *lower, const real_t *x,
                         const real_t *length, size_t rows)
{
    const size_t depth = s->groups * SKETCH_GROUP, first = block * SKETCH_WORDS;
    const lanes_t *const q = s->q + block * s->groups * SKETCH_VECTORS;
    for (size_t row = 0, n; row < rows; row += n) {
        vec_t sum[SKETCH_ROWS][SKETCH_VECTORS];
        n = rows - row >= SKETCH_ROWS ? SKETCH_ROWS : rows - row >= 2 ? 2 : 1;
        if (n == SKETCH_ROWS)
            sketch_tile(sum, x + row * depth, depth, q, SKETCH_ROWS);
        else if (n == 2)
            sketch_tile(sum, x + row * depth, depth, q, 2);
        else
            sketch_tile(sum, x + row * depth, depth, q, 1);
        for (size_t i = 0; i < n; i++) {
            vec_t high = vec_set(-INFINITY), low = high;
            for (size_t v = 0; v < SKETCH_VECTORS; v++) {
                const vec_t logit = sum[i][v] * vec_load(s->step + first + v * LANES);
                /* + FLT_MIN: a product that underflows has an error that is not relative to its size */
                const vec_t error = vec_load(s->error + first + v * LANES) * length[row + i] + (real_t)FLT_MIN;
                const vec_t bound = logit + error, other = logit - error;
                high = vec_max(bound, high);
                low = vec_max(vec_select(other < bound, other, bound), low); /* no word: -infinity, not +infinity */
            }
            upper[(row + i) * s->blocks + block] = max_lanes(high);
            lower[(row + i) * s->blocks + block] = max_lanes(low);
        }
    }
}

/* The first of the largest logits among the words of the blocks whose upper bound reaches `floor`. -1: they are too
 * many, or a logit is not a number. */
static int32_t best_candidate(const real_t *upper, real_t floor, const act_t *x, const weight_t *w, size_t in,
                              const HeadSketch *s)
{
    const Operand row = {x, in, 1};
    size_t candidates = 0;
    int32_t word = -1;
    real_t best = 0;
    for (size_t block = 0; block < s->blocks; block++) {
        if (upper[block] < floor) continue;
        if (++candidates > SKETCH_BLOCKS) return -1;
        const size_t end = min_size((block + 1) * SKETCH_WORDS, s->vocabulary);
        for (size_t first = block * SKETCH_WORDS, n; first < end; first += n) {
            real_t logits[FEW_COLUMNS];
            n = min_size(FEW_COLUMNS, end - first);
            few_rows_tile(logits, FEW_COLUMNS, row, (Operand){w + first * in, in, 1}, 1, n, in, 0, false);
            for (size_t j = 0; j < n; j++) {
                if (!isfinite(logits[j])) return -1;
                if (word < 0 || logits[j] > best) best = logits[j], word = (int32_t)(first + j);
            }
        }
    }
    return word;
}

void best_words(Device *dev, int32_t *word, const act_t *x, const weight_t *w, const HeadSketch *s, size_t rows,
                size_t in)
{
    const size_t depth = s->groups * SKETCH_GROUP;
    real_t *const upper = device_scratch(dev, rows * (2 * s->blocks + depth + 1) * sizeof *upper);
    real_t *const lower = upper + rows * s->blocks, *const padded = lower + rows * s->blocks;
    real_t *const length = padded + rows * depth;
    for (size_t row = 0; row < rows; row++) {
        double squares = 0;
        for (size_t k = 0; k < depth; k++) {
            const real_t number = k < in ? x[row * in + k] : 0;
            padded[row * depth + k] = number;
            squares += (double)number * (double)number;
        }
        /* A little longer than it is, for what follows is rounded; and never 0, for that times infinity is NaN. */
        length[row] = (real_t)(sqrt(squares) * (1 + 8 * UNIT_ROUNDOFF)) + (real_t)FLT_MIN;
    }
#pragma omp parallel for num_threads(dev->threads)
    for (size_t b = 0; b < s->blocks; b++) sketch_block(s, b, upper, lower, padded, length, rows);
#pragma omp parallel for num_threads(dev->threads)
    for (size_t row = 0; row < rows; row++) {
        const real_t floor = max_of(lower + row * s->blocks, s->blocks);
        const bool told = length[row] < SKETCH_LARGEST && isfinite(floor);
        word[row] = told ? best_candidate(upper + row * s->blocks, floor, x + row * in, w, in, s) : -1;
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * LoRA (Hu et al. 2021): w = base + scale * b · a. The products are thin, `rank` deep or wide, and read and write their
 * operands in place; always in fp32, for w is what a merged model is saved as. */
void lora_merge_forward(Device *dev, weight_t *w, const weight_t *base, const weight_t *a, const weight_t *b,
                        size_t rows, size_t columns, size_t rank, float scale)
{
#pragma omp parallel for num_threads(dev->threads)
    for (size_t row = 0; row < rows; row++) {
        const weight_t *from = base + row * columns;
        weight_t *to = w + row * columns;
        in_place_sum(to, columns, (Operand){b + row * rank, rank, 1}, (Operand){a, 1, columns}, 1, columns, rank, false,
                     false);
#pragma omp simd
        for (size_t c = 0; c < columns; c++) to[c] = from[c] + scale * to[c];
    }
}

enum { LORA_TILE = 4 }; /* rows of a, and vectors of columns: 16 sums, which stay in registers where there are 32 */

/* Some columns of four rows of da: da(k, c) += sum over rows of b(row, k) dw(row, c). b [rows, b_row] is padded with
 * zeros to full tiles; n: columns that are left, `ranks`: rows of da that are left. */
ALWAYS_INLINE void lora_tile(stat_t *da, const stat_t *dw, const real_t *b, size_t b_row, size_t rows, size_t columns,
                             size_t n, size_t ranks, bool whole)
{
    vec_t sum[LORA_TILE][LORA_TILE] = {{{0}}};
    for (size_t row = 0; row < rows; row++, dw += columns, b += b_row) {
        vec_t g[LORA_TILE];
        UNROLLED for (size_t v = 0; v < LORA_TILE; v++)
        {
            const size_t at = v * LANES;
            g[v] = whole ? vec_load(dw + at) : at < n ? vec_load_some(dw + at, n - at, 0) : vec_set(0);
        }
        UNROLLED for (size_t k = 0; k < LORA_TILE; k++)
        {
            UNROLLED for (size_t v = 0; v < LORA_TILE; v++) sum[k][v] += b[k] * g[v];
        }
    }
    for (size_t k = 0; k < min_size(ranks, LORA_TILE); k++)
        for (size_t c = 0; c < min_size(n, LORA_TILE * LANES); c += LANES) {
            stat_t *to = da + k * columns + c;
            vec_store_some(to, n - c, vec_load_some(to, n - c, 0) + sum[k][c / LANES]);
        }
}

/* da += scale * bᵀ · dw, where each thread owns columns; db += scale * dw · aᵀ, where each owns rows. */
void lora_backward(Device *dev, stat_t *da, stat_t *db, const stat_t *dw, const weight_t *a, const weight_t *b,
                   size_t rows, size_t columns, size_t rank, float scale)
{
    enum { WIDTH = LORA_TILE * LANES, RANKS = 64 };
    const size_t padded = round_up(rank, LORA_TILE);
    real_t *scaled = device_scratch(dev, rows * padded * sizeof *scaled); /* scale * b, and zeros */
#pragma omp parallel num_threads(dev->threads)
    {
#pragma omp for
        for (size_t row = 0; row < rows; row++)
            for (size_t k = 0; k < padded; k++) scaled[row * padded + k] = k < rank ? scale * b[row * rank + k] : 0;
#pragma omp for nowait
        for (size_t c = 0; c < columns; c += WIDTH)
            for (size_t k = 0; k < rank; k += LORA_TILE) {
                stat_t *to = da + k * columns + c;
                if (columns - c >= WIDTH)
                    lora_tile(to, dw + c, scaled + k, padded, rows, columns, columns - c, rank - k, true);
                else
                    lora_tile(to, dw + c, scaled + k, padded, rows, columns, columns - c, rank - k, false);
            }
#pragma omp for
        for (size_t row = 0; row < rows; row += FEW_ROWS) {
            const size_t n = min_size(FEW_ROWS, rows - row);
            const Operand from = {dw + row * columns, columns, 1};
            for (size_t k = 0; k < rank; k += RANKS) {
                const size_t ranks = min_size(RANKS, rank - k);
                real_t product[FEW_ROWS * RANKS];
                in_place_dot(product, ranks, from, (Operand){a + k * columns, columns, 1}, n, ranks, columns, false,
                             false);
                for (size_t i = 0; i < n * ranks; i++)
                    db[(row + i / ranks) * rank + k + i % ranks] += scale * product[i];
            }
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Attention
 *
 * For each head: S = q · kᵀ + bias, P = softmax(S) over the keys, P' = dropout(P), out = P' · v. T5's bias depends on
 * the distance key place - query place only, and its softmax has no 1/sqrt(d_kv).
 *
 * S is never whole in memory. It is made in blocks of queries x keys that fit in the cache, and the softmax is computed
 * online (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention"): with each block of keys a row's maximum m
 * and its sum l of exp(S - m) are brought up to date, and what has been collected of `out` under the old maximum is
 * multiplied by exp(m_old - m_new). The forward pass keeps only L = m + log(l), the logsumexp of each row; the backward
 * pass computes S again and has P = exp(S - L) at once.
 *
 * One task is one head of one sequence. It writes nothing that another task writes, so tasks may run in any order. */

enum {
    BLOCK = 192,                   /* queries and keys of a block; a multiple of both panel widths and of LANES */
    DISTANCES = 2 * BLOCK + LANES, /* that occur within a block; vectors may read past the end */
};
static const real_t MASKED =
    (real_t)-1e30; /* a score whose exponential is 0; finite, because infinity - infinity is not */

/* What one thread works on; independent of the length of the sequences. */
typedef struct {
    real_t *scores, *dscores; /* [BLOCK, BLOCK] */
    real_t *keep;             /* [BLOCK]: dropout's factors of one row */
    real_t *bias, *dbias;     /* [DISTANCES], see block_bias */
    real_t *max, *sum;        /* [BLOCK], of the rows */
    real_t *k, *v;            /* [BLOCK, d_kv]: of keys that lie scattered; or dk and dv of a block of keys */
    real_t *panels;           /* for matmul_block */
} AttentionScratch;

static size_t attention_scratch_size(size_t d_kv)
{
    const size_t wide = d_kv > BLOCK ? d_kv : BLOCK;
    const size_t panels = matmul_block_scratch(BLOCK, wide, wide);
    return round_up(2 * BLOCK * BLOCK + 3 * BLOCK + 2 * DISTANCES + 2 * BLOCK * d_kv + panels, 16);
}

static AttentionScratch attention_scratch(real_t *memory, size_t d_kv)
{
    AttentionScratch s;
    s.scores = memory;
    s.dscores = s.scores + BLOCK * BLOCK;
    s.keep = s.dscores + BLOCK * BLOCK;
    s.max = s.keep + BLOCK;
    s.sum = s.max + BLOCK;
    s.bias = s.sum + BLOCK;
    s.dbias = s.bias + DISTANCES;
    s.k = s.dbias + DISTANCES;
    s.v = s.k + BLOCK * d_kv;
    s.panels = s.v + BLOCK * d_kv;
    return s;
}

/* One head of one sequence. */
typedef struct {
    const Attention *attention;
    size_t sequence, head;
    size_t queries, keys;          /* how many */
    size_t first_query, first_key; /* rows of the packed matrices */
} AttentionTask;

static AttentionTask attention_task(const Attention *at, size_t task)
{
    const size_t b = task / at->heads;
    return (AttentionTask){.attention = at,
                           .sequence = b,
                           .head = task % at->heads,
                           .queries = (size_t)at->queries.length[b],
                           .keys = (size_t)at->keys.length[b],
                           .first_query = (size_t)at->queries.start[b],
                           .first_key = (size_t)at->keys.start[b]};
}

/* A block of a task: queries q … q + rows - 1 against keys k … k + columns - 1. */
typedef struct {
    size_t q, rows, k, columns;
} AttentionBlock;

/* The keys of the block that its query number i may see: all of them, or those at or before its place. */
static size_t visible_keys(const Attention *at, const AttentionBlock *block, size_t i)
{
    if (!at->causal || block->q + i >= block->k + block->columns) return block->columns;
    return block->q + i >= block->k ? block->q + i - block->k + 1 : 0;
}

/* Spreads the bias table over the distances within a block, once for its rows x columns scores: the bias of (i, j) is
 * bias[rows - 1 - i + j], so that each row reads a stretch of neighbours. */
static void block_bias(real_t *bias, const AttentionTask *task, const AttentionBlock *block)
{
    const Attention *const at = task->attention;
    const ptrdiff_t first = (ptrdiff_t)block->k - (ptrdiff_t)(block->q + block->rows - 1);
    for (size_t t = 0; t < DISTANCES; t++) {
        const bool exists = at->bias_table && t < block->rows + block->columns - 1;
        bias[t] = exists ? at->bias_table[(size_t)at->bucket[first + (ptrdiff_t)t] * at->heads + task->head] : 0;
    }
}

static bool dropping(const Attention *at)
{
    return at->dropout.rate > 0;
}

/* Dropout's factors of query i of a block. When all queries share one mask, it is made for the first of them only. */
static void block_keep(real_t *keep, const AttentionTask *task, const AttentionBlock *block, size_t i)
{
    const Attention *const at = task->attention;
    const Dropout *const d = &at->dropout;
    if (d->shared && i > 0) return;
    dropout_row(keep, d, d->site + (uint32_t)task->head, (uint32_t)(at->queries.first_example + task->sequence),
                (uint32_t)(block->q + i), block->k, block->columns);
}

/* One row of scores becomes exp(s + bias - m), zero beyond the `visible` keys; m and l are brought up to date. Returns
 * exp(m_old - m_new), the factor for everything that was summed under the old maximum. */
static real_t softmax_row(real_t *s, const real_t *bias, size_t visible, size_t columns, real_t *m, real_t *l)
{
    const size_t end = round_up(visible, LANES);
    vec_t max = vec_set(*m), sum = {0};
    for (size_t j = visible; j < end; j++) s[j] = MASKED;
    for (size_t j = 0; j < end; j += LANES) {
        const vec_t biased = vec_load(s + j) + vec_load(bias + j);
        vec_store(s + j, biased);
        max = vec_select(biased > max, biased, max);
    }
    const real_t new_max = max_of((const real_t *)&max, LANES);
    for (size_t j = 0; j < end; j += LANES) {
        const vec_t p = vec_exp(vec_load(s + j) - new_max);
        vec_store(s + j, p);
        sum += p;
    }
    if (end < columns) memset(s + end, 0, (columns - end) * sizeof *s);
    const real_t factor = vec_exp(vec_set(*m - new_max))[0];
    *l = *l * factor + sum_lanes(sum);
    *m = new_max;
    return factor;
}

/* s *= factor */
static void scale_row(real_t *s, real_t factor, size_t n)
{
    for (size_t j = 0; j < n; j++) s[j] *= factor;
}

/* All keys for the queries of one block: out [rows, d_kv] (=). */
static void attention_forward_queries(real_t *out, stat_t *logsumexp, const AttentionTask *task, AttentionBlock block,
                                      MatmulPrecision precision, AttentionScratch *scratch)
{
    const Attention *const at = task->attention;
    const size_t d = at->d_kv, width = at->heads * d, column = task->head * d;
    const Operand q = {at->q + (task->first_query + block.q) * at->q_stride + column, at->q_stride, 1};
    for (size_t i = 0; i < block.rows; i++) scratch->max[i] = MASKED, scratch->sum[i] = 0;
    for (block.k = 0; block.k < task->keys; block.k += BLOCK) {
        if (at->causal && block.k >= block.q + block.rows) break; /* nobody here sees these keys or later ones */
        block.columns = min_size(BLOCK, task->keys - block.k);
        const size_t offset = (task->first_key + block.k) * at->kv_stride + column;
        const Operand k = {at->k + offset, at->kv_stride, 1}, vT = {at->v + offset, 1, at->kv_stride};
        matmul_block(scratch->scores, BLOCK, q, k, block.rows, block.columns, d, false, precision, scratch->panels);
        block_bias(scratch->bias, task, &block);
        for (size_t i = 0; i < block.rows; i++) {
            real_t *const row = scratch->scores + i * BLOCK;
            const real_t factor = softmax_row(row, scratch->bias + block.rows - 1 - i, visible_keys(at, &block, i),
                                              block.columns, &scratch->max[i], &scratch->sum[i]);
            if (block.k > 0) scale_row(out + i * width, factor, d);
            if (!dropping(at)) continue;
            block_keep(scratch->keep, task, &block, i); /* after the sum: dropout acts on probabilities */
            for (size_t j = 0; j < block.columns; j++) row[j] *= scratch->keep[j];
        }
        const Operand p = {scratch->scores, BLOCK, 1};
        matmul_block(out, width, p, vT, block.rows, d, block.columns, block.k > 0, precision, scratch->panels);
    }
    for (size_t i = 0; i < block.rows; i++) {
        scale_row(out + i * width, 1 / scratch->sum[i], d);
        logsumexp[i] = scratch->max[i] + (real_t)log((double)scratch->sum[i]);
    }
}

void attention_forward(Device *dev, act_t *out, stat_t *logsumexp, const Attention *at)
{
    const size_t tasks = at->queries.count * at->heads, width = at->heads * at->d_kv;
    const size_t size = attention_scratch_size(at->d_kv);
    real_t *const memory = device_scratch(dev, (size_t)dev->threads * size * sizeof *memory);
#pragma omp parallel for schedule(dynamic) num_threads(dev->threads)
    for (size_t t = 0; t < tasks; t++) {
        const AttentionTask task = attention_task(at, t);
        AttentionScratch scratch = attention_scratch(memory + (size_t)omp_get_thread_num() * size, at->d_kv);
        for (size_t q = 0; q < task.queries; q += BLOCK) {
            const AttentionBlock block = {.q = q, .rows = min_size(BLOCK, task.queries - q)};
            const size_t row = task.first_query + q;
            attention_forward_queries(out + row * width + task.head * at->d_kv,
                                      logsumexp + task.head * at->queries.rows + row, &task, block, dev->precision,
                                      &scratch);
        }
    }
}

/* --- backward. With P' = P * keep (dropout's factors, 0 or 1/(1 - rate)) and dO the gradient of out = P' · v:
 *
 *     dv = P'ᵀ · dO        dP = keep * (dO · vᵀ)
 *     dS = P * (dP - D),   D_i = sum over j of P_ij dP_ij = sum over j of P'_ij (dO_i · v_j) = dO_i · out_i
 *     dq = dS · k          dk = dSᵀ · q          dbias[bucket(j - i)] += dS_ij
 *
 * D needs no pass over the keys. Blocks of keys are the outer loop, so that dk and dv are finished one after another
 * and written when nobody needs the block's k and v any more; dq is collected over them. */

/* The tensors of a backward pass, as one task sees them. */
typedef struct {
    act_t *dq, *dk, *dv;
    const act_t *dout, *out;
    const stat_t *logsumexp;
    stat_t *dbias; /* [tasks, buckets], each task its own, or NULL */
} AttentionGradients;

/* Row i of a block: scores become P', dscores (dO · vᵀ) become dS. */
static void softmax_row_backward(real_t *s, real_t *ds, const real_t *bias, const real_t *keep, size_t visible,
                                 size_t columns, real_t logsumexp, real_t d)
{
    const size_t end = round_up(visible, LANES);
    for (size_t j = visible; j < end; j++) s[j] = MASKED;
    for (size_t j = visible; j < end; j++) ds[j] = 0;
    for (size_t j = 0; j < end; j += LANES) {
        const vec_t p = vec_exp(vec_load(s + j) + vec_load(bias + j) - logsumexp);
        vec_t dropped = p, dp = vec_load(ds + j);
        if (keep) {
            dropped *= vec_load(keep + j);
            dp *= vec_load(keep + j);
        }
        vec_store(s + j, dropped);
        vec_store(ds + j, p * (dp - d));
    }
    if (end >= columns) return;
    memset(s + end, 0, (columns - end) * sizeof *s);
    memset(ds + end, 0, (columns - end) * sizeof *ds);
}

/* Adds the block's dS to the buckets: first along each distance, as vectors, then each distance to its bucket. */
static void bias_backward(stat_t *dbias, const AttentionTask *task, const AttentionBlock *block,
                          AttentionScratch *scratch)
{
    const ptrdiff_t first = (ptrdiff_t)block->k - (ptrdiff_t)(block->q + block->rows - 1);
    memset(scratch->dbias, 0, DISTANCES * sizeof *scratch->dbias);
    for (size_t i = 0; i < block->rows; i++) {
        real_t *const sum = scratch->dbias + block->rows - 1 - i;
        for (size_t j = 0; j < block->columns; j++) sum[j] += scratch->dscores[i * BLOCK + j];
    }
    for (size_t t = 0; t < block->rows + block->columns - 1; t++)
        dbias[task->attention->bucket[first + (ptrdiff_t)t]] += scratch->dbias[t];
}

static void attention_backward_block(const AttentionGradients *g, const AttentionTask *task,
                                     const AttentionBlock *block, bool first_queries, MatmulPrecision precision,
                                     AttentionScratch *scratch)
{
    const Attention *const at = task->attention;
    const size_t d = at->d_kv, width = at->heads * d, column = task->head * d, rows = block->rows, n = block->columns;
    const size_t query = task->first_query + block->q, q_offset = query * at->q_stride + column;
    const size_t kv_offset = (task->first_key + block->k) * at->kv_stride + column;
    const real_t *const out = g->out + query * width + column, *const dout = g->dout + query * width + column;
    const stat_t *const logsumexp = g->logsumexp + task->head * at->queries.rows + query;
    const Operand q = {at->q + q_offset, at->q_stride, 1}, qT = {at->q + q_offset, 1, at->q_stride};
    const Operand k = {at->k + kv_offset, at->kv_stride, 1}, kT = {at->k + kv_offset, 1, at->kv_stride};
    const Operand v = {at->v + kv_offset, at->kv_stride, 1};
    const Operand do_ = {dout, width, 1}, doT = {dout, 1, width};
    const Operand pT = {scratch->scores, 1, BLOCK}, ds = {scratch->dscores, BLOCK, 1},
                  dsT = {scratch->dscores, 1, BLOCK};
    real_t *const panels = scratch->panels;

    matmul_block(scratch->scores, BLOCK, q, k, rows, n, d, false, precision, panels);
    matmul_block(scratch->dscores, BLOCK, do_, v, rows, n, d, false, precision, panels);
    block_bias(scratch->bias, task, block);
    for (size_t i = 0; i < rows; i++) {
        vec_t products = {0};
        for (size_t c = 0; c < d; c += LANES)
            products += vec_load_some(dout + i * width + c, d - c, 0) * vec_load_some(out + i * width + c, d - c, 0);
        if (dropping(at)) block_keep(scratch->keep, task, block, i);
        softmax_row_backward(scratch->scores + i * BLOCK, scratch->dscores + i * BLOCK, scratch->bias + rows - 1 - i,
                             dropping(at) ? scratch->keep : NULL, visible_keys(at, block, i), n, logsumexp[i],
                             sum_lanes(products));
    }
    /* dv and dk of this block of keys are collected in scratch->v and scratch->k, dq where it belongs. */
    matmul_block(scratch->v, d, pT, doT, n, d, rows, !first_queries, precision, panels);
    matmul_block(scratch->k, d, dsT, qT, n, d, rows, !first_queries, precision, panels);
    matmul_block(g->dq + q_offset, at->q_stride, ds, kT, rows, d, n, block->k > 0, precision, panels);
    if (g->dbias) bias_backward(g->dbias, task, block, scratch);
}

static void attention_backward_task(const AttentionGradients *g, const AttentionTask *task, MatmulPrecision precision,
                                    AttentionScratch *scratch)
{
    const Attention *const at = task->attention;
    AttentionBlock block;
    for (block.k = 0; block.k < task->keys; block.k += BLOCK) {
        block.columns = min_size(BLOCK, task->keys - block.k);
        bool first_queries = true;
        for (block.q = 0; block.q < task->queries; block.q += BLOCK) {
            block.rows = min_size(BLOCK, task->queries - block.q);
            if (at->causal && block.k >= block.q + block.rows) continue;
            attention_backward_block(g, task, &block, first_queries, precision, scratch);
            first_queries = false;
        }
        if (first_queries) { /* no query saw these keys */
            memset(scratch->k, 0, block.columns * at->d_kv * sizeof *scratch->k);
            memset(scratch->v, 0, block.columns * at->d_kv * sizeof *scratch->v);
        }
        for (size_t j = 0; j < block.columns; j++) {
            const size_t offset = (task->first_key + block.k + j) * at->kv_stride + task->head * at->d_kv;
            memcpy(g->dk + offset, scratch->k + j * at->d_kv, at->d_kv * sizeof *g->dk);
            memcpy(g->dv + offset, scratch->v + j * at->d_kv, at->d_kv * sizeof *g->dv);
        }
    }
}

void attention_backward(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                        const act_t *out, const stat_t *logsumexp, const Attention *at)
{
    const size_t tasks = at->queries.count * at->heads, size = attention_scratch_size(at->d_kv);
    const size_t threads_size = (size_t)dev->threads * size, dbias_size = dbias ? tasks * at->buckets : 0;
    real_t *const memory = device_scratch(dev, (threads_size + dbias_size) * sizeof *memory);
    stat_t *const partial = memory + threads_size; /* [sequences, heads, buckets] */
#pragma omp parallel for schedule(dynamic) num_threads(dev->threads)
    for (size_t t = 0; t < tasks; t++) {
        const AttentionTask task = attention_task(at, t);
        AttentionScratch scratch = attention_scratch(memory + (size_t)omp_get_thread_num() * size, at->d_kv);
        const AttentionGradients g = {dq, dk, dv, dout, out, logsumexp, dbias ? partial + t * at->buckets : NULL};
        if (dbias) memset(g.dbias, 0, at->buckets * sizeof *g.dbias);
        attention_backward_task(&g, &task, dev->precision, &scratch);
    }
    /* The tasks' shares are added in the order of the sequences, whoever made them. */
    for (size_t t = 0; t < (dbias ? tasks : 0); t++)
        for (size_t b = 0; b < at->buckets; b++) dbias[b * at->heads + t % at->heads] += partial[t * at->buckets + b];
}

/* --- decoding: one new token for each row, against what the row has seen. The keys and values of a block lie scattered
 * over the cache, wherever the row's ancestors put them; they are brought together, and then it is attention of one
 * query. */

typedef struct {
    const act_t *cache;
    const int32_t *ancestors;
    size_t row, steps, max_steps, capacity, heads, d_kv;
    const weight_t *bias_table;
    const int32_t *bucket;
} CachedAttention;

static void attention_cached_head(real_t *out, const CachedAttention *at, size_t head, AttentionScratch *scratch,
                                  MatmulPrecision precision)
{
    const size_t d = at->d_kv, inner = at->heads * d, last = at->steps - 1;
    const act_t *const q = at->cache + (last * at->capacity + at->row) * 3 * inner + head * d;
    real_t max = MASKED, sum = 0;
    for (size_t start = 0; start < at->steps; start += BLOCK) {
        const size_t n = min_size(BLOCK, at->steps - start);
        for (size_t j = 0; j < n; j++) {
            const size_t t = start + j;
            const size_t holder = t == last ? at->row : (size_t)at->ancestors[at->row * at->max_steps + t];
            const act_t *const token = at->cache + (t * at->capacity + holder) * 3 * inner + head * d;
            const ptrdiff_t distance = (ptrdiff_t)t - (ptrdiff_t)last;
            memcpy(scratch->k + j * d, token + inner, d * sizeof *token);
            memcpy(scratch->v + j * d, token + 2 * inner, d * sizeof *token);
            scratch->bias[j] = at->bias_table ? at->bias_table[(size_t)at->bucket[distance] * at->heads + head] : 0;
        }
        memset(scratch->bias + n, 0, LANES * sizeof *scratch->bias);
        const Operand query = {q, d, 1}, k = {scratch->k, d, 1}, p = {scratch->scores, BLOCK, 1},
                      vT = {scratch->v, 1, d};
        matmul_block(scratch->scores, BLOCK, query, k, 1, n, d, false, precision, scratch->panels);
        const real_t factor = softmax_row(scratch->scores, scratch->bias, n, n, &max, &sum);
        if (start > 0) scale_row(out, factor, d);
        matmul_block(out, inner, p, vT, 1, d, n, start > 0, precision, scratch->panels);
    }
    scale_row(out, 1 / sum, d);
}

void attention_cached_forward(Device *dev, act_t *out, const act_t *cache, const int32_t *ancestors, size_t rows,
                              size_t steps, size_t max_steps, size_t capacity, size_t heads, size_t d_kv,
                              const weight_t *bias_table, const int32_t *bucket, size_t buckets)
{
    (void)buckets;
    const size_t size = attention_scratch_size(d_kv);
    const int threads = threads_for(dev, rows * steps * heads * d_kv);
    real_t *const memory = device_scratch(dev, (size_t)threads * size * sizeof *memory);
#pragma omp parallel for num_threads(threads)
    for (size_t task = 0; task < rows * heads; task++) {
        AttentionScratch scratch = attention_scratch(memory + (size_t)omp_get_thread_num() * size, d_kv);
        const CachedAttention at = {cache,    ancestors, task / heads, steps,      max_steps,
                                    capacity, heads,     d_kv,         bias_table, bucket};
        attention_cached_head(out + task * d_kv, &at, task % heads, &scratch, dev->precision);
    }
}

#endif /* PROMOT_GPU */
#ifndef PROMOT_KERNELS_ONLY

/* ================================================================================================================
 * [3] The model
 *
 * The tensor table and how it comes from and goes to a Hugging Face directory, the packed batch, and the network:
 * forward, loss, backward. Everything is a sequence of calls of chapter 2's kernels; a backward function stands beside
 * its forward and walks it in the opposite direction. */

/* --- config.json */

/* Reads a whole number from 1 to `limit`. fallback 0: the field must be there. */
static int config_size(const cJSON *json, const char *name, size_t fallback, size_t limit, size_t *out,
                       const char *file, Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    if ((!item || cJSON_IsNull(item)) && fallback) {
        *out = fallback;
        return 0;
    }
    if (!cJSON_IsNumber(item) || item->valuedouble < 1 || item->valuedouble > (double)limit ||
        item->valuedouble != floor(item->valuedouble)) {
        char *found = item ? cJSON_PrintUnformatted(item) : NULL;
        error_set(error, EXIT_FAILED, "%s: %s (expected a whole number from 1 to %zu, found %.40s)", file, name, limit,
                  found ? found : "nothing");
        free(found);
        return -1;
    }
    *out = (size_t)item->valuedouble;
    return 0;
}

/* Reads a token id; `fallback` where the field is missing. */
static int config_id(const cJSON *json, const char *name, int32_t fallback, size_t vocab_size, int32_t *out,
                     const char *file, Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    *out = fallback;
    if (!item || cJSON_IsNull(item)) return 0;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < (double)vocab_size) ||
        item->valuedouble != floor(item->valuedouble))
        return error_set(error, EXIT_FAILED, "%s: %s (expected an id below %zu)", file, name, vocab_size);
    *out = (int32_t)item->valuedouble;
    return 0;
}

static int config_parse(T5Config *config, const cJSON *json, const char *file, Error *error)
{
    enum { LIMIT = 1 << 20, VOCABULARY_LIMIT = 1 << 26, BUCKETS_LIMIT = 1 << 12 };
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "model_type");
    const cJSON *proj = cJSON_GetObjectItemCaseSensitive(json, "feed_forward_proj");
    const cJSON *epsilon = cJSON_GetObjectItemCaseSensitive(json, "layer_norm_epsilon");
    const char *type_name = cJSON_IsString(type) ? type->valuestring : "t5";
    bool is_mt5 = strcmp(type_name, "mt5") == 0;
    const char *mlp = cJSON_IsString(proj) ? proj->valuestring : is_mt5 ? "gated-gelu" : "relu";

    if (!is_mt5 && strcmp(type_name, "t5") != 0)
        return error_set(error, EXIT_FAILED, "%s: model_type (expected \"t5\" or \"mt5\", found \"%.40s\")", file,
                         type_name);
    if (strcmp(mlp, "gated-gelu") != 0 && strcmp(mlp, "relu") != 0)
        return error_set(error, EXIT_FAILED,
                         "%s: feed_forward_proj (expected \"gated-gelu\" or \"relu\", found \"%.40s\")", file, mlp);
    snprintf(config->model_type, sizeof config->model_type, "%s", type_name);
    config->mlp = strcmp(mlp, "relu") == 0 ? MLP_RELU : MLP_GATED_GELU;
    config->layer_norm_epsilon =
        cJSON_IsNumber(epsilon) && epsilon->valuedouble > 0 ? (float)epsilon->valuedouble : 1e-6f;
    if (config_size(json, "vocab_size", 0, VOCABULARY_LIMIT, &config->vocab_size, file, error) ||
        config_size(json, "d_model", 0, LIMIT, &config->d_model, file, error) ||
        config_size(json, "d_kv", 0, DKV_LIMIT, &config->d_kv, file, error) ||
        config_size(json, "d_ff", 0, LIMIT, &config->d_ff, file, error) ||
        config_size(json, "num_heads", 0, HEADS_LIMIT, &config->num_heads, file, error) ||
        config_size(json, "num_layers", 0, LAYERS_LIMIT, &config->num_layers, file, error) ||
        config_size(json, "num_decoder_layers", config->num_layers, LAYERS_LIMIT, &config->num_decoder_layers, file,
                    error) ||
        config_size(json, "relative_attention_num_buckets", 32, BUCKETS_LIMIT, &config->buckets, file, error) ||
        config_size(json, "relative_attention_max_distance", 128, LIMIT, &config->max_distance, file, error) ||
        config_id(json, "pad_token_id", 0, config->vocab_size, &config->pad, file, error) ||
        config_id(json, "eos_token_id", 1, config->vocab_size, &config->eos, file, error) ||
        config_id(json, "decoder_start_token_id", 0, config->vocab_size, &config->decoder_start, file, error))
        return -1;
    /* Half of the decoder's buckets are for one distance each; the others divide what is beyond up to max_distance. */
    if (config->buckets < 4 || config->buckets % 2 || config->max_distance <= config->buckets / 2)
        return error_set(
            error, EXIT_FAILED,
            "%s: relative attention (expected an even number of buckets from 4, and a max distance above half "
            "of it, found %zu and %zu)",
            file, config->buckets, config->max_distance);
    return 0;
}

/* Takes the text over, that of a file or one made from a T5X checkpoint; `file` names it in errors. */
static int config_read_text(T5Config *config, char *text, const char *file, Error *error)
{
    cJSON *json;
    int status;
    config->json = text;
    json = cJSON_ParseWithOpts(config->json, NULL, true); /* true: nothing may follow */
    status = cJSON_IsObject(json) ? config_parse(config, json, file, error)
                                  : error_set(error, EXIT_FAILED, "%s: not a JSON object", file);
    cJSON_Delete(json);
    if (status) {
        free(config->json);
        config->json = NULL;
    }
    return status;
}

static int config_read_file(T5Config *config, const char *file, Error *error)
{
    MappedFile mapped = {0};
    char *text;
    memset(config, 0, sizeof *config);
    if (mapped_file_open(&mapped, file, error)) return -1;
    text = host_alloc(mapped.bytes + 1, 1);
    memcpy(text, mapped.data, mapped.bytes);
    mapped_file_close(&mapped);
    return config_read_text(config, text, file, error);
}

/* Refuses a path that is no directory; and a run, for the model that is meant lies in it. */
static int check_model_directory(const char *directory, Error *error)
{
    char *run = path_join(directory, "run.json"), *config = path_join(directory, "config.json");
    const bool is_run = path_exists(run) && !path_exists(config);
    free(run);
    free(config);
    if (is_run) return error_set(error, EXIT_USAGE, "%s: is a run (its model is %s/model)", directory, directory);
    return path_is_directory(directory) ? 0 : error_set(error, EXIT_USAGE, "%s: no such model directory", directory);
}

/* A T5X checkpoint has no config.json: one is made from the shapes of its tensors. */
int config_read(T5Config *config, const char *directory, Error *error)
{
    char *file, *text;
    int status;
    memset(config, 0, sizeof *config);
    if (check_model_directory(directory, error)) return -1;
    file = path_join(directory, "config.json");
    if (path_exists(file) || !t5x_directory(directory)) {
        status = config_read_file(config, file, error);
    } else {
        text = t5x_config_json(directory, error);
        status = text ? config_read_text(config, text, directory, error) : -1;
    }
    free(file);
    return status;
}

/* What config.json says about tying: 1 true, 0 false, -1 nothing. */
static int config_says_tied(const T5Config *config)
{
    cJSON *json = cJSON_Parse(config->json);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "tie_word_embeddings");
    int said = cJSON_IsBool(item) ? cJSON_IsTrue(item) : -1;
    cJSON_Delete(json);
    return said;
}

/* --- the tensor table */

/* Appends a tensor: its place in memory follows the one before. */
static Tensor *table_add(Model *model, const char *name, size_t rows, size_t columns, bool is_vector)
{
    Tensor *tensor = &model->tensors[model->n_tensors++];
    snprintf(tensor->name, sizeof tensor->name, "%s.weight", name);
    tensor->is_vector = is_vector;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->offset = model->n_weights;
    model->n_weights += rows * columns;
    return tensor;
}

static void table_add_stack(Model *model, Stack *stack, bool is_decoder)
{
    const T5Config *c = &model->config;
    const char *stack_name = is_decoder ? "decoder" : "encoder";
    const size_t D = c->d_model, I = c->num_heads * c->d_kv, F = c->d_ff;
    bool gated = c->mlp == MLP_GATED_GELU;
    char name[80];

    stack->is_decoder = is_decoder;
    stack->n_layers = is_decoder ? c->num_decoder_layers : c->num_layers;
    stack->layers = host_alloc(stack->n_layers, sizeof *stack->layers);
    snprintf(name, sizeof name, "%s.block.0.layer.0.SelfAttention.relative_attention_bias", stack_name);
    stack->relative_bias = table_add(model, name, c->buckets, c->num_heads, false);
    for (size_t l = 0; l < stack->n_layers; l++) {
        Layer *layer = &stack->layers[l];
#define X(field, encoder_name, decoder_name, n_rows, n_columns)                                                        \
    {                                                                                                                  \
        const char *suffix = is_decoder ? (decoder_name) : (encoder_name);                                             \
        if (suffix) {                                                                                                  \
            snprintf(name, sizeof name, "%s.block.%zu.%s", stack_name, l, suffix);                                     \
            layer->field = table_add(model, name, n_rows, n_columns, (n_rows) == 1 && strstr(suffix, "norm"));         \
        }                                                                                                              \
    }
        T5_LAYER_TENSORS(X)
#undef X
    }
    snprintf(name, sizeof name, "%s.final_layer_norm", stack_name);
    stack->final_norm = table_add(model, name, 1, D, true);
}

/* The whole table. shared comes last, so that everything before it can have a dense gradient without it. */
static void table_build(Model *model)
{
    const T5Config *c = &model->config;
    size_t layers = c->num_layers + c->num_decoder_layers;
    model->tensors = host_alloc(14 * layers + 6, sizeof *model->tensors); /* 14 rows in T5_LAYER_TENSORS */
    model->n_tensors = model->n_weights = 0;
    table_add_stack(model, &model->encoder, false);
    table_add_stack(model, &model->decoder, true);
    if (!c->tied_head) model->head = table_add(model, "lm_head", c->vocab_size, c->d_model, false);
    model->shared = table_add(model, "shared", c->vocab_size, c->d_model, false);
    if (c->tied_head) model->head = model->shared;
}

static void table_free(Model *model)
{
    free(model->encoder.layers);
    free(model->decoder.layers);
    free(model->tensors);
}

/* How far apart the same tensor of two neighbouring layers lies, in elements. */
static size_t layer_stride(const Stack *stack)
{
    return stack->n_layers > 1 ? stack->layers[1].self_q->offset - stack->layers[0].self_q->offset : 0;
}

/* All weights of a layer: they lie one behind another. */
static WeightPiece layer_weights(const Stack *stack, size_t l)
{
    const Tensor *first = stack->layers[l].self_norm, *last = stack->layers[l].wo;
    return (WeightPiece){first->data, last->offset + last->rows * last->columns - first->offset};
}

static bool is_of_a_layer(const Model *model, const Tensor *tensor)
{
    return strstr(tensor->name, ".block.") && tensor != model->encoder.relative_bias &&
           tensor != model->decoder.relative_bias;
}

/* Where weights are streamed, a layer at a time comes to the device. What is used between layers stays there, and what
 * is used for all of them at once: the decoder's cross_k and cross_v. */
static int weights_keep_all_but_layers(const Model *model, Error *error)
{
    const Stack *decoder = &model->decoder;
    const Tensor *k = decoder->layers[0].cross_k; /* and v behind it */
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        if (!is_of_a_layer(model, t) && weights_keep(t->data, t->rows * t->columns, 1, 0, error)) return -1;
    }
    return weights_keep(k->data, 2 * k->rows * k->columns, decoder->n_layers, layer_stride(decoder), error);
}

static int weights_allocate(Model *model, Error *error)
{
    model->weights = weights_alloc_model(model->dev, model->n_weights);
    if (!model->weights)
        return error_set(error, EXIT_FAILED, "memory: no room for the weights (%.1f GB)",
                         (double)(model->n_weights * WEIGHT_BYTES) / 1e9);
    for (size_t i = 0; i < model->n_tensors; i++) model->tensors[i].data = model->weights + model->tensors[i].offset;
    return weights_are_streamed(model->weights) ? weights_keep_all_but_layers(model, error) : 0;
}

/* --- from and to a Hugging Face directory */

enum { TRANSFER = 1 << 18 }; /* elements converted at a time: small enough for a cache, large enough for a disk */

/* The stored tensor of a name of ours; the embedding may lie under one of its two other names only. */
static const StoredTensor *stored_find(const Checkpoint *checkpoint, const char *name)
{
    static const char *const aliases[] = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"};
    const StoredTensor *stored = checkpoint_find(checkpoint, name);
    for (size_t i = 0; !stored && strcmp(name, "shared.weight") == 0 && i < 2; i++)
        stored = checkpoint_find(checkpoint, aliases[i]);
    return stored;
}

static int tensor_check(const Tensor *tensor, const StoredTensor *stored, Error *error)
{
    char found[128] = "", expected[64];
    if (stored->dtype > DTYPE_F64)
        return error_set(error, EXIT_FAILED, "%s: type of %s (expected F32, F16, BF16 or F64, found %s)", stored->file,
                         tensor->name, dtype_name(stored->dtype));
    if (tensor->is_vector
            ? stored->n_dims == 1 && stored->shape[0] == tensor->columns
            : stored->n_dims == 2 && stored->shape[0] == tensor->rows && stored->shape[1] == tensor->columns)
        return 0;
    for (size_t i = 0, at = 0; i < stored->n_dims && at < sizeof found - 24; i++)
        at += (size_t)snprintf(found + at, sizeof found - at, i ? ", %zu" : "%zu", stored->shape[i]);
    if (tensor->is_vector)
        snprintf(expected, sizeof expected, "%zu", tensor->columns);
    else
        snprintf(expected, sizeof expected, "%zu, %zu", tensor->rows, tensor->columns);
    return error_set(error, EXIT_FAILED, "%s: shape of %s (expected [%s] as config.json says, found [%s])",
                     stored->file, tensor->name, expected, found);
}

static int tensor_load(const Model *model, const Tensor *tensor, const StoredTensor *stored, float *slice, Error *error)
{
    size_t n = tensor->rows * tensor->columns;
    for (size_t first = 0; first < n; first += TRANSFER) {
        size_t count = min_size(TRANSFER, n - first);
        if (stored_tensor_read_float(stored, first, count, slice, error)) return -1;
        for (size_t i = 0; i < count; i++)
            if (!isfinite(slice[i]))
                return error_set(error, EXIT_FAILED,
                                 "%s: %s: element %zu is not a number (expected finite weights, found %g)",
                                 stored->file, tensor->name, first + i, (double)slice[i]);
        weights_upload(model->dev, tensor->data + first, slice, count);
    }
    return 0;
}

static bool stored_tensors_equal(const StoredTensor *a, const StoredTensor *b)
{
    Error ignored;
    float *slices;
    bool equal = true;
    if (a->numel != b->numel || a->n_dims != b->n_dims || memcmp(a->shape, b->shape, a->n_dims * sizeof *a->shape) != 0)
        return false;
    if (a->data == b->data && a->packed == b->packed && a->packed_offset == b->packed_offset && a->dtype == b->dtype &&
        memcmp(a->strides, b->strides, a->n_dims * sizeof *a->strides) == 0)
        return true;
    slices = host_alloc(2 * TRANSFER, sizeof *slices);
    for (size_t first = 0; equal && first < a->numel; first += TRANSFER) {
        size_t count = min_size(TRANSFER, a->numel - first);
        equal = stored_tensor_read_float(a, first, count, slices, &ignored) == 0 &&
                stored_tensor_read_float(b, first, count, slices + TRANSFER, &ignored) == 0 &&
                memcmp(slices, slices + TRANSFER, count * sizeof *slices) == 0;
    }
    free(slices);
    return equal;
}

/* Where a missing tensor was looked for: the file, or the directory when there are several. */
static const char *checkpoint_place(const Checkpoint *checkpoint, const char *directory)
{
    for (size_t i = 1; i < checkpoint_count(checkpoint); i++)
        if (strcmp(checkpoint_at(checkpoint, i)->file, checkpoint_at(checkpoint, 0)->file) != 0) return directory;
    return checkpoint_count(checkpoint) ? checkpoint_at(checkpoint, 0)->file : directory;
}

/* Is the head the embedding? Yes when there is none, or when it is identical and the config does not deny it. */
static int decide_tied_head(T5Config *config, const Checkpoint *checkpoint, const char *directory, Error *error)
{
    const StoredTensor *head = checkpoint_find(checkpoint, "lm_head.weight");
    const StoredTensor *shared = stored_find(checkpoint, "shared.weight");
    if (!head && config->mlp == MLP_GATED_GELU)
        return error_set(error, EXIT_FAILED,
                         "%s: lm_head.weight is missing (an mT5 or T5 v1.1 model has a head of its own)",
                         checkpoint_place(checkpoint, directory));
    config->tied_head = !head || (config_says_tied(config) != 0 && shared && stored_tensors_equal(head, shared));
    return 0;
}

/* Tensors that old files hold beside the model's: other names of the embedding, and a bias nobody uses. */
static bool is_known_extra(const char *name)
{
    static const char *const names[] = {"lm_head.weight", "shared.weight", "encoder.embed_tokens.weight",
                                        "decoder.embed_tokens.weight",
                                        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

static void warn_of_extra_tensors(const Model *model, const Checkpoint *checkpoint, void (*warn)(const char *text))
{
    enum { NAMED = 10 }; /* of more than that, only the number is told */
    size_t extra = 0;
    for (size_t i = 0; warn && i < checkpoint_count(checkpoint); i++) {
        const StoredTensor *stored = checkpoint_at(checkpoint, i);
        bool known = is_known_extra(stored->name);
        for (size_t t = 0; !known && t < model->n_tensors; t++)
            known = strcmp(model->tensors[t].name, stored->name) == 0;
        if (!known && extra++ < NAMED) {
            char *text = text_format("%s: ignored the unknown tensor %.200s", stored->file, stored->name);
            warn(text);
            free(text);
        }
    }
    if (extra > NAMED) {
        char *text =
            text_format("%s: ignored %zu more unknown tensors", checkpoint_at(checkpoint, 0)->file, extra - NAMED);
        warn(text);
        free(text);
    }
}

/* Is every tensor of the table there, and in its shape? Asked before there is memory for them: a config may lie. */
static int model_check_tensors(const Model *model, const Checkpoint *checkpoint, const char *directory, Error *error)
{
    int status = 0;
    for (size_t i = 0; !status && i < model->n_tensors; i++) {
        const Tensor *tensor = &model->tensors[i];
        const StoredTensor *stored = stored_find(checkpoint, tensor->name);
        status = stored ? tensor_check(tensor, stored, error)
                        : error_set(error, EXIT_FAILED, "%s: %s is missing", checkpoint_place(checkpoint, directory),
                                    tensor->name);
    }
    return status;
}

/* A tensor of the table, and where its elements come from. */
typedef struct {
    const Tensor *tensor;
    const StoredTensor *stored;
} Load;

static int compare_loads(const void *a, const void *b)
{
    const StoredTensor *x = ((const Load *)a)->stored, *y = ((const Load *)b)->stored;
    int files = strcmp(x->file, y->file);
    if (files) return files;
    if (x->packed != y->packed) return (uintptr_t)x->packed < (uintptr_t)y->packed ? -1 : 1;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->packed_offset < y->packed_offset ? -1 : x->packed_offset > y->packed_offset;
}

/* In the order of the files: a disk likes it, and T5X's arrays of all layers are unpacked once, not once a layer. */
static int model_load_weights(Model *model, const Checkpoint *checkpoint, Error *error)
{
    float *slice = host_alloc(TRANSFER, sizeof *slice);
    Load *loads = host_alloc(model->n_tensors, sizeof *loads);
    int status = 0;
    for (size_t i = 0; i < model->n_tensors; i++)
        loads[i] = (Load){&model->tensors[i], stored_find(checkpoint, model->tensors[i].name)};
    qsort(loads, model->n_tensors, sizeof *loads, compare_loads);
    for (size_t i = 0; !status && i < model->n_tensors; i++)
        status = tensor_load(model, loads[i].tensor, loads[i].stored, slice, error);
    free(loads);
    free(slice);
    return status;
}

Model *model_open(const char *directory, Device *dev, void (*warn)(const char *text), Error *error)
{
    Model *model = host_alloc(1, sizeof *model);
    Checkpoint *checkpoint = NULL;
    int status = config_read(&model->config, directory, error);
    model->dev = dev;
    if (!status && !(checkpoint = checkpoint_open(directory, error))) status = -1;
    if (!status) status = decide_tied_head(&model->config, checkpoint, directory, error);
    if (!status) {
        table_build(model);
        status = model_check_tensors(model, checkpoint, directory, error);
    }
    if (!status) status = weights_allocate(model, error);
    if (!status) status = model_load_weights(model, checkpoint, error);
    if (!status) warn_of_extra_tensors(model, checkpoint, warn);
    checkpoint_close(checkpoint);
    if (!status) return model;
    model_close(model);
    return NULL;
}

void model_close(Model *model)
{
    if (!model) return;
    lora_detach(model);
    table_free(model);
    weights_free(model->weights);
    free(model->config.json);
    free(model);
}

/* How T5X draws a new tensor (layers.py, network.py): the shape of the distribution and its deviation. */
typedef enum { DRAW_ONES, DRAW_NORMAL, DRAW_TRUNCATED, DRAW_UNIFORM } Draw;

static Draw tensor_draw(const Model *model, const Tensor *tensor, double *deviation)
{
    const T5Config *c = &model->config;
    const char *name = tensor->name;
    *deviation = 1 / sqrt((double)tensor->columns); /* fan-in */
    if (tensor->is_vector) return DRAW_ONES;
    if (tensor == model->shared) {
        *deviation = 1;
        return DRAW_NORMAL;
    }
    if (tensor == model->encoder.relative_bias || tensor == model->decoder.relative_bias) {
        *deviation = sqrt(2.0 / (double)(tensor->rows + tensor->columns)); /* variance scaling, fan_avg */
        return DRAW_UNIFORM;
    }
    if (strstr(name, "Attention.q.")) *deviation /= sqrt((double)c->d_kv); /* in place of scaling the scores */
    return strstr(name, "Attention.") ? DRAW_NORMAL : DRAW_TRUNCATED;
}

static float draw_number(Draw draw, double deviation, uint64_t key, uint64_t index)
{
    double z;
    switch (draw) {
    case DRAW_NORMAL:
        return (float)(deviation * random_normal(key, index));
    case DRAW_UNIFORM:
        return (float)(deviation * sqrt(3.0) * (2 * random_uniform(key, index) - 1));
    case DRAW_TRUNCATED: /* cut at two deviations, by drawing again, and rescaled so that the deviation is as asked */
        for (uint64_t attempt = 0;; attempt++) {
            z = random_normal(random_fold(key, attempt), index);
            if (fabs(z) <= 2) return (float)(deviation / 0.87962566103423978 * z);
        }
    case DRAW_ONES:
        break;
    }
    return 1;
}

Model *model_create(const char *config_file, Device *dev, uint64_t seed, Error *error)
{
    Model *model = host_alloc(1, sizeof *model);
    float *slice;
    model->dev = dev;
    if (config_read_file(&model->config, config_file, error)) {
        free(model);
        return NULL;
    }
    model->config.tied_head = model->config.mlp == MLP_RELU && config_says_tied(&model->config) != 0;
    table_build(model);
    if (weights_allocate(model, error)) {
        model_close(model);
        return NULL;
    }
    slice = host_alloc(TRANSFER, sizeof *slice);
    for (size_t t = 0; t < model->n_tensors; t++) {
        const Tensor *tensor = &model->tensors[t];
        double deviation;
        Draw draw = tensor_draw(model, tensor, &deviation);
        uint64_t key = random_fold(seed, t);
        size_t n = tensor->rows * tensor->columns;
        for (size_t first = 0; first < n; first += TRANSFER) {
            size_t count = min_size(TRANSFER, n - first);
            for (size_t i = 0; i < count; i++) slice[i] = draw_number(draw, deviation, key, first + i);
            weights_upload(dev, tensor->data + first, slice, count);
        }
    }
    free(slice);
    return model;
}

/* The specs of all tensors, for a writer; `prefix` goes in front of the names. To be freed with specs_free. */
static TensorSpec *model_specs(const Model *model, const char *prefix)
{
    TensorSpec *specs = host_alloc(model->n_tensors, sizeof *specs);
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        specs[i].name = text_format("%s%s", prefix, t->name);
        specs[i].dtype = DTYPE_F32;
        specs[i].n_dims = t->is_vector ? 1 : 2;
        specs[i].shape[0] = t->is_vector ? t->columns : t->rows;
        specs[i].shape[1] = t->columns;
    }
    return specs;
}

static void specs_free(TensorSpec *specs, size_t count)
{
    for (size_t i = 0; i < count; i++) free((char *)specs[i].name);
    free(specs);
}

static int weights_append(SafetensorsWriter *writer, Device *dev, const weight_t *weights, size_t n, Error *error)
{
    float *slice = host_alloc(TRANSFER, sizeof *slice);
    int status = 0;
    for (size_t first = 0; !status && first < n; first += TRANSFER) {
        size_t count = min_size(TRANSFER, n - first);
        weights_download(dev, slice, weights + first, count);
        for (size_t i = 0; !status && i < count; i++)
            if (!isfinite(slice[i])) /* no reader would take them */
                status =
                    error_set(error, EXIT_FAILED,
                              "weights to be written: element %zu is not a number (found %g: the training diverged)",
                              first + i, (double)slice[i]);
        if (!status) status = safetensors_append(writer, slice, count * sizeof *slice, error);
    }
    free(slice);
    return status;
}

static int model_write_weights(const Model *model, const char *file, Error *error)
{
    TensorSpec *specs = model_specs(model, "");
    SafetensorsWriter *writer = safetensors_create(file, specs, model->n_tensors, error);
    int status = writer ? weights_append(writer, model->dev, model->weights, model->n_weights, error) : -1;
    specs_free(specs, model->n_tensors);
    if (!writer) return -1;
    if (status) {
        safetensors_abandon(writer);
        return -1;
    }
    return safetensors_commit(writer, error);
}

/* Loaders insist that these are written as floats; cJSON would write 1.0 as 1. */
static void config_keep_floats(cJSON *json)
{
    static const char *const names[] = {"layer_norm_epsilon", "initializer_factor", "dropout_rate",
                                        "classifier_dropout"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, names[i]);
        char text[32];
        if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble)) continue;
        snprintf(text, sizeof text, "%.1f", item->valuedouble);
        cJSON_ReplaceItemInObjectCaseSensitive(json, names[i], cJSON_CreateRaw(text));
    }
}

/* The config that was read, with what a loader must know: the element type, and whether the head is tied (without the
 * word "false", newer transformers would scale an untied model's logits). */
static int model_write_config(const Model *model, const char *file, Error *error)
{
    cJSON *json = cJSON_Parse(model->config.json);
    const char *architecture =
        strcmp(model->config.model_type, "mt5") == 0 ? "MT5ForConditionalGeneration" : "T5ForConditionalGeneration";
    char *text;
    int status;
    cJSON_DeleteItemFromObjectCaseSensitive(json, "tie_word_embeddings");
    cJSON_AddBoolToObject(json, "tie_word_embeddings", model->config.tied_head);
    cJSON_DeleteItemFromObjectCaseSensitive(json, "dtype");
    cJSON_DeleteItemFromObjectCaseSensitive(json, "torch_dtype");
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
    if (!cJSON_HasObjectItem(json, "model_type")) cJSON_AddStringToObject(json, "model_type", model->config.model_type);
    if (!cJSON_HasObjectItem(json, "architectures"))
        cJSON_AddItemToObject(json, "architectures", cJSON_CreateStringArray(&architecture, 1));
    config_keep_floats(json);
    text = cJSON_Print(json);
    status = text ? file_write_text(file, text, error) : error_set(error, EXIT_FAILED, "%s: no memory", file);
    free(text);
    cJSON_Delete(json);
    return status;
}

int model_write(const Model *model, const char *directory, const char *origin, Error *error)
{
    static const char *const companions[] = {"spiece.model",      "tokenizer_config.json", "special_tokens_map.json",
                                             "added_tokens.json", "tokenizer.json",        "generation_config.json"};
    char *config_file = path_join(directory, "config.json"), *weights_file = path_join(directory, "model.safetensors");
    int status = directory_create(directory, error);
    if (!status) status = model_write_config(model, config_file, error);
    for (size_t i = 0; !status && i < sizeof companions / sizeof *companions; i++) {
        char *from = path_join(origin, companions[i]), *to = path_join(directory, companions[i]);
        if (path_exists(from)) status = file_copy(from, to, error);
        free(from);
        free(to);
    }
    if (!status) status = model_write_weights(model, weights_file, error);
    free(config_file);
    free(weights_file);
    return status;
}

/* --- the packed batch */

/* T5's bucket of a distance key_place - query_place (transformers' _relative_position_bucket, in float32 as there).
 * Half of the buckets are exact, the others grow logarithmically up to max_distance. */
static int32_t relative_position_bucket(long distance, bool bidirectional, size_t buckets, size_t max_distance)
{
    long n_buckets = (long)buckets, base = 0, n = distance < 0 ? -distance : 0, exact, large;
    if (bidirectional) {
        n_buckets /= 2;
        base = distance > 0 ? n_buckets : 0;
        n = labs(distance);
    }
    exact = n_buckets / 2;
    if (n < exact) return (int32_t)(base + n);
    large = exact + (long)(logf((float)n / (float)exact) / (float)log((double)max_distance / (double)exact) *
                           (float)(n_buckets - exact));
    return (int32_t)(base + (large < n_buckets - 1 ? large : n_buckets - 1));
}

/* Writes bucket[-longest+1 … longest-1] behind `to`, and returns where distance 0 is. */
static int32_t *buckets_fill(int32_t *to, const T5Config *config, bool bidirectional, size_t longest)
{
    int32_t *center = to + longest - 1;
    for (long d = -(long)longest + 1; d < (long)longest; d++)
        center[d] = relative_position_bucket(d, bidirectional, config->buckets, config->max_distance);
    return center;
}

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The ids that a batch looks up in the embedding: inputs, and targets shifted right (ascending, each once; to be
 * freed). */
static int32_t *touched_ids(const T5Config *config, const TokenExample *examples, size_t count, size_t *n_touched)
{
    size_t n = 0, unique = 0;
    int32_t *ids;
    for (size_t b = 0; b < count; b++) n += examples[b].input_length + examples[b].target_length;
    ids = host_alloc(n, sizeof *ids);
    n = 0;
    for (size_t b = 0; b < count; b++) {
        const TokenExample *e = &examples[b];
        for (size_t i = 0; i < e->input_length; i++) ids[n++] = e->input[i];
        for (size_t i = 0; i < e->target_length; i++) ids[n++] = i ? e->target[i - 1] : config->decoder_start;
    }
    qsort(ids, n, sizeof *ids, compare_ids);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || ids[i] != ids[i - 1]) ids[unique++] = ids[i];
    *n_touched = unique;
    return ids;
}

/* Sorts rows by the table row they belong to (a counting sort, so rows of one target stay in order): first [targets+1],
 * rows_of [rows]. target_of[r] < 0: the row belongs to no target. */
static void list_rows(const int32_t *target_of, size_t rows, size_t targets, int32_t *first, int32_t *rows_of)
{
    memset(first, 0, (targets + 1) * sizeof *first);
    for (size_t r = 0; r < rows; r++)
        if (target_of[r] >= 0) first[target_of[r] + 1]++;
    for (size_t t = 0; t < targets; t++) first[t + 1] += first[t];
    for (size_t r = 0; r < rows; r++)
        if (target_of[r] >= 0) rows_of[first[target_of[r]]++] = (int32_t)r;
    memmove(first + 1, first, targets * sizeof *first); /* every first had moved on to the next one's place */
    first[0] = 0;
}

/* A batch's integers lie in two blocks of one layout: on the host, where they are filled, and on the device. As in an
 * arena, pieces are taken one after another, and without blocks they are only counted. */
typedef struct {
    int32_t *host, *device;
    size_t used;
} Integers;

static int32_t *integers_take(Integers *integers, size_t n, int32_t **device)
{
    int32_t *host = integers->host ? integers->host + integers->used : NULL;
    *device = integers->device ? integers->device + integers->used : NULL;
    integers->used += n;
    return host;
}

/* Where the gradient of an id is: its place among the touched ids, or the id itself when the gradient has all rows. */
static int32_t batch_slot(const int32_t *touched, size_t n_touched, int32_t id)
{
    const int32_t *found;
    if (id < 0 || !touched) return id; /* negative: a prompt row */
    found = bsearch(&id, touched, n_touched, sizeof id, compare_ids);
    return found ? (int32_t)(found - touched) : -1;
}

/* The ids of a batch, and where its sequences begin and how long they are. The two functions after it fill the bias
 * buckets and the lists for the backward pass. With no memory yet, all three only count. */
static void batch_fill_ids(Batch *batch, Integers *integers, const T5Config *config, const TokenExample *examples,
                           size_t prompt_length, int32_t **source_ids, int32_t **target_inputs)
{
    size_t count = batch->count, source_at = 0, target_at = 0;
    int32_t *device[4];
    int32_t *source_start = integers_take(integers, count, &device[0]),
            *source_length = integers_take(integers, count, &device[1]);
    int32_t *target_start = integers_take(integers, count, &device[2]),
            *target_length = integers_take(integers, count, &device[3]);
    int32_t *ids = integers_take(integers, batch->source.rows, &batch->source_ids);
    int32_t *inputs = integers_take(integers, batch->target.rows, &batch->target_inputs);
    int32_t *targets = integers_take(integers, batch->target.rows, &batch->targets);
    batch->source.start = device[0];
    batch->source.length = device[1];
    batch->target.start = device[2];
    batch->target.length = device[3];
    *source_ids = ids;
    *target_inputs = inputs;
    for (size_t b = 0; ids && b < count; b++) {
        const TokenExample *e = &examples[b];
        size_t P = e->prompt >= 0 ? prompt_length : 0;
        source_start[b] = (int32_t)source_at;
        source_length[b] = (int32_t)(P + e->input_length);
        target_start[b] = (int32_t)target_at;
        target_length[b] = (int32_t)e->target_length;
        for (size_t p = 0; p < P; p++) ids[source_at++] = -1 - (int32_t)((size_t)e->prompt * prompt_length + p);
        for (size_t i = 0; i < e->input_length; i++) ids[source_at++] = e->input[i];
        for (size_t i = 0; i < e->target_length; i++, target_at++) {
            inputs[target_at] = i ? e->target[i - 1] : config->decoder_start;
            targets[target_at] = e->target[i];
        }
    }
}

static void batch_fill_buckets(Batch *batch, Integers *integers, const T5Config *config)
{
    int32_t *source = integers_take(integers, 2 * batch->source.longest - 1, &batch->source_bucket);
    int32_t *target = integers_take(integers, 2 * batch->target.longest - 1, &batch->target_bucket);
    if (!source) return;
    batch->source_bucket += buckets_fill(source, config, true, batch->source.longest) - source;
    batch->target_bucket += buckets_fill(target, config, false, batch->target.longest) - target;
}

static void batch_fill_lists(Batch *batch, Integers *integers, const int32_t *touched, size_t n_prompt_rows,
                             const int32_t *source_ids, const int32_t *target_inputs)
{
    size_t Ns = batch->source.rows, Nt = batch->target.rows, U = batch->n_touched;
    int32_t *touched_copy = integers_take(integers, touched ? U : 0, &batch->touched);
    int32_t *source_first = integers_take(integers, U + 1, &batch->source_first);
    int32_t *source_rows = integers_take(integers, Ns, &batch->source_rows_of);
    int32_t *target_first = integers_take(integers, U + 1, &batch->target_first);
    int32_t *target_rows = integers_take(integers, Nt, &batch->target_rows_of);
    int32_t *prompt_first = integers_take(integers, n_prompt_rows + 1, &batch->prompt_first);
    int32_t *prompt_rows = integers_take(integers, Ns, &batch->prompt_rows_of);
    int32_t *slots;
    if (!source_ids) return;
    if (touched)
        memcpy(touched_copy, touched, U * sizeof *touched);
    else
        batch->touched = NULL;
    slots = host_alloc(max_size(Ns, Nt), sizeof *slots);
    for (size_t r = 0; r < Ns; r++) slots[r] = batch_slot(touched, U, source_ids[r]);
    list_rows(slots, Ns, U, source_first, source_rows);
    for (size_t r = 0; r < Ns; r++) slots[r] = source_ids[r] < 0 ? -1 - source_ids[r] : -1;
    list_rows(slots, Ns, n_prompt_rows, prompt_first, prompt_rows);
    for (size_t r = 0; r < Nt; r++) slots[r] = batch_slot(touched, U, target_inputs[r]);
    list_rows(slots, Nt, U, target_first, target_rows);
    free(slots);
}

/* Packs examples into a batch on the device. first_example: the number of examples[0] within the whole batch. touched
 * [n_touched], on the host: the rows that the embedding's gradient has; NULL: all of the vocabulary. The batch's memory
 * is kept and grows when it must; start with a zeroed Batch and end with batch_free. */
static int batch_build(Batch *batch, const Model *model, const TokenExample *examples, size_t count,
                       size_t prompt_length, size_t n_prompts, size_t first_example, const int32_t *touched,
                       size_t n_touched, Error *error)
{
    Integers integers = {0};
    int32_t *source_ids, *target_inputs;
    batch->count = batch->source.count = batch->target.count = count;
    batch->source.first_example = batch->target.first_example = first_example;
    batch->source.rows = batch->target.rows = batch->source.longest = batch->target.longest = 0;
    batch->n_touched = touched ? n_touched : model->config.vocab_size;
    for (size_t b = 0; b < count; b++) {
        size_t source = examples[b].input_length + (examples[b].prompt >= 0 ? prompt_length : 0);
        batch->source.rows += source;
        batch->target.rows += examples[b].target_length;
        batch->source.longest = max_size(batch->source.longest, source);
        batch->target.longest = max_size(batch->target.longest, examples[b].target_length);
    }
    for (int pass = 0; pass < 2; pass++) { /* count, then fill */
        if (pass == 1) {
            if (integers.used > batch->capacity) {
                device_free(batch->memory);
                batch->capacity = integers.used + integers.used / 4;
                batch->memory = device_alloc(batch->capacity * sizeof *batch->memory);
                if (!batch->memory) {
                    batch->capacity = 0;
                    return error_set(error, EXIT_FAILED, "memory: no room for a batch of %zu tokens",
                                     batch->source.rows);
                }
            }
            integers.host = host_alloc(integers.used, sizeof *integers.host);
            integers.device = batch->memory;
            integers.used = 0;
        }
        batch_fill_ids(batch, &integers, &model->config, examples, prompt_length, &source_ids, &target_inputs);
        batch_fill_buckets(batch, &integers, &model->config);
        batch_fill_lists(batch, &integers, touched, n_prompts * prompt_length, source_ids, target_inputs);
    }
    device_upload(model->dev, batch->memory, integers.host, integers.used * sizeof *integers.host);
    free(integers.host);
    return 0;
}

static void batch_free(Batch *batch)
{
    device_free(batch->memory);
    memset(batch, 0, sizeof *batch);
}

/* --- the buffers of a pass */

/* What the backward pass of a layer needs from its forward pass. Normalised inputs and the MLP's hidden values are not
 * kept: they are cheaper to compute again than to store. */
typedef struct {
    act_t *x, *qkv, *attended;                            /* [N,D], [N,3I], [N,I] */
    stat_t *rstd, *logsumexp;                             /* [N], [H,N] */
    act_t *cross_x, *cross_q, *cross_kv, *cross_attended; /* [Nt,D], [Nt,I], this layer's of cross_kv, [Nt,I] */
    stat_t *cross_rstd, *cross_logsumexp;
    act_t *mlp_x, *mlp_a; /* [N,D], [N,2F] ([N,F] for relu) */
    stat_t *mlp_rstd;
} LayerActivations;

typedef struct {
    LayerActivations *layers;
    act_t *cross_kv; /* decoder: [L,Ns,2I] all layers' keys and values of the encoder's output, then their gradients */
    act_t *x;        /* [N,D] what the final norm gets */
    act_t *out;      /* [N,D] the stack's output */
    stat_t *rstd;    /* [N] */
} StackActivations;

typedef enum { PASS_ENCODE, PASS_TRAIN } PassKind; /* the encoder's output alone; everything, and back */

typedef struct {
    const Model *model;
    const Prompts *prompts; /* NULL: none */
    const Batch *batch;
    float dropout;
    bool dropout_shared;
    uint64_t dropout_key;
    StackActivations encoder, decoder;
    logit_t *logits; /* [logits_rows, V]: one chunk of the head */
    act_t *dlogits;  /* their gradient: takes their place where the types are one */
    size_t logits_rows;
    stat_t *loss; /* [Nt] */
    /* So many layers of the encoder, the lowest ones, do not keep mlp_a, the largest of their activations: the backward
     * pass makes it again from mlp_x, at the cost of one product. For batches that would not fit otherwise; the same
     * bits. */
    size_t recomputed;
    act_t *normed, *branch, *hidden; /* scratch of a layer's forward pass: [N,D], [N,D], [N,F] */
    act_t *mlp_a;                    /* of the recomputed layers, in turn */
    act_t *dx, *dencoder;            /* gradients: of the residual stream [N,D], of the encoder's output [Ns,D] */
    act_t *dbranch, *dnormed, *dqkv, *dattended, *dhidden, *dmlp; /* scratch of the backward pass */
    char *memory;                                                 /* all of the above */
    size_t capacity;
} Pass;

/* The head's logits exist for so many bytes' worth of rows at a time, or for as many as find room in memory that is
 * there anyhow. Fewer rows go through the head's weights and their gradient more often; more rows would only take
 * memory. A card, whose products want many rows and whose memory is filled by other things, takes more. */
static const size_t LOGITS_BYTES = ON_A_CARD ? (size_t)2 << 30 : (size_t)128 << 20;

/* found: the rows that have such room. */
static size_t logits_rows(const T5Config *c, size_t rows, size_t found)
{
    const size_t wanted = LOGITS_BYTES / (c->vocab_size * sizeof(logit_t));
    return min_size(rows, max_size(1, max_size(wanted, found)));
}

/* What the MLP's first product has for each row: gate and up, or only one of them. */
static size_t mlp_width(const T5Config *c)
{
    return c->mlp == MLP_GATED_GELU ? 2 * c->d_ff : c->d_ff;
}

static void layout_layer(Arena *arena, LayerActivations *l, const T5Config *c, bool is_decoder, size_t N,
                         bool keeps_mlp_a)
{
    size_t D = c->d_model, I = c->num_heads * c->d_kv;
    l->x = arena_take(arena, N * D, sizeof(act_t));
    l->qkv = arena_take(arena, N * 3 * I, sizeof(act_t));
    l->attended = arena_take(arena, N * I, sizeof(act_t));
    l->rstd = arena_take(arena, N, sizeof(stat_t));
    l->logsumexp = arena_take(arena, N * c->num_heads, sizeof(stat_t));
    if (is_decoder) {
        l->cross_x = arena_take(arena, N * D, sizeof(act_t));
        l->cross_q = arena_take(arena, N * I, sizeof(act_t));
        l->cross_attended = arena_take(arena, N * I, sizeof(act_t));
        l->cross_rstd = arena_take(arena, N, sizeof(stat_t));
        l->cross_logsumexp = arena_take(arena, N * c->num_heads, sizeof(stat_t));
    }
    l->mlp_x = arena_take(arena, N * D, sizeof(act_t));
    if (keeps_mlp_a) l->mlp_a = arena_take(arena, N * mlp_width(c), sizeof(act_t));
    l->mlp_rstd = arena_take(arena, N, sizeof(stat_t));
}

/* The encoder: training keeps every layer's activations; a forward pass alone lets all layers use one set. */
static void layout_encoder(Arena *arena, Pass *pass, const T5Config *c, size_t N, PassKind kind)
{
    StackActivations *s = &pass->encoder;
    const size_t kept = kind == PASS_TRAIN ? c->num_layers : 1;
    if (pass->recomputed) pass->mlp_a = arena_take(arena, N * mlp_width(c), sizeof(act_t));
    for (size_t l = 0; l < c->num_layers; l++) {
        const bool keeps_mlp_a = l >= pass->recomputed;
        if (l < kept)
            layout_layer(arena, &s->layers[l], c, false, N, keeps_mlp_a);
        else
            s->layers[l] = s->layers[0];
        if (!keeps_mlp_a) s->layers[l].mlp_a = pass->mlp_a;
    }
    s->x = arena_take(arena, N * c->d_model, sizeof(act_t));
    s->out = arena_take(arena, N * c->d_model, sizeof(act_t));
    s->rstd = arena_take(arena, N, sizeof(stat_t));
}

static void layout_decoder(Arena *arena, Pass *pass, const T5Config *c, size_t N, size_t Ns)
{
    StackActivations *s = &pass->decoder;
    const size_t cross_kv = Ns * 2 * c->num_heads * c->d_kv;
    s->cross_kv = arena_take(arena, c->num_decoder_layers * cross_kv, sizeof(act_t));
    for (size_t l = 0; l < c->num_decoder_layers; l++) {
        layout_layer(arena, &s->layers[l], c, true, N, true);
        s->layers[l].cross_kv = s->cross_kv ? s->cross_kv + l * cross_kv : NULL;
    }
    s->x = arena_take(arena, N * c->d_model, sizeof(act_t));
    s->out = arena_take(arena, N * c->d_model, sizeof(act_t));
    s->rstd = arena_take(arena, N, sizeof(stat_t));
}

static void layout_pass(Arena *arena, Pass *pass, const T5Config *c, size_t Ns, size_t Nt, PassKind kind)
{
    size_t N = kind == PASS_TRAIN ? max_size(Ns, Nt) : Ns, D = c->d_model, I = c->num_heads * c->d_kv, F = c->d_ff;
    layout_encoder(arena, pass, c, Ns, kind);
    pass->normed = arena_take(arena, N * D, sizeof(act_t));
    pass->branch = arena_take(arena, N * D, sizeof(act_t));
    pass->hidden = arena_take(arena, N * F, sizeof(act_t));
    if (kind == PASS_ENCODE) return;
    layout_decoder(arena, pass, c, Nt, Ns);
    pass->loss = arena_take(arena, Nt, sizeof(stat_t));
    /* The logits are no longer wanted when the backward pass first writes to its own buffers: they share a place. */
    const size_t shared_place = arena->used;
    pass->dx = arena_take(arena, N * D, sizeof(act_t));
    pass->dencoder = arena_take(arena, Ns * D, sizeof(act_t));
    pass->dbranch = arena_take(arena, N * D, sizeof(act_t));
    pass->dnormed = arena_take(arena, N * D, sizeof(act_t));
    pass->dqkv = arena_take(arena, N * 3 * I, sizeof(act_t));
    pass->dattended = arena_take(arena, N * I, sizeof(act_t));
    pass->dhidden = arena_take(arena, N * F, sizeof(act_t));
    pass->dmlp = arena_take(arena, N * mlp_width(c), sizeof(act_t));
    const size_t backward_end = arena->used;
    const bool in_place = sizeof(act_t) == sizeof(logit_t); /* the gradient takes the logits' own place */
    const size_t row_bytes = c->vocab_size * (sizeof(logit_t) + (in_place ? 0 : sizeof(act_t)));
    arena->used = shared_place;
    pass->logits_rows = logits_rows(c, Nt, (backward_end - shared_place) / row_bytes);
    pass->logits = arena_take(arena, pass->logits_rows * c->vocab_size, sizeof(logit_t));
    pass->dlogits =
        in_place ? (act_t *)pass->logits : arena_take(arena, pass->logits_rows * c->vocab_size, sizeof(act_t));
    arena->used = max_size(arena->used, backward_end);
}

/* The bytes that a pass over so many rows needs. */
static size_t pass_bytes(const T5Config *config, size_t source_rows, size_t target_rows, PassKind kind,
                         size_t recomputed)
{
    LayerActivations *layers = host_alloc(config->num_layers + config->num_decoder_layers, sizeof *layers);
    Pass pass = {.encoder.layers = layers, .decoder.layers = layers + config->num_layers, .recomputed = recomputed};
    Arena arena = {0};
    layout_pass(&arena, &pass, config, source_rows, target_rows, kind);
    free(layers);
    return arena.used;
}

/* Makes the pass ready for a batch. Its memory is kept from batch to batch and grows when it must. */
static int pass_prepare(Pass *pass, const Model *model, const Prompts *prompts, const Batch *batch, PassKind kind,
                        Error *error)
{
    const T5Config *c = &model->config;
    size_t bytes = pass_bytes(c, batch->source.rows, batch->target.rows, kind, pass->recomputed);
    Arena arena = {0};
    if (!pass->encoder.layers) {
        pass->encoder.layers = host_alloc(c->num_layers, sizeof(LayerActivations));
        pass->decoder.layers = host_alloc(c->num_decoder_layers, sizeof(LayerActivations));
    }
    if (bytes > pass->capacity) {
        device_free(pass->memory);
        pass->memory = device_alloc(bytes);
        pass->capacity = pass->memory ? bytes : 0;
        if (!pass->memory)
            return error_set(
                error, EXIT_FAILED,
                "memory: no room for the activations of a batch (%.1f GB; a smaller --micro-batch needs less)",
                (double)bytes / 1e9);
    }
    arena.base = pass->memory;
    layout_pass(&arena, pass, c, batch->source.rows, batch->target.rows, kind);
    pass->model = model;
    pass->prompts = prompts;
    pass->batch = batch;
    return 0;
}

static void pass_free(Pass *pass)
{
    free(pass->encoder.layers);
    free(pass->decoder.layers);
    device_free(pass->memory);
    memset(pass, 0, sizeof *pass);
}

/* --- dropout's places (t5x/examples/t5/network.py and layers.py) */

typedef enum {
    DROP_EMBEDDING,
    DROP_ATTENDED,
    DROP_CROSS_ATTENDED,
    DROP_HIDDEN,
    DROP_MLP,
    DROP_FINAL,
    DROP_SELF_PROBABILITIES,
    DROP_CROSS_PROBABILITIES,
    N_PLACES
} Place;

/* Each place of the network has a number of its own, with room for the heads' numbers that attention adds. */
static Dropout dropout_at(const Pass *pass, const Stack *stack, size_t layer, Place place)
{
    size_t site = (((size_t)stack->is_decoder * LAYERS_LIMIT + layer) * N_PLACES + place) * HEADS_LIMIT;
    return (Dropout){
        .rate = pass->dropout, .key = pass->dropout_key, .site = (uint32_t)site, .shared = pass->dropout_shared};
}

/* --- the network, forward */

/* Root-mean-square norm and projection, the beginning of both attentions: y = norm(x) · wᵀ, for `out` rows of weights
 * that begin with w (neighbours in the tensor table count as one matrix). Leaves norm(x) in pass->normed. An MLP begins
 * in mlp_forward, where its activation follows at once. */
static void norm_and_project(Pass *pass, act_t *y, stat_t *rstd, const act_t *x, const Tensor *norm, const Tensor *w,
                             size_t rows, size_t out)
{
    const T5Config *c = &pass->model->config;
    rmsnorm_forward(pass->model->dev, pass->normed, rstd, x, norm->data, rows, c->d_model, c->layer_norm_epsilon);
    linear_forward(pass->model->dev, y, pass->normed, w->data, rows, c->d_model, out);
}

/* Projection back and residual, the end of every sub-layer: out = x + dropout(y · wᵀ). */
static void project_and_add(Pass *pass, act_t *out, const act_t *x, const act_t *y, const Tensor *w,
                            const Sequences *seqs, Dropout dropout)
{
    linear_residual_forward(pass->model->dev, out, x, y, w->data, pass->branch, seqs, w->columns, w->rows, &dropout);
}

/* The sequences that a stack works on, and what it keeps of them. */
static const Sequences *stack_sequences(const Pass *pass, const Stack *stack)
{
    return stack->is_decoder ? &pass->batch->target : &pass->batch->source;
}

static StackActivations *stack_activations(Pass *pass, const Stack *stack)
{
    return stack->is_decoder ? &pass->decoder : &pass->encoder;
}

static Attention self_attention(const Pass *pass, const Stack *stack, size_t l, const LayerActivations *a)
{
    const T5Config *c = &pass->model->config;
    const Batch *batch = pass->batch;
    size_t I = c->num_heads * c->d_kv;
    const Sequences *seqs = stack_sequences(pass, stack);
    return (Attention){.q = a->qkv,
                       .k = a->qkv + I,
                       .v = a->qkv + 2 * I,
                       .q_stride = 3 * I,
                       .kv_stride = 3 * I,
                       .queries = *seqs,
                       .keys = *seqs,
                       .heads = c->num_heads,
                       .d_kv = c->d_kv,
                       .causal = stack->is_decoder,
                       .bias_table = stack->relative_bias->data,
                       .buckets = c->buckets,
                       .bucket = stack->is_decoder ? batch->target_bucket : batch->source_bucket,
                       .dropout = dropout_at(pass, stack, l, DROP_SELF_PROBABILITIES)};
}

static Attention cross_attention(const Pass *pass, const Stack *stack, size_t l, const LayerActivations *a)
{
    const T5Config *c = &pass->model->config;
    size_t I = c->num_heads * c->d_kv;
    return (Attention){.q = a->cross_q,
                       .k = a->cross_kv,
                       .v = a->cross_kv + I,
                       .q_stride = I,
                       .kv_stride = 2 * I,
                       .queries = pass->batch->target,
                       .keys = pass->batch->source,
                       .heads = c->num_heads,
                       .d_kv = c->d_kv,
                       .dropout = dropout_at(pass, stack, l, DROP_CROSS_PROBABILITIES)};
}

static void self_attention_forward(Pass *pass, const Stack *stack, size_t l, act_t *out)
{
    const Layer *w = &stack->layers[l];
    const Sequences *seqs = stack_sequences(pass, stack);
    LayerActivations *a = &stack_activations(pass, stack)->layers[l];
    Attention attention = self_attention(pass, stack, l, a);
    norm_and_project(pass, a->qkv, a->rstd, a->x, w->self_norm, w->self_q, seqs->rows, 3 * w->self_q->rows);
    attention_forward(pass->model->dev, a->attended, a->logsumexp, &attention);
    project_and_add(pass, out, a->x, a->attended, w->self_o, seqs, dropout_at(pass, stack, l, DROP_ATTENDED));
}

static void cross_attention_forward(Pass *pass, const Stack *stack, size_t l, act_t *out)
{
    const Layer *w = &stack->layers[l];
    const Batch *batch = pass->batch;
    LayerActivations *a = &pass->decoder.layers[l];
    Attention attention = cross_attention(pass, stack, l, a);
    norm_and_project(pass, a->cross_q, a->cross_rstd, a->cross_x, w->cross_norm, w->cross_q, batch->target.rows,
                     w->cross_q->rows);
    attention_forward(pass->model->dev, a->cross_attended, a->cross_logsumexp, &attention);
    project_and_add(pass, out, a->cross_x, a->cross_attended, w->cross_o, &batch->target,
                    dropout_at(pass, stack, l, DROP_CROSS_ATTENDED));
}

static void mlp_forward(Pass *pass, const Stack *stack, size_t l, act_t *out)
{
    const Layer *w = &stack->layers[l];
    const T5Config *c = &pass->model->config;
    const Sequences *seqs = stack_sequences(pass, stack);
    LayerActivations *a = &stack_activations(pass, stack)->layers[l];
    Dropout dropout = dropout_at(pass, stack, l, DROP_HIDDEN);
    rmsnorm_forward(pass->model->dev, pass->normed, a->mlp_rstd, a->mlp_x, w->mlp_norm->data, seqs->rows, c->d_model,
                    c->layer_norm_epsilon);
    linear_mlp_forward(pass->model->dev, c->mlp, pass->hidden, a->mlp_a, pass->normed, w->wi_0->data, seqs, c->d_model,
                       c->d_ff, &dropout);
    project_and_add(pass, out, a->mlp_x, pass->hidden, w->wo, seqs, dropout_at(pass, stack, l, DROP_MLP));
}

/* The keys and values that all layers of the decoder have of the encoder's output: it is the same for all of them. */
static void cross_kv_forward(const Model *model, act_t *cross_kv, const act_t *encoder_out, size_t rows)
{
    const Stack *decoder = &model->decoder;
    const Tensor *k = decoder->layers[0].cross_k; /* and v behind it */
    linear_forward_layers(model->dev, cross_kv, encoder_out, k->data, rows, k->columns, 2 * k->rows, decoder->n_layers,
                          layer_stride(decoder), rows * 2 * k->rows);
}

/* Where weights are streamed: on the way forward layer l is read now, and next the one above it, or after the encoder's
 * last the decoder's first. */
static void enter_layer_forward(const Model *model, const Stack *stack, size_t l)
{
    WeightPiece next = {0};
    if (l + 1 < stack->n_layers)
        next = layer_weights(stack, l + 1);
    else if (!stack->is_decoder)
        next = layer_weights(&model->decoder, 0);
    weights_stream(model->dev, layer_weights(stack, l), next);
}

/* The same on the way back. */
static void enter_layer_backward(const Model *model, const Stack *stack, size_t l)
{
    WeightPiece next = {0};
    if (l > 0)
        next = layer_weights(stack, l - 1);
    else if (stack->is_decoder)
        next = layer_weights(&model->encoder, model->encoder.n_layers - 1);
    weights_stream(model->dev, layer_weights(stack, l), next);
}

/* Embedding, layers, final norm; dropout after the first and the last. */
static void stack_forward(Pass *pass, const Stack *stack)
{
    const Model *model = pass->model;
    const T5Config *c = &model->config;
    const Sequences *seqs = stack_sequences(pass, stack);
    StackActivations *acts = stack_activations(pass, stack);
    const int32_t *ids = stack->is_decoder ? pass->batch->target_inputs : pass->batch->source_ids;
    Dropout dropout_in = dropout_at(pass, stack, 0, DROP_EMBEDDING),
            dropout_out = dropout_at(pass, stack, 0, DROP_FINAL);

    embedding_forward(model->dev, acts->layers[0].x, model->shared->data, pass->prompts ? pass->prompts->rows : NULL,
                      ids, seqs->rows, c->d_model);
    dropout_forward(model->dev, acts->layers[0].x, seqs, c->d_model, &dropout_in);
    for (size_t l = 0; l < stack->n_layers; l++) {
        LayerActivations *a = &acts->layers[l];
        enter_layer_forward(model, stack, l);
        self_attention_forward(pass, stack, l, stack->is_decoder ? a->cross_x : a->mlp_x);
        if (stack->is_decoder) cross_attention_forward(pass, stack, l, a->mlp_x);
        mlp_forward(pass, stack, l, l + 1 < stack->n_layers ? acts->layers[l + 1].x : acts->x);
    }
    rmsnorm_forward(model->dev, acts->out, acts->rstd, acts->x, stack->final_norm->data, seqs->rows, c->d_model,
                    c->layer_norm_epsilon);
    dropout_forward(model->dev, acts->out, seqs, c->d_model, &dropout_out);
}

/* What the head's input is multiplied by: T5 1.0, whose head is the embedding, scales it down. */
static float head_scale(const T5Config *config)
{
    return config->tied_head ? 1 / sqrtf((float)config->d_model) : 1;
}

/* The network up to the head's input, which is then pass->decoder.out. */
static void t5_forward(Pass *pass)
{
    const Model *model = pass->model;
    stack_forward(pass, &model->encoder);
    cross_kv_forward(model, pass->decoder.cross_kv, pass->encoder.out, pass->batch->source.rows);
    stack_forward(pass, &model->decoder);
    if (model->config.tied_head)
        scale_forward(model->dev, pass->decoder.out, head_scale(&model->config),
                      pass->batch->target.rows * model->config.d_model);
}

/* --- the network, backward */

/* The entry of an attached LoRA (chapter 4) for this tensor; NULL when there is none. */
static const LoraTarget *lora_target(const Lora *lora, const Tensor *tensor)
{
    for (size_t i = 0; lora && i < lora->count; i++)
        if (lora->targets[i].tensor == tensor) return &lora->targets[i];
    return NULL;
}

/* Where gradients go. When `finished` is set, a tensor's gradient is handed over the moment the backward pass has it
 * whole, and its place is used again for the next one: the optimizer's update is fused into the backward pass and no
 * full gradient exists. Otherwise all gradients are kept, so that micro-batches can add up. */
typedef struct {
    bool weights;       /* false: prompt tuning, no weight gradient is computed at all */
    const bool *wanted; /* [n_tensors] the tensors of the table whose gradient is computed; NULL: all */
    bool accumulate;    /* not the first micro-batch of its batch */
    stat_t *kept;       /* [every tensor but shared], or NULL when handed over */
    stat_t *scratch;    /* handed over: room for the largest matrix, or neighbours that count as one */
    stat_t *bias[2];    /* handed over: of the encoder's and decoder's relative bias, to which all layers add */
    stat_t *embedding;  /* [n_touched, D]: see Batch */
    stat_t *prompts;    /* [count * length, D], or NULL */
    double *square;     /* [1], with prompts: of their gradient's norm */
    stat_t *adapters;   /* of a LoRA that is trained, [n_adapters] in its order, or NULL: see lora_gradient */
    void (*finished)(void *context, const Tensor *tensor, const stat_t *gradient);
    void *context;
} Gradients;

/* Is the gradient of any of these neighbours in the table to be computed? */
static bool gradient_wanted(const Gradients *grads, const Model *model, const Tensor *first, size_t n_tensors)
{
    bool wanted = grads->weights && !grads->wanted;
    for (size_t i = 0; grads->weights && grads->wanted && i < n_tensors; i++)
        wanted |= grads->wanted[first - model->tensors + (ptrdiff_t)i];
    return wanted;
}

static stat_t *gradient_place(const Gradients *grads, const Model *model, const Tensor *tensor)
{
    if (tensor == model->shared) return grads->embedding;
    if (grads->kept) return grads->kept + tensor->offset;
    if (tensor == model->encoder.relative_bias) return grads->bias[0];
    if (tensor == model->decoder.relative_bias) return grads->bias[1];
    return grads->scratch;
}

/* The same place, cleared unless earlier micro-batches have added to it: for kernels that add. */
static stat_t *gradient_place_to_add(const Gradients *grads, const Model *model, const Tensor *tensor, size_t rows)
{
    stat_t *place = gradient_place(grads, model, tensor);
    if (!grads->accumulate) device_clear(model->dev, place, rows * tensor->columns * sizeof *place);
    return place;
}

/* When a LoRA is trained, dW is only a step on the way: W = W0 + s B·A gives dA += s Bᵀ·dW and dB += s dW·Aᵀ, which
 * are small and kept; the place of dW is free again. Micro-batches add up in dA and dB, for both are linear in dW. */
static void lora_gradient(const Gradients *grads, const Model *model, const Tensor *tensor, const stat_t *dw)
{
    const Lora *lora = model->lora;
    const LoraTarget *target = lora_target(lora, tensor);
    lora_backward(model->dev, grads->adapters + (target->a - lora->adapters),
                  grads->adapters + (target->b - lora->adapters), dw, target->a, target->b, tensor->rows,
                  tensor->columns, lora->rank, lora->scale);
}

static void gradient_finished(const Gradients *grads, const Model *model, const Tensor *first, size_t n_tensors)
{
    const stat_t *place = gradient_place(grads, model, first), *gradient;
    for (size_t i = 0; i < n_tensors; i++) {
        if (!gradient_wanted(grads, model, &first[i], 1)) continue;
        gradient = place + (first[i].offset - first->offset);
        if (grads->adapters)
            lora_gradient(grads, model, &first[i], gradient);
        else if (grads->finished)
            grads->finished(grads->context, &first[i], gradient);
    }
}

/* The gradient of a matrix, or of neighbours that count as one: dw = dyᵀ · x. The input's gradient must have been taken
 * before, for the weights may change here. */
static void linear_gradient(const Pass *pass, const Gradients *grads, const Tensor *first, size_t n_tensors,
                            const act_t *dy, const act_t *x, size_t rows)
{
    size_t out = 0;
    if (!gradient_wanted(grads, pass->model, first, n_tensors)) return;
    for (size_t i = 0; i < n_tensors; i++) out += first[i].rows;
    linear_backward_weight(pass->model->dev, gradient_place(grads, pass->model, first), dy, x, rows, first->columns,
                           out, grads->accumulate && !grads->adapters);
    gradient_finished(grads, pass->model, first, n_tensors);
}

/* Backward of norm_and_project: from dy to the residual stream, dx += d(norm)(dy · w). stop_here: nothing below this
 * projection is trained, so only the gradient of w is wanted. */
static void norm_and_project_backward(Pass *pass, const Gradients *grads, act_t *dx, const act_t *dy, const act_t *x,
                                      stat_t *rstd, const Tensor *norm, const Tensor *w, size_t n_tensors, size_t rows,
                                      bool stop_here)
{
    const Model *model = pass->model;
    const T5Config *c = &model->config;
    stat_t *dscale = NULL;
    size_t out = 0;
    for (size_t i = 0; i < n_tensors; i++) out += w[i].rows;
    if (!stop_here) linear_backward_input(model->dev, pass->dnormed, dy, w->data, rows, c->d_model, out, false);
    if (gradient_wanted(grads, model, w, n_tensors)) {
        rmsnorm_forward(model->dev, pass->normed, rstd, x, norm->data, rows, c->d_model,
                        c->layer_norm_epsilon); /* norm(x) was not kept */
        linear_gradient(pass, grads, w, n_tensors, dy, pass->normed, rows);
    }
    if (stop_here) return;
    if (gradient_wanted(grads, model, norm, 1)) dscale = gradient_place_to_add(grads, model, norm, 1);
    rmsnorm_backward(model->dev, dx, dscale, pass->dnormed, x, rstd, norm->data, rows, c->d_model);
    if (dscale) gradient_finished(grads, model, norm, 1);
}

/* Backward of project_and_add: leaves dy, the gradient of the projection's input y; the residual's own gradient is dx
 * as it stands. */
static void project_and_add_backward(Pass *pass, const Gradients *grads, act_t *dy, const act_t *dx, const act_t *y,
                                     const Tensor *w, const Sequences *seqs, Dropout dropout)
{
    residual_backward(pass->model->dev, pass->dbranch, dx, seqs, w->rows, &dropout);
    linear_backward_input(pass->model->dev, dy, pass->dbranch, w->data, seqs->rows, w->columns, w->rows, false);
    linear_gradient(pass, grads, w, 1, pass->dbranch, y, seqs->rows);
}

static void mlp_backward(Pass *pass, const Gradients *grads, const Stack *stack, size_t l)
{
    const Layer *w = &stack->layers[l];
    const T5Config *c = &pass->model->config;
    const Sequences *seqs = stack_sequences(pass, stack);
    const LayerActivations *a = &stack_activations(pass, stack)->layers[l];
    Dropout dropout = dropout_at(pass, stack, l, DROP_HIDDEN), dropout_out = dropout_at(pass, stack, l, DROP_MLP);
    act_t *hidden = gradient_wanted(grads, pass->model, w->wo, 1) ? pass->hidden : NULL; /* wo's gradient needs it */
    if (!stack->is_decoder && l < pass->recomputed)
        norm_and_project(pass, a->mlp_a, a->mlp_rstd, a->mlp_x, w->mlp_norm, w->wi_0, seqs->rows, mlp_width(c));
    residual_backward(pass->model->dev, pass->dbranch, pass->dx, seqs, c->d_model, &dropout_out);
    linear_mlp_backward(pass->model->dev, c->mlp, pass->dmlp, pass->dhidden, hidden, pass->dbranch, w->wo->data,
                        a->mlp_a, seqs, c->d_model, c->d_ff, &dropout);
    linear_gradient(pass, grads, w->wo, 1, pass->dbranch, pass->hidden, seqs->rows);
    norm_and_project_backward(pass, grads, pass->dx, pass->dmlp, a->mlp_x, a->mlp_rstd, w->mlp_norm, w->wi_0,
                              w->wi_1 ? 2 : 1, seqs->rows, false);
}

/* Overwrites this layer's keys and values with their gradients, for cross_kv_backward. stop_here: from the queries'
 * projection downwards nothing is trained, so the way back ends at the attention. */
static void cross_attention_backward(Pass *pass, const Gradients *grads, const Stack *stack, size_t l, bool stop_here)
{
    const Layer *w = &stack->layers[l];
    const Model *model = pass->model;
    const Batch *batch = pass->batch;
    const LayerActivations *a = &pass->decoder.layers[l];
    const size_t I = w->cross_q->rows;
    Attention attention = cross_attention(pass, stack, l, a);
    project_and_add_backward(pass, grads, pass->dattended, pass->dx, a->cross_attended, w->cross_o, &batch->target,
                             dropout_at(pass, stack, l, DROP_CROSS_ATTENDED));
    attention_backward(model->dev, pass->dqkv, a->cross_kv, a->cross_kv + I, NULL, pass->dattended, a->cross_attended,
                       a->cross_logsumexp, &attention);
    if (stop_here) return;
    norm_and_project_backward(pass, grads, pass->dx, pass->dqkv, a->cross_x, a->cross_rstd, w->cross_norm, w->cross_q,
                              1, batch->target.rows, false);
}

/* From the gradients of all layers' keys and values to that of the encoder's output, dencoder (=), and to the weights
 * that made them. */
static void cross_kv_backward(Pass *pass, const Gradients *grads)
{
    const Stack *decoder = &pass->model->decoder;
    const Tensor *k = decoder->layers[0].cross_k;
    const size_t rows = pass->batch->source.rows;
    linear_backward_input_layers(pass->model->dev, pass->dencoder, pass->decoder.cross_kv, k->data, rows, k->columns,
                                 2 * k->rows, decoder->n_layers, layer_stride(decoder), rows * 2 * k->rows);
    for (size_t l = decoder->n_layers; l-- > 0;)
        linear_gradient(pass, grads, decoder->layers[l].cross_k, 2, pass->decoder.layers[l].cross_kv, pass->encoder.out,
                        rows);
}

static void self_attention_backward(Pass *pass, const Gradients *grads, const Stack *stack, size_t l, bool stop_here)
{
    const Layer *w = &stack->layers[l];
    const Model *model = pass->model;
    const Sequences *seqs = stack_sequences(pass, stack);
    const LayerActivations *a = &stack_activations(pass, stack)->layers[l];
    const size_t I = w->self_q->rows;
    stat_t *dbias = gradient_wanted(grads, model, stack->relative_bias, 1)
                        ? gradient_place(grads, model, stack->relative_bias)
                        : NULL;
    Attention attention = self_attention(pass, stack, l, a);
    project_and_add_backward(pass, grads, pass->dattended, pass->dx, a->attended, w->self_o, seqs,
                             dropout_at(pass, stack, l, DROP_ATTENDED));
    attention_backward(model->dev, pass->dqkv, pass->dqkv + I, pass->dqkv + 2 * I, dbias, pass->dattended, a->attended,
                       a->logsumexp, &attention);
    norm_and_project_backward(pass, grads, pass->dx, pass->dqkv, a->x, a->rstd, w->self_norm, w->self_q, 3, seqs->rows,
                              stop_here);
}

/* Is anything trained that the way back through a stack's lowest layer meets after `tensor`? What comes earlier in the
 * table (the relative bias first of all), the embedding, and the prompts of the encoder. */
static bool trained_below(const Model *model, const Gradients *grads, const Stack *stack, const Tensor *tensor)
{
    return (grads->prompts && !stack->is_decoder) || gradient_wanted(grads, model, model->shared, 1) ||
           gradient_wanted(grads, model, stack->relative_bias, (size_t)(tensor - stack->relative_bias));
}

/* From dout, the gradient of the stack's output (changed here), to the gradients of its weights and, for the
 * encoder, of the prompts. In the lowest layer, prompt tuning and LoRA stop as soon as nothing below is trained. */
static void stack_backward(Pass *pass, const Gradients *grads, const Stack *stack, act_t *dout)
{
    const Model *model = pass->model;
    const T5Config *c = &model->config;
    const Batch *batch = pass->batch;
    const Sequences *seqs = stack_sequences(pass, stack);
    StackActivations *acts = stack_activations(pass, stack);
    Dropout dropout_in = dropout_at(pass, stack, 0, DROP_EMBEDDING),
            dropout_out = dropout_at(pass, stack, 0, DROP_FINAL);
    const Layer *lowest = &stack->layers[0];
    bool bias_wanted = gradient_wanted(grads, model, stack->relative_bias, 1);
    stat_t *dscale = NULL;

    if (gradient_wanted(grads, model, stack->final_norm, 1))
        dscale = gradient_place_to_add(grads, model, stack->final_norm, 1);
    dropout_forward(model->dev, dout, seqs, c->d_model, &dropout_out);
    device_clear(model->dev, pass->dx, seqs->rows * c->d_model * sizeof *pass->dx);
    rmsnorm_backward(model->dev, pass->dx, dscale, dout, acts->x, acts->rstd, stack->final_norm->data, seqs->rows,
                     c->d_model);
    if (dscale) gradient_finished(grads, model, stack->final_norm, 1);
    if (bias_wanted) gradient_place_to_add(grads, model, stack->relative_bias, stack->relative_bias->rows);
    for (size_t l = stack->n_layers; l-- > 0;) {
        bool stop_here = stack->is_decoder && l == 0 && !trained_below(model, grads, stack, lowest->cross_k);
        enter_layer_backward(model, stack, l);
        mlp_backward(pass, grads, stack, l);
        if (stack->is_decoder) cross_attention_backward(pass, grads, stack, l, stop_here);
        if (stop_here) return;
        stop_here = l == 0 && !trained_below(model, grads, stack, lowest->self_q);
        self_attention_backward(pass, grads, stack, l, stop_here);
        if (stop_here) return;
    }
    if (bias_wanted) gradient_finished(grads, model, stack->relative_bias, 1);

    dropout_forward(model->dev, pass->dx, seqs, c->d_model, &dropout_in);
    if (gradient_wanted(grads, model, model->shared, 1))
        embedding_backward(
            model->dev, grads->embedding, pass->dx, stack->is_decoder ? batch->target_first : batch->source_first,
            stack->is_decoder ? batch->target_rows_of : batch->source_rows_of, batch->n_touched, c->d_model);
    if (grads->prompts && !stack->is_decoder)
        embedding_backward(model->dev, grads->prompts, pass->dx, batch->prompt_first, batch->prompt_rows_of,
                           pass->prompts->count * pass->prompts->length, c->d_model);
}

/* The head, the softmax and the loss, a chunk of rows at a time, so that the logits of a batch never exist at once.
 * With gradients, each chunk's go on at once: d(input) into ddecoder [Nt,D], d(head) summed over the chunks. Leaves
 * the loss of every target token in pass->loss. */
static void head_forward_backward(Pass *pass, const LossSettings *settings, const Gradients *grads, act_t *ddecoder)
{
    const Model *model = pass->model;
    const size_t D = model->config.d_model, V = model->config.vocab_size, rows = pass->batch->target.rows;
    const weight_t *w = model->head->data;
    for (size_t first = 0; first < rows; first += pass->logits_rows) {
        size_t n = min_size(pass->logits_rows, rows - first);
        const act_t *x = pass->decoder.out + first * D;
        head_forward(model->dev, pass->logits, x, w, n, D, V);
        softmax_cross_entropy(model->dev, pass->loss + first, grads ? pass->dlogits : NULL, pass->logits,
                              pass->batch->targets + first, n, V, settings);
        if (!grads) continue;
        linear_backward_input(model->dev, ddecoder + first * D, pass->dlogits, w, n, D, V, false);
        if (gradient_wanted(grads, model, model->head, 1))
            linear_backward_weight(model->dev, gradient_place(grads, model, model->head), pass->dlogits, x, n, D, V,
                                   grads->accumulate || first > 0);
    }
}

/* The whole of a prepared pass: leaves the loss of each target token in pass->loss and, with `grads`, makes all
 * gradients. */
static void t5_forward_backward(Pass *pass, const LossSettings *settings, const Gradients *grads)
{
    const Model *model = pass->model;
    const T5Config *c = &model->config;
    const Batch *batch = pass->batch;

    t5_forward(pass);
    /* With a tied head, the head's product writes the embedding's gradient first, and overwrites what was there. */
    if (grads && gradient_wanted(grads, model, model->shared, 1) && !c->tied_head)
        gradient_place_to_add(grads, model, model->shared, batch->n_touched);
    if (grads && grads->prompts && !grads->accumulate)
        device_clear(model->dev, grads->prompts,
                     pass->prompts->count * pass->prompts->length * c->d_model * sizeof(stat_t));
    if (grads && grads->adapters && !grads->accumulate)
        device_clear(model->dev, grads->adapters, model->lora->n_adapters * sizeof(stat_t));
    head_forward_backward(pass, settings, grads, pass->branch);
    if (grads) {
        if (!c->tied_head) gradient_finished(grads, model, model->head, 1);
        if (c->tied_head) scale_forward(model->dev, pass->branch, head_scale(c), batch->target.rows * c->d_model);
        stack_backward(pass, grads, &model->decoder, pass->branch);
        cross_kv_backward(pass, grads);
        stack_backward(pass, grads, &model->encoder, pass->dencoder);
        gradient_finished(grads, model, model->shared, 1);
    }
}

/* The same, and the loss summed over the target tokens. T5X: losses.py. */
static double t5_loss(Pass *pass, const LossSettings *settings, const Gradients *grads)
{
    const size_t rows = pass->batch->target.rows;
    float *losses = host_alloc(rows, sizeof *losses);
    double loss = 0;
    t5_forward_backward(pass, settings, grads);
    stats_download(pass->model->dev, losses, pass->loss, rows);
    for (size_t i = 0; i < rows; i++) loss += losses[i];
    free(losses);
    return loss;
}

/* ================================================================================================================
 * [4] Soft prompts and LoRA
 *
 * A soft prompt is P rows in front of the encoder's embedded input; it takes part in dropout and in the relative
 * positions like any token, and the decoder attends to it. How it enters the network was seen in chapter 3: a negative
 * id -1-p looks up prompt row p, and the gradients of these rows are summed over the batch. Here: how a prompt begins,
 * and how it comes from and goes to a file. (prompt-tuning: prompts.py, train/prompts.py.)
 *
 * LoRA (Hu et al. 2021) is the other small thing that can learn a task's format while the model is frozen: to some of
 * its matrices a product of two thin ones is added, W = W0 + s B·A with A [rank, in], B [out, rank], s = alpha / rank.
 * The merged W lies in the model's memory, so forward and backward pass are those of chapter 3, and the gradient of W
 * gives those of A and B by the chain rule (lora_gradient): exactly what separate products x·Aᵀ·Bᵀ would give, as long
 * as there is no dropout between them (PEFT's default too). In ProMoT's second stage A and B stay as they are, W0 is
 * trained, for which dW0 = dW, and W is merged again after each update. */

/* --- soft prompts */

enum { PROMPT_POPULATION = 5000 }; /* "sampled" draws among the first ids: special ones, bytes, frequent pieces */

static int prompts_allocate(Prompts *prompts, const Model *model, size_t count, size_t length, Error *error)
{
    prompts->count = count;
    prompts->length = length;
    prompts->rows = weights_alloc(max_size(1, count * length * model->config.d_model));
    if (!prompts->rows)
        return error_set(error, EXIT_FAILED, "memory: no room for %zu prompts of %zu rows", count, length);
    return 0;
}

static void prompts_free(Prompts *prompts)
{
    weights_free(prompts->rows);
    memset(prompts, 0, sizeof *prompts);
}

static weight_t *prompt_rows(const Prompts *prompts, const Model *model, size_t which)
{
    return prompts->rows + which * prompts->length * model->config.d_model;
}

/* Embedding rows drawn from the first ids, each at most once unless the prompt is longer than the population. */
static void prompt_init_sampled(const Model *model, float *rows, size_t first, size_t length, uint64_t seed)
{
    size_t D = model->config.d_model, population = min_size(PROMPT_POPULATION, model->config.vocab_size);
    size_t *ids = host_alloc(population, sizeof *ids);
    for (size_t i = 0; i < population; i++) ids[i] = i;
    for (size_t p = first; p < length; p++) {
        size_t at = (p - first) % population; /* a shuffle, drawn as far as it is needed; begun again when used up */
        size_t other = at + (size_t)(random_uniform(seed, p) * (double)(population - at));
        size_t id = ids[other];
        ids[other] = ids[at];
        ids[at] = id;
        weights_download(model->dev, rows + p * D, model->shared->data + id * D, D);
    }
    free(ids);
}

/* `text:…`: the embeddings of a text's tokens; the rows that it does not reach are sampled. */
static int prompt_init_text(const Model *model, const Tokenizer *tokenizer, const char *text, float *rows,
                            size_t length, uint64_t seed, Error *error)
{
    size_t D = model->config.d_model, count;
    int32_t *ids;
    int status = 0;
    if (tokenizer_encode(tokenizer, text, strlen(text), &ids, &count, error)) return -1;
    count = min_size(count, length);
    for (size_t p = 0; !status && p < count; p++) {
        if ((size_t)ids[p] >= model->config.vocab_size)
            status = error_set(error, EXIT_USAGE, "--prompt-init: piece %s (expected one that the model has a row for)",
                               tokenizer_piece(tokenizer, ids[p]));
        else
            weights_download(model->dev, rows + p * D, model->shared->data + (size_t)ids[p] * D, D);
    }
    free(ids);
    if (!status) prompt_init_sampled(model, rows, count, length, seed);
    return status;
}

static int prompt_load(const Model *model, const Prompts *prompts, size_t which, const char *path, Error *error)
{
    float *rows;
    size_t length, width;
    if (prompt_file_read(path, &rows, &length, &width, error)) return -1;
    if (width != model->config.d_model || length != prompts->length) {
        free(rows);
        return error_set(error, EXIT_USAGE, "%s: shape of the prompt (expected [%zu, %zu], found [%zu, %zu])", path,
                         prompts->length, model->config.d_model, length, width);
    }
    weights_upload(model->dev, prompt_rows(prompts, model, which), rows, length * width);
    free(rows);
    return 0;
}

/* One prompt from a file, as generate and eval take it. */
static int prompts_open(Prompts *prompts, const Model *model, const char *path, Error *error)
{
    float *rows;
    size_t length, width;
    int status;
    if (prompt_file_read(path, &rows, &length, &width, error)) return -1;
    if (width != model->config.d_model)
        status = error_set(error, EXIT_USAGE, "%s: width of the prompt (expected d_model %zu, found %zu)", path,
                           model->config.d_model, width);
    else
        status = prompts_allocate(prompts, model, 1, length, error);
    if (!status) weights_upload(model->dev, prompts->rows, rows, length * width);
    free(rows);
    return status;
}

/* init: "sampled", "uniform", "text:…" or "file:…". */
static int prompt_init(const Model *model, const Tokenizer *tokenizer, const Prompts *prompts, size_t which,
                       const char *init, uint64_t seed, Error *error)
{
    size_t n = prompts->length * model->config.d_model;
    float *rows;
    int status = 0;
    seed = random_fold(seed, which);
    if (strncmp(init, "file:", 5) == 0) return prompt_load(model, prompts, which, init + 5, error);
    rows = host_alloc(n, sizeof *rows);
    if (strcmp(init, "sampled") == 0)
        prompt_init_sampled(model, rows, 0, prompts->length, seed);
    else if (strcmp(init, "uniform") == 0) /* flax's uniform(scale=0.5): [0, 0.5), not around 0 */
        for (size_t i = 0; i < n; i++) rows[i] = (float)(0.5 * random_uniform(seed, i));
    else if (strncmp(init, "text:", 5) == 0)
        status = prompt_init_text(model, tokenizer, init + 5, rows, prompts->length, seed, error);
    else
        status =
            error_set(error, EXIT_USAGE, "--prompt-init: expected sampled, uniform, text:… or file:…, found %s", init);
    if (!status) weights_upload(model->dev, prompt_rows(prompts, model, which), rows, n);
    free(rows);
    return status;
}

/* Writes prompt `which` as a PEFT adapter. */
static int prompt_write(const Model *model, const Prompts *prompts, size_t which, const char *base_model,
                        const char *init, const char *directory, Error *error)
{
    const T5Config *c = &model->config;
    bool from_text = strncmp(init, "text:", 5) == 0;
    PromptInfo info = {.base_model = base_model,
                       .num_layers = c->num_layers,
                       .num_attention_heads = c->num_heads,
                       .token_dim = c->d_model,
                       .init = from_text                      ? "TEXT"
                               : strcmp(init, "sampled") == 0 ? "SAMPLE_VOCAB"
                                                              : "RANDOM",
                       .init_text = from_text ? init + 5 : NULL};
    float *rows = host_alloc(prompts->length * c->d_model, sizeof *rows);
    int status;
    weights_download(model->dev, rows, prompt_rows(prompts, model, which), prompts->length * c->d_model);
    status = prompt_file_write(directory, rows, prompts->length, &info, error);
    free(rows);
    return status;
}

/* Writes prompt `which` as the T5X prompt-tuning code reads it. */
static int prompt_write_npy(const Model *model, const Prompts *prompts, size_t which, const char *path, Error *error)
{
    const size_t D = model->config.d_model;
    float *rows = host_alloc(prompts->length * D, sizeof *rows);
    int status;
    weights_download(model->dev, rows, prompt_rows(prompts, model, which), prompts->length * D);
    status = npy_write(path, rows, prompts->length, D, error);
    free(rows);
    return status;
}

/* --- LoRA */

/* Can this tensor be a target: is it a matrix of a layer? */
static bool lora_can_target(const Model *model, const Tensor *tensor)
{
    return is_of_a_layer(model, tensor) && !tensor->is_vector;
}

/* PEFT's rule for target_modules: a module's name is the target, or ends with a dot and the target. */
static bool lora_name_matches(const Tensor *tensor, const char *target, size_t length)
{
    size_t name_length = strlen(tensor->name) - strlen(".weight");
    const char *end;
    if (length == 0 || name_length < length) return false;
    end = tensor->name + name_length - length;
    return strncmp(end, target, length) == 0 && (end == tensor->name || end[-1] == '.');
}

/* Which tensors `targets` names: [n_tensors], to be freed; NULL when one of the names is no matrix of this model. */
static bool *lora_select(const Model *model, const char *targets, Error *error)
{
    bool *wanted = host_alloc(model->n_tensors, sizeof *wanted), all = strcmp(targets, "all-linear") == 0;
    for (const char *at = targets; at; at = strchr(at, ','), at = at ? at + 1 : NULL) {
        size_t length = strcspn(at, ","), found = 0;
        for (size_t t = 0; t < model->n_tensors; t++)
            if (lora_can_target(model, &model->tensors[t]) &&
                (all || lora_name_matches(&model->tensors[t], at, length)))
                wanted[t] = true, found++;
        if (found) continue;
        error_set(
            error, EXIT_USAGE,
            "LoRA targets: expected names of matrices between commas (of q, k, v, o, %s, wo) or all-linear, found "
            "\"%.*s\"",
            model->config.mlp == MLP_GATED_GELU ? "wi_0, wi_1" : "wi", (int)min_size(length, 60), at);
        free(wanted);
        return NULL;
    }
    return wanted;
}

/* Lists the wanted tensors, and lays out A, B and W0 of each in the adapter's memory, where there is some already. */
static void lora_layout(Lora *lora, const Model *model)
{
    lora->count = lora->n_adapters = lora->n_bases = 0;
    for (size_t t = 0; t < model->n_tensors; t++) {
        const Tensor *tensor = &model->tensors[t];
        LoraTarget *target = &lora->targets[lora->count];
        if (!lora->wanted[t]) continue;
        lora->count++;
        *target = (LoraTarget){.tensor = tensor};
        if (lora->adapters) {
            target->a = lora->adapters + lora->n_adapters;
            target->b = target->a + lora->rank * tensor->columns;
            target->base = lora->bases + lora->n_bases;
        }
        lora->n_adapters += lora->rank * (tensor->rows + tensor->columns);
        lora->n_bases += tensor->rows * tensor->columns;
    }
}

static void lora_free(Lora *lora)
{
    if (!lora) return;
    free(lora->targets);
    free(lora->wanted);
    weights_free(lora->adapters);
    weights_free(lora->bases);
    free(lora);
}

/* Attaches an adapter whose A and B are still to be set, and takes over `wanted`. An adapter that is attached already
 * is detached once there is memory for the new one. */
static int lora_attach(Model *model, bool *wanted, size_t rank, double alpha, bool rank_stabilised, Error *error)
{
    Lora *lora;
    if (weights_park(model->dev, model->weights, false, error)) { /* W is about to change */
        free(wanted);
        return -1;
    }
    lora = host_alloc(1, sizeof *lora);
    *lora = (Lora){.rank = rank, .alpha = alpha, .rank_stabilised = rank_stabilised, .wanted = wanted};
    lora->scale = (float)(alpha / (rank_stabilised ? sqrt((double)rank) : (double)rank));
    lora->targets = host_alloc(model->n_tensors, sizeof *lora->targets);
    lora_layout(lora, model);
    lora->adapters = weights_alloc(lora->n_adapters);
    lora->bases = lora->adapters ? weights_alloc(lora->n_bases) : NULL;
    if (!lora->bases) {
        error_set(error, EXIT_FAILED, "memory: no room for a LoRA of rank %zu (%.1f MB)", rank,
                  (double)((lora->n_adapters + lora->n_bases) * WEIGHT_BYTES) / 1e6);
        lora_free(lora);
        return -1;
    }
    lora_detach(model);
    lora_layout(lora, model);
    for (size_t i = 0; i < lora->count; i++) {
        const Tensor *tensor = lora->targets[i].tensor;
        weights_copy(model->dev, lora->targets[i].base, tensor->data, tensor->rows * tensor->columns);
    }
    model->lora = lora;
    return 0;
}

static void lora_merge_target(const Model *model, const LoraTarget *target)
{
    const Tensor *tensor = target->tensor;
    lora_merge_forward(model->dev, tensor->data, target->base, target->a, target->b, tensor->rows, tensor->columns,
                       model->lora->rank, model->lora->scale);
}

void lora_merge(const Model *model)
{
    for (size_t i = 0; model->lora && i < model->lora->count; i++) lora_merge_target(model, &model->lora->targets[i]);
}

void lora_unmerge(const Model *model)
{
    for (size_t i = 0; model->lora && i < model->lora->count; i++) {
        const Tensor *tensor = model->lora->targets[i].tensor;
        weights_copy(model->dev, tensor->data, model->lora->targets[i].base, tensor->rows * tensor->columns);
    }
}

void lora_detach(Model *model)
{
    lora_unmerge(model);
    lora_free(model->lora);
    model->lora = NULL;
}

enum { LORA_RANK_LIMIT = 1 << 16 };

/* A is kaiming_uniform(a = sqrt 5) as in PEFT, which is uniform within 1 / sqrt(in); B is zero, so that W = W0. */
int lora_create(Model *model, const char *targets, size_t rank, double alpha, uint64_t seed, Error *error)
{
    bool *wanted;
    if (rank < 1 || rank > LORA_RANK_LIMIT)
        return error_set(error, EXIT_USAGE, "LoRA rank: expected 1 to %d, found %zu", LORA_RANK_LIMIT, rank);
    if (!isfinite(alpha)) return error_set(error, EXIT_USAGE, "LoRA alpha: expected a number, found %g", alpha);
    if (!(wanted = lora_select(model, targets, error))) return -1;
    if (lora_attach(model, wanted, rank, alpha, false, error)) return -1;
    for (size_t i = 0; i < model->lora->count; i++) {
        const LoraTarget *target = &model->lora->targets[i];
        size_t n = rank * target->tensor->columns, n_b = rank * target->tensor->rows;
        double bound = 1 / sqrt((double)target->tensor->columns);
        uint64_t key = random_fold(seed, (uint64_t)(target->tensor - model->tensors));
        float *a = host_alloc(n, sizeof *a), *b = host_alloc(n_b, sizeof *b);
        for (size_t k = 0; k < n; k++) a[k] = (float)(bound * (2 * random_uniform(key, k) - 1));
        weights_upload(model->dev, target->a, a, n);
        weights_upload(model->dev, target->b, b, n_b);
        free(a);
        free(b);
    }
    return 0;
}

/* The tensor that a module of an adapter's file belongs to, if it can be a target and its matrices fit. */
static const Tensor *lora_find_tensor(const Model *model, const LoraModule *module, const char *path, Error *error)
{
    const Tensor *found = NULL;
    for (size_t t = 0; !found && t < model->n_tensors; t++) {
        const Tensor *tensor = &model->tensors[t];
        size_t length = strlen(tensor->name) - strlen(".weight");
        if (lora_can_target(model, tensor) && strlen(module->name) == length &&
            strncmp(tensor->name, module->name, length) == 0)
            found = tensor;
    }
    if (!found)
        error_set(error, EXIT_USAGE, "%.600s: %.200s: is no matrix of a layer of this model", path, module->name);
    else if (found->rows != module->out || found->columns != module->in) {
        error_set(error, EXIT_USAGE, "%.600s: %.200s: size of the matrix (expected %zu x %zu, found %zu x %zu)", path,
                  module->name, found->rows, found->columns, module->out, module->in);
        found = NULL;
    }
    return found;
}

int lora_open(Model *model, const char *directory, Error *error)
{
    LoraFile file;
    bool *wanted;
    size_t *module_of; /* [n_tensors] */
    int status;
    if (lora_file_read(&file, directory, error)) return -1;
    wanted = host_alloc(model->n_tensors, sizeof *wanted);
    module_of = host_alloc(model->n_tensors, sizeof *module_of);
    status = 0;
    for (size_t i = 0; !status && i < file.count; i++) {
        const Tensor *tensor = lora_find_tensor(model, &file.modules[i], directory, error);
        status = tensor ? 0 : -1;
        if (tensor) wanted[tensor - model->tensors] = true, module_of[tensor - model->tensors] = i;
    }
    if (status)
        free(wanted);
    else
        status = lora_attach(model, wanted, file.rank, file.alpha, file.rank_stabilised, error);
    for (size_t i = 0; !status && i < model->lora->count; i++) {
        const LoraTarget *target = &model->lora->targets[i];
        const LoraModule *module = &file.modules[module_of[target->tensor - model->tensors]];
        weights_upload(model->dev, target->a, module->a, file.rank * module->in);
        weights_upload(model->dev, target->b, module->b, file.rank * module->out);
    }
    if (!status) lora_merge(model);
    free(module_of);
    lora_file_free(&file);
    return status;
}

/* The short name of a target, "q", if all matrices of that name are targets; otherwise its whole name. PEFT's
 * target_modules with these names finds exactly the targets. To be freed. */
static char *lora_target_name(const Model *model, const Tensor *tensor)
{
    size_t length = strlen(tensor->name) - strlen(".weight"), start = length;
    bool all = true;
    while (tensor->name[start - 1] != '.') start--;
    for (size_t t = 0; t < model->n_tensors; t++)
        if (lora_can_target(model, &model->tensors[t]) &&
            lora_name_matches(&model->tensors[t], tensor->name + start, length - start))
            all &= model->lora->wanted[t];
    if (!all) start = 0;
    return text_format("%.*s", (int)(length - start), tensor->name + start);
}

int lora_write(const Model *model, const char *directory, const char *base_model, Error *error)
{
    const Lora *lora = model->lora;
    LoraFile file = {.rank = lora->rank,
                     .alpha = lora->alpha,
                     .rank_stabilised = lora->rank_stabilised,
                     .count = lora->count,
                     .modules = host_alloc(lora->count, sizeof *file.modules)};
    char **targets = host_alloc(lora->count, sizeof *targets);
    size_t n_targets = 0;
    int status;
    for (size_t i = 0; i < lora->count; i++) {
        const LoraTarget *target = &lora->targets[i];
        const Tensor *tensor = target->tensor;
        LoraModule *module = &file.modules[i];
        char *name = lora_target_name(model, tensor);
        bool is_new = true;
        *module =
            (LoraModule){.name = text_format("%.*s", (int)(strlen(tensor->name) - strlen(".weight")), tensor->name),
                         .in = tensor->columns,
                         .out = tensor->rows,
                         .a = host_alloc(lora->rank * tensor->columns, sizeof *module->a),
                         .b = host_alloc(lora->rank * tensor->rows, sizeof *module->b)};
        weights_download(model->dev, module->a, target->a, lora->rank * tensor->columns);
        weights_download(model->dev, module->b, target->b, lora->rank * tensor->rows);
        for (size_t k = 0; k < n_targets; k++) is_new &= strcmp(targets[k], name) != 0;
        if (is_new)
            targets[n_targets++] = name;
        else
            free(name);
    }
    status = lora_file_write(&file, directory, base_model, (const char *const *)targets, n_targets, error);
    for (size_t k = 0; k < n_targets; k++) free(targets[k]);
    free(targets);
    lora_file_free(&file);
    return status;
}

/* ================================================================================================================
 * [5] Adafactor
 *
 * T5X's Adafactor (t5x/adafactor.py; Shazeer & Stern 2018), which is not Hugging Face's. For a tensor p with
 * gradient g:
 *
 *   alpha = (step + 1)^-0.8, beta = 1 - alpha                    as beta rises, v averages over more and more steps
 *   v     = beta v + alpha (g^2 + 1e-30)                         or, factored, only its row and column means R and C
 *   y     = g / sqrt(v)                                          factored: v = R C / mean(R)
 *   y     = y / max(1, rms(y) / clip)                            the update as a whole has at most rms clip
 *   p     = (1 - weight_decay) p - lr max(1e-3, rms(p)) y        without the max(…) when scale_by_parameter is off
 *
 * A matrix whose smaller side is at least 128 is factored, everything else is not. Clipping is per tensor and there is
 * no global norm: the update of a tensor needs no other tensor's gradient, which is why it can be made in the middle of
 * the backward pass, exactly. The embedding's gradient is zero but for the rows in the batch, and the same update is
 * computed from these rows (adafactor_update_rows); weight decay would touch every row, and takes the long way.
 *
 * The arithmetic on tensors is chapter 2's adafactor_update. Here: the moments, the schedules, and who is updated. */

enum { FACTORED_FROM = 128 }; /* min_dim_size_to_factor */

typedef struct {
    const Model *model;
    bool trains_model, trains_prompts, trains_lora;
    SecondMoment *moments; /* [n_tensors + n_prompts + 2 n_targets]: the model's, the prompts', A's and B's of each LoRA
                              target in turn; all NULL for what is not trained */
    stat_t *memory;        /* all moments */
    size_t size;           /* of memory, in elements: what a saved state holds */
    stat_t *row_squares;   /* of all factored weights of the model, one after another */
    size_t n_row_squares;
    bool embedding_by_rows;
    AdafactorSettings model_settings, prompt_settings, lora_settings;
    AdafactorStep model_step, prompt_step, lora_step; /* of the running step */
    const Batch *batch;                               /* of the running step: which embedding rows have a gradient */
} Adafactor;

/* The learning rate of a stage's step. Warmup and rsqrt count from first_step on and are T5X's, as is the floor
 * (t5x/utils.py, create_learning_rate_scheduler); linear falls towards 0 over the stage's own steps. */
static double learning_rate_at(const AdafactorSettings *s, int64_t step)
{
    double t = (double)(s->first_step + step), warmup = (double)(s->warmup > 0 ? s->warmup : 1),
           rate = s->learning_rate;
    switch (s->schedule) {
    case SCHEDULE_CONSTANT:
        break;
    case SCHEDULE_WARMUP:
        rate *= fmin(1, t / warmup);
        break;
    case SCHEDULE_RSQRT:
        rate /= sqrt(fmax(t, warmup));
        break;
    case SCHEDULE_LINEAR:
        rate *= 1 - (double)step / (double)(s->total_steps > 0 ? s->total_steps : 1);
        break;
    }
    return fmax(rate, 1e-8);
}

static AdafactorStep adafactor_step(const AdafactorSettings *s, int64_t step)
{
    return (AdafactorStep){.learning_rate = learning_rate_at(s, step),
                           .alpha = pow((double)(s->first_step + step) + 1, -s->decay_rate),
                           .clip = s->clip,
                           .weight_decay = s->weight_decay,
                           .epsilon1 = 1e-30,
                           .epsilon2 = 1e-3,
                           .scale_by_parameter = s->scale_by_parameter};
}

static bool is_factored(size_t rows, size_t columns, bool is_vector)
{
    return !is_vector && rows >= FACTORED_FROM && columns >= FACTORED_FROM;
}

/* Lays out the moments of one tensor at memory + *size (or only counts, when memory is NULL). */
static SecondMoment moment_layout(stat_t *memory, size_t *size, size_t rows, size_t columns, bool is_vector)
{
    SecondMoment moment = {0};
    stat_t *at = memory ? memory + *size : NULL;
    if (is_factored(rows, columns, is_vector)) {
        *size += rows + columns;
        if (at) moment.row = at, moment.column = at + rows;
    } else {
        *size += rows * columns;
        moment.whole = at;
    }
    return moment;
}

static void moments_layout(Adafactor *a, const Prompts *prompts)
{
    const Model *model = a->model;
    a->size = a->n_row_squares = 0;
    for (size_t i = 0; a->trains_model && i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        a->moments[i] = moment_layout(a->memory, &a->size, t->rows, t->columns, t->is_vector);
        if (!is_factored(t->rows, t->columns, t->is_vector)) continue;
        if (a->row_squares) a->moments[i].row_squares = a->row_squares + a->n_row_squares;
        a->n_row_squares += t->rows;
    }
    for (size_t i = 0; a->trains_prompts && i < prompts->count; i++)
        a->moments[model->n_tensors + i] =
            moment_layout(a->memory, &a->size, prompts->length, model->config.d_model, false);
    for (size_t i = 0; a->trains_lora && i < model->lora->count; i++) {
        const Tensor *t = model->lora->targets[i].tensor;
        SecondMoment *moments = a->moments + model->n_tensors + (prompts ? prompts->count : 0) + 2 * i;
        moments[0] = moment_layout(a->memory, &a->size, model->lora->rank, t->columns, false);
        moments[1] = moment_layout(a->memory, &a->size, t->rows, model->lora->rank, false);
    }
}

/* Can the embedding's gradient be held and used by rows? */
static bool embedding_by_rows(const T5Config *c, double weight_decay)
{
    return !c->tied_head && weight_decay == 0 && is_factored(c->vocab_size, c->d_model, false);
}

static void adafactor_free(Adafactor *a)
{
    free(a->moments);
    device_free(a->memory);
    device_free(a->row_squares);
    memset(a, 0, sizeof *a);
}

/* The sums of squares of the weights as they are now (of a LoRA's target, its W0), from which updates take rms(p). The
 * updates keep them up to date themselves; this is for weights that came from elsewhere. */
static void adafactor_measure_weights(const Adafactor *a)
{
    const Model *model = a->model;
    for (size_t i = 0; a->trains_model && i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        const LoraTarget *target = lora_target(model->lora, t);
        if (a->moments[i].row_squares)
            rows_sum_of_squares(model->dev, a->moments[i].row_squares, target ? target->base : t->data, t->rows,
                                t->columns);
    }
}

/* Fresh moments, all zero. Settings NULL: the model, the prompts, or the model's LoRA, are not trained. */
static int adafactor_create(Adafactor *a, const Model *model, const Prompts *prompts,
                            const AdafactorSettings *model_settings, const AdafactorSettings *prompt_settings,
                            const AdafactorSettings *lora_settings, Error *error)
{
    *a = (Adafactor){.model = model,
                     .embedding_by_rows =
                         model_settings && embedding_by_rows(&model->config, model_settings->weight_decay),
                     .trains_model = model_settings != NULL,
                     .trains_prompts = prompt_settings != NULL,
                     .trains_lora = lora_settings != NULL};
    a->moments =
        host_alloc(model->n_tensors + (prompts ? prompts->count : 0) + (lora_settings ? 2 * model->lora->count : 0),
                   sizeof *a->moments);
    moments_layout(a, prompts);
    a->memory = device_alloc(max_size(1, a->size) * sizeof *a->memory);
    a->row_squares = device_alloc(max_size(1, a->n_row_squares) * sizeof *a->row_squares);
    if (!a->memory || !a->row_squares) {
        error_set(error, EXIT_FAILED, "memory: no room for Adafactor's moments (%.1f MB)",
                  (double)((a->size + a->n_row_squares) * sizeof *a->memory) / 1e6);
        adafactor_free(a);
        return -1;
    }
    device_clear(model->dev, a->memory, a->size * sizeof *a->memory);
    moments_layout(a, prompts);
    adafactor_measure_weights(a);
    if (model_settings) a->model_settings = *model_settings;
    if (prompt_settings) a->prompt_settings = *prompt_settings;
    if (lora_settings) a->lora_settings = *lora_settings;
    return 0;
}

/* What is the same for all tensors of step `step` of this stage. batch: any micro-batch of it, for the touched rows. */
static void adafactor_begin_step(Adafactor *a, int64_t step, const Batch *batch)
{
    a->model_step = adafactor_step(&a->model_settings, step);
    a->prompt_step = adafactor_step(&a->prompt_settings, step);
    a->lora_step = adafactor_step(&a->lora_settings, step);
    a->batch = batch;
}

/* Updates one tensor of the model; of a target of a LoRA, that is W0, and W is merged again. It is a Gradients'
 * `finished`: the fused update. */
static void adafactor_update_tensor(void *context, const Tensor *tensor, const stat_t *gradient)
{
    const Adafactor *a = context;
    const Model *model = a->model;
    const SecondMoment *moment = &a->moments[tensor - model->tensors];
    const LoraTarget *target = lora_target(model->lora, tensor);
    if (target) {
        adafactor_update(model->dev, target->base, gradient, moment, tensor->rows, tensor->columns, &a->model_step);
        lora_merge_target(model, target);
    } else if (tensor == model->shared && a->batch->touched)
        adafactor_update_rows(model->dev, tensor->data, gradient, a->batch->touched, a->batch->n_touched, moment,
                              tensor->rows, tensor->columns, &a->model_step);
    else
        adafactor_update(model->dev, tensor->data, gradient, moment, tensor->rows, tensor->columns, &a->model_step);
}

/* Updates A and B of every target from their gradients, laid out as they are. */
static void adafactor_update_lora(const Adafactor *a, const SecondMoment *moments, const stat_t *gradients)
{
    const Model *model = a->model;
    const Lora *lora = model->lora;
    for (size_t i = 0; i < lora->count; i++) {
        const LoraTarget *target = &lora->targets[i];
        adafactor_update(model->dev, target->a, gradients + (target->a - lora->adapters), &moments[2 * i], lora->rank,
                         target->tensor->columns, &a->lora_step);
        adafactor_update(model->dev, target->b, gradients + (target->b - lora->adapters), &moments[2 * i + 1],
                         target->tensor->rows, lora->rank, &a->lora_step);
        lora_merge_target(model, target);
    }
}

/* Updates everything from kept gradients (fused ones have been used by now): the model's, the prompts', the LoRA's. */
static void adafactor_update_kept(Adafactor *a, const Gradients *grads, const Prompts *prompts)
{
    const Model *model = a->model;
    size_t n = prompts ? prompts->length * model->config.d_model : 0;
    for (size_t i = 0; a->trains_model && !grads->finished && i < model->n_tensors; i++)
        adafactor_update_tensor(a, &model->tensors[i], gradient_place(grads, model, &model->tensors[i]));
    for (size_t p = 0; a->trains_prompts && p < prompts->count; p++)
        adafactor_update(model->dev, prompt_rows(prompts, model, p), grads->prompts + p * n,
                         &a->moments[model->n_tensors + p], prompts->length, model->config.d_model, &a->prompt_step);
    if (a->trains_lora)
        adafactor_update_lora(a, a->moments + model->n_tensors + (prompts ? prompts->count : 0), grads->adapters);
}

/* --- memory for the gradients */

/* The largest gradient that the fused backward pass holds at a time: a matrix, or neighbours that count as one. */
static size_t largest_layer_gradient(const T5Config *c)
{
    size_t D = c->d_model, I = c->num_heads * c->d_kv, F = c->d_ff;
    return max_size(3 * I * D, 2 * F * D);
}

static size_t largest_gradient(const T5Config *c)
{
    size_t of_layers = largest_layer_gradient(c);
    return c->tied_head ? of_layers : max_size(of_layers, c->vocab_size * c->d_model);
}

typedef struct {
    bool model, prompts, keep; /* what is trained; keep: several micro-batches make a batch */
    size_t n_touched;          /* most rows that the embedding's gradient can have */
    size_t n_adapters;         /* elements of a LoRA that is trained, without the model; 0: none */
} GradientPlan;

/* Lays out the gradients of a plan in an arena (or counts, without one). */
static void gradients_layout(Arena *arena, Gradients *grads, const T5Config *c, size_t n_weights,
                             const GradientPlan *plan, size_t n_prompt_rows)
{
    memset(grads, 0, sizeof *grads);
    grads->weights = plan->model || plan->n_adapters;
    if (plan->n_adapters) {
        grads->scratch = arena_take(arena, largest_layer_gradient(c), sizeof(stat_t));
        grads->adapters = arena_take(arena, plan->n_adapters, sizeof(stat_t));
    }
    if (plan->model) {
        if (plan->keep) {
            grads->kept = arena_take(arena, n_weights - c->vocab_size * c->d_model, sizeof(stat_t));
        } else {
            grads->scratch = arena_take(arena, largest_gradient(c), sizeof(stat_t));
            grads->bias[0] = arena_take(arena, c->buckets * c->num_heads, sizeof(stat_t));
            grads->bias[1] = arena_take(arena, c->buckets * c->num_heads, sizeof(stat_t));
        }
        grads->embedding = arena_take(arena, plan->n_touched * c->d_model, sizeof(stat_t));
    }
    if (!plan->prompts) return;
    grads->prompts = arena_take(arena, n_prompt_rows * c->d_model, sizeof(stat_t));
    grads->square = arena_take(arena, 1, sizeof *grads->square);
}

static int gradients_create(Gradients *grads, char **memory, const Model *model, const GradientPlan *plan,
                            size_t n_prompt_rows, Error *error)
{
    Arena arena = {0};
    gradients_layout(&arena, grads, &model->config, model->n_weights, plan, n_prompt_rows);
    *memory = device_alloc(max_size(1, arena.used));
    if (!*memory)
        return error_set(error, EXIT_FAILED, "memory: no room for the gradients (%.1f GB)", (double)arena.used / 1e9);
    arena = (Arena){.base = *memory};
    gradients_layout(&arena, grads, &model->config, model->n_weights, plan, n_prompt_rows);
    if (plan->n_adapters) grads->wanted = model->lora->wanted;
    return 0;
}

/* The bytes of an attached adapter and, when it is trained, of its gradients and moments. */
static size_t lora_memory(const Model *model, bool trained)
{
    const Lora *lora = model->lora;
    size_t bytes = (lora->n_adapters + lora->n_bases) * WEIGHT_BYTES;
    if (trained) bytes += (largest_layer_gradient(&model->config) + 2 * lora->n_adapters) * sizeof(stat_t);
    return bytes;
}

size_t lora_bytes(const T5Config *config, const char *targets, size_t rank, bool trained, Error *error)
{
    Model model = {.config = *config};
    Lora lora = {.rank = rank};
    GradientPlan plan = {0};
    Gradients grads;
    Arena arena = {0};
    size_t moments = 0;
    table_build(&model);
    if ((lora.wanted = lora_select(&model, targets, error))) {
        lora.targets = host_alloc(model.n_tensors, sizeof *lora.targets);
        lora_layout(&lora, &model);
        plan.n_adapters = lora.n_adapters;
        gradients_layout(&arena, &grads, config, model.n_weights, &plan, 0);
        for (size_t i = 0; i < lora.count; i++) {
            moment_layout(NULL, &moments, rank, lora.targets[i].tensor->columns, false);
            moment_layout(NULL, &moments, lora.targets[i].tensor->rows, rank, false);
        }
        free(lora.targets);
        free(lora.wanted);
    }
    table_free(&model);
    return (lora.n_adapters + lora.n_bases) * WEIGHT_BYTES + (trained ? arena.used + moments * sizeof(stat_t) : 0);
}

/* ================================================================================================================
 * [6] Decoding
 *
 * The encoder runs once; its keys and values are projected once for each decoder layer. Then one token a step: each
 * live row (a beam of an input) looks at a cache of what earlier steps computed. The cache holds q|k|v of every step
 * and row where the projection wrote it, and is never moved: when beams are reordered, or finished inputs are dropped,
 * only the table of ancestors changes, which says for each row where in the cache its past is.
 *
 * Three ways to choose: the arg-max (greedy) or a sample; beam search with T5X's rule (t5x/decoding.py); beam search
 * with Hugging Face's (generation/utils.py, _beam_search). The results do not depend on how inputs are batched, to the
 * last bit: no kernel lets a row see how many others there are. */

/* Of a Greedy (promot.h): a sketch of the head takes about as long to make as SKETCH_AFTER steps take without one.
 * Outputs that may have LONG_OUTPUT tokens mostly have more than SKETCH_AFTER, so it is made at once; otherwise only
 * after so many steps, since it does not pay for a word or two. */
enum { SKETCH_AFTER = 4, LONG_OUTPUT = 16 };

typedef struct {
    const Model *model;
    Greedy *greedy; /* NULL: more is wanted than each row's best word */
    Pass *pass;     /* the encoder's pass: its output and lengths */
    Batch *batch;
    size_t capacity, max_steps; /* rows, steps */
    act_t **cache;              /* for each decoder layer: [max_steps, capacity, 3I] */
    act_t *cross_kv;            /* [L, Ns, 2I] */
    act_t *x, *y, *normed, *branch, *q, *attended, *mlp_a, *hidden;
    logit_t *logits;
    size_t logits_rows;
    stat_t *rstd, *logsumexp, *logp;
    int32_t *words, *ids, *ancestors; /* device */
    int32_t *rows_of_inputs; /* device: [4, inputs] start and length of each live input's rows, and of its source */
    int32_t *bucket;
    int32_t *host_ancestors, *next_ancestors; /* [capacity, max_steps] */
    int32_t *source_start, *source_length;    /* host: of every input */
    bool broken;                              /* the logits were not numbers */
    char *memory;
    size_t bytes;
} Decoder;

/* What decoding one input costs, for choosing how many are decoded at a time. */
static size_t decoder_bytes_per_input(const T5Config *c, size_t beams, size_t max_steps, size_t longest)
{
    size_t I = c->num_heads * c->d_kv;
    /* The encoder's pass takes 6 D + 4 I + 3 F for each row (layout_pass); the rest is for the kernels' scratch. */
    size_t encoder = longest * (12 * c->d_model + 5 * I + 4 * c->d_ff);
    return sizeof(act_t) * (c->num_decoder_layers * (beams * max_steps * 3 * I + longest * 2 * I) + encoder);
}

static void decoder_layout(Decoder *d, Arena *arena, size_t candidates)
{
    const T5Config *c = &d->model->config;
    size_t R = d->capacity, D = c->d_model, I = c->num_heads * c->d_kv, F = c->d_ff, inputs = d->batch->count;
    for (size_t l = 0; l < c->num_decoder_layers; l++)
        d->cache[l] = arena_take(arena, d->max_steps * R * 3 * I, sizeof(act_t));
    d->cross_kv = arena_take(arena, c->num_decoder_layers * d->batch->source.rows * 2 * I, sizeof(act_t));
    d->x = arena_take(arena, R * D, sizeof(act_t));
    d->y = arena_take(arena, R * D, sizeof(act_t));
    d->normed = arena_take(arena, R * D, sizeof(act_t));
    d->branch = arena_take(arena, R * D, sizeof(act_t));
    d->q = arena_take(arena, R * I, sizeof(act_t));
    d->attended = arena_take(arena, R * I, sizeof(act_t));
    d->mlp_a = arena_take(arena, R * 2 * F, sizeof(act_t));
    d->hidden = arena_take(arena, R * F, sizeof(act_t));
    d->logits_rows = logits_rows(c, R, 0);
    d->logits = arena_take(arena, d->logits_rows * c->vocab_size, sizeof(logit_t));
    d->rstd = arena_take(arena, R, sizeof(stat_t));
    d->logsumexp = arena_take(arena, R * c->num_heads, sizeof(stat_t));
    d->logp = arena_take(arena, R * candidates, sizeof(stat_t));
    d->words = arena_take(arena, R * candidates, sizeof(int32_t));
    d->ids = arena_take(arena, R, sizeof(int32_t));
    d->ancestors = arena_take(arena, R * d->max_steps, sizeof(int32_t));
    d->rows_of_inputs = arena_take(arena, 4 * inputs, sizeof(int32_t));
    d->bucket = arena_take(arena, 2 * d->max_steps - 1, sizeof(int32_t));
}

static void decoder_free(Decoder *d)
{
    free(d->cache);
    free(d->host_ancestors);
    free(d->next_ancestors);
    free(d->source_start);
    free(d->source_length);
    device_free(d->memory);
}

/* Encodes the batch and projects what the decoder layers will attend to. */
static void decoder_encode(Decoder *d)
{
    stack_forward(d->pass, &d->model->encoder);
    cross_kv_forward(d->model, d->cross_kv, d->pass->encoder.out, d->batch->source.rows);
}

static int decoder_create(Decoder *d, const Model *model, Pass *pass, Batch *batch, size_t beams, size_t max_steps,
                          size_t candidates, Error *error)
{
    Arena arena = {0};
    size_t layers = model->config.num_decoder_layers, n_buckets = 2 * max_steps - 1;
    int32_t *buckets;
    *d = (Decoder){
        .model = model, .pass = pass, .batch = batch, .capacity = batch->count * beams, .max_steps = max_steps};
    d->cache = host_alloc(layers, sizeof *d->cache);
    d->host_ancestors = host_alloc(d->capacity * max_steps, sizeof *d->host_ancestors);
    d->next_ancestors = host_alloc(d->capacity * max_steps, sizeof *d->next_ancestors);
    d->source_start = host_alloc(batch->count, sizeof *d->source_start);
    d->source_length = host_alloc(batch->count, sizeof *d->source_length);
    device_download(model->dev, d->source_start, batch->source.start, batch->count * sizeof *d->source_start);
    device_download(model->dev, d->source_length, batch->source.length, batch->count * sizeof *d->source_length);
    decoder_layout(d, &arena, candidates);
    d->memory = device_alloc(arena.used);
    if (!d->memory) {
        error_set(error, EXIT_FAILED, "memory: no room to decode %zu inputs (%.1f GB)", batch->count,
                  (double)arena.used / 1e9);
        decoder_free(d);
        return -1;
    }
    arena = (Arena){.base = d->memory};
    decoder_layout(d, &arena, candidates);
    buckets = host_alloc(n_buckets, sizeof *buckets);
    buckets_fill(buckets, &model->config, false, max_steps);
    device_upload(model->dev, d->bucket, buckets, n_buckets * sizeof *buckets);
    free(buckets);
    decoder_encode(d);
    return 0;
}

/* One layer, for the newest token of each row: x becomes its output. */
static void decoder_layer_step(Decoder *d, size_t l, size_t step, size_t rows, const Sequences *queries,
                               const Sequences *keys)
{
    const Model *model = d->model;
    const T5Config *c = &model->config;
    const Layer *w = &model->decoder.layers[l];
    size_t D = c->d_model, I = c->num_heads * c->d_kv;
    act_t *qkv = d->cache[l] + step * d->capacity * 3 * I, *cross_kv = d->cross_kv + l * keys->rows * 2 * I;
    const Dropout none = {0};
    Attention cross = {.q = d->q,
                       .k = cross_kv,
                       .v = cross_kv + I,
                       .q_stride = I,
                       .kv_stride = 2 * I,
                       .queries = *queries,
                       .keys = *keys,
                       .heads = c->num_heads,
                       .d_kv = c->d_kv};

    rmsnorm_forward(model->dev, d->normed, d->rstd, d->x, w->self_norm->data, rows, D, c->layer_norm_epsilon);
    linear_forward(model->dev, qkv, d->normed, w->self_q->data, rows, D, 3 * I);
    attention_cached_forward(model->dev, d->attended, d->cache[l], d->ancestors, rows, step + 1, d->max_steps,
                             d->capacity, c->num_heads, c->d_kv, model->decoder.relative_bias->data,
                             d->bucket + d->max_steps - 1, c->buckets);
    linear_residual_forward(model->dev, d->x, d->x, d->attended, w->self_o->data, d->branch, queries, I, D, &none);

    rmsnorm_forward(model->dev, d->normed, d->rstd, d->x, w->cross_norm->data, rows, D, c->layer_norm_epsilon);
    linear_forward(model->dev, d->q, d->normed, w->cross_q->data, rows, D, I);
    attention_forward(model->dev, d->attended, d->logsumexp, &cross);
    linear_residual_forward(model->dev, d->x, d->x, d->attended, w->cross_o->data, d->branch, queries, I, D, &none);

    rmsnorm_forward(model->dev, d->normed, d->rstd, d->x, w->mlp_norm->data, rows, D, c->layer_norm_epsilon);
    linear_mlp_forward(model->dev, c->mlp, d->hidden, d->mlp_a, d->normed, w->wi_0->data, queries, D, c->d_ff, &none);
    linear_residual_forward(model->dev, d->x, d->x, d->hidden, w->wo->data, d->branch, queries, c->d_ff, D, &none);
}

void greedy_free(Greedy *greedy)
{
    if (!ON_A_CARD) head_sketch_free(greedy->sketch);
    *greedy = (Greedy){0};
}

/* The best word of each row, from the sketch; logp is only set to 0. False: all logits are needed. */
static bool decoder_best_words(Decoder *d, size_t rows, float *logp, int32_t *words)
{
    const Model *model = d->model;
    const size_t D = model->config.d_model, V = model->config.vocab_size;
    Greedy *greedy = d->greedy;
    bool found = true;
    if (ON_A_CARD || !greedy || rows > HEAD_SKETCH_ROWS) return false;
    if (!greedy->tried && greedy->steps++ >= (d->max_steps < LONG_OUTPUT ? SKETCH_AFTER : 0)) {
        greedy->sketch = head_sketch_create(model->dev, model->head->data, D, V);
        greedy->tried = true;
    }
    if (!greedy->sketch) return false;
    best_words(model->dev, d->words, d->y, model->head->data, greedy->sketch, rows, D);
    device_download(model->dev, words, d->words, rows * sizeof *words);
    for (size_t r = 0; r < rows; r++) {
        logp[r] = 0;
        found &= words[r] >= 0;
    }
    return found;
}

/* One step: `rows_each` rows for each of the live inputs live[n_live], whose newest tokens are ids. Gives the k most
 * probable next words of each row, with log-probabilities unless decoding is greedy; and all logits, when `logits`
 * [rows, V] is wanted. */
static void decoder_step(Decoder *d, size_t step, const size_t *live, size_t n_live, size_t rows_each,
                         const int32_t *ids, size_t k, float *logp, int32_t *words, float *logits)
{
    const Model *model = d->model;
    const T5Config *c = &model->config;
    size_t rows = n_live * rows_each, D = c->d_model, V = c->vocab_size, inputs = d->batch->count;
    int32_t *places = host_alloc(4 * inputs, sizeof *places);
    Sequences queries = {.start = d->rows_of_inputs,
                         .length = d->rows_of_inputs + inputs,
                         .count = n_live,
                         .rows = rows,
                         .longest = rows_each};
    Sequences keys = d->batch->source;

    for (size_t i = 0; i < n_live; i++) {
        places[i] = (int32_t)(i * rows_each);
        places[inputs + i] = (int32_t)rows_each;
        places[2 * inputs + i] = d->source_start[live[i]];
        places[3 * inputs + i] = d->source_length[live[i]];
    }
    keys.start = d->rows_of_inputs + 2 * inputs;
    keys.length = d->rows_of_inputs + 3 * inputs;
    keys.count = n_live;
    for (size_t r = 0; r < rows; r++) d->host_ancestors[r * d->max_steps + step] = (int32_t)r;
    device_upload(model->dev, d->rows_of_inputs, places, 4 * inputs * sizeof *places);
    device_upload(model->dev, d->ancestors, d->host_ancestors, rows * d->max_steps * sizeof *d->host_ancestors);
    device_upload(model->dev, d->ids, ids, rows * sizeof *ids);
    free(places);

    embedding_forward(model->dev, d->x, model->shared->data, NULL, d->ids, rows, D);
    for (size_t l = 0; l < c->num_decoder_layers; l++) {
        weights_stream(model->dev, layer_weights(&model->decoder, l),
                       layer_weights(&model->decoder, (l + 1) % c->num_decoder_layers)); /* of the next token */
        decoder_layer_step(d, l, step, rows, &queries, &keys);
    }
    rmsnorm_forward(model->dev, d->y, d->rstd, d->x, model->decoder.final_norm->data, rows, D, c->layer_norm_epsilon);
    if (c->tied_head) scale_forward(model->dev, d->y, head_scale(c), rows * D);
    if (decoder_best_words(d, rows, logp, words)) return;
    for (size_t first = 0; first < rows; first += d->logits_rows) {
        size_t n = min_size(d->logits_rows, rows - first);
        head_top_log_probabilities(model->dev, d->logp + first * k, d->words + first * k, d->logits, d->y + first * D,
                                   model->head->data, n, D, V, k);
        if (logits) logits_download(model->dev, logits + first * V, d->logits, n * V);
    }
    stats_download(model->dev, logp, d->logp, rows * k);
    device_download(model->dev, words, d->words, rows * k * sizeof *words);
    for (size_t r = 0; r < rows; r++) d->broken |= !isfinite(logp[r * k]);
}

/* Row r of the next step continues row parents[r] of this one. */
static void decoder_follow(Decoder *d, size_t step, const size_t *parents, size_t rows)
{
    int32_t *swap = d->host_ancestors;
    for (size_t r = 0; r < rows; r++)
        memcpy(d->next_ancestors + r * d->max_steps, d->host_ancestors + parents[r] * d->max_steps,
               (step + 1) * sizeof *swap);
    d->host_ancestors = d->next_ancestors;
    d->next_ancestors = swap;
}

/* --- scores: T5X divides by ((5 + n) / 6)^alpha (Wu et al. 2016), Hugging Face by n^length_penalty */

static double length_divisor(const DecodeSettings *s, size_t n)
{
    return s->rule == LENGTH_T5X ? pow((5 + (double)n) / 6, s->alpha) : pow((double)n, s->length_penalty);
}

static Hypothesis hypothesis_new(const int32_t *ids, size_t length, double score)
{
    Hypothesis h = {.ids = host_alloc(length, sizeof *ids), .length = length, .score = score};
    if (length) memcpy(h.ids, ids, length * sizeof *ids);
    return h;
}

void hypotheses_free(Hypothesis *hypotheses, size_t count)
{
    for (size_t i = 0; i < count; i++) free(hypotheses[i].ids);
    free(hypotheses);
}

/* --- one row for each input: the arg-max, or a sample */

typedef struct {
    double probability;
    int32_t word;
} WordChance;

static int compare_chances(const void *a, const void *b)
{
    const WordChance *x = a, *y = b;
    if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
    return (x->word > y->word) - (x->word < y->word);
}

/* Draws a word from softmax(logits / temperature), cut to the top_k most probable words and then to the fewest of them
 * that hold top_p of the probability. u in [0, 1). */
static int32_t sample_word(const float *logits, size_t V, const DecodeSettings *s, double u)
{
    WordChance *chances = host_alloc(V, sizeof *chances);
    double largest = -INFINITY, sum = 0, kept = 0;
    size_t n = s->top_k ? min_size(s->top_k, V) : V, last;
    int32_t word;
    for (size_t v = 0; v < V; v++) largest = fmax(largest, logits[v]);
    for (size_t v = 0; v < V; v++) chances[v] = (WordChance){exp((logits[v] - largest) / s->temperature), (int32_t)v};
    qsort(chances, V, sizeof *chances, compare_chances);
    for (size_t i = 0; i < n; i++) sum += chances[i].probability;
    for (last = 0; last + 1 < n && kept + chances[last].probability < s->top_p * sum; last++)
        kept += chances[last].probability;
    kept += chances[last].probability;
    u *= kept;
    n = last + 1;
    for (last = 0; last + 1 < n && u >= chances[last].probability; last++) u -= chances[last].probability;
    word = chances[last].word;
    free(chances);
    return word;
}

static double log_probability(const float *logits, size_t V, int32_t word)
{
    double largest = -INFINITY, sum = 0;
    for (size_t v = 0; v < V; v++) largest = fmax(largest, logits[v]);
    for (size_t v = 0; v < V; v++) sum += exp(logits[v] - largest);
    return logits[word] - largest - log(sum);
}

static void decode_one_row_each(Decoder *d, const TokenExample *inputs, const DecodeSettings *s, Hypothesis *out)
{
    enum { COLDEST = 10000 }; /* a temperature below 1/COLDEST is the arg-max, as in T5X */
    const T5Config *c = &d->model->config;
    size_t count = d->batch->count, n_live = count, V = c->vocab_size;
    bool sample = s->sample && s->temperature * COLDEST >= 1;
    size_t *live = host_alloc(count, sizeof *live), *parents = host_alloc(count, sizeof *parents);
    int32_t *newest = host_alloc(count, sizeof *newest), *words = host_alloc(count, sizeof *words);
    int32_t *tokens = host_alloc(count * s->max_length, sizeof *tokens);
    float *logp = host_alloc(count, sizeof *logp), *logits = sample ? host_alloc(count * V, sizeof *logits) : NULL;
    double *sums = host_alloc(count, sizeof *sums);

    for (size_t i = 0; i < count; i++) live[i] = i, newest[i] = c->decoder_start;
    for (size_t step = 0; n_live && !d->broken; step++) {
        size_t n_next = 0;
        decoder_step(d, step, live, n_live, 1, newest, 1, logp, words, logits);
        for (size_t r = 0; r < n_live; r++) {
            size_t i = live[r];
            int32_t word = words[r];
            double word_logp = logp[r];
            bool last = step + 1 == s->max_length;
            if (sample) {
                word = sample_word(logits + r * V, V, s, random_uniform(random_fold(s->seed, inputs[i].number), step));
                word_logp = log_probability(logits + r * V, V, word);
            }
            sums[i] += word_logp;
            tokens[i * s->max_length + step] = word;
            if (word == c->eos || last) { /* T5X leaves the score of an unfinished row as it is */
                double divisor = word == c->eos || s->rule == LENGTH_HF ? length_divisor(s, step + 1) : 1;
                out[i] = hypothesis_new(tokens + i * s->max_length, word == c->eos ? step : step + 1,
                                        s->unscored ? NAN : sums[i] / divisor);
            } else {
                live[n_next] = i;
                parents[n_next] = r;
                newest[n_next++] = word;
            }
        }
        n_live = n_next;
        decoder_follow(d, step, parents, n_live);
    }
    free(live);
    free(parents);
    free(newest);
    free(words);
    free(tokens);
    free(logp);
    free(logits);
    free(sums);
}

/* --- beam search */

typedef struct {
    double logp;
    size_t parent; /* beam */
    int32_t word;
} Candidate;

typedef struct {
    double score;
    bool finished;
    Hypothesis hypothesis;
} Slot;

/* The search of one input: K live beams, best first, and K slots for finished ones, best first. */
typedef struct {
    size_t input;
    double *logp;    /* [K] */
    int32_t *tokens; /* [K, max_length] */
    Slot *slots;     /* [K] */
} Search;

static const double T5X_NEVER = -1e7, HF_NEVER = -1e9; /* scores of beams and slots that are not there yet */

static void search_init(Search *search, size_t input, const DecodeSettings *s)
{
    double never = s->rule == LENGTH_T5X ? T5X_NEVER : HF_NEVER;
    search->input = input;
    search->logp = host_alloc(s->beams, sizeof *search->logp);
    search->tokens = host_alloc(s->beams * s->max_length, sizeof *search->tokens);
    search->slots = host_alloc(s->beams, sizeof *search->slots);
    for (size_t k = 0; k < s->beams; k++) {
        search->logp[k] = k ? never : 0; /* all beams begin alike: only the first one counts */
        search->slots[k].score = never;
    }
}

static void search_free(Search *search, size_t beams)
{
    for (size_t k = 0; k < beams; k++) free(search->slots[k].hypothesis.ids);
    free(search->logp);
    free(search->tokens);
    free(search->slots);
}

/* The best `n` of the K rows' best words: by log-probability, then by row and word, as a flat top-k would order
 * them. */
static size_t merge_candidates(Candidate *best, size_t n, const Search *search, size_t beams, const float *logp,
                               const int32_t *words, size_t per_row)
{
    size_t *at = host_alloc(beams, sizeof *at), count = 0;
    for (; count < n; count++) {
        size_t row = beams;
        double largest = -INFINITY;
        for (size_t k = 0; k < beams; k++) /* each row's words are sorted: take the best head */
            if (at[k] < per_row && (row == beams || search->logp[k] + logp[k * per_row + at[k]] > largest)) {
                row = k;
                largest = search->logp[k] + logp[k * per_row + at[k]];
            }
        if (row == beams) break;
        best[count] = (Candidate){largest, row, words[row * per_row + at[row]++]};
    }
    free(at);
    return count;
}

/* Puts a finished hypothesis into the slots if it beats the worst; among equals the earlier one stays ahead. */
static void search_finish(Search *search, const DecodeSettings *s, const Candidate *candidate, size_t step, bool is_eos)
{
    double score = candidate->logp / length_divisor(s, step + 1);
    size_t K = s->beams, at = K, length = is_eos ? step : step + 1;
    while (at > 0 && score > search->slots[at - 1].score) at--;
    if (at == K) return;
    free(search->slots[K - 1].hypothesis.ids);
    memmove(&search->slots[at + 1], &search->slots[at], (K - 1 - at) * sizeof *search->slots);
    search->slots[at] =
        (Slot){score, true, hypothesis_new(search->tokens + candidate->parent * s->max_length, length, score)};
    if (!is_eos) search->slots[at].hypothesis.ids[step] = candidate->word;
}

/* Can nothing that is still live get into the slots? */
static bool search_is_done(const Search *search, const DecodeSettings *s, size_t step)
{
    size_t generated = step + 1;
    double worst = search->slots[s->beams - 1].score;
    if (generated == s->max_length) return true;
    for (size_t k = 0; k < s->beams; k++)
        if (!search->slots[k].finished) return false;
    if (s->rule ==
        LENGTH_T5X) /* T5X's buffer has one place more, for the start token, and its bound uses that length */
        return worst > search->logp[0] / length_divisor(s, s->max_length + 1);
    return s->early_stopping || !(search->logp[0] / length_divisor(s, generated) > worst);
}

/* One step of one input: the finished among the candidates go to the slots, the best K others live on. Writes their
 * parents (beams) and words. Is the search over? */
static bool search_advance(Search *search, const DecodeSettings *s, const T5Config *c, size_t step,
                           const Candidate *candidates, size_t count, size_t *parents, int32_t *newest)
{
    size_t K = s->beams, alive = 0;
    bool last = step + 1 == s->max_length;
    int32_t *tokens = host_alloc(K * s->max_length, sizeof *tokens);
    for (size_t i = 0; i < count; i++) {
        const Candidate *candidate = &candidates[i];
        bool is_eos = candidate->word == c->eos;
        if (s->rule == LENGTH_T5X ? is_eos : i < K && (is_eos || last))
            search_finish(search, s, candidate, step, is_eos);
    }
    for (size_t i = 0; i < count && alive < K; i++) {
        const Candidate *candidate = &candidates[i];
        if (candidate->word == c->eos) continue;
        memcpy(tokens + alive * s->max_length, search->tokens + candidate->parent * s->max_length,
               step * sizeof *tokens);
        tokens[alive * s->max_length + step] = candidate->word;
        search->logp[alive] = candidate->logp;
        parents[alive] = candidate->parent;
        newest[alive++] = candidate->word;
    }
    for (size_t k = alive; k < K; k++) { /* a vocabulary of fewer words than beams: a copy that can never win */
        search->logp[k] = s->rule == LENGTH_T5X ? T5X_NEVER : HF_NEVER;
        parents[k] = 0;
        newest[k] = c->pad;
    }
    free(search->tokens);
    search->tokens = tokens;
    return search_is_done(search, s, step);
}

/* The n best: finished ones; T5X, when there is none at all, gives the live beams with their plain
 * log-probabilities. */
static void search_result(Search *search, const DecodeSettings *s, size_t step, Hypothesis *out)
{
    bool from_live = s->rule == LENGTH_T5X && !search->slots[0].finished;
    for (size_t k = 0; k < s->n_best; k++) {
        Slot *slot = &search->slots[k];
        if (from_live) {
            out[k] = hypothesis_new(search->tokens + k * s->max_length, step + 1, search->logp[k]);
        } else if (slot->finished) {
            out[k] = slot->hypothesis;
            slot->hypothesis.ids = NULL;
        } else {
            out[k] = hypothesis_new(NULL, 0, slot->score);
        }
    }
}

static void decode_beams(Decoder *d, const DecodeSettings *s, Hypothesis *out)
{
    const T5Config *c = &d->model->config;
    size_t count = d->batch->count, K = s->beams, n_live = count, per_row = min_size(2 * K, c->vocab_size),
           rows = count * K;
    Search *searches = host_alloc(count, sizeof *searches);
    size_t *live = host_alloc(count, sizeof *live), *parents = host_alloc(rows, sizeof *parents);
    int32_t *newest = host_alloc(rows, sizeof *newest), *words = host_alloc(rows * per_row, sizeof *words);
    float *logp = host_alloc(rows * per_row, sizeof *logp);
    Candidate *candidates = host_alloc(2 * K, sizeof *candidates);

    for (size_t i = 0; i < count; i++) search_init(&searches[i], i, s), live[i] = i;
    for (size_t r = 0; r < rows; r++) newest[r] = c->decoder_start;
    for (size_t step = 0; n_live && !d->broken; step++) {
        /* All beams begin alike, and the first one's best words are enough for all: one row for each input. */
        const size_t each = step == 0 && per_row == 2 * K ? 1 : K;
        size_t n_next = 0;
        decoder_step(d, step, live, n_live, each, newest, per_row, logp, words, NULL);
        for (size_t i = 0; i < n_live; i++) {
            Search *search = &searches[live[i]];
            size_t n = merge_candidates(candidates, 2 * K, search, each, logp + i * each * per_row,
                                        words + i * each * per_row, per_row);
            if (search_advance(search, s, c, step, candidates, n, parents + n_next * K, newest + n_next * K)) {
                search_result(search, s, step, out + search->input * s->n_best);
            } else {
                for (size_t k = 0; k < K; k++)
                    parents[n_next * K + k] += i * each; /* from beams to rows of this step */
                live[n_next++] = live[i];
            }
        }
        n_live = n_next;
        decoder_follow(d, step, parents, n_live * K);
    }
    for (size_t i = 0; i < count; i++) search_free(&searches[i], K);
    free(searches);
    free(live);
    free(parents);
    free(newest);
    free(words);
    free(logp);
    free(candidates);
}

/* Decodes one batch. */
static int decode_batch(const Model *model, Greedy *greedy, const Prompts *prompts, const TokenExample *inputs,
                        size_t count, const DecodeSettings *settings, Hypothesis *out, Error *error)
{
    TokenExample *examples = host_alloc(count, sizeof *examples);
    size_t candidates = settings->beams > 1 ? min_size(2 * settings->beams, model->config.vocab_size) : 1;
    const int32_t no_rows[1] = {0}; /* no gradient, so no row of the embedding has one */
    Batch batch = {0};
    Pass pass = {0};
    Decoder decoder;
    int status;
    for (size_t i = 0; i < count; i++) { /* the encoder's pass asks for a target; it is never looked at */
        examples[i] = inputs[i];
        examples[i].target = &model->config.eos;
        examples[i].target_length = 1;
    }
    status = batch_build(&batch, model, examples, count, prompts ? prompts->length : 0, prompts ? prompts->count : 0, 0,
                         no_rows, 0, error);
    if (!status) status = pass_prepare(&pass, model, prompts, &batch, PASS_ENCODE, error);
    if (!status)
        status =
            decoder_create(&decoder, model, &pass, &batch, settings->beams, settings->max_length, candidates, error);
    if (!status) {
        if (settings->unscored && settings->beams == 1 && !settings->sample) decoder.greedy = greedy;
        if (settings->beams == 1 || settings->sample)
            decode_one_row_each(&decoder, inputs, settings, out);
        else
            decode_beams(&decoder, settings, out);
        if (decoder.broken)
            status = error_set(error, EXIT_FAILED, "decoding: the model's output is not a number (damaged weights?)");
        decoder_free(&decoder);
    }
    pass_free(&pass);
    batch_free(&batch);
    free(examples);
    return status;
}

enum { DECODE_BYTES = 512 << 20, DECODE_INPUTS = 64 }; /* memory and inputs of a decoding batch */

/* How many inputs of such a length are decoded at a time, and the bytes that takes. */
static size_t decoding_inputs(const T5Config *c, size_t beams, size_t max_steps, size_t longest)
{
    return min_size(max_size(DECODE_BYTES / decoder_bytes_per_input(c, beams, max_steps, longest), 1), DECODE_INPUTS);
}

static size_t decoding_bytes(const T5Config *c, size_t beams, size_t max_steps, size_t longest, size_t count)
{
    size_t n = min_size(decoding_inputs(c, beams, max_steps, longest), count), logits = logits_rows(c, n * beams, 0);
    size_t sketch = ON_A_CARD || beams > 1 ? 0 : head_sketch_bytes(c->d_model, c->vocab_size);
    return n * decoder_bytes_per_input(c, beams, max_steps, longest) + logits * c->vocab_size * sizeof(logit_t) +
           sketch;
}

typedef struct {
    size_t length, at;
} LengthAt;

static int compare_lengths(const void *a, const void *b)
{
    const LengthAt *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return (x->at > y->at) - (x->at < y->at);
}

int decode(const Model *model, const Prompts *prompts, const TokenExample *inputs, size_t count,
           const DecodeSettings *settings, Hypothesis *out, void (*progress)(void *context, size_t done, size_t count),
           void *context, Error *error)
{
    LengthAt *order = host_alloc(count, sizeof *order);
    TokenExample batch[DECODE_INPUTS];
    Hypothesis *results = host_alloc(DECODE_INPUTS * settings->n_best, sizeof *results);
    Greedy own = {0};
    int status = 0;
    for (size_t i = 0; i < count; i++) order[i] = (LengthAt){inputs[i].input_length, i};
    qsort(order, count, sizeof *order, compare_lengths);
    for (size_t first = 0, n; !status && first < count; first += n) {
        size_t longest = order[first].length + (prompts ? prompts->length : 0);
        n = min_size(decoding_inputs(&model->config, settings->beams, settings->max_length, longest), count - first);
        for (size_t i = 0; i < n; i++) batch[i] = inputs[order[first + i].at];
        memset(results, 0, n * settings->n_best * sizeof *results);
        status = decode_batch(model, settings->greedy ? settings->greedy : &own, prompts, batch, n, settings, results,
                              error);
        for (size_t i = 0; i < n; i++)
            memcpy(out + order[first + i].at * settings->n_best, results + i * settings->n_best,
                   settings->n_best * sizeof *out);
        if (!status && progress) progress(context, first + n, count);
    }
    greedy_free(&own);
    free(results);
    free(order);
    return status;
}

/* ================================================================================================================
 * [7] Training
 *
 * Fine-tuning, prompt tuning and ProMoT are one loop over stages. A stage says what is trained (the model, the
 * prompts, both, or a LoRA) and whether the prompts are attached; ProMoT is two of them. All randomness is a pure
 * function of (seed, stage, step): which examples a batch holds, and every dropout mask. So a run that was killed
 * continues from its last saved state and ends in the same bytes. */

/* --- tasks in ids */

/* How the rows of a split become what the model sees: text to ids, not the network's encoder. Each input gets `shots`
 * worked examples in front, drawn from `shown` by (seed, its number), never itself; `ending` (or "") goes behind it. */
typedef struct {
    const Task *task;
    const Dataset *rows, *shown; /* shown: the training split, or another task's; NULL without shots */
    bool same_rows;              /* number i of `shown` is number i of `rows` */
    const Tokenizer *tokenizer;
    const T5Config *config;
    size_t max_input, max_target; /* ids at most, EOS counted; 0: any number */
    size_t shots;
    const char *separator, *ending;
    uint64_t seed;
    int prompt; /* number of the prompt in front; -1: none */
} TaskEncoder;

/* Text to ids with EOS at the end; at most `limit` ids (0: any number), EOS counted, which is never cut off. A
 * vocabulary may have more pieces than the model has rows: that is an error only when a text needs one of them. */
static int encode_with_eos(const Tokenizer *tokenizer, const T5Config *config, const char *text, size_t limit,
                           int32_t **out, size_t *length, bool *cut, Error *error)
{
    int32_t *ids;
    size_t count;
    if (tokenizer_encode(tokenizer, text, strlen(text), &ids, &count, error)) return -1;
    *cut = limit && count + 1 > limit;
    if (*cut) count = limit - 1;
    ids = host_grow(ids, count + 1, sizeof *ids);
    ids[count] = config->eos;
    for (size_t i = 0; i < count; i++)
        if ((size_t)ids[i] >= config->vocab_size) {
            error_set(error, EXIT_USAGE,
                      "spiece.model: piece %s (expected an id below the model's vocabulary %zu, found %d)",
                      tokenizer_piece(tokenizer, ids[i]), config->vocab_size, (int)ids[i]);
            free(ids);
            return -1;
        }
    *out = ids;
    *length = count + 1;
    return 0;
}

/* Are there enough examples to show? */
static int encoder_check(const TaskEncoder *e, Error *error)
{
    size_t count = e->shots ? dataset_count(e->shown) : 0;
    if (count && e->same_rows) count--; /* never itself */
    return count >= e->shots ? 0
                             : error_set(error, EXIT_USAGE,
                                         "%s: %zu worked examples (expected at least as many rows to show, found %zu)",
                                         task_name(e->task), e->shots, count);
}

/* The whole input of row i, whose own example is given; to be freed. */
static int input_with_shots(const TaskEncoder *e, size_t i, const Example *example, char **out, Error *error)
{
    size_t *numbers = host_alloc(e->shots, sizeof *numbers), drawn = 0, read = 0;
    Example *shots = host_alloc(e->shots, sizeof *shots);
    const Example **shown = host_alloc(e->shots, sizeof *shown);
    char *text = NULL;
    int status = 0;
    for (uint64_t attempt = 0; drawn < e->shots; attempt++) {
        size_t at = (size_t)(random_uniform(random_fold(e->seed, i), attempt) * (double)dataset_count(e->shown));
        bool again = e->same_rows && at == i;
        for (size_t k = 0; k < drawn; k++) again |= numbers[k] == at;
        if (!again) numbers[drawn++] = at;
    }
    for (; !status && read < e->shots; read += !status) {
        status = dataset_get(e->shown, numbers[read], &shots[read], error);
        shown[read] = &shots[read];
    }
    if (!status) text = few_shot_input(shown, e->shots, example, e->separator);
    if (!status && !text) status = error_set(error, EXIT_FAILED, "memory: none left for an input of a task");
    if (!status) *out = text_format("%s%s", text, e->ending);
    for (size_t k = 0; k < read; k++) example_free(&shots[k]);
    free(text);
    free(shown);
    free(shots);
    free(numbers);
    return status;
}

/* Row i in ids, which are the caller's to free (token_example_free). */
static int encode_row(const TaskEncoder *e, size_t i, const Example *example, TokenExample *out, bool *cut,
                      Error *error)
{
    bool cut_input, cut_target;
    int32_t *input = NULL, *target = NULL;
    char *text = NULL;
    int status = input_with_shots(e, i, example, &text, error);
    *out = (TokenExample){.prompt = e->prompt, .number = i};
    if (!status)
        status =
            encode_with_eos(e->tokenizer, e->config, text, e->max_input, &input, &out->input_length, &cut_input, error);
    if (!status)
        status = encode_with_eos(e->tokenizer, e->config, example->targets[0], e->max_target, &target,
                                 &out->target_length, &cut_target, error);
    free(text);
    if (status) {
        free(input);
        return -1;
    }
    out->input = input;
    out->target = target;
    *cut = cut_input || cut_target;
    return 0;
}

static void token_example_free(TokenExample *e)
{
    free((int32_t *)e->input);
    free((int32_t *)e->target);
    *e = (TokenExample){0};
}

/* A split that is decoded and scored, as a whole: its rows and their ids. */
typedef struct {
    TaskEncoder encoder;
    size_t count;
    Example *rows;     /* [count] */
    TokenExample *ids; /* [count] */
    size_t n_cut, longest_input, longest_target;
} EncodedSplit;

static void encoded_free(EncodedSplit *split)
{
    for (size_t i = 0; i < split->count; i++) {
        example_free(&split->rows[i]);
        token_example_free(&split->ids[i]);
    }
    free(split->rows);
    free(split->ids);
    memset(split, 0, sizeof *split);
}

/* Encodes the first `limit` rows (0: all). Ends with encoded_free, also after an error. */
static int encode_split(EncodedSplit *split, const TaskEncoder *e, size_t limit, Error *error)
{
    size_t count = dataset_count(e->rows);
    if (limit) count = min_size(count, limit);
    *split = (EncodedSplit){.encoder = *e};
    if (encoder_check(e, error)) return -1;
    split->rows = host_alloc(count, sizeof *split->rows);
    split->ids = host_alloc(count, sizeof *split->ids);
    for (size_t i = 0; i < count; i++) {
        TokenExample *ids = &split->ids[i];
        bool cut = false;
        if (dataset_get(e->rows, i, &split->rows[i], error)) return -1;
        split->count++;
        if (encode_row(e, i, &split->rows[i], ids, &cut, error)) return -1;
        split->n_cut += cut;
        split->longest_input = max_size(split->longest_input, ids->input_length);
        split->longest_target = max_size(split->longest_target, ids->target_length);
    }
    return 0;
}

/* A training split, whose rows are read and encoded when a batch asks for them. What was encoded last stays in a cache
 * with a place for each number modulo its size: all of a small split, and of a large one what its size allows. */
enum { CACHE_PLACES = 1 << 14 };

typedef struct {
    TaskEncoder encoder;
    size_t count;                        /* rows */
    TokenExample *cache;                 /* [CACHE_PLACES]; one without ids is empty */
    unsigned char *seen;                 /* a bit for each row */
    size_t n_seen, n_cut, longest_input; /* of the rows that were asked for */
} TaskStream;

static void stream_free(TaskStream *stream)
{
    for (size_t i = 0; stream->cache && i < CACHE_PLACES; i++) token_example_free(&stream->cache[i]);
    free(stream->cache);
    free(stream->seen);
    memset(stream, 0, sizeof *stream);
}

static int stream_open(TaskStream *stream, const TaskEncoder *e, Error *error)
{
    *stream = (TaskStream){.encoder = *e, .count = dataset_count(e->rows)};
    stream->cache = host_alloc(CACHE_PLACES, sizeof *stream->cache);
    stream->seen = host_alloc(stream->count / 8 + 1, 1);
    return encoder_check(e, error);
}

/* Row i in ids; they are the caller's (token_example_free). */
static int stream_get(TaskStream *stream, size_t i, TokenExample *out, Error *error)
{
    TokenExample *kept = &stream->cache[i % CACHE_PLACES];
    int32_t *input, *target;
    if (!kept->input || kept->number != i) {
        Example row;
        bool cut;
        int status;
        token_example_free(kept);
        if (dataset_get(stream->encoder.rows, i, &row, error)) return -1;
        status = encode_row(&stream->encoder, i, &row, kept, &cut, error);
        example_free(&row);
        if (status) return -1;
        if (!(stream->seen[i / 8] >> i % 8 & 1)) stream->n_seen++, stream->n_cut += cut;
        stream->seen[i / 8] |= (unsigned char)(1 << i % 8);
        stream->longest_input = max_size(stream->longest_input, kept->input_length);
    }
    *out = *kept;
    out->input = input = host_alloc(kept->input_length, sizeof *input);
    out->target = target = host_alloc(kept->target_length, sizeof *target);
    memcpy(input, kept->input, kept->input_length * sizeof *input);
    memcpy(target, kept->target, kept->target_length * sizeof *target);
    return 0;
}

/* A task of a run. */
typedef struct {
    const char *name; /* as in --task NAME=PATH */
    const Task *task;
    Dataset *train_rows, *rows; /* rows: of the split that is scored; one of the two may stand for both */
    TaskStream train;
    EncodedSplit dev;
} TaskData;

static void task_data_free(TaskData *data)
{
    stream_free(&data->train);
    encoded_free(&data->dev);
    if (data->train_rows != data->rows) dataset_close(data->train_rows);
    dataset_close(data->rows);
    data->train_rows = data->rows = NULL;
}

/* --- span corruption (T5's pretraining: t5/data/preprocessors.py), and the hiding of answers, which is not T5's */

/* A document in ids. An answer is a span that the text marked (between tabs). */
typedef struct {
    int32_t *ids;
    size_t length, n_answers;
    size_t (*answers)[2]; /* [n_answers] first, end */
} Document;

typedef struct {
    Document *documents;
    size_t count;
    const Tokenizer *tokenizer;
    int32_t eos;
    double noise_density, mean_span;
    double answer_share; /* of the documents with answers, how many hide answers and not random spans */
} Corpus;

/* The next of a sequence of uniform numbers that belongs to one example. */
typedef struct {
    uint64_t key, drawn;
} Dice;

static double dice_roll(Dice *dice)
{
    return random_uniform(dice->key, dice->drawn++);
}

/* Splits n items into `parts` runs of at least one, each split equally likely; writes the runs' lengths. */
static void random_segmentation(size_t *lengths, size_t n, size_t parts, Dice *dice)
{
    size_t cuts = parts - 1, run = 0, part = 0;
    for (size_t i = 0; i < n; i++) { /* choose the cuts among the n-1 gaps, one gap after the other */
        size_t gaps_left = n - 1 - i;
        run++;
        if (gaps_left && dice_roll(dice) * (double)gaps_left < (double)cuts) {
            lengths[part++] = run;
            run = 0;
            cuts--;
        }
    }
    lengths[part] = run;
}

/* Marks about noise_density of the tokens in spans of about mean_span. Starts with text, ends with noise. */
static size_t random_spans(size_t (*spans)[2], size_t length, const Corpus *corpus, Dice *dice)
{
    size_t noise = (size_t)nearbyint((double)length * corpus->noise_density), n, at = 0;
    size_t *noise_lengths, *text_lengths;
    noise = min_size(max_size(noise, 1), length - 1);
    n = max_size(1, (size_t)nearbyint((double)noise / corpus->mean_span));
    n = min_size(n, min_size(noise, length - noise));
    noise_lengths = host_alloc(n, sizeof *noise_lengths);
    text_lengths = host_alloc(n, sizeof *text_lengths);
    random_segmentation(noise_lengths, noise, n, dice);
    random_segmentation(text_lengths, length - noise, n, dice);
    for (size_t i = 0; i < n; i++) {
        spans[i][0] = at + text_lengths[i];
        at = spans[i][1] = spans[i][0] + noise_lengths[i];
    }
    free(noise_lengths);
    free(text_lengths);
    return n;
}

/* Hides answers: always the last one, which is what a few-shot input asks for, and, in half of the cases, each earlier
 * one with probability 0.6. */
static size_t answer_spans(size_t (*spans)[2], const Document *document, Dice *dice)
{
    size_t n = 0;
    bool several = dice_roll(dice) < 0.5;
    for (size_t i = 0; i < document->n_answers; i++)
        if (i + 1 == document->n_answers || (several && dice_roll(dice) < 0.6)) {
            spans[n][0] = document->answers[i][0];
            spans[n++][1] = document->answers[i][1];
        }
    return n;
}

enum { SENTINELS = 100 };

/* One training example: hidden spans become <extra_id_0>, <extra_id_1>, … in the input, and follow their sentinel in
 * the target. The ids are the caller's to free. */
static TokenExample corrupt(const Corpus *corpus, const Document *document, uint64_t key)
{
    Dice dice = {.key = key};
    size_t(*spans)[2] = host_alloc(document->length + 1, sizeof *spans), n, in = 0, out = 0, at = 0;
    int32_t *input = host_alloc(2 * document->length + 2, sizeof *input),
            *target = host_alloc(2 * document->length + 2, sizeof *target);
    if (document->n_answers && dice_roll(&dice) < corpus->answer_share)
        n = answer_spans(spans, document, &dice);
    else
        n = random_spans(spans, document->length, corpus, &dice);
    n = min_size(n, SENTINELS);
    for (size_t i = 0; i < n; i++) {
        int32_t sentinel = tokenizer_sentinel(corpus->tokenizer, (int)i);
        while (at < spans[i][0]) input[in++] = document->ids[at++];
        input[in++] = sentinel;
        target[out++] = sentinel;
        while (at < spans[i][1]) target[out++] = document->ids[at++];
    }
    while (at < document->length) input[in++] = document->ids[at++];
    input[in++] = corpus->eos;
    target[out++] = corpus->eos;
    free(spans);
    return (TokenExample){.input = input, .input_length = in, .target = target, .target_length = out, .prompt = -1};
}

static void document_append(Document *document, const int32_t *ids, size_t count, bool is_answer)
{
    document->ids = host_grow(document->ids, document->length + count, sizeof *ids);
    if (count) memcpy(document->ids + document->length, ids, count * sizeof *ids);
    if (is_answer && count) {
        document->answers = host_grow(document->answers, document->n_answers + 1, sizeof *document->answers);
        document->answers[document->n_answers][0] = document->length;
        document->answers[document->n_answers++][1] = document->length + count;
    }
    document->length += count;
}

static void corpus_free(Corpus *corpus)
{
    for (size_t i = 0; i < corpus->count; i++) {
        free(corpus->documents[i].ids);
        free(corpus->documents[i].answers);
    }
    free(corpus->documents);
    memset(corpus, 0, sizeof *corpus);
}

/* Adds a document, cut into pieces of at most `longest` ids; what is left below two ids cannot be corrupted and
 * goes. */
static void corpus_add(Corpus *corpus, Document *document, size_t longest)
{
    if (document->length > longest) { /* pieces of plain text: a cut would separate answers from their questions */
        for (size_t at = 0; at + 2 <= document->length; at += longest) {
            Document piece = {0};
            document_append(&piece, document->ids + at, min_size(longest, document->length - at), false);
            corpus_add(corpus, &piece, longest);
        }
    }
    if (document->length < 2 || document->length > longest) {
        free(document->ids);
        free(document->answers);
        return;
    }
    corpus->documents = host_grow(corpus->documents, corpus->count + 1, sizeof *corpus->documents);
    corpus->documents[corpus->count++] = *document;
}

/* One document a line. In a line with tabs every second field is an answer: "question TAB answer TAB question …". */
static int corpus_read(Corpus *corpus, const char *path, size_t longest, Error *error)
{
    Lines lines;
    int status = 0;
    if (lines_read(&lines, path, error)) return -1;
    for (size_t i = 0; !status && i < lines.count; i++) {
        Document document = {0};
        char *field = lines.text[i];
        for (bool is_answer = false; field && !status; is_answer = !is_answer) {
            char *tab = strchr(field, '\t');
            size_t length = tab ? (size_t)(tab - field) : strlen(field), count;
            int32_t *ids;
            status = tokenizer_encode(corpus->tokenizer, field, length, &ids, &count, error);
            if (!status) {
                document_append(&document, ids, count, is_answer);
                free(ids);
            }
            field = tab ? tab + 1 : NULL;
        }
        corpus_add(corpus, &document, longest);
    }
    lines_free(&lines);
    if (!status && corpus->count == 0)
        return error_set(error, EXIT_USAGE,
                         "%s: no text to train on (expected a document of two tokens or more on a line)", path);
    return status;
}

/* --- what a batch is made of */

/* One kind of example in a mixture: the rows of a task, or the documents of a corpus, corrupted anew in every epoch. */
typedef struct {
    TaskStream *stream;   /* or NULL */
    const Corpus *corpus; /* or NULL */
    size_t count;
    double share; /* of the mixture; the shares need not sum to 1 */
    size_t drawn; /* examples taken before Mixture.position */
} Part;

/* Where training examples come from: an endless stream of them, a pure function of the key. Each is drawn from a part
 * with the part's share as probability; within a part every epoch goes through all examples in an order of its own. */
typedef struct {
    Part *parts;
    size_t n_parts;
    uint64_t key;
    size_t position; /* of the next example */
} Mixture;

/* Place `at` of a random order of the numbers below count. A Feistel network permutes the next power of four above
 * count, and is walked until it comes back below count: a shuffle that needs no memory, so that fifteen million
 * examples cost no more than fifteen. (Black & Rogaway 2002, "Ciphers with arbitrary finite domains".) */
static size_t permuted(size_t at, size_t count, uint64_t key)
{
    enum { ROUNDS = 8 };
    unsigned half = 1; /* bits */
    size_t mask;
    while (half < 31 && (size_t)1 << 2 * half < count) half++;
    mask = ((size_t)1 << half) - 1;
    do {
        size_t left = at >> half, right = at & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            size_t mixed = left ^ (random_fold(random_fold(key, round), right) & mask);
            left = right;
            right = mixed;
        }
        at = left << half | right;
    } while (at >= count);
    return at;
}

/* The part that example number `position` comes from. */
static Part *mixture_part(const Mixture *mixture, size_t position)
{
    enum { MIXING = 1000 }; /* apart from the keys of the parts' orders */
    double sum = 0, at;
    size_t i = 0;
    if (mixture->n_parts == 1) return mixture->parts;
    for (size_t p = 0; p < mixture->n_parts; p++) sum += mixture->parts[p].share;
    at = random_uniform(random_fold(mixture->key, MIXING), position) * sum;
    while (i + 1 < mixture->n_parts && at >= mixture->parts[i].share) at -= mixture->parts[i++].share;
    return &mixture->parts[i];
}

/* Begins a stream anew, with another key. */
static void mixture_begin(Mixture *mixture, uint64_t key)
{
    mixture->key = key;
    mixture->position = 0;
    for (size_t p = 0; p < mixture->n_parts; p++) mixture->parts[p].drawn = 0;
}

/* Example number `position`, whose ids are the caller's (token_example_free). Going back or ahead counts the draws up
 * to there. */
static int mixture_get(Mixture *mixture, size_t position, TokenExample *out, Error *error)
{
    size_t number, epoch;
    Part *part;
    if (position < mixture->position) mixture_begin(mixture, mixture->key);
    while (mixture->position < position) mixture_part(mixture, mixture->position++)->drawn++;
    part = mixture_part(mixture, position);
    mixture->position++;
    epoch = part->drawn / part->count;
    number = permuted(part->drawn++ % part->count, part->count,
                      random_fold(random_fold(mixture->key, (uint64_t)(part - mixture->parts)), epoch));
    if (part->stream) return stream_get(part->stream, number, out, error);
    /* ~: apart from the parts' keys */
    const uint64_t key = random_fold(random_fold(mixture->key, ~(uint64_t)epoch), number);
    *out = corrupt(part->corpus, &part->corpus->documents[number], key);
    return 0;
}

/* --- a stage */

/* What a stage that trains the model offloads (see weights_offload), most willingly first. An encoder layer's lower
 * halves come and go while its backward pass is at work on many rows; one of the decoder has few rows and as many
 * weights, and would wait for them. The embedding and the head, the last tensors, are too large to come and go. */
typedef enum { OFFLOAD_NOTHING, OFFLOAD_ENCODER, OFFLOAD_LAYERS } Offload;

typedef struct {
    const char *name; /* "prompt", "lora", "model", "joint", "pretrain" */
    bool trains_model, trains_prompts, uses_prompts;
    bool trains_lora; /* the model's; never together with the model */
    int64_t steps, checkpoint_every;
    AdafactorSettings model, prompt, lora;
    float dropout;
    size_t recomputed; /* encoder layers, see Pass */
    Offload offload;
    LossSettings loss;
} Stage;

typedef struct {
    int64_t step;                /* from 0 */
    double loss;                 /* T5X: summed over target tokens (and divided by the normalising factor) */
    size_t targets;              /* target tokens */
    size_t tokens;               /* source and target tokens, prompts not counted */
    double prompt_gradient_norm; /* of the trained prompts; 0 when they are not */
} StepResult;

/* A step that the device was asked for. What it leaves for the host is on its way: the squared norm of the prompts'
 * gradient (a double, if they are trained), then the loss of each target token. */
typedef struct {
    StepResult result; /* as far as it is known before */
    Readback *readback;
    size_t capacity; /* target tokens */
} QueuedStep;

/* While a card computes one step, the host reads the next batch and queues its step, and only then waits for the first
 * one's loss: the card finds its work there when it is done, and the host is never more than this ahead. */
enum { QUEUED_STEPS = 2 };

/* The memory that training one stage works in. */
typedef struct {
    Adafactor adafactor;
    Gradients grads;
    GradientPlan plan;
    char *gradient_memory;
    Batch batch;
    Pass pass;
    QueuedStep queued[QUEUED_STEPS]; /* a ring: the oldest is first_queued */
    size_t first_queued, n_queued;
} Trainer;

static void trainer_free(Trainer *t)
{
    adafactor_free(&t->adafactor);
    device_free(t->gradient_memory);
    batch_free(&t->batch);
    pass_free(&t->pass);
    for (size_t i = 0; i < QUEUED_STEPS; i++) readback_free(t->queued[i].readback);
}

/* Gives the gradients their memory; again, when a batch touches more embedding rows than any before. Between two steps
 * they hold nothing. */
static int trainer_make_room(Trainer *t, const Model *model, const Prompts *prompts, size_t n_touched, Error *error)
{
    device_free(t->gradient_memory);
    t->gradient_memory = NULL;
    t->plan.n_touched =
        t->adafactor.embedding_by_rows ? min_size(n_touched, model->config.vocab_size) : model->config.vocab_size;
    if (gradients_create(&t->grads, &t->gradient_memory, model, &t->plan,
                         prompts ? prompts->count * prompts->length : 0, error))
        return -1;
    if (t->plan.model && !t->plan.keep) {
        t->grads.finished = adafactor_update_tensor;
        t->grads.context = &t->adafactor;
    }
    return 0;
}

/* Room for the losses of so many target tokens, once what was there before is taken. */
static int queued_step_make_room(QueuedStep *queued, Device *dev, size_t targets, Error *error)
{
    if (queued->readback && targets <= queued->capacity) return 0;
    readback_free(queued->readback);
    queued->capacity = targets;
    queued->readback = readback_create(dev, sizeof(double) + targets * sizeof(stat_t));
    return queued->readback ? 0 : error_set(error, EXIT_FAILED, "memory: no room for the losses of a batch");
}

/* most_rows: input and target tokens of the largest batch that is expected, which bound the embedding rows it touches
 * and the losses it leaves. keep: micro-batches are smaller than the batch, so gradients are kept to add up. */
static int trainer_create(Trainer *t, const Model *model, const Prompts *prompts, const Stage *stage, size_t most_rows,
                          bool keep, Error *error)
{
    memset(t, 0, sizeof *t);
    t->plan = (GradientPlan){.model = stage->trains_model,
                             .prompts = stage->trains_prompts,
                             .keep = keep,
                             .n_adapters = stage->trains_lora ? model->lora->n_adapters : 0};
    if (adafactor_create(&t->adafactor, model, prompts, stage->trains_model ? &stage->model : NULL,
                         stage->trains_prompts ? &stage->prompt : NULL, stage->trains_lora ? &stage->lora : NULL,
                         error))
        return -1;
    int status = trainer_make_room(t, model, prompts, most_rows, error);
    for (size_t i = 0; !status && i < QUEUED_STEPS; i++)
        status = queued_step_make_room(&t->queued[i], model->dev, most_rows, error);
    if (status) trainer_free(t);
    return status;
}

/* A place for what the next step leaves. */
static int trainer_queue(Trainer *t, const Model *model, const TokenExample *examples, size_t count, int64_t step,
                         Error *error)
{
    QueuedStep *queued = &t->queued[(t->first_queued + t->n_queued) % QUEUED_STEPS];
    queued->result = (StepResult){.step = step};
    for (size_t i = 0; i < count; i++) {
        queued->result.targets += examples[i].target_length;
        queued->result.tokens += examples[i].input_length + examples[i].target_length;
    }
    return queued_step_make_room(queued, model->dev, queued->result.targets, error);
}

/* Asks for one optimizer step on one batch, in micro-batches that end in the same update. key: of this step's dropout.
 * Its result is train_step_result's to take; at most QUEUED_STEPS may wait for that. */
static int train_step_queue(Trainer *t, const Model *model, const Prompts *prompts, const Stage *stage,
                            const TokenExample *examples, size_t count, size_t micro, int64_t step, uint64_t key,
                            bool dropout_shared, Error *error)
{
    const Prompts *attached = stage->uses_prompts ? prompts : NULL;
    const int32_t no_rows[1] = {0};
    size_t n_touched = 0, losses_at = sizeof(double);
    int32_t *touched = NULL;
    int status = trainer_queue(t, model, examples, count, step, error);
    Readback *readback = t->queued[(t->first_queued + t->n_queued) % QUEUED_STEPS].readback;
    bool by_rows = t->adafactor.embedding_by_rows;
    if (by_rows) touched = touched_ids(&model->config, examples, count, &n_touched);
    if (!status && n_touched > t->plan.n_touched)
        status = trainer_make_room(t, model, prompts, n_touched + n_touched / 4, error);
    t->pass.recomputed = stage->recomputed;
    t->pass.dropout = stage->dropout;
    t->pass.dropout_shared = dropout_shared;
    t->pass.dropout_key = key;
    for (size_t first = 0; !status && first < count; first += micro) {
        size_t n = min_size(micro, count - first);
        status = batch_build(&t->batch, model, examples + first, n, attached ? attached->length : 0,
                             attached ? attached->count : 0, first, stage->trains_model ? touched : no_rows, n_touched,
                             error);
        if (!status) status = pass_prepare(&t->pass, model, attached, &t->batch, PASS_TRAIN, error);
        if (status) break;
        if (first == 0) adafactor_begin_step(&t->adafactor, step, &t->batch);
        t->grads.accumulate = first > 0;
        t5_forward_backward(&t->pass, &stage->loss, &t->grads);
        readback_copy(readback, losses_at, t->pass.loss, t->batch.target.rows * sizeof(stat_t));
        losses_at += t->batch.target.rows * sizeof(stat_t);
    }
    if (!status && stage->trains_prompts) {
        dot_product(model->dev, t->grads.square, t->grads.prompts, t->grads.prompts,
                    prompts->count * prompts->length * model->config.d_model);
        readback_copy(readback, 0, t->grads.square, sizeof *t->grads.square);
    }
    if (!status) adafactor_update_kept(&t->adafactor, &t->grads, prompts);
    if (!status) t->n_queued++;
    free(touched);
    return status;
}

/* Is the result of the oldest queued step there? */
static bool train_step_is_done(const Trainer *t)
{
    return t->n_queued && readback_is_there(t->queued[t->first_queued].readback);
}

/* Takes it, and waits for it if it must. */
static int train_step_result(Trainer *t, const Stage *stage, StepResult *result, Error *error)
{
    const QueuedStep *queued = &t->queued[t->first_queued];
    const double *square = readback_wait(queued->readback);
    const stat_t *losses = (const stat_t *)(square + 1);
    *result = queued->result;
    for (size_t i = 0; i < result->targets; i++) result->loss += losses[i];
    if (stage->trains_prompts) result->prompt_gradient_norm = sqrt(*square);
    t->first_queued = (t->first_queued + 1) % QUEUED_STEPS;
    t->n_queued--;
    if (isfinite(result->loss)) return 0;
    return error_set(error, EXIT_FAILED,
                     "training: the loss of step %lld is not a number (a smaller learning rate may help; what was "
                     "saved before stays good)",
                     (long long)result->step + 1);
}

/* --- what it will cost, told before it begins */

/* Floating-point operations of a forward pass over `examples` (a multiply-add is two). */
static double forward_flops(const T5Config *c, const TokenExample *examples, size_t count, size_t prompt_length)
{
    double D = (double)c->d_model, I = (double)(c->num_heads * c->d_kv), F = (double)c->d_ff, V = (double)c->vocab_size;
    double mlp = (c->mlp == MLP_GATED_GELU ? 3 : 2) * D * F, Le = (double)c->num_layers,
           Ld = (double)c->num_decoder_layers, sum = 0;
    for (size_t i = 0; i < count; i++) {
        double S = (double)(examples[i].input_length + (examples[i].prompt >= 0 ? prompt_length : 0)),
               T = (double)examples[i].target_length;
        sum += Le * (2 * S * (4 * D * I + mlp) + 4 * S * S * I);
        sum += Ld * (2 * T * (6 * D * I + mlp) + 4 * S * D * I + 4 * T * T * I + 4 * T * S * I) + 2 * T * D * V;
    }
    return sum;
}

/* Elements of the model's second moments, one for each weight of a tensor that is not factored, and of the sums of
 * squares of the factored tensors' rows. */
static size_t model_moments(const T5Config *c)
{
    Model model = {.config = *c};
    size_t size = 0;
    table_build(&model);
    for (size_t i = 0; i < model.n_tensors; i++) {
        const Tensor *t = &model.tensors[i];
        moment_layout(NULL, &size, t->rows, t->columns, t->is_vector);
        if (is_factored(t->rows, t->columns, t->is_vector)) size += t->rows;
    }
    table_free(&model);
    return size;
}

/* Bytes of training a stage: weights, moments, gradients, activations. source_rows and target_rows are of a micro-batch
 * (prompts counted), all_rows of the whole batch; recomputed: see Pass. */
static size_t training_bytes(const T5Config *c, size_t n_weights, size_t n_prompt_rows, bool trains_model,
                             bool trains_prompts, size_t source_rows, size_t target_rows, size_t all_rows, bool keep,
                             double weight_decay, size_t recomputed)
{
    bool by_rows = embedding_by_rows(c, weight_decay);
    GradientPlan plan = {.model = trains_model,
                         .prompts = trains_prompts,
                         .keep = keep,
                         .n_touched = by_rows ? min_size(all_rows, c->vocab_size) : c->vocab_size};
    size_t moments = trains_model ? model_moments(c) : 0;
    Arena arena = {0};
    Gradients grads;
    gradients_layout(&arena, &grads, c, n_weights, &plan, n_prompt_rows);
    const bool parked = trains_prompts && !trains_model; /* see weights_park */
    return arena.used + n_weights * (parked ? sizeof(weight_t) : WEIGHT_BYTES) +
           2 * n_prompt_rows * c->d_model * WEIGHT_BYTES + /* the prompts, and their moments */
           moments * sizeof(stat_t) + pass_bytes(c, source_rows, target_rows, PASS_TRAIN, recomputed);
}

/* What it takes to stream a model's layers, in bytes. */
typedef struct {
    size_t resident; /* on the device: what is kept there, and two slots for layers */
    size_t layers;   /* of all layers: what a way through the network brings to the device */
} Streaming;

static Streaming streaming_of(const T5Config *c)
{
    Model model = {.config = *c};
    const Stack *const stacks[] = {&model.encoder, &model.decoder};
    Streaming streaming;
    size_t kept, slot = 0, layers = 0;
    table_build(&model);
    kept = c->num_decoder_layers * 2 * model.decoder.layers[0].cross_k->rows * c->d_model;
    for (size_t i = 0; i < model.n_tensors; i++) {
        const size_t n = model.tensors[i].rows * model.tensors[i].columns;
        *(is_of_a_layer(&model, &model.tensors[i]) ? &layers : &kept) += n;
    }
    for (size_t s = 0; s < 2; s++) slot = max_size(slot, layer_weights(stacks[s], 0).n);
    layers -= c->num_decoder_layers * 2 * model.decoder.layers[0].cross_k->rows * c->d_model; /* they are kept */
    streaming = (Streaming){(kept + 2 * slot) * sizeof(weight_t), layers * sizeof(weight_t)};
    table_free(&model);
    return streaming;
}

/* What an Offload moves to the host, and what that saves. */
typedef struct {
    size_t weights; /* the first so many of the model's */
    size_t saved;   /* bytes of device memory: their lower halves, less the slots for tensors on their way */
} Offloading;

static Offloading offloading_of(const T5Config *c, Offload offload)
{
    Model model = {.config = *c};
    const Tensor *end;
    Offloading offloading = {0};
    size_t largest = 0, slots;
    if (offload == OFFLOAD_NOTHING) return offloading;
    table_build(&model);
    end = offload == OFFLOAD_ENCODER ? model.decoder.relative_bias : c->tied_head ? model.shared : model.head;
    offloading.weights = end->offset;
    for (const Tensor *t = model.tensors; t < end; t++) largest = max_size(largest, t->rows * t->columns);
    slots = LOWER_SLOTS * largest;
    if (offloading.weights > slots) offloading.saved = (offloading.weights - slots) * sizeof(int16_t);
    table_free(&model);
    return offloading;
}

/* For the time that streaming and offloading are said to take: what 16 lanes of PCIe 4 carry, roughly, in bytes/s. */
static const double PCIE_RATE = 25e9;

/* The fewest recomputed layers with which a stage takes `surplus` bytes less than without any, or all of them where
 * that is not to be had. */
static size_t recomputed_to_save(const T5Config *c, size_t source_rows, size_t target_rows, size_t surplus)
{
    const size_t all = pass_bytes(c, source_rows, target_rows, PASS_TRAIN, 0);
    size_t n = 0;
    while (n < c->num_layers && all - pass_bytes(c, source_rows, target_rows, PASS_TRAIN, n) < surplus)
        n += n ? 1 : 2; /* one alone saves nothing: there is one place for all of them */
    return min_size(n, c->num_layers);
}

/* --- progress, on stderr: a line that is redrawn on a terminal, plain lines now and then in a file */

typedef struct {
    bool quiet, terminal;
    double begun, last; /* seconds_now() */
    double since;       /* where a step's time begins: at the end of the step before it, or of a checkpoint after it */
    int64_t first;      /* steps that were done before (a resumed run) */
} Progress;

enum { PROGRESS_SECONDS = 10, BAR_WIDTH = 24 };

static Progress progress_begin(bool quiet, int64_t first)
{
    double now = seconds_now();
    return (Progress){.quiet = quiet, .terminal = isatty(STDERR_FILENO), .begun = now, .since = now, .first = first};
}

/* Is it time to show something? Always at the end. */
static bool progress_due(Progress *progress, int64_t done, int64_t total)
{
    double now = seconds_now();
    bool due = done == total || done == progress->first + 1 ||
               now - progress->last > (progress->terminal ? 0.1 : PROGRESS_SECONDS);
    if (progress->quiet || !due) return false;
    progress->last = now;
    return true;
}

static void progress_show(const Progress *progress, const char *label, int64_t done, int64_t total, const char *detail)
{
    double elapsed = seconds_now() - progress->begun, each = elapsed / (double)(done - progress->first);
    long left = lround(each * (double)(total - done));
    if (progress->terminal) {
        int filled = (int)(BAR_WIDTH * done / total);
        fprintf(stderr, "\r%s [%.*s%*s] ", label, filled, "########################", BAR_WIDTH - filled, "");
    } else {
        fprintf(stderr, "%s ", label);
    }
    fprintf(stderr, "%lld/%lld  %s", (long long)done, (long long)total, detail);
    if (done < total) fprintf(stderr, "  %ld:%02ld:%02ld left", left / 3600, left / 60 % 60, left % 60);
    fputs(progress->terminal && done < total ? "\033[K" : progress->terminal ? "\033[K\n" : "\n", stderr);
}

/* Says something between two steps; on a terminal it takes the place of the bar. */
static void progress_note(const Progress *progress, const char *text)
{
    if (!progress->quiet) fprintf(stderr, "%s%s\n", progress->terminal ? "\r\033[K" : "", text);
}

/* --- a run: stages in a directory
 *
 *   run.json        the effective settings            log.jsonl   a record a step, and one for each dev evaluation
 *   checkpoints/    state (the run as last saved) and best-STAGE, while the run is not done
 *   model/ prompt/ lora/  what the run was for        DONE        the results; written last
 *   steps/          every checkpoint, if asked for    analysis/   what the probes showed, if there were any
 *
 * Every file is written to a temporary name, synced and renamed (data/files.h). The log alone grows in place: what a
 * resumed run will do again is cut off it first. */

enum { MAX_STAGES = 2 };
enum { EXTRA_TOKENS = 8 }; /* an untuned model's answer has sentinels around it, for which there must be room */

typedef struct {
    const char *directory, *model_directory;
    Model *model;
    const Tokenizer *tokenizer;
    Prompts prompts; /* count 0: none */
    const char *prompt_init;
    TaskData *tasks;
    size_t n_tasks;
    TaskData *probes; /* held-out tasks, watched along training */
    size_t n_probes;
    size_t *probe_shots; /* [n_probe_shots]: --probe-shots */
    size_t n_probe_shots;
    EncodedSplit *probe_inputs;   /* [n_probe_shots, n_probes]: of each number of --probe-shots */
    EncodedSplit *trained_inputs; /* [n_probe_shots, n_tasks]: the same of the trained tasks' dev rows; or NULL */
    int64_t probe_every;          /* 0: at each checkpoint */
    Mixture mixture;
    size_t most_rows[MAX_STAGES]; /* of the largest batch of a stage, as foreseen: see trainer_create */
    Stage stages[MAX_STAGES];
    size_t n_stages;
    uint64_t seed;
    size_t batch, micro;
    int recompute; /* --recompute: encoder layers, see Pass; -1: as few as fit */
    bool offload;  /* --offload: offload what can be, even where there is room */
    bool dropout_shared, quiet;
    bool keep_checkpoints, writes_npy;
    bool lora_comes_off; /* ProMoT with a LoRA in the prompt's place: general ability is that of the model without it */
    int64_t save_every;
    DecodeSettings dev_decode;
    FILE *log;
    /* where the run is: what a saved state restores */
    size_t stage;
    int64_t step; /* updates made in this stage */
    int64_t best_step[MAX_STAGES];
    double best_score[MAX_STAGES]; /* of the best checkpoint; NAN: not evaluated */
} Run;

/* What came out for a split: [count] each, of its inputs in order. */
typedef struct {
    size_t count;
    char **raw;     /* as decoded */
    char **answers; /* as scored */
    MetricResult metric;
} Evaluation;

static void evaluation_free(Evaluation *e)
{
    for (size_t i = 0; i < e->count; i++) {
        free(e->raw[i]);
        free(e->answers[i]);
    }
    free(e->raw);
    free(e->answers);
    memset(e, 0, sizeof *e);
}

/* Chapter 8. Decodes the split's inputs and scores them. */
static int evaluate_split(const Model *model, const Prompts *prompts, const EncodedSplit *split,
                          const DecodeSettings *decoding, Progress *progress, Evaluation *out, Error *error);

/* Chapter 9. Draws what the probes have shown: analysis/. */
static int run_write_analysis(const Run *run, Error *error);

static char *run_file(const Run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
static char *run_file(const Run *run, const char *format, ...) /* a path inside the run; to be freed */
{
    char name[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    return path_join(run->directory, name);
}

/* --- saved states: a safetensors file with the cursor (where the run is), the moments, prompts, LoRA and weights */

enum { CURSOR = 2 + 2 * MAX_STAGES };

static void cursor_pack(const Run *run, int64_t cursor[CURSOR])
{
    cursor[0] = (int64_t)run->stage;
    cursor[1] = run->step;
    for (size_t i = 0; i < MAX_STAGES; i++) {
        cursor[2 + 2 * i] = run->best_step[i];
        memcpy(&cursor[3 + 2 * i], &run->best_score[i], sizeof run->best_score[i]); /* the double's bits */
    }
}

static void cursor_unpack(Run *run, const int64_t cursor[CURSOR])
{
    run->stage = (size_t)cursor[0];
    run->step = cursor[1];
    for (size_t i = 0; i < MAX_STAGES; i++) {
        run->best_step[i] = cursor[2 + 2 * i];
        memcpy(&run->best_score[i], &cursor[3 + 2 * i], sizeof run->best_score[i]);
    }
}

static int moments_append(SafetensorsWriter *writer, Device *dev, const stat_t *moments, size_t n, Error *error)
{
    float *slice = host_alloc(TRANSFER, sizeof *slice);
    int status = 0;
    for (size_t first = 0; !status && first < n; first += TRANSFER) {
        size_t count = min_size(TRANSFER, n - first);
        stats_download(dev, slice, moments + first, count);
        status = safetensors_append(writer, slice, count * sizeof *slice, error);
    }
    free(slice);
    return status;
}

/* Has the model changed by now? Then a state holds its weights. */
static bool state_has_weights(const Run *run)
{
    for (size_t s = 0; s < run->stage; s++)
        if (run->stages[s].trains_model) return true;
    return run->stages[run->stage].trains_model && run->step > 0;
}

/* Writes where the run is and all that training can have changed by now: the prompts, the LoRA and, once a stage has
 * trained it, the model. with_moments: Adafactor's too, which only a resumed run needs. */
static int state_write(const Run *run, const Adafactor *adafactor, const char *path, bool with_moments, Error *error)
{
    const Model *model = run->model;
    bool weights = state_has_weights(run);
    size_t n_prompt = run->prompts.count * run->prompts.length * model->config.d_model, n = 0;
    TensorSpec *of_model = model_specs(model, "model."), *specs = host_alloc(model->n_tensors + 5, sizeof *specs);
    const Lora *lora = model->lora;
    int64_t cursor[CURSOR];
    SafetensorsWriter *writer;
    int status;

    cursor_pack(run, cursor);
    specs[n++] = (TensorSpec){.name = "cursor", .dtype = DTYPE_I64, .n_dims = 1, .shape = {CURSOR}};
    if (with_moments)
        specs[n++] = (TensorSpec){.name = "moments", .dtype = DTYPE_F32, .n_dims = 1, .shape = {adafactor->size}};
    specs[n++] = (TensorSpec){.name = "prompts", .dtype = DTYPE_F32, .n_dims = 1, .shape = {n_prompt}};
    if (lora) specs[n++] = (TensorSpec){.name = "lora", .dtype = DTYPE_F32, .n_dims = 1, .shape = {lora->n_adapters}};
    if (lora && weights)
        specs[n++] = (TensorSpec){.name = "lora_base", .dtype = DTYPE_F32, .n_dims = 1, .shape = {lora->n_bases}};
    if (weights) memcpy(specs + n, of_model, model->n_tensors * sizeof *specs), n += model->n_tensors;

    writer = safetensors_create(path, specs, n, error);
    status = writer ? safetensors_append(writer, cursor, sizeof cursor, error) : -1;
    if (!status && with_moments) status = moments_append(writer, model->dev, adafactor->memory, adafactor->size, error);
    if (!status) status = weights_append(writer, model->dev, run->prompts.rows, n_prompt, error);
    if (!status && lora) status = weights_append(writer, model->dev, lora->adapters, lora->n_adapters, error);
    if (!status && lora && weights) status = weights_append(writer, model->dev, lora->bases, lora->n_bases, error);
    if (!status && weights) status = weights_append(writer, model->dev, model->weights, model->n_weights, error);
    specs_free(of_model, model->n_tensors);
    free(specs);
    if (!writer) return -1;
    if (status) {
        safetensors_abandon(writer);
        return -1;
    }
    return safetensors_commit(writer, error);
}

static const StoredTensor *state_find(const Checkpoint *state, const char *path, const char *name, size_t numel,
                                      Error *error)
{
    const StoredTensor *stored = checkpoint_find(state, name);
    if (stored && stored->numel == numel) return stored;
    error_set(error, EXIT_FAILED, "%s: %s (expected %zu elements, found %zu)", path, name, numel,
              stored ? stored->numel : 0);
    return NULL;
}

/* Reads n weights that a state holds under a name. */
static int state_read_weights(const Checkpoint *state, const char *path, const char *name, Device *dev, weight_t *to,
                              size_t n, Error *error)
{
    const StoredTensor *stored = state_find(state, path, name, n, error);
    float *slice;
    int status = stored ? 0 : -1;
    if (status) return -1;
    slice = host_alloc(TRANSFER, sizeof *slice);
    for (size_t first = 0; !status && first < n; first += TRANSFER) {
        size_t count = min_size(TRANSFER, n - first);
        status = stored_tensor_read_float(stored, first, count, slice, error);
        if (!status) weights_upload(dev, to + first, slice, count);
    }
    free(slice);
    return status;
}

/* Reads weights and prompts back; with_cursor: also where the run was; adafactor, if not NULL, gets its moments. */
static int state_read(Run *run, const char *path, bool with_cursor, Adafactor *adafactor, Error *error)
{
    const Model *model = run->model;
    const Lora *lora = model->lora;
    size_t n_prompt = run->prompts.count * run->prompts.length * model->config.d_model;
    Checkpoint *state = checkpoint_open(path, error);
    const StoredTensor *stored;
    int64_t cursor[CURSOR];
    float *slice;
    int status = 0;
    if (!state) return -1;
    slice = host_alloc(TRANSFER, sizeof *slice);
    if (with_cursor) {
        stored = state_find(state, path, "cursor", CURSOR, error);
        status = stored ? stored_tensor_read_int(stored, 0, CURSOR, cursor, error) : -1;
        if (!status && (cursor[0] < 0 || (size_t)cursor[0] >= run->n_stages))
            status = error_set(error, EXIT_FAILED, "%s: stage (expected below %zu, found %lld)", path, run->n_stages,
                               (long long)cursor[0]);
        else if (!status && (cursor[1] < 0 || cursor[1] > run->stages[cursor[0]].steps))
            status = error_set(error, EXIT_FAILED, "%s: step (expected at most %lld, found %lld)", path,
                               (long long)run->stages[cursor[0]].steps, (long long)cursor[1]);
        if (!status) cursor_unpack(run, cursor);
    }
    if (!status && n_prompt)
        status = state_read_weights(state, path, "prompts", model->dev, run->prompts.rows, n_prompt, error);
    if (!status && lora)
        status = state_read_weights(state, path, "lora", model->dev, lora->adapters, lora->n_adapters, error);
    if (!status && lora && state_has_weights(run))
        status = state_read_weights(state, path, "lora_base", model->dev, lora->bases, lora->n_bases, error);
    for (size_t i = 0; !status && i < model->n_tensors; i++) {
        char *name = text_format("model.%s", model->tensors[i].name);
        stored = checkpoint_find(state, name);
        if (stored)
            status = tensor_load(model, &model->tensors[i], stored, slice, error);
        else if (state_has_weights(run))
            status = error_set(error, EXIT_FAILED, "%s: %s is missing", path, name);
        free(name);
    }
    if (!status && adafactor) {
        stored = state_find(state, path, "moments", adafactor->size, error);
        if (!stored) status = -1;
        for (size_t first = 0; !status && first < adafactor->size; first += TRANSFER) {
            size_t count = min_size(TRANSFER, adafactor->size - first);
            status = stored_tensor_read_float(stored, first, count, slice, error);
            if (!status) stats_upload(model->dev, adafactor->memory + first, slice, count);
        }
    }
    if (!status) lora_merge(model);
    free(slice);
    checkpoint_close(state);
    return status;
}

static int run_save(const Run *run, const Adafactor *adafactor, Error *error)
{
    char *path = run_file(run, "checkpoints/state.safetensors");
    int status = state_write(run, adafactor, path, adafactor != NULL, error);
    free(path);
    return status;
}

/* --- the log */

static int log_write(Run *run, cJSON *record, Error *error)
{
    char *text = cJSON_PrintUnformatted(record);
    bool written = text && fprintf(run->log, "%s\n", text) > 0 && fflush(run->log) == 0;
    free(text);
    cJSON_Delete(record);
    return written ? 0
                   : error_set(error, EXIT_FAILED, "%s/log.jsonl: cannot write: %s", run->directory, strerror(errno));
}

static int log_step(Run *run, const StepResult *result, double learning_rate, double seconds, Error *error)
{
    cJSON *record = cJSON_CreateObject();
    cJSON_AddStringToObject(record, "stage", run->stages[run->stage].name);
    cJSON_AddNumberToObject(record, "step", (double)result->step + 1);
    cJSON_AddNumberToObject(record, "loss",
                            result->loss / run->stages[run->stage].loss.scale / (double)result->targets);
    cJSON_AddNumberToObject(record, "loss_sum", result->loss);
    cJSON_AddNumberToObject(record, "lr", learning_rate);
    cJSON_AddNumberToObject(record, "tokens", (double)result->tokens);
    cJSON_AddNumberToObject(record, "target_tokens", (double)result->targets);
    if (run->stages[run->stage].trains_prompts)
        cJSON_AddNumberToObject(record, "prompt_gradient_norm", result->prompt_gradient_norm);
    cJSON_AddNumberToObject(record, "seconds", round(seconds * 1e6) / 1e6);
    return log_write(run, record, error);
}

/* Is this record from before the saved state? At step 0 a stage's records are not: its first probe is made again. */
static bool log_record_is_before(const char *line, const Run *run)
{
    cJSON *record = cJSON_Parse(line);
    const cJSON *stage = cJSON_GetObjectItemCaseSensitive(record, "stage"),
                *step = cJSON_GetObjectItemCaseSensitive(record, "step");
    bool before = false;
    if (cJSON_IsString(stage) && cJSON_IsNumber(step))
        for (size_t s = 0; s <= run->stage && s < run->n_stages; s++)
            if (strcmp(stage->valuestring, run->stages[s].name) == 0)
                before = s < run->stage || (run->step > 0 && step->valuedouble <= (double)run->step);
    cJSON_Delete(record);
    return before;
}

/* Opens the log at its end. A resumed run keeps the records up to its saved state; a line cut short by a kill goes. */
static int log_open(Run *run, bool resumed, Error *error)
{
    char *path = run_file(run, "log.jsonl");
    MappedFile file = {0};
    int status = 0;
    if (resumed && path_exists(path) && !(status = mapped_file_open(&file, path, error))) {
        AtomicFile *kept = atomic_file_create(path, error);
        status = kept ? 0 : -1;
        for (size_t at = 0; !status && at < file.bytes;) {
            const char *line = (const char *)file.data + at, *end = memchr(line, '\n', file.bytes - at);
            size_t length = end ? (size_t)(end - line) + 1 : file.bytes - at;
            char *text = text_format("%.*s", (int)length, line);
            if (end && log_record_is_before(text, run)) status = atomic_file_write(kept, line, length, error);
            free(text);
            at += length;
        }
        mapped_file_close(&file);
        if (kept && !status)
            status = atomic_file_commit(kept, error);
        else
            atomic_file_abandon(kept);
    }
    if (!status && !(run->log = fopen(path, "a")))
        status = error_set(error, EXIT_FAILED, "%s: cannot open: %s", path, strerror(errno));
    free(path);
    return status;
}

/* --- checkpoints on the dev set */

/* Scores a trained task as the running stage asks it: with its prompt, if there are prompts. inputs: its dev rows, or
 * the first of them, with any number of worked examples. */
static int evaluate_trained(const Run *run, size_t task, const EncodedSplit *inputs, double *score, Error *error)
{
    const Prompts *prompts = run->stages[run->stage].uses_prompts ? &run->prompts : NULL;
    DecodeSettings decoding = run->dev_decode;
    Progress silent = progress_begin(true, 0);
    Evaluation outputs;
    if (!decoding.max_length) decoding.max_length = run->tasks[task].dev.longest_target;
    if (evaluate_split(run->model, prompts, inputs, &decoding, &silent, &outputs, error)) return -1;
    *score = outputs.metric.score;
    evaluation_free(&outputs);
    return 0;
}

/* The mean dev score of all tasks; *evaluated: whether there is one. */
static int run_evaluate(Run *run, cJSON *scores, double *mean, bool *evaluated, Error *error)
{
    double sum = 0, score;
    for (size_t i = 0; i < run->n_tasks; i++) {
        if (evaluate_trained(run, i, &run->tasks[i].dev, &score, error)) return -1;
        cJSON_AddNumberToObject(scores, run->tasks[i].name, score);
        sum += score;
    }
    *evaluated = run->n_tasks > 0;
    *mean = run->n_tasks ? sum / (double)run->n_tasks : NAN;
    return 0;
}

/* Evaluates, keeps what is trained if it is the best so far (the earlier among equals), and logs it.
 * Without a dev set the last step is the best one. */
static int run_checkpoint(Run *run, Trainer *trainer, const Progress *progress, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    cJSON *record = cJSON_CreateObject(), *scores = cJSON_AddObjectToObject(record, "dev");
    double mean;
    bool evaluated, better;
    char *path, *text;
    pass_free(&trainer->pass); /* room for decoding */
    if (run_evaluate(run, scores, &mean, &evaluated, error)) {
        cJSON_Delete(record);
        return -1;
    }
    better = !evaluated || !(mean <= run->best_score[run->stage]); /* also when nothing is best yet: NAN */
    if (better) {
        run->best_score[run->stage] = mean;
        run->best_step[run->stage] = run->step;
        path = run_file(run, "checkpoints/best-%s.safetensors", stage->name);
        if (state_write(run, NULL, path, false, error)) {
            free(path);
            cJSON_Delete(record);
            return -1;
        }
        free(path);
    }
    if (!evaluated) {
        cJSON_Delete(record);
        return 0;
    }
    text = text_format("%s step %lld: dev %.2f%s", stage->name, (long long)run->step, mean,
                       better ? " (best so far)" : "");
    progress_note(progress, text);
    free(text);
    cJSON_AddStringToObject(record, "stage", stage->name);
    cJSON_AddNumberToObject(record, "step", (double)run->step);
    cJSON_AddNumberToObject(record, "mean", mean);
    cJSON_AddBoolToObject(record, "best", better);
    return log_write(run, record, error);
}

/* --- probes: what becomes of tasks that are not trained (the paper's Figures 2, 5 and 6), and what worked examples do
 * to those that are */

/* Is one of a probe's own label words a trained task's too? Then answers in that format are no sign of a loss. */
static bool shares_label_words(const Task *probe, const Task *const *trained, size_t n_trained)
{
    const char *const *words;
    size_t n = task_labels(probe, &words);
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < n_trained; t++)
            if (is_in_format(trained[t], words[i])) return true;
    return false;
}

static void add_if_finite(cJSON *to, const char *name, double x)
{
    if (isfinite(x)) cJSON_AddNumberToObject(to, name, x);
}

/* Asks the held-out tasks without any prompt at number s of --probe-shots, and adds to the record "probe", "mean" and
 * "format_ratio". */
static int probe_heldout(const Run *run, size_t s, cJSON *record, const Progress *progress, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    cJSON *probe = cJSON_AddObjectToObject(record, "probe");
    const Task **targets = host_alloc(run->n_tasks, sizeof *targets);
    double mean = 0, ratio = 0;
    size_t n_ratios = 0;
    char *format, *text;
    for (size_t t = 0; t < run->n_tasks; t++) targets[t] = run->tasks[t].task;
    for (size_t i = 0; i < run->n_probes; i++) {
        const TaskData *data = &run->probes[i];
        const EncodedSplit *inputs = &run->probe_inputs[s * run->n_probes + i];
        DecodeSettings decoding = run->dev_decode;
        Progress silent = progress_begin(true, 0);
        Evaluation outputs;
        double in_format;
        cJSON *scores;
        if (!decoding.max_length) decoding.max_length = inputs->longest_target + EXTRA_TOKENS;
        if (evaluate_split(run->model, NULL, inputs, &decoding, &silent, &outputs, error)) {
            free(targets);
            return -1;
        }
        in_format = shares_label_words(data->task, targets, run->n_tasks)
                        ? NAN
                        : format_ratio(targets, run->n_tasks, (const char *const *)outputs.answers, outputs.count);
        scores = cJSON_AddObjectToObject(probe, data->name);
        cJSON_AddNumberToObject(scores, "score", outputs.metric.score);
        add_if_finite(scores, "format_ratio", in_format);
        mean += outputs.metric.score / (double)run->n_probes;
        if (isfinite(in_format)) ratio += in_format, n_ratios++;
        evaluation_free(&outputs);
    }
    cJSON_AddNumberToObject(record, "mean", mean);
    ratio = n_ratios ? ratio / (double)n_ratios : NAN;
    add_if_finite(record, "format_ratio", ratio);
    format =
        isfinite(ratio) ? text_format(", %.1f %% of the answers in the trained format", ratio) : text_format("%s", "");
    text = text_format("%s step %lld: held-out tasks, %zu-shot, %.2f%s", stage->name, (long long)run->step,
                       run->probe_shots[s], mean, format);
    progress_note(progress, text);
    free(targets);
    free(format);
    free(text);
    return 0;
}

/* Asks the trained tasks as their dev evaluation would with --shots at number s of --probe-shots, and adds "trained"
 * and "trained_mean". */
static int probe_trained(const Run *run, size_t s, cJSON *record, const Progress *progress, Error *error)
{
    cJSON *trained = cJSON_AddObjectToObject(record, "trained");
    double mean = 0, score;
    char *text;
    for (size_t i = 0; i < run->n_tasks; i++) {
        if (evaluate_trained(run, i, &run->trained_inputs[s * run->n_tasks + i], &score, error)) return -1;
        cJSON_AddNumberToObject(trained, run->tasks[i].name, score);
        mean += score / (double)run->n_tasks;
    }
    cJSON_AddNumberToObject(record, "trained_mean", mean);
    text = text_format("%s step %lld: what is trained, %zu-shot, %.2f", run->stages[run->stage].name,
                       (long long)run->step, run->probe_shots[s], mean);
    progress_note(progress, text);
    free(text);
    return 0;
}

/* Can held-out tasks be answered in another way after a step of this stage? */
static bool stage_changes_heldout(const Run *run)
{
    const Stage *stage = &run->stages[run->stage];
    return stage->trains_model || (stage->trains_lora && !run->lora_comes_off);
}

/* Asks what is to be asked with the model as it is, and logs a record for each number of --probe-shots. */
static int run_probe(Run *run, const Progress *progress, Error *error)
{
    bool heldout = run->n_probes && stage_changes_heldout(run);
    int status = 0;
    for (size_t s = 0; !status && s < run->n_probe_shots; s++) {
        cJSON *record = cJSON_CreateObject();
        cJSON_AddStringToObject(record, "stage", run->stages[run->stage].name);
        cJSON_AddNumberToObject(record, "step", (double)run->step);
        cJSON_AddNumberToObject(record, "shots", (double)run->probe_shots[s]);
        if (heldout && run->lora_comes_off) lora_unmerge(run->model);
        if (heldout) status = probe_heldout(run, s, record, progress, error);
        if (heldout && run->lora_comes_off) lora_merge(run->model);
        if (!status && run->trained_inputs) status = probe_trained(run, s, record, progress, error);
        if (status)
            cJSON_Delete(record);
        else
            status = log_write(run, record, error);
    }
    return status;
}

/* Are probes due now? Held-out tasks are asked where a stage can change the answers, trained ones in every stage. */
static bool probe_is_due(const Run *run, bool checkpoint)
{
    const Stage *stage = &run->stages[run->stage];
    if (!run->trained_inputs && !(run->n_probes && stage_changes_heldout(run))) return false;
    return run->probe_every ? run->step % run->probe_every == 0 || run->step == stage->steps : checkpoint;
}

/* --- the loop */

/* Writes PARENT/NAME for each prompt, as PEFT adapters, and NAME.npy if wanted. */
static int run_write_prompts(const Run *run, const char *parent, Error *error)
{
    int status = 0;
    for (size_t i = 0; !status && i < run->prompts.count; i++) {
        char *adapter = path_join(parent, run->tasks[i].name), *npy = text_format("%s.npy", adapter);
        status = prompt_write(run->model, &run->prompts, i, run->model_directory, run->prompt_init, adapter, error);
        if (!status && run->writes_npy) status = prompt_write_npy(run->model, &run->prompts, i, npy, error);
        free(npy);
        free(adapter);
    }
    return status;
}

/* The model, without a LoRA that comes off; with any other it is merged. */
static int run_write_model(const Run *run, const char *directory, Error *error)
{
    int status;
    if (run->lora_comes_off) lora_unmerge(run->model);
    status = model_write(run->model, directory, run->model_directory, error);
    if (run->lora_comes_off) lora_merge(run->model);
    return status;
}

/* Keeps a checkpoint: steps/STAGE-000100, a model directory, or of a stage that trains adapters only those. A
 * model that is trained together with its prompts has them in its prompt/. */
static int run_keep(const Run *run, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    char *directory = run_file(run, "steps/%s-%06lld", stage->name, (long long)run->step),
         *prompts = stage->trains_model ? path_join(directory, "prompt") : text_format("%s", directory);
    int status = directory_remove(directory, error); /* what a killed attempt left */
    if (!status) status = directory_create(directory, error);
    if (!status && stage->trains_model) status = run_write_model(run, directory, error);
    if (!status && stage->trains_lora) status = lora_write(run->model, directory, run->model_directory, error);
    if (!status && stage->trains_prompts) status = run_write_prompts(run, prompts, error);
    free(prompts);
    free(directory);
    return status;
}

/* Reads the next batch and queues its step. */
static int run_queue_step(Run *run, Trainer *trainer, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    TokenExample *examples = host_alloc(run->batch, sizeof *examples);
    uint64_t key = random_fold(random_fold(run->seed, run->stage + 1), (uint64_t)run->step);
    int status = 0;
    for (size_t b = 0; !status && b < run->batch; b++)
        status = mixture_get(&run->mixture, (size_t)run->step * run->batch + b, &examples[b], error);
    if (!status)
        status = train_step_queue(trainer, run->model, &run->prompts, stage, examples, run->batch, run->micro,
                                  run->step, key, run->dropout_shared, error);
    for (size_t b = 0; b < run->batch; b++) token_example_free(&examples[b]);
    free(examples);
    if (!status) run->step++;
    return status;
}

/* Takes the result of the oldest step that was asked for, shows it and logs it. */
static int run_take_result(Run *run, Trainer *trainer, Progress *progress, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    const AdafactorSettings *settings = stage->trains_model  ? &stage->model
                                        : stage->trains_lora ? &stage->lora
                                                             : &stage->prompt;
    StepResult result;
    double rate, now, seconds;
    if (train_step_result(trainer, stage, &result, error)) return -1;
    rate = learning_rate_at(settings, result.step);
    now = seconds_now();
    seconds = now - progress->since;
    progress->since = now;
    if (progress_due(progress, result.step + 1, stage->steps)) {
        char *detail = text_format("loss %.4f  lr %.3g  %.3f s/step  %.0f tokens/s",
                                   result.loss / stage->loss.scale / (double)result.targets, rate, seconds,
                                   (double)result.tokens / seconds);
        progress_show(progress, stage->name, result.step + 1, stage->steps, detail);
        free(detail);
    }
    return log_step(run, &result, rate, seconds, error);
}

/* Takes the results that are there, and waits for one when the queue is full. all: waits for every step, because
 * training pauses to save or to evaluate what they made. */
static int run_take_results(Run *run, Trainer *trainer, bool all, Progress *progress, Error *error)
{
    int status = 0;
    while (!status && trainer->n_queued && (all || trainer->n_queued == QUEUED_STEPS || train_step_is_done(trainer)))
        status = run_take_result(run, trainer, progress, error);
    return status;
}

/* The key of the order in which a stage sees its examples. */
static uint64_t stage_key(const Run *run, size_t stage)
{
    enum { ORDERS = 100 }; /* apart from the keys of dropout, which are those of the stages' numbers */
    return random_fold(run->seed, ORDERS + stage);
}

/* Runs the current stage from run->step to its end, and leaves the best checkpoint's weights and prompts. */
static int run_stage(Run *run, bool restore, Error *error)
{
    const Stage *stage = &run->stages[run->stage];
    Trainer trainer;
    Progress progress = progress_begin(run->quiet, run->step);
    char *path;
    int status;
    mixture_begin(&run->mixture, stage_key(run, run->stage));
    if (stage->offload)
        status = weights_offload(run->model->dev, run->model->weights,
                                 offloading_of(&run->model->config, stage->offload).weights, error);
    else
        status = weights_park(run->model->dev, run->model->weights, !stage->trains_model && !run->model->lora, error);
    if (status) return -1;
    if (trainer_create(&trainer, run->model, &run->prompts, stage, run->most_rows[run->stage], run->micro < run->batch,
                       error))
        return -1;
    path = run_file(run, "checkpoints/state.safetensors");
    if (restore && run->step > 0) { /* at step 0 a state has no moments */
        status = state_read(run, path, false, &trainer.adafactor, error);
        if (!status) adafactor_measure_weights(&trainer.adafactor);
    }
    free(path);
    if (!status && run->step == 0 && probe_is_due(run, true)) {
        status = run_probe(run, &progress, error);
        progress = progress_begin(run->quiet, 0); /* its time is no step's */
    }
    while (!status && run->step < stage->steps) {
        bool checkpoint, probe, save;
        status = run_queue_step(run, &trainer, error);
        checkpoint = run->step % stage->checkpoint_every == 0 || run->step == stage->steps;
        probe = probe_is_due(run, checkpoint);
        save = checkpoint || run->step % run->save_every == 0;
        if (!status) status = run_take_results(run, &trainer, probe || save, &progress, error);
        if (!status && checkpoint) status = run_checkpoint(run, &trainer, &progress, error);
        if (!status && checkpoint && run->keep_checkpoints) status = run_keep(run, error);
        if (!status && probe) {
            pass_free(&trainer.pass); /* room for decoding */
            status = run_probe(run, &progress, error);
        }
        if (!status && save) status = run_save(run, &trainer.adafactor, error);
        if (probe || save) progress.since = seconds_now();
    }
    trainer_free(&trainer);
    if (status) return -1;
    path = run_file(run, "checkpoints/best-%s.safetensors", stage->name);
    status = state_read(run, path, false, NULL, error);
    free(path);
    return status;
}

/* Sequential ProMoT: where --model is the model/ of an earlier run, that run's prompts come along, but for the tasks
 * that this run trained anew, so that one directory serves all tasks learnt so far. */
static int run_carry_prompts(const Run *run, const char *prompts, Error *error)
{
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    char *earlier = path_join(run->model_directory, "../prompt"),
         *of_run = path_join(run->model_directory, "../run.json");
    DIR *directory = path_exists(of_run) ? opendir(earlier) : NULL; /* else it is nobody's run */
    const struct dirent *entry;
    int status = 0;
    while (directory && !status && (entry = readdir(directory))) {
        char *from = path_join(earlier, entry->d_name), *to = path_join(prompts, entry->d_name),
             *config = path_join(from, files[0]);
        if (entry->d_name[0] != '.' && path_exists(config) && !path_exists(to)) {
            status = directory_create(to, error);
            for (size_t i = 0; !status && i < sizeof files / sizeof *files; i++) {
                char *one = path_join(from, files[i]), *copy = path_join(to, files[i]);
                status = file_copy(one, copy, error);
                free(one);
                free(copy);
            }
            if (!run->quiet) fprintf(stderr, "prompt/%s: carried along from %s\n", entry->d_name, earlier);
        }
        free(config);
        free(to);
        free(from);
    }
    if (directory) closedir(directory);
    free(of_run);
    free(earlier);
    return status;
}

/* Writes model/, prompt/NAME/ and lora/. */
static int run_write_results(const Run *run, Error *error)
{
    char *directory = run_file(run, "model"), *prompts = run_file(run, "prompt"), *lora = run_file(run, "lora");
    int status = directory_remove(directory, error); /* what an earlier, killed attempt left */
    if (!status) status = directory_remove(lora, error);
    if (!status) status = directory_remove(prompts, error);
    if (!status) status = run_write_model(run, directory, error);
    if (!status && run->model->lora)
        status = lora_write(run->model, lora, run->lora_comes_off ? directory : run->model_directory, error);
    if (!status) status = run_write_prompts(run, prompts, error);
    if (!status) status = run_carry_prompts(run, prompts, error);
    free(lora);
    free(prompts);
    free(directory);
    return status;
}

/* The results, as DONE holds them and the command prints them. To be deleted. */
static cJSON *run_results(const Run *run)
{
    cJSON *results = cJSON_CreateObject(), *stages = cJSON_AddArrayToObject(results, "stages");
    for (size_t i = 0; i < run->n_stages; i++) {
        cJSON *stage = cJSON_CreateObject();
        cJSON_AddStringToObject(stage, "stage", run->stages[i].name);
        cJSON_AddNumberToObject(stage, "steps", (double)run->stages[i].steps);
        cJSON_AddNumberToObject(stage, "best_step", (double)run->best_step[i]);
        if (isfinite(run->best_score[i])) cJSON_AddNumberToObject(stage, "dev", run->best_score[i]);
        cJSON_AddItemToArray(stages, stage);
    }
    return results;
}

/* Files that a killed process was writing (data/files.h) are of no use to the one that goes on. */
static void remove_temporary_files(char *path) /* frees the path */
{
    DIR *directory = opendir(path);
    const struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        const char *suffix = strrchr(entry->d_name, '.');
        if (suffix && strcmp(suffix, ".tmp") == 0) unlinkat(dirfd(directory), entry->d_name, 0);
    }
    if (directory) closedir(directory);
    free(path);
}

static void run_clean(const Run *run)
{
    remove_temporary_files(run_file(run, "."));
    remove_temporary_files(run_file(run, "checkpoints"));
    remove_temporary_files(run_file(run, "model"));
    remove_temporary_files(run_file(run, "lora"));
    remove_temporary_files(run_file(run, "analysis"));
    for (size_t i = 0; i < run->prompts.count; i++)
        remove_temporary_files(run_file(run, "prompt/%s", run->tasks[i].name));
}

/* Everything from the current stage to DONE. `resumed`: its run.json was there. */
static int run_execute(Run *run, bool resumed, Error *error)
{
    char *checkpoints = run_file(run, "checkpoints"), *done = run_file(run, "DONE"), *text;
    cJSON *results;
    int status = directory_create(checkpoints, error);
    run_clean(run);
    if (!status) status = log_open(run, resumed, error);
    while (!status && run->stage < run->n_stages) {
        status = run_stage(run, resumed, error);
        if (status || run->stage + 1 == run->n_stages) break;
        run->stage++;
        run->step = 0;
        status = run_save(run, NULL, error);
    }
    if (run->log && fclose(run->log) != 0 && !status)
        status = error_set(error, EXIT_FAILED, "%s/log.jsonl: cannot write: %s", run->directory, strerror(errno));
    run->log = NULL;
    if (!status) status = run_write_results(run, error);
    if (!status && (run->n_probes || run->trained_inputs)) status = run_write_analysis(run, error);
    if (!status) {
        results = run_results(run);
        text = cJSON_Print(results);
        status = file_write_text(done, text, error);
        free(text);
        cJSON_Delete(results);
    }
    if (!status) status = directory_remove(checkpoints, error);
    free(checkpoints);
    free(done);
    return status;
}

/* ================================================================================================================
 * [8] Evaluation
 *
 * Decode every input of a split, turn outputs into answers (data/tasks.h), score them (data/metrics.h). */

static void evaluate_progress(void *context, size_t done, size_t count)
{
    Progress *progress = context;
    if (progress_due(progress, (int64_t)done, (int64_t)count))
        progress_show(progress, "decoding", (int64_t)done, (int64_t)count, "");
}

/* Turns raw outputs into answers and scores them. */
static int score_outputs(Evaluation *e, const EncodedSplit *split, Error *error)
{
    const Task *task = split->encoder.task;
    References *references = host_alloc(split->count, sizeof *references);
    int status = 0;
    for (size_t i = 0; !status && i < split->count; i++) {
        const Example *row = &split->rows[i];
        references[i] = (References){(const char *const *)row->targets, row->n_targets};
        e->answers[i] = task_postprocess(task, e->raw[i]);
        if (!e->answers[i]) status = error_set(error, EXIT_FAILED, "memory: none left for the answers of a task");
    }
    if (!status)
        status = metric_compute(task_metric(task), (const char *const *)e->answers, references, split->count,
                                &e->metric, error);
    free(references);
    return status;
}

/* Decodes the split's inputs and scores them. After a success *out is to be freed with evaluation_free. */
static int evaluate_split(const Model *model, const Prompts *prompts, const EncodedSplit *split,
                          const DecodeSettings *decoding, Progress *progress, Evaluation *out, Error *error)
{
    DecodeSettings one = *decoding;
    Hypothesis *hypotheses = host_alloc(split->count, sizeof *hypotheses);
    int status;
    *out = (Evaluation){.count = split->count};
    out->raw = host_alloc(split->count, sizeof *out->raw);
    out->answers = host_alloc(split->count, sizeof *out->answers);
    one.n_best = 1;
    status = decode(model, prompts, split->ids, split->count, &one, hypotheses, evaluate_progress, progress, error);
    for (size_t i = 0; !status && i < split->count; i++) {
        out->raw[i] = tokenizer_decode(split->encoder.tokenizer, hypotheses[i].ids, hypotheses[i].length, error);
        if (!out->raw[i]) status = -1;
    }
    hypotheses_free(hypotheses, split->count);
    if (!status) status = score_outputs(out, split, error);
    if (status) evaluation_free(out);
    return status;
}

/* ================================================================================================================
 * [9] Analysis
 *
 * What of a gradient is the task, and what only its format (ProMoT, Figures 3 and 7)? The format alone is learnt from
 * the same inputs with labels drawn at random. For each module of the model the two gradients are compared by
 *
 *   cos = <full, format> / (|full| |format|)
 *
 * Near 1, fine-tuning would change the module much as learning the format alone would. The paper finds this early in
 * fine-tuning, and lower values with the trained prompt attached, which already supplies the format. The second measure
 * is the format ratio (Figure 2): how many answers to *other* tasks come in the trained task's format.
 *
 * Memory: the gradient of the full task is kept, n_weights numbers (of an untied embedding only the rows that the
 * examples touch). That of the format is not, when one micro-batch holds all examples: each tensor's is compared as
 * soon as the backward pass has it, where training would use it up in an update. Several micro-batches must add up
 * before they can be squared, and take a second kept gradient. */

const char *module_name(Module module)
{
    static const char *const names[N_MODULES] = {
#define X(id, name) [MODULE_##id] = (name),
        MODULES(X)
#undef X
    };
    return names[module];
}

Module tensor_module(const char *tensor_name)
{
    bool is_decoder = strncmp(tensor_name, "decoder.", strlen("decoder.")) == 0;
    if (strcmp(tensor_name, "shared.weight") == 0) return MODULE_SHARED;
    if (strcmp(tensor_name, "lm_head.weight") == 0) return MODULE_LM_HEAD;
    if (strstr(tensor_name, "relative_attention_bias")) return MODULE_RELATIVE_BIAS;
    if (strstr(tensor_name, "norm")) return is_decoder ? MODULE_DECODER_NORMS : MODULE_ENCODER_NORMS;
    if (strstr(tensor_name, "EncDecAttention")) return MODULE_DECODER_CROSS_ATTENTION;
    if (strstr(tensor_name, "SelfAttention"))
        return is_decoder ? MODULE_DECODER_SELF_ATTENTION : MODULE_ENCODER_SELF_ATTENTION;
    return is_decoder ? MODULE_DECODER_MLP : MODULE_ENCODER_MLP;
}

double alignment_cosine(const Alignment *a, Module module)
{
    double norms = sqrt(a->full_square[module]) * sqrt(a->format_square[module]);
    return norms > 0 ? a->dot[module] / norms : NAN;
}

typedef struct {
    const Model *model;
    const Prompts *prompts; /* NULL: none */
    const LossSettings *loss;
    int32_t *rows; /* [n_rows] of the embedding that either gradient has; NULL: all */
    size_t n_rows;
    Gradients full, format;
    char *full_memory, *format_memory;
    double *products; /* [3], of one tensor */
    Batch batch;
    Pass pass;
    Alignment *out;
} Aligner;

/* Adds the products of two gradients of n numbers to a module. */
static void alignment_add(const Aligner *a, Module module, const stat_t *full, const stat_t *format, size_t n)
{
    Device *dev = a->model->dev;
    double products[3];
    dot_product(dev, &a->products[0], full, format, n);
    dot_product(dev, &a->products[1], full, full, n);
    dot_product(dev, &a->products[2], format, format, n);
    device_download(dev, products, a->products, sizeof products);
    a->out->dot[module] += products[0];
    a->out->full_square[module] += products[1];
    a->out->format_square[module] += products[2];
}

/* Compares a tensor's format gradient with its kept full one. It is a Gradients' `finished`. */
static void alignment_add_tensor(void *context, const Tensor *tensor, const stat_t *format)
{
    const Aligner *a = context;
    size_t rows = tensor == a->model->shared ? a->n_rows : tensor->rows;
    alignment_add(a, tensor_module(tensor->name), gradient_place(&a->full, a->model, tensor), format,
                  rows * tensor->columns);
}

/* What remains when both backward passes are done: tensors whose gradients were kept, the prompts, and the total. */
static void alignment_finish(Aligner *a)
{
    const Model *model = a->model;
    Alignment *out = a->out;
    for (size_t i = 0; !a->format.finished && i < model->n_tensors; i++)
        alignment_add_tensor(a, &model->tensors[i], gradient_place(&a->format, model, &model->tensors[i]));
    for (int module = 0; module < MODULE_TOTAL; module++) {
        out->dot[MODULE_TOTAL] += out->dot[module];
        out->full_square[MODULE_TOTAL] += out->full_square[module];
        out->format_square[MODULE_TOTAL] += out->format_square[module];
    }
    if (a->prompts)
        alignment_add(a, MODULE_PROMPT, a->full.prompts, a->format.prompts,
                      a->prompts->count * a->prompts->length * model->config.d_model);
}

/* The gradient of the loss summed over all examples. */
static int alignment_gradient(Aligner *a, const TokenExample *examples, size_t count, size_t micro, Gradients *grads,
                              Error *error)
{
    size_t length = a->prompts ? a->prompts->length : 0, n_prompts = a->prompts ? a->prompts->count : 0;
    double loss = 0;
    for (size_t first = 0; first < count; first += micro) {
        if (batch_build(&a->batch, a->model, examples + first, min_size(micro, count - first), length, n_prompts, first,
                        a->rows, a->n_rows, error) ||
            pass_prepare(&a->pass, a->model, a->prompts, &a->batch, PASS_TRAIN, error))
            return -1;
        grads->accumulate = first > 0;
        loss += t5_loss(&a->pass, a->loss, grads);
    }
    if (isfinite(loss)) return 0;
    return error_set(error, EXIT_FAILED, "alignment: the loss is not a number (damaged weights?)");
}

/* The rows of the embedding that either list touches, so that both gradients have the same ones; to be freed. A tied
 * head gives all rows a gradient: NULL. */
static int32_t *alignment_rows(const T5Config *config, const TokenExample *full, const TokenExample *format,
                               size_t count, size_t *n_rows)
{
    TokenExample *both;
    int32_t *rows;
    *n_rows = config->vocab_size;
    if (config->tied_head) return NULL;
    both = host_alloc(2 * count, sizeof *both);
    memcpy(both, full, count * sizeof *both);
    memcpy(both + count, format, count * sizeof *both);
    rows = touched_ids(config, both, 2 * count, n_rows);
    free(both);
    return rows;
}

int alignment(const Model *model, const Prompts *prompts, const TokenExample *full, const TokenExample *format,
              size_t count, size_t micro, const LossSettings *loss, Alignment *out, Error *error)
{
    Aligner a = {.model = model, .prompts = prompts, .loss = loss, .out = out};
    GradientPlan plan = {.model = true, .prompts = prompts != NULL, .keep = true};
    size_t n_prompt_rows = prompts ? prompts->count * prompts->length : 0;
    int status;
    memset(out, 0, sizeof *out);
    if (count == 0) return error_set(error, EXIT_USAGE, "alignment: no examples (expected one or more)");
    if (micro == 0) micro = count;
    a.rows = alignment_rows(&model->config, full, format, count, &plan.n_touched);
    a.n_rows = plan.n_touched;
    status = gradients_create(&a.full, &a.full_memory, model, &plan, n_prompt_rows, error);
    plan.keep = micro < count;
    if (!status) status = gradients_create(&a.format, &a.format_memory, model, &plan, n_prompt_rows, error);
    if (!plan.keep) {
        a.format.finished = alignment_add_tensor;
        a.format.context = &a;
    }
    if (!status && !(a.products = device_alloc(3 * sizeof *a.products)))
        status = error_set(error, EXIT_FAILED, "memory: no room for the products of two gradients");
    if (!status) status = alignment_gradient(&a, full, count, micro, &a.full, error);
    if (!status) status = alignment_gradient(&a, format, count, micro, &a.format, error);
    if (!status) alignment_finish(&a);
    device_free(a.full_memory);
    device_free(a.format_memory);
    device_free(a.products);
    batch_free(&a.batch);
    pass_free(&a.pass);
    free(a.rows);
    return status;
}

/* The largest pass of a list's micro-batches. */
static size_t alignment_pass_bytes(const T5Config *config, size_t prompt_length, const TokenExample *examples,
                                   size_t count, size_t micro)
{
    size_t most = 0;
    for (size_t first = 0; first < count; first += micro) {
        size_t source = 0, target = 0;
        for (size_t i = first; i < min_size(first + micro, count); i++) {
            source += examples[i].input_length + (examples[i].prompt >= 0 ? prompt_length : 0);
            target += examples[i].target_length;
        }
        most = max_size(most, pass_bytes(config, source, target, PASS_TRAIN, 0));
    }
    return most;
}

size_t alignment_bytes(const Model *model, const Prompts *prompts, const TokenExample *full, const TokenExample *format,
                       size_t count, size_t micro)
{
    const T5Config *c = &model->config;
    GradientPlan plan = {.model = true, .prompts = prompts != NULL, .keep = true};
    size_t length = prompts ? prompts->length : 0, n_prompt_rows = prompts ? prompts->count * length : 0;
    Arena arena = {0};
    Gradients grads;
    if (micro == 0) micro = max_size(1, count);
    free(alignment_rows(c, full, format, count, &plan.n_touched));
    gradients_layout(&arena, &grads, c, model->n_weights, &plan, n_prompt_rows);
    plan.keep = micro < count;
    gradients_layout(&arena, &grads, c, model->n_weights, &plan, n_prompt_rows);
    return arena.used + max_size(alignment_pass_bytes(c, length, full, count, micro),
                                 alignment_pass_bytes(c, length, format, count, micro));
}

/* --- the format */

enum { FORMAT_STREAM = 500 }; /* apart from the keys of `permuted`, which orders the examples by the same seed */

size_t random_label(uint64_t seed, size_t i, size_t n_labels)
{
    return (size_t)(random_uniform(random_fold(seed, FORMAT_STREAM), i) * (double)n_labels);
}

size_t random_other_example(uint64_t seed, size_t i, size_t count)
{
    if (count < 2) return i;
    return (i + 1 + random_label(seed, i, count - 1)) % count;
}

bool is_in_format(const Task *target, const char *answer)
{
    const char *const *words;
    size_t count = task_labels(target, &words);
    for (size_t i = 0; i < count; i++)
        if (strcmp(answer, words[i]) == 0) return true;
    return false;
}

double format_ratio(const Task *const *targets, size_t n_targets, const char *const *answers, size_t count)
{
    size_t n = 0;
    bool has_format = false;
    for (size_t t = 0; t < n_targets; t++) has_format |= task_is_classification(targets[t]);
    if (!has_format || count == 0) return NAN;
    for (size_t i = 0; i < count; i++) {
        bool in_format = false;
        for (size_t t = 0; t < n_targets; t++) in_format |= is_in_format(targets[t], answers[i]);
        n += in_format;
    }
    return 100 * (double)n / (double)count;
}

/* --- what a run's probes showed, from its log */

/* The points of a curve, in the order in which they were logged. */
typedef struct {
    size_t n;
    double *x, *y;
} Curve;

static void curve_add(Curve *curve, double x, double y)
{
    curve->x = host_grow(curve->x, curve->n + 1, sizeof *curve->x);
    curve->y = host_grow(curve->y, curve->n + 1, sizeof *curve->y);
    curve->x[curve->n] = x;
    curve->y[curve->n++] = y;
}

static double record_number(const cJSON *object, const char *name) /* NAN: it has none */
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

/* Of each probe, and at last of their mean: the share of answers in the trained format, and the score, over the steps,
 * at the first number of --probe-shots. tradeoff: the mean of the probes against the trained tasks' dev score, where
 * both were measured. by_shots, trained: the means of the probes and of the trained tasks at each number of
 * --probe-shots. */
typedef struct {
    size_t n_probes, n_shots;
    Curve *format, *score; /* [n_probes + 1] */
    Curve tradeoff;
    Curve *by_shots, *trained; /* [n_shots] */
} ProbeCurves;

static void curves_free(Curve *curves, size_t count)
{
    for (size_t i = 0; curves && i < count; i++) {
        free(curves[i].x);
        free(curves[i].y);
    }
    free(curves);
}

static void probe_curves_free(ProbeCurves *c)
{
    curves_free(c->format, c->n_probes + 1);
    curves_free(c->score, c->n_probes + 1);
    curves_free(c->by_shots, c->n_shots);
    curves_free(c->trained, c->n_shots);
    free(c->tradeoff.x);
    free(c->tradeoff.y);
}

/* One record of the log; *dev: the latest dev score, which was logged just before the probes of its step. */
static void probe_curves_add(ProbeCurves *c, const Run *run, const cJSON *record, double dev[2])
{
    const char *stage = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(record, "stage"));
    const cJSON *probe = cJSON_GetObjectItemCaseSensitive(record, "probe");
    double step = record_number(record, "step"), mean = record_number(record, "mean"),
           shots = record_number(record, "shots");
    /* The last stage is drawn; the steps of an earlier one, in which trained tasks alone are asked, have the same
     * numbers. */
    if (!stage || strcmp(stage, run->stages[run->n_stages - 1].name) != 0) return;
    if (cJSON_GetObjectItemCaseSensitive(record, "dev")) dev[0] = step, dev[1] = mean;
    for (size_t s = 0; s < c->n_shots; s++) {
        double trained = record_number(record, "trained_mean");
        if (shots != (double)run->probe_shots[s]) continue;
        if (probe) curve_add(&c->by_shots[s], step, mean);
        if (isfinite(trained)) curve_add(&c->trained[s], step, trained);
    }
    if (!probe || shots != (double)run->probe_shots[0]) return;
    for (size_t i = 0; i < run->n_probes; i++) {
        const cJSON *one = cJSON_GetObjectItemCaseSensitive(probe, run->probes[i].name);
        curve_add(&c->format[i], step, record_number(one, "format_ratio"));
        curve_add(&c->score[i], step, record_number(one, "score"));
    }
    curve_add(&c->format[run->n_probes], step, record_number(record, "format_ratio"));
    curve_add(&c->score[run->n_probes], step, mean);
    if (step == dev[0]) curve_add(&c->tradeoff, dev[1], mean);
}

static int probe_curves_read(ProbeCurves *c, const Run *run, Error *error)
{
    char *path = run_file(run, "log.jsonl");
    double dev[2] = {NAN, NAN};
    Lines lines;
    int status = lines_read(&lines, path, error);
    *c = (ProbeCurves){.n_probes = run->n_probes, .n_shots = run->n_probe_shots};
    c->format = host_alloc(run->n_probes + 1, sizeof *c->format);
    c->score = host_alloc(run->n_probes + 1, sizeof *c->score);
    c->by_shots = host_alloc(run->n_probe_shots, sizeof *c->by_shots);
    c->trained = host_alloc(run->n_probe_shots, sizeof *c->trained);
    free(path);
    if (status) return -1;
    for (size_t i = 0; i < lines.count; i++) {
        cJSON *record = cJSON_Parse(lines.text[i]);
        probe_curves_add(c, run, record, dev);
        cJSON_Delete(record);
    }
    lines_free(&lines);
    return 0;
}

/* A figure of one curve for each probe and, of several, their mean. */
static int write_probe_figure(const Run *run, const char *directory, const char *name, const Curve *curves, Plot plot,
                              Error *error)
{
    PlotSeries *series = host_alloc(run->n_probes + 1, sizeof *series);
    int status;
    for (size_t i = 0; i <= run->n_probes; i++)
        series[i] = (PlotSeries){.name = i < run->n_probes ? run->probes[i].name : "mean",
                                 .n = curves[i].n,
                                 .x = curves[i].x,
                                 .y = curves[i].y};
    plot.x_label = "step";
    plot.series = series;
    plot.count = run->n_probes > 1 ? run->n_probes + 1 : 1;
    status = figure_write(directory, name, &plot, error);
    free(series);
    return status;
}

/* A figure of means, one curve for each number of --probe-shots. */
static int write_shots_figure(const Run *run, const char *directory, const char *name, const Curve *curves, Plot plot,
                              Error *error)
{
    PlotSeries *series = host_alloc(run->n_probe_shots, sizeof *series);
    char(*names)[16] = host_alloc(run->n_probe_shots, sizeof *names);
    int status;
    for (size_t s = 0; s < run->n_probe_shots; s++) {
        snprintf(names[s], sizeof names[s], "%zu-shot", run->probe_shots[s]);
        series[s] = (PlotSeries){.name = names[s], .n = curves[s].n, .x = curves[s].x, .y = curves[s].y};
    }
    plot.x_label = "step";
    plot.y_label = "mean score";
    plot.count = run->n_probe_shots;
    plot.series = series;
    plot.y_high = 100;
    status = figure_write(directory, name, &plot, error);
    free(names);
    free(series);
    return status;
}

/* The figures of the held-out tasks: their format ratio, their scores, and these against the trained tasks'. */
static int write_heldout_figures(const Run *run, const char *directory, const ProbeCurves *curves, Error *error)
{
    char *at = text_format(", %zu-shot", run->probe_shots[0]),
         *format_title = text_format("Answers to held-out tasks in the trained task's format%s", at),
         *score_title = text_format("Scores of held-out tasks along training%s", at),
         *tradeoff_label = text_format("held-out tasks: mean score%s", at);
    const PlotSeries path = {
        .name = "checkpoints", .n = curves->tradeoff.n, .x = curves->tradeoff.x, .y = curves->tradeoff.y};
    bool has_format = false;
    int status = 0;
    for (size_t t = 0; t < run->n_tasks; t++) has_format |= task_is_classification(run->tasks[t].task);
    if (has_format)
        status = write_probe_figure(run, directory, "format_ratio", curves->format,
                                    (Plot){.title = format_title,
                                           .y_label = "percent of the answers",
                                           .caption = "The paper's Figure 2: how fast tuning makes a model answer "
                                                      "everything as it answers the trained task. No prompt.",
                                           .y_high = 100},
                                    error);
    if (!status)
        status = write_probe_figure(run, directory, "held_out", curves->score,
                                    (Plot){.title = score_title,
                                           .y_label = "score",
                                           .caption = "Each task's own metric, 0 to 100, without any prompt.",
                                           .y_high = 100},
                                    error);
    if (!status && run->n_probe_shots > 1)
        status = write_shots_figure(run, directory, "held_out_by_shots", curves->by_shots,
                                    (Plot){.title = "Held-out tasks by the number of worked examples",
                                           .caption = "The mean of the held-out tasks, without any prompt."},
                                    error);
    if (!status && path.n)
        status = figure_write(directory, "tradeoff",
                              &(Plot){.title = "Trained task against held-out tasks, checkpoint by checkpoint",
                                      .x_label = "trained task: dev score",
                                      .y_label = tradeoff_label,
                                      .caption = "The paper's Figures 5 and 6: up and to the right is better.",
                                      .count = 1,
                                      .series = &path,
                                      .points = true,
                                      .y_high = 100},
                              error);
    free(tradeoff_label);
    free(score_title);
    free(format_title);
    free(at);
    return status;
}

/* Probes and align write into one report. */
static const char ANALYSIS_TITLE[] = "What tuning learns, keeps and loses",
                  ANALYSIS_INTRODUCTION[] =
                      "The gradients of the task and of its format alone, compared; and how the model answers along "
                      "training: other tasks without any prompt, the trained ones with theirs.";

static int run_write_analysis(const Run *run, Error *error)
{
    char *directory = run_file(run, "analysis");
    ProbeCurves curves = {0};
    int status = directory_create(directory, error);
    if (!status) status = probe_curves_read(&curves, run, error);
    if (!status && run->n_probes) status = write_heldout_figures(run, directory, &curves, error);
    if (!status && run->trained_inputs)
        status = write_shots_figure(run, directory, "trained_by_shots", curves.trained,
                                    (Plot){.title = "What is trained, by the number of worked examples",
                                           .caption = "The mean of the trained tasks on their dev rows along the last "
                                                      "stage, with their prompts, if there are prompts."},
                                    error);
    if (!status) status = report_write(directory, ANALYSIS_TITLE, ANALYSIS_INTRODUCTION, NULL, 0, error);
    probe_curves_free(&curves);
    free(directory);
    return status;
}

/* ================================================================================================================
 * [10] Command line, whose commands are in commands/
 *
 * Main alone prints errors; progress and warnings go to stderr, stdout carries results only. What stands between the
 * options and the engine is no algorithm, and a reader of the paper will skip it: it lies in commands/, about a file
 * for each command. They are included here, in reading order, and so belong to this translation unit like the chapters
 * above. */

#include "commands/options.c"
#include "commands/info.c"
#include "commands/text.c"
#include "commands/score.c"
#include "commands/dump.c"
#include "commands/tasks.c"
#include "commands/run.c"
#include "commands/train.c"
#include "commands/pretrain.c"
#include "commands/compare.c"
#include "commands/eval.c"
#include "commands/align.c"
#include "commands/study_jobs.c"
#include "commands/study_results.c"
#include "commands/study.c"
#include "commands/bench_measure.c"
#include "commands/bench_kernels.c"
#include "commands/bench_steps.c"
#include "commands/bench.c"

/* --- the program */

static const struct {
    const char *name;
    unsigned which;
    int (*run)(Options *o, Error *error); /* a resumed run changes its options */
    const char *help, *example;
} commands[] = {
    {"info", FOR_INFO, command_info, "what a model is, and the memory it will need", "promot info --model mt5-small"},
    {"tokenize", FOR_TOKENIZE, command_tokenize, "text to ids, or back",
     "echo Hello | promot tokenize --model mt5-small"},
    {"generate", FOR_GENERATE, command_generate, "one output a line for one input a line",
     "echo 'Q: Who? A:' | promot generate --model mt5-small"},
    {"score", FOR_SCORE, command_score, "a metric on files",
     "promot score --metric bleu --predictions out.txt --references ref.txt"},
    {"dump", FOR_DUMP, command_dump, "every number of a forward and backward pass",
     "promot dump --model m --batch in.safetensors --out out.safetensors"},
    {"train", FOR_TRAIN, command_train, "prompt tuning, fine-tuning, ProMoT",
     "promot train --model mt5-small --task rte=RTE --out run"},
    {"eval", FOR_EVAL, command_eval, "scores on tasks",
     "promot eval --model run/model --prompt run/prompt/rte --task rte=RTE"},
    {"align", FOR_ALIGN, command_align, "how much of the gradient on a task is its format",
     "promot align --run run --task rte=RTE"},
    {"pretrain", FOR_PRETRAIN, command_pretrain, "span corruption on a text",
     "promot pretrain --config config.json --train-vocab 1000 --text text.txt --out run"},
    {"study", FOR_STUDY, command_study, "the paper's claim in miniature, from training to the report",
     "promot study --out study"},
    {"bench", FOR_BENCH, command_bench, "how fast: kernels, steps and decoding, as shares of what the machine can do",
     "promot bench --quick"},
};

static void print_help(void)
{
    puts("promot: fine-tune T5 and mT5 with ProMoT\n\nusage: promot COMMAND [options]      promot COMMAND --help\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    puts("\nResults go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage or input.");
}

static void print_command_help(size_t command, const Options *o)
{
    char *help = options_help(o);
    printf("promot %s: %s\n\nexample: %s\n\n%s", commands[command].name, commands[command].help,
           commands[command].example, help ? help : "");
    free(help);
}

static int run_command(int argc, char **argv, Error *error)
{
    size_t command = 0, n = sizeof commands / sizeof *commands;
    Options o = {.table = option_table, .count = N_OPTIONS};
    int status;
    if (argc < 2)
        return error_set(error, EXIT_USAGE, "usage: promot COMMAND [options] (promot --help lists the commands)");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        return print_help(), 0;
    if (strcmp(argv[1], "--version") == 0) return puts("promot " PROMOT_VERSION), 0;
    while (command < n && strcmp(commands[command].name, argv[1]) != 0) command++;
    if (command == n) return error_set(error, EXIT_USAGE, "%s: no such command (promot --help lists them)", argv[1]);
    o.program = argv[0];
    o.command = commands[command].name;
    o.which = commands[command].which;
    status = options_parse(&o, argc - 2, argv + 2, error);
    if (!status && option_true(&o, OPT_HELP))
        print_command_help(command, &o);
    else if (!status)
        status = commands[command].run(&o, error);
    options_free(&o);
    return status;
}

/* Standard descriptors that are closed would be given to the next file that is opened: say so, or fill the place. */
static int check_descriptors(Error *error)
{
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) != -1) continue;
        if (fd == STDOUT_FILENO)
            return error_set(error, EXIT_FAILED, "standard output: closed (expected a place for the results)");
        if (open("/dev/null", O_RDWR) != fd)
            return error_set(error, EXIT_FAILED, "/dev/null: cannot open: %s", strerror(errno));
    }
    return 0;
}

int promot_main(int argc, char **argv)
{
    Error error = {0};
    int status;
    signal(SIGPIPE, SIG_IGN); /* a closed pipe shows as a write error, which is reported below */
    signal(SIGXFSZ, SIG_IGN); /* as does a file that may not grow (ulimit -f) */
    status = check_descriptors(&error);
    if (!status) status = run_command(argc, argv, &error);
    if (!status && (fflush(stdout) != 0 || ferror(stdout)))
        status = error_set(&error, EXIT_FAILED, "standard output: cannot write: %s", strerror(errno));
    if (!status) return 0;
    print_message("promot", error.text);
    return error.exit_code;
}

#ifndef PROMOT_NO_MAIN
int main(int argc, char **argv)
{
    return promot_main(argc, argv);
}
#endif

#endif /* PROMOT_KERNELS_ONLY */
