/* test_kernels.c: the kernels of chapter 2 other than matmul and attention, and the random numbers of chapter 1.
 *
 * The specification of each kernel is a plain loop in double. Each backward pass is compared with its formula, and in
 * the double build (-DPROMOT_DOUBLE) also with finite differences of the forward pass. Sizes are odd on purpose. */
#include "../promot.c"

#include "test.h"

#include <cjson/cJSON.h>

/* Relative error allowed against the specification. fp32: one rounding is 6e-8, a result here is made of at most some
 * ten roundings and of sums over up to 1,100 terms in 8 or 16 lanes, whose roundings add like a random walk. */
#ifdef PROMOT_DOUBLE
#define TOLERANCE 1e-11
#else
#define TOLERANCE 4e-6
#endif

static Device *kernel_device(int threads)
{
    Error error;
    Device *dev = device_open(threads, MATMUL_FP32, &error);
    if (!dev) exit(1);
    return dev;
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory) exit(1);
    return memory;
}

/* Numbers in [-1, 1) that depend on the key only. */
static real_t *numbers(size_t n, uint64_t key)
{
    real_t *x = allocate(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (real_t)(2 * random_uniform(key, i) - 1);
    return x;
}

static real_t *copy_of(const real_t *x, size_t n)
{
    real_t *copy = allocate(n * sizeof *copy);
    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

static bool near(double found, double expected, double tolerance)
{
    return fabs(found - expected) <= tolerance * fmax(1, fabs(expected)); /* false for NaN */
}

#define CHECK_NEAR(found, expected, tolerance)                                                                         \
    do {                                                                                                               \
        double found_ = (double)(found), expected_ = (double)(expected);                                               \
        CHECK(near(found_, expected_, tolerance), "found %.9g, expected %.9g", found_, expected_);                     \
    } while (0)

static void check_all_near(const char *what, const real_t *found, const double *expected, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++) {
        if (near(found[i], expected[i], tolerance)) continue;
        CHECK(false, "%s[%zu]: found %.9g, expected %.9g", what, i, (double)found[i], expected[i]);
        return;
    }
}

/* Three packed sequences of 70, 1 and 5 rows; rows 70, 71 and 77 … 79 belong to nobody. 70 is more than a piece. */
enum { PACKED_ROWS = 80 };
static const int32_t packed_start[] = {0, 76, 71}, packed_length[] = {70, 1, 5};
static const Sequences packed = {packed_start, packed_length, 3, PACKED_ROWS, 70, 0};

static int sequence_of(size_t row)
{
    for (int b = 0; b < 3; b++)
        if ((int)row >= packed_start[b] && (int)row < packed_start[b] + packed_length[b]) return b;
    return -1;
}

/* The factor that promot.h prescribes for one element. */
static double dropout_factor(const Dropout *d, uint32_t site, size_t example, size_t row, size_t column)
{
    const uint32_t counter[4] = {(uint32_t)(column / 4), d->shared ? 0 : (uint32_t)row, (uint32_t)example, site};
    uint32_t bits[4];
    philox4x32(counter, d->key, bits);
    return (double)bits[column % 4] < (double)d->rate * 4294967296.0 ? 0 : 1 / (1 - (double)d->rate);
}

/* -------------------------------------------------------------------------------------------------- random numbers */

/* From Random123's tests/kat_vectors: counter, key, result. */
static void test_philox_known_answers(void)
{
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
         0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(known[i], (uint64_t)known[i][5] << 32 | known[i][4], out);
        CHECK(memcmp(out, known[i] + 6, sizeof out) == 0, "vector %d: %08x %08x %08x %08x", i, out[0], out[1], out[2],
              out[3]);
    }
}

static void test_random_streams(void)
{
    enum { N = 100000 };
    double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0, fourth = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = random_uniform(7, i), z = random_normal(7, i);
        CHECK(u >= 0 && u < 1 && isfinite(z), "index %d", (int)i);
        sum += u, squares += u * u;
        normal_sum += z, normal_squares += z * z, fourth += z * z * z * z;
    }
    /* five standard errors of N draws: sqrt(1/12 / N), sqrt(4/45 / N), sqrt(1 / N), sqrt(2 / N), sqrt(96 / N) */
    CHECK_NEAR(sum / N, 0.5, 5 * sqrt(1.0 / 12 / N));
    CHECK_NEAR(squares / N, 1.0 / 3, 5 * sqrt(4.0 / 45 / N));
    CHECK_NEAR(normal_sum / N, 0, 5 * sqrt(1.0 / N));
    CHECK_NEAR(normal_squares / N, 1, 5 * sqrt(2.0 / N));
    CHECK(fabs(fourth / N - 3) < 5 * sqrt(96.0 / N), "fourth moment %g", fourth / N);
    CHECK(random_uniform(7, 5) != random_uniform(8, 5) && random_uniform(7, 5) != random_uniform(7, 5 + (1ull << 32)),
          "streams");
    CHECK(random_normal(7, 5) != random_normal(8, 5) && random_normal(7, 5) != random_normal(7, 5 + (1ull << 32)),
          "streams");
}

static void test_random_fold(void)
{
    uint64_t keys[64];
    for (uint64_t i = 0; i < 64; i++) keys[i] = random_fold(i / 8, i % 8);
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < i; j++) CHECK(keys[i] != keys[j], "%d and %d", i, j);
    int flipped = 0; /* each bit of the number moves about half of the bits of the key: 64 * 32, +- 5 * sqrt(64 * 16) */
    for (int bit = 0; bit < 64; bit++)
        flipped += __builtin_popcountll(random_fold(1, 2) ^ random_fold(1, 2 ^ 1ull << bit));
    CHECK(abs(flipped - 64 * 32) < 160, "%d bits", flipped);
}

static void test_vec_exp(void)
{
    double worst = 0;
    for (int i = 0; i < 400000; i++) {
        real_t x = (real_t)(-87.3 + i * (176.0 / 400000));
        double expected = exp((double)x), found = (double)vec_exp(vec_set(x))[i % LANES];
        worst = fmax(worst, fabs(found - expected) / expected);
    }
#ifdef PROMOT_DOUBLE
    CHECK(worst < 1e-15, "worst relative error %g", worst);
#else
    CHECK(worst < 1.2e-7, "worst relative error %g, more than 2 ulp", worst); /* an ulp is 6e-8 to 1.2e-7 */
    /* below the normal numbers (where the processor does not flush them): absolute error of 2 of the smallest */
    for (float x = -103; x < -87; x += 0.37f)
        CHECK(fabs((double)vec_exp(vec_set(x))[0] - exp((double)x)) < 3e-45, "%g", (double)x);
#endif
    CHECK(vec_exp(vec_set(-1000))[0] == 0 && vec_exp(vec_set(-INFINITY))[0] == 0, "underflow");
    CHECK(isinf(vec_exp(vec_set(1000))[0]) && isinf(vec_exp(vec_set(INFINITY))[0]), "overflow");
    CHECK(vec_exp(vec_set(0))[0] == 1 && isnan(vec_exp(vec_set(NAN))[0]), "0 and NaN");
}

/* ------------------------------------------------------------------------------------------------------- the device */

static void test_device(void)
{
    Error error = {0};
    CHECK(!device_open(-1, MATMUL_FP32, &error) && error.exit_code == EXIT_USAGE, "negative threads");
    if (!device_has_bf16())
        CHECK(!device_open(1, MATMUL_BF16, &error) && error.exit_code == EXIT_USAGE && strstr(error.text, "bf16"),
              "bf16");
    Device *dev = kernel_device(0);
    CHECK(device_threads(dev) >= 1, "a thread for each core");
    char *scratch = device_scratch(dev, 100);
    CHECK((uintptr_t)scratch % 64 == 0 && device_scratch(dev, 50) == scratch, "scratch is kept");
    memset(device_scratch(dev, 1 << 20), 1, 1 << 20);
    device_close(dev);
    device_close(NULL);
    for (size_t bytes = 0; bytes < 40 << 20; bytes = bytes * 3 + 1) {
        char *memory = device_alloc(bytes);
        CHECK(memory && (uintptr_t)memory % 64 == 0, "%zu bytes", bytes);
        if (memory) memset(memory, 1, bytes);
        device_free(memory);
    }
    CHECK(!device_alloc(SIZE_MAX) && !device_alloc(SIZE_MAX - 100), "more than there is");
}

static void test_transfers(void)
{
    enum { N = 37 };
    Device *dev = kernel_device(2);
    float host[N], back[N];
    real_t numbers_there[N];
    for (int i = 0; i < N; i++) host[i] = (float)i / 7;
    weights_upload(dev, numbers_there, host, N);
    weights_download(dev, back, numbers_there, N);
    CHECK(memcmp(host, back, sizeof host) == 0 && numbers_there[9] == (real_t)host[9], "weights");
    memset(back, 0, sizeof back);
    activations_download(dev, back, numbers_there, N);
    CHECK(memcmp(host, back, sizeof host) == 0, "activations");
    device_clear(dev, numbers_there, sizeof numbers_there);
    CHECK(numbers_there[0] == 0 && numbers_there[N - 1] == 0, "clear");
    stats_upload(dev, numbers_there, host, N);
    memset(back, 0, sizeof back);
    stats_download(dev, back, numbers_there, N);
    CHECK(memcmp(host, back, sizeof host) == 0, "statistics");
    device_upload(dev, back, host + 1, sizeof(float));
    device_download(dev, back + 1, host + 2, sizeof(float));
    device_copy(dev, back + 2, host + 3, sizeof(float));
    CHECK(memcmp(back, host + 1, 3 * sizeof(float)) == 0, "raw bytes");
    device_close(dev);
}

/* -------------------------------------------------------------------------------------------------------- embedding */

static void test_embedding(void)
{
    enum { V = 6, P = 3, ROWS = 7, WIDTH = 19 };
    Device *dev = kernel_device(2);
    static const int32_t ids[ROWS] = {-1, -3, 5, 0, 5, -2, 3};
    real_t *table = numbers(V * WIDTH, 1), *prompts = numbers(P * WIDTH, 2), *out = numbers(ROWS * WIDTH, 3);
    embedding_forward(dev, out, table, prompts, ids, ROWS, WIDTH);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < WIDTH; c++) {
            real_t expected = ids[r] >= 0 ? table[ids[r] * WIDTH + c] : prompts[(-1 - ids[r]) * WIDTH + c];
            CHECK(out[r * WIDTH + c] == expected, "row %d", r);
        }

    /* targets: rows 0, 3, 4 (nobody's), 5 of the table */
    static const int32_t first[] = {0, 1, 2, 2, 4}, source[] = {3, 6, 2, 4};
    real_t *dtable = numbers(4 * WIDTH, 4), *before = copy_of(dtable, 4 * WIDTH), *dout = numbers(ROWS * WIDTH, 5);
    embedding_backward(dev, dtable, dout, first, source, 4, WIDTH);
    for (int t = 0; t < 4; t++)
        for (int c = 0; c < WIDTH; c++) {
            double expected = before[t * WIDTH + c];
            for (int i = first[t]; i < first[t + 1]; i++) expected += dout[source[i] * WIDTH + c];
            CHECK_NEAR(dtable[t * WIDTH + c], expected, TOLERANCE);
        }
    free(table), free(prompts), free(out), free(dtable), free(before), free(dout);
    device_close(dev);
}

/* ---------------------------------------------------------------------------------------------------------- dropout */

static void test_dropout_row(void)
{
    enum { N = 1003 };
    static real_t whole[N], part[N];
    for (int shared = 0; shared < 2; shared++) {
        const Dropout d = {0.3f, 0x123456789abcdefu, 5, shared};
        dropout_row(whole, &d, 9, 4, 77, 0, N);
        for (size_t c = 0; c < N; c++) CHECK_NEAR(whole[c], dropout_factor(&d, 9, 4, 77, c), 1e-7); /* 1/0.7 in fp32 */
        for (size_t first = 0; first < 9; first++) { /* any slice of a row is the same numbers */
            dropout_row(part, &d, 9, 4, 77, first, 31);
            CHECK(memcmp(part, whole + first, 31 * sizeof *part) == 0, "from column %zu", first);
        }
        dropout_row(part, &d, 9, 4, 78, 0, N);
        CHECK((memcmp(part, whole, sizeof part) == 0) == shared, "the next row");
        dropout_row(part, &d, 9, 5, 77, 0, N);
        CHECK(memcmp(part, whole, sizeof part) != 0, "another example");
        dropout_row(part, &d, 8, 4, 77, 0, N);
        CHECK(memcmp(part, whole, sizeof part) != 0, "another site");
    }
    dropout_row(part, &(Dropout){0, 1, 2, true}, 9, 4, 77, 3, 17);
    for (int c = 0; c < 17; c++) CHECK(part[c] == 1, "rate 0");
}

static void test_dropout_rate(void)
{
    enum { N = 200000 };
    real_t *scale = allocate(N * sizeof *scale);
    const double rates[] = {0.1, 0.5, 0.9};
    for (int i = 0; i < 3; i++) {
        int dropped = 0;
        dropout_row(scale, &(Dropout){(float)rates[i], 11, 0, true}, 0, 0, 0, 0, N);
        for (size_t c = 0; c < N; c++) dropped += scale[c] == 0;
        double error = 5 * sqrt(rates[i] * (1 - rates[i]) / N); /* five standard errors */
        CHECK(fabs((double)dropped / N - rates[i]) < error, "rate %g: %g dropped", rates[i], (double)dropped / N);
    }
    free(scale);
}

/* dropout_forward, residual_forward and residual_backward, with and without sharing, wider than a piece. */
static void test_dropout_and_residual(void)
{
    enum { WIDTH = 1029, N = PACKED_ROWS * WIDTH };
    Device *dev = kernel_device(2);
    for (int mode = 0; mode < 3; mode++) {
        const Dropout d = {mode == 2 ? 0 : 0.1f, 99, 6, mode == 1};
        Sequences seqs = packed;
        seqs.first_example = 40;
        real_t *x = numbers(N, 1), *branch = numbers(N, 2), *in_place = copy_of(branch, N), *out = numbers(N, 3);
        real_t *back = copy_of(out, N), *sum_in_place = copy_of(x, N), *before = copy_of(out, N);
        dropout_forward(dev, in_place, &seqs, WIDTH, &d);
        residual_forward(dev, out, x, branch, &seqs, WIDTH, &d);
        residual_forward(dev, sum_in_place, sum_in_place, branch, &seqs, WIDTH, &d);
        residual_backward(dev, back, branch, &seqs, WIDTH, &d);
        bool right = true;
        for (size_t i = 0; i < N; i++) {
            const size_t row = i / WIDTH;
            const int b = sequence_of(row);
            if (b < 0) {
                right &=
                    out[i] == before[i] && back[i] == before[i] && in_place[i] == branch[i] && sum_in_place[i] == x[i];
                continue;
            }
            const double f =
                d.rate > 0 ? dropout_factor(&d, 6, 40 + (size_t)b, row - (size_t)packed_start[b], i % WIDTH) : 1;
            right &= near(out[i], x[i] + branch[i] * f, TOLERANCE) && out[i] == sum_in_place[i];
            right &= near(back[i], branch[i] * f, TOLERANCE) && back[i] == in_place[i];
        }
        CHECK(right, "mode %d", mode);
        free(x), free(branch), free(in_place), free(out), free(back), free(sum_in_place), free(before);
    }
    device_close(dev);
}

/* The masks of a batch do not depend on how it is cut into micro-batches. */
static void test_dropout_micro_batches(void)
{
    enum { WIDTH = 24, ROWS = 9 };
    static const int32_t start[] = {0, 3, 5}, length[] = {3, 2, 4}, start_of_last[] = {0};
    Device *dev = kernel_device(2);
    const Dropout d = {0.5f, 3, 1, true};
    real_t *whole = numbers(ROWS * WIDTH, 1), *parts = copy_of(whole, ROWS * WIDTH);
    dropout_forward(dev, whole, &(Sequences){start, length, 3, ROWS, 4, 0}, WIDTH, &d);
    dropout_forward(dev, parts, &(Sequences){start, length, 2, 5, 3, 0}, WIDTH, &d);
    dropout_forward(dev, parts + 5 * WIDTH, &(Sequences){start_of_last, length + 2, 1, 4, 4, 2}, WIDTH, &d);
    CHECK(memcmp(whole, parts, ROWS * WIDTH * sizeof *whole) == 0, "micro-batches");
    free(whole), free(parts);
    device_close(dev);
}

/* ---------------------------------------------------------------------------------------------------------- rmsnorm */

static void rmsnorm_case(Device *dev, size_t rows, size_t width, float epsilon)
{
    const size_t n = rows * width;
    real_t *x = numbers(n, 1), *scale = numbers(width, 2), *dy = numbers(n, 3), *y = numbers(n, 4),
           *rstd = numbers(rows, 5);
    real_t *dx = numbers(n, 6), *dscale = numbers(width, 7), *dx_alone = copy_of(dx, n);
    double *want_y = allocate(n * sizeof(double)), *want_dx = allocate(n * sizeof(double)),
           *want_rstd = allocate(rows * sizeof(double));
    double *want_dscale = allocate(width * sizeof(double));
    for (size_t c = 0; c < width; c++) want_dscale[c] = dscale[c];
    for (size_t r = 0; r < rows; r++) {
        double squares = 0, dot = 0;
        for (size_t c = 0; c < width; c++) squares += (double)x[r * width + c] * (double)x[r * width + c];
        const double s = want_rstd[r] = 1 / sqrt(squares / (double)width + (double)epsilon);
        for (size_t c = 0; c < width; c++)
            dot += (double)dy[r * width + c] * (double)scale[c] * (double)x[r * width + c] * s;
        for (size_t i = r * width, c = 0; c < width; c++, i++) {
            const double normal = (double)x[i] * s;
            want_y[i] = (double)scale[c] * normal;
            want_dscale[c] += (double)dy[i] * normal;
            want_dx[i] = (double)dx[i] + s * ((double)dy[i] * (double)scale[c] - normal * dot / (double)width);
        }
    }
    rmsnorm_forward(dev, y, rstd, x, scale, rows, width, epsilon);
    rmsnorm_backward(dev, dx, dscale, dy, x, rstd, scale, rows, width);
    rmsnorm_backward(dev, dx_alone, NULL, dy, x, rstd, scale, rows, width);
    check_all_near("y", y, want_y, n, TOLERANCE);
    check_all_near("rstd", rstd, want_rstd, rows, TOLERANCE);
    check_all_near("dx", dx, want_dx, n, TOLERANCE);
    check_all_near("dscale", dscale, want_dscale, width, TOLERANCE);
    CHECK(memcmp(dx, dx_alone, n * sizeof *dx) == 0, "dx without dscale");
    free(x), free(scale), free(dy), free(y), free(rstd), free(dx), free(dscale), free(dx_alone);
    free(want_y), free(want_dx), free(want_rstd), free(want_dscale);
}

static void test_rmsnorm(void)
{
    Device *dev = kernel_device(2);
    rmsnorm_case(dev, 1, 1, 1e-6f);
    rmsnorm_case(dev, 1, 7, 1e-6f);
    rmsnorm_case(dev, 3, 33, 0.01f);
    rmsnorm_case(dev, 100, 512, 1e-6f);
    rmsnorm_case(dev, 33, 1027, 1e-6f);
    device_close(dev);
}

#ifdef PROMOT_DOUBLE
/* Central differences with step 1e-5 of functions of size 1: truncation about 1e-10, rounding 1e-16 / 1e-5 = 1e-11. */
#define DIFFERENCE 1e-5
#define DIFFERENCE_TOLERANCE 1e-8

static double weighted_sum(const real_t *out, const real_t *weight, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += out[i] * weight[i];
    return sum;
}

static void test_rmsnorm_differences(void)
{
    enum { ROWS = 4, WIDTH = 11, N = ROWS * WIDTH };
    Device *dev = kernel_device(1);
    real_t *x = numbers(N, 1), *scale = numbers(WIDTH, 2), *dy = numbers(N, 3), y[N], rstd[ROWS], dx[N] = {0},
           ds[WIDTH] = {0};
    rmsnorm_forward(dev, y, rstd, x, scale, ROWS, WIDTH, 0.01f);
    rmsnorm_backward(dev, dx, ds, dy, x, rstd, scale, ROWS, WIDTH);
    for (int i = 0; i < N + WIDTH; i++) {
        real_t *moved = i < N ? x + i : scale + i - N, at = *moved;
        *moved = at + DIFFERENCE;
        rmsnorm_forward(dev, y, rstd, x, scale, ROWS, WIDTH, 0.01f);
        double up = weighted_sum(y, dy, N);
        *moved = at - DIFFERENCE;
        rmsnorm_forward(dev, y, rstd, x, scale, ROWS, WIDTH, 0.01f);
        *moved = at;
        CHECK_NEAR(i < N ? dx[i] : ds[i - N], (up - weighted_sum(y, dy, N)) / (2 * DIFFERENCE), DIFFERENCE_TOLERANCE);
    }
    free(x), free(scale), free(dy);
    device_close(dev);
}
#endif

/* -------------------------------------------------------------------------------------------------------------- LoRA */

/* Both kernels against their formulas; da and db are added to. 67 ranks are more than one piece of a row of db. */
static void check_lora(size_t rows, size_t columns, size_t rank)
{
    const float scale = 1.75f;
    const size_t n = rows * columns, na = rank * columns, nb = rows * rank;
    Device *dev = kernel_device(2);
    real_t *base = numbers(n, 1), *a = numbers(na, 2), *b = numbers(nb, 3), *dw = numbers(n, 4), *w = numbers(n, 5);
    real_t *da = numbers(na, 6), *db = numbers(nb, 7);
    double *merged = allocate(n * sizeof *merged), *da_spec = allocate(na * sizeof *da_spec),
           *db_spec = allocate(nb * sizeof *db_spec);
    for (size_t i = 0; i < na; i++) da_spec[i] = da[i];
    for (size_t i = 0; i < nb; i++) db_spec[i] = db[i];
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            merged[i * columns + j] = base[i * columns + j];
            for (size_t k = 0; k < rank; k++) {
                merged[i * columns + j] += scale * (double)b[i * rank + k] * a[k * columns + j];
                da_spec[k * columns + j] += scale * (double)b[i * rank + k] * dw[i * columns + j];
                db_spec[i * rank + k] += scale * (double)dw[i * columns + j] * a[k * columns + j];
            }
        }
    lora_merge_forward(dev, w, base, a, b, rows, columns, rank, scale);
    lora_backward(dev, da, db, dw, a, b, rows, columns, rank, scale);
    check_all_near("w", w, merged, n, 4 * TOLERANCE);
    check_all_near("da", da, da_spec, na, 4 * TOLERANCE);
    check_all_near("db", db, db_spec, nb, 4 * TOLERANCE);
    free(base), free(a), free(b), free(dw), free(w), free(da), free(db), free(merged), free(da_spec), free(db_spec);
    device_close(dev);
}

/* Up to 200 terms of size 1 cancel here, and what is left of them is measured: four times the tolerance. */
static void test_lora(void)
{
    static const size_t rows[] = {1, 5, 16, 33}, columns[] = {1, 7, 64, 131, 200}, ranks[] = {1, 3, 4, 8, 67};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
            for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++) check_lora(rows[r], columns[c], ranks[k]);
}

/* A and B are thin, but the merged weights are whole: they do not lose bits where matrices are multiplied in bf16. */
static void test_lora_is_exact_in_bf16(void)
{
    enum { ROWS = 9, COLUMNS = 40, RANK = 3 };
    Error error = {0};
    Device *dev = device_has_bf16() ? device_open(1, MATMUL_BF16, &error) : NULL, *exact = kernel_device(1);
    real_t *base = numbers(ROWS * COLUMNS, 1), *a = numbers(RANK * COLUMNS, 2), *b = numbers(ROWS * RANK, 3);
    real_t w[2][ROWS * COLUMNS];
    if (dev) {
        lora_merge_forward(exact, w[0], base, a, b, ROWS, COLUMNS, RANK, 0.5f);
        lora_merge_forward(dev, w[1], base, a, b, ROWS, COLUMNS, RANK, 0.5f);
        CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0, "the bits differ");
    }
    free(base), free(a), free(b);
    device_close(dev);
    device_close(exact);
    if (!dev) SKIP("this processor does not multiply bf16");
}

#ifdef PROMOT_DOUBLE
static void test_lora_differences(void)
{
    enum { ROWS = 6, COLUMNS = 11, RANK = 3, N = ROWS * COLUMNS, NA = RANK * COLUMNS, NB = ROWS * RANK };
    Device *dev = kernel_device(1);
    real_t *base = numbers(N, 1), *a = numbers(NA, 2), *b = numbers(NB, 3), *dw = numbers(N, 4), w[N];
    real_t da[NA] = {0}, db[NB] = {0};
    lora_backward(dev, da, db, dw, a, b, ROWS, COLUMNS, RANK, 0.7f);
    for (int i = 0; i < NA + NB; i++) {
        real_t *moved = i < NA ? a + i : b + i - NA, at = *moved;
        *moved = at + DIFFERENCE;
        lora_merge_forward(dev, w, base, a, b, ROWS, COLUMNS, RANK, 0.7f);
        double up = weighted_sum(w, dw, N);
        *moved = at - DIFFERENCE;
        lora_merge_forward(dev, w, base, a, b, ROWS, COLUMNS, RANK, 0.7f);
        *moved = at;
        CHECK_NEAR(i < NA ? da[i] : db[i - NA], (up - weighted_sum(w, dw, N)) / (2 * DIFFERENCE), DIFFERENCE_TOLERANCE);
    }
    free(base), free(a), free(b), free(dw);
    device_close(dev);
}
#endif

/* ---------------------------------------------------------------------------------------------- middle of the MLP */

static double gelu_spec(double a)
{
    return 0.5 * a * (1 + tanh(sqrt(2 / M_PI) * (a + 0.044715 * a * a * a)));
}

static double gelu_slope_spec(double a)
{
    const double c = sqrt(2 / M_PI), t = tanh(c * (a + 0.044715 * a * a * a));
    return 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a);
}

static void test_gelu_values(void)
{
    /* the tanh form, to seven digits (the erf form has 0.841345 at 1) */
    static const double known[][2] = {{-3, -0.0036374}, {-1, -0.1588080}, {-0.5, -0.1542860}, {0.5, 0.3457140},
                                      {1, 0.841192},    {2, 1.9545977},   {3, 2.9963626},     {0, 0}};
    static const int32_t start[] = {0}, length[] = {1};
    const Sequences one = {start, length, 1, 1, 1, 0};
    Device *dev = kernel_device(1);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        real_t a[2] = {(real_t)known[i][0], 1}, h;
        mlp_activation_forward(dev, MLP_GATED_GELU, &h, a, &one, 1, &(Dropout){0});
        CHECK(fabs((double)h - known[i][1]) < 6e-7, "gelu(%g) = %.8f", known[i][0],
              (double)h); /* known to 5e-8 or 5e-7 */
    }
    real_t far_left[2] = {-30, 1}, far_right[2] = {30, 1}, h, da[2], one_back = 1;
    mlp_activation_forward(dev, MLP_GATED_GELU, &h, far_left, &one, 1, &(Dropout){0});
    CHECK(fabs(h) < 1e-30, "gelu(-30) = %g", (double)h);
    mlp_activation_forward(dev, MLP_GATED_GELU, &h, far_right, &one, 1, &(Dropout){0});
    CHECK(h == 30, "gelu(30) = %g", (double)h);
    mlp_activation_backward(dev, MLP_GATED_GELU, da, &one_back, far_left, &one, 1, &(Dropout){0});
    CHECK(fabs(da[0]) < 1e-30, "slope at -30: %g", (double)da[0]);
    device_close(dev);
}

static void mlp_case(Device *dev, MlpKind kind, size_t d_ff, const Dropout *d)
{
    const size_t width = kind == MLP_RELU ? d_ff : 2 * d_ff;
    real_t *a = numbers(PACKED_ROWS * width, 1), *h = numbers(PACKED_ROWS * d_ff, 2),
           *dh = numbers(PACKED_ROWS * d_ff, 3);
    real_t *da = numbers(PACKED_ROWS * width, 4), *h_before = copy_of(h, PACKED_ROWS * d_ff);
    for (size_t i = 0; i < PACKED_ROWS * width; i++) a[i] *= 4;
    mlp_activation_forward(dev, kind, h, a, &packed, d_ff, d);
    mlp_activation_backward(dev, kind, da, dh, a, &packed, d_ff, d);
    bool right = true;
    for (size_t r = 0; r < PACKED_ROWS; r++) {
        const int b = sequence_of(r);
        for (size_t c = 0; c < d_ff; c++) {
            const size_t i = r * d_ff + c, at = r * width + c;
            if (b < 0) {
                right &= h[i] == h_before[i];
                continue;
            }
            const double f = d->rate > 0 ? dropout_factor(d, d->site, (size_t)b, r - (size_t)packed_start[b], c) : 1;
            const double a0 = (double)a[at], dhf = (double)dh[i] * f;
            if (kind == MLP_RELU) {
                right &= near(h[i], fmax(a0, 0) * f, TOLERANCE) && near(da[at], a0 > 0 ? dhf : 0, TOLERANCE);
                continue;
            }
            const double a1 = (double)a[at + d_ff];
            right &= near(h[i], gelu_spec(a0) * a1 * f, TOLERANCE);
            right &= near(da[at], dhf * a1 * gelu_slope_spec(a0), TOLERANCE);
            right &= near(da[at + d_ff], dhf * gelu_spec(a0), TOLERANCE);
        }
    }
    CHECK(right, "kind %d, width %zu, rate %g", (int)kind, d_ff, (double)d->rate);
    free(a), free(h), free(dh), free(da), free(h_before);
}

static void test_mlp_activation(void)
{
    static const size_t widths[] = {1, 7, 16, 1029};
    Device *dev = kernel_device(2);
    for (int i = 0; i < 4; i++)
        for (int mode = 0; mode < 3; mode++) {
            const Dropout d = {mode ? 0.1f : 0, 5, 2, mode == 1};
            mlp_case(dev, MLP_GATED_GELU, widths[i], &d);
            mlp_case(dev, MLP_RELU, widths[i], &d);
        }
    device_close(dev);
}

/* A NaN must not vanish in a relu: the loss would look healthy. */
static void test_relu_keeps_nan(void)
{
    static const int32_t start[] = {0}, length[] = {1};
    Device *dev = kernel_device(1);
    real_t a[2] = {NAN, -1}, h[2];
    mlp_activation_forward(dev, MLP_RELU, h, a, &(Sequences){start, length, 1, 1, 1, 0}, 2, &(Dropout){0});
    CHECK(isnan(h[0]) && h[1] == 0, "%g %g", (double)h[0], (double)h[1]);
    device_close(dev);
}

/* The text of a fixture, parsed; NULL without fixtures. */
static cJSON *fixture(const char *name)
{
    if (!test_shared()) return NULL;
    char path[2048];
    snprintf(path, sizeof path, "%s/reference-vectors/%s", test_shared(), name);
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = allocate(1 << 20);
    size_t size = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    cJSON *json = cJSON_ParseWithLength(text, size);
    free(text);
    CHECK(json != NULL, "%s is not JSON", path);
    return json;
}

/* All numbers of nested arrays in order; a text like "0.9 everywhere" gives its number for each place. */
static size_t flatten(const cJSON *json, double *to, size_t n)
{
    if (cJSON_IsNumber(json)) {
        *to = json->valuedouble;
        return 1;
    }
    if (cJSON_IsString(json)) {
        for (size_t i = 0; i < n; i++)
            to[i] = strncmp(json->valuestring, "ones", 4) == 0 ? 1 : strtod(json->valuestring, NULL);
        return n;
    }
    size_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, json) count += flatten(item, to + count, n - count);
    return count;
}

static const cJSON *get(const cJSON *json, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(json, key);
}

static void test_mlp_relu_fixture(void)
{
    enum { TOKENS = 6, D = 2, F = 4 };
    static const int32_t start[] = {0, 3}, length[] = {3, 3};
    cJSON *json = fixture("mlp-relu.json");
    if (!json) SKIP("no fixtures");
    Device *dev = kernel_device(1);
    const cJSON *item;
    cJSON_ArrayForEach(item, get(json, "cases"))
    {
        double wi[D * F], wo[F * D], in[TOKENS * D], out[TOKENS * D];
        CHECK(flatten(get(item, "wi"), wi, D * F) == D * F && flatten(get(item, "wo"), wo, F * D) == F * D, "sizes");
        CHECK(flatten(get(item, "inputs"), in, 12) == 12 && flatten(get(item, "outputs"), out, 12) == 12, "sizes");
        real_t a[TOKENS * F] = {0}, h[TOKENS * F];
        for (int t = 0; t < TOKENS; t++)
            for (int f = 0; f < F; f++)
                for (int c = 0; c < D; c++) a[t * F + f] += (real_t)(in[t * D + c] * wi[c * F + f]);
        mlp_activation_forward(dev, MLP_RELU, h, a, &(Sequences){start, length, 2, TOKENS, 3, 0}, F, &(Dropout){0});
        for (int i = 0; i < TOKENS * D; i++) {
            double y = 0;
            for (int f = 0; f < F; f++) y += (double)h[i / D * F + f] * wo[f * D + i % D];
            CHECK_NEAR(y, out[i], get(item, "rtol")->valuedouble);
        }
    }
    cJSON_Delete(json);
    device_close(dev);
}

#ifdef PROMOT_DOUBLE
static void test_mlp_differences(void)
{
    enum { ROWS = 3, F = 5, N = ROWS * 2 * F };
    static const int32_t start[] = {0}, length[] = {ROWS};
    const Sequences one = {start, length, 1, ROWS, ROWS, 0};
    const Dropout d = {0.3f, 1, 2, false};
    Device *dev = kernel_device(1);
    real_t *a = numbers(N, 1), *dh = numbers(ROWS * F, 2), h[ROWS * F], da[N];
    mlp_activation_backward(dev, MLP_GATED_GELU, da, dh, a, &one, F, &d);
    for (int i = 0; i < N; i++) {
        const real_t at = a[i];
        a[i] = at + DIFFERENCE;
        mlp_activation_forward(dev, MLP_GATED_GELU, h, a, &one, F, &d);
        double up = weighted_sum(h, dh, ROWS * F);
        a[i] = at - DIFFERENCE;
        mlp_activation_forward(dev, MLP_GATED_GELU, h, a, &one, F, &d);
        a[i] = at;
        CHECK_NEAR(da[i], (up - weighted_sum(h, dh, ROWS * F)) / (2 * DIFFERENCE), DIFFERENCE_TOLERANCE);
    }
    free(a), free(dh);
    device_close(dev);
}
#endif

/* --------------------------------------------------------------------------------------------------------- the head */

/* The definition, word by word. Returns the loss of one row; gradient [n] (=). */
static double loss_spec(double *gradient, const real_t *x, size_t n, size_t target, const LossSettings *s)
{
    double max = -INFINITY, sum = 0, cross_entropy = 0, constant = 0;
    const double low = (double)s->label_smoothing / (double)(n - 1);
    for (size_t i = 0; i < n; i++) max = fmax(max, (double)x[i]);
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    const double log_z = max + log(sum);
    for (size_t i = 0; i < n; i++) {
        const double q = i == target ? 1 - (double)s->label_smoothing : low, log_p = (double)x[i] - log_z;
        cross_entropy -= q * log_p;
        constant -= i == target ? q * log(q) : q * log(q + 1e-20);
        gradient[i] = (double)s->scale * ((1 + 2 * (double)s->z_loss * log_z) * exp(log_p) - q);
    }
    return (double)s->scale * (cross_entropy + (double)s->z_loss * log_z * log_z - constant);
}

static void loss_case(Device *dev, size_t rows, size_t n, double spread, const LossSettings *s)
{
    real_t *x = numbers(rows * n, n), *loss = numbers(rows, 2), *kept;
    double *gradient = allocate(rows * n * sizeof *gradient), *want = allocate(rows * sizeof *want);
    int32_t *target = allocate(rows * sizeof *target);
    for (size_t i = 0; i < rows * n; i++) x[i] *= (real_t)spread;
    kept = copy_of(x, rows * n);
    for (size_t r = 0; r < rows; r++) {
        target[r] = (int32_t)(r % 3 == 0 ? r % n : r % 3 == 1 ? n - 1 : n / 2);
        want[r] = loss_spec(gradient + r * n, x + r * n, n, (size_t)target[r], s);
    }
    softmax_cross_entropy(dev, loss, NULL, x, target, rows, n, s);
    check_all_near("loss", loss, want, rows, TOLERANCE);
    CHECK(memcmp(x, kept, rows * n * sizeof *x) == 0, "logits without gradient are kept");
    softmax_cross_entropy(dev, loss, x, x, target, rows, n, s);
    check_all_near("loss", loss, want, rows, TOLERANCE);
    check_all_near("gradient", x, gradient, rows * n, TOLERANCE);
    free(x), free(loss), free(kept), free(gradient), free(want), free(target);
}

static void test_softmax_cross_entropy(void)
{
    static const size_t sizes[] = {2, 3, 7, 16, 17, 255, 256, 1003, 4099};
    static const LossSettings settings[] = {{0, 0, 1}, {0.1f, 0, 1}, {0, 1e-2f, 0.5f}, {0.1f, 1e-4f, 0.25f}};
    Device *dev = kernel_device(2);
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 9; i++) {
            loss_case(dev, 1, sizes[i], 1, &settings[s]);
            loss_case(dev, 5, sizes[i], 20, &settings[s]);
        }
    device_close(dev);
}

static void test_loss_extremes(void)
{
    enum { N = 301 };
    static real_t x[N];
    real_t loss;
    const int32_t target = 7;
    Device *dev = kernel_device(1);
    for (int i = 0; i < N; i++) x[i] = i == target ? 30000 : (real_t)-i;
    softmax_cross_entropy(dev, &loss, x, x, &target, 1, N, &(LossSettings){0, 0, 1});
    CHECK(loss == 0 && x[target] == 0 && x[0] == 0, "a certain prediction: loss %g, gradient %g", (double)loss,
          (double)x[target]);
    for (int i = 0; i < N; i++) x[i] = i == target ? -30000 : 30000;
    softmax_cross_entropy(dev, &loss, x, x, &target, 1, N, &(LossSettings){0, 0, 1});
    CHECK_NEAR(loss, 60000 + log(N - 1), TOLERANCE);
    CHECK_NEAR(x[target], -1, TOLERANCE);
    for (int i = 0; i < N; i++) x[i] = i == target ? 0 : -INFINITY; /* forbidden words */
    softmax_cross_entropy(dev, &loss, x, x, &target, 1, N, &(LossSettings){0, 0, 1});
    CHECK(loss == 0 && x[0] == 0, "forbidden words: loss %g", (double)loss);
    for (int i = 0; i < N; i++) x[i] = 0;
    x[100] = NAN;
    softmax_cross_entropy(dev, &loss, NULL, x, &target, 1, N, &(LossSettings){0, 0, 1});
    CHECK(isnan(loss), "a NaN is seen");
    device_close(dev);
}

/* The constants of label smoothing 0.1, from the loss of equal logits: ln V - C; a prediction equal to q costs 0. */
static void test_label_smoothing_constants(void)
{
    static const struct {
        size_t vocabulary;
        double constant;
    } known[] = {{250112, 1.568049}, {32128, 1.362828}};
    Device *dev = kernel_device(2);
    for (int i = 0; i < 2; i++) {
        const size_t n = known[i].vocabulary;
        const LossSettings s = {0.1f, 0, 1};
        real_t *x = allocate(n * sizeof *x), loss;
        const int32_t target = 5;
        softmax_cross_entropy(dev, &loss, NULL, x, &target, 1, n, &s);
        CHECK(fabs((double)loss - (log((double)n) - known[i].constant)) < 2e-6, "loss %.7f",
              (double)loss); /* fp32 of 11 */
        for (size_t k = 0; k < n; k++) x[k] = (real_t)log(k == 5 ? 0.9 : 0.1 / (double)(n - 1));
        softmax_cross_entropy(dev, &loss, NULL, x, &target, 1, n, &s);
        CHECK(fabs((double)loss) < 2e-6, "a perfect prediction costs %g", (double)loss);
        free(x);
    }
    device_close(dev);
}

/* Sums over real tokens with scale = weight / factor are the loss of the padded batch. */
static void test_loss_normalisation_fixture(void)
{
    enum { TOKENS = 10, N = 23 };
    cJSON *json = fixture("loss-normalisation.json");
    if (!json) SKIP("no fixtures");
    Device *dev = kernel_device(1);
    real_t *x = numbers(TOKENS * N, 3);
    const cJSON *item;
    cJSON_ArrayForEach(item, get(json, "cases"))
    {
        double targets[TOKENS], weights[TOKENS], want = 0, found = 0, plain = 0, ignored[N];
        const double factor = get(item, "factor")->valuedouble;
        CHECK(flatten(get(item, "targets"), targets, TOKENS) == TOKENS, "sizes");
        CHECK(flatten(get(item, "weights"), weights, TOKENS) == TOKENS, "sizes");
        for (int t = 0; t < TOKENS; t++) {
            const LossSettings bare = {0.1f, 1e-4f, 1}, scaled = {0.1f, 1e-4f, (float)(weights[t] / factor)};
            const double spec = loss_spec(ignored, x + t * N, N, (size_t)targets[t], &bare);
            const int32_t target = (int32_t)targets[t];
            real_t loss;
            want += weights[t] * spec / factor;
            plain += spec;
            if (target == 0) continue; /* packed: padding does not exist */
            softmax_cross_entropy(dev, &loss, NULL, x + t * N, &target, 1, N, &scaled);
            found += (double)loss;
        }
        CHECK(fabs(found - want) < 1e-6 * fabs(want) && fabs(want - plain) > 1, "found %g, expected %g", found,
              want); /* fp32 scale */
    }
    free(x);
    cJSON_Delete(json);
    device_close(dev);
}

#ifdef PROMOT_DOUBLE
static void test_loss_differences(void)
{
    enum { N = 21 };
    Device *dev = kernel_device(1);
    real_t *x = numbers(N, 1), gradient[N], up, down;
    const int32_t target = 4;
    const LossSettings s = {0.1f, 0.01f, 0.7f};
    memcpy(gradient, x, sizeof gradient);
    softmax_cross_entropy(dev, &up, gradient, gradient, &target, 1, N, &s);
    for (int i = 0; i < N; i++) {
        const real_t at = x[i];
        x[i] = at + DIFFERENCE;
        softmax_cross_entropy(dev, &up, NULL, x, &target, 1, N, &s);
        x[i] = at - DIFFERENCE;
        softmax_cross_entropy(dev, &down, NULL, x, &target, 1, N, &s);
        x[i] = at;
        CHECK_NEAR(gradient[i], (up - down) / (2 * DIFFERENCE), DIFFERENCE_TOLERANCE);
    }
    free(x);
    device_close(dev);
}
#endif

/* levels > 0: only so many different values, so that most words are equal to others. */
static void top_case(Device *dev, size_t n, size_t k, int levels)
{
    enum { ROWS = 3 };
    real_t *x = numbers(ROWS * n, n * 100 + k), *logp = numbers(ROWS * k, 1);
    int32_t *word = allocate(ROWS * k * sizeof *word);
    bool *taken = allocate(n);
    if (levels)
        for (size_t i = 0; i < ROWS * n; i++) x[i] = (real_t)floor((double)x[i] * levels);
    top_log_probabilities(dev, logp, word, x, ROWS, n, k);
    for (size_t r = 0; r < ROWS; r++) {
        const real_t *row = x + r * n;
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += exp((double)row[i]);
        memset(taken, 0, n);
        for (size_t j = 0; j < k; j++) {
            size_t best = n;
            for (size_t i = 0; i < n; i++)
                if (!taken[i] && (best == n || row[i] > row[best])) best = i;
            taken[best] = true;
            CHECK(word[r * k + j] == (int32_t)best, "n %zu k %zu row %zu: place %zu is %d, not %zu", n, k, r, j,
                  word[r * k + j], best);
            CHECK_NEAR(logp[r * k + j], (double)row[best] - log(sum), TOLERANCE);
        }
    }
    free(x), free(logp), free(word), free(taken);
}

static void test_top_log_probabilities(void)
{
    static const size_t sizes[] = {1, 5, 16, 63, 64, 257, 1003, 5000};
    Device *dev = kernel_device(2);
    for (int i = 0; i < 8; i++)
        for (size_t k = 1; k <= 64; k += k < 9 ? 1 : 11)
            for (int levels = 0; levels < 3 && k <= sizes[i]; levels++) top_case(dev, sizes[i], k, levels);
    device_close(dev);
}

/* Best words in rising order (each replaces others), in falling order, forbidden words, and a row of equals. */
static void test_top_orders(void)
{
    enum { N = 1000, K = 8 };
    static real_t x[4 * N], logp[4 * K];
    static int32_t word[4 * K];
    for (int i = 0; i < N; i++) {
        x[i] = (real_t)i / 8;
        x[N + i] = -(real_t)i / 8;
        x[2 * N + i] = i == 700 ? 1 : -INFINITY;
        x[3 * N + i] = 2;
    }
    Device *dev = kernel_device(2);
    top_log_probabilities(dev, logp, word, x, 4, N, K);
    for (int j = 0; j < K; j++) {
        CHECK(word[j] == N - 1 - j && word[K + j] == j && word[3 * K + j] == j, "place %d", j);
        CHECK(word[2 * K + j] == (j ? j - 1 : 700) && (j ? logp[2 * K + j] == -INFINITY : logp[2 * K] == 0), "place %d",
              j);
        CHECK_NEAR(logp[3 * K + j], -log(N), TOLERANCE);
    }
    device_close(dev);
}

/* The best word is found wherever it is. */
static void test_top_places(void)
{
    enum { N = 600 };
    static real_t x[N];
    Device *dev = kernel_device(1);
    for (int place = 0; place < N; place++) {
        real_t logp;
        int32_t word;
        x[place] = 1;
        top_log_probabilities(dev, &logp, &word, x, 1, N, 1);
        x[place] = 0;
        CHECK(word == place, "found %d, expected %d", word, place);
    }
    device_close(dev);
}

/* The best of all logits, computed one row at a time as head_forward does it. */
static int32_t best_of_all(Device *dev, const real_t *x, const real_t *w, size_t in, size_t n)
{
    real_t *logits = allocate(n * sizeof *logits);
    size_t best = 0;
    head_forward(dev, logits, x, w, 1, in, n);
    for (size_t v = 1; v < n; v++)
        if (logits[v] > logits[best]) best = v;
    free(logits);
    return (int32_t)best;
}

/* Heads whose words are all different; of which many are equal; and whose best are a few roundings apart. */
typedef enum { ANY_HEAD, EQUAL_WORDS, NEAR_WORDS, HEADS } HeadKind;

static real_t *head_of_kind(HeadKind kind, size_t n, size_t in)
{
    real_t *w = numbers(n * in, 310 + kind);
    for (size_t v = 0; kind == EQUAL_WORDS && v < n; v++) memcpy(w + v * in, w + v % 5 * in, in * sizeof *w);
    for (size_t v = 1; kind == NEAR_WORDS && v < n; v++)
        for (size_t k = 0; k < in; k++)
            w[v * in + k] = w[k] * (1 + (real_t)(v * 7 % 11) * (real_t)UNIT_ROUNDOFF * (real_t)(k % 3));
    return w;
}

static void best_words_case(Device *dev, HeadKind kind, size_t n, size_t in)
{
    real_t *w = head_of_kind(kind, n, in), *x = numbers(HEAD_SKETCH_ROWS * in, 320 + n);
    HeadSketch *sketch = head_sketch_create(dev, w, in, n);
    for (size_t rows = 1; rows <= HEAD_SKETCH_ROWS; rows++) {
        int32_t word[HEAD_SKETCH_ROWS];
        best_words(dev, word, x, w, sketch, rows, in);
        for (size_t r = 0; r < rows; r++) {
            const bool too_many = kind != ANY_HEAD && n > SKETCH_BLOCKS * SKETCH_WORDS;
            const int32_t expected = best_of_all(dev, x + r * in, w, in, n);
            CHECK(word[r] == expected || (word[r] == -1 && too_many), "kind %d, %zu words of %zu, row %zu: %d, not %d",
                  kind, n, in, r, word[r], expected);
        }
    }
    head_sketch_free(sketch);
    free(w), free(x);
}

static void test_best_words(void)
{
    static const size_t words[] = {1, 2, 7, 31, 33, 130, 1003, 5001}, widths[] = {1, 3, 8, 17, 64, 131, 530};
    Device *dev = kernel_device(3);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 7; j++)
            for (HeadKind kind = 0; kind < HEADS; kind++) best_words_case(dev, kind, words[i], widths[j]);
    device_close(dev);
}

/* The bounds hold, also for an x that points where the 8 bits err most; and are no wider than 8 bits need: a number
 * errs by half a step at most, a step is a 127th of a word's largest number, and that is 1 here. 1 %: of rounding. All
 * other words point the other way, so that the bounds of a block are those of the word in question. */
static void test_sketch_bounds(void)
{
    enum { N = 77, IN = 131 };
    Device *dev = kernel_device(1);
    real_t *w = numbers(N * IN, 330), *head = allocate(N * IN * sizeof *head);
    real_t upper[N], lower[N], x[IN + 16] = {0};
    for (size_t aim = 0; aim < N; aim++) {
        const real_t *const word = w + aim * IN;
        HeadSketch *s = head_sketch_create(dev, word, IN, 1);
        double squares = 0, logit = 0;
        for (size_t k = 0; k < IN; k++) {
            const uint32_t lane = (uint32_t)s->q[k / SKETCH_GROUP * SKETCH_VECTORS][0];
            const int32_t kept = (int32_t)(lane << 8 * (SKETCH_GROUP - 1 - k % SKETCH_GROUP));
            x[k] = (real_t)((double)word[k] - (double)s->step[0] * kept);
            squares += (double)x[k] * (double)x[k];
            logit += (double)x[k] * (double)word[k];
        }
        head_sketch_free(s);
        const real_t length = (real_t)(sqrt(squares) * (1 + 8 * UNIT_ROUNDOFF));
        for (size_t k = 0; k < N * IN; k++) head[k] = k / IN == aim ? w[k] : -1000 * x[k % IN];
        s = head_sketch_create(dev, head, IN, N);
        CHECK(s->blocks <= 1 + N / SKETCH_WORDS && s->groups * SKETCH_GROUP < IN + 16, "%zu blocks", s->blocks);
        const size_t block = aim / SKETCH_WORDS;
        sketch_block(s, block, upper, lower, x, &length, 1);
        const double error = (double)s->error[aim] * (double)length;
        CHECK((double)lower[block] <= logit && logit <= (double)upper[block], "word %zu: %.9g, not from %.9g to %.9g",
              aim, logit, (double)lower[block], (double)upper[block]);
        CHECK(error <= 1.01 * sqrt(IN) * 0.5 / 127 * (double)length, "word %zu: %.9g is wide", aim, error);
        head_sketch_free(s);
    }
    free(w), free(head);
    device_close(dev);
}

/* A word of subnormal numbers, whose squares vanish, has bounds that hold too. */
static void test_sketch_bounds_subnormal(void)
{
    Device *dev = kernel_device(1);
    const real_t word[1] = {(real_t)8.4e-45}, x[16] = {(real_t)-9e14}, length = (real_t)9e14;
    real_t upper[1], lower[1];
    HeadSketch *s = head_sketch_create(dev, word, 1, 1);
    const double logit = (double)x[0] * (double)word[0];
    sketch_block(s, 0, upper, lower, x, &length, 1);
    CHECK((double)lower[0] <= logit && logit <= (double)upper[0], "%g, not from %g to %g", logit, (double)lower[0],
          (double)upper[0]);
    head_sketch_free(s);
    device_close(dev);
}

/* Words and rows of such sizes. kind 1: all but every third word are -1 everywhere and x is positive, so that the best
 * is one of the small words beside large ones. */
static void best_words_of_size(Device *dev, int kind, double word_size, double row_size, uint64_t key)
{
    enum { N = 400, IN = 64 };
    real_t *w = numbers(N * IN, 2 * key), *x = numbers(HEAD_SKETCH_ROWS * IN, 2 * key + 1);
    int32_t word[HEAD_SKETCH_ROWS];
    for (size_t k = 0; k < N * IN; k++) w[k] = kind && k / IN % 3 ? -1 : (real_t)((double)w[k] * word_size);
    for (size_t k = 0; k < HEAD_SKETCH_ROWS * IN; k++)
        x[k] = (real_t)((kind ? fabs((double)x[k]) : (double)x[k]) * row_size);
    HeadSketch *sketch = head_sketch_create(dev, w, IN, N);
    best_words(dev, word, x, w, sketch, HEAD_SKETCH_ROWS, IN);
    for (size_t r = 0; r < HEAD_SKETCH_ROWS; r++) {
        const int32_t expected = best_of_all(dev, x + r * IN, w, IN, N);
        CHECK(word[r] == expected || word[r] == -1, "kind %d, sizes %g and %g, row %zu: %d, not %d", kind, word_size,
              row_size, r, word[r], expected);
    }
    head_sketch_free(sketch);
    free(w), free(x);
}

/* So small that squares vanish, and so large that products would overflow. */
static void test_best_words_sizes(void)
{
    static const double sizes[][2] = {{1e-21, 1}, {1e-23, 1}, {1e-30, 1}, {1e-36, 1e10}, {1e12, 1e12}, {1e-30, 1e-30}};
    Device *dev = kernel_device(1);
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (uint64_t key = 0; key < 60; key++) best_words_of_size(dev, kind, sizes[i][0], sizes[i][1], 370 + key);
    real_t w[2][4] = {{-1, 1, 1, 0}, {0, 0, 0, 1}}, x[4] = {(real_t)3e36, (real_t)2e36, (real_t)2e36, 1};
    int32_t word = 0;
    HeadSketch *sketch = head_sketch_create(dev, w[0], 4, 2);
    best_words(dev, &word, x, w[0], sketch, 1, 4);
    CHECK(word == -1, "word %d of a row that is too large", word);
    head_sketch_free(sketch);
    device_close(dev);
}

/* What a sketch cannot tell it leaves open: too many equal words, numbers that are none, in w or x. */
static void test_best_words_left_open(void)
{
    enum { N = SKETCH_BLOCKS * SKETCH_WORDS + 100, IN = 24 };
    Device *dev = kernel_device(2);
    real_t *w = numbers(N * IN, 340), *x = numbers(2 * IN, 341);
    for (int kind = 0; kind < 5; kind++) {
        real_t *head = copy_of(w, N * IN), *rows = copy_of(x, 2 * IN);
        const int32_t second = best_of_all(dev, x + IN, w, IN, N);
        int32_t word[2];
        if (kind == 0) memset(rows, 0, IN * sizeof *rows);
        if (kind == 1) rows[3] = NAN;
        if (kind == 2) rows[3] = INFINITY;
        if (kind == 3) head[300 * IN + 5] = NAN;
        if (kind == 4) head[300 * IN + 5] = INFINITY;
        HeadSketch *sketch = head_sketch_create(dev, head, IN, N);
        best_words(dev, word, rows, head, sketch, 2, IN);
        CHECK(word[0] == -1 && word[1] == (kind < 3 ? second : -1), "kind %d: %d, %d", kind, word[0], word[1]);
        head_sketch_free(sketch);
        free(head), free(rows);
    }
    free(w), free(x);
    device_close(dev);
}

static void test_scale_forward(void)
{
    Device *dev = kernel_device(2);
    real_t *x = numbers(77, 1), *before = copy_of(x, 77);
    scale_forward(dev, x, 0.25f, 77);
    for (int i = 0; i < 77; i++) CHECK(x[i] == before[i] / 4, "%d", i);
    free(x), free(before);
    device_close(dev);
}

/* -------------------------------------------------------------------------------------------------------- Adafactor */

/* T5X's steps 2 to 7 in their order, in double. moment: [rows] then [columns] when factored, else [rows, columns]. */
static void adafactor_spec(double *p, const real_t *g, double *moment, bool factored, size_t rows, size_t columns,
                           const AdafactorStep *s)
{
    const size_t n = rows * columns;
    double *row = moment, *column = moment + rows, *y = allocate(n * sizeof *y), squares = 0, mean = 0,
           scale = s->learning_rate;
    for (size_t i = 0; i < n; i++) squares += p[i] * p[i];
    if (s->scale_by_parameter) scale *= fmax(s->epsilon2, sqrt(squares / (double)n));
    for (size_t i = 0; factored && i < rows + columns; i++) moment[i] *= 1 - s->alpha;
    for (size_t i = 0; i < n; i++) {
        const double G = (double)g[i] * (double)g[i] + s->epsilon1;
        if (!factored) {
            moment[i] = (1 - s->alpha) * moment[i] + s->alpha * G;
            continue;
        }
        row[i / columns] += s->alpha * G / (double)columns;
        column[i % columns] += s->alpha * G / (double)rows;
    }
    const double *R =
        columns <= rows ? column : row; /* the moment that keeps the smaller side is divided by its mean */
    const size_t small = columns <= rows ? columns : rows;
    for (size_t i = 0; factored && i < small; i++) mean += R[i] / (double)small;
    squares = 0;
    for (size_t i = 0; i < n; i++) {
        y[i] = (double)g[i] / sqrt(factored ? row[i / columns] * column[i % columns] / mean : moment[i]);
        squares += y[i] * y[i];
    }
    const double clip = s->clip > 0 ? fmax(1, sqrt(squares / (double)n) / s->clip) : 1;
    for (size_t i = 0; i < n; i++) p[i] = (1 - s->weight_decay) * p[i] - scale * y[i] / clip;
    free(y);
}

static AdafactorStep step_at(int s, double learning_rate)
{
    return (AdafactorStep){learning_rate, pow(s + 1.0, -0.8), 1, 0, 1e-30, 1e-3, true};
}

/* Five steps against the specification, from step 0 or, with an old state, from step 1,000,000. */
static void adafactor_case(Device *dev, bool factored, size_t rows, size_t columns, bool old, double clip, double decay,
                           bool scaled)
{
    const size_t n = rows * columns, n_moment = factored ? rows + columns : n;
    real_t *p = numbers(n, 1), *moment = allocate(n_moment * sizeof *moment);
    double *p_spec = allocate(n * sizeof *p_spec), *moment_spec = allocate(n_moment * sizeof *moment_spec);
    const SecondMoment m =
        factored ? (SecondMoment){.row = moment, .column = moment + rows} : (SecondMoment){.whole = moment};
    for (size_t i = 0; i < n; i++) p_spec[i] = p[i];
    if (old) { /* a state whose means differ shows which of them divides */
        for (size_t i = 0; i < n_moment; i++) moment[i] = (real_t)(0.5 + random_uniform(3, i) + (i < rows));
        for (size_t i = 0; i < n_moment; i++) moment_spec[i] = moment[i];
    }
    for (int i = 0; i < 5; i++) {
        AdafactorStep s = step_at((old ? 1000000 : 0) + i, 0.01);
        s.clip = clip, s.weight_decay = decay, s.scale_by_parameter = scaled;
        real_t *g = numbers(n, 10 + (uint64_t)i);
        for (size_t k = 0; k < n; k++) g[k] *= (real_t)(1 + (k % columns) * 0.1); /* columns differ */
        adafactor_update(dev, p, g, &m, rows, columns, &s);
        adafactor_spec(p_spec, g, moment_spec, factored, rows, columns, &s);
        free(g);
    }
    check_all_near("parameter", p, p_spec, n, TOLERANCE);
    for (size_t i = 0; i < n_moment; i++) CHECK_NEAR(moment[i] / moment_spec[i], 1, TOLERANCE);
    free(p), free(moment), free(p_spec), free(moment_spec);
}

static void test_adafactor(void)
{
    Device *dev = kernel_device(2);
    for (int factored = 0; factored < 2; factored++)
        for (int old = 0; old < 2; old++) {
            adafactor_case(dev, factored, 3, 2, old, 1, 0, true);
            adafactor_case(dev, factored, 2, 3, old, 0, 0, true);
            adafactor_case(dev, factored, 1, 17, old, 1, 1e-5, false);
            adafactor_case(dev, factored, 131, 129, old, 1, 0, true);
            adafactor_case(dev, factored, 129, 257, old, 0, 1e-3, true);
            adafactor_case(dev, factored, 257, 129, old, 0, 0, false);
            adafactor_case(dev, factored, 777, 33, old, 0.5, 0, false);
        }
    device_close(dev);
}

/* Worked numbers, whole: p, gradients of two steps, p after each. */
static void test_adafactor_worked_whole(void)
{
    static const float gradient[2][3] = {{0.1f, -0.2f, 0.4f}, {0.3f, 0.1f, -0.1f}};
    static const struct {
        double learning_rate, decay;
        bool scaled;
        int first;
        double after[2][3];
    } known[] = {
        {0.3, 1e-5, false, 0, {{0.1999950, 0.0500025, 0.6999900}, {-0.1805033, -0.1488108, 0.8103789}}},
        {0.3, 1e-5, false, 1000000, {{0.1999950, 0.0500025, 0.6999900}, {-0.2579316, -0.1658669, 0.8170544}}},
        {0.001, 0, true, 0, {{0.4993386, -0.2493386, 0.9993386}, {0.4985004, -0.2497765, 0.9995817}}},
    };
    Device *dev = kernel_device(1);
    for (size_t i = 0; i < 3; i++) {
        real_t p[3] = {0.5, -0.25, 1}, g[3], v[3] = {0};
        for (int t = 0; t < 2; t++) {
            AdafactorStep s = step_at(known[i].first + t, known[i].learning_rate);
            s.weight_decay = known[i].decay, s.scale_by_parameter = known[i].scaled;
            for (int k = 0; k < 3; k++) g[k] = gradient[t][k];
            adafactor_update(dev, p, g, &(SecondMoment){.whole = v}, 1, 3, &s);
            for (int k = 0; k < 3; k++) /* the numbers are given to 5e-8; fp32 adds as much */
                CHECK(fabs((double)p[k] - known[i].after[t][k]) < 1.5e-7, "case %zu step %d: %.8f", i, t, (double)p[k]);
        }
    }
    device_close(dev);
}

static void test_adafactor_worked_factored(void)
{
    static const double y[6] = {0.390360, -1.104105, 1.197570, 1.618080, 0.762770, -0.413670};
    real_t g[6] = {(real_t)0.1, (real_t)-0.2, (real_t)0.4, (real_t)0.3, (real_t)0.1, (real_t)-0.1}, p[6], row[2],
           column[3];
    Device *dev = kernel_device(1);
    for (int clip = 0; clip < 2; clip++) {
        AdafactorStep s = step_at(0, 1);
        s.scale_by_parameter = false, s.clip = clip;
        memset(p, 0, sizeof p), memset(row, 0, sizeof row), memset(column, 0, sizeof column);
        adafactor_update(dev, p, g, &(SecondMoment){.row = row, .column = column}, 2, 3, &s);
        for (int i = 0; i < 6; i++) /* given to 5e-7, and the RMS too */
            CHECK(fabs((double)p[i] + y[i] / (clip ? 1.014620 : 1)) < 2e-6, "clip %d: y[%d] = %.7f", clip, i,
                  (double)-p[i]);
    }
    CHECK(near(row[0], 0.07, 1e-6) && near(row[1], 0.0366667, 1e-6), "row");
    CHECK(near(column[0], 0.05, 1e-6) && near(column[1], 0.025, 1e-6) && near(column[2], 0.085, 1e-6), "column");
    device_close(dev);
}

/* A parameter that is 0 moves as if its RMS were epsilon2: one step of lr * epsilon2 * sign(g). */
static void test_adafactor_small_parameter(void)
{
    real_t p[2] = {0}, g[2] = {3, -4}, v[2] = {0};
    Device *dev = kernel_device(1);
    const AdafactorStep s = step_at(0, 0.5);
    adafactor_update(dev, p, g, &(SecondMoment){.whole = v}, 1, 2, &s);
    CHECK(near(p[0] / -0.0005, 1, TOLERANCE) && near(p[1] / 0.0005, 1, TOLERANCE), "%g %g", (double)p[0], (double)p[1]);
    device_close(dev);
}

/* Gradients that are zero somewhere or everywhere move nothing there, and no 0/0 arises, in a fresh and in an old
 * state. */
static void test_adafactor_zero_gradient(void)
{
    enum { ROWS = 130, COLUMNS = 140, N = ROWS * COLUMNS };
    Device *dev = kernel_device(2);
    for (int first = 0; first <= 1000000; first += 1000000)
        for (int kind = 0; kind < 3; kind++) { /* all zero; one row and one column are zero; whole, all zero */
            real_t *p = numbers(N, 1), *before = copy_of(p, N),
                   *g = kind == 1 ? numbers(N, 2) : allocate(N * sizeof(real_t));
            real_t *moment = allocate(N * sizeof *moment);
            for (size_t i = 0; i < N; i++)
                if (i / COLUMNS == 7 || i % COLUMNS == 9) g[i] = 0;
            const SecondMoment m = {.row = moment, .column = moment + ROWS}, whole = {.whole = moment};
            for (int s = first; s < first + 3; s++) {
                const AdafactorStep step = step_at(s, 1e-3);
                adafactor_update(dev, p, g, kind == 2 ? &whole : &m, ROWS, COLUMNS, &step);
            }
            bool still = true, finite = true, moved = false;
            for (size_t i = 0; i < N; i++) {
                finite &= isfinite(p[i]) && fabs(p[i]) < 2;
                if (g[i] == 0)
                    still &= p[i] == before[i];
                else
                    moved |= p[i] != before[i];
            }
            CHECK(still && finite && moved == (kind == 1), "kind %d from step %d: %d %d %d", kind, first, still, finite,
                  moved);
            free(p), free(before), free(g), free(moment);
        }
    device_close(dev);
}

static const cJSON *fixture_case(const cJSON *json, const char *name)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, get(json, "cases")) if (strncmp(get(item, "name")->valuestring, name, strlen(name)) ==
                                                     0) return item;
    CHECK(false, "no case %s", name);
    return NULL;
}

/* v_row has an entry for each of the 2 columns, v_col for each of the 3 rows; the state's means differ, so that it also
 * shows which of them is divided by its mean. */
static void test_adafactor_fixture_steps(void)
{
    cJSON *json = fixture("adafactor.json");
    if (!json) SKIP("no fixtures");
    Device *dev = kernel_device(1);
    for (int factored = 0; factored < 2; factored++) {
        const cJSON *item = fixture_case(json, factored ? "factored" : "not factored");
        if (!item) continue;
        const cJSON *state = get(item, "state"), *new_state = get(item, "new_state");
        const double tolerance = get(item, "rtol")->valuedouble;
        double p[6], g[6], want[6], moment[6], new_moment[6];
        flatten(get(item, "param"), p, 6), flatten(get(item, "grad"), g, 6), flatten(get(item, "new_param"), want, 6);
        flatten(get(state, factored ? "v_col" : "v"), moment, 6),
            flatten(get(new_state, factored ? "v_col" : "v"), new_moment, 6);
        if (factored) flatten(get(state, "v_row"), moment + 3, 2), flatten(get(new_state, "v_row"), new_moment + 3, 2);
        real_t weight[6], gradient[6], there[6];
        for (int i = 0; i < 6; i++) weight[i] = (real_t)p[i], gradient[i] = (real_t)g[i], there[i] = (real_t)moment[i];
        const AdafactorStep s = step_at((int)get(item, "step")->valuedouble, get(item, "lr")->valuedouble);
        const SecondMoment m =
            factored ? (SecondMoment){.row = there, .column = there + 3} : (SecondMoment){.whole = there};
        adafactor_update(dev, weight, gradient, &m, 3, 2, &s);
        for (int i = 0; i < 6; i++) CHECK_NEAR(weight[i], want[i], tolerance);
        for (int i = 0; i < (factored ? 5 : 6); i++) CHECK_NEAR(there[i], new_moment[i], tolerance);
    }
    cJSON_Delete(json);
    device_close(dev);
}

static void test_adafactor_fixture_convergence(void)
{
    cJSON *json = fixture("adafactor.json");
    if (!json) SKIP("no fixtures");
    Device *dev = kernel_device(1);
    const cJSON *item = fixture_case(json, "convergence");
    double start[3], target[3];
    flatten(get(item, "start"), start, 3), flatten(get(item, "target"), target, 3);
    real_t p[3], g[3], v[3] = {0};
    for (int i = 0; i < 3; i++) p[i] = (real_t)start[i];
    for (int s = 0; s < (int)get(item, "steps")->valuedouble; s++) {
        AdafactorStep step = step_at(s, get(item, "lr")->valuedouble);
        step.scale_by_parameter = false;
        for (int i = 0; i < 3; i++) g[i] = 2 * (p[i] - (real_t)target[i]) / 3;
        adafactor_update(dev, p, g, &(SecondMoment){.whole = v}, 1, 3, &step);
    }
    for (int i = 0; i < 3; i++)
        CHECK(fabs((double)p[i] - target[i]) < get(item, "tol")->valuedouble, "%g", (double)p[i]);
    cJSON_Delete(json);
    device_close(dev);
}

/* Sums of squares that the updates carry along change no bit of them, and are those of the rows. */
static void test_adafactor_row_squares(void)
{
    const size_t rows = 133, columns = 131, n = rows * columns;
    for (int decay = 0; decay < 2; decay++) {
        Device *dev = kernel_device(2);
        real_t *plain = numbers(n, 1), *carried = copy_of(plain, n), *squares = allocate(rows * sizeof *squares),
               *fresh = allocate(rows * sizeof *fresh), *moments[2];
        for (int i = 0; i < 2; i++) moments[i] = allocate((rows + columns) * sizeof(real_t));
        const SecondMoment mp = {.row = moments[0], .column = moments[0] + rows},
                           mc = {.row = moments[1], .column = moments[1] + rows, .row_squares = squares};
        rows_sum_of_squares(dev, squares, carried, rows, columns);
        for (int t = 0; t < 4; t++) {
            real_t *g = numbers(n, 20 + (uint64_t)t);
            AdafactorStep s = step_at(t, 0.05);
            if (decay) s.weight_decay = 0.1;
            adafactor_update(dev, plain, g, &mp, rows, columns, &s);
            adafactor_update(dev, carried, g, &mc, rows, columns, &s);
            free(g);
        }
        rows_sum_of_squares(dev, fresh, carried, rows, columns);
        CHECK(memcmp(plain, carried, n * sizeof *plain) == 0, "weights");
        CHECK(memcmp(fresh, squares, rows * sizeof *fresh) == 0, "row_squares is kept up to date");
        free(plain), free(carried), free(squares), free(fresh), free(moments[0]), free(moments[1]);
        device_close(dev);
    }
}

/* Updates of touched rows are those of the whole matrix: ten steps, other rows touched in each, none in one of them. */
static void adafactor_rows_case(Device *dev, size_t rows, size_t columns, int first)
{
    const size_t n = rows * columns;
    real_t *dense = numbers(n, 1), *sparse = copy_of(dense, n),
           *dense_moment = allocate((rows + columns) * sizeof(real_t));
    real_t *sparse_moment = allocate((rows + columns) * sizeof(real_t)), *row_squares = allocate(rows * sizeof(real_t));
    const SecondMoment md = {.row = dense_moment, .column = dense_moment + rows},
                       ms = {.row = sparse_moment, .column = sparse_moment + rows, .row_squares = row_squares};
    int32_t *index = allocate(rows * sizeof *index);
    rows_sum_of_squares(dev, row_squares, sparse, rows, columns);
    for (int t = 0; t < 10; t++) {
        real_t *g = numbers(n, 20 + (uint64_t)t), *touched = allocate(n * sizeof *touched);
        size_t count = 0;
        for (size_t r = 0; r < rows; r++) {
            const bool has = t != 4 && random_uniform(50 + (uint64_t)t, r) < 0.2;
            if (!has)
                memset(g + r * columns, 0, columns * sizeof *g);
            else
                memcpy(touched + count * columns, g + r * columns, columns * sizeof *g);
            if (has) index[count++] = (int32_t)r;
        }
        const AdafactorStep s = step_at(first + t, 0.05);
        adafactor_update(dev, dense, g, &md, rows, columns, &s);
        adafactor_update_rows(dev, sparse, touched, index, count, &ms, rows, columns, &s);
        free(g), free(touched);
    }
    for (size_t i = 0; i < n; i++) CHECK_NEAR(sparse[i], dense[i], TOLERANCE);
    for (size_t i = 0; i < rows + columns; i++) CHECK_NEAR(sparse_moment[i] / dense_moment[i], 1, TOLERANCE);
    real_t *fresh = allocate(rows * sizeof *fresh);
    rows_sum_of_squares(dev, fresh, sparse, rows, columns);
    CHECK(memcmp(fresh, row_squares, rows * sizeof *fresh) == 0, "row_squares is kept up to date");
    free(dense), free(sparse), free(dense_moment), free(sparse_moment), free(row_squares), free(index), free(fresh);
}

static void test_adafactor_rows(void)
{
    Device *dev = kernel_device(2);
    adafactor_rows_case(dev, 700, 129, 0);
    adafactor_rows_case(dev, 700, 129, 1000000);
    adafactor_rows_case(dev, 131, 200, 0); /* more columns than rows: the other mean */
    device_close(dev);
}

static void test_measuring(void)
{
    enum { N = 150001, COLUMNS = 1001 };
    Device *dev = kernel_device(2);
    real_t *a = numbers(N, 1), *b = numbers(N, 2), squares[149];
    double dot = 0, got = NAN, row = 0;
    for (size_t i = 0; i < N; i++) dot += (double)a[i] * (double)b[i];
    dot_product(dev, &got, a, b, N);
    CHECK_NEAR(got, dot, 1e-11); /* double, 150,001 terms: 1e-16 * sqrt(150,001) * 3, and room */
    dot_product(dev, &got, a, b, 0);
    CHECK(got == 0, "no elements");
    rows_sum_of_squares(dev, squares, a, 149, COLUMNS);
    for (size_t i = 148 * COLUMNS; i < 149 * COLUMNS; i++) row += (double)a[i] * (double)a[i];
    CHECK_NEAR(squares[148], row, TOLERANCE);
    free(a), free(b);
    device_close(dev);
}

/* ---------------------------------------------------------------------------------------------------------- threads */

/* Runs every kernel whose work is shared among threads; out receives all results. */
static size_t run_everything(int threads, real_t *out)
{
    enum { W = 1029, N = PACKED_ROWS * W, V = 1003, K = 5, TALL = 1500, WIDE = 131 };
    static const int32_t first[] = {0, 2, 3, 3, 6}, source[] = {0, 3, 2, 1, 4, 5};
    static int32_t target[PACKED_ROWS], word[PACKED_ROWS * K], index[TALL];
    const Dropout d = {0.1f, 9, 1, true}, each = {0.1f, 9, 1, false};
    Device *dev = kernel_device(threads);
    real_t *x = numbers(N, 1), *g = numbers(TALL * WIDE, 2), *a = numbers(2 * N, 3), *scale = numbers(W, 4);
    real_t *p = numbers(TALL * WIDE, 5), *end = out;
    for (int i = 0; i < PACKED_ROWS; i++) target[i] = i * 11;
    for (int i = 0; i < TALL; i++) index[i] = i;
#define TAKE(n) (memset(end, 0, (n) * sizeof *end), (end += (n)) - (n))
    embedding_backward(dev, TAKE(4 * W), x, first, source, 4, W);
    residual_forward(dev, TAKE(N), a, x, &packed, W, &d);
    residual_backward(dev, TAKE(N), x, &packed, W, &each);
    real_t *rstd = TAKE(PACKED_ROWS);
    rmsnorm_forward(dev, TAKE(N), rstd, x, scale, PACKED_ROWS, W, 1e-6f);
    real_t *dx = TAKE(N), *ds = TAKE(W);
    rmsnorm_backward(dev, dx, ds, a, x, rstd, scale, PACKED_ROWS, W);
    mlp_activation_forward(dev, MLP_GATED_GELU, TAKE(N), a, &packed, W, &d);
    mlp_activation_backward(dev, MLP_GATED_GELU, TAKE(2 * N), x, a, &packed, W, &d);
    real_t *logp = TAKE(PACKED_ROWS * K), *logits = TAKE(PACKED_ROWS * V), *loss = TAKE(PACKED_ROWS);
    memcpy(logits, g, PACKED_ROWS * V * sizeof *logits);
    top_log_probabilities(dev, logp, word, logits, PACKED_ROWS, V, K);
    softmax_cross_entropy(dev, loss, logits, logits, target, PACKED_ROWS, V, &(LossSettings){0.1f, 1e-4f, 1});
    for (int kind = 0; kind < 3; kind++) {
        const AdafactorStep s = step_at(3, 0.1);
        real_t *weights = TAKE(TALL * WIDE), *row = TAKE(TALL), *column = TAKE(WIDE), *whole = TAKE(TALL * WIDE);
        memcpy(weights, p, TALL * WIDE * sizeof *p);
        SecondMoment m = {.row = row, .column = column, .row_squares = kind == 2 ? whole : NULL};
        if (kind == 0) m = (SecondMoment){.whole = whole};
        rows_sum_of_squares(dev, whole + (kind ? 0 : TALL), weights, TALL, WIDE);
        if (kind < 2)
            adafactor_update(dev, weights, g, &m, TALL, WIDE, &s);
        else
            adafactor_update_rows(dev, weights, g, index, TALL - 3, &m, TALL, WIDE, &s);
    }
    real_t *merged = TAKE(TALL * WIDE), *da = TAKE(5 * WIDE), *db = TAKE(5 * TALL);
    lora_merge_forward(dev, merged, p, a, a + 5 * WIDE, TALL, WIDE, 5, 0.5f);
    lora_backward(dev, da, db, g, a, a + 5 * WIDE, TALL, WIDE, 5, 0.5f);
    double dot;
    dot_product(dev, &dot, p, g, TALL * WIDE);
    memcpy(TAKE(2), &dot, sizeof dot); /* all its bits */
#undef TAKE
    free(x), free(g), free(a), free(scale), free(p);
    device_close(dev);
    return (size_t)(end - out);
}

static void test_threads_do_not_matter(void)
{
    const size_t most = 8 << 20;
    real_t *one = allocate(most * sizeof *one), *more = allocate(most * sizeof *more);
    const size_t n = run_everything(1, one);
    CHECK(n < most, "%zu numbers", n);
    for (int threads = 2; threads <= 3; threads++) {
        run_everything(threads, more);
        for (size_t i = 0; i < n; i++) {
            if (memcmp(one + i, more + i, sizeof *one) == 0) continue;
            CHECK(false, "%d threads: number %zu of %zu is %.9g, not %.9g", threads, i, n, (double)more[i],
                  (double)one[i]);
            break;
        }
    }
    free(one), free(more);
}

static const Test tests[] = {
    {"philox_known_answers", test_philox_known_answers},
    {"random_streams", test_random_streams},
    {"random_fold", test_random_fold},
    {"vec_exp", test_vec_exp},
    {"device", test_device},
    {"transfers", test_transfers},
    {"embedding", test_embedding},
    {"dropout_row", test_dropout_row},
    {"dropout_rate", test_dropout_rate},
    {"dropout_and_residual", test_dropout_and_residual},
    {"dropout_micro_batches", test_dropout_micro_batches},
    {"rmsnorm", test_rmsnorm},
    {"lora", test_lora},
    {"lora_is_exact_in_bf16", test_lora_is_exact_in_bf16},
    {"gelu_values", test_gelu_values},
    {"mlp_activation", test_mlp_activation},
    {"relu_keeps_nan", test_relu_keeps_nan},
    {"mlp_relu_fixture", test_mlp_relu_fixture},
    {"softmax_cross_entropy", test_softmax_cross_entropy},
    {"loss_extremes", test_loss_extremes},
    {"label_smoothing_constants", test_label_smoothing_constants},
    {"loss_normalisation_fixture", test_loss_normalisation_fixture},
    {"top_log_probabilities", test_top_log_probabilities},
    {"top_orders", test_top_orders},
    {"top_places", test_top_places},
    {"best_words", test_best_words},
    {"sketch_bounds", test_sketch_bounds},
    {"sketch_bounds_subnormal", test_sketch_bounds_subnormal},
    {"best_words_sizes", test_best_words_sizes},
    {"best_words_left_open", test_best_words_left_open},
    {"scale_forward", test_scale_forward},
    {"adafactor", test_adafactor},
    {"adafactor_worked_whole", test_adafactor_worked_whole},
    {"adafactor_worked_factored", test_adafactor_worked_factored},
    {"adafactor_small_parameter", test_adafactor_small_parameter},
    {"adafactor_zero_gradient", test_adafactor_zero_gradient},
    {"adafactor_fixture_steps", test_adafactor_fixture_steps},
    {"adafactor_fixture_convergence", test_adafactor_fixture_convergence},
    {"adafactor_rows", test_adafactor_rows},
    {"adafactor_row_squares", test_adafactor_row_squares},
    {"measuring", test_measuring},
    {"threads_do_not_matter", test_threads_do_not_matter},
#ifdef PROMOT_DOUBLE
    {"rmsnorm_differences", test_rmsnorm_differences},
    {"lora_differences", test_lora_differences},
    {"mlp_differences", test_mlp_differences},
    {"loss_differences", test_loss_differences},
#endif
};

TEST_MAIN(tests)
