/* gpu/device.cu and what gpu/common.cuh gives to all kernels: weights survive being cut in two planes bit by bit,
 * copies happen in order and leave the caller's memory alone, numbers and dropout masks have the bits that the CPU
 * gives them. */
#include "test.h"

#include <math.h>
#include <vector>

#include "../gpu/device.cu"
#include "gpu_twins.h"

static Device *device(void)
{
    static Device *dev;
    Error error;
    if (!dev && !(dev = device_open(3, MATMUL_BF16, &error))) {
        fprintf(stderr, "%s\n", error.text);
        exit(EXIT_FAILED);
    }
    return dev;
}

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Every upper half, with the lower halves at which rounding changes its mind: NaN, infinity and denormals too. */
static std::vector<float> all_kinds_of_numbers(void)
{
    static const uint32_t lower[] = {0x0000, 0x0001, 0x1234, 0x7fff, 0x8000, 0x8001, 0xabcd, 0xffff};
    std::vector<float> numbers;
    for (uint32_t upper = 0; upper < 0x10000; upper++)
        for (uint32_t low : lower) numbers.push_back(float_of(upper << 16 | low));
    return numbers;
}

static bool same_bits(const std::vector<float> &a, const float *b)
{
    return a.empty() || memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

/* ---------------------------------------------------------------------------------------------------------------- */

static void weights_are_exact(void)
{
    const std::vector<float> numbers = all_kinds_of_numbers();
    const size_t n = numbers.size();
    std::vector<float> back(n);
    std::vector<bf16_t> upper(n);
    weight_t *w = weights_alloc(n);
    weights_upload(device(), w, numbers.data(), n);
    weights_download(device(), back.data(), w, n);
    CHECK(same_bits(numbers, back.data()));
    device_download(device(), upper.data(), w, n * sizeof(weight_t));
    size_t wrong = 0, ties = 0;
    for (size_t i = 0; i < n; i++) {
        const float x = numbers[i], rounded = float_of((uint32_t)upper[i].bits << 16);
        if (!(fabsf(x) < 0x1.ffp127f)) continue; /* above lie what rounds to infinity, infinity and NaN */
        const float down = float_of(bits_of(x) & 0xffff0000u), up = float_of((bits_of(x) & 0xffff0000u) + 0x10000);
        const double below = fabs((double)x - down), above = fabs((double)up - x); /* of the magnitude */
        ties += below == above;
        wrong += bits_of(rounded) != bits_of(below < above ? down : up);
    }
    CHECK(wrong == 0, "%zu upper halves are not the nearest bf16, ties away from zero", wrong);
    CHECK(ties > 65000, "%zu ties", ties);
    weights_free(w);
}

/* Parts, slots and planes have ends: sizes on both sides of them. */
static void weights_of_all_sizes(void)
{
    const size_t sizes[] = {
        0, 1, 7, 8, 9, 127, 128, 129, WEIGHTS_PART - 1, WEIGHTS_PART, WEIGHTS_PART + 1, 3 * WEIGHTS_PART + 5};
    for (size_t n : sizes) {
        std::vector<float> numbers(n), back(n, NAN);
        weight_t *w = weights_alloc(n);
        CHECK(w, "%zu weights", n);
        for (size_t i = 0; i < n; i++) numbers[i] = float_of((uint32_t)(i * 2654435761u) & 0xbfffffffu);
        weights_upload(device(), w, numbers.data(), n);
        weights_download(device(), back.data(), w, n);
        CHECK(same_bits(numbers, back.data()), "%zu weights", n);
        weights_free(w);
    }
}

/* Tensors are places in the middle of one allocation; prompts and adapters are others. */
static void weights_have_their_remainders(void)
{
    enum { N = 1000 };
    std::vector<float> numbers(N), back(N);
    weight_t *a = weights_alloc(N), *b = weights_alloc(N), *c = weights_alloc(N);
    for (size_t i = 0; i < N; i++) numbers[i] = sinf((float)i);
    CHECK(weights_remainder(a + 17) - weights_remainder(a) == 17);
    CHECK(weights_remainder(c + N) - weights_remainder(c) == N);
    /* One that ends where c begins, as a card may place it, does not take c from itself. */
    WeightPlanes before_c = {};
    before_c.next = weight_planes, before_c.upper = c - N, before_c.n = N, before_c.lower = weights_remainder(a);
    weight_planes = &before_c;
    CHECK(planes_of(c) != &before_c && planes_of(c - 1) == &before_c);
    weight_planes = before_c.next;
    weights_upload(device(), a, numbers.data(), N);
    weights_copy(device(), c + 3, a + 1, N - 3);
    weights_free(b);
    weights_upload(device(), c, numbers.data() + 500, 3);
    weights_copy(device(), a, c, N);
    weights_download(device(), back.data(), a, N);
    for (size_t i = 0; i < N; i++) {
        const float want = numbers[i < 3 ? 500 + i : i - 2];
        CHECK(bits_of(back[i]) == bits_of(want), "weight %zu: %.9g, not %.9g", i, back[i], want);
    }
    weights_free(a), weights_free(c);
}

/* Parked or whole, weights are the same numbers; what is uploaded and copied meanwhile comes back with them. */
static void weights_park_and_return(void)
{
    enum { N = 3001 };
    std::vector<float> numbers(N), others(N), back(N);
    weight_t *a = weights_alloc(N), *b = weights_alloc(N);
    Error error = {};
    for (size_t i = 0; i < N; i++) numbers[i] = sinf((float)i), others[i] = cosf((float)i);
    const auto holds = [&](const weight_t *w, const std::vector<float> &expected, const char *when) {
        weights_download(device(), back.data(), w, N);
        CHECK(same_bits(expected, back.data()), "%s", when);
    };
    weights_upload(device(), a, numbers.data(), N);
    weights_upload(device(), b, others.data(), N);
    for (int round = 0; round < 2; round++) { /* the second time it is parked already */
        CHECK(weights_park(device(), a, true, &error) == 0, "%s", error.text);
        holds(a, numbers, "parked");
    }
    weights_copy(device(), a, b, N);
    holds(a, others, "copied into parked ones");
    weights_upload(device(), a, numbers.data(), N);
    weights_copy(device(), b, a, N);
    holds(b, numbers, "copied from parked ones");
    CHECK(weights_park(device(), b, true, &error) == 0, "%s", error.text);
    weights_upload(device(), b, others.data(), N);
    weights_copy(device(), a, b, N);
    for (int round = 0; round < 2; round++) {
        CHECK(weights_park(device(), a, false, &error) == 0, "%s", error.text);
        holds(a, others, "whole again");
    }
    CHECK(weights_remainder(a + 5) - weights_remainder(a) == 5);
    weights_free(a), weights_free(b);
}

static __global__ void copy_kernel(weight_t *to, const weight_t *from, size_t n)
{
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}

/* Streamed weights: pieces of 1003, of each of which the 100 from place 200 on are kept, and 500 that are kept behind
 * them. */
enum { PIECES = 4, PIECE = 1003, KEPT_AT = 200, KEPT = 100, TAIL = 500, STREAMED = PIECES * PIECE + TAIL };

/* Does a kernel find the upper halves of these numbers at `w`? */
static bool kernel_reads(Device *dev, const weight_t *w, size_t n, const float *numbers)
{
    weight_t *seen = (weight_t *)device_alloc(n * sizeof *seen);
    std::vector<weight_t> upper(n), got(n);
    std::vector<int16_t> lower(n);
    const weight_t *here = weights_here(dev, w);
    bool same = (uintptr_t)here % 256 == (uintptr_t)w % 256;
    launch(dev, copy_kernel, dim3(1), dim3(64), 0, seen, here, n);
    device_download(dev, got.data(), seen, n * sizeof *seen);
    weights_split(upper.data(), lower.data(), numbers, n);
    for (size_t i = 0; i < n; i++) same = same && got[i].bits == upper[i].bits;
    device_free(seen);
    return same;
}

static void check_turns(Device *dev, const weight_t *w, const float *numbers)
{
    const size_t turns[] = {0, 1, 2, 3, 3, 2, 1, 0, 0, 2, 1}, count = sizeof turns / sizeof *turns;
    for (size_t t = 0; t < count; t++) {
        const size_t at = turns[t] * PIECE, next = t + 1 < count && t != 8 ? turns[t + 1] * PIECE : at;
#ifdef GPU_EMULATOR
        const size_t asked = dev->stream->asked;
        const weight_t *before = dev->weight_slots[0].piece.first, *other = dev->weight_slots[1].piece.first;
#endif
        weights_stream(dev, WeightPiece{w + at, PIECE}, WeightPiece{w + next, PIECE});
#ifdef GPU_EMULATOR
        if (before != dev->weight_slots[0].piece.first || other != dev->weight_slots[1].piece.first)
            CHECK(t < 2 || dev->fetching->behind[dev->stream] + 1 >= asked,
                  "turn %zu: a piece is overwritten before its readers are done", t);
#endif
        bool is_coming = false;
        for (const WeightSlot &slot : dev->weight_slots) is_coming |= slot.piece.first == w + next;
        CHECK(is_coming, "turn %zu: the next piece is not on its way", t);
        CHECK(kernel_reads(dev, w + at, KEPT_AT, numbers + at), "turn %zu: its beginning", t);
        CHECK(kernel_reads(dev, w + at + KEPT_AT, KEPT, numbers + at + KEPT_AT), "turn %zu: what is kept of it", t);
        CHECK(kernel_reads(dev, w + at + KEPT_AT + KEPT, PIECE - KEPT_AT - KEPT, numbers + at + KEPT_AT + KEPT),
              "turn %zu: its end", t);
        CHECK(kernel_reads(dev, w + PIECES * PIECE + 3, TAIL - 3, numbers + PIECES * PIECE + 3), "turn %zu: the tail",
              t);
    }
}

static void streamed_weights_come_in_turn(void)
{
    std::vector<float> numbers(STREAMED), others(STREAMED), back(STREAMED);
    Error error = {};
    Device *dev = device_open(1, MATMUL_FP32, &error);
    device_stream_weights(dev);
    weight_t *w = weights_alloc_model(dev, STREAMED), *whole = weights_alloc(STREAMED);
    for (size_t i = 0; i < STREAMED; i++) numbers[i] = sinf((float)i), others[i] = cosf((float)i);
    CHECK(weights_are_streamed(w) && !weights_are_streamed(whole));
    CHECK(weights_device_bytes(w, STREAMED) == 0 && weights_device_bytes(whole, STREAMED) == 4 * STREAMED);
    CHECK(weights_keep(w + KEPT_AT, KEPT, PIECES, PIECE, &error) == 0, "%s", error.text);
    CHECK(weights_keep(w + PIECES * PIECE, TAIL, 1, 0, &error) == 0, "%s", error.text);
    weights_upload(dev, w, numbers.data(), STREAMED);
    check_turns(dev, w, numbers.data());
    CHECK(weights_here(dev, w + KEPT_AT + 2 * PIECE) - weights_here(dev, w + KEPT_AT) ==
          (ptrdiff_t)(2 * weights_stride_here(w + KEPT_AT, PIECE)));
    CHECK(weights_device_bytes(w, STREAMED) < STREAMED * sizeof *w);
    CHECK(weights_here(dev, whole + 5) == whole + 5 && weights_here(dev, NULL) == NULL);
    weights_download(dev, back.data(), w, STREAMED);
    CHECK(same_bits(numbers, back.data()), "both halves come back");
    weights_upload(dev, w, others.data(), STREAMED);
    check_turns(dev, w, others.data());
    weights_copy(dev, whole, w, STREAMED);
    weights_download(dev, back.data(), whole, STREAMED);
    CHECK(same_bits(others, back.data()), "copied from streamed ones");
    weights_upload(dev, whole, numbers.data(), STREAMED);
    weights_copy(dev, w, whole, STREAMED);
    check_turns(dev, w, numbers.data());
    CHECK(weights_park(dev, w, true, &error) == 0, "they are parked");
    CHECK(weights_park(dev, w, false, &error) == -1 && strstr(error.text, "cannot be trained"), "%s", error.text);
    weights_free(w), weights_free(whole);
    device_close(dev);
}

/* A matrix's update as the optimizer asks for it: of both halves, in the order of the stream. */
static __global__ void add_one_kernel(weight_t *upper, int16_t *lower, size_t n)
{
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) upper[i].bits += 1, lower[i] = (int16_t)(lower[i] + 1);
}

/* The numbers with one added to both halves of each, `times` times. */
static std::vector<float> added(const std::vector<float> &numbers, size_t from, size_t n, unsigned times)
{
    std::vector<float> result = numbers;
    std::vector<weight_t> upper(n);
    std::vector<int16_t> lower(n);
    weights_split(upper.data(), lower.data(), numbers.data() + from, n);
    for (size_t i = 0; i < n; i++)
        upper[i].bits = (uint16_t)(upper[i].bits + times), lower[i] = (int16_t)(lower[i] + (int)times);
    weights_join(result.data() + from, upper.data(), lower.data(), n);
    return result;
}

/* Offloaded: nine tensors of different sizes, more than there are slots for, and a tail that stays on the card. */
enum { TENSORS = 9, TENSOR = 700, OFFLOADED = TENSORS * TENSOR, STAYS = 333 };

/* Every tensor is updated in each of these orders, then the tail. */
static const size_t orders[][TENSORS] = {{0, 1, 2, 3, 4, 5, 6, 7, 8}, /* as rows_sum_of_squares reads them */
                                         {8, 7, 5, 6, 3, 4, 1, 2, 0}, {8, 7, 5, 6, 3, 4, 1, 2, 0},
                                         {8, 7, 5, 6, 3, 4, 1, 2, 0}, {0, 2, 8, 4, 6, 1, 7, 3, 5},
                                         {8, 7, 5, 6, 3, 4, 1, 2, 0}, {8, 7, 5, 6, 3, 4, 1, 2, 0}};
enum { ORDERS = sizeof orders / sizeof *orders };

static void update(Device *dev, weight_t *first, size_t n)
{
    int16_t *lower = lower_take(dev, first, n);
    CHECK((uintptr_t)lower % 16 == (uintptr_t)first % 16, "a lower half has another place than the upper one");
    launch(dev, add_one_kernel, dim3(1), dim3(64), 0, first, lower, n);
#ifdef GPU_EMULATOR
    const size_t asked = dev->fetching->asked;
    lower_return(dev, first);
    const WeightSlot *again = is_offloaded(planes_of(first), first) ? lower_slot(dev, first) : NULL;
    CHECK(!is_offloaded(planes_of(first), first) || dev->fetching->behind[dev->stream] == dev->stream->asked,
          "a lower half goes back before it is updated");
    CHECK(!again || again->filled->after > asked + 2, "a lower half is used again before it went back");
#else
    lower_return(dev, first);
#endif
}

static void offloaded_weights_come_for_their_update(void)
{
    enum { N = OFFLOADED + STAYS };
    std::vector<float> numbers(N), back(N);
    Error error = {};
    Device *dev = device_open(1, MATMUL_FP32, &error);
    weight_t *w = weights_alloc(N), *whole = weights_alloc(N);
    const auto tensor = [&](size_t t) { return WeightPiece{w + t * TENSOR + t, TENSOR - 3 * t}; }; /* odd places */
    const auto holds = [&](const weight_t *weights, const char *when) {
        weights_download(dev, back.data(), weights, N);
        CHECK(same_bits(numbers, back.data()), "%s", when);
    };
    for (size_t i = 0; i < N; i++) numbers[i] = sinf((float)i);
    weights_upload(dev, w, numbers.data(), N);
    for (int round = 0; round < 2; round++) /* the second time nothing is to be done */
        CHECK(weights_offload(dev, w, OFFLOADED, &error) == 0, "%s", error.text);
    CHECK(weights_device_bytes(w, N) == N * 2 + (STAYS + OFFLOADED % PLACE) * 2);
    CHECK(weights_remainder(w + OFFLOADED + 5) - weights_remainder(w + OFFLOADED) == 5);
    holds(w, "offloaded");
    for (size_t o = 0; o < ORDERS; o++) {
        size_t fetched_ahead = 0;
        for (size_t t : orders[o]) {
            const WeightPiece piece = tensor(t);
            fetched_ahead += lower_slot(dev, piece.first) != NULL;
            update(dev, (weight_t *)piece.first, piece.n);
            numbers = added(numbers, (size_t)(piece.first - w), piece.n, 1);
        }
        update(dev, w + OFFLOADED, STAYS);
        numbers = added(numbers, OFFLOADED, STAYS, 1);
        /* An order that was that of the step before is known from its second tensor on; when the step before that had
         * it too, from its first. */
        CHECK(o < 2 || o == 4 || o == 5 || fetched_ahead >= TENSORS - 1, "step %zu: %zu fetched ahead", o,
              fetched_ahead);
        CHECK(o != 3 || fetched_ahead == TENSORS, "step %zu: %zu fetched ahead", o, fetched_ahead);
        if (o == 1 || o == 5) holds(w, "updated");
    }
    holds(w, "updated, in the end");
    for (size_t round = 0; round < 6; round++) { /* fewer tensors than slots */
        const WeightPiece piece = tensor(round % 2);
        update(dev, (weight_t *)piece.first, piece.n);
        numbers = added(numbers, (size_t)(piece.first - w), piece.n, 1);
    }
    holds(w, "two of them updated");
    std::vector<float> others(N);
    for (size_t i = 0; i < N; i++) others[i] = cosf((float)i);
    update(dev, (weight_t *)tensor(8).first, tensor(8).n); /* the next ones are on their way when all changes */
    numbers = others;
    weights_upload(dev, w, numbers.data(), N);
    update(dev, (weight_t *)tensor(7).first, tensor(7).n);
    numbers = added(numbers, (size_t)(tensor(7).first - w), tensor(7).n, 1);
    holds(w, "uploaded, and updated");
    weights_copy(dev, whole, w, N);
    holds(whole, "copied from offloaded ones");
    weights_upload(dev, whole, others.data(), N);
    weights_copy(dev, w, whole, N);
    numbers = others;
    holds(w, "copied into offloaded ones");
    update(dev, (weight_t *)tensor(3).first, tensor(3).n);
    numbers = added(numbers, (size_t)(tensor(3).first - w), tensor(3).n, 1);
    CHECK(weights_park(dev, w, true, &error) == 0 && weights_device_bytes(w, N) == N * 2, "%s", error.text);
    for (const WeightSlot &slot : dev->lower_slots) CHECK(!slot.memory && !slot.capacity, "a slot keeps its memory");
    holds(w, "parked");
    CHECK(weights_offload(dev, w, OFFLOADED, &error) == 0, "%s", error.text);
    update(dev, (weight_t *)tensor(0).first, tensor(0).n);
    numbers = added(numbers, 0, tensor(0).n, 1);
    CHECK(weights_park(dev, w, false, &error) == 0 && weights_device_bytes(w, N) == N * 4, "%s", error.text);
    holds(w, "whole again");
    CHECK(weights_remainder(w + 5) - weights_remainder(w) == 5);
    weights_free(w), weights_free(whole);
    device_stream_weights(dev);
    w = weights_alloc_model(dev, N);
    CHECK(weights_offload(dev, w, OFFLOADED, &error) == -1 && strstr(error.text, "cannot be trained"), "%s",
          error.text);
    weights_free(w);
    device_close(dev);
}

#ifdef GPU_EMULATOR
/* As much of a model is on the card as there is room for. */
static void models_take_what_room_there_is(void)
{
    enum { N = 100000 };
    const size_t all = emulator::machine.memory;
    Error error = {};
    for (size_t bytes = 1; bytes <= 5; bytes += 2) { /* for each weight, of 4 */
        emulator::machine.memory = emulator::machine.memory_used + bytes * N;
        weight_t *w = weights_alloc_model(device(), N);
        CHECK(w && weights_are_streamed(w) == (bytes < 2), "%zu bytes a weight", bytes);
        CHECK(weights_device_bytes(w, N) == (bytes < 2 ? 0 : bytes < 4 ? 2 * N : 4 * N), "%zu bytes a weight", bytes);
        CHECK((weights_park(device(), w, false, &error) == 0) == (bytes > 4), "%zu bytes a weight", bytes);
        weights_free(w);
    }
    emulator::machine.memory = all;
    CHECK(!weights_alloc_model(device(), SIZE_MAX));
}
#endif

/* The caller's memory is free when an upload returns, though the copies go on; the ring is used several times over. */
static void uploads_leave_the_caller_free(void)
{
    enum { PIECES = 4000, LENGTH = 2501 }; /* half of them fill the ring */
    int32_t *memory = (int32_t *)device_alloc((size_t)PIECES * LENGTH * sizeof(int32_t));
    std::vector<int32_t> piece(LENGTH), back((size_t)PIECES * LENGTH);
    for (int32_t p = 0; p < PIECES; p++) {
        for (int32_t i = 0; i < LENGTH; i++) piece[(size_t)i] = p * 7919 + i;
        device_upload(device(), memory + (size_t)p * LENGTH, piece.data(), LENGTH * sizeof(int32_t));
        if (p == PIECES / 2) { /* a download in between comes through the ring too */
            float x;
            activations_download(device(), &x, (const act_t *)memory, 1);
        }
    }
    device_download(device(), back.data(), memory, back.size() * sizeof(int32_t));
    size_t wrong = 0;
    for (size_t i = 0; i < back.size(); i++) wrong += back[i] != (int32_t)(i / LENGTH) * 7919 + (int32_t)(i % LENGTH);
    CHECK(wrong == 0, "%zu numbers are wrong", wrong);
    device_free(memory);
}

static void copies_keep_their_order(void)
{
    enum { N = 100 };
    float host[N], got[N];
    float *a = (float *)device_alloc(sizeof host), *b = (float *)device_alloc(sizeof host);
    for (int i = 0; i < N; i++) host[i] = (float)i;
    stats_upload(device(), a, host, N);
    device_copy(device(), b, a, sizeof host);
    device_clear(device(), a, sizeof host);
    device_copy(device(), b + 50, a, 10 * sizeof *a);
    stats_download(device(), got, b, N);
    for (int i = 0; i < N; i++) CHECK(got[i] == (i >= 50 && i < 60 ? 0 : host[i]), "place %d: %g", i, got[i]);
    logits_download(device(), got, a, N);
    for (int i = 0; i < N; i++) CHECK(got[i] == 0, "place %d: %g", i, got[i]);
    device_upload(device(), a, host, 0);
    device_download(device(), got, a, 0);
    device_free(a), device_free(b), device_free(NULL);
}

/* A readback has the numbers as they were in its turn, whatever is asked of the device before they are looked at. */
static void readbacks_keep_their_turn(void)
{
    enum { N = 1000 };
    std::vector<float> numbers(N), others(N);
    float *a = (float *)device_alloc(N * sizeof *a);
    Readback *first = readback_create(device(), 8 + N * sizeof *a), *second = readback_create(device(), N * sizeof *a);
    for (int i = 0; i < N; i++) numbers[(size_t)i] = (float)i, others[(size_t)i] = (float)-i;
    CHECK(readback_is_there(first), "nothing was asked for");
    stats_upload(device(), a, numbers.data(), N);
    readback_copy(first, 8, a, N * sizeof *a);
    readback_copy(first, 0, a + 7, sizeof *a);
    stats_upload(device(), a, others.data(), N);
    readback_copy(second, 0, a, N * sizeof *a);
    device_clear(device(), a, N * sizeof *a);
#ifdef GPU_EMULATOR
    CHECK(!readback_is_there(first) && !readback_is_there(second), "nobody has waited");
#endif
    const char *bytes = (const char *)readback_wait(first);
    CHECK(same_bits(numbers, (const float *)(bytes + 8)));
    CHECK(*(const float *)bytes == 7);
    CHECK(readback_is_there(first));
    CHECK(same_bits(others, (const float *)readback_wait(second)));
    CHECK(!readback_create(device(), (size_t)1 << 50), "no such memory");
    readback_copy(second, 0, a, N * sizeof *a);
    readback_free(second); /* while a copy is on its way */
    readback_free(first), readback_free(NULL);
    device_free(a);
}

static void activations_come_as_floats(void)
{
    const size_t n = SLOT_BYTES / 2 + 3; /* more than one part */
    std::vector<float> numbers(n), got(n, NAN);
    act_t *x = (act_t *)device_alloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) numbers[i] = round_to_bf16(sinf((float)i));
    activations_upload(device(), x, numbers.data(), n);
    activations_download(device(), got.data(), x, n);
    CHECK(same_bits(numbers, got.data()));
    device_free(x);
}

static __global__ void fill_kernel(char *at, size_t n, char value)
{
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) at[i] = value;
}

static void scratch_grows(void)
{
    char last = 0;
    for (size_t bytes : {(size_t)100, (size_t)50, (size_t)5000, (size_t)5001}) {
        char *scratch = (char *)device_scratch(device(), bytes);
        CHECK((uintptr_t)scratch % 256 == 0);
        launch(device(), fill_kernel, dim3(1), dim3(64), 0, scratch, bytes, (char)7);
        device_download(device(), &last, scratch + bytes - 1, 1);
        CHECK(last == 7);
    }
    launch(device(), fill_kernel, dim3(0), dim3(64), 0, (char *)NULL, (size_t)1, (char)0); /* nothing to do */
}

static void no_memory_is_an_answer(void)
{
    CHECK(!device_alloc((size_t)1 << 50));
    CHECK(!weights_alloc((size_t)1 << 50));
    CHECK(!weights_alloc(SIZE_MAX));
    const size_t before = device_memory_available();
    void *memory = device_alloc((size_t)64 << 20);
    CHECK(memory && device_memory_available() < before, "%zu bytes, then %zu", before, device_memory_available());
    device_free(memory);
    memory = device_alloc(0);
    CHECK(memory, "nothing is something to point at");
    device_free(memory);
}

static void opening_says_what_is_wrong(void)
{
    Error error;
    CHECK(!device_open(-1, MATMUL_FP32, &error) && error.exit_code == EXIT_USAGE);
    CHECK(device_threads(device()) == 3 && device_has_bf16());
    Device *second = device_open(0, MATMUL_FP32, &error);
    CHECK(second && device_threads(second) >= 1);
    device_close(second);
    device_close(NULL);
#ifdef GPU_EMULATOR
    static const struct {
        int major;
        const char *text;
    } cards[] = {{0, "no NVIDIA card to be found"}, {7, "expected compute capability 8.0, found 7.0"}};
    for (const auto &card : cards) {
        emulator::machine.compute_major = card.major;
        CHECK(!device_open(1, MATMUL_FP32, &error) && strstr(error.text, card.text), "%s", error.text);
        CHECK(error.exit_code == EXIT_FAILED);
    }
    emulator::machine.compute_major = 9;
#endif
}

/* ----------------------------------------------------------------------------------------------------------------
 * common.cuh */
static __global__ void round_kernel(bf16_t *one, uint32_t *two, float *back, const float *x, size_t n)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    one[i] = float_to_bf16(x[i]);
    two[i] = pack_bf16x2(x[i], x[n - 1 - i]);
    back[2 * i] = bf16_to_float(one[i]) - unpack_bf16x2(two[i]).x;
    back[2 * i + 1] = unpack_bf16x2(two[i]).y;
}

static void bf16_rounds_to_even(void)
{
    const std::vector<float> numbers = all_kinds_of_numbers();
    const size_t n = numbers.size();
    float *x = (float *)device_alloc(n * 4), *back = (float *)device_alloc(n * 8);
    bf16_t *one = (bf16_t *)device_alloc(n * 2);
    uint32_t *two = (uint32_t *)device_alloc(n * 4);
    stats_upload(device(), x, numbers.data(), n);
    launch(device(), round_kernel, dim3((unsigned)ceil_div(n, (size_t)256)), dim3(256), 0, one, two, back, x, n);
    std::vector<bf16_t> ones(n);
    std::vector<uint32_t> twos(n);
    std::vector<float> backs(2 * n);
    device_download(device(), ones.data(), one, n * 2);
    device_download(device(), twos.data(), two, n * 4);
    stats_download(device(), backs.data(), back, 2 * n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t want = isnan(numbers[i]) ? 0x7fff : bits_of(round_to_bf16(numbers[i])) >> 16;
        const uint32_t other = isnan(numbers[n - 1 - i]) ? 0x7fff : bits_of(round_to_bf16(numbers[n - 1 - i])) >> 16;
        wrong += ones[i].bits != want || twos[i] != (other << 16 | want);
        wrong += isfinite(float_of(want << 16)) && backs[2 * i] != 0;
        wrong += bits_of(backs[2 * i + 1]) != other << 16;
    }
    CHECK(wrong == 0, "%zu numbers are wrong", wrong);
    device_free(x), device_free(back), device_free(one), device_free(two);
}

/* One thread for each four columns of a row of the packed matrix. */
static __global__ void mask_kernel(float *out, Sequences sequences, Dropout dropout, size_t width)
{
    const size_t row = blockIdx.x, b = sequence_of_row(sequences.start, sequences.count, row);
    const size_t place = row - (size_t)sequences.start[b];
    float factor[4];
    if (row < (size_t)sequences.start[b] || place >= (size_t)sequences.length[b]) return;
    dropout_four(factor, dropout, dropout.site, (uint32_t)(sequences.first_example + b), (uint32_t)place, threadIdx.x);
    for (size_t i = 0, c = 4 * threadIdx.x; i < 4 && c < width; i++, c++) out[row * width + c] = factor[i];
}

/* dropout_forward of ones is the mask. Rows before, between and behind the sequences keep what they were. */
static void dropout_drops_what_the_cpu_drops(void)
{
    enum { ROWS = 40, WIDTH = 75, COUNT = 4 };
    const int32_t start[COUNT] = {2, 9, 10, 30}, length[COUNT] = {7, 1, 15, 9};
    int32_t *places = (int32_t *)device_alloc(sizeof start + sizeof length);
    float *out = (float *)device_alloc(ROWS * WIDTH * sizeof *out);
    Error error;
    cpu::Device *host = cpu_device_open(1, cpu::MATMUL_FP32, &error);
    device_upload(device(), places, start, sizeof start);
    device_upload(device(), places + COUNT, length, sizeof length);
    for (float rate : {0.0f, 0.1f, 0.5f, 1.0f})
        for (bool shared : {false, true}) {
            std::vector<float> want(ROWS * WIDTH, 1), got(want);
            stats_upload(device(), out, got.data(), got.size());
            launch(device(), mask_kernel, dim3(ROWS), dim3(ceil_div<unsigned>(WIDTH, 4)), 0, out,
                   Sequences{places, places + COUNT, COUNT, ROWS, 15, 100},
                   Dropout{rate, 0x123456789abcdef0, 77, shared}, (size_t)WIDTH);
            stats_download(device(), got.data(), out, got.size());
            const cpu::Sequences sequences = {start, length, COUNT, ROWS, 15, 100};
            const cpu::Dropout dropout = {rate, 0x123456789abcdef0, 77, shared};
            cpu_dropout_forward(host, want.data(), &sequences, WIDTH, &dropout);
            CHECK(same_bits(want, got.data()), "rate %g, shared %d", rate, shared);
        }
    cpu_device_close(host);
    device_free(places), device_free(out);
}

static const Test tests[] = {
    {"weights_are_exact", weights_are_exact},
    {"weights_of_all_sizes", weights_of_all_sizes},
    {"weights_have_their_remainders", weights_have_their_remainders},
    {"weights_park_and_return", weights_park_and_return},
    {"streamed_weights_come_in_turn", streamed_weights_come_in_turn},
    {"offloaded_weights_come_for_their_update", offloaded_weights_come_for_their_update},
#ifdef GPU_EMULATOR
    {"models_take_what_room_there_is", models_take_what_room_there_is},
#endif
    {"uploads_leave_the_caller_free", uploads_leave_the_caller_free},
    {"copies_keep_their_order", copies_keep_their_order},
    {"readbacks_keep_their_turn", readbacks_keep_their_turn},
    {"activations_come_as_floats", activations_come_as_floats},
    {"scratch_grows", scratch_grows},
    {"no_memory_is_an_answer", no_memory_is_an_answer},
    {"opening_says_what_is_wrong", opening_says_what_is_wrong},
    {"bf16_rounds_to_even", bf16_rounds_to_even},
    {"dropout_drops_what_the_cpu_drops", dropout_drops_what_the_cpu_drops},
};

TEST_MAIN(tests)
