/* test_gpu_attention.cc: every way of gpu/ to compute an attention beside its CPU twin.
 *
 * Inputs are random numbers in -1 … 1, rounded to bf16 on both sides. The rows between sequences, and all outputs,
 * begin as NaN: nobody may read the former, or write where nothing belongs. Both sides get the same `out` and logsumexp
 * for the backward pass, so what differs is what a card rounds to bf16 inside: P before P · v, dS before its products,
 * and the results. Each of these is off by at most 2^-8 of itself (bf16 has 8 bits), so that a product is off by 2^-8 of
 * the sum of its terms' magnitudes, which a plain loop computes here (Magnitudes), and its rounded result by twice that.
 * Nothing else of any size happens: fp32 sums of a few hundred terms and ex2.approx are a hundred times more exact. */
#include "../gpu/device.cu"
#include "../gpu/attention.cu"
#include "../gpu/attention_hopper.cu"
#include "gpu_twins.h"
#include "test.h"

static Device *dev;
static cpu::Device *host;

enum { LONGEST = 1024, MOST_SEQUENCES = 6 };

static uint64_t random_state = 1;

static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static float random_number(void)
{
    return round_to_bf16((float)((int)(random_bits() % 2001) - 1000) / 1000);
}

/* transformers' _relative_position_bucket with max_distance 128, as chapter 3 of promot.c has it. */
static int32_t bucket_of(int distance, bool bidirectional, int buckets)
{
    int base = 0, n = distance < 0 ? -distance : 0;
    if (bidirectional) {
        buckets /= 2;
        base = distance > 0 ? buckets : 0;
        n = abs(distance);
    }
    const int exact = buckets / 2;
    if (n < exact) return base + n;
    const int large =
        exact + (int)(logf((float)n / (float)exact) / (float)log(128.0 / exact) * (float)(buckets - exact));
    return base + (large < buckets - 1 ? large : buckets - 1);
}

/* ================================================================================================================
 * Matrices on both sides */
struct Acts {
    size_t n;
    float *host;
    act_t *device;
};

static void acts_send(const Acts *a)
{
    activations_upload(dev, a->device, a->host, a->n);
}

static Acts acts_make(size_t n, bool random)
{
    const Acts a = {n, (float *)malloc(n * sizeof(float)), (act_t *)device_alloc(n * sizeof(act_t))};
    for (size_t i = 0; i < n; i++) a.host[i] = random ? random_number() : NAN;
    acts_send(&a);
    return a;
}

static float *acts_take(const Acts *a)
{
    float *const numbers = (float *)malloc(a->n * sizeof(float));
    activations_download(dev, numbers, a->device, a->n);
    return numbers;
}

static void acts_free(Acts *a)
{
    free(a->host);
    device_free(a->device);
}

static float *host_nan(size_t n)
{
    float *const numbers = (float *)malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) numbers[i] = NAN;
    return numbers;
}

static void *device_from(const void *numbers, size_t bytes)
{
    void *const memory = device_alloc(bytes);
    device_upload(dev, memory, numbers, bytes);
    return memory;
}

static float *stats_take(const stat_t *from, size_t n)
{
    float *const numbers = (float *)malloc(n * sizeof(float));
    stats_download(dev, numbers, from, n);
    return numbers;
}

/* ================================================================================================================
 * One attention, its tensors, and its results */
struct Case {
    const char *name;
    AttentionPath forward, backward; /* the ways it must go on a Hopper card */
    size_t count;
    int query_length[MOST_SEQUENCES], key_length[MOST_SEQUENCES]; /* keys 0: self-attention, q, k, v in one matrix */
    size_t heads, d_kv;
    bool causal, bias;
    float dropout;
    bool shared;
    int gap;           /* rows of nobody before each sequence */
    int buckets = 32;  /* as every T5 has */
    int sharpness = 1; /* of the softmax: queries are so many times as long */
};

struct Problem {
    Case c;
    bool self;
    size_t inner, q_rows, kv_rows, q_stride, kv_stride, buckets;
    int32_t query_start[MOST_SEQUENCES], key_start[MOST_SEQUENCES];
    Acts q, kv, dout; /* self-attention: kv is not used, q holds all */
    float *table;     /* [buckets, heads] */
    int32_t bucket[2 * LONGEST - 1];
    weight_t *dev_table;
    int32_t *dev_bucket, *dev_places; /* starts and lengths, of queries and of keys */
    Attention at;
    cpu::Attention cpu_at;
};

/* Lays out sequences with gaps; returns the number of rows. */
static size_t place_rows(int32_t *start, const int *length, size_t count, int gap)
{
    size_t rows = 0;
    for (size_t b = 0; b < count; b++) {
        rows += gap;
        start[b] = (int32_t)rows;
        rows += length[b];
    }
    return rows + gap;
}

/* Rows of nobody are NaN. */
static void spoil_gaps(Acts *a, size_t width, const int32_t *start, const int *length, size_t count)
{
    const size_t rows = a->n / width;
    for (size_t r = 0; r < rows; r++) {
        bool owned = false;
        for (size_t b = 0; b < count; b++) owned |= (int)r >= start[b] && (int)r < start[b] + length[b];
        for (size_t c = 0; !owned && c < width; c++) a->host[r * width + c] = NAN;
    }
    acts_send(a);
}

static size_t longest_of(const int *length, size_t count)
{
    int longest = 0;
    for (size_t b = 0; b < count; b++) longest = length[b] > longest ? length[b] : longest;
    return (size_t)longest;
}

static void problem_bind(Problem *p)
{
    const Case *c = &p->c;
    const size_t I = p->inner, n = c->count;
    int32_t places[4 * MOST_SEQUENCES];
    for (size_t b = 0; b < n; b++) {
        places[b] = p->query_start[b], places[n + b] = c->query_length[b];
        places[2 * n + b] = p->key_start[b], places[3 * n + b] = c->key_length[b];
    }
    p->dev_places = (int32_t *)device_from(places, 4 * n * sizeof *places);
    p->dev_bucket = (int32_t *)device_from(p->bucket, sizeof p->bucket);
    p->dev_table = weights_alloc(p->buckets * c->heads);
    weights_upload(dev, p->dev_table, p->table, p->buckets * c->heads);

    const act_t *const kv = p->self ? p->q.device + I : p->kv.device;
    const float *const cpu_kv = p->self ? p->q.host + I : p->kv.host;
    const size_t longest_q = longest_of(c->query_length, n), longest_k = longest_of(c->key_length, n);
    p->at = {p->q.device,
             kv,
             kv + I,
             p->q_stride,
             p->kv_stride,
             {p->dev_places, p->dev_places + n, n, p->q_rows, longest_q, 3},
             {p->dev_places + 2 * n, p->dev_places + 3 * n, n, p->kv_rows, longest_k, 3},
             c->heads,
             c->d_kv,
             c->causal,
             c->bias ? p->dev_table : NULL,
             c->bias ? p->dev_bucket + LONGEST - 1 : NULL,
             p->buckets,
             {c->dropout, 99, 7000, c->shared}};
    p->cpu_at = {p->q.host,
                 cpu_kv,
                 cpu_kv + I,
                 p->q_stride,
                 p->kv_stride,
                 {p->query_start, c->query_length, n, p->q_rows, longest_q, 3},
                 {p->key_start, c->key_length, n, p->kv_rows, longest_k, 3},
                 c->heads,
                 c->d_kv,
                 c->causal,
                 c->bias ? p->table : NULL,
                 c->bias ? p->bucket + LONGEST - 1 : NULL,
                 p->buckets,
                 {c->dropout, 99, 7000, c->shared}};
}

static Problem *problem_make(const Case *c)
{
    Problem *const p = new Problem();
    p->c = *c;
    p->self = c->key_length[0] == 0;
    if (p->self) memcpy(p->c.key_length, c->query_length, sizeof p->c.key_length);
    p->inner = c->heads * c->d_kv;
    p->buckets = (size_t)c->buckets;
    p->q_rows = place_rows(p->query_start, p->c.query_length, c->count, c->gap);
    p->kv_rows = place_rows(p->key_start, p->c.key_length, c->count, c->gap);
    p->q_stride = (p->self ? 3 : 1) * p->inner;
    p->kv_stride = (p->self ? 3 : 2) * p->inner;
    p->q = acts_make(p->q_rows * p->q_stride, true);
    for (size_t i = 0; i < p->q.n; i++)
        if (i % p->q_stride < p->inner) p->q.host[i] *= (float)c->sharpness; /* a power of 2: exact */
    spoil_gaps(&p->q, p->q_stride, p->query_start, p->c.query_length, c->count);
    if (!p->self) {
        p->kv = acts_make(p->kv_rows * p->kv_stride, true);
        spoil_gaps(&p->kv, p->kv_stride, p->key_start, p->c.key_length, c->count);
    }
    p->dout = acts_make(p->q_rows * p->inner, true);
    spoil_gaps(&p->dout, p->inner, p->query_start, p->c.query_length, c->count);
    p->table = (float *)malloc(p->buckets * c->heads * sizeof(float));
    for (size_t i = 0; i < p->buckets * c->heads; i++) p->table[i] = 2 * random_number();
    const size_t longest_q = longest_of(p->c.query_length, c->count), longest_k = longest_of(p->c.key_length, c->count);
    const int longest = (int)(longest_q > longest_k ? longest_q : longest_k);
    for (int d = -LONGEST + 1; d < LONGEST; d++) /* a table ends at the longest: who reads on is led astray */
        p->bucket[d + LONGEST - 1] = abs(d) < longest ? bucket_of(d, !c->causal, (int)p->buckets) : 1 << 28;
    problem_bind(p);
    return p;
}

static void problem_unbind(Problem *p)
{
    device_free(p->dev_places);
    device_free(p->dev_bucket);
    weights_free(p->dev_table);
}

static void problem_free(Problem *p)
{
    problem_unbind(p);
    acts_free(&p->q);
    if (!p->self) acts_free(&p->kv);
    acts_free(&p->dout);
    free(p->table);
    delete p;
}

struct Results {
    Acts out, dq, dkv; /* self-attention: dkv is not used */
    stat_t *lse, *dbias;
    float *host_out, *host_lse, *host_dq, *host_dkv, *host_dbias;
};

static size_t lse_size(const Problem *p)
{
    return p->c.heads * p->q_rows;
}

/* in_place: dk and dv take the place of k and v (and, in self-attention, dq lies in a matrix of its own). */
static Results run(const Problem *p, bool backward, bool in_place)
{
    const size_t I = p->inner, buckets = p->buckets * p->c.heads;
    Results r = {};
    float *const zeros = (float *)calloc(buckets, sizeof(float)), *const nan = host_nan(lse_size(p));
    r.out = acts_make(p->q_rows * I, false);
    r.dq = acts_make(p->q.n, false);
    if (!p->self) r.dkv = acts_make(p->kv.n, false);
    r.lse = (stat_t *)device_from(nan, lse_size(p) * sizeof(float));
    r.dbias = (stat_t *)device_from(zeros, buckets * sizeof(float));
    attention_forward(dev, r.out.device, r.lse, &p->at);
    if (backward) {
        Attention at = p->at;
        act_t *dk = p->self ? r.dq.device + I : r.dkv.device;
        if (in_place) { /* the keys lie where their gradients go */
            device_copy(dev, dk - (p->self ? I : 0), p->self ? p->q.device : p->kv.device,
                        (p->self ? p->q.n : p->kv.n) * sizeof(act_t));
            at.k = dk, at.v = dk + I;
        }
        attention_backward(dev, r.dq.device, dk, dk + I, p->c.bias ? r.dbias : NULL, p->dout.device, r.out.device,
                           r.lse, &at);
    }
    r.host_out = acts_take(&r.out);
    r.host_dq = acts_take(&r.dq);
    r.host_dkv = p->self ? NULL : acts_take(&r.dkv);
    r.host_lse = stats_take(r.lse, lse_size(p));
    r.host_dbias = stats_take(r.dbias, buckets);
    free(zeros);
    free(nan);
    return r;
}

static void results_free(Results *r)
{
    acts_free(&r->out);
    acts_free(&r->dq);
    if (r->dkv.host) acts_free(&r->dkv);
    device_free(r->lse);
    device_free(r->dbias);
    free(r->host_out), free(r->host_lse), free(r->host_dq), free(r->host_dkv), free(r->host_dbias);
}

/* ================================================================================================================
 * The bounds: sums of magnitudes, in double, by the plainest loops */
struct Magnitudes {
    float *out, *dq, *dkv, *dbias; /* the layouts of the results; dkv: of self-attention in dq */
};

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static void add_magnitude(float *to, double factor, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] += (float)fabs(factor * from[i]);
}

static Magnitudes magnitudes_of(const Problem *p, const Results *r)
{
    const cpu::Attention *const at = &p->cpu_at;
    const size_t d = at->d_kv, I = p->inner;
    Magnitudes m = {(float *)calloc(p->q_rows * I, 4), (float *)calloc(p->q.n, 4),
                    (float *)calloc(p->self ? 1 : p->kv.n, 4), (float *)calloc(p->buckets * at->heads, 4)};
    const double most = 1 / (1 - at->dropout.rate); /* of dropout's factors: which of them, the twin knows */
    for (size_t b = 0; b < p->c.count; b++)
        for (size_t h = 0; h < at->heads; h++)
            for (int i = 0; i < p->c.query_length[b]; i++)
                for (int j = 0; j < p->c.key_length[b] && (!at->causal || j <= i); j++) {
                    const size_t row = p->query_start[b] + i, key = p->key_start[b] + j, column = h * d;
                    const size_t q_at = row * p->q_stride + column, k_at = key * p->kv_stride + column;
                    const size_t o_at = row * I + column;
                    const float *const go = p->dout.host + o_at;
                    double s = dot(at->q + q_at, at->k + k_at, d);
                    if (at->bias_table) s += at->bias_table[at->bucket[j - i] * at->heads + h];
                    const double prob = exp(s - r->host_lse[h * p->q_rows + row]);
                    const double dp = most * fabs(dot(go, at->v + k_at, d));
                    const double ds = prob * (dp + fabs(dot(go, r->host_out + o_at, d)));
                    float *const dk = p->self ? m.dq + k_at + I : m.dkv + k_at;
                    add_magnitude(m.out + o_at, prob * most, at->v + k_at, d);
                    add_magnitude(m.dq + q_at, ds, at->k + k_at, d);
                    add_magnitude(dk, ds, at->q + q_at, d);
                    add_magnitude(dk + I, prob * most, go, d);
                    if (at->bias_table) m.dbias[at->bucket[j - i] * at->heads + h] += (float)ds;
                }
    return m;
}

static void magnitudes_free(Magnitudes *m)
{
    free(m->out), free(m->dq), free(m->dkv), free(m->dbias);
}

/* NaN where NaN is wanted, and else within relative * magnitude + absolute. */
static void compare(const char *name, const char *what, const float *got, const float *want, const float *magnitude,
                    size_t n, float relative, float absolute)
{
    size_t wrong = 0, first = 0;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        const float bound = (magnitude ? relative * fabsf(magnitude[i]) : 0) + absolute;
        const bool right = isnan(want[i]) ? isnan(got[i]) : fabsf(got[i] - want[i]) <= bound;
        if (!right && !wrong++) first = i;
        if (!isnan(want[i]) && bound > 0) worst = fmax(worst, fabs((double)got[i] - want[i]) / bound);
    }
    CHECK(wrong == 0, "%s, %s: %zu of %zu, first at %zu: got %g, want %g", name, what, wrong, n, first, got[first],
          want[first]);
    if (getenv("SHOW_ERRORS")) fprintf(stderr, "    %-40s %-10s worst %.3f of the bound\n", name, what, worst);
}

static void check_against_twin(const Problem *p, bool backward)
{
    const char *const name = p->c.name;
    const size_t I = p->inner, buckets = p->buckets * p->c.heads;
    Results r = run(p, backward, false);
    float *const out = host_nan(p->q_rows * I), *const lse = host_nan(lse_size(p));
    float *const dq = host_nan(p->q.n), *const dkv = host_nan(p->self ? 1 : p->kv.n);
    float *const dbias = (float *)calloc(buckets, sizeof(float));
    cpu_attention_forward(host, out, lse, &p->cpu_at);
    Magnitudes m = magnitudes_of(p, &r);
    compare(name, "out", r.host_out, out, m.out, p->q_rows * I, 0x1p-7f, 1e-6f);
    /* Up to 100, where a float's last place is 8e-6: some of those, for how wgmma rounds its sums is not documented. */
    compare(name, "logsumexp", r.host_lse, lse, NULL, lse_size(p), 0, 4e-5f);
    if (backward) {
        float *const dk = p->self ? dq + I : dkv;
        cpu_attention_backward(host, dq, dk, dk + I, p->c.bias ? dbias : NULL, p->dout.host, r.host_out, r.host_lse,
                               &p->cpu_at);
        compare(name, "dq", r.host_dq, dq, m.dq, p->q.n, 0x1p-7f, 1e-6f);
        if (!p->self) compare(name, "dkv", r.host_dkv, dkv, m.dkv, p->kv.n, 0x1p-7f, 1e-6f);
        compare(name, "dbias", r.host_dbias, dbias, m.dbias, buckets, 0x1p-8f, 1e-6f);
    }
    magnitudes_free(&m);
    results_free(&r);
    free(out), free(lse), free(dq), free(dkv), free(dbias);
}

/* ================================================================================================================
 * Cases. The three ways differ in what they can do; each has lengths around its tile's edges. */
static const AttentionPath LOOPS = ATTENTION_LOOPS, TILES = ATTENTION_TILES, FEW = ATTENTION_FEW,
                           HOPPER = ATTENTION_HOPPER;

static const Case cases[] = {
    {"loops: tiny, causal, gaps", LOOPS, LOOPS, 3, {3, 1, 7}, {0}, 2, 4, true, true, 0, false, 2},
    {"loops: odd head, dropout", LOOPS, LOOPS, 2, {9, 70}, {0}, 2, 5, false, true, 0.3f, false, 0},
    {"loops: cross, wide head, one mask", LOOPS, LOOPS, 2, {5, 11}, {130, 3}, 1, 136, false, false, 0.2f, true, 1},
    {"tiles: head 8, 70 buckets", TILES, TILES, 2, {65, 20}, {0}, 3, 8, false, true, 0, false, 1, 70},
    {"tiles: head 64, sharp", TILES, TILES, 1, {130}, {0}, 1, 64, true, true, 0.1f, false, 0, 32, 8},
    {"tiles: head 16, causal, dropout", TILES, TILES, 2, {64, 63}, {0}, 2, 16, true, true, 0.25f, false, 0},
    {"tiles: head 64, each probability dropped",
     TILES,
     TILES,
     3,
     {1, 129, 64},
     {0},
     2,
     64,
     false,
     true,
     0.2f,
     false,
     2},
    {"tiles: head 64, causal cross, keys unseen",
     TILES,
     TILES,
     2,
     {17, 9},
     {150, 40},
     1,
     64,
     true,
     true,
     0.1f,
     false,
     0},
    {"tiles: head 128, one mask", TILES, TILES, 2, {70, 12}, {0}, 1, 128, true, true, 0.2f, true, 1},
    {"tiles: head 72, cross", TILES, TILES, 1, {66}, {65}, 2, 72, false, false, 0, false, 0},
    {"few: one query, cross", FEW, TILES, 4, {1, 1, 1, 1}, {1, 15, 16, 300}, 2, 64, false, false, 0, false, 1},
    {"few: four queries", FEW, TILES, 3, {4, 2, 3}, {65, 64, 7}, 2, 64, false, false, 0, false, 0},
    {"few: eight queries, head 128", FEW, TILES, 2, {8, 5}, {33, 90}, 1, 128, false, false, 0, false, 0},
    {"few: five queries with bias", FEW, TILES, 2, {5, 2}, {0}, 2, 64, false, true, 0, false, 0},
    {"few: two queries with bias", FEW, TILES, 1, {2}, {0}, 1, 64, false, true, 0, false, 0},
    {"few: causal self-attention with bias, head 32", FEW, TILES, 2, {8, 1}, {0}, 2, 32, true, true, 0, false, 3},
    {"hopper: whole tiles, 70 buckets", HOPPER, HOPPER, 1, {128}, {0}, 1, 64, false, true, 0, false, 0, 70},
    {"hopper: sharp", HOPPER, HOPPER, 2, {257, 50}, {0}, 1, 64, false, true, 0.1f, true, 0, 32, 8},
    {"hopper: ragged mixture, gaps", HOPPER, HOPPER, 5, {1, 63, 64, 65, 129}, {0}, 2, 64, false, true, 0, false, 3},
    {"hopper: far tiles", HOPPER, HOPPER, 2, {400, 140}, {0}, 1, 64, false, true, 0, false, 0},
    {"hopper: causal, one mask", HOPPER, HOPPER, 3, {300, 128, 33}, {0}, 2, 64, true, true, 0.25f, true, 1},
    {"hopper: cross, one mask", HOPPER, HOPPER, 3, {64, 40, 7}, {200, 129, 128}, 2, 64, false, false, 0.1f, true, 1},
    {"hopper: causal cross, keys unseen", HOPPER, HOPPER, 1, {100}, {290}, 1, 64, true, true, 0, false, 0},
    {"hopper: more queries than keys", HOPPER, HOPPER, 2, {270, 32}, {50, 130}, 1, 64, false, true, 0, false, 0},
};
enum { CASES = sizeof cases / sizeof *cases };

static void open_devices(void)
{
    Error error;
    if (dev) return;
    dev = device_open(1, MATMUL_BF16, &error);
    host = cpu_device_open(1, cpu::MATMUL_FP32, &error);
    if (!dev || !host) {
        fprintf(stderr, "no device\n");
        exit(EXIT_FAILURE);
    }
    dev->sm_count = 3; /* so that a block has several items one after the other, on a large card too */
}

/* The cases of one way. hopper: as on a Hopper card, or as on any other. */
static void check_cases(AttentionPath path, bool hopper)
{
    open_devices();
    const bool is_hopper = dev->hopper;
    if (hopper && !is_hopper) SKIP("this card is no Hopper");
    dev->hopper = hopper;
    for (const Case *c = cases; c < cases + CASES; c++) {
        if (c->forward != path) continue;
        Problem *const p = problem_make(c);
        if (hopper) {
            CHECK(attention_path(&p->at, true, false, true) == c->forward, "%s", c->name);
            CHECK(attention_path(&p->at, true, true, true) == c->backward, "%s", c->name);
        }
        check_against_twin(p, true);
        problem_free(p);
    }
    dev->hopper = is_hopper;
}

static void test_loops(void)
{
    check_cases(LOOPS, false);
}

static void test_tiles(void)
{
    check_cases(TILES, false);
}

static void test_few(void)
{
    check_cases(FEW, false);
}

static void test_hopper(void)
{
    check_cases(HOPPER, true);
}

static void test_hopper_shapes_elsewhere(void) /* on a card that is no Hopper, tiles serve them */
{
    check_cases(HOPPER, false);
}

/* Matrices that do not lie on 16 bytes can only be read number by number. */
static void test_path_of_crooked_pointers(void)
{
    open_devices();
    Problem *const p = problem_make(&cases[CASES - 1]);
    Attention at = p->at;
    CHECK(attention_path(&at, true, true, false) == LOOPS, "another matrix");
    at.k++;
    CHECK(attention_path(&at, true, true, true) == LOOPS, "k");
    at = p->at, at.kv_stride += 4;
    CHECK(attention_path(&at, true, false, true) == LOOPS, "stride");
    problem_free(p);
}

/* ================================================================================================================
 * What must hold for each way, whatever the numbers are */

static bool same_bits(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

static void check_same(const char *name, const Problem *p, const Results *a, const Results *b)
{
    CHECK(same_bits(a->host_out, b->host_out, p->q_rows * p->inner), "%s", name);
    CHECK(same_bits(a->host_lse, b->host_lse, lse_size(p)), "%s", name);
    CHECK(same_bits(a->host_dbias, b->host_dbias, p->buckets * p->c.heads), "%s", name);
}

/* Twice gives the same bits, though the emulator draws another order of threads, and with a block for every item; in
 * place too, except for rows and columns that are nobody's. */
static void test_same_bits(void)
{
    open_devices();
    for (const Case *c = cases; c < cases + CASES; c++) {
        if (c->backward == HOPPER && !dev->hopper) continue;
        Problem *const p = problem_make(c);
        const int sm_count = dev->sm_count;
        Results a = run(p, true, false), b;
        dev->sm_count = 400;
        b = run(p, true, true);
        dev->sm_count = sm_count;
        check_same(c->name, p, &a, &b);
        const float *const one = p->self ? a.host_dq : a.host_dkv, *const other = p->self ? b.host_dq : b.host_dkv;
        size_t different = 0;
        for (size_t i = 0; i < (p->self ? p->q.n : p->kv.n); i++)
            different += !isnan(one[i]) && memcmp(&one[i], &other[i], sizeof(float)) != 0;
        CHECK(different == 0, "%s: in place, %zu numbers differ", c->name, different);
        results_free(&a);
        results_free(&b);
        problem_free(p);
    }
}

/* The softmax does not see a constant: adding one to a head's biases changes nothing but the logsumexp, and dbias sums
 * to 0 over the buckets of a head. A bias of 4 and biases that are multiples of 1/32 have exact sums in bf16. What
 * is left: P and the results are rounded elsewhere in both runs, and D knows `out` only as bf16. */
static void test_constant_bias(void)
{
    open_devices();
    for (const Case *c = cases; c < cases + CASES; c++) {
        if (!c->bias || (c->backward == HOPPER && !dev->hopper)) continue;
        Problem *const p = problem_make(c);
        for (size_t i = 0; i < p->buckets * c->heads; i++) p->table[i] = (float)(random_bits() % 32) / 32;
        problem_unbind(p);
        problem_bind(p);
        Results a = run(p, true, false);
        for (size_t i = 0; i < p->buckets * c->heads; i++) p->table[i] += 4 * (i % c->heads == 0);
        problem_unbind(p);
        problem_bind(p);
        Results b = run(p, true, false);
        Magnitudes m = magnitudes_of(p, &b);
        compare(c->name, "out", b.host_out, a.host_out, m.out, p->q_rows * p->inner, 0x1p-7f, 1e-6f);
        compare(c->name, "dq", b.host_dq, a.host_dq, m.dq, p->q.n, 0x1p-7f, 1e-6f);
        for (size_t h = 0; h < c->heads; h++) {
            double sum = 0, magnitude = 0;
            for (size_t i = h; i < p->buckets * c->heads; i += c->heads)
                sum += a.host_dbias[i], magnitude += m.dbias[i];
            CHECK(fabs(sum) <= 0x1p-8 * magnitude, "%s: dbias of head %zu sums to %g of %g", c->name, h, sum,
                  magnitude);
        }
        magnitudes_free(&m);
        results_free(&a);
        results_free(&b);
        problem_free(p);
    }
}

/* Sequences are independent: the last one first, and all its numbers are the same bits. (dbias is a sum over sequences
 * and masks depend on the number of the sequence, so no dropout here.) */
static void test_permuted(void)
{
    open_devices();
    for (const Case *c = cases; c < cases + CASES; c++) {
        if (c->dropout > 0 || c->count < 2 || (c->backward == HOPPER && !dev->hopper)) continue;
        Problem *const p = problem_make(c);
        Results a = run(p, true, false);
        problem_unbind(p);
        for (size_t b = 0; b < c->count / 2; b++) { /* the rows stay where they are, the sequences change numbers */
            const size_t other = c->count - 1 - b;
            std::swap(p->query_start[b], p->query_start[other]);
            std::swap(p->key_start[b], p->key_start[other]);
            std::swap(p->c.query_length[b], p->c.query_length[other]);
            std::swap(p->c.key_length[b], p->c.key_length[other]);
        }
        problem_bind(p);
        Results b = run(p, true, false);
        CHECK(same_bits(a.host_out, b.host_out, p->q_rows * p->inner), "%s", c->name);
        CHECK(same_bits(a.host_lse, b.host_lse, lse_size(p)), "%s", c->name);
        CHECK(same_bits(a.host_dq, b.host_dq, p->q.n), "%s", c->name);
        if (!p->self) CHECK(same_bits(a.host_dkv, b.host_dkv, p->kv.n), "%s", c->name);
        results_free(&a);
        results_free(&b);
        problem_free(p);
    }
}

/* dbias is added to what is there. */
static void test_dbias_is_added(void)
{
    open_devices();
    Problem *const p = problem_make(&cases[3]);
    Results r = run(p, true, false);
    attention_backward(dev, r.dq.device, r.dq.device + p->inner, r.dq.device + 2 * p->inner, r.dbias, p->dout.device,
                       r.out.device, r.lse, &p->at);
    float *const twice = stats_take(r.dbias, p->buckets * p->c.heads);
    for (size_t i = 0; i < p->buckets * p->c.heads; i++)
        CHECK(twice[i] == 2 * r.host_dbias[i], "%g, %g", twice[i], r.host_dbias[i]);
    free(twice);
    results_free(&r);
    problem_free(p);
}

/* ================================================================================================================
 * The cached step */
enum { BUCKETS = 32 };

static void check_cached(size_t rows, size_t steps, size_t heads, size_t d_kv, bool biased)
{
    const size_t max_steps = steps + 3, capacity = rows + 2, width = heads * d_kv;
    Acts cache = acts_make(steps * capacity * 3 * width, true), out = acts_make(rows * width, false);
    int32_t *const ancestors = (int32_t *)malloc(rows * max_steps * sizeof *ancestors), bucket[2 * LONGEST - 1];
    float *const table = (float *)malloc(BUCKETS * heads * sizeof(float)), *const want = host_nan(rows * width);
    for (size_t i = 0; i < rows * max_steps; i++)
        ancestors[i] = i % max_steps < steps - 1 ? (int32_t)(random_bits() % capacity) : 1 << 30; /* others: not read */
    for (size_t i = 0; i < BUCKETS * heads; i++) table[i] = random_number();
    for (int d = -LONGEST + 1; d < LONGEST; d++) bucket[d + LONGEST - 1] = bucket_of(d, false, BUCKETS);
    int32_t *const dev_ancestors = (int32_t *)device_from(ancestors, rows * max_steps * sizeof *ancestors);
    int32_t *const dev_bucket = (int32_t *)device_from(bucket, sizeof bucket);
    weight_t *const dev_table = weights_alloc(BUCKETS * heads);
    weights_upload(dev, dev_table, table, BUCKETS * heads);
    attention_cached_forward(dev, out.device, cache.device, dev_ancestors, rows, steps, max_steps, capacity, heads,
                             d_kv, biased ? dev_table : NULL, biased ? dev_bucket + LONGEST - 1 : NULL, BUCKETS);
    cpu_attention_cached_forward(host, want, cache.host, ancestors, rows, steps, max_steps, capacity, heads, d_kv,
                                 biased ? table : NULL, biased ? bucket + LONGEST - 1 : NULL, BUCKETS);
    float *const got = acts_take(&out);
    char name[64];
    snprintf(name, sizeof name, "%zu rows, step %zu, head %zu", rows, steps, d_kv);
    compare(name, "cached", got, want, want, rows * width, 0x1p-8f, 1e-5f); /* only the result is rounded */
    free(got), free(ancestors), free(table), free(want);
    device_free(dev_ancestors);
    device_free(dev_bucket);
    weights_free(dev_table);
    acts_free(&cache);
    acts_free(&out);
}

static void test_cached(void)
{
    open_devices();
    check_cached(3, 1, 2, 64, true);
    check_cached(4, 17, 2, 64, true);
    check_cached(2, 130, 1, 64, true);
    check_cached(2, 65, 1, 64, false);
    check_cached(2, 40, 2, 128, true);
    check_cached(2, 9, 3, 24, true);
    check_cached(2, 140, 2, 5, true);
    check_cached(2, 6, 1, 136, false);
}

static const Test tests[] = {
    {"loops", test_loops},
    {"tiles", test_tiles},
    {"few", test_few},
    {"hopper", test_hopper},
    {"hopper_shapes_elsewhere", test_hopper_shapes_elsewhere},
    {"path_of_crooked_pointers", test_path_of_crooked_pointers},
    {"same_bits", test_same_bits},
    {"constant_bias", test_constant_bias},
    {"permuted", test_permuted},
    {"dbias_is_added", test_dbias_is_added},
    {"cached", test_cached},
};

TEST_MAIN(tests)
