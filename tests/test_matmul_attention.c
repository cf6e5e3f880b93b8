/* Matrix products and attention against plain loops in double, which are their specification. Compiled a second time
 * with -DPROMOT_DOUBLE, the same tests hold at 1e-13, and finite differences confirm the gradients without any formula.
 * */
#include "../promot.c"
#include "test.h"

#ifdef PROMOT_DOUBLE
#define EPSILON 2.3e-16
#else
#define EPSILON 1.2e-7
#endif

/* The error of a sum of n products: each addition rounds once, along one panel and then from panel to panel, and each
 * rounding is at most EPSILON times the sum of magnitudes. */
#define SUM_BOUND(n, magnitude)                                                                                        \
    ((fmin((double)(n), DEPTH_BLOCK) + (double)(n) / DEPTH_BLOCK + 2) * EPSILON * (magnitude) + 1e-37)

static uint32_t random_state = 1;

static real_t random_value(void) /* in [-1, 1) */
{
    random_state = random_state * 1664525u + 1013904223u;
    return (real_t)((double)(random_state >> 8) / (1 << 23) - 1);
}

static real_t *random_values(size_t n)
{
    real_t *const p = malloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = random_value();
    return p;
}

static real_t *copy_of(const real_t *p, size_t n)
{
    real_t *const copy = malloc(n * sizeof *copy);
    memcpy(copy, p, n * sizeof *copy);
    return copy;
}

static const real_t UNTOUCHED = 12345; /* what belongs to nobody, or has not been written yet */

static void fill(real_t *p, size_t n, real_t value)
{
    for (size_t i = 0; i < n; i++) p[i] = value;
}

static Device *open_device(int threads, MatmulPrecision precision)
{
    Error error;
    Device *const dev = device_open(threads, precision, &error);
    if (!dev) exit(EXIT_FAILURE);
    return dev;
}

/* --- linear layers */

/* What the product sees of its operand, in double: all of it, or in bf16 the nearest numbers with 8 significant bits,
 * ties to even. */
static double *seen_operand(const real_t *x, size_t n, MatmulPrecision precision)
{
    double *const seen = malloc(n * sizeof *seen);
    for (size_t i = 0; i < n; i++) {
        int exponent;
        const double fraction = frexp((double)x[i], &exponent);
        seen[i] = precision == MATMUL_BF16 ? ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8) : (double)x[i];
    }
    return seen;
}

/* c (i, j) = before + sum over k of a(i, k) b(j, k), all strides free. */
static void check_product(const char *name, const real_t *c, const real_t *before, const double *a, size_t a_row,
                          size_t a_depth, const double *b, size_t b_row, size_t b_depth, size_t m, size_t n,
                          size_t depth)
{
    size_t wrong = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = before ? (double)before[i * n + j] : 0, magnitude = fabs(sum);
            for (size_t k = 0; k < depth; k++) {
                const double product = a[i * a_row + k * a_depth] * b[j * b_row + k * b_depth];
                sum += product, magnitude += fabs(product);
            }
            wrong += !(fabs((double)c[i * n + j] - sum) <= SUM_BOUND(depth, magnitude));
        }
    CHECK(wrong == 0, "%s %zu x %zu x %zu: %zu wrong", name, m, n, depth, wrong);
}

/* All three products of a linear layer, written over and added to, from one Device. */
static void check_linear(Device *dev, size_t rows, size_t in, size_t out, MatmulPrecision precision)
{
    real_t *const x = random_values(rows * in), *const w = random_values(out * in),
                  *const dy = random_values(rows * out);
    real_t *const y = random_values(rows * out), *const dx = random_values(rows * in),
                  *const dw = random_values(out * in);
    double *const sx = seen_operand(x, rows * in, precision), *const sw = seen_operand(w, out * in, precision);
    double *const sdy = seen_operand(dy, rows * out, precision);
    linear_forward(dev, y, x, w, rows, in, out);
    check_product("forward", y, NULL, sx, in, 1, sw, in, 1, rows, out, in);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        real_t *const dx0 = copy_of(dx, rows * in), *const dw0 = copy_of(dw, out * in);
        linear_backward_input(dev, dx, dy, w, rows, in, out, accumulate);
        linear_backward_weight(dev, dw, dy, x, rows, in, out, accumulate);
        check_product("input gradient", dx, accumulate ? dx0 : NULL, sdy, out, 1, sw, 1, in, rows, in, out);
        check_product("weight gradient", dw, accumulate ? dw0 : NULL, sdy, 1, out, sx, 1, in, out, in, rows);
        free(dx0), free(dw0);
    }
    free(x), free(w), free(dy), free(y), free(dx), free(dw), free(sx), free(sw), free(sdy);
}

/* Several layers at once are the layers one by one; back, their sum. */
static void test_linear_layers(void)
{
    enum { LAYERS = 3, ROWS = 19, IN = 37, OUT = 21, W_STRIDE = IN * OUT + 5, Y_STRIDE = ROWS * OUT + 3 };
    Device *const dev = open_device(2, MATMUL_FP32);
    real_t *const x = random_values(ROWS * IN), *const w = random_values(LAYERS * W_STRIDE);
    real_t *const y = random_values(LAYERS * Y_STRIDE), *const dx = random_values(ROWS * IN),
                  *const one = random_values(ROWS * OUT), *const sum = random_values(ROWS * IN);
    linear_forward_layers(dev, y, x, w, ROWS, IN, OUT, LAYERS, W_STRIDE, Y_STRIDE);
    for (size_t l = 0; l < LAYERS; l++) {
        linear_forward(dev, one, x, w + l * W_STRIDE, ROWS, IN, OUT);
        CHECK(memcmp(one, y + l * Y_STRIDE, ROWS * OUT * sizeof *one) == 0, "layer %zu", l);
    }
    for (size_t l = LAYERS; l-- > 0;)
        linear_backward_input(dev, sum, y + l * Y_STRIDE, w + l * W_STRIDE, ROWS, IN, OUT, l + 1 < LAYERS);
    linear_backward_input_layers(dev, dx, y, w, ROWS, IN, OUT, LAYERS, W_STRIDE, Y_STRIDE);
    CHECK(memcmp(sum, dx, ROWS * IN * sizeof *sum) == 0, "the sum over layers");
    free(x), free(w), free(y), free(dx), free(one), free(sum);
    device_close(dev);
}

static void check_linear_sizes(MatmulPrecision precision)
{
    static const size_t rows[] = {1, 2, 5, 16, 17, 33, 100}, in[] = {1, 3, 8, 37, 64, 517}, out[] = {1, 3, 32, 70, 131};
    Device *const dev = open_device(2, precision);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t i = 0; i < sizeof in / sizeof *in; i++)
            for (size_t o = 0; o < sizeof out / sizeof *out; o++) check_linear(dev, rows[r], in[i], out[o], precision);
    device_close(dev);
}

static void test_linear_plain_loops(void)
{
    check_linear_sizes(MATMUL_FP32);
}

/* Each size is beyond one of the limits of the blocking: rows held, depth held, depth of a panel; and both sides hold.
 * */
static void test_linear_block_edges(void)
{
    static const size_t shapes[][3] = {
        {1600, 2, 1541}, {140000, 3, 2}, {17, 2, 140001}, {1100, 1030, 20}, {20, 1030, 1100}};
    Device *const dev = open_device(2, MATMUL_FP32);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        check_linear(dev, shapes[s][0], shapes[s][1], shapes[s][2], MATMUL_FP32);
    device_close(dev);
}

static void test_linear_bf16(void)
{
    if (!device_has_bf16()) SKIP("this processor does not multiply bf16");
    check_linear_sizes(MATMUL_BF16);
}

/* <dy, x wᵀ> = <dx, x> = <dw, w>: the backward passes are the forward pass's adjoints. */
static void test_linear_adjoint(void)
{
    enum { ROWS = 70, IN = 129, OUT = 51 };
    Device *const dev = open_device(2, MATMUL_FP32);
    real_t *const x = random_values(ROWS * IN), *const w = random_values(OUT * IN),
                  *const dy = random_values(ROWS * OUT);
    real_t *const y = random_values(ROWS * OUT), *const dx = random_values(ROWS * IN),
                  *const dw = random_values(OUT * IN);
    double forward = 0, input = 0, weight = 0;
    linear_forward(dev, y, x, w, ROWS, IN, OUT);
    linear_backward_input(dev, dx, dy, w, ROWS, IN, OUT, false);
    linear_backward_weight(dev, dw, dy, x, ROWS, IN, OUT, false);
    for (size_t i = 0; i < ROWS * OUT; i++) forward += (double)dy[i] * (double)y[i];
    for (size_t i = 0; i < ROWS * IN; i++) input += (double)dx[i] * (double)x[i];
    for (size_t i = 0; i < OUT * IN; i++) weight += (double)dw[i] * (double)w[i];
    /* ROWS * OUT terms of size about sqrt(IN) / 3, each with the rounding of its sum */
    CHECK(fabs(forward - input) < ROWS * OUT * 4 * EPSILON, "%.17g %.17g", forward, input);
    CHECK(fabs(forward - weight) < ROWS * OUT * 4 * EPSILON, "%.17g %.17g", forward, weight);
    free(x), free(w), free(dy), free(y), free(dx), free(dw);
    device_close(dev);
}

static void test_linear_threads(void)
{
    static const size_t shapes[][3] = {{1, 300, 700}, {9, 300, 700}, {40, 520, 333}, {333, 1030, 40}, {200, 64, 300}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
        real_t *const x = random_values(rows * in), *const w = random_values(out * in),
                      *const dy = random_values(rows * out);
        real_t *y[3], *dx[3], *dw[3];
        for (int t = 0; t < 3; t++) {
            Device *const dev = open_device(t + 1, MATMUL_FP32);
            y[t] = copy_of(dy, rows * out), dx[t] = copy_of(x, rows * in), dw[t] = copy_of(w, out * in);
            linear_forward(dev, y[t], x, w, rows, in, out);
            linear_backward_input(dev, dx[t], dy, w, rows, in, out, true);
            linear_backward_weight(dev, dw[t], dy, x, rows, in, out, true);
            CHECK(memcmp(y[t], y[0], rows * out * sizeof **y) == 0, "%zu: y, %d threads", s, t + 1);
            CHECK(memcmp(dx[t], dx[0], rows * in * sizeof **dx) == 0, "%zu: dx, %d threads", s, t + 1);
            CHECK(memcmp(dw[t], dw[0], out * in * sizeof **dw) == 0, "%zu: dw, %d threads", s, t + 1);
            device_close(dev);
        }
        for (int t = 0; t < 3; t++) free(y[t]), free(dx[t]), free(dw[t]);
        free(x), free(w), free(dy);
    }
}

/* A row's bits do not depend on the other rows: all together, or in groups on both sides of every limit of the kernels.
 * Around DEPTH_BLOCK and its multiples the sum is cut, at odd depths bf16 pairs up a last number with nothing. */
static void check_linear_rows(Device *dev, size_t in, size_t out)
{
    enum { ROWS = 110 };
    static const size_t groups[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  12, 15, 16, 17,
                                    24, 25, 31, 32, 33, 40, 48, 49, 64, 70, 96, 97};
    real_t *const x = random_values(ROWS * in), *const w = random_values(out * in);
    real_t *const together = random_values(ROWS * out), *const apart = random_values(ROWS * out);
    linear_forward(dev, together, x, w, ROWS, in, out);
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        fill(apart, ROWS * out, UNTOUCHED);
        for (size_t row = 0; row < ROWS; row += groups[g])
            linear_forward(dev, apart + row * out, x + row * in, w, min_size(groups[g], ROWS - row), in, out);
        CHECK(memcmp(apart, together, ROWS * out * sizeof *apart) == 0, "%zu x %zu in groups of %zu, %d threads%s", in,
              out, groups[g], dev->threads, dev->precision == MATMUL_BF16 ? ", bf16" : "");
    }
    free(x), free(w), free(together), free(apart);
}

static void test_linear_rows(void)
{
    static const size_t in[] = {1, 2, 5, 15, 16, 37, 64, 511, 512, 513, 700, 1024, 1025, 1541};
    static const size_t out[] = {1, 3, 16, 31, 70, 131};
    for (int threads = 1; threads <= 3; threads++)
        for (int precision = MATMUL_FP32; precision <= (device_has_bf16() ? MATMUL_BF16 : MATMUL_FP32); precision++) {
            Device *const dev = open_device(threads, (MatmulPrecision)precision);
            for (size_t i = 0; i < sizeof in / sizeof *in; i++)
                for (size_t o = 0; o < sizeof out / sizeof *out; o++) check_linear_rows(dev, in[i], out[o]);
            device_close(dev);
        }
}

/* --- attention */

enum { BUCKETS = 8, MAX_SEQUENCES = 4, LONGEST = 600 };

typedef struct {
    const char *name;
    size_t sequences;
    int32_t query_length[MAX_SEQUENCES], key_length[MAX_SEQUENCES];
    size_t gap; /* rows of nobody before each sequence */
    size_t heads, d_kv;
    bool causal, bias;
    float rate;
    bool shared;
} AttentionCase;

static const AttentionCase attention_cases[] = {
    {"one token", 1, {1}, {1}, 0, 1, 4, false, true, 0, false},
    {"tiny, ragged, gaps", 3, {3, 1, 7}, {3, 1, 7}, 2, 2, 4, false, true, 0, false},
    {"causal", 3, {5, 40, 13}, {5, 40, 13}, 0, 3, 8, true, true, 0, false},
    {"cross, few queries", 4, {1, 2, 8, 9}, {50, 1, 33, 300}, 1, 2, 64, false, false, 0, false},
    {"odd width, dropout", 2, {31, 6}, {45, 77}, 1, 2, 37, false, false, 0.3f, false},
    {"shared dropout", 2, {31, 6}, {45, 77}, 0, 2, 37, false, false, 0.3f, true},
    {"several blocks, all together", 2, {450, 197}, {450, 197}, 3, 2, 16, true, true, 0.2f, false},
    {"several blocks, two-sided, shared", 2, {385, 20}, {385, 20}, 3, 1, 64, false, true, 0.2f, true},
    {"wide heads", 1, {50}, {50}, 0, 1, 200, false, true, 0.1f, false},
    {"causal with keys that nobody sees", 1, {3}, {500}, 0, 1, 8, true, true, 0, false},
};

/* The tensors of a case. q has rows of its own; k and v are two slices of one wider matrix. */
typedef struct {
    Attention attention;
    int32_t query_start[MAX_SEQUENCES], key_start[MAX_SEQUENCES], bucket[2 * LONGEST + 1];
    size_t q_size, kv_size, out_size, lse_size, bias_size;
    real_t *q, *kv, *bias, *out, *lse, *dout, *dq, *dkv, *dbias;
} AttentionTensors;

static AttentionTensors *make_tensors(const AttentionCase *c)
{
    AttentionTensors *const t = calloc(1, sizeof *t);
    size_t query_rows = 0, key_rows = 0;
    for (size_t b = 0; b < c->sequences; b++) {
        t->query_start[b] = (int32_t)(query_rows + c->gap);
        t->key_start[b] = (int32_t)(key_rows + c->gap);
        query_rows += c->gap + (size_t)c->query_length[b];
        key_rows += c->gap + (size_t)c->key_length[b];
    }
    const size_t inner = c->heads * c->d_kv, q_stride = inner + 3, kv_stride = 2 * inner + 5;
    t->q_size = query_rows * q_stride, t->kv_size = key_rows * kv_stride, t->out_size = query_rows * inner;
    t->lse_size = c->heads * query_rows, t->bias_size = BUCKETS * c->heads;
    random_state = 7;
    t->q = random_values(t->q_size), t->kv = random_values(t->kv_size), t->bias = random_values(t->bias_size);
    t->dout = random_values(t->out_size);
    t->out = random_values(t->out_size), t->lse = random_values(t->lse_size);
    t->dq = random_values(t->q_size), t->dkv = random_values(t->kv_size), t->dbias = random_values(t->bias_size);
    for (size_t i = 0; i < t->q_size; i++) t->q[i] /= (real_t)sqrt((double)c->d_kv / 4); /* scores of order 1 */
    for (int d = -LONGEST; d <= LONGEST; d++) {
        const int near = abs(d) / 3;
        t->bucket[d + LONGEST] = (near < 3 ? near : 3) + (d > 0 ? 4 : 0);
    }
    t->attention = (Attention){.q = t->q,
                               .k = t->kv + 1,
                               .v = t->kv + inner + 2,
                               .q_stride = q_stride,
                               .kv_stride = kv_stride,
                               .queries = {t->query_start, c->query_length, c->sequences, query_rows, LONGEST, 5},
                               .keys = {t->key_start, c->key_length, c->sequences, key_rows, LONGEST, 5},
                               .heads = c->heads,
                               .d_kv = c->d_kv,
                               .causal = c->causal,
                               .bias_table = c->bias ? t->bias : NULL,
                               .bucket = t->bucket + LONGEST,
                               .buckets = BUCKETS,
                               .dropout = {.rate = c->rate, .key = 0x123456789abcdef, .site = 40, .shared = c->shared}};
    return t;
}

static void free_tensors(AttentionTensors *t)
{
    free(t->q), free(t->kv), free(t->bias), free(t->out), free(t->lse);
    free(t->dout), free(t->dq), free(t->dkv), free(t->dbias), free(t);
}

static void run_attention(AttentionTensors *t, Device *dev, bool backward)
{
    const size_t v_offset = (size_t)(t->attention.v - t->kv);
    fill(t->out, t->out_size, UNTOUCHED), fill(t->lse, t->lse_size, UNTOUCHED);
    attention_forward(dev, t->out, t->lse, &t->attention);
    if (!backward) return;
    fill(t->dq, t->q_size, UNTOUCHED), fill(t->dkv, t->kv_size, UNTOUCHED), fill(t->dbias, t->bias_size, 1);
    attention_backward(dev, t->dq, t->dkv + 1, t->dkv + v_offset, t->attention.bias_table ? t->dbias : NULL, t->dout,
                       t->out, t->lse, &t->attention);
}

/* The factor of dropout at one score, from the generator's definition. */
static double plain_keep(const Attention *at, size_t b, size_t head, size_t i, size_t j)
{
    const Dropout *const d = &at->dropout;
    const uint32_t row = d->shared ? 0 : (uint32_t)i;
    const uint32_t counter[4] = {(uint32_t)(j / 4), row, (uint32_t)(at->queries.first_example + b),
                                 d->site + (uint32_t)head};
    uint32_t bits[4];
    if (d->rate <= 0) return 1;
    philox4x32(counter, d->key, bits);
    return (double)bits[j % 4] < (double)d->rate * 4294967296.0 ? 0 : 1 / (1 - (double)d->rate);
}

/* The results of the plain loops, laid out as those of the kernels. */
typedef struct {
    double *out, *lse, *dq, *dkv, *dbias;
} PlainAttention;

static double *plain_filled(size_t n, double value)
{
    double *const p = malloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = value;
    return p;
}

/* One query of one head: softmax, output, and what its gradient gives to everything. */
static void plain_query(PlainAttention *plain, const AttentionTensors *t, size_t b, size_t h, size_t i)
{
    const Attention *const at = &t->attention;
    const size_t d = at->d_kv, inner = at->heads * d, row = (size_t)at->queries.start[b] + i,
                 v = (size_t)(at->v - t->kv);
    const size_t q0 = row * at->q_stride + h * d, o0 = row * inner + h * d;
    const size_t keys = at->causal && i + 1 < (size_t)at->keys.length[b] ? i + 1 : (size_t)at->keys.length[b];
    double p[LONGEST], keep[LONGEST], dp[LONGEST], total = 0, weighted = 0;
    for (size_t j = 0; j < keys; j++) {
        const size_t kv0 = ((size_t)at->keys.start[b] + j) * at->kv_stride + h * d;
        double score = at->bias_table ? (double)t->bias[(size_t)at->bucket[(int)j - (int)i] * at->heads + h] : 0;
        for (size_t c = 0; c < d; c++) score += (double)t->q[q0 + c] * (double)t->kv[kv0 + 1 + c];
        total += p[j] = exp(score);
    }
    plain->lse[h * at->queries.rows + row] = log(total);
    for (size_t c = 0; c < d; c++) plain->out[o0 + c] = plain->dq[q0 + c] = 0;
    for (size_t j = 0; j < keys; j++) {
        const size_t kv0 = ((size_t)at->keys.start[b] + j) * at->kv_stride + h * d;
        p[j] /= total, keep[j] = plain_keep(at, b, h, i, j), dp[j] = 0;
        for (size_t c = 0; c < d; c++) {
            plain->out[o0 + c] += p[j] * keep[j] * (double)t->kv[kv0 + v + c];
            plain->dkv[kv0 + v + c] += p[j] * keep[j] * (double)t->dout[o0 + c];
            dp[j] += keep[j] * (double)t->dout[o0 + c] * (double)t->kv[kv0 + v + c];
        }
        weighted += p[j] * dp[j];
    }
    for (size_t j = 0; j < keys; j++) {
        const size_t kv0 = ((size_t)at->keys.start[b] + j) * at->kv_stride + h * d;
        const double ds = p[j] * (dp[j] - weighted);
        if (at->bias_table) plain->dbias[(size_t)at->bucket[(int)j - (int)i] * at->heads + h] += ds;
        for (size_t c = 0; c < d; c++) {
            plain->dq[q0 + c] += ds * (double)t->kv[kv0 + 1 + c];
            plain->dkv[kv0 + 1 + c] += ds * (double)t->q[q0 + c];
        }
    }
}

static PlainAttention plain_attention(const AttentionTensors *t)
{
    const Attention *const at = &t->attention;
    const double no = (double)UNTOUCHED;
    PlainAttention plain = {plain_filled(t->out_size, no), plain_filled(t->lse_size, no), plain_filled(t->q_size, no),
                            plain_filled(t->kv_size, no), plain_filled(t->bias_size, 1)};
    const size_t inner = at->heads * at->d_kv, v = (size_t)(at->v - t->kv);
    for (size_t b = 0; b < at->queries.count; b++) {
        for (size_t j = 0; j < (size_t)at->keys.length[b]; j++)
            for (size_t c = 0; c < inner; c++) {
                const size_t kv0 = ((size_t)at->keys.start[b] + j) * at->kv_stride + c;
                plain.dkv[kv0 + 1] = plain.dkv[kv0 + v] = 0;
            }
        for (size_t h = 0; h < at->heads; h++)
            for (size_t i = 0; i < (size_t)at->queries.length[b]; i++) plain_query(&plain, t, b, h, i);
    }
    return plain;
}

static void free_plain(PlainAttention *plain)
{
    free(plain->out), free(plain->lse), free(plain->dq), free(plain->dkv), free(plain->dbias);
}

/* Scores, exponentials and outputs are of order 1, gradients sums over up to 450 of them. Errors are some hundred
 * roundings: those of a score (a sum over d_kv, which its exponential turns into a relative error), of the sums over
 * keys, and of exp itself (2 ulp). What belongs to nobody must be exactly as it was. */
static void check_values(const char *name, const char *tensor, const real_t *found, const double *expected, size_t n,
                         double tolerance)
{
    double worst = 0;
    size_t touched = 0;
    for (size_t i = 0; i < n; i++) {
        const double difference = fabs((double)found[i] - expected[i]);
        if (expected[i] == (double)UNTOUCHED)
            touched += difference != 0;
        else if (!(difference / (1 + fabs(expected[i])) <= worst))
            worst = difference / (1 + fabs(expected[i]));
    }
    CHECK(touched == 0, "%s: %s: %zu written that belong to nobody", name, tensor, touched);
    CHECK(worst <= tolerance, "%s: %s: off by %g", name, tensor, worst);
}

static void check_attention(const AttentionCase *c, MatmulPrecision precision, double tolerance)
{
    Device *const dev = open_device(2, precision);
    AttentionTensors *const t = make_tensors(c);
    run_attention(t, dev, true);
    PlainAttention plain = plain_attention(t);
    check_values(c->name, "out", t->out, plain.out, t->out_size, tolerance);
    check_values(c->name, "logsumexp", t->lse, plain.lse, t->lse_size, tolerance);
    check_values(c->name, "dq", t->dq, plain.dq, t->q_size, tolerance);
    check_values(c->name, "dk, dv", t->dkv, plain.dkv, t->kv_size, tolerance);
    check_values(c->name, "dbias", t->dbias, plain.dbias, t->bias_size, tolerance);
    free_plain(&plain);
    free_tensors(t);
    device_close(dev);
}

static void test_attention_plain_loops(void)
{
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++)
        check_attention(&attention_cases[i], MATMUL_FP32, 100 * EPSILON);
}

/* Each operand is off by up to 2^-9; a score is a sum of d_kv such products, of order 1 in all. */
static void test_attention_bf16(void)
{
    if (!device_has_bf16()) SKIP("this processor does not multiply bf16");
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++)
        check_attention(&attention_cases[i], MATMUL_BF16, 6.0 / 512);
}

static void test_attention_threads(void)
{
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        AttentionTensors *t[3];
        for (int n = 0; n < 3; n++) {
            Device *const dev = open_device(n + 1, MATMUL_FP32);
            t[n] = make_tensors(&attention_cases[i]);
            run_attention(t[n], dev, true);
            CHECK(memcmp(t[n]->out, t[0]->out, t[0]->out_size * sizeof(real_t)) == 0, "out, case %zu", i);
            CHECK(memcmp(t[n]->lse, t[0]->lse, t[0]->lse_size * sizeof(real_t)) == 0, "lse, case %zu", i);
            CHECK(memcmp(t[n]->dq, t[0]->dq, t[0]->q_size * sizeof(real_t)) == 0, "dq, case %zu", i);
            CHECK(memcmp(t[n]->dkv, t[0]->dkv, t[0]->kv_size * sizeof(real_t)) == 0, "dk dv, case %zu", i);
            CHECK(memcmp(t[n]->dbias, t[0]->dbias, t[0]->bias_size * sizeof(real_t)) == 0, "dbias, case %zu", i);
            device_close(dev);
        }
        for (int n = 0; n < 3; n++) free_tensors(t[n]);
    }
}

/* The gradients of keys and values may take the place of keys and values: the same bits. */
static void test_attention_in_place(void)
{
    Device *const dev = open_device(2, MATMUL_FP32);
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        AttentionTensors *const t = make_tensors(&attention_cases[i]);
        const Attention *const at = &t->attention;
        const size_t inner = at->heads * at->d_kv;
        size_t wrong = 0;
        run_attention(t, dev, true);
        attention_backward(dev, t->dq, t->kv + (at->k - t->kv), t->kv + (at->v - t->kv),
                           at->bias_table ? t->dbias : NULL, t->dout, t->out, t->lse, at);
        for (size_t b = 0; b < at->keys.count; b++)
            for (size_t row = (size_t)at->keys.start[b]; row < (size_t)(at->keys.start[b] + at->keys.length[b]); row++)
                wrong += memcmp(at->k + row * at->kv_stride, t->dkv + 1 + row * at->kv_stride,
                                inner * sizeof(real_t)) != 0 ||
                         memcmp(at->v + row * at->kv_stride, t->dkv + (at->v - t->kv) + row * at->kv_stride,
                                inner * sizeof(real_t)) != 0;
        CHECK(wrong == 0, "%s: %zu rows of dk or dv", attention_cases[i].name, wrong);
        free_tensors(t);
    }
    device_close(dev);
}

/* loss = sum of dout * out, as a function of one tensor x moved by `step` along `direction`. */
static double moved_loss(AttentionTensors *t, Device *dev, real_t *x, const real_t *direction, size_t n, real_t step)
{
    double loss = 0;
    real_t *const before = copy_of(x, n);
    for (size_t i = 0; i < n; i++) x[i] += step * direction[i];
    run_attention(t, dev, false);
    for (size_t i = 0; i < t->out_size; i++)
        if (t->out[i] != UNTOUCHED) loss += (double)t->dout[i] * (double)t->out[i];
    memcpy(x, before, n * sizeof *x);
    free(before);
    return loss;
}

/* (loss(x + h u) - loss(x - h u)) / 2h = <gradient, u> + O(h^2): with h = 1e-5 both errors are near 1e-10. */
static void test_attention_finite_differences(void)
{
    if (sizeof(real_t) < 8) SKIP("needs double");
    Device *const dev = open_device(2, MATMUL_FP32);
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        AttentionTensors *const t = make_tensors(&attention_cases[i]);
        run_attention(t, dev, true);
        real_t *const values[] = {t->q, t->kv, t->bias}, *const gradients[] = {t->dq, t->dkv, t->dbias};
        const size_t sizes[] = {t->q_size, t->kv_size, t->bias_size};
        for (size_t v = 0; v < (t->attention.bias_table ? 3 : 2); v++) {
            real_t *const u = random_values(sizes[v]);
            const real_t h = (real_t)1e-5;
            double slope = 0;
            for (size_t e = 0; e < sizes[v]; e++)
                if (gradients[v][e] != UNTOUCHED) slope += (double)(gradients[v][e] - (v == 2)) * (double)u[e];
            const double found =
                (moved_loss(t, dev, values[v], u, sizes[v], h) - moved_loss(t, dev, values[v], u, sizes[v], -h)) /
                (2 * (double)h);
            CHECK(fabs(found - slope) < 1e-7 * (1 + fabs(slope)), "%s, tensor %zu: %.12g, gradient says %.12g",
                  attention_cases[i].name, v, found, slope);
            free(u);
        }
        free_tensors(t);
    }
    device_close(dev);
}

/* A row's history, gathered along its ancestors, through full causal attention: its last output is the cached step's.
 * */
static void check_cached(Device *dev, size_t rows, size_t steps, size_t heads, size_t d_kv)
{
    const size_t capacity = rows + 2, max_steps = steps + 3, inner = heads * d_kv;
    real_t *const cache = random_values(steps * capacity * 3 * inner), *const bias = random_values(BUCKETS * heads);
    real_t *const out = random_values(rows * inner), *const history = random_values(steps * 3 * inner);
    real_t *const full = random_values(steps * inner), *const lse = random_values(heads * steps);
    int32_t *const ancestors = malloc(rows * max_steps * sizeof *ancestors), bucket[2 * LONGEST + 1];
    const int32_t start = 0, length = (int32_t)steps;
    for (size_t i = 0; i < rows * max_steps; i++) ancestors[i] = (int32_t)(i * 7 % rows);
    for (int d = -LONGEST; d <= LONGEST; d++) bucket[d + LONGEST] = abs(d) / 4 < BUCKETS ? abs(d) / 4 : BUCKETS - 1;
    attention_cached_forward(dev, out, cache, ancestors, rows, steps, max_steps, capacity, heads, d_kv, bias,
                             bucket + LONGEST, BUCKETS);
    for (size_t r = 0; r < rows; r++) {
        for (size_t t = 0; t < steps; t++) {
            const size_t holder = t + 1 == steps ? r : (size_t)ancestors[r * max_steps + t];
            memcpy(history + t * 3 * inner, cache + (t * capacity + holder) * 3 * inner, 3 * inner * sizeof *cache);
        }
        const Sequences seqs = {&start, &length, 1, steps, steps, 0};
        const Attention at = {.q = history,
                              .k = history + inner,
                              .v = history + 2 * inner,
                              .q_stride = 3 * inner,
                              .kv_stride = 3 * inner,
                              .queries = seqs,
                              .keys = seqs,
                              .heads = heads,
                              .d_kv = d_kv,
                              .causal = true,
                              .bias_table = bias,
                              .bucket = bucket + LONGEST,
                              .buckets = BUCKETS};
        attention_forward(dev, full, lse, &at);
        for (size_t c = 0; c < inner; c++) {
            const double expected = (double)full[(steps - 1) * inner + c], found = (double)out[r * inner + c];
            CHECK(fabs(found - expected) < 100 * EPSILON, "%zu steps, row %zu: %g, not %g", steps, r, found, expected);
        }
    }
    free(cache), free(bias), free(out), free(history), free(full), free(lse), free(ancestors);
}

static void test_attention_cached(void)
{
    static const size_t steps[] = {1, 2, 7, 33, 192, 193, 400};
    Device *const dev = open_device(2, MATMUL_FP32);
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        check_cached(dev, 5, steps[s], 2, 8);
        check_cached(dev, 1, steps[s], 3, 37);
    }
    device_close(dev);
}

static const Test tests[] = {
    {"linear_plain_loops", test_linear_plain_loops},
    {"linear_layers", test_linear_layers},
    {"linear_block_edges", test_linear_block_edges},
    {"linear_bf16", test_linear_bf16},
    {"linear_adjoint", test_linear_adjoint},
    {"linear_threads", test_linear_threads},
    {"linear_rows", test_linear_rows},
    {"attention_plain_loops", test_attention_plain_loops},
    {"attention_bf16", test_attention_bf16},
    {"attention_threads", test_attention_threads},
    {"attention_in_place", test_attention_in_place},
    {"attention_finite_differences", test_attention_finite_differences},
    {"attention_cached", test_attention_cached},
};
TEST_MAIN(tests)
