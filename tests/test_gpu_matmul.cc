/* test_gpu_matmul.cc: every product of gpu/ beside its CPU twin, on both floors and with every tile.
 *
 * Most numbers are small integers: sums of their products are exact in fp32, in any order, so what comes out must be
 * the twin's number rounded once, bit for bit, and one wrong element anywhere is seen. The MLP's functions are no
 * integers; their bounds are explained where they are used.
 *
 * Which tile a floor takes depends on the number of multiprocessors, so that is varied: with one of them the large tile
 * makes many tiles in turn (the ring's phases go round), with hundreds the small one is taken. A last test checks that
 * all kernels have been run. Without a card the emulator runs them, with one the card does. */
#include "../gpu/device.cu"
#include "../gpu/elementwise.cu"
#include "../gpu/head.cu"
#include "../gpu/matmul.cu"
#include "../gpu/matmul_hopper.cu"
#include "gpu_twins.h"
#include "test.h"

static Device *dev;
static cpu::Device *host;

/* ================================================================================================================
 * Numbers on both sides */

static uint64_t random_state = 1;

static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

enum Kind { INTEGERS, REALS }; /* -3 ... 3; or uniform in -1 ... 1, rounded to bf16 */

static float random_number(Kind kind)
{
    if (kind == INTEGERS) return (float)(random_bits() % 7) - 3;
    return round_to_bf16((float)((int)(random_bits() % 2001) - 1000) / 1000);
}

/* An activation matrix: what the host has, and the device's copy, `shift` numbers into its memory, with a margin behind
 * it that nobody may touch. */
enum { MARGIN = 32 };

struct Acts {
    size_t n, shift;
    float *host;
    act_t *memory, *device;
};

static Acts acts_alloc(size_t n, size_t shift)
{
    Acts a = {n, shift, (float *)malloc(n * sizeof(float)), (act_t *)device_alloc((n + shift + MARGIN) * 2), NULL};
    uint16_t *poison = (uint16_t *)malloc((n + shift + MARGIN) * 2);
    memset(poison, 0xff, (n + shift + MARGIN) * 2);
    device_upload(dev, a.memory, poison, (n + shift + MARGIN) * 2);
    free(poison);
    a.device = a.memory + shift;
    for (size_t i = 0; i < n; i++) a.host[i] = NAN;
    return a;
}

static Acts acts_random(size_t n, Kind kind, size_t shift = 0)
{
    Acts a = acts_alloc(n, shift);
    for (size_t i = 0; i < n; i++) a.host[i] = random_number(kind);
    activations_upload(dev, a.device, a.host, n);
    return a;
}

static void acts_free(Acts *a)
{
    free(a->host);
    device_free(a->memory);
}

struct Weights {
    float *host;
    weight_t *device;
};

static Weights weights_random(size_t n, Kind kind)
{
    Weights w = {(float *)malloc(n * sizeof(float)), weights_alloc(n)};
    for (size_t i = 0; i < n; i++) w.host[i] = random_number(kind);
    weights_upload(dev, w.device, w.host, n);
    return w;
}

static void weights_drop(Weights *w)
{
    free(w->host);
    weights_free(w->device);
}

struct Stats {
    size_t n;
    float *host;
    stat_t *device;
};

static Stats stats_make(size_t n, bool random)
{
    Stats s = {n, (float *)malloc((n + MARGIN) * sizeof(float)), (stat_t *)device_alloc((n + MARGIN) * sizeof(float))};
    for (size_t i = 0; i < n + MARGIN; i++) s.host[i] = random && i < n ? random_number(INTEGERS) : NAN;
    stats_upload(dev, s.device, s.host, n + MARGIN);
    return s;
}

static void stats_free(Stats *s)
{
    free(s->host);
    device_free(s->device);
}

/* The first few differences are told, with their places. */
static void compare(const char *what, const float *got, const float *want, size_t n, size_t width, float relative,
                    float absolute)
{
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        const bool right =
            isnan(want[i]) ? isnan(got[i]) : fabsf(got[i] - want[i]) <= relative * fabsf(want[i]) + absolute;
        if (!right && wrong++ == 0) first = i;
    }
    CHECK(wrong == 0, "%s: %zu of %zu differ, the first at (%zu, %zu): %g, not %g", what, wrong, n, first / width,
          first % width, (double)got[first], (double)want[first]);
}

/* The device's numbers are the host's, and the margin is as it was. exact: the host's, rounded to bf16. */
static void check_acts(const char *what, const Acts *a, size_t width, float relative, float absolute)
{
    float *got = (float *)malloc((a->n + MARGIN) * sizeof(float)), *want = (float *)malloc(a->n * sizeof(float));
    activations_download(dev, got, a->device, a->n + MARGIN);
    for (size_t i = 0; i < a->n; i++)
        want[i] = relative == 0 && !isnan(a->host[i]) ? round_to_bf16(a->host[i]) : a->host[i];
    compare(what, got, want, a->n, width, relative, absolute);
    for (size_t i = a->n; i < a->n + MARGIN; i++) CHECK(isnan(got[i]), "%s: written behind the end", what);
    free(got);
    free(want);
}

static void check_stats(const char *what, const Stats *s, size_t width)
{
    float *got = (float *)malloc((s->n + MARGIN) * sizeof(float));
    stats_download(dev, got, s->device, s->n + MARGIN);
    compare(what, got, s->host, s->n + MARGIN, width, 0, 0);
    free(got);
}

/* ================================================================================================================
 * Floors and tiles */

#ifndef FIRST_FLOOR
#define FIRST_FLOOR 0 /* plain; 1: Hopper */
#endif
static bool has_hopper;
static bool covered[2][3][8][3]; /* floor, layout, epilogue, tile */
static bool went_round[3];       /* layout: one block has filled each stage of Hopper's large tile three times */

/* Notes which kernel a product of this shape takes. */
static void note(MatmulLayout layout, MatmulEpilogue epilogue, size_t m, size_t n, size_t k, size_t layers = 1)
{
    Product p = {};
    p.layout = layout, p.epilogue = epilogue;
    p.m = (uint32_t)m, p.n = (uint32_t)n, p.k = (uint32_t)k;
    p.width_layers = (uint32_t)layers, p.depth_layers = 1;
    p.splits = layout == BACKWARD_WEIGHT ? depth_splits(p.m, p.n, p.k) : 1;
    const bool eights = layout == BACKWARD_WEIGHT ? m % 8 == 0 && n % 8 == 0 : n % 8 == 0 && k % 8 == 0;
    if (dev->hopper && eights) {
        const int tile = matmul_choose_tile(&p, hopper_tiles, 3, (uint32_t)dev->sm_count);
        covered[1][layout][epilogue][tile] = true;
        if (tile == 0 && dev->sm_count == 1)
            went_round[layout] |=
                tile_count(p, HopperLarge::CLUSTER * HopperLarge::M, HopperLarge::N) * depth_blocks(p) >=
                3 * HopperLarge::STAGES;
    } else {
        covered[0][layout][epilogue][matmul_choose_tile(&p, plain_tiles, 2, (uint32_t)dev->sm_count)] = true;
    }
}

static const int multiprocessors[] = {1, 3, 400};

/* Runs a test of one shape on each floor, with few and many multiprocessors. */
template <typename F> static void on_all_floors(F test)
{
    const int sm_count = dev->sm_count;
    for (int floor = FIRST_FLOOR; floor < (has_hopper ? 2 : 1); floor++)
        for (int sms : multiprocessors) {
            dev->hopper = floor == 1;
            dev->sm_count = sms;
            test();
        }
    dev->hopper = has_hopper;
    dev->sm_count = sm_count;
}

struct Shape {
    size_t rows, in, out;
};

/* Edges everywhere; depths of one step, of less, and of more steps than stages; several tiles each way, for the large
 * tile too (328 x 504 x 248). The odd ones cannot use 16-byte copies, or only for one operand. */
static const Shape shapes[] = {
    {1, 8, 8},       {3, 64, 40},   {64, 64, 64},  {65, 72, 136},   {128, 128, 128},
    {130, 200, 264}, {70, 976, 72}, {257, 80, 16}, {128, 64, 256},  {300, 136, 520},
    {5, 7, 3},       {33, 50, 67},  {131, 66, 24}, {328, 504, 248}, {20, 24, 130},
};

/* ================================================================================================================
 * The three layouts */

static void linear_forward_of(Shape s, size_t shift)
{
    Acts x = acts_random(s.rows * s.in, INTEGERS, shift), y = acts_alloc(s.rows * s.out, shift);
    Weights w = weights_random(s.out * s.in, INTEGERS);
    linear_forward(dev, y.device, x.device, w.device, s.rows, s.in, s.out);
    cpu_linear_forward(host, y.host, x.host, w.host, s.rows, s.in, s.out);
    check_acts("y", &y, s.out, 0, 0);
    if (!shift) note(FORWARD, STORE_BF16, s.rows, s.out, s.in);
    acts_free(&x);
    acts_free(&y);
    weights_drop(&w);
}

static void test_linear_forward(void)
{
    for (const Shape &s : shapes) on_all_floors([&] { linear_forward_of(s, 0); });
    on_all_floors([&] { linear_forward_of(shapes[3], 1); }); /* wide enough, but not at a multiple of 16 bytes */
}

static void linear_backward_input_of(Shape s, bool accumulate)
{
    Acts dy = acts_random(s.rows * s.out, INTEGERS);
    Acts dx = accumulate ? acts_random(s.rows * s.in, INTEGERS) : acts_alloc(s.rows * s.in, 0);
    Weights w = weights_random(s.out * s.in, INTEGERS);
    linear_backward_input(dev, dx.device, dy.device, w.device, s.rows, s.in, s.out, accumulate);
    cpu_linear_backward_input(host, dx.host, dy.host, w.host, s.rows, s.in, s.out, accumulate);
    check_acts(accumulate ? "dx (+=)" : "dx (=)", &dx, s.in, 0, 0);
    note(BACKWARD_INPUT, accumulate ? RESIDUAL : STORE_BF16, s.rows, s.in, s.out);
    acts_free(&dy);
    acts_free(&dx);
    weights_drop(&w);
}

static void test_linear_backward_input(void)
{
    for (const Shape &s : shapes)
        on_all_floors([&] {
            linear_backward_input_of(s, false);
            linear_backward_input_of(s, true);
        });
    on_all_floors([&] { linear_backward_input_of({128, 256, 128}, true); });
}

static void linear_backward_weight_of(Shape s, bool accumulate)
{
    Acts dy = acts_random(s.rows * s.out, INTEGERS), x = acts_random(s.rows * s.in, INTEGERS);
    Stats dw = stats_make(s.out * s.in, accumulate);
    linear_backward_weight(dev, dw.device, dy.device, x.device, s.rows, s.in, s.out, accumulate);
    cpu_linear_backward_weight(host, dw.host, dy.host, x.host, s.rows, s.in, s.out, accumulate);
    check_stats(accumulate ? "dw (+=)" : "dw (=)", &dw, s.in);
    note(BACKWARD_WEIGHT, STORE_FP32, s.out, s.in, s.rows);
    acts_free(&dy);
    acts_free(&x);
    stats_free(&dw);
}

static void test_linear_backward_weight(void)
{
    for (const Shape &s : shapes)
        on_all_floors([&] {
            linear_backward_weight_of(s, false);
            linear_backward_weight_of(s, true);
        });
    on_all_floors([&] { linear_backward_weight_of({100, 256, 128}, true); });
}

/* A deep product with few tiles is cut: 2 parts, the second one shorter; 3 parts; and one of odd sides. */
static void test_split_depth(void)
{
    CHECK(depth_splits(24, 40, 1100) == 2, "the test below is of two parts");
    for (const Shape &s : {Shape{1100, 40, 24}, Shape{1570, 136, 136}, Shape{1030, 9, 11}})
        on_all_floors([&] {
            linear_backward_weight_of(s, false);
            linear_backward_weight_of(s, true);
        });
}

/* ================================================================================================================
 * Several layers */

static void layers_of(Shape s, size_t layers)
{
    const size_t w_stride = s.out * s.in + 24, y_stride = s.rows * s.out + 16;
    Acts x = acts_random(s.rows * s.in, INTEGERS), y = acts_alloc((layers - 1) * y_stride + s.rows * s.out, 0);
    Acts dy = acts_random(layers * y_stride, INTEGERS), dx = acts_alloc(s.rows * s.in, 0);
    Weights w = weights_random(layers * w_stride, INTEGERS);
    linear_forward_layers(dev, y.device, x.device, w.device, s.rows, s.in, s.out, layers, w_stride, y_stride);
    cpu_linear_forward_layers(host, y.host, x.host, w.host, s.rows, s.in, s.out, layers, w_stride, y_stride);
    check_acts("y of all layers", &y, s.out, 0, 0); /* between the layers: NaN as before */
    note(FORWARD, STORE_BF16, s.rows, s.out, s.in, layers);
    linear_backward_input_layers(dev, dx.device, dy.device, w.device, s.rows, s.in, s.out, layers, w_stride, y_stride);
    cpu_linear_backward_input_layers(host, dx.host, dy.host, w.host, s.rows, s.in, s.out, layers, w_stride, y_stride);
    check_acts("dx of all layers", &dx, s.in, 0, 0);
    acts_free(&x);
    acts_free(&y);
    acts_free(&dy);
    acts_free(&dx);
    weights_drop(&w);
}

static void test_layers(void)
{
    on_all_floors([&] {
        layers_of({70, 72, 40}, 3);
        layers_of({20, 64, 136}, 2);
        layers_of({30, 13, 21}, 3);
        layers_of({140, 80, 264}, 2);
        layers_of({130, 72, 128}, 3); /* whole steps: the next layer begins where the last one ends */
    });
}

static void test_head_forward(void)
{
    for (const Shape &s : shapes)
        on_all_floors([&] {
            Acts x = acts_random(s.rows * s.in, INTEGERS);
            Weights w = weights_random(s.out * s.in, INTEGERS);
            Stats logits = stats_make(s.rows * s.out, false);
            head_forward(dev, logits.device, x.device, w.device, s.rows, s.in, s.out);
            cpu_head_forward(host, logits.host, x.host, w.host, s.rows, s.in, s.out);
            check_stats("logits", &logits, s.out);
            note(FORWARD, STORE_FP32, s.rows, s.out, s.in);
            acts_free(&x);
            weights_drop(&w);
            stats_free(&logits);
        });
}

/* The best words of rows of x, as the device has them. */
struct BestWords {
    Stats logits, logp;
    int32_t *word; /* host */
};

static BestWords best_words_of(const act_t *x, const weight_t *w, Shape s, size_t k)
{
    const size_t groups = s.rows * word_groups(s.out) * sizeof(WordGroup), margin = MARGIN * sizeof(float);
    BestWords b = {stats_make(s.rows * s.out, false), stats_make(s.rows * k, false),
                   (int32_t *)malloc(s.rows * k * sizeof *b.word)};
    int32_t *word = (int32_t *)device_alloc(s.rows * k * sizeof *word);
    char *behind = (char *)device_scratch(dev, groups + margin) + groups, *got = (char *)malloc(margin);
    device_upload(dev, behind, b.logp.host, margin); /* NaN */
    head_top_log_probabilities(dev, b.logp.device, word, b.logits.device, x, w, s.rows, s.in, s.out, k);
    device_download(dev, b.word, word, s.rows * k * sizeof *word);
    device_download(dev, got, behind, margin);
    CHECK(memcmp(got, b.logp.host, margin) == 0, "groups: written behind the end");
    device_free(word);
    free(got);
    return b;
}

static void best_words_free(BestWords *b)
{
    stats_free(&b->logits);
    stats_free(&b->logp);
    free(b->word);
}

/* Integers are mostly equal to others, so the order of equals is seen. logp: as in test_gpu_head. */
static void head_top_of(Shape s, size_t k)
{
    Acts x = acts_random(s.rows * s.in, INTEGERS);
    Weights w = weights_random(s.out * s.in, INTEGERS);
    BestWords b = best_words_of(x.device, w.device, s, k);
    int32_t *word = (int32_t *)malloc(s.rows * k * sizeof *word);
    float *logp = (float *)malloc(s.rows * k * sizeof *logp), largest = 0;
    cpu_head_top_log_probabilities(host, b.logp.host, word, b.logits.host, x.host, w.host, s.rows, s.in, s.out, k);
    check_stats("logits", &b.logits, s.out);
    stats_download(dev, logp, b.logp.device, s.rows * k);
    for (size_t i = 0; i < b.logits.n; i++) largest = fmaxf(largest, fabsf(b.logits.host[i]));
    compare("logp", logp, b.logp.host, s.rows * k, k, 1e-6f, 2e-6f + 0x1p-26f * largest);
    CHECK(memcmp(b.word, word, s.rows * k * sizeof *word) == 0, "%zu x %zu -> %zu: other words", s.rows, s.in, s.out);
    note(FORWARD, WORD_GROUPS, s.rows, s.out, s.in);
    acts_free(&x);
    weights_drop(&w);
    best_words_free(&b);
    free(word);
    free(logp);
}

static void test_head_top_log_probabilities(void)
{
    for (const Shape &s : shapes) on_all_floors([&] { head_top_of(s, 2); });
}

/* ================================================================================================================
 * Products with an epilogue
 *
 * Rows before, between and behind the sequences belong to nobody and must stay as they are: NaN. */
enum { SEQUENCES = 4 };

struct Packed {
    int32_t places[2 * SEQUENCES];
    int32_t *memory;
    Sequences device;
    cpu::Sequences host;
};

static Packed pack(size_t rows)
{
    const int32_t quarter = (int32_t)rows / 4;
    Packed p = {{2, 2 + quarter, 5 + quarter, 5 + 3 * quarter, quarter, 1, 2 * quarter - 3, quarter - 7}, NULL, {}, {}};
    p.memory = (int32_t *)device_alloc(sizeof p.places);
    device_upload(dev, p.memory, p.places, sizeof p.places);
    p.device.start = p.memory;
    p.device.length = p.memory + SEQUENCES;
    p.device.count = SEQUENCES;
    p.device.rows = rows;
    p.device.longest = 2 * quarter;
    p.device.first_example = 5;
    return p;
}

/* The twin's view; made late, for a Packed must not move afterwards. */
static const cpu::Sequences *of_host(Packed *p)
{
    p->host = {p->places, p->places + SEQUENCES, SEQUENCES, p->device.rows, p->device.longest, p->device.first_example};
    return &p->host;
}

struct Dropping {
    const char *name;
    float rate;
    bool shared;
};

/* Half: factors 0 and 2, so integers stay exact. */
static const Dropping droppings[] = {{"none", 0, false}, {"shared", 0.5f, true}, {"each", 0.5f, false}};

static void residual_of(Shape s, const Dropping *dropping, bool in_place)
{
    Packed packed = pack(s.rows);
    const Dropout dropout = {dropping->rate, 0x123456789abcdefu, 77, dropping->shared};
    const cpu::Dropout cpu_dropout = {dropping->rate, 0x123456789abcdefu, 77, dropping->shared};
    Acts y = acts_random(s.rows * s.in, INTEGERS), x = acts_random(s.rows * s.out, INTEGERS);
    Acts out = acts_alloc(s.rows * s.out, 0), scratch = acts_alloc(s.rows * s.out, 0);
    Weights w = weights_random(s.out * s.in, INTEGERS);
    Acts *to = in_place ? &x : &out;
    linear_residual_forward(dev, to->device, x.device, y.device, w.device, scratch.device, &packed.device, s.in, s.out,
                            &dropout);
    cpu_linear_residual_forward(host, to->host, x.host, y.host, w.host, scratch.host, of_host(&packed), s.in, s.out,
                                &cpu_dropout);
    /* A mask for each element: the product is rounded to bf16 on its way, 2^-8 of it, which is at most twice the
     * sum. */
    check_acts(dropping->name, to, s.out, dropping->rate > 0 && !dropping->shared ? 0x1p-7f : 0,
               dropping->rate > 0 && !dropping->shared ? 0.25f : 0);
    if (dropping->rate == 0 || dropping->shared) note(FORWARD, RESIDUAL, s.rows, s.out, s.in);
    acts_free(&y);
    acts_free(&x);
    acts_free(&out);
    acts_free(&scratch);
    weights_drop(&w);
    device_free(packed.memory);
}

static void test_linear_residual_forward(void)
{
    for (const Shape &s : {Shape{40, 64, 64}, Shape{129, 72, 136}, Shape{128, 136, 256}, Shape{40, 30, 45}})
        for (const Dropping &dropping : droppings)
            on_all_floors([&] {
                residual_of(s, &dropping, false);
                residual_of(s, &dropping, true);
            });
    on_all_floors([&] { residual_of({328, 504, 248}, &droppings[1], false); });
}

/* Sums of k products of numbers below 1 in size differ between the floors by less than k 2^-22; w is scaled so that the
 * sums stay near 1. */
static Weights weights_scaled(size_t n, float scale)
{
    Weights w = weights_random(n, REALS);
    for (size_t i = 0; i < n; i++) w.host[i] = round_to_bf16(w.host[i] * scale);
    weights_upload(dev, w.device, w.host, n);
    return w;
}

static void mlp_of(Shape s, MlpKind kind, const Dropping *dropping, bool h_again)
{
    const size_t F = s.out, width = kind == MLP_GATED_GELU ? 2 * F : F;
    const cpu::MlpKind cpu_kind = kind == MLP_GATED_GELU ? cpu::MLP_GATED_GELU : cpu::MLP_RELU;
    Packed packed = pack(s.rows);
    const Dropout dropout = {dropping->rate, 42, 9, dropping->shared};
    const cpu::Dropout cpu_dropout = {dropping->rate, 42, 9, dropping->shared};
    Acts x = acts_random(s.rows * s.in, REALS), a = acts_alloc(s.rows * width, 0), h = acts_alloc(s.rows * F, 0);
    Weights w = weights_scaled(width * s.in, 4 / sqrtf((float)s.in));
    linear_mlp_forward(dev, kind, h.device, a.device, x.device, w.device, &packed.device, s.in, F, &dropout);
    cpu_linear_mlp_forward(host, cpu_kind, h.host, a.host, x.host, w.host, of_host(&packed), s.in, F, &cpu_dropout);
    /* a is rounded once. h is made from that, |dh/da| a few times |h| at most, doubled by dropout, and rounded
     * again. */
    check_acts("a", &a, width, 0x1p-8f, (float)s.in * 0x1p-22f);
    check_acts("h", &h, F, 0x1p-5f, 0x1p-5f);
    if (dropping->rate == 0 || dropping->shared) note(FORWARD, kind == MLP_GATED_GELU ? GELU : RELU, s.rows, F, s.in);

    /* Backward from what the device itself has kept, so that both sides start from the same a. */
    Acts dy = acts_random(s.rows * s.in, REALS), dh = acts_alloc(s.rows * F, 0), da = acts_alloc(s.rows * width, 0);
    Acts again = acts_alloc(s.rows * F, 0);
    Weights wo = weights_scaled(s.in * F, 4 / sqrtf((float)s.in));
    activations_download(dev, a.host, a.device, a.n);
    linear_mlp_backward(dev, kind, da.device, dh.device, h_again ? again.device : NULL, dy.device, wo.device, a.device,
                        &packed.device, s.in, F, &dropout);
    cpu_linear_mlp_backward(host, cpu_kind, da.host, dh.host, h_again ? again.host : NULL, dy.host, wo.host, a.host,
                            of_host(&packed), s.in, F, &cpu_dropout);
    /* dh in fp32, or rounded to bf16 where the element-wise kernel follows; then one rounding. */
    check_acts("da", &da, width, 0x1p-6f, 0x1p-12f);
    check_acts("h again", &again, F, 0x1p-8f, 0x1p-16f);
    if (h_again) activations_download(dev, again.host, h.device, h.n);
    if (h_again) check_acts("h again, like the first one", &again, F, 0, 0);
    if (dropping->rate == 0 || dropping->shared)
        note(BACKWARD_INPUT, kind == MLP_GATED_GELU ? GELU_BACKWARD : RELU_BACKWARD, s.rows, F, s.in);
    for (Acts *p : {&x, &a, &h, &dy, &dh, &da, &again}) acts_free(p);
    weights_drop(&w);
    weights_drop(&wo);
    device_free(packed.memory);
}

static void test_linear_mlp(void)
{
    for (const Shape &s : {Shape{40, 64, 64}, Shape{129, 72, 136}, Shape{128, 64, 256}, Shape{128, 64, 128},
                           Shape{128, 72, 72}, Shape{40, 30, 45}})
        for (MlpKind kind : {MLP_GATED_GELU, MLP_RELU})
            for (const Dropping &dropping : droppings)
                on_all_floors([&] { mlp_of(s, kind, &dropping, dropping.rate > 0 || s.rows > 100); });
    on_all_floors([&] { mlp_of({328, 504, 248}, MLP_GATED_GELU, &droppings[1], true); });
}

/* ================================================================================================================
 * Bits */

/* A row of y has the same bits however many rows there are, though other tiles make it. */
static void test_row_bits(void)
{
    const Shape s = {300, 328, 264};
    on_all_floors([&] {
        Acts x = acts_random(s.rows * s.in, REALS), all = acts_alloc(s.rows * s.out, 0);
        Weights w = weights_random(s.out * s.in, REALS);
        linear_forward(dev, all.device, x.device, w.device, s.rows, s.in, s.out);
        activations_download(dev, all.host, all.device, all.n);
        for (size_t rows : {1, 3, 64, 65, 128, 200}) {
            const size_t first = s.rows - rows;
            Acts some = acts_alloc(rows * s.out, 0);
            linear_forward(dev, some.device, x.device + first * s.in, w.device, rows, s.in, s.out);
            memcpy(some.host, all.host + first * s.out, some.n * sizeof *some.host);
            check_acts("the same rows", &some, s.out, 0, 0);
            acts_free(&some);
        }
        acts_free(&x);
        acts_free(&all);
        weights_drop(&w);
    });
}

/* So have its best words, and once more when they are asked for again. */
static void test_best_words_bits(void)
{
    const Shape s = {200, 72, 328};
    const size_t k = 2;
    on_all_floors([&] {
        Acts x = acts_random(s.rows * s.in, REALS);
        Weights w = weights_random(s.out * s.in, REALS);
        BestWords all = best_words_of(x.device, w.device, s, k);
        stats_download(dev, all.logits.host, all.logits.device, all.logits.n);
        stats_download(dev, all.logp.host, all.logp.device, all.logp.n);
        for (size_t rows : {1, 64, 129, 200}) {
            const size_t first = s.rows - rows;
            BestWords some = best_words_of(x.device + first * s.in, w.device, {rows, s.in, s.out}, k);
            memcpy(some.logits.host, all.logits.host + first * s.out, some.logits.n * sizeof *some.logits.host);
            memcpy(some.logp.host, all.logp.host + first * k, some.logp.n * sizeof *some.logp.host);
            check_stats("logits of the same rows", &some.logits, s.out);
            check_stats("logp of the same rows", &some.logp, k);
            CHECK(memcmp(some.word, all.word + first * k, rows * k * sizeof *some.word) == 0, "%zu rows: words", rows);
            best_words_free(&some);
        }
        acts_free(&x);
        weights_drop(&w);
        best_words_free(&all);
    });
}

/* ================================================================================================================
 * The host's choices */

static Product shape_only(size_t m, size_t n, size_t k, size_t width_layers, size_t depth_layers, size_t splits)
{
    Product p = {};
    p.m = (uint32_t)m, p.n = (uint32_t)n, p.k = (uint32_t)k;
    p.width_layers = (uint32_t)width_layers, p.depth_layers = (uint32_t)depth_layers, p.splits = (uint32_t)splits;
    return p;
}

/* Every tile of every layer is made once for each part of the depth, and the parts are the whole depth. */
static void check_tile_order(const Product &p, uint32_t tile_rows, uint32_t tile_columns)
{
    const uint32_t down = ceil_div(p.m, tile_rows), across = ceil_div(p.n, tile_columns);
    const uint32_t count = tile_count(p, tile_rows, tile_columns);
    const uint32_t blocks = depth_blocks(p) * p.depth_layers;
    uint32_t *seen = (uint32_t *)calloc((size_t)down * across * p.width_layers, sizeof *seen);
    CHECK(count == down * across * p.width_layers * p.splits, "%u tiles", count);
    for (uint32_t i = 0; i < count; i++) {
        const ProductTile t = tile_place(p, i, tile_rows, tile_columns);
        const bool inside = t.row < p.m && t.column < p.n && t.layer < p.width_layers && t.split < p.splits &&
                            t.row % tile_rows == 0 && t.column % tile_columns == 0;
        CHECK(inside, "tile %u is at (%u, %u) of layer %u", i, t.row, t.column, t.layer);
        if (!inside) break;
        CHECK(t.first_block < t.end_block && (t.split > 0 || t.first_block == 0) &&
                  (t.split < p.splits - 1 || t.end_block == blocks),
              "part %u is %u ... %u", t.split, t.first_block, t.end_block);
        uint32_t *tile = &seen[(t.layer * down + t.row / tile_rows) * across + t.column / tile_columns];
        CHECK(*tile == t.first_block, "part %u begins at %u, not where the one before ends, %u", t.split, t.first_block,
              *tile);
        *tile = t.end_block;
    }
    for (uint32_t i = 0; i < down * across * p.width_layers; i++)
        CHECK(seen[i] == blocks, "tile %u: %u steps", i, seen[i]);
    free(seen);
}

static void test_tile_order(void)
{
    for (size_t m : {1, 64, 65, 127, 2048, 2049, 5000})
        for (size_t n : {1, 256, 300, 1100})
            for (size_t layers : {1, 3}) {
                check_tile_order(shape_only(m, n, 100, layers, 1, 1), 128, 256);
                check_tile_order(shape_only(m, n, 100, 1, layers, 1), 64, 64);
            }
    for (size_t m : {8, 128, 512, 700})
        for (size_t n : {8, 512, 1024})
            for (size_t k : {1, 512, 1023, 1024, 1100, 4096, 39168, 65537}) {
                const uint32_t splits = depth_splits((uint32_t)m, (uint32_t)n, (uint32_t)k);
                check_tile_order(shape_only(m, n, k, 1, 1, splits), 128, 128);
            }
}

/* What a large model's products take: the large tile in training, the small one for a few rows, whatever is between. */
static void test_choices(void)
{
    const struct {
        size_t m, n, k, tile;
    } expected[] = {{39168, 12288, 4096, 0}, {39168, 4096, 10240, 0}, {4096, 4096, 4096, 0}, {4096, 250112, 4096, 0},
                    {20480, 4096, 39168, 0}, {64, 12288, 4096, 2},    {4, 4096, 4096, 2},    {256, 4096, 4096, 1},
                    {1, 250112, 4096, 2},    {64, 4096, 4096, 2}};
    for (const auto &e : expected) {
        const Product p = shape_only(e.m, e.n, e.k, 1, 1, 1);
        const int tile = matmul_choose_tile(&p, hopper_tiles, 3, 132);
        CHECK(tile == (int)e.tile, "%zu x %zu x %zu takes tile %d, not %zu", e.m, e.n, e.k, tile, e.tile);
    }
    CHECK(depth_splits(512, 1024, 39168) == 4 && depth_splits(4096, 4096, 39168) == 1 && depth_splits(64, 64, 300) == 1,
          "parts of the depth");
    Product p = shape_only(1, 64, 64, 1, 1, 1);
    p.a = {(const bf16_t *)256, 64, 0}, p.b = {(const bf16_t *)512, 64, 12}, p.c.vectors = true;
    CHECK(matmul_hopper_serves(&p), "aligned");
    p.m = 70000;
    CHECK(matmul_hopper_serves(&p), "the number of rows says nothing");
    p.width_layers = 2;
    CHECK(!matmul_hopper_serves(&p), "layers 24 bytes off");
    p.width_layers = 1, p.a.stride = 63;
    CHECK(!matmul_hopper_serves(&p), "odd rows");
    p.a.stride = 64, p.a.data++;
    CHECK(!matmul_hopper_serves(&p), "an odd address");
}

static void test_all_kernels_ran(void)
{
    for (int layout = 0; layout < 3 && has_hopper; layout++)
        CHECK(went_round[layout], "layout %d: the ring has not gone round", layout);
    for (int floor = FIRST_FLOOR; floor < (has_hopper ? 2 : 1); floor++)
        for (int tile = 0; tile < 2 + floor; tile++) {
#define KIND(layout, epilogue)                                                                                         \
    CHECK(covered[floor][layout][epilogue][tile], "%s, " #layout ", " #epilogue ": tile %d",                           \
          floor ? "hopper" : "plain", tile);
            MATMUL_KINDS(KIND)
#undef KIND
        }
}

static const Test tests[] = {
    {"linear_forward", test_linear_forward},
    {"linear_backward_input", test_linear_backward_input},
    {"linear_backward_weight", test_linear_backward_weight},
    {"split_depth", test_split_depth},
    {"layers", test_layers},
    {"head_forward", test_head_forward},
    {"head_top_log_probabilities", test_head_top_log_probabilities},
    {"linear_residual_forward", test_linear_residual_forward},
    {"linear_mlp", test_linear_mlp},
    {"row_bits", test_row_bits},
    {"best_words_bits", test_best_words_bits},
    {"tile_order", test_tile_order},
    {"choices", test_choices},
    {"all_kernels_ran", test_all_kernels_ran},
};

int main(int argc, char **argv)
{
    Error error = {};
    dev = device_open(0, MATMUL_BF16, &error);
    host = cpu_device_open(1, cpu::MATMUL_FP32, &error);
    if (!dev || !host) {
        fprintf(stderr, "no device\n");
        return 1;
    }
    has_hopper = dev->hopper;
    const int status = test_run(__FILE__, tests, sizeof tests / sizeof *tests, argc, argv);
    cpu_device_close(host);
    device_close(dev);
    return status;
}
