/* gpu_bandwidth.h: what the tests of the bandwidth-bound kernels of gpu/ share.
 *
 * A test makes random numbers, rounds them to what the device can hold, gives them to a CPU kernel and to its CUDA
 * twin, and compares. Outputs lie in memory that was filled with NaN. Kernels run in the emulator, or on a card when
 * nvcc compiles the same file. Include the .cu files first. */
#ifndef GPU_BANDWIDTH_H
#define GPU_BANDWIDTH_H

#include <vector>

#include "gpu_twins.h"
#include "test.h"

typedef std::vector<float> Floats;
typedef std::vector<int32_t> Ints;

static Device *dev;       /* the one under test */
static cpu::Device *host; /* its specification */

inline void open_devices()
{
    Error error;
    if (dev) return;
    dev = device_open(1, MATMUL_BF16, &error);
    host = cpu_device_open(2, cpu::MATMUL_FP32, &error);
    if (!dev || !host) {
        fprintf(stderr, "no device\n");
        exit(1);
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Random numbers on the host */
static uint64_t random_state = 1;

inline uint32_t random_bits()
{
    random_state += 0x9E3779B97F4A7C15u; /* SplitMix64 */
    uint64_t x = random_state;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

inline size_t random_below(size_t n)
{
    return random_bits() % n;
}

/* About normal, with the standard deviation `scale`. */
inline Floats random_floats(size_t n, float scale)
{
    Floats x(n);
    for (float &a : x) {
        a = -2;
        for (int i = 0; i < 4; i++) a += (float)random_bits() * 0x1p-32f;
        a *= scale * 1.7320508f;
    }
    return x;
}

inline Floats rounded(Floats x) /* to bf16 */
{
    for (float &a : x) a = round_to_bf16(a);
    return x;
}

inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* What products and activations see of exact weights: their upper half, rounded with ties away from zero. */
inline Floats upper_halves(Floats w)
{
    for (float &a : w) a = float_of((bits_of(a) + 0x8000u) & 0xffff0000u);
    return w;
}

/* ----------------------------------------------------------------------------------------------------------------
 * Arrays on the device, filled with NaN or from the host */
template <typename T> struct OnDevice {
    T *data;
    size_t n;
    explicit OnDevice(size_t count) : data((T *)device_alloc(count * sizeof(T))), n(count)
    {
        const std::vector<unsigned char> poison(count * sizeof(T) + 1, 0xff);
        device_upload(dev, data, poison.data(), count * sizeof(T));
    }
    ~OnDevice()
    {
        device_free(data);
    }
    OnDevice(const OnDevice &) = delete;
    operator T *() const
    {
        return data;
    }
};

struct Acts : OnDevice<act_t> {
    using OnDevice<act_t>::OnDevice;
    explicit Acts(const Floats &x) : OnDevice<act_t>(x.size())
    {
        activations_upload(dev, data, x.data(), n);
    }
    Floats read() const
    {
        Floats x(n);
        activations_download(dev, x.data(), data, n);
        return x;
    }
};

struct Stats : OnDevice<stat_t> {
    using OnDevice<stat_t>::OnDevice;
    explicit Stats(const Floats &x) : OnDevice<stat_t>(x.size())
    {
        stats_upload(dev, data, x.data(), n);
    }
    Floats read() const
    {
        Floats x(n);
        stats_download(dev, x.data(), data, n);
        return x;
    }
};

struct IntArray : OnDevice<int32_t> {
    using OnDevice<int32_t>::OnDevice;
    explicit IntArray(const Ints &x) : OnDevice<int32_t>(x.size())
    {
        device_upload(dev, data, x.data(), n * sizeof(int32_t));
    }
    Ints read() const
    {
        Ints x(n);
        device_download(dev, x.data(), data, n * sizeof(int32_t));
        return x;
    }
};

struct Weights { /* exact */
    weight_t *data;
    size_t n;
    explicit Weights(const Floats &x) : data(weights_alloc(x.size())), n(x.size())
    {
        weights_upload(dev, data, x.data(), n);
    }
    ~Weights()
    {
        weights_free(data);
    }
    Weights(const Weights &) = delete;
    operator weight_t *() const
    {
        return data;
    }
    Floats read() const
    {
        Floats x(n);
        weights_download(dev, x.data(), data, n);
        return x;
    }
};

/* Packed sequences of the given lengths, some of them with a gap of one row in front, on both sides. */
struct PackedSequences {
    Ints start, length;
    size_t rows;
    IntArray *device_start, *device_length;
    PackedSequences(const Ints &lengths, bool gaps) : length(lengths), rows(0)
    {
        for (size_t b = 0; b < length.size(); b++) {
            rows += gaps && b % 2;
            start.push_back((int32_t)rows);
            rows += (size_t)length[b];
        }
        rows += gaps;
        device_start = new IntArray(start);
        device_length = new IntArray(length);
    }
    ~PackedSequences()
    {
        delete device_start;
        delete device_length;
    }
    PackedSequences(const PackedSequences &) = delete;
    size_t longest() const
    {
        int32_t most = 0;
        for (int32_t n : length) most = n > most ? n : most;
        return (size_t)most;
    }
    Sequences on_device(size_t first_example) const
    {
        return Sequences{*device_start, *device_length, length.size(), rows, longest(), first_example};
    }
    cpu::Sequences on_host(size_t first_example) const
    {
        return cpu::Sequences{start.data(), length.data(), length.size(), rows, longest(), first_example};
    }
};

/* ----------------------------------------------------------------------------------------------------------------
 * Comparing. Each bound says where it comes from. */
#define HALF_ULP_BF16 0x1p-8f /* relative: what rounding a result to bf16, with its 8 bits, may change */

/* |got - want| <= relative |want| + absolute for all; prints the worst when not. NaN equals NaN only. */
inline bool are_close(const Floats &got, const Floats &want, float relative, float absolute)
{
    size_t worst = got.size(), wrong = 0;
    double most = 0;
    if (got.size() != want.size()) return false;
    for (size_t i = 0; i < got.size(); i++) {
        double excess = fabs((double)got[i] - want[i]) / ((double)relative * fabs((double)want[i]) + absolute + 1e-300);
        if (got[i] == want[i] || (got[i] != got[i] && want[i] != want[i])) continue;
        if (excess <= 1) continue;
        wrong++;
        if (!(excess <= most) || worst == got.size()) worst = i, most = excess;
    }
    if (wrong)
        fprintf(stderr, "    %zu of %zu differ, most at %zu: %.9g, should be %.9g (%.3g times the bound)\n", wrong,
                got.size(), worst, got[worst], want[worst], most);
    return wrong == 0;
}

inline bool same_bits(const Floats &got, const Floats &want)
{
    size_t wrong = 0, first = 0;
    if (got.size() != want.size()) return false;
    for (size_t i = got.size(); i-- > 0;)
        if (bits_of(got[i]) != bits_of(want[i])) wrong++, first = i;
    if (wrong)
        fprintf(stderr, "    %zu of %zu differ in their bits, first %zu: %.9g, should be %.9g\n", wrong, got.size(),
                first, got[first], want[first]);
    return wrong == 0;
}

#endif
