/* Tests of gpu/lora.cu: merging, its gradient, and the scalar product, against the CPU twins. */
#include "../gpu/device.cu"
#include "../gpu/lora.cu"
#include "gpu_bandwidth.h"

/* w is a sum of 1 + rank terms of size 1: fp32 with as many roundings. Rows above and below a block's 16, columns of no
 * whole vector and of more than a block's 512, ranks above and below what shared memory holds at a time. */
static void test_merge()
{
    open_devices();
    for (size_t rows : {1, 17, 40})
        for (size_t columns : {1, 7, 130, 520, 1029})
            for (size_t rank : {1, 8, 33, 70}) {
                const Floats base = random_floats(rows * columns, 1), a = random_floats(rank * columns, 1);
                const Floats b = random_floats(rows * rank, 1);
                Floats want(rows * columns);
                const Weights w(Floats(rows * columns, NAN));
                cpu_lora_merge_forward(host, want.data(), base.data(), a.data(), b.data(), rows, columns, rank, 0.7f);
                lora_merge_forward(dev, w, Weights(base), Weights(a), Weights(b), rows, columns, rank, 0.7f);
                CHECK(are_close(w.read(), want, 2e-7f, 2e-7f * (float)rank), "%zu x %zu, rank %zu", rows, columns,
                      rank);
            }
}

/* B is zero at first: then W is W0, to the last bit. */
static void test_zero_adapter()
{
    const size_t rows = 33, columns = 136, rank = 4;
    open_devices();
    const Floats base = random_floats(rows * columns, 1);
    const Weights w(Floats(rows * columns, NAN));
    lora_merge_forward(dev, w, Weights(base), Weights(random_floats(rank * columns, 1)), Weights(Floats(rows * rank)),
                       rows, columns, rank, 2);
    CHECK(same_bits(w.read(), base));
}

/* Sums of n = rows (or columns) products of size 1 in fp32: n roundings, at random, of partial sums of size sqrt(n)
 * come to n 2^-24; four times that is allowed. Several slices of the depth, several tiles of items and of ranks, and
 * less than one of each. */
static void test_backward()
{
    open_devices();
    for (size_t rows : {1, 70, 600})
        for (size_t columns : {1, 33, 530})
            for (size_t rank : {1, 8, 33}) {
                const Floats dw = random_floats(rows * columns, 1), a = random_floats(rank * columns, 1);
                const Floats b = random_floats(rows * rank, 1), da = random_floats(rank * columns, 1);
                const Floats db = random_floats(rows * rank, 1);
                Floats want_da = da, want_db = db;
                const Stats got_da(da), got_db(db), again_da(da), again_db(db), device_dw(dw);
                const Weights device_a(a), device_b(b);
                cpu_lora_backward(host, want_da.data(), want_db.data(), dw.data(), a.data(), b.data(), rows, columns,
                                  rank, 0.7f);
                lora_backward(dev, got_da, got_db, device_dw, device_a, device_b, rows, columns, rank, 0.7f);
                lora_backward(dev, again_da, again_db, device_dw, device_a, device_b, rows, columns, rank, 0.7f);
                CHECK(are_close(got_da.read(), want_da, 0, 0x1p-22f * (4 + (float)rows)), "da, %zu x %zu, rank %zu",
                      rows, columns, rank);
                CHECK(are_close(got_db.read(), want_db, 0, 0x1p-22f * (4 + (float)columns)), "db, %zu x %zu, rank %zu",
                      rows, columns, rank);
                CHECK(same_bits(again_da.read(), got_da.read()) && same_bits(again_db.read(), got_db.read()), "twice");
            }
}

/* Exact products, sums in double. */
static void test_dot_product()
{
    open_devices();
    for (size_t n : {0, 1, 7, 1029, 65536, 65545, 200000}) {
        const Floats a = random_floats(n, 1), b = random_floats(n, 3);
        const Stats device_a(a), device_b(b);
        double *dot = (double *)device_alloc(sizeof *dot), want, got, again;
        cpu_dot_product(host, &want, a.data(), b.data(), n);
        dot_product(dev, dot, device_a, device_b, n);
        device_download(dev, &got, dot, sizeof got);
        CHECK(fabs(got - want) <= 1e-15 * (double)n * 10, "n %zu: %.17g, should be %.17g", n, got, want);
        dot_product(dev, dot, device_a, device_b, n);
        device_download(dev, &again, dot, sizeof again);
        CHECK(again == got, "twice");
        device_free(dot);
    }
}

static const Test tests[] = {
    {"merge", test_merge},
    {"zero adapter", test_zero_adapter},
    {"backward", test_backward},
    {"dot product", test_dot_product},
};

TEST_MAIN(tests)
