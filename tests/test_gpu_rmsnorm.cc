/* Tests of gpu/rmsnorm.cu: forward and backward against the CPU twins. */
#include "../gpu/device.cu"
#include "../gpu/rmsnorm.cu"
#include "gpu_bandwidth.h"

/* Less than a vector, odd, one vector, one block's 1024 columns and more, two vectors a thread, four, and a larger
 * block; whole vectors and not. */
static const size_t widths[] = {1, 7, 33, 130, 256, 1029, 1160, 2056, 4096, 4099, 5000};

static void test_forward()
{
    open_devices();
    for (size_t width : widths)
        for (size_t rows : {1, 3}) {
            const Floats x = rounded(random_floats(rows * width, 3)), scale = random_floats(width, 1);
            Floats want(rows * width), want_rstd(rows);
            const Acts y(rows * width);
            const Stats rstd(rows);
            cpu_rmsnorm_forward(host, want.data(), want_rstd.data(), x.data(), upper_halves(scale).data(), rows, width,
                                1e-6f);
            rmsnorm_forward(dev, y, rstd, Acts(x), Weights(scale), rows, width, 1e-6f);
            /* a sum of squares in fp32 has no cancellation: a few roundings of 2^-24 */
            CHECK(are_close(rstd.read(), want_rstd, 1e-6f, 0), "width %zu, rows %zu", width, rows);
            CHECK(are_close(y.read(), want, HALF_ULP_BF16 + 2e-6f, 0), "width %zu, rows %zu", width, rows);
        }
}

/* dscale has one rounding to fp32 for each row of a block, and products of size 1. dx is rounded to bf16 once; its
 * terms are of size 3. */
static void check_backward(size_t rows, size_t width)
{
    const size_t n = rows * width;
    const Floats x = rounded(random_floats(n, 1)), dy = rounded(random_floats(n, 1)), scale = random_floats(width, 1);
    const Floats before = rounded(random_floats(n, 1)), dscale_before = random_floats(width, 1);
    Floats want = before, want_dscale = dscale_before, y(n), rstd(rows);
    cpu_rmsnorm_forward(host, y.data(), rstd.data(), x.data(), upper_halves(scale).data(), rows, width, 1e-6f);
    cpu_rmsnorm_backward(host, want.data(), want_dscale.data(), dy.data(), x.data(), rstd.data(),
                         upper_halves(scale).data(), rows, width);
    const Acts dx(before), dx_alone(before), dx_again(before), device_dy(dy), device_x(x);
    const Stats dscale(dscale_before), dscale_again(dscale_before), device_rstd(rstd);
    const Weights device_scale(scale);
    rmsnorm_backward(dev, dx, dscale, device_dy, device_x, device_rstd, device_scale, rows, width);
    rmsnorm_backward(dev, dx_alone, nullptr, device_dy, device_x, device_rstd, device_scale, rows, width);
    rmsnorm_backward(dev, dx_again, dscale_again, device_dy, device_x, device_rstd, device_scale, rows, width);
    CHECK(are_close(dx.read(), want, HALF_ULP_BF16, 1e-5f), "width %zu, rows %zu", width, rows);
    CHECK(are_close(dscale.read(), want_dscale, 1e-6f, 1e-6f * (1 + 3 * sqrtf((float)rows))), "width %zu, rows %zu",
          width, rows);
    CHECK(same_bits(dx_alone.read(), dx.read()), "without dscale");
    CHECK(same_bits(dx_again.read(), dx.read()), "twice");
    CHECK(same_bits(dscale_again.read(), dscale.read()), "twice");
}

static void test_backward()
{
    open_devices();
    for (size_t width : widths)
        for (size_t rows : {1, 3, 19}) check_backward(rows, width);
}

/* More blocks than multiprocessors can hold, more partial sums than groups that add them, and blocks of more than the
 * least number of rows. */
static void test_many_rows()
{
    open_devices();
    check_backward(1000, 40);
    check_backward(4700, 24);
}

static const Test tests[] = {
    {"forward", test_forward},
    {"backward", test_backward},
    {"many rows", test_many_rows},
};

TEST_MAIN(tests)
