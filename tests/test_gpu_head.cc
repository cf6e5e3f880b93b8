/* Tests of gpu/head.cu: the loss and its gradient, and the most probable words with the product that they come from,
 * against the CPU twins. */
#include "../gpu/device.cu"
#include "../gpu/elementwise.cu"
#include "../gpu/head.cu"
#include "../gpu/matmul.cu"
#include "../gpu/matmul_hopper.cu"
#include "gpu_bandwidth.h"

/* One vector and less, odd, one part exactly, one more, several parts, and more parts than a warp has lanes. */
static const size_t vocabularies[] = {2, 7, 33, 130, 1029, 8192, 8193, 20008, 300001};

/* Loss: sums of fp32 exponentials with an error of 2^-22 each, which at most adds up to as much of the sum, so 1e-6 of
 * log Z; the label smoothing's other words count with e / (V - 1). Gradient: rounded to bf16, from p with 1e-6. */
static void check_loss(size_t rows, size_t vocabulary, LossSettings settings, float spread)
{
    const Floats logits = random_floats(rows * vocabulary, spread);
    Ints targets(rows);
    for (int32_t &t : targets) t = (int32_t)random_below(vocabulary);
    const cpu::LossSettings on_host = {settings.label_smoothing, settings.z_loss, settings.scale};
    Floats want(rows), gradient(rows * vocabulary);
    const Stats loss(rows), loss_alone(rows), device_logits(logits);
    const Acts dlogits(rows * vocabulary);
    const IntArray device_targets(targets);
    cpu_softmax_cross_entropy(host, want.data(), gradient.data(), logits.data(), targets.data(), rows, vocabulary,
                              &on_host);
    softmax_cross_entropy(dev, loss, dlogits, device_logits, device_targets, rows, vocabulary, &settings);
    softmax_cross_entropy(dev, loss_alone, nullptr, device_logits, device_targets, rows, vocabulary, &settings);
    CHECK(are_close(loss.read(), want, 1e-6f, 3e-6f * settings.scale), "V %zu, spread %g", vocabulary, spread);
    CHECK(are_close(dlogits.read(), gradient, HALF_ULP_BF16 + 1e-5f, 1e-6f * settings.scale), "V %zu, spread %g",
          vocabulary, spread);
    CHECK(same_bits(loss_alone.read(), loss.read()), "without gradient");
}

static void test_loss()
{
    open_devices();
    for (size_t vocabulary : vocabularies)
        for (float spread : {0.1f, 3.0f, 30.0f}) {
            check_loss(vocabulary > 100000 ? 1 : 3, vocabulary, LossSettings{0, 0, 1}, spread);
            check_loss(vocabulary > 100000 ? 1 : 2, vocabulary, LossSettings{0.1f, 1e-4f, 0.0625f}, spread);
        }
}

/* Words that are impossible have p = 0, and a row may have many. The loss of a possible target stays finite. */
static void test_impossible_words()
{
    const size_t V = 9000;
    open_devices();
    Floats logits = random_floats(2 * V, 1);
    for (size_t i = 0; i < 2 * V; i++)
        if (i % V >= 8000 || i % 3 == 0) logits[i] = -INFINITY; /* the second part of each row has nothing else */
    const Ints targets = {1, 4};
    const cpu::LossSettings on_host = {0, 1e-4f, 1};
    const LossSettings settings = {0, 1e-4f, 1};
    Floats want(2), gradient(2 * V);
    const Stats loss((size_t)2);
    const Acts dlogits(2 * V);
    cpu_softmax_cross_entropy(host, want.data(), gradient.data(), logits.data(), targets.data(), 2, V, &on_host);
    softmax_cross_entropy(dev, loss, dlogits, Stats(logits), IntArray(targets), 2, V, &settings);
    CHECK(are_close(loss.read(), want, 1e-6f, 3e-6f));
    CHECK(are_close(dlogits.read(), gradient, HALF_ULP_BF16 + 1e-5f, 1e-6f));
    CHECK(dlogits.read()[0] == 0 && dlogits.read()[V - 1] == 0);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The most probable words, of logits that the test chooses: a row of x is 1 at two places and 0 elsewhere, and the two
 * weights there add up to the word's logit, exactly, when it has no more bits than two bf16. */
enum { PATTERNS = 4 }; /* different rows at most */

static Floats sums_of_two(Floats x)
{
    for (float &a : x) a = round_to_bf16(a) + round_to_bf16(a - round_to_bf16(a));
    return x;
}

struct Head {
    size_t in, vocabulary, patterns;
    Floats weights;
    /* logits [patterns, vocabulary]. An infinity or NaN wants a pattern of its own: 0 times it is NaN. */
    Head(const Floats &logits, size_t patterns_, size_t depth)
        : in(depth), vocabulary(logits.size() / patterns_), patterns(patterns_), weights(in * vocabulary, 0)
    {
        for (size_t p = 0; p < patterns; p++)
            for (size_t v = 0; v < vocabulary; v++) {
                const float x = logits[p * vocabulary + v], high = round_to_bf16(x);
                weights[v * in + 2 * p] = isfinite(x) ? high : x;
                weights[v * in + 2 * p + 1] = isfinite(x) ? x - high : 0;
            }
    }
    Floats input(size_t rows) const /* the patterns in turn */
    {
        Floats x(rows * in, 0);
        for (size_t row = 0; row < rows; row++)
            x[row * in + row % patterns * 2] = x[row * in + row % patterns * 2 + 1] = 1;
        return x;
    }
};

template <typename F> static void on_both_floors(F test)
{
    const bool has_hopper = dev->hopper;
    test();
    dev->hopper = false;
    if (has_hopper) test();
    dev->hopper = has_hopper;
}

/* The words must be the CPU's, one for one. logp: as the loss above; and log2 e as an fp32 is 1.34e-8 of it, less than
 * 2^-26, too small, which log Z has of its largest logit. */
static void check_top(const Floats &logits, size_t patterns, size_t rows, size_t k, size_t depth = 2 * PATTERNS)
{
    const Head head(logits, patterns, depth);
    const size_t V = head.vocabulary;
    const Floats x = head.input(rows);
    Floats want(rows * k), all(rows * V);
    Ints words(rows * k);
    float largest = 0;
    for (float a : logits) largest = isfinite(a) ? fmaxf(largest, fabsf(a)) : largest;
    cpu_head_top_log_probabilities(host, want.data(), words.data(), all.data(), x.data(), head.weights.data(), rows,
                                   depth, V, k);
    on_both_floors([&] {
        const Stats logp(rows * k), on_device(rows * V);
        const IntArray word(rows * k);
        head_top_log_probabilities(dev, logp, word, on_device, Acts(x), Weights(head.weights), rows, depth, V, k);
        CHECK(same_bits(on_device.read(), all), "V %zu", V);
        CHECK(word.read() == words, "V %zu, k %zu", V, k);
        CHECK(are_close(logp.read(), want, 1e-6f, 2e-6f + 0x1p-26f * largest), "V %zu, k %zu", V, k);
    });
}

/* One group and less, one more word, odd, and more groups than a block has threads; in eights (Hopper) and not. */
static void test_top()
{
    open_devices();
    for (size_t vocabulary : {2, 7, 8, 33, 64, 65, 72, 130, 136, 1029, 1032, 8193, 20008, 20011})
        for (size_t k : {1, 2, 8, 130})
            if (k <= vocabulary) check_top(sums_of_two(random_floats(2 * vocabulary, 5)), 2, k > 8 ? 2 : 3, k);
    check_top(sums_of_two(random_floats(200, 5)), 1, 1, 200);       /* every word of every group */
    check_top(sums_of_two(random_floats(3 * 1000, 5)), 3, 3, 5, 9); /* rows that no 16-byte copy serves */
    check_top(sums_of_two(random_floats(3 * 1000, 100)), 3, 3, 20); /* powers of two far apart */
    check_top(sums_of_two(random_floats(3 * 1000, 0.01f)), 3, 3, 20);
}

/* Many equals: within a thread, between threads and groups; and k larger than the number of different values. */
static void test_ties()
{
    open_devices();
    for (size_t vocabulary : {7, 130, 136, 9000})
        for (int values : {1, 2, 40}) {
            Floats logits(2 * vocabulary);
            for (float &x : logits) x = (float)(random_below((size_t)values)) - 3;
            for (size_t k : {1, 5, 64, 130})
                if (k <= vocabulary) check_top(logits, 2, 2, k);
        }
}

/* The k best words in one group, and each in another one, in whatever order their groups stand. */
static void test_places()
{
    const size_t V = 1000, k = 4;
    open_devices();
    for (size_t first : {0, 63, 64, 500, 936, 996}) {
        Floats logits(2 * V, -1);
        for (size_t i = 0; i < k; i++) logits[first + i] = (float)(i * 7 % k);
        for (size_t i = 0; i < k; i++) logits[V + (first + i * 300) % V] = (float)(i * 3 % k);
        check_top(logits, 2, 2, k);
    }
}

/* 0 and -0 are equal; infinities have their place; the best may be anywhere, in the last column too; and where no word
 * is possible, no probability is a number. */
static void test_special_values()
{
    open_devices();
    for (size_t V : {8200, 8201}) {
        Floats zeros(V), few(V, -INFINITY), one(V, -INFINITY), last(V, -1);
        for (size_t i = 0; i < V; i++) zeros[i] = i % 2 ? 0.0f : -0.0f;
        for (size_t i = 0; i < 3; i++) few[i] = (float)i;
        one[700] = 2;
        last[V - 1] = 7;
        check_top(zeros, 1, 1, 6);
        check_top(few, 1, 1, 6);
        check_top(one, 1, 1, 130);
        check_top(last, 1, 1, 6);
        check_top(Floats(V, -INFINITY), 1, 1, 6);
    }
}

/* A NaN or an infinity spoils the row's probabilities, visibly, and still every word is one: a NaN counts as -infinity. */
static void test_nan()
{
    const size_t k = 4;
    open_devices();
    for (size_t V : {9000, 9001})
        for (int spoilt = 0; spoilt < 3; spoilt++) {
            Floats logits = sums_of_two(random_floats(V, 1));
            if (spoilt == 0) logits[16] = 9, logits[17] = NAN; /* beside the best word */
            if (spoilt == 1) logits[V - 1] = INFINITY;
            if (spoilt == 2) logits = Floats(V, NAN);
            const Head head(logits, 1, 8);
            for (float &x : logits) x = isnan(x) ? -INFINITY : x;
            const Head ordered(logits, 1, 8);
            Floats numbers(k), all(V);
            Ints words(k);
            cpu_head_top_log_probabilities(host, numbers.data(), words.data(), all.data(), head.input(1).data(),
                                           ordered.weights.data(), 1, 8, V, k);
            on_both_floors([&] {
                const Stats logp(k), on_device(V);
                const IntArray word(k);
                head_top_log_probabilities(dev, logp, word, on_device, Acts(head.input(1)), Weights(head.weights), 1, 8,
                                           V, k);
                for (float p : logp.read()) CHECK(!isfinite(p), "V %zu: %g", V, p);
                CHECK(word.read() == words, "V %zu", V);
            });
        }
}

static const Test tests[] = {
    {"loss", test_loss},     {"impossible words", test_impossible_words}, {"top", test_top}, {"ties", test_ties},
    {"places", test_places}, {"special values", test_special_values},     {"nan", test_nan},
};

TEST_MAIN(tests)
