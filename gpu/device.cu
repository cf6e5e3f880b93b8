/* device.cu: the card, its memory, and how numbers get in and out.
 *
 * Weights. The optimizer works on exact fp32 weights, the products read bf16. Instead of keeping both (6 bytes), an
 * fp32 is cut into two halves of 16 bits that lie in two planes: products read the upper plane alone, the optimizer
 * both (4 bytes). With u the bits of the fp32,
 *
 *     upper = (u + 0x8000) >> 16      u rounded to bf16, to nearest, ties away from zero
 *     lower = the low 16 bits of u, as a signed number
 *     u     = (upper << 16) + lower   modulo 2^32
 *
 * gives u back exactly, whatever u is: when the low half is 0x8000 or more, the upper half was rounded up by one, and
 * lower is negative by just that. (Ties cannot go to even: an even upper half would then have 65,537 weights, one more
 * than 16 bits can tell apart.) A weight_t * points into the upper plane; where the lower one is, weights_remainder
 * finds by address. While a model is frozen, its lower plane may be parked on the host, and where the upper one has no
 * room on the card either, both are there (Streaming, below). A lower plane that is trained may be there too, and come
 * to the card a tensor at a time (Lower halves on the host).
 *
 * Copies. Everything is done in the order of one stream. An upload is first copied to pinned memory, a ring of slots,
 * from which the card fetches it by itself: the caller's memory is free at once and the host waits only when the whole
 * ring is still under way. A download waits until the numbers are there; a readback is a download that does not. */
#include <unistd.h>

#include "common.cuh"

enum { SLOT_BYTES = 4 << 20, OLDEST_MAJOR = 8 };

/* ================================================================================================================
 * Opening and closing */

/* Is there a card that this build can use? Fills dev and returns 0, or says why not. */
static int card_find(Device *dev, Error *error)
{
    int driver = 0, runtime = 0, cards = 0;
    cudaError_t status = cudaGetDeviceCount(&cards);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver) return error_set(error, EXIT_FAILED, "device: no NVIDIA driver is installed here");
    if (driver / 1000 < runtime / 1000)
        return error_set(error, EXIT_FAILED,
                         "device: the NVIDIA driver is too old (expected one for CUDA %d, found %d.%d)", runtime / 1000,
                         driver / 1000, driver % 1000 / 10);
    if (status != cudaSuccess || !cards)
        return error_set(error, EXIT_FAILED, "device: no NVIDIA card to be found (%s)", cudaGetErrorString(status));
    if ((status = cudaSetDevice(0)) != cudaSuccess ||
        (status = cudaDeviceGetAttribute(&dev->sm_count, cudaDevAttrMultiProcessorCount, 0)) != cudaSuccess ||
        (status = cudaDeviceGetAttribute(&dev->compute_major, cudaDevAttrComputeCapabilityMajor, 0)) != cudaSuccess ||
        (status = cudaDeviceGetAttribute(&dev->compute_minor, cudaDevAttrComputeCapabilityMinor, 0)) != cudaSuccess)
        return error_set(error, EXIT_FAILED, "device: the card does not answer (%s)", cudaGetErrorString(status));
    if (dev->compute_major < OLDEST_MAJOR)
        return error_set(error, EXIT_FAILED,
                         "device: the card has no bf16 (expected compute capability 8.0, found %d.%d)",
                         dev->compute_major, dev->compute_minor);
    dev->hopper = dev->compute_major == 9 && dev->compute_minor == 0;
    return 0;
}

static cudaError_t slot_open(WeightSlot *slot)
{
    const cudaError_t status = cudaEventCreateWithFlags(&slot->filled, cudaEventDisableTiming);
    return status == cudaSuccess ? cudaEventCreateWithFlags(&slot->released, cudaEventDisableTiming) : status;
}

static void slot_close(WeightSlot *slot)
{
    if (slot->filled) cudaEventDestroy(slot->filled);
    if (slot->released) cudaEventDestroy(slot->released);
    cudaFree(slot->memory);
}

static int stream_open(Device *dev, Error *error)
{
    cudaError_t status = cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaStreamCreateWithFlags(&dev->fetching, cudaStreamNonBlocking);
    for (int i = 0; i < STAGING_SLOTS && status == cudaSuccess; i++)
        status = cudaEventCreateWithFlags(&dev->sent[i], cudaEventDisableTiming);
    for (WeightSlot &slot : dev->weight_slots)
        if (status == cudaSuccess) status = slot_open(&slot);
    for (WeightSlot &slot : dev->lower_slots)
        if (status == cudaSuccess) status = slot_open(&slot);
    if (status == cudaSuccess) status = cudaMallocHost((void **)&dev->staging, (size_t)STAGING_SLOTS * SLOT_BYTES);
    if (status == cudaSuccess) return 0;
    return error_set(error, EXIT_FAILED, "device: no stream or no pinned memory (%s)", cudaGetErrorString(status));
}

/* precision is the CPU's choice of operands. A card has none: its operands are bf16, its sums fp32. */
extern "C" Device *device_open(int threads, MatmulPrecision precision, Error *error)
{
    (void)precision;
    if (threads < 0) {
        error_set(error, EXIT_USAGE, "threads: must not be negative (found %d)", threads);
        return NULL;
    }
    Device *dev = (Device *)calloc(1, sizeof *dev);
    if (!dev) {
        error_set(error, EXIT_FAILED, "device: no memory");
        return NULL;
    }
    dev->threads = threads ? threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (card_find(dev, error) || stream_open(dev, error)) {
        device_close(dev);
        return NULL;
    }
    return dev;
}

extern "C" void device_close(Device *dev)
{
    if (!dev) return;
    if (dev->stream) cudaStreamSynchronize(dev->stream);
    if (dev->fetching) cudaStreamSynchronize(dev->fetching);
    for (WeightSlot &slot : dev->weight_slots) slot_close(&slot);
    for (WeightSlot &slot : dev->lower_slots) slot_close(&slot);
    for (int i = 0; i < STAGING_SLOTS; i++)
        if (dev->sent[i]) cudaEventDestroy(dev->sent[i]);
    cudaFree(dev->scratch);
    cudaFreeHost(dev->staging);
    if (dev->fetching) cudaStreamDestroy(dev->fetching);
    if (dev->stream) cudaStreamDestroy(dev->stream);
    free(dev);
}

extern "C" int device_threads(const Device *dev)
{
    return dev->threads;
}

extern "C" void device_wait(Device *dev)
{
    cuda_check(cudaStreamSynchronize(dev->stream), "device");
}

extern "C" bool device_has_bf16(void)
{
    return true;
}

/* ================================================================================================================
 * Memory */
extern "C" size_t device_memory_available(void)
{
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

extern "C" void *device_alloc(size_t bytes)
{
    void *memory = NULL;
    if (cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess) return memory;
    (void)cudaGetLastError(); /* the refusal is answered; the next check must not find it */
    return NULL;
}

/* Kernels and copies that use the memory may be under way. cudaFree waits for them today, but is free not to. */
extern "C" void device_free(void *memory)
{
    if (!memory) return;
    cuda_check(cudaDeviceSynchronize(), "device memory");
    cuda_check(cudaFree(memory), "device memory");
}

void *device_scratch(Device *dev, size_t bytes)
{
    if (bytes > dev->scratch_bytes) {
        device_wait(dev); /* kernels may still work in the old one */
        device_free(dev->scratch);
        dev->scratch = (char *)device_alloc(bytes);
        dev->scratch_bytes = bytes;
        if (!dev->scratch) {
            fprintf(stderr, "promot: scratch memory: %zu bytes are not to be had\n", bytes);
            exit(EXIT_FAILED);
        }
    }
    return dev->scratch;
}

/* Streamed weights that stay on the card: count pieces of n elements, `stride` apart on the host and `here` apart in
 * memory. They come when a kernel first asks for them. */
typedef struct KeptWeights {
    struct KeptWeights *next;
    const weight_t *first;
    size_t n, count, stride, here;
    weight_t *memory;
    bool filled;
} KeptWeights;

/* A tensor whose lower half is offloaded, and the one that was updated after it the last time (NULL: not known). */
typedef struct OffloadedTensor {
    struct OffloadedTensor *next, *after;
    WeightPiece piece;
} OffloadedTensor;

/* Every allocation of weights, in a list: there are a handful (the model, prompts, an adapter and its bases). The lower
 * plane is on the card, or parked on the host, or its first `offloaded` elements are there, in pinned memory, and the
 * others on the card. Streamed: the upper one is on the host too, in pinned memory. */
typedef struct WeightPlanes {
    struct WeightPlanes *next;
    weight_t *upper;
    int16_t *lower;  /* [n - first_on_card], or NULL */
    int16_t *parked; /* [n], or NULL; of offloaded ones the first are up to date */
    size_t n, offloaded;
    bool streamed;
    KeptWeights *kept;
    OffloadedTensor *tensors, *latest; /* those that were updated, and the last of them */
} WeightPlanes;

static WeightPlanes *weight_planes;

/* Which kernel serves an update or a product may depend on whether addresses are multiples of 16 bytes. So whatever is
 * not at its own place begins at the same one within 256 bytes, and no bit depends on where it is. */
enum { PLACE = 256 / sizeof(weight_t) };

static weight_t *same_place(weight_t *memory, const weight_t *there)
{
    return memory + (uintptr_t)there % 256 / sizeof *there;
}

/* Where the lower plane that is on the card begins. */
static size_t first_on_card(const WeightPlanes *planes)
{
    return planes->offloaded / PLACE * PLACE;
}

static weight_t *planes_add(weight_t *upper, int16_t *lower, int16_t *parked, size_t n, bool streamed)
{
    WeightPlanes *planes = (WeightPlanes *)calloc(1, sizeof *planes);
    if (!planes) return NULL;
    planes->next = weight_planes;
    planes->upper = upper, planes->lower = lower, planes->parked = parked;
    planes->n = n, planes->streamed = streamed;
    weight_planes = planes;
    return upper;
}

extern "C" weight_t *weights_alloc(size_t n)
{
    if (n > SIZE_MAX / 8) return NULL;
    weight_t *upper = (weight_t *)device_alloc(n * sizeof *upper);
    int16_t *lower = upper ? (int16_t *)device_alloc(n * sizeof *lower) : NULL;
    if (lower && planes_add(upper, lower, NULL, n, false)) return upper;
    device_free(upper);
    device_free(lower);
    return NULL;
}

extern "C" void device_stream_weights(Device *dev)
{
    dev->streams_weights = true;
}

extern "C" weight_t *weights_alloc_model(const Device *dev, size_t n)
{
    if (n > SIZE_MAX / 8) return NULL;
    weight_t *upper = dev->streams_weights ? NULL : weights_alloc(n);
    if (upper) return upper;
    int16_t *parked = (int16_t *)malloc(n * sizeof *parked);
    if (parked && !dev->streams_weights) upper = (weight_t *)device_alloc(n * sizeof *upper);
    const bool streamed = parked && !upper;
    if (streamed && cudaMallocHost((void **)&upper, n * sizeof *upper) != cudaSuccess) {
        (void)cudaGetLastError(); /* as in device_alloc */
        upper = NULL;
    }
    if (upper && planes_add(upper, NULL, parked, n, streamed)) return upper;
    if (streamed)
        cudaFreeHost(upper);
    else
        device_free(upper);
    free(parked);
    return NULL;
}

static void tensors_forget(WeightPlanes *planes)
{
    while (planes->tensors) {
        OffloadedTensor *tensor = planes->tensors;
        planes->tensors = tensor->next;
        free(tensor);
    }
    planes->latest = NULL;
}

extern "C" void weights_free(weight_t *weights)
{
    for (WeightPlanes **at = &weight_planes; *at; at = &(*at)->next) {
        WeightPlanes *planes = *at;
        if (planes->upper != weights) continue;
        *at = planes->next;
        cuda_check(cudaDeviceSynchronize(), "weights"); /* copies from host memory may be under way */
        while (planes->kept) {
            KeptWeights *kept = planes->kept;
            planes->kept = kept->next;
            device_free(kept->memory);
            free(kept);
        }
        tensors_forget(planes);
        if (planes->streamed)
            cuda_check(cudaFreeHost(planes->upper), "host memory");
        else
            device_free(planes->upper);
        device_free(planes->lower);
        if (planes->offloaded) cuda_check(cudaHostUnregister(planes->parked), "host memory");
        free(planes->parked);
        free(planes);
        return;
    }
}

/* The end of an allocation belongs to it, so that empty tensors and ends of loops have a remainder too, unless another
 * allocation begins there. NULL: such memory is of no allocation of weights. */
static WeightPlanes *planes_find(const weight_t *weights)
{
    WeightPlanes *ends_there = NULL;
    for (WeightPlanes *planes = weight_planes; planes; planes = planes->next) {
        if (weights >= planes->upper && weights < planes->upper + planes->n) return planes;
        if (weights == planes->upper + planes->n) ends_there = planes;
    }
    return ends_there;
}

static WeightPlanes *planes_of(const weight_t *weights)
{
    WeightPlanes *planes = planes_find(weights);
    if (planes) return planes;
    fprintf(stderr, "promot: weights: %p is not in memory of weights_alloc\n", (const void *)weights);
    exit(EXIT_FAILED);
}

int16_t *weights_remainder(const weight_t *weights)
{
    const WeightPlanes *planes = planes_of(weights);
    const size_t at = (size_t)(weights - planes->upper);
    if (planes->lower && at >= planes->offloaded) return planes->lower + (at - first_on_card(planes));
    fprintf(stderr, "promot: weights: their lower halves are on the host and cannot change on the card\n");
    exit(EXIT_FAILED);
}

extern "C" void device_clear(Device *dev, void *memory, size_t bytes)
{
    cuda_check(cudaMemsetAsync(memory, 0, bytes, dev->stream), "clear");
}

extern "C" void device_copy(Device *dev, void *to, const void *from, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, dev->stream), "copy");
}

static inline size_t at_most(size_t n, size_t limit)
{
    return n < limit ? n : limit;
}

/* Exact: what is cut in two and put together again is what it was. */
static void weights_copy_through_host(Device *dev, weight_t *to, const weight_t *from, size_t n)
{
    enum { PART = 1 << 18 };
    float *const numbers = (float *)malloc(PART * sizeof *numbers);
    if (!numbers) {
        fprintf(stderr, "promot: memory: none left (asked for %zu bytes)\n", PART * sizeof *numbers);
        exit(EXIT_FAILED);
    }
    for (size_t done = 0, part; done < n; done += part) {
        part = at_most(n - done, PART);
        weights_download(dev, numbers, from + done, part);
        weights_upload(dev, to + done, numbers, part);
    }
    free(numbers);
}

extern "C" void weights_copy(Device *dev, weight_t *to, const weight_t *from, size_t n)
{
    const WeightPlanes *source = planes_of(from), *target = planes_of(to);
    const size_t bytes = n * sizeof(int16_t);
    if (source->streamed || target->streamed || source->offloaded || target->offloaded) {
        weights_copy_through_host(dev, to, from, n);
        return;
    }
    device_copy(dev, to, from, n * sizeof *to);
    if (!source->parked && !target->parked)
        device_copy(dev, weights_remainder(to), weights_remainder(from), bytes);
    else if (source->parked && target->parked)
        memcpy(target->parked + (to - target->upper), source->parked + (from - source->upper), bytes);
    else if (source->parked)
        device_upload(dev, weights_remainder(to), source->parked + (from - source->upper), bytes);
    else
        device_download(dev, target->parked + (to - target->upper), weights_remainder(from), bytes);
}

/* ================================================================================================================
 * Streaming
 *
 * Where the card has no room for a model's weights, they stay in pinned host memory, and the engine's addresses of them
 * are addresses there. A kernel finds them on the card (weights_here): either they are kept, or they belong to the piece
 * in turn, a layer. There are two slots for pieces. A stream of its own copies into the one while kernels read the
 * other, and two events keep them apart: kernels wait for `filled`, and the copy of the piece after next for `released`.
 * The host waits for neither. */

extern "C" bool weights_are_streamed(const weight_t *weights)
{
    return planes_of(weights)->streamed;
}

extern "C" size_t weights_device_bytes(const weight_t *weights, size_t n)
{
    const WeightPlanes *planes = planes_of(weights);
    size_t elements = planes->streamed ? 0 : n;
    for (const KeptWeights *kept = planes->kept; kept; kept = kept->next) elements += kept->count * kept->here;
    return elements * sizeof *planes->upper + (planes->lower ? (n - first_on_card(planes)) * sizeof *planes->lower : 0);
}

extern "C" int weights_keep(const weight_t *first, size_t n, size_t count, size_t stride, Error *error)
{
    WeightPlanes *planes = planes_of(first);
    if (!planes->streamed) return 0;
    KeptWeights *kept = (KeptWeights *)calloc(1, sizeof *kept);
    const size_t here = n + (count > 1 ? (stride - n) % PLACE : 0);
    weight_t *memory = kept ? (weight_t *)device_alloc((count * here + PLACE) * sizeof *memory) : NULL;
    if (!memory) {
        free(kept);
        return error_set(error, EXIT_FAILED, "memory: no room on the card for %zu weights between the layers",
                         count * n);
    }
    *kept = KeptWeights{planes->kept, first, n, count, stride, here, memory, false};
    planes->kept = kept;
    return 0;
}

/* The kept weights that hold w, or NULL. */
static KeptWeights *kept_find(const WeightPlanes *planes, const weight_t *w)
{
    for (KeptWeights *kept = planes->kept; kept; kept = kept->next) {
        if (w < kept->first) continue;
        const size_t offset = (size_t)(w - kept->first), piece = kept->count > 1 ? offset / kept->stride : 0;
        if (piece < kept->count && offset - piece * kept->stride < kept->n) return kept;
    }
    return NULL;
}

static void fetch(cudaStream_t stream, weight_t *to, const weight_t *host, size_t n)
{
    cuda_check(cudaMemcpyAsync(to, host, n * sizeof *to, cudaMemcpyHostToDevice, stream), "streamed weights");
}

static const weight_t *kept_here(Device *dev, KeptWeights *kept, const weight_t *w)
{
    weight_t *const memory = same_place(kept->memory, kept->first);
    const size_t offset = (size_t)(w - kept->first), piece = kept->count > 1 ? offset / kept->stride : 0;
    for (size_t i = 0; i < kept->count && !kept->filled; i++)
        fetch(dev->stream, memory + i * kept->here, kept->first + i * kept->stride, kept->n);
    kept->filled = true;
    return memory + piece * kept->here + (offset - piece * kept->stride);
}

static bool piece_holds(const WeightPiece &piece, const weight_t *w)
{
    return w >= piece.first && w < piece.first + piece.n;
}

const weight_t *weights_here(Device *dev, const weight_t *w)
{
    const WeightPlanes *planes = planes_find(w);
    if (!planes || !planes->streamed) return w;
    KeptWeights *kept = kept_find(planes, w);
    if (kept) return kept_here(dev, kept, w);
    const WeightSlot &slot = dev->weight_slots[dev->weight_slot];
    if (piece_holds(slot.piece, w)) return same_place(slot.memory, slot.piece.first) + (w - slot.piece.first);
    fprintf(stderr, "promot: weights: %p is streamed and not in turn\n", (const void *)w);
    exit(EXIT_FAILED);
}

size_t weights_stride_here(const weight_t *w, size_t w_stride)
{
    const WeightPlanes *planes = planes_find(w);
    const KeptWeights *kept = planes && planes->streamed ? kept_find(planes, w) : NULL;
    return kept && kept->count > 1 ? kept->here : w_stride;
}

/* Makes room in a slot for n elements, of either half: both have 2 bytes. It is not in turn, but its last readers may
 * still be at work. */
static void slot_make_room(Device *dev, WeightSlot *slot, size_t n)
{
    if (n <= slot->capacity) return;
    device_wait(dev);
    cuda_check(cudaStreamSynchronize(dev->fetching), "streamed weights");
    device_free(slot->memory);
    slot->memory = (weight_t *)device_alloc(n * sizeof *slot->memory);
    slot->capacity = n;
    if (slot->memory) return;
    fprintf(stderr, "promot: weights on their way: %zu bytes are not to be had\n", n * sizeof *slot->memory);
    exit(EXIT_FAILED);
}

/* How many of the n weights from w on are to be fetched, before the first one that is kept. */
static size_t run_to_fetch(const WeightPlanes *planes, const weight_t *w, size_t n)
{
    for (const KeptWeights *kept = planes->kept; kept; kept = kept->next)
        for (size_t i = 0; i < kept->count; i++) {
            const weight_t *begin = kept->first + i * kept->stride;
            if (begin + kept->n > w && begin < w + n) n = begin > w ? (size_t)(begin - w) : 0;
        }
    return n;
}

/* Fetches a piece into a slot, but for what is kept of it. */
static void slot_fill(Device *dev, WeightSlot *slot, WeightPiece piece)
{
    const WeightPlanes *planes = planes_of(piece.first);
    slot_make_room(dev, slot, piece.n + PLACE);
    weight_t *const memory = same_place(slot->memory, piece.first);
    cuda_check(cudaStreamWaitEvent(dev->fetching, slot->released, 0), "streamed weights");
    for (size_t at = 0; at < piece.n;) {
        const size_t run = run_to_fetch(planes, piece.first + at, piece.n - at);
        const KeptWeights *kept = run ? NULL : kept_find(planes, piece.first + at);
        if (run) fetch(dev->fetching, memory + at, piece.first + at, run);
        at += run ? run : kept->n;
    }
    cuda_check(cudaEventRecord(slot->filled, dev->fetching), "streamed weights");
    slot->piece = piece;
}

extern "C" void weights_stream(Device *dev, WeightPiece now, WeightPiece next)
{
    WeightSlot *const slots = dev->weight_slots;
    if (!planes_of(now.first)->streamed) return;
    if (slots[dev->weight_slot].piece.first != now.first) {
        cuda_check(cudaEventRecord(slots[dev->weight_slot].released, dev->stream), "streamed weights");
        dev->weight_slot = (dev->weight_slot + 1) % WEIGHT_SLOTS;
    }
    WeightSlot *const slot = &slots[dev->weight_slot], *const other = &slots[(dev->weight_slot + 1) % WEIGHT_SLOTS];
    if (slot->piece.first != now.first) slot_fill(dev, slot, now);
    cuda_check(cudaStreamWaitEvent(dev->stream, slot->filled, 0), "streamed weights");
    if (next.n && other->piece.first != next.first && slot->piece.first != next.first) slot_fill(dev, other, next);
}

/* What is on the card of these weights is out of date. */
static void streamed_forget(Device *dev, WeightPlanes *planes)
{
    cuda_check(cudaStreamSynchronize(dev->fetching), "streamed weights");
    device_wait(dev);
    for (KeptWeights *kept = planes->kept; kept; kept = kept->next) kept->filled = false;
    for (WeightSlot &slot : dev->weight_slots) slot.piece = WeightPiece{};
}

/* ================================================================================================================
 * Lower halves on the host
 *
 * *Parked* ones are those of a frozen model: nobody asks for them. *Offloaded* ones are trained. The optimizer takes a
 * tensor's lower half to the card for its update and gives it back changed (lower_take, lower_return). Both are copies
 * in the order of the stream that brings streamed weights: a slot is filled again behind the copy that empties it, and
 * a tensor is fetched behind the copy that brought it back. What comes next is what came next the last time, so from the
 * second step on a lower half is on its way while the backward pass is still at work on the gradient, and has a slot
 * beside those before it. Kernels wait for `filled`, the copy back for `released`, the host for neither. */
static bool is_offloaded(const WeightPlanes *planes, const weight_t *w)
{
    return (size_t)(w - planes->upper) < planes->offloaded;
}

static int16_t *lower_on_host(const WeightPlanes *planes, const weight_t *w)
{
    return planes->parked + (w - planes->upper);
}

static int16_t *lower_in_slot(const WeightSlot *slot, const weight_t *first)
{
    return (int16_t *)same_place(slot->memory, first);
}

static WeightSlot *lower_slot(Device *dev, const weight_t *first)
{
    for (WeightSlot &slot : dev->lower_slots)
        if (slot.piece.first == first) return &slot;
    return NULL;
}

/* The slots take turns, so the one that is filled is that of the tensor that was fetched the longest ago. */
static WeightSlot *lower_fetch(Device *dev, const WeightPlanes *planes, WeightPiece piece)
{
    WeightSlot *slot = &dev->lower_slots[dev->lower_turn];
    dev->lower_turn = (dev->lower_turn + 1) % LOWER_SLOTS;
    slot_make_room(dev, slot, piece.n + PLACE);
    cuda_check(cudaMemcpyAsync(lower_in_slot(slot, piece.first), lower_on_host(planes, piece.first),
                               piece.n * sizeof(int16_t), cudaMemcpyHostToDevice, dev->fetching),
               "offloaded weights");
    cuda_check(cudaEventRecord(slot->filled, dev->fetching), "offloaded weights");
    slot->piece = piece;
    return slot;
}

/* This tensor is updated now, after the one before. */
static void tensor_is_next(WeightPlanes *planes, WeightPiece piece)
{
    OffloadedTensor *tensor = planes->tensors;
    while (tensor && tensor->piece.first != piece.first) tensor = tensor->next;
    if (!tensor) {
        tensor = (OffloadedTensor *)calloc(1, sizeof *tensor);
        if (!tensor) {
            fprintf(stderr, "promot: memory: none left (asked for %zu bytes)\n", sizeof *tensor);
            exit(EXIT_FAILED);
        }
        tensor->piece = piece;
        tensor->next = planes->tensors;
        planes->tensors = tensor;
    }
    if (planes->latest) planes->latest->after = tensor;
    planes->latest = tensor;
}

int16_t *lower_take(Device *dev, const weight_t *first, size_t n)
{
    WeightPlanes *planes = planes_of(first);
    if (!is_offloaded(planes, first)) return weights_remainder(first);
    WeightSlot *slot = lower_slot(dev, first);
    tensor_is_next(planes, WeightPiece{first, n});
    if (!slot) slot = lower_fetch(dev, planes, WeightPiece{first, n});
    cuda_check(cudaStreamWaitEvent(dev->stream, slot->filled, 0), "offloaded weights");
    return lower_in_slot(slot, first);
}

void lower_return(Device *dev, const weight_t *first)
{
    const WeightPlanes *planes = planes_of(first);
    if (!is_offloaded(planes, first)) return;
    WeightSlot *slot = lower_slot(dev, first);
    cuda_check(cudaEventRecord(slot->released, dev->stream), "offloaded weights");
    cuda_check(cudaStreamWaitEvent(dev->fetching, slot->released, 0), "offloaded weights");
    cuda_check(cudaMemcpyAsync(lower_on_host(planes, first), lower_in_slot(slot, first),
                               slot->piece.n * sizeof(int16_t), cudaMemcpyDeviceToHost, dev->fetching),
               "offloaded weights");
    slot->piece = WeightPiece{};
    const OffloadedTensor *next = planes->latest->after;
    for (int ahead = 0; ahead < LOWER_SLOTS && next; ahead++, next = next->after)
        if (!lower_slot(dev, next->piece.first)) lower_fetch(dev, planes, next->piece);
}

/* The host's copy is up to date, and what the slots have of it forgotten: it may change now. */
static void offloaded_come_home(Device *dev)
{
    cuda_check(cudaStreamSynchronize(dev->fetching), "offloaded weights");
    for (WeightSlot &slot : dev->lower_slots) slot.piece = WeightPiece{};
}

/* From offloaded to parked. */
static void offloading_end(Device *dev, WeightPlanes *planes)
{
    offloaded_come_home(dev);
    for (WeightSlot &slot : dev->lower_slots) {
        device_free(slot.memory);
        slot.memory = NULL, slot.capacity = 0;
    }
    const size_t stays = planes->n - planes->offloaded;
    device_download(dev, planes->parked + planes->offloaded, weights_remainder(planes->upper + planes->offloaded),
                    stays * sizeof *planes->lower);
    device_free(planes->lower);
    cuda_check(cudaHostUnregister(planes->parked), "host memory");
    tensors_forget(planes);
    planes->lower = NULL, planes->offloaded = 0;
}

static int refuse_streamed(const WeightPlanes *planes, Error *error)
{
    return error_set(error, EXIT_FAILED, "memory: %zu weights are streamed from the host and cannot be trained",
                     planes->n);
}

extern "C" int weights_park(Device *dev, weight_t *weights, bool parked, Error *error)
{
    WeightPlanes *planes = planes_of(weights);
    const size_t bytes = planes->n * sizeof(int16_t);
    if (planes->offloaded) offloading_end(dev, planes);
    if (parked == (planes->parked != NULL)) return 0;
    if (planes->streamed) return refuse_streamed(planes, error);
    if (parked) {
        planes->parked = (int16_t *)malloc(bytes ? bytes : 1);
        if (!planes->parked) return error_set(error, EXIT_FAILED, "memory: no room for %zu parked weights", planes->n);
        device_download(dev, planes->parked, planes->lower, bytes);
        device_free(planes->lower);
        planes->lower = NULL;
        return 0;
    }
    planes->lower = (int16_t *)device_alloc(bytes);
    if (!planes->lower)
        return error_set(error, EXIT_FAILED, "memory: no room on the card for %zu weights to be trained", planes->n);
    device_upload(dev, planes->lower, planes->parked, bytes);
    free(planes->parked);
    planes->parked = NULL;
    return 0;
}

extern "C" int weights_offload(Device *dev, weight_t *weights, size_t n, Error *error)
{
    WeightPlanes *planes = planes_of(weights);
    if (planes->streamed) return refuse_streamed(planes, error);
    if (planes->offloaded == n) return 0;
    if (weights_park(dev, weights, true, error)) return -1;
    if (cudaHostRegister(planes->parked, planes->n * sizeof *planes->parked, cudaHostRegisterDefault) != cudaSuccess) {
        (void)cudaGetLastError(); /* as in device_alloc */
        return error_set(error, EXIT_FAILED, "memory: the host cannot pin %zu offloaded weights", planes->n);
    }
    planes->offloaded = n;
    planes->lower = (int16_t *)device_alloc((planes->n - first_on_card(planes)) * sizeof *planes->lower);
    if (!planes->lower) {
        planes->offloaded = 0;
        cuda_check(cudaHostUnregister(planes->parked), "host memory");
        return error_set(error, EXIT_FAILED, "memory: no room on the card for %zu weights to be trained",
                         planes->n - n);
    }
    device_upload(dev, weights_remainder(planes->upper + n), planes->parked + n,
                  (planes->n - n) * sizeof *planes->lower);
    offloaded_come_home(dev);
    return 0;
}

/* ================================================================================================================
 * Uploads
 *
 * A piece of the ring, at most a slot long and a multiple of 16 bytes apart from the next. When a slot is full, an
 * event marks the copies out of it, and the next slot is used as soon as its own copies, of one round ago, are done. */
static char *staging_take(Device *dev, size_t bytes)
{
    if (dev->slot_used + bytes > SLOT_BYTES) {
        cuda_check(cudaEventRecord(dev->sent[dev->slot], dev->stream), "upload");
        dev->slot = (dev->slot + 1) % STAGING_SLOTS;
        dev->slot_used = 0;
        cuda_check(cudaEventSynchronize(dev->sent[dev->slot]), "upload"); /* at once for a slot never used */
    }
    char *piece = dev->staging + dev->slot * SLOT_BYTES + dev->slot_used;
    dev->slot_used += ceil_div<size_t>(bytes, 16) * 16;
    return piece;
}

static void staging_send(Device *dev, void *to, const void *piece, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(to, piece, bytes, cudaMemcpyHostToDevice, dev->stream), "upload");
}

extern "C" void device_upload(Device *dev, void *to, const void *host, size_t bytes)
{
    for (size_t done = 0, part; done < bytes; done += part) {
        part = at_most(bytes - done, SLOT_BYTES);
        char *piece = staging_take(dev, part);
        memcpy(piece, (const char *)host + done, part);
        staging_send(dev, (char *)to + done, piece, part);
    }
}

extern "C" void stats_upload(Device *dev, stat_t *to, const float *host, size_t n)
{
    device_upload(dev, to, host, n * sizeof *to);
}

static void weights_split(weight_t *upper, int16_t *lower, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, from + i, sizeof u);
        upper[i].bits = (uint16_t)((u + 0x8000) >> 16);
        lower[i] = (int16_t)(u & 0xffff);
    }
}

static void weights_join(float *to, const weight_t *upper, const int16_t *lower, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = ((uint32_t)upper[i].bits << 16) + (uint32_t)(int32_t)lower[i];
        memcpy(to + i, &u, sizeof u);
    }
}

/* Is the host's copy of the lower half at w the one that counts? */
static bool lower_stays_on_host(const WeightPlanes *planes, const weight_t *w)
{
    return planes->parked && (!planes->offloaded || is_offloaded(planes, w));
}

/* How many of the n weights from w on lie before the first one that is not offloaded, if both kinds are among them;
 * else n. */
static size_t offloaded_part(const WeightPlanes *planes, const weight_t *w, size_t n)
{
    const size_t at = (size_t)(w - planes->upper);
    return at < planes->offloaded && planes->offloaded < at + n ? planes->offloaded - at : n;
}

/* Half a slot holds the upper halves of a part, the other half the lower ones. */
enum { WEIGHTS_PART = SLOT_BYTES / 4 };

extern "C" void weights_upload(Device *dev, weight_t *to, const float *host, size_t n)
{
    WeightPlanes *planes = planes_of(to);
    const size_t begin = offloaded_part(planes, to, n);
    if (begin < n) { /* a part of them is offloaded */
        weights_upload(dev, to, host, begin);
        weights_upload(dev, to + begin, host + begin, n - begin);
        return;
    }
    int16_t *const parked = lower_stays_on_host(planes, to) ? lower_on_host(planes, to) : NULL;
    if (planes->offloaded) offloaded_come_home(dev);
    if (planes->streamed) {
        streamed_forget(dev, planes);
        weights_split(to, parked, host, n);
        return;
    }
    int16_t *const remainder = parked ? NULL : weights_remainder(to);
    for (size_t done = 0, part; done < n; done += part) {
        part = at_most(n - done, WEIGHTS_PART);
        const size_t apart = ceil_div<size_t>(part, 8) * 8;
        weight_t *upper = (weight_t *)staging_take(dev, apart * 2 * sizeof *upper);
        int16_t *lower = (int16_t *)(upper + apart);
        weights_split(upper, lower, host + done, part);
        staging_send(dev, to + done, upper, part * sizeof *upper);
        if (parked)
            memcpy(parked + done, lower, part * sizeof *lower);
        else
            staging_send(dev, remainder + done, lower, part * sizeof *lower);
    }
}

/* ================================================================================================================
 * Downloads
 *
 * Numbers that the host sees in another form come to it in parts, through one slot of the ring. */
extern "C" void device_download(Device *dev, void *host, const void *from, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, dev->stream), "download");
    cuda_check(cudaStreamSynchronize(dev->stream), "download");
}

extern "C" void stats_download(Device *dev, float *host, const stat_t *from, size_t n)
{
    device_download(dev, host, from, n * sizeof *from);
}

extern "C" void logits_download(Device *dev, float *host, const logit_t *from, size_t n)
{
    device_download(dev, host, from, n * sizeof *from);
}

/* The slot in use. What is on its way out of it comes first in the stream, so a download may follow into it. */
static char *staging_borrow(Device *dev)
{
    return dev->staging + dev->slot * SLOT_BYTES;
}

extern "C" void weights_download(Device *dev, float *host, const weight_t *from, size_t n)
{
    const WeightPlanes *planes = planes_of(from);
    const size_t begin = offloaded_part(planes, from, n);
    if (begin < n) {
        weights_download(dev, host, from, begin);
        weights_download(dev, host + begin, from + begin, n - begin);
        return;
    }
    const int16_t *const parked = lower_stays_on_host(planes, from) ? lower_on_host(planes, from) : NULL;
    if (planes->offloaded) offloaded_come_home(dev);
    if (planes->streamed) {
        weights_join(host, from, parked, n);
        return;
    }
    const int16_t *const remainder = parked ? NULL : weights_remainder(from);
    weight_t *upper = (weight_t *)staging_borrow(dev);
    int16_t *lower = (int16_t *)(upper + WEIGHTS_PART);
    for (size_t done = 0, part; done < n; done += part) {
        part = at_most(n - done, WEIGHTS_PART);
        device_download(dev, upper, from + done, part * sizeof *upper);
        if (!parked) device_download(dev, lower, remainder + done, part * sizeof *lower);
        weights_join(host + done, upper, parked ? parked + done : lower, part);
    }
}

extern "C" void activations_download(Device *dev, float *host, const act_t *from, size_t n)
{
    const size_t share = SLOT_BYTES / sizeof *from;
    act_t *part_of = (act_t *)staging_borrow(dev);
    for (size_t done = 0, part; done < n; done += part) {
        part = at_most(n - done, share);
        device_download(dev, part_of, from + done, part * sizeof *from);
        for (size_t i = 0; i < part; i++) {
            const uint32_t u = (uint32_t)part_of[i].bits << 16;
            memcpy(host + done + i, &u, sizeof u);
        }
    }
}

/* ================================================================================================================
 * Readbacks
 *
 * The card copies into pinned memory by itself; an event behind the latest copy says when it is there. */
struct Readback {
    cudaStream_t stream;
    char *memory;
    cudaEvent_t copied;
};

extern "C" Readback *readback_create(Device *dev, size_t bytes)
{
    Readback *readback = (Readback *)calloc(1, sizeof *readback);
    if (!readback) return NULL;
    readback->stream = dev->stream;
    if (cudaMallocHost((void **)&readback->memory, bytes) == cudaSuccess &&
        cudaEventCreateWithFlags(&readback->copied, cudaEventDisableTiming) == cudaSuccess)
        return readback;
    (void)cudaGetLastError(); /* as in device_alloc */
    readback_free(readback);
    return NULL;
}

extern "C" void readback_free(Readback *readback)
{
    if (!readback) return;
    if (readback->copied) {
        readback_wait(readback);
        cudaEventDestroy(readback->copied);
    }
    cudaFreeHost(readback->memory);
    free(readback);
}

extern "C" void readback_copy(Readback *readback, size_t at, const void *from, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(readback->memory + at, from, bytes, cudaMemcpyDeviceToHost, readback->stream),
               "readback");
    cuda_check(cudaEventRecord(readback->copied, readback->stream), "readback");
}

extern "C" bool readback_is_there(const Readback *readback)
{
    const cudaError_t status = cudaEventQuery(readback->copied);
    if (status != cudaErrorNotReady) cuda_check(status, "readback");
    return status == cudaSuccess;
}

extern "C" const void *readback_wait(Readback *readback)
{
    cuda_check(cudaEventSynchronize(readback->copied), "readback");
    return readback->memory;
}
