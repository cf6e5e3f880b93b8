/* checkpoint.c: the tensors of a model, whichever way they are stored. See checkpoint.h.
 *
 * Here: finding the files, merging the shards, and reading elements. The formats themselves are in safetensors.c,
 * torch_file.c and t5x.c; each lists the tensors of one mapped file with checkpoint_add, which checks once for all that
 * no element lies outside of the file. Whoever reads elements later need not check again. Only the arrays of T5X are
 * unpacked while they are read, and that may fail. */
#include "checkpoint.h"
#include "checkpoint_internal.h"

#include <stdlib.h>

/* ------------------------------------------------------------------------------------------------------ small tools */

static const struct {
    const char *name;
    size_t bytes;
} DTYPES[] = {
    [DTYPE_F32] = {"F32", 4}, [DTYPE_F16] = {"F16", 2},   [DTYPE_BF16] = {"BF16", 2},   [DTYPE_F64] = {"F64", 8},
    [DTYPE_I64] = {"I64", 8}, [DTYPE_I32] = {"I32", 4},   [DTYPE_I16] = {"I16", 2},     [DTYPE_I8] = {"I8", 1},
    [DTYPE_U8] = {"U8", 1},   [DTYPE_BOOL] = {"BOOL", 1}, [DTYPE_OTHER] = {"OTHER", 0},
};

size_t dtype_bytes(Dtype dtype)
{
    return DTYPES[dtype].bytes;
}

const char *dtype_name(Dtype dtype)
{
    return DTYPES[dtype].name;
}

/* The names are those of safetensors; its other types (F8_E4M3, U16, C64, …) do not occur in T5 models. */
Dtype dtype_from_name(const char *name)
{
    for (Dtype dtype = 0; dtype < DTYPE_OTHER; dtype++)
        if (strcmp(DTYPES[dtype].name, name) == 0) return dtype;
    return DTYPE_OTHER;
}

int checkpoint_no_memory(Error *error, const char *path)
{
    return error_set(error, EXIT_FAILED, "%.700s: no memory to read it", path);
}

/* Works on a copy that ends in NUL, since cJSON before 1.7.18 may look one byte beyond the text that it is given. */
cJSON *json_parse(const char *text, size_t length)
{
    char *copy = malloc(length + 1);
    const char *end = NULL;
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = '\0';
    cJSON *json = cJSON_ParseWithLengthOpts(copy, length + 1, &end, false);
    while (json && end < copy + length && strchr(" \t\r\n", *end) && *end) end++;
    if (json && end != copy + length) {
        cJSON_Delete(json);
        json = NULL;
    }
    free(copy);
    return json;
}

/* Names come from the file: an error text must stay one line whatever is in them. */
static void error_keep_one_line(Error *error)
{
    for (char *c = error->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
}

int tensor_set_row_major(StoredTensor *tensor)
{
    size_t product = 1;
    for (size_t d = tensor->n_dims; d-- > 0;) {
        tensor->strides[d] = product;
        /* A zero elsewhere in the shape does not excuse a product that overflows: the strides would be wrong. */
        if (__builtin_mul_overflow(product, tensor->shape[d] ? tensor->shape[d] : 1, &product)) return -1;
    }
    tensor->numel = product;
    for (size_t d = 0; d < tensor->n_dims; d++)
        if (tensor->shape[d] == 0) tensor->numel = 0;
    return 0;
}

/* The byte behind the last element, counted from the tensor's data; -1 on overflow. */
static int tensor_extent(const StoredTensor *tensor, size_t *extent)
{
    size_t last = 0, reach, elements;
    *extent = 0;
    if (tensor->numel == 0) return 0;
    for (size_t d = 0; d < tensor->n_dims; d++) {
        if (__builtin_mul_overflow(tensor->shape[d] - 1, tensor->strides[d], &reach)) return -1;
        if (__builtin_add_overflow(last, reach, &last)) return -1;
    }
    if (__builtin_add_overflow(last, 1, &elements)) return -1;
    return __builtin_mul_overflow(elements, dtype_bytes(tensor->dtype), extent) ? -1 : 0;
}

/* `end` is where the tensor's bytes end in the file: of its own range (safetensors) or of its storage (torch). */
static int tensor_check_extent(const StoredTensor *tensor, const char *name, size_t name_length,
                               const unsigned char *end, Error *error)
{
    size_t extent, there = (size_t)(end - tensor->data);
    int shown = name_length > 200 ? 200 : (int)name_length;
    if (tensor->dtype == DTYPE_OTHER || tensor->packed) return 0; /* t5x.c unpacks what the shape says */
    if (tensor_extent(tensor, &extent) != 0)
        return error_set(error, EXIT_FAILED, "%.500s: tensor %.*s: its shape overflows", tensor->file, shown, name);
    if (extent <= there) return 0;
    return error_set(error, EXIT_FAILED, "%.500s: tensor %.*s: reaches beyond its data (expected %zu bytes, found %zu)",
                     tensor->file, shown, name, extent, there);
}

int checkpoint_add(Checkpoint *checkpoint, const StoredTensor *tensor, const char *name, size_t name_length,
                   const unsigned char *end, Error *error)
{
    if (utf8_valid_length(name, name_length) != name_length)
        return error_set(error, EXIT_FAILED, "%.700s: tensor %zu: its name is not UTF-8 text", tensor->file,
                         checkpoint->count);
    if (tensor_check_extent(tensor, name, name_length, end, error) != 0) return -1;
    if (checkpoint->count == checkpoint->capacity) {
        size_t capacity = checkpoint->capacity ? 2 * checkpoint->capacity : 64;
        StoredTensor *larger = realloc(checkpoint->tensors, capacity * sizeof *larger);
        if (!larger) return checkpoint_no_memory(error, tensor->file);
        checkpoint->tensors = larger;
        checkpoint->capacity = capacity;
    }
    char *copy = malloc(name_length + 1);
    if (!copy) return checkpoint_no_memory(error, tensor->file);
    memcpy(copy, name, name_length);
    copy[name_length] = '\0';
    StoredTensor *added = &checkpoint->tensors[checkpoint->count++];
    *added = *tensor;
    added->name = copy;
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- opening */

/* A file is known by its first bytes, for people rename files. Two common accidents get a sentence of their own: an
 * empty file, and the small text that git leaves in place of a file when git-lfs is not installed. */
static int read_by_content(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    static const char lfs[] = "version https://git-lfs.github.com/", tensorflow[] = "model_checkpoint_path:";
    if (file->bytes == 0) return error_set(error, EXIT_FAILED, "%.700s: is empty (expected tensors)", file->path);
    if (file->bytes >= sizeof lfs - 1 && memcmp(file->data, lfs, sizeof lfs - 1) == 0)
        return error_set(error, EXIT_FAILED,
                         "%.700s: is a Git LFS pointer, not the file itself (download it with: git lfs pull)",
                         file->path);
    if (torch_recognised(file)) return torch_read(checkpoint, file, error);
    if (t5x_recognised(file)) return t5x_read(checkpoint, file, error);
    const char *dot = strrchr(file->path, '.');
    if ((dot && strcmp(dot, ".safetensors") == 0) || (file->bytes > 8 && file->data[8] == '{'))
        return safetensors_read(checkpoint, file, error);
    if (file->bytes >= sizeof tensorflow - 1 && memcmp(file->data, tensorflow, sizeof tensorflow - 1) == 0)
        return error_set(error, EXIT_FAILED, "%.700s: is of a TensorFlow checkpoint (expected T5X's; T5X converts it)",
                         file->path);
    return error_set(error, EXIT_FAILED, "%.700s: is neither a safetensors file nor a torch file nor T5X's index",
                     file->path);
}

/* Maps one more file and lists its tensors. checkpoint->files has room for it. */
static int open_file(Checkpoint *checkpoint, const char *path, Error *error)
{
    MappedFile *file = &checkpoint->files[checkpoint->n_files];
    if (mapped_file_open(file, path, error) != 0) return -1;
    checkpoint->n_files++;
    return read_by_content(checkpoint, file, error);
}

static int open_single(Checkpoint *checkpoint, const char *path, Error *error)
{
    checkpoint->files = calloc(1, sizeof *checkpoint->files);
    if (!checkpoint->files) return checkpoint_no_memory(error, path);
    return open_file(checkpoint, path, error);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const StoredTensor *)a)->name, ((const StoredTensor *)b)->name);
}

/* Puts the tensors in name order, for checkpoint_find, and finds names that are there twice, in one file or in two. */
static int sort_by_name(Checkpoint *checkpoint, Error *error)
{
    StoredTensor *tensors = checkpoint->tensors;
    if (checkpoint->count > 0) qsort(tensors, checkpoint->count, sizeof *tensors, compare_names);
    for (size_t i = 1; i < checkpoint->count; i++)
        if (strcmp(tensors[i - 1].name, tensors[i].name) == 0)
            return error_set(error, EXIT_FAILED, "%.400s: tensor %.200s: is there twice (the other is in %.300s)",
                             tensors[i].file, tensors[i].name, tensors[i - 1].file);
    return 0;
}

/* ----------------------------------------------------------------------------------------------------------- shards */

/* One line of an index's weight_map; both strings belong to the parsed JSON. */
typedef struct {
    const char *tensor, *shard;
} IndexEntry;

static int compare_shards(const void *a, const void *b)
{
    return strcmp(((const IndexEntry *)a)->shard, ((const IndexEntry *)b)->shard);
}

/* A shard lies beside its index: a downloaded index must not make us read other files of this machine. */
static bool is_plain_file_name(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Reads the weight_map: {"shared.weight": "model-00001-of-00002.safetensors", …}. What else an index says
 * (total_size) is for people. *entries is to be freed, also after an error. */
static int index_entries(const cJSON *index, const char *path, IndexEntry **entries, size_t *count, Error *error)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map"), *item;
    size_t n = 0;
    if (!cJSON_IsObject(map))
        return error_set(error, EXIT_FAILED, "%.700s: has no \"weight_map\" (expected {tensor: file})", path);
    cJSON_ArrayForEach(item, map) n++;
    if (n == 0) return error_set(error, EXIT_FAILED, "%.700s: its \"weight_map\" is empty", path);
    *entries = malloc(n * sizeof **entries);
    if (!*entries) return checkpoint_no_memory(error, path);
    *count = 0;
    cJSON_ArrayForEach(item, map)
    {
        if (!cJSON_IsString(item) || !is_plain_file_name(item->valuestring))
            return error_set(
                error, EXIT_FAILED,
                "%.500s: tensor %.200s: expected the name of a file in the same directory, found \"%.200s\"", path,
                item->string, cJSON_IsString(item) ? item->valuestring : "something else");
        (*entries)[(*count)++] = (IndexEntry){.tensor = item->string, .shard = item->valuestring};
    }
    return 0;
}

/* Every tensor must be in the shard that the index names for it. */
static int index_check(const Checkpoint *checkpoint, const IndexEntry *entries, size_t count, const char *path,
                       Error *error)
{
    for (size_t i = 0; i < count; i++) {
        const StoredTensor *tensor = checkpoint_find(checkpoint, entries[i].tensor);
        const char *slash = tensor ? strrchr(tensor->file, '/') : NULL;
        const char *found = !tensor ? "not there" : slash ? slash + 1 : tensor->file;
        if (tensor && strcmp(found, entries[i].shard) == 0) continue;
        return error_set(error, EXIT_FAILED, "%.400s: tensor %.200s: expected in %.150s, found %s%.150s", path,
                         entries[i].tensor, entries[i].shard, tensor ? "in " : "", found);
    }
    return 0;
}

/* Sorted by shard, the entries name each file in one run, and each is opened once. Tensors that the index does not
 * mention are listed too: transformers loads all that a shard holds. */
static int open_shards(Checkpoint *checkpoint, const char *directory, IndexEntry *entries, size_t count,
                       const char *index_path, Error *error)
{
    size_t n_shards = 0;
    qsort(entries, count, sizeof *entries, compare_shards);
    for (size_t i = 0; i < count; i++) n_shards += i == 0 || strcmp(entries[i - 1].shard, entries[i].shard) != 0;
    checkpoint->files = calloc(n_shards, sizeof *checkpoint->files);
    if (!checkpoint->files) return checkpoint_no_memory(error, index_path);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && strcmp(entries[i - 1].shard, entries[i].shard) == 0) continue;
        char *path = path_join(directory, entries[i].shard);
        if (!path) return checkpoint_no_memory(error, index_path);
        int status = path_exists(path)
                         ? open_file(checkpoint, path, error)
                         : error_set(error, EXIT_USAGE, "%.400s: is not there (%.400s names it)", path, index_path);
        free(path);
        if (status != 0) return -1;
    }
    if (sort_by_name(checkpoint, error) != 0) return -1;
    return index_check(checkpoint, entries, count, index_path, error);
}

static int open_index(Checkpoint *checkpoint, const char *path, Error *error)
{
    MappedFile file;
    if (mapped_file_open(&file, path, error) != 0) return -1;
    cJSON *index = json_parse((const char *)file.data, file.bytes);
    const char *slash = strrchr(path, '/');
    char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup("");
    IndexEntry *entries = NULL;
    size_t count = 0;
    int status = -1;
    if (!directory)
        checkpoint_no_memory(error, path);
    else if (!index)
        error_set(error, EXIT_FAILED, "%.700s: is not JSON", path);
    else if (index_entries(index, path, &entries, &count, error) == 0)
        status = open_shards(checkpoint, directory, entries, count, path, error);
    free(entries);
    free(directory);
    cJSON_Delete(index);
    mapped_file_close(&file);
    return status;
}

/* -------------------------------------------------------------------------------------------------------- the faces */

static bool has_ending(const char *text, const char *ending)
{
    size_t length = strlen(text), tail = strlen(ending);
    return length >= tail && strcmp(text + length - tail, ending) == 0;
}

static int open_path(Checkpoint *checkpoint, const char *path, Error *error)
{
    return has_ending(path, ".index.json") ? open_index(checkpoint, path, error) : open_single(checkpoint, path, error);
}

/* The order is that of transformers: safetensors first, one file before shards. */
static int open_directory(Checkpoint *checkpoint, const char *directory, Error *error)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json", "checkpoint"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = path_join(directory, names[i]);
        if (!path) return checkpoint_no_memory(error, directory);
        bool there = path_exists(path);
        int status = there ? open_path(checkpoint, path, error) : 0;
        free(path);
        if (there) return status;
    }
    if (t5x_is_orbax(directory)) return t5x_orbax_error(directory, error);
    return error_set(error, EXIT_USAGE, "%.700s: holds no model (looked for %s, %s, %s, %s and T5X's %s)", directory,
                     names[0], names[1], names[2], names[3], names[4]);
}

Checkpoint *checkpoint_open(const char *path, Error *error)
{
    Checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) {
        checkpoint_no_memory(error, path);
        return NULL;
    }
    int status = path_is_directory(path) ? open_directory(checkpoint, path, error) : open_path(checkpoint, path, error);
    if (status == 0) status = sort_by_name(checkpoint, error);
    if (status == 0) return checkpoint;
    error_keep_one_line(error);
    checkpoint_close(checkpoint);
    return NULL;
}

void checkpoint_close(Checkpoint *checkpoint)
{
    if (!checkpoint) return;
    for (size_t i = 0; i < checkpoint->count; i++) free((char *)(uintptr_t)checkpoint->tensors[i].name);
    for (size_t i = 0; i < checkpoint->n_files; i++) mapped_file_close(&checkpoint->files[i]);
    t5x_close(checkpoint);
    free(checkpoint->tensors);
    free(checkpoint->files);
    free(checkpoint);
}

size_t checkpoint_count(const Checkpoint *checkpoint)
{
    return checkpoint->count;
}

const StoredTensor *checkpoint_at(const Checkpoint *checkpoint, size_t i)
{
    return &checkpoint->tensors[i];
}

/* Binary search: the tensors are in name order. */
const StoredTensor *checkpoint_find(const Checkpoint *checkpoint, const char *name)
{
    StoredTensor wanted = {.name = name};
    if (checkpoint->count == 0) return NULL;
    return bsearch(&wanted, checkpoint->tensors, checkpoint->count, sizeof wanted, compare_names);
}

/* ------------------------------------------------------------------------------------------------- reading elements */

/* IEEE 754 half to single, exactly: the exponent is re-biased from 15 to 127; a subnormal is its 10 bits times 2^-24;
 * infinity and NaN keep their bits. Written with selects instead of branches, so that compilers vectorise it. */
static inline float float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t normal = (magnitude << 13) + ((127 - 15) << 23);
    uint32_t special = magnitude << 13 | 0x7f800000;
    float small = (float)(int32_t)magnitude * 0x1p-24f, value;
    uint32_t subnormal;
    memcpy(&subnormal, &small, sizeof subnormal);
    uint32_t bits = sign | (magnitude >= 0x7c00 ? special : magnitude >= 0x0400 ? normal : subnormal);
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* bfloat16 is the upper half of a single. */
static inline float float_from_bf16(uint16_t upper)
{
    uint32_t bits = (uint32_t)upper << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounds to the nearest float; beyond its range that is infinity, which the engine refuses in a weight. */
static inline float float_from_f64(const unsigned char *at)
{
    double value;
    memcpy(&value, at, sizeof value);
    return (float)value;
}

/* `count` elements that lie `step` bytes apart. Called with a constant step for the usual, dense case. */
static inline void floats_from_f16(const unsigned char *from, size_t step, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++) out[i] = float_from_f16(read_u16(from + i * step));
}

static inline void floats_from_bf16(const unsigned char *from, size_t step, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++) out[i] = float_from_bf16(read_u16(from + i * step));
}

static inline void floats_from_f32(const unsigned char *from, size_t step, size_t count, float *out)
{
    if (step == sizeof *out)
        memcpy(out, from, count * sizeof *out);
    else
        for (size_t i = 0; i < count; i++) memcpy(&out[i], from + i * step, sizeof *out);
}

static void convert_floats(Dtype dtype, const unsigned char *from, size_t step, size_t count, float *out)
{
    switch (dtype) {
    case DTYPE_F32:
        floats_from_f32(from, step, count, out);
        break;
    case DTYPE_F16:
        step == 2 ? floats_from_f16(from, 2, count, out) : floats_from_f16(from, step, count, out);
        break;
    case DTYPE_BF16:
        step == 2 ? floats_from_bf16(from, 2, count, out) : floats_from_bf16(from, step, count, out);
        break;
    default: /* DTYPE_F64; the others were refused */
        for (size_t i = 0; i < count; i++) out[i] = float_from_f64(from + i * step);
    }
}

/* One element of any integer type, with its sign; a boolean is 0 or 1, whatever byte it is stored as. */
static int64_t int_at(Dtype dtype, const unsigned char *at)
{
    switch (dtype) {
    case DTYPE_I64:
        return (int64_t)read_u64(at);
    case DTYPE_I32:
        return (int32_t)read_u32(at);
    case DTYPE_I16:
        return (int16_t)read_u16(at);
    case DTYPE_I8:
        return (int8_t)*at;
    case DTYPE_BOOL:
        return *at != 0;
    default: /* DTYPE_U8 */
        return *at;
    }
}

static void convert_ints(Dtype dtype, const unsigned char *from, size_t step, size_t count, int64_t *out)
{
    for (size_t i = 0; i < count; i++) out[i] = int_at(dtype, from + i * step);
}

/* A walk over elements [first, first + count) of a tensor in row-major order, one stretch of the last dimension at a
 * time (all at once where the tensor is dense). */
typedef struct {
    const StoredTensor *tensor;
    const unsigned char *data;         /* of its first element */
    size_t index[CHECKPOINT_MAX_DIMS]; /* of the next element */
    size_t left;                       /* elements still to come */
    bool dense;
} Walk;

/* Splits `first` into an index for each dimension, the last one fastest. A tensor is dense when its strides are
 * those of row-major order; a dimension of length 1 may have any stride. */
static Walk walk_start(const StoredTensor *tensor, const unsigned char *data, size_t first, size_t count)
{
    Walk walk = {.tensor = tensor, .data = data, .left = count, .dense = true};
    size_t product = 1, rest = first;
    for (size_t d = tensor->n_dims; d-- > 0 && count > 0;) {
        walk.index[d] = rest % tensor->shape[d];
        rest /= tensor->shape[d];
        walk.dense &= tensor->shape[d] == 1 || tensor->strides[d] == product;
        product *= tensor->shape[d];
    }
    return walk;
}

/* The next stretch: its first element, the distance between elements in bytes, and how many. 0 at the end. */
static size_t walk_next(Walk *walk, const unsigned char **from, size_t *step)
{
    const StoredTensor *tensor = walk->tensor;
    size_t last = tensor->n_dims - 1, bytes = dtype_bytes(tensor->dtype), place = 0, length;
    if (walk->left == 0) return 0;
    for (size_t d = 0; d < tensor->n_dims; d++) place += walk->index[d] * tensor->strides[d];
    *from = walk->data + place * bytes;
    *step = bytes;
    if (walk->dense || tensor->n_dims == 0) { /* everything in one stretch */
        length = walk->left;
    } else {
        length = tensor->shape[last] - walk->index[last];
        if (length > walk->left) length = walk->left;
        *step = tensor->strides[last] * bytes;
        /* Go on behind the stretch, carrying into the dimensions to the left like an odometer. */
        walk->index[last] += length;
        for (size_t d = last; d > 0 && walk->index[d] == tensor->shape[d]; d--) {
            walk->index[d] = 0;
            walk->index[d - 1]++;
        }
    }
    walk->left -= length;
    return length;
}

/* What both readers check: that the type is one of theirs, and that the elements exist. */
static int check_range(const StoredTensor *tensor, size_t first, size_t count, bool type_fits, const char *expected,
                       Error *error)
{
    int status = 0;
    if (!type_fits)
        status = error_set(error, EXIT_FAILED, "%.500s: tensor %.200s: has the wrong type (expected %s, found %s)",
                           tensor->file, tensor->name, expected, dtype_name(tensor->dtype));
    else if (first > tensor->numel || count > tensor->numel - first)
        status = error_set(error, EXIT_FAILED, "%.500s: tensor %.200s: has too few elements (expected %zu, found %zu)",
                           tensor->file, tensor->name, first + count, tensor->numel);
    if (status != 0) error_keep_one_line(error);
    return status;
}

/* Where the first element is; NULL with the error set when it cannot be unpacked. */
static const unsigned char *tensor_data(const StoredTensor *tensor, Error *error)
{
    if (!tensor->packed) return tensor->data;
    const unsigned char *bytes = t5x_array_bytes(tensor->packed, error);
    if (!bytes) error_keep_one_line(error);
    return bytes ? bytes + tensor->packed_offset : NULL;
}

int stored_tensor_read_float(const StoredTensor *tensor, size_t first, size_t count, float *out, Error *error)
{
    Dtype dtype = tensor->dtype;
    bool is_float = dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16 || dtype == DTYPE_F64;
    if (check_range(tensor, first, count, is_float, "F32, F16, BF16 or F64", error) != 0) return -1;
    const unsigned char *data = tensor_data(tensor, error);
    if (!data) return -1;
    Walk walk = walk_start(tensor, data, first, count);
    const unsigned char *from;
    for (size_t step, length; (length = walk_next(&walk, &from, &step)) > 0; out += length)
        convert_floats(dtype, from, step, length, out);
    return 0;
}

int stored_tensor_read_int(const StoredTensor *tensor, size_t first, size_t count, int64_t *out, Error *error)
{
    Dtype dtype = tensor->dtype;
    bool is_integer = dtype >= DTYPE_I64 && dtype <= DTYPE_BOOL;
    if (check_range(tensor, first, count, is_integer, "an integer type", error) != 0) return -1;
    const unsigned char *data = tensor_data(tensor, error);
    if (!data) return -1;
    Walk walk = walk_start(tensor, data, first, count);
    const unsigned char *from;
    for (size_t step, length; (length = walk_next(&walk, &from, &step)) > 0; out += length)
        convert_ints(dtype, from, step, length, out);
    return 0;
}

Checkpoint *adapter_open(const char *directory, const char *what, Error *error)
{
    static const char *const names[] = {"adapter_model.safetensors", "adapter_model.bin"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = path_join(directory, names[i]);
        if (!path) {
            checkpoint_no_memory(error, directory);
            return NULL;
        }
        bool there = path_exists(path);
        Checkpoint *checkpoint = there ? checkpoint_open(path, error) : NULL;
        free(path);
        if (there) return checkpoint;
    }
    error_set(error, EXIT_USAGE, "%.700s: holds no %s (looked for %s, %s)", directory, what, names[0], names[1]);
    return NULL;
}
