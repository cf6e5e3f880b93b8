/* safetensors.c: reading and writing the safetensors format (github.com/huggingface/safetensors).
 *
 *     0      N, the length of the header: 8 bytes, little-endian
 *     8      the header: N bytes of JSON, which begin with '{' and may end in spaces
 *     8 + N  the data of all tensors: little-endian, row-major
 *
 * The header maps each name to an entry, with offsets that count from the start of the data:
 *
 *     {"__metadata__": {"format": "pt"},
 *      "shared.weight": {"dtype": "F32", "shape": [250112, 512], "data_offsets": [0, 512229376]}, …}
 *
 * "__metadata__" may be missing; it is a flat map of strings. The ranges must tile the data exactly, without holes,
 * overlaps or anything left over, so that no file can hide something or let two tensors share bytes. Readers must not
 * expect any order of the entries, and names must not repeat. */
#include "checkpoint.h"
#include "checkpoint_internal.h"

#include <stdlib.h>

static const uint64_t HEADER_MAX_BYTES = 100000000; /* the reference library's limit */

/* JSON numbers are doubles in cJSON: they are whole up to 2^53, which is more than any file has. */
static const double WHOLE_MAX = 9007199254740992.0;

/* ---------------------------------------------------------------------------------------------------------- reading */

/* Where one tensor's data is, kept to see whether the ranges tile the data. */
typedef struct {
    size_t begin, end;
    const char *name; /* belongs to the parsed header */
} Range;

/* An error that needs no numbers. */
static int tensor_error(Error *error, const MappedFile *file, const char *name, const char *what)
{
    return error_set(error, EXIT_FAILED, "%.500s: tensor %.200s: %s", file->path, name, what);
}

/* A number of the header that can be a size: whole, not negative, and small enough to be exact in a double. */
static bool whole_number(const cJSON *item, size_t *number)
{
    if (!cJSON_IsNumber(item)) return false;
    double value = item->valuedouble;
    if (!(value >= 0 && value <= WHOLE_MAX)) return false;
    *number = (size_t)value;
    return (double)*number == value;
}

/* Fills n_dims, shape, strides and numel. An empty list is a scalar; a length of 0 makes an empty tensor. */
static int parse_shape(StoredTensor *tensor, const cJSON *list, const char *name, const MappedFile *file, Error *error)
{
    const cJSON *item;
    if (!cJSON_IsArray(list)) return tensor_error(error, file, name, "its \"shape\" is not a list");
    tensor->n_dims = 0;
    cJSON_ArrayForEach(item, list)
    {
        if (tensor->n_dims == CHECKPOINT_MAX_DIMS)
            return tensor_error(error, file, name, "it has more than 8 dimensions");
        if (!whole_number(item, &tensor->shape[tensor->n_dims++]))
            return tensor_error(error, file, name, "its \"shape\" holds something other than whole numbers");
    }
    if (tensor_set_row_major(tensor) != 0) return tensor_error(error, file, name, "its \"shape\" overflows");
    return 0;
}

/* Takes the three members of an entry; others are ignored, as the reference library does. */
static int parse_entry(StoredTensor *tensor, Range *range, const cJSON *entry, const MappedFile *file, Error *error)
{
    const char *name = entry->string;
    const cJSON *member, *dtype = NULL, *shape = NULL, *offsets = NULL;
    if (!cJSON_IsObject(entry)) return tensor_error(error, file, name, "its entry is not a JSON object");
    cJSON_ArrayForEach(member, entry)
    {
        const cJSON **slot = strcmp(member->string, "dtype") == 0          ? &dtype
                             : strcmp(member->string, "shape") == 0        ? &shape
                             : strcmp(member->string, "data_offsets") == 0 ? &offsets
                                                                           : NULL;
        if (!slot) continue;
        if (*slot) return tensor_error(error, file, name, "its entry says the same thing twice");
        *slot = member;
    }
    if (!dtype || !shape || !offsets)
        return tensor_error(error, file, name, "its entry lacks \"dtype\", \"shape\" or \"data_offsets\"");
    if (!cJSON_IsString(dtype)) return tensor_error(error, file, name, "its \"dtype\" is not a string");
    tensor->dtype = dtype_from_name(dtype->valuestring);
    if (parse_shape(tensor, shape, name, file, error) != 0) return -1;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !whole_number(offsets->child, &range->begin) ||
        !whole_number(offsets->child->next, &range->end))
        return tensor_error(error, file, name, "its \"data_offsets\" are not two whole numbers");
    range->name = name;
    return 0;
}

/* The range must lie in the data and have exactly the bytes that type and shape ask for. */
static int check_range_size(const StoredTensor *tensor, const Range *range, size_t data_bytes, const MappedFile *file,
                            Error *error)
{
    size_t wanted;
    if (range->begin > range->end || range->end > data_bytes)
        return error_set(
            error, EXIT_FAILED,
            "%.500s: tensor %.200s: its data_offsets [%zu, %zu] are not within the file's %zu bytes of data",
            file->path, range->name, range->begin, range->end, data_bytes);
    if (tensor->dtype == DTYPE_OTHER) return 0;
    if (__builtin_mul_overflow(tensor->numel, dtype_bytes(tensor->dtype), &wanted))
        return tensor_error(error, file, range->name, "its \"shape\" overflows");
    if (wanted == range->end - range->begin) return 0;
    return error_set(error, EXIT_FAILED,
                     "%.500s: tensor %.200s: has the wrong number of bytes (expected %zu for %zu x %s, found %zu)",
                     file->path, range->name, wanted, tensor->numel, dtype_name(tensor->dtype),
                     range->end - range->begin);
}

/* Nothing of it is used, but a file with another kind of it is not safetensors. */
static int check_metadata(const cJSON *metadata, const MappedFile *file, Error *error)
{
    const cJSON *item;
    bool good = cJSON_IsObject(metadata);
    cJSON_ArrayForEach(item, metadata) good = good && cJSON_IsString(item);
    return good ? 0 : error_set(error, EXIT_FAILED, "%.700s: its \"__metadata__\" is not a map of strings", file->path);
}

static int compare_ranges(const void *a, const void *b)
{
    const Range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* In the order of their starts, each range must begin where the one before ended. Empty tensors fit anywhere
 * between. */
static int check_tiling(Range *ranges, size_t count, size_t data_bytes, const MappedFile *file, Error *error)
{
    size_t at = 0;
    if (count > 0) qsort(ranges, count, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < count; at = ranges[i++].end) {
        if (ranges[i].begin == at) continue;
        return error_set(error, EXIT_FAILED,
                         "%.500s: tensor %.200s: its data leaves a %s (expected to begin at %zu, "
                         "found %zu)",
                         file->path, ranges[i].name, ranges[i].begin > at ? "hole" : "overlap", at, ranges[i].begin);
    }
    if (at == data_bytes) return 0;
    return error_set(error, EXIT_FAILED,
                     "%.700s: has bytes that belong to no tensor (expected %zu bytes of data, "
                     "found %zu)",
                     file->path, at, data_bytes);
}

/* Lists every tensor of the header. `ranges` has room for one more than there are entries. */
static int read_entries(Checkpoint *checkpoint, const cJSON *header, const MappedFile *file, size_t data_start,
                        Range *ranges, Error *error)
{
    const unsigned char *data = file->data + data_start;
    size_t data_bytes = file->bytes - data_start, count = 0, n_metadata = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, header)
    {
        if (strcmp(entry->string, "__metadata__") == 0) {
            if (n_metadata++ > 0)
                return error_set(error, EXIT_FAILED, "%.700s: has \"__metadata__\" twice", file->path);
            if (check_metadata(entry, file, error) != 0) return -1;
            continue;
        }
        StoredTensor tensor = {.file = file->path};
        Range *range = &ranges[count++];
        if (parse_entry(&tensor, range, entry, file, error) != 0) return -1;
        if (check_range_size(&tensor, range, data_bytes, file, error) != 0) return -1;
        tensor.data = data + range->begin;
        if (checkpoint_add(checkpoint, &tensor, entry->string, strlen(entry->string), data + range->end, error) != 0)
            return -1;
    }
    return check_tiling(ranges, count, data_bytes, file, error);
}

/* Checks the first bytes and parses the header; NULL with the error set when something is wrong. */
static cJSON *parse_header(const MappedFile *file, size_t *data_start, Error *error)
{
    uint64_t length = file->bytes >= 8 ? read_u64(file->data) : 0;
    cJSON *header = NULL;
    if (file->bytes < 8)
        error_set(error, EXIT_FAILED, "%.700s: is truncated (expected at least 8 bytes, found %zu)", file->path,
                  file->bytes);
    else if (length > HEADER_MAX_BYTES)
        error_set(error, EXIT_FAILED, "%.700s: is not safetensors: header length %llu (expected at most %llu)",
                  file->path, (unsigned long long)length, (unsigned long long)HEADER_MAX_BYTES);
    else if (length > file->bytes - 8)
        error_set(error, EXIT_FAILED, "%.700s: is truncated in its header (expected %llu bytes, found %zu)", file->path,
                  (unsigned long long)length, file->bytes - 8);
    else if (length == 0 || file->data[8] != '{')
        error_set(error, EXIT_FAILED, "%.700s: is not safetensors: the header does not begin with '{'", file->path);
    else if (!(header = json_parse((const char *)file->data + 8, length)))
        error_set(error, EXIT_FAILED, "%.700s: its header of %llu bytes is not JSON", file->path,
                  (unsigned long long)length);
    *data_start = 8 + (size_t)length;
    return header;
}

int safetensors_read(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    size_t data_start;
    cJSON *header = parse_header(file, &data_start, error);
    if (!header) return -1;
    Range *ranges = malloc(((size_t)cJSON_GetArraySize(header) + 1) * sizeof *ranges);
    int status = ranges ? read_entries(checkpoint, header, file, data_start, ranges, error)
                        : checkpoint_no_memory(error, file->path);
    free(ranges);
    cJSON_Delete(header);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

/* The header is written at once, so the caller must bring exactly the bytes that it announces. */
struct SafetensorsWriter {
    AtomicFile *file;
    char *path;
    size_t expected, written; /* bytes of data */
};

/* The bytes of a tensor's data; -1 when there is no such tensor. */
static int spec_bytes(const TensorSpec *spec, size_t *bytes)
{
    StoredTensor tensor = {.n_dims = spec->n_dims};
    if (spec->n_dims > CHECKPOINT_MAX_DIMS || spec->dtype >= DTYPE_OTHER) return -1;
    memcpy(tensor.shape, spec->shape, sizeof tensor.shape);
    if (tensor_set_row_major(&tensor) != 0) return -1;
    return __builtin_mul_overflow(tensor.numel, dtype_bytes(spec->dtype), bytes) ? -1 : 0;
}

/* "key": [n, n, …]; false when there is no memory. */
static bool add_numbers(cJSON *entry, const char *key, const size_t *numbers, size_t count)
{
    cJSON *list = cJSON_AddArrayToObject(entry, key);
    for (size_t i = 0; i < count; i++) {
        cJSON *number = cJSON_CreateNumber((double)numbers[i]);
        if (!list || !number || !cJSON_AddItemToArray(list, number)) {
            cJSON_Delete(number);
            return false;
        }
    }
    return list;
}

/* Adds every spec to the header, its data right behind those of the one before; *total becomes the bytes of data. The
 * reference library sorts by the size of the type to keep all data aligned; here the caller's order counts, which for
 * the engine, whose tensors are all F32, is the same. */
static int add_specs(cJSON *header, const TensorSpec *specs, size_t count, const char *path, size_t *total,
                     Error *error)
{
    *total = 0;
    for (size_t i = 0; i < count; i++) {
        const TensorSpec *spec = &specs[i];
        size_t offsets[2] = {*total, *total}, bytes;
        if (spec_bytes(spec, &bytes) != 0 || __builtin_add_overflow(*total, bytes, &offsets[1]) ||
            (double)offsets[1] > WHOLE_MAX)
            return error_set(error, EXIT_FAILED, "%.500s: tensor %.200s: cannot be stored (type %s, %zu dimensions)",
                             path, spec->name, dtype_name(spec->dtype), spec->n_dims);
        *total = offsets[1];
        cJSON *entry = cJSON_CreateObject();
        bool good = entry && cJSON_AddStringToObject(entry, "dtype", dtype_name(spec->dtype)) &&
                    add_numbers(entry, "shape", spec->shape, spec->n_dims) &&
                    add_numbers(entry, "data_offsets", offsets, 2) && cJSON_AddItemToObject(header, spec->name, entry);
        if (good) continue;
        cJSON_Delete(entry);
        return checkpoint_no_memory(error, path);
    }
    return 0;
}

static int compare_spec_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A duplicate name would make a file that this reader refuses. Found by sorting, as when reading. */
static int check_spec_names(const TensorSpec *specs, size_t count, const char *path, Error *error)
{
    const char **names = malloc((count + 1) * sizeof *names);
    int status = names ? 0 : checkpoint_no_memory(error, path);
    for (size_t i = 0; i < count && names; i++) names[i] = specs[i].name;
    if (names) qsort(names, count, sizeof *names, compare_spec_names);
    for (size_t i = 0; i < count && status == 0; i++) {
        bool twice = i > 0 && strcmp(names[i - 1], names[i]) == 0;
        if (twice || strcmp(names[i], "__metadata__") == 0)
            status = error_set(error, EXIT_FAILED, "%.500s: tensor %.200s: cannot be stored under this name%s", path,
                               names[i], twice ? " twice" : "");
    }
    free(names);
    return status;
}

/* The header's JSON, padded with spaces so that the data begins at a multiple of 8; NULL with the error set. */
static char *format_header(const TensorSpec *specs, size_t count, const char *path, size_t *length, size_t *total,
                           Error *error)
{
    char *text = NULL, *padded = NULL;
    cJSON *header = cJSON_CreateObject(), *metadata = header ? cJSON_AddObjectToObject(header, "__metadata__") : NULL;
    if (!metadata || !cJSON_AddStringToObject(metadata, "format", "pt"))
        checkpoint_no_memory(error, path);
    else if (add_specs(header, specs, count, path, total, error) == 0) {
        text = cJSON_PrintUnformatted(header);
        size_t used = text ? strlen(text) : 0;
        *length = (used + 7) / 8 * 8;
        padded = text ? malloc(*length) : NULL;
        if (padded) {
            memset(padded, ' ', *length);
            memcpy(padded, text, used);
        } else {
            checkpoint_no_memory(error, path);
        }
    }
    cJSON_free(text);
    cJSON_Delete(header);
    return padded;
}

SafetensorsWriter *safetensors_create(const char *path, const TensorSpec *specs, size_t count, Error *error)
{
    size_t length, total;
    if (check_spec_names(specs, count, path, error) != 0) return NULL;
    char *header = format_header(specs, count, path, &length, &total, error);
    if (!header) return NULL;
    SafetensorsWriter *writer = calloc(1, sizeof *writer);
    if (writer) writer->path = strdup(path);
    if (!writer || !writer->path) {
        checkpoint_no_memory(error, path);
    } else if ((writer->file = atomic_file_create(path, error))) {
        uint64_t prefix = length;
        writer->expected = total;
        if (atomic_file_write(writer->file, &prefix, sizeof prefix, error) == 0 &&
            atomic_file_write(writer->file, header, length, error) == 0) {
            free(header);
            return writer;
        }
    }
    free(header);
    safetensors_abandon(writer);
    return NULL;
}

/* Refuses to write beyond what the header says, before any byte of it is written. */
int safetensors_append(SafetensorsWriter *writer, const void *data, size_t bytes, Error *error)
{
    if (bytes > writer->expected - writer->written)
        return error_set(error, EXIT_FAILED, "%.700s: too much data for its tensors (expected %zu bytes, found more)",
                         writer->path, writer->expected);
    if (atomic_file_write(writer->file, data, bytes, error) != 0) return -1;
    writer->written += bytes;
    return 0;
}

int safetensors_commit(SafetensorsWriter *writer, Error *error)
{
    int status;
    if (writer->written == writer->expected) {
        status = atomic_file_commit(writer->file, error);
        writer->file = NULL; /* freed by the commit */
    } else {
        status =
            error_set(error, EXIT_FAILED, "%.700s: too little data for its tensors (expected %zu bytes, found %zu)",
                      writer->path, writer->expected, writer->written);
    }
    safetensors_abandon(writer);
    return status;
}

void safetensors_abandon(SafetensorsWriter *writer)
{
    if (!writer) return;
    atomic_file_abandon(writer->file);
    free(writer->path);
    free(writer);
}
