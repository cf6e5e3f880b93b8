/* Tests of gpu/head.cu: the loss and its gradient, and the most probable words, against the CPU twins. */
#include "../gpu/device.cu"
#include "../gpu/head.cu"
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
 * The words must be the CPU's, one for one. */
static void check_top(const Floats &logits, size_t rows, size_t vocabulary, size_t k)
{
    Floats want(rows * k);
    Ints words(rows * k);
    const Stats logp(rows * k);
    const IntArray word(rows * k);
    cpu_top_log_probabilities(host, want.data(), words.data(), logits.data(), rows, vocabulary, k);
    top_log_probabilities(dev, logp, word, Stats(logits), rows, vocabulary, k);
    CHECK(word.read() == words, "V %zu, k %zu", vocabulary, k);
    CHECK(are_close(logp.read(), want, 1e-6f, 2e-6f), "V %zu, k %zu", vocabulary, k);
}

static void test_top()
{
    open_devices();
    for (size_t vocabulary : vocabularies)
        for (size_t k : {1, 2, 8, 130}) {
            const size_t rows = vocabulary > 100000 ? 1 : 3;
            if (k <= vocabulary) check_top(random_floats(rows * vocabulary, 5), rows, vocabulary, k);
        }
}

/* Many equals: within a thread, between threads, warps and parts; and k larger than the number of different values. */
static void test_ties()
{
    open_devices();
    for (size_t vocabulary : {7, 130, 9000, 40000})
        for (int values : {1, 2, 40}) {
            Floats logits(2 * vocabulary);
            for (float &x : logits) x = (float)(random_below((size_t)values)) - 3;
            for (size_t k : {1, 5, 64})
                if (k <= vocabulary) check_top(logits, 2, vocabulary, k);
        }
}

/* 0 and -0 are equal; infinities have their place; the best may be anywhere, in the last column too. */
static void test_special_values()
{
    const size_t V = 8200;
    open_devices();
    Floats logits(3 * V, -1);
    for (size_t i = 0; i < V; i++) logits[i] = i % 2 ? 0.0f : -0.0f;
    for (size_t i = 0; i < V; i++) logits[V + i] = i < 3 ? (float)i : -INFINITY; /* fewer words than k */
    logits[3 * V - 1] = 7;
    check_top(logits, 3, V, 6);
}

/* A NaN spoils the row's probabilities, visibly, and still every word is one. */
static void test_nan()
{
    const size_t V = 9001, k = 4;
    open_devices();
    Floats logits = random_floats(2 * V, 1);
    logits[17] = NAN;
    for (size_t i = V; i < 2 * V; i++) logits[i] = NAN;
    const Stats logp(2 * k);
    const IntArray word(2 * k);
    top_log_probabilities(dev, logp, word, Stats(logits), 2, V, k);
    const Floats p = logp.read();
    const Ints w = word.read();
    for (size_t i = 0; i < 2 * k; i++) {
        CHECK(p[i] != p[i], "at %zu", i);
        CHECK(w[i] >= 0 && (size_t)w[i] < V, "at %zu: %d", i, w[i]);
    }
}

/* The same bits whatever the order in which threads and blocks run, and however many rows there are. */
static void test_determinism()
{
    const size_t V = 20000, rows = 3, k = 8;
    open_devices();
    const Floats logits = random_floats(rows * V, 3);
    const Stats first(rows * k), alone(k);
    const IntArray words(rows * k), words_alone(k);
    const Stats on_device(logits);
    top_log_probabilities(dev, first, words, on_device, rows, V, k);
    for (size_t row = 0; row < rows; row++) {
        top_log_probabilities(dev, alone, words_alone, on_device.data + row * V, 1, V, k);
        const Floats all = first.read();
        const Ints w = words.read();
        CHECK(same_bits(alone.read(), Floats(all.begin() + (long)(row * k), all.begin() + (long)((row + 1) * k))));
        CHECK(words_alone.read() == Ints(w.begin() + (long)(row * k), w.begin() + (long)((row + 1) * k)));
    }
}

static const Test tests[] = {
    {"loss", test_loss},
    {"impossible words", test_impossible_words},
    {"top", test_top},
    {"ties", test_ties},
    {"special values", test_special_values},
    {"nan", test_nan},
    {"determinism", test_determinism},
};

TEST_MAIN(tests)
