/* Tests of gpu/elementwise.cu: each kernel against its CPU twin. */
#include "../gpu/device.cu"
#include "../gpu/elementwise.cu"
#include "gpu_bandwidth.h"

/* One column, less than a vector, odd, whole vectors, more than a block's 1024, and whole vectors beyond that. */
static const size_t widths[] = {1, 7, 33, 130, 256, 1029, 1160};

static void test_embedding_forward()
{
    open_devices();
    for (size_t width : widths)
        for (size_t rows : {1, 5, 9}) {
            const Floats table = random_floats(11 * width, 1), prompts = random_floats(3 * width, 1);
            Ints ids(rows);
            for (int32_t &id : ids) id = (int32_t)random_below(14) - 3;
            ids[rows - 1] = -3;
            Floats want(rows * width);
            const Weights device_table(table), device_prompts(prompts);
            const Acts out(rows * width);
            cpu_embedding_forward(host, want.data(), upper_halves(table).data(), upper_halves(prompts).data(),
                                  ids.data(), rows, width);
            embedding_forward(dev, out, device_table, device_prompts, IntArray(ids), rows, width);
            CHECK(same_bits(out.read(), want), "width %zu, rows %zu", width, rows);
        }
}

/* Lists of none, one, two and more rows than are loaded together. The sums are fp32, in the list's order: same bits. */
static void test_embedding_backward()
{
    const size_t targets = 6, rows = 40;
    const Ints lengths = {1, 0, 2, 21, 8, 1};
    open_devices();
    for (size_t width : widths) {
        Ints first(1), source;
        for (int32_t n : lengths) {
            for (int32_t i = 0; i < n; i++) source.push_back((int32_t)random_below(rows));
            first.push_back((int32_t)source.size());
        }
        const Floats dout = rounded(random_floats(rows * width, 1)), before = random_floats(targets * width, 1);
        Floats want = before;
        const Stats dtable(before);
        cpu_embedding_backward(host, want.data(), dout.data(), first.data(), source.data(), targets, width);
        embedding_backward(dev, dtable, Acts(dout), IntArray(first), IntArray(source), targets, width);
        CHECK(same_bits(dtable.read(), want), "width %zu", width);
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Everything with dropout: sequences of one row, of more than a piece, with gaps; masks shared and not. */
static const Ints lengths = {1, 17, 4, 33};

struct DropoutCase {
    float rate;
    bool shared;
};

static const DropoutCase dropout_cases[] = {{0, false}, {0.1f, true}, {0.5f, false}, {1, true}};

static Dropout device_dropout(DropoutCase c)
{
    return Dropout{c.rate, 0x123456789abcdefu, 77, c.shared};
}

static cpu::Dropout host_dropout(DropoutCase c)
{
    return cpu::Dropout{c.rate, 0x123456789abcdefu, 77, c.shared};
}

/* Did the rows between sequences keep what they had? */
static bool gaps_are_untouched(const PackedSequences &s, const Floats &got, const Floats &before, size_t width)
{
    std::vector<bool> owned(s.rows);
    for (size_t b = 0; b < s.start.size(); b++)
        for (int32_t i = 0; i < s.length[b]; i++) owned[(size_t)(s.start[b] + i)] = true;
    for (size_t i = 0; i < got.size(); i++)
        if (!owned[i / width] && bits_of(got[i]) != bits_of(before[i])) return false;
    return true;
}

/* The product is rounded once, to bf16, and so exact but for that; the sum is fp32's to 2^-23 of its terms. */
static void test_residual()
{
    open_devices();
    for (size_t width : widths)
        for (DropoutCase c : dropout_cases) {
            const PackedSequences s(lengths, true);
            const Sequences on_device = s.on_device(5);
            const cpu::Sequences on_host = s.on_host(5);
            const Dropout d = device_dropout(c);
            const cpu::Dropout e = host_dropout(c);
            const size_t n = s.rows * width;
            const Floats x = rounded(random_floats(n, 1)), branch = rounded(random_floats(n, 1));
            const Acts sum(x), dropped(branch), backward(x);
            Floats want = x, want_dropped = branch, want_backward = x;
            cpu_residual_forward(host, want.data(), want.data(), branch.data(), &on_host, width, &e);
            cpu_dropout_forward(host, want_dropped.data(), &on_host, width, &e);
            cpu_residual_backward(host, want_backward.data(), branch.data(), &on_host, width, &e);
            residual_forward(dev, sum, sum, Acts(branch), &on_device, width, &d);
            dropout_forward(dev, dropped, &on_device, width, &d);
            residual_backward(dev, backward, Acts(branch), &on_device, width, &d);
            CHECK(are_close(sum.read(), want, HALF_ULP_BF16, 1e-6f), "width %zu, rate %g", width, c.rate);
            CHECK(same_bits(dropped.read(), rounded(want_dropped)), "width %zu, rate %g", width, c.rate);
            CHECK(same_bits(backward.read(), rounded(want_backward)), "width %zu, rate %g", width, c.rate);
            CHECK(gaps_are_untouched(s, sum.read(), x, width));
            CHECK(gaps_are_untouched(s, backward.read(), x, width));
        }
}

/* Which columns are dropped, told from ones: the same bits of Philox as on the CPU, at places that matter: another
 * example, row, site, key, the second piece of rows and of columns. */
static void test_dropout_bits()
{
    const size_t width = 1040;
    const Ints one_of_each = {20, 35};
    open_devices();
    for (bool shared : {false, true})
        for (size_t example : {0, 9}) {
            const PackedSequences s(one_of_each, false);
            const Sequences on_device = s.on_device(example);
            const cpu::Sequences on_host = s.on_host(example);
            const Dropout d = {0.25f, 42 + example, 3, shared};
            const cpu::Dropout e = {0.25f, 42 + example, 3, shared};
            Floats want(s.rows * width, 1);
            const Acts got(want);
            dropout_forward(dev, got, &on_device, width, &d);
            cpu_dropout_forward(host, want.data(), &on_host, width, &e);
            size_t kept = 0;
            for (float x : want) kept += x != 0;
            CHECK(same_bits(got.read(), rounded(want)), "shared %d, example %zu", shared, example);
            CHECK(kept > want.size() * 7 / 10 && kept < want.size() * 8 / 10);
        }
}

/* ----------------------------------------------------------------------------------------------------------------
 * The middle of the MLP. The result is rounded once; before that, the approximate 2^x and reciprocal and the CPU's
 * polynomial leave about 1e-6 of each factor. */
static void check_mlp(MlpKind kind, size_t d_ff, DropoutCase c)
{
    const PackedSequences s(lengths, true);
    const Sequences on_device = s.on_device(2);
    const cpu::Sequences on_host = s.on_host(2);
    const Dropout d = device_dropout(c);
    const cpu::Dropout e = host_dropout(c);
    const size_t wide = (kind == MLP_RELU ? 1 : 2) * d_ff;
    const Floats a = rounded(random_floats(s.rows * wide, 1.5f)), dh = rounded(random_floats(s.rows * d_ff, 1));
    const Floats h_before = rounded(random_floats(s.rows * d_ff, 1)),
                 da_before = rounded(random_floats(s.rows * wide, 1));
    Floats want_h = h_before, want_da = da_before;
    const Acts device_a(a), h(h_before), da(da_before);
    cpu_mlp_activation_forward(host, (cpu::MlpKind)kind, want_h.data(), a.data(), &on_host, d_ff, &e);
    cpu_mlp_activation_backward(host, (cpu::MlpKind)kind, want_da.data(), dh.data(), a.data(), &on_host, d_ff, &e);
    mlp_activation_forward(dev, kind, h, device_a, &on_device, d_ff, &d);
    mlp_activation_backward(dev, kind, da, Acts(dh), device_a, &on_device, d_ff, &d);
    CHECK(are_close(h.read(), want_h, HALF_ULP_BF16, 2e-6f), "kind %d, d_ff %zu, rate %g", kind, d_ff, c.rate);
    CHECK(are_close(da.read(), want_da, HALF_ULP_BF16, 1e-5f), "kind %d, d_ff %zu, rate %g", kind, d_ff, c.rate);
    CHECK(gaps_are_untouched(s, h.read(), h_before, d_ff));
    CHECK(gaps_are_untouched(s, da.read(), da_before, wide));
}

static void test_mlp()
{
    open_devices();
    for (MlpKind kind : {MLP_GATED_GELU, MLP_RELU})
        for (size_t d_ff : widths)
            for (DropoutCase c : dropout_cases) check_mlp(kind, d_ff, c);
}

/* Every bf16 there is as the gate. Infinities and NaN must come out as they do on the CPU; where the gate's exponential
 * leaves the range of fp32, below -9, gelu is smaller than 1e-20 and may be 0. */
static void test_gelu_of_every_number()
{
    const size_t rows = 16, d_ff = 4096;
    const PackedSequences s(Ints(1, (int32_t)rows), false);
    const Sequences on_device = s.on_device(0);
    const cpu::Sequences on_host = s.on_host(0);
    const Dropout d = {};
    const cpu::Dropout e = {};
    open_devices();
    Floats a(rows * 2 * d_ff), want(rows * d_ff);
    for (size_t i = 0; i < rows * d_ff; i++) {
        a[i / d_ff * 2 * d_ff + i % d_ff] = float_of((uint32_t)i << 16);
        a[i / d_ff * 2 * d_ff + d_ff + i % d_ff] = 1;
    }
    const Acts h(rows * d_ff);
    cpu_mlp_activation_forward(host, cpu::MLP_GATED_GELU, want.data(), a.data(), &on_host, d_ff, &e);
    mlp_activation_forward(dev, MLP_GATED_GELU, h, Acts(a), &on_device, d_ff, &d);
    CHECK(are_close(h.read(), want, HALF_ULP_BF16 + 1e-5f, 1e-20f));
}

static void test_scale()
{
    open_devices();
    for (size_t n : {1, 7, 130, 8192, 8200, 20001}) {
        const Floats x = rounded(random_floats(n, 1));
        Floats want = x;
        const Acts got(x);
        cpu_scale_forward(host, want.data(), 0.044194174f, n);
        scale_forward(dev, got, 0.044194174f, n);
        CHECK(same_bits(got.read(), rounded(want)), "n %zu", n);
    }
}

/* No rows is no work, and no error. */
static void test_nothing()
{
    open_devices();
    const Acts nothing((size_t)8);
    embedding_forward(dev, nothing, nullptr, nullptr, nullptr, 0, 8);
    embedding_backward(dev, nullptr, nothing, nullptr, nullptr, 0, 8);
    scale_forward(dev, nothing, 2, 0);
    CHECK(nothing.read()[0] != nothing.read()[0]);
}

static const Test tests[] = {
    {"embedding forward", test_embedding_forward},
    {"embedding backward", test_embedding_backward},
    {"residual", test_residual},
    {"dropout's bits", test_dropout_bits},
    {"mlp", test_mlp},
    {"gelu of every number", test_gelu_of_every_number},
    {"scale", test_scale},
    {"nothing", test_nothing},
};

TEST_MAIN(tests)
