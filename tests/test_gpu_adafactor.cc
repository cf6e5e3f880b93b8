/* Tests of gpu/adafactor.cu: several steps of every kind of update against the CPU twin, and the bits of a weight. */
#include "../gpu/device.cu"
#include "../gpu/adafactor.cu"
#include "gpu_bandwidth.h"

static const double alphas[] = {1, 0.574, 0.415}; /* (step + 1)^-0.8 */

static AdafactorStep step_number(size_t i, double clip, double weight_decay, bool scale_by_parameter)
{
    return AdafactorStep{0.1, alphas[i % 3], clip, weight_decay, 1e-30, 1e-3, scale_by_parameter};
}

static cpu::AdafactorStep on_host(const AdafactorStep &s)
{
    return cpu::AdafactorStep{s.learning_rate,     s.alpha, s.clip, s.weight_decay, s.epsilon1, s.epsilon2,
                              s.scale_by_parameter};
}

/* A gradient whose rows and columns differ in size, as real ones do, with a row of zeros. */
static Floats gradient(size_t rows, size_t columns)
{
    Floats g = random_floats(rows * columns, 1e-3f), row = random_floats(rows, 1), column = random_floats(columns, 1);
    if (rows > 2) row[1] = 0;
    for (size_t i = 0; i < g.size(); i++) g[i] *= row[i / columns] * column[i % columns];
    return g;
}

/* A weight is its old value and the update, each with the roundings of a few factors. The sums behind the factors are
 * fp32 within a row or a block and double beyond, on both sides, in different orders: 1e-6. y = g / sqrt(row column) is
 * of size 1, or larger where a row's or column's sum is small. */
static void check_weights(const Floats &got, const Floats &want, const Floats &before, const char *what, size_t rows,
                          size_t columns)
{
    double excess = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const double bound = 2e-7 * fabs((double)want[i]) + 1e-5 * fabs((double)want[i] - before[i]) + 1e-12;
        excess = fmax(excess, fabs((double)got[i] - want[i]) / bound);
        if (got[i] != got[i]) excess = INFINITY;
    }
    CHECK(excess <= 1, "%s, %zu x %zu: %g times the bound", what, rows, columns, excess);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Factored. A tensor of both sides, taken through three steps. */
struct Factored {
    Floats p, row, column, squares;
    Weights device_p;
    Stats device_row, device_column, device_squares;
    size_t rows, columns;
    Factored(size_t rows_, size_t columns_)
        : p(random_floats(rows_ * columns_, 0.05f)), row(rows_), column(columns_), squares(rows_), device_p(p),
          device_row(row), device_column(column), device_squares(rows_), rows(rows_), columns(columns_)
    {
        rows_sum_of_squares(dev, device_squares, device_p, rows, columns);
        cpu_rows_sum_of_squares(host, squares.data(), p.data(), rows, columns);
    }
    SecondMoment moment(bool keeps_squares) const
    {
        return SecondMoment{device_row, device_column, nullptr, keeps_squares ? device_squares.data : nullptr};
    }
    cpu::SecondMoment host_moment(bool keeps_squares)
    {
        return cpu::SecondMoment{row.data(), column.data(), nullptr, keeps_squares ? squares.data() : nullptr};
    }
    void check(const Floats &before, const char *what, bool keeps_squares)
    {
        check_weights(device_p.read(), p, before, what, rows, columns);
        CHECK(are_close(device_row.read(), row, 1e-6f, 0), "%s, %zu x %zu: row", what, rows, columns);
        CHECK(are_close(device_column.read(), column, 2e-6f, 0), "%s, %zu x %zu: column", what, rows, columns);
        if (keeps_squares)
            CHECK(are_close(device_squares.read(), squares, 2e-5f, 0), "%s, %zu x %zu", what, rows, columns);
    }
};

static void check_factored(size_t rows, size_t columns, double clip, double weight_decay, bool scale_by_parameter,
                           bool keeps_squares, size_t steps)
{
    Factored t(rows, columns);
    for (size_t i = 0; i < steps; i++) {
        const AdafactorStep step = step_number(i, clip, weight_decay, scale_by_parameter);
        const cpu::AdafactorStep cpu_step = on_host(step);
        const SecondMoment moment = t.moment(keeps_squares);
        const cpu::SecondMoment host_moment = t.host_moment(keeps_squares);
        const Floats g = gradient(rows, columns), before = t.device_p.read();
        t.p = before; /* each step's error for itself */
        adafactor_update(dev, t.device_p, Stats(g), &moment, rows, columns, &step);
        cpu_adafactor_update(host, t.p.data(), g.data(), &host_moment, rows, columns, &cpu_step);
        t.check(before, "factored", keeps_squares);
    }
}

/* Odd and whole rows, of each kind of block; more rows than columns and the other way round. */
static void test_factored()
{
    open_devices();
    check_factored(128, 128, 1, 0, true, true, 3);
    check_factored(130, 129, 0, 0, true, false, 3);
    check_factored(33, 1, 1, 0.01, true, true, 3);
    check_factored(1, 7, 1, 0, false, false, 2);
    check_factored(130, 1029, 1, 0, true, true, 3);
    check_factored(19, 2056, 1, 0.001, false, true, 3);
    check_factored(17, 3001, 0.5, 0, true, true, 2);
}

/* Rows of five vectors a thread, and rows that no block can hold. */
static void test_long_rows()
{
    open_devices();
    check_factored(18, 4104, 1, 0, true, true, 2);
    check_factored(7, 10240, 1, 0, true, false, 1);
    check_factored(20, 10248, 1, 0, true, true, 2);
    check_factored(5, 20501, 1, 0, true, true, 1);
}

/* More blocks than the least height would make, partial sums of every group, several parts of row totals. */
static void test_many_rows()
{
    open_devices();
    check_factored(4200, 130, 1, 0, true, true, 2);
    check_factored(4103, 16, 1, 0.01, true, false, 2);
}

/* ----------------------------------------------------------------------------------------------------------------
 * By rows: the same as the CPU, and, but for the order of sums, as the update with zeros elsewhere. Untouched rows keep
 * their bits. */
static void check_by_rows(size_t rows, size_t columns, const Ints &index)
{
    Factored t(rows, columns), full(rows, columns);
    full.p = t.p;
    weights_upload(dev, full.device_p, full.p.data(), full.p.size());
    rows_sum_of_squares(dev, full.device_squares, full.device_p, rows, columns);
    for (size_t i = 0; i < 3; i++) {
        const AdafactorStep step = step_number(i, 1, 0, true);
        const cpu::AdafactorStep cpu_step = on_host(step);
        const SecondMoment moment = t.moment(true), full_moment = full.moment(true);
        const cpu::SecondMoment host_moment = t.host_moment(true);
        const Floats g = gradient(index.size(), columns), before = t.device_p.read();
        Floats spread(rows * columns);
        for (size_t k = 0; k < g.size(); k++) spread[(size_t)index[k / columns] * columns + k % columns] = g[k];
        t.p = before;
        weights_upload(dev, full.device_p, before.data(), before.size());
        adafactor_update_rows(dev, t.device_p, Stats(g), IntArray(index), index.size(), &moment, rows, columns, &step);
        adafactor_update(dev, full.device_p, Stats(spread), &full_moment, rows, columns, &step);
        cpu_adafactor_update_rows(host, t.p.data(), g.data(), index.data(), index.size(), &host_moment, rows, columns,
                                  &cpu_step);
        t.check(before, "by rows", true);
        check_weights(full.device_p.read(), t.p, before, "with zeros elsewhere", rows, columns);
        CHECK(are_close(full.device_row.read(), t.row, 1e-6f, 0));
        CHECK(are_close(full.device_column.read(), t.column, 2e-6f, 0));
        const Floats after = t.device_p.read();
        std::vector<bool> touched(rows);
        for (int32_t r : index) touched[(size_t)r] = true;
        for (size_t r = 0; r < rows; r++)
            if (!touched[r]) CHECK(memcmp(&after[r * columns], &before[r * columns], columns * sizeof(float)) == 0);
    }
}

static void test_by_rows()
{
    open_devices();
    Ints many;
    for (int32_t r = 3; r < 1500; r += 1 + (int32_t)random_below(60)) many.push_back(r);
    many.push_back(1499);
    check_by_rows(1500, 130, many);
    check_by_rows(300, 136, Ints(1, 299));
    check_by_rows(5, 260, {0, 2, 3});
}

/* ----------------------------------------------------------------------------------------------------------------
 * Not factored: the CPU's arithmetic in double, so that a weight is the same but where the scale, whose sums have
 * another order, moves it over a rounding edge. */
static void check_whole(size_t n, double clip, double weight_decay, bool scale_by_parameter)
{
    Floats p = random_floats(n, 1), v(n);
    const Weights device_p(p);
    const Stats device_v(v);
    for (size_t i = 0; i < 3; i++) {
        const AdafactorStep step = step_number(i, clip, weight_decay, scale_by_parameter);
        const cpu::AdafactorStep cpu_step = on_host(step);
        v = device_v.read();
        const SecondMoment moment = {nullptr, nullptr, device_v, nullptr};
        const cpu::SecondMoment host_moment = {nullptr, nullptr, v.data(), nullptr};
        const Floats g = random_floats(n, 1e-3f);
        const Floats before = device_p.read();
        p = before;
        adafactor_update(dev, device_p, Stats(g), &moment, 1, n, &step);
        cpu_adafactor_update(host, p.data(), g.data(), &host_moment, 1, n, &cpu_step);
        check_weights(device_p.read(), p, before, "whole", 1, n);
        /* In double on both sides, where compilers may fuse either product with the sum: rounded, one last place. */
        const Floats moved = device_v.read();
        for (size_t e = 0; e < n; e++) CHECK(fabsf(moved[e] - v[e]) <= 0x1p-23f * v[e], "n %zu, element %zu", n, e);
    }
}

static void test_whole()
{
    open_devices();
    for (size_t n : {1, 7, 33, 130, 4096, 4103, 20000}) {
        check_whole(n, 1, 0, true);
        check_whole(n, 0, 0.01, false);
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Bits. */

/* Whatever fp32 a weight is, an update by nothing leaves it as it is: splitting and joining lose no bit. */
static void test_every_kind_of_weight()
{
    const size_t rows = 64, columns = 1024;
    open_devices();
    Floats p(rows * columns);
    for (size_t i = 0; i < p.size(); i++) {
        uint32_t u = random_bits();
        if (i % 2) u = (u & 0xffff0000u) | (0x7ff0u + (uint32_t)i % 32); /* about the tie between two bf16 */
        p[i] = float_of((u >> 23 & 0xff) == 0xff ? u & 0xbfffffffu : u); /* finite */
    }
    for (size_t width : {columns, columns - 1}) { /* in vectors, and one by one */
        const size_t n = rows * width;
        const Floats some(p.begin(), p.begin() + (long)n);
        const Weights device_p(some);
        const Stats row(Floats(rows, 1)), column(Floats(width, 1)), v(Floats(n, 1)), g((Floats(n)));
        const AdafactorStep step = step_number(1, 0, 0, false);
        const SecondMoment factored_moment = {row, column, nullptr, nullptr}, whole = {nullptr, nullptr, v, nullptr};
        adafactor_update(dev, device_p, g, &factored_moment, rows, width, &step);
        CHECK(same_bits(device_p.read(), some), "factored");
        adafactor_update(dev, device_p, g, &whole, rows, width, &step);
        CHECK(same_bits(device_p.read(), some), "whole");
    }
}

/* Given the factors, the update of a weight is fp32 arithmetic to the last bit: p' = keep p - factor (g column_factor),
 * where keep p is not rounded by itself. The factors are ours here: the apply kernel gets totals that we made up. */
static void check_formula(size_t rows, size_t columns, double weight_decay)
{
    const Floats p = random_floats(rows * columns, 0.05f), g = gradient(rows, columns);
    Floats row = random_floats(rows, 1), column_factor = random_floats(columns, 100);
    for (float &r : row) r = 1e-8f + r * r;
    const AdafactorStep step = step_number(0, 0, weight_decay, false);
    const Weights device_p(p);
    const Stats device_g(g), device_row(row), device_column(Floats(columns, 1)), squares(rows), again(rows);
    const Stats factors(column_factor);
    const SecondMoment moment = {device_row, device_column, nullptr, squares};
    const FactoredUpdate u =
        factored(split_weights(device_p.data), device_g, nullptr, rows, &moment, rows, columns, &step);
    FactoredScratch s = factored_scratch(dev, u);
    const Total totals[2] = {{(double)columns * 0.25, 0}, {(double)rows * 0.25, 0}}; /* mean 1/4: sqrt(mean) is exact */
    s.column_blocks = s.row_blocks = 1;
    s.column_factor = factors;
    device_upload(dev, s.column_totals, totals, sizeof totals);
    s.row_totals = s.column_totals + 1;
    const bool whole = columns % 8 == 0;
    launch(dev, whole ? apply_kernel<true> : apply_kernel<false>, dim3(blocks_for(rows, APPLY_THREADS / WARP)),
           dim3(APPLY_THREADS), 0, u, s);
    Floats want(p.size());
    for (size_t i = 0; i < p.size(); i++) {
        const float factor = (float)(step.learning_rate * 0.5 / sqrt((double)row[i / columns]));
        const float keep = (float)(1 - weight_decay);
        volatile const float update = g[i] * column_factor[i % columns], change = factor * update;
        want[i] = fmaf(keep, p[i], -change);
    }
    CHECK(same_bits(device_p.read(), want), "%zu x %zu", rows, columns);
    /* what the update leaves as squares is what measuring the weights gives: a resumed run has the same bits */
    rows_sum_of_squares(dev, again, device_p, rows, columns);
    CHECK(same_bits(squares.read(), again.read()), "%zu x %zu", rows, columns);
}

static void test_formula()
{
    open_devices();
    check_formula(20, 1032, 0);
    check_formula(9, 1031, 0.01);
    check_formula(3, 130, 0);
}

/* And so are the CPU's weights, to the last bit: with gradients of one power of two all sums are exact, both sides come
 * to the same factors (but for powers of two), and only the arithmetic on the weight is left. */
static void check_cpu_bits(size_t rows, size_t columns)
{
    Factored t(rows, columns);
    Floats g(rows * columns);
    for (float &x : g) x = random_bits() % 2 ? 0x1p-9f : -0x1p-9f;
    for (double clip : {0.0, 0.375}) {
        AdafactorStep step = step_number(0, clip, 0, false);
        step.learning_rate = 0.0123;
        const cpu::AdafactorStep cpu_step = on_host(step);
        const SecondMoment moment = t.moment(true);
        const cpu::SecondMoment host_moment = t.host_moment(true);
        adafactor_update(dev, t.device_p, Stats(g), &moment, rows, columns, &step);
        cpu_adafactor_update(host, t.p.data(), g.data(), &host_moment, rows, columns, &cpu_step);
        CHECK(same_bits(t.device_p.read(), t.p), "%zu x %zu", rows, columns);
    }
}

static void test_cpu_bits()
{
    open_devices();
    check_cpu_bits(128, 256);
    check_cpu_bits(130, 133);
}

/* A tensor may begin anywhere in the model's memory. Where vectors do not reach, the columns are the same, in the same
 * order: same bits; and the neighbours keep theirs. */
static void test_misaligned()
{
    const size_t rows = 20, columns = 1032, n = rows * columns;
    open_devices();
    const Floats p = random_floats(n, 0.05f), g = gradient(rows, columns);
    const AdafactorStep step = step_number(1, 1, 0.001, true);
    Floats want, want_squares;
    for (size_t offset : {0, 3}) {
        Floats all(n + 8, 7);
        for (size_t i = 0; i < n; i++) all[offset + i] = p[i];
        const Weights device_p(all);
        const Stats row((Floats(rows))), column((Floats(columns))), squares(rows);
        const SecondMoment moment = {row, column, nullptr, squares};
        rows_sum_of_squares(dev, squares, device_p.data + offset, rows, columns);
        adafactor_update(dev, device_p.data + offset, Stats(g), &moment, rows, columns, &step);
        const Floats after = device_p.read(), updated(after.begin() + (long)offset, after.begin() + (long)(offset + n));
        if (offset == 0) want = updated, want_squares = squares.read();
        CHECK(same_bits(updated, want) && same_bits(squares.read(), want_squares), "offset %zu", offset);
        for (size_t i = 0; i < all.size(); i++)
            if (i < offset || i >= offset + n) CHECK(after[i] == 7, "at %zu", i);
    }
}

/* The same bits whatever the order in which threads and blocks run. */
static void test_determinism()
{
    const size_t rows = 600, columns = 260;
    open_devices();
    const Floats p = random_floats(rows * columns, 0.05f), g = gradient(rows, columns);
    const AdafactorStep step = step_number(1, 1, 0.001, true);
    Floats first, first_column;
    for (int run = 0; run < 3; run++) {
        const Weights device_p(p);
        const Stats row((Floats(rows))), column((Floats(columns)));
        const SecondMoment moment = {row, column, nullptr, nullptr};
        adafactor_update(dev, device_p, Stats(g), &moment, rows, columns, &step);
        if (run == 0) first = device_p.read(), first_column = column.read();
        CHECK(same_bits(device_p.read(), first) && same_bits(column.read(), first_column), "run %d", run);
    }
}

static const Test tests[] = {
    {"factored", test_factored},     {"long rows", test_long_rows},
    {"many rows", test_many_rows},   {"by rows", test_by_rows},
    {"whole", test_whole},           {"every kind of weight", test_every_kind_of_weight},
    {"formula", test_formula},       {"the CPU's bits", test_cpu_bits},
    {"misaligned", test_misaligned}, {"determinism", test_determinism},
};

TEST_MAIN(tests)
