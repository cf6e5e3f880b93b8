/* t5x.c: reading the checkpoints that T5X writes (t5x/checkpoints.py).
 *
 * A checkpoint is a directory. Its file "checkpoint" is a msgpack map made by flax.serialization:
 *
 *     {"version": 3, "optimizer": {"target": PARAMETERS, "state": …}}    as T5X's Checkpointer writes it
 *     {"target": PARAMETERS, "state": …}                                 as plain Flax does
 *
 * PARAMETERS are nested maps, "decoder" to "layers_0" to "mlp" to "wo" to "kernel", with an array at each leaf:
 *
 *     in the file itself     an extension of type 1 (3 for a scalar), which holds msgpack again: [shape, type, bytes];
 *                            above 1 GiB {"__msgpack_chunked_array__": True, "shape": {"0": …}, "chunks": {"0": …}},
 *                            the chunks being pieces of the flattened array
 *     in files of its own    a TensorStore spec, {"driver": "zarr", "kvstore": {"path": "target.decoder.layers_0…"},
 *                            "metadata": {"shape", "chunks", "dtype", "compressor"}}
 *
 * The latter is an array in zarr's format 2: a directory of that name beside the index, with the metadata once more in
 * ".zarray" and with one file for each chunk, "row.column": gzip of a full chunk in row-major order, which at the
 * array's edges is padded.
 *
 * Here every parameter gets its Hugging Face name and, since T5X multiplies x W where torch has x W^T, its transpose;
 * that is a view, no copy. What has no such name keeps its T5X path. A model trained with scan over its layers holds one
 * array for a parameter of all layers, stacked on axis 1, under "encoder/encoder" in place of "encoder/layers_0"; it
 * becomes one tensor for each layer. The optimizer's state is left alone.
 *
 * An array in files is unpacked when it is first read. Only the last two stay: a whole model does not fit twice. */
#include "checkpoint.h"
#include "checkpoint_internal.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <zlib.h>

enum {
    T5X_MAX_DEPTH = 16,    /* of nested maps; T5X has 6 */
    T5X_MAX_NAME = 256,    /* of a path of keys */
    T5X_MAX_LAYERS = 4096, /* stacked in one array */
    T5X_MAX_SPEC = 1 << 16 /* bytes of a spec, and of .zarray */
};

/* Deflate writes at least 2 bits for 258 bytes: a shorter file cannot hold what its header promises. */
static const size_t DEFLATE_MAX_RATIO = 1032;

/* JSON and this reader hold numbers as doubles, which are whole up to 2^53. */
static const double T5X_WHOLE_MAX = 9007199254740992.0;

/* One array of the checkpoint. */
struct T5xArray {
    T5xArray *next; /* of the same checkpoint */
    Checkpoint *checkpoint;
    const MappedFile *index;
    char *directory; /* of the chunks; NULL when the array is in the index */
    Dtype dtype;
    size_t n_dims, shape[CHECKPOINT_MAX_DIMS], chunk[CHECKPOINT_MAX_DIMS], numel;
    bool compressed;
    bool layers_first;           /* axis 1 counts layers, and comes first in `bytes` */
    const unsigned char *data;   /* in the index, in one piece; NULL otherwise */
    const unsigned char *pieces; /* in the index, in several: the map of them */
    unsigned char *bytes;        /* unpacked, or NULL */
};

static const char *t5x_place(const T5xArray *array)
{
    return array->directory ? array->directory : array->index->path;
}

static int t5x_error(Error *error, const char *file, const char *name, const char *what)
{
    return error_set(error, EXIT_FAILED, "%.500s: %.250s: %s", file, name, what);
}

/* --------------------------------------------------------------------------------------------------------- msgpack */

/* github.com/msgpack/msgpack/blob/master/spec.md. Values are big-endian. Nothing is copied: a cursor steps through the
 * mapped file. */
typedef enum {
    MP_INVALID,
    MP_NIL,
    MP_BOOL,
    MP_UNSIGNED,
    MP_SIGNED,
    MP_REAL,
    MP_TEXT,
    MP_BYTES,
    MP_LIST,
    MP_MAP,
    MP_EXTENSION
} MpKind;

typedef struct {
    MpKind kind;
    size_t count;               /* bytes of a text, of bytes or of an extension; entries of a list or a map */
    const unsigned char *bytes; /* [count] */
    int extension;              /* its type */
    double number;
} MpItem;

typedef struct {
    const unsigned char *at, *end;
    const MappedFile *file;
} MpCursor;

static int mp_error(const MpCursor *in, const char *what, Error *error)
{
    return error_set(error, EXIT_FAILED, "%.700s: byte %zu: %s", in->file->path, (size_t)(in->at - in->file->data),
                     what);
}

/* The first bytes 0xc0 to 0xdf: what follows them is a number of `width` bytes (a value, or a count of bytes or
 * entries), or `count` bytes at once. */
static const struct {
    unsigned char kind, width, count;
} MP_FORMATS[32] = {
    {MP_NIL, 0, 0},       {MP_INVALID, 0, 0},   {MP_BOOL, 0, 0},      {MP_BOOL, 0, 1},      {MP_BYTES, 1, 0},
    {MP_BYTES, 2, 0},     {MP_BYTES, 4, 0},     {MP_EXTENSION, 1, 0}, {MP_EXTENSION, 2, 0}, {MP_EXTENSION, 4, 0},
    {MP_REAL, 4, 0},      {MP_REAL, 8, 0},      {MP_UNSIGNED, 1, 0},  {MP_UNSIGNED, 2, 0},  {MP_UNSIGNED, 4, 0},
    {MP_UNSIGNED, 8, 0},  {MP_SIGNED, 1, 0},    {MP_SIGNED, 2, 0},    {MP_SIGNED, 4, 0},    {MP_SIGNED, 8, 0},
    {MP_EXTENSION, 0, 1}, {MP_EXTENSION, 0, 2}, {MP_EXTENSION, 0, 4}, {MP_EXTENSION, 0, 8}, {MP_EXTENSION, 0, 16},
    {MP_TEXT, 1, 0},      {MP_TEXT, 2, 0},      {MP_TEXT, 4, 0},      {MP_LIST, 2, 0},      {MP_LIST, 4, 0},
    {MP_MAP, 2, 0},       {MP_MAP, 4, 0},
};

static double mp_real(uint64_t bits, size_t width)
{
    uint32_t single_bits = (uint32_t)bits;
    float single;
    double value;
    memcpy(&single, &single_bits, sizeof single);
    memcpy(&value, &bits, sizeof value);
    return width == 4 ? (double)single : value;
}

/* The first byte of an item, and the number behind it. */
static int mp_head(MpCursor *in, MpItem *item, Error *error)
{
    uint64_t value = 0;
    *item = (MpItem){0};
    if (in->at == in->end) return mp_error(in, "is truncated (expected a msgpack item, found the end)", error);
    unsigned first = *in->at;
    *item = (MpItem){.kind = MP_UNSIGNED, .number = first};
    if (first >= 0xe0) *item = (MpItem){.kind = MP_SIGNED, .number = (int8_t)first};
    if (first >= 0x80 && first < 0x90) *item = (MpItem){.kind = MP_MAP, .count = first & 15};
    if (first >= 0x90 && first < 0xa0) *item = (MpItem){.kind = MP_LIST, .count = first & 15};
    if (first >= 0xa0 && first < 0xc0) *item = (MpItem){.kind = MP_TEXT, .count = first & 31};
    if (first < 0xc0 || first >= 0xe0) {
        in->at++;
        return 0;
    }
    size_t width = MP_FORMATS[first - 0xc0].width;
    item->kind = (MpKind)MP_FORMATS[first - 0xc0].kind;
    if (item->kind == MP_INVALID) return mp_error(in, "is not msgpack (found a byte 0xc1)", error);
    if ((size_t)(in->end - in->at) < 1 + width) return mp_error(in, "is truncated within a msgpack number", error);
    for (size_t i = 0; i < width; i++) value = value << 8 | in->at[1 + i];
    in->at += 1 + width;
    if (item->kind == MP_SIGNED) /* shifted up and down again, for the sign */
        item->number = (double)((int64_t)(value << (64 - 8 * width)) >> (64 - 8 * width));
    else
        item->number = item->kind == MP_REAL ? mp_real(value, width) : (double)value;
    item->count = width ? (size_t)value : MP_FORMATS[first - 0xc0].count;
    return 0;
}

/* Reads one item. Of a list or a map that is only its head: the entries come next. */
static int mp_next(MpCursor *in, MpItem *item, Error *error)
{
    MpCursor start = *in;
    if (mp_head(in, item, error) != 0) return -1;
    bool has_bytes = item->kind == MP_TEXT || item->kind == MP_BYTES || item->kind == MP_EXTENSION;
    size_t left = (size_t)(in->end - in->at), wanted = has_bytes || item->kind == MP_LIST ? item->count : 0;
    if (item->kind == MP_EXTENSION && __builtin_add_overflow(wanted, 1, &wanted)) wanted = SIZE_MAX;
    if (item->kind == MP_MAP && __builtin_mul_overflow(item->count, 2, &wanted)) wanted = SIZE_MAX;
    if (wanted > left)
        return error_set(error, EXIT_FAILED,
                         "%.700s: byte %zu: is truncated (expected at least %zu more bytes, found %zu)", in->file->path,
                         (size_t)(start.at - in->file->data), wanted, left);
    if (item->kind == MP_EXTENSION) item->extension = (int8_t)*in->at++;
    item->bytes = in->at;
    if (has_bytes) in->at += item->count;
    return 0;
}

/* Steps over one item with all that is in it: counted, not recursive, since a file may nest without limit. */
static int mp_skip(MpCursor *in, Error *error)
{
    MpItem item;
    for (size_t pending = 1; pending > 0; pending--) {
        if (mp_next(in, &item, error) != 0) return -1;
        pending += item.kind == MP_LIST ? item.count : item.kind == MP_MAP ? 2 * item.count : 0;
    }
    return 0;
}

static bool mp_text_is(const MpItem *item, const char *text)
{
    return item->kind == MP_TEXT && item->count == strlen(text) && memcmp(item->bytes, text, item->count) == 0;
}

/* Finds a key in the map at `in`: 1 with *value at its value, 0 when it is not there (or this is no map), -1 on error. */
static int mp_find(MpCursor in, const char *key, MpCursor *value, Error *error)
{
    MpItem map, item;
    if (mp_next(&in, &map, error) != 0) return -1;
    for (size_t i = 0; map.kind == MP_MAP && i < map.count; i++) {
        if (mp_next(&in, &item, error) != 0) return -1;
        if (item.kind == MP_LIST || item.kind == MP_MAP) return mp_error(&in, "has a key that is no text", error);
        *value = in;
        if (mp_text_is(&item, key)) return 1;
        if (mp_skip(&in, error) != 0) return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- the arrays */

static T5xArray *t5x_array_new(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    T5xArray *array = calloc(1, sizeof *array);
    if (!array) {
        checkpoint_no_memory(error, file->path);
        return NULL;
    }
    array->checkpoint = checkpoint;
    array->index = file;
    array->next = checkpoint->arrays;
    checkpoint->arrays = array;
    return array;
}

void t5x_close(Checkpoint *checkpoint)
{
    for (T5xArray *array = checkpoint->arrays, *next; array; array = next) {
        next = array->next;
        free(array->directory);
        free(array->bytes);
        free(array);
    }
    checkpoint->arrays = NULL;
}

/* Appends a dimension. No parameter of a model is empty, so a 0 is damage. */
static int t5x_add_dimension(T5xArray *array, size_t *shape, double length, const char *name, Error *error)
{
    if (array->n_dims == CHECKPOINT_MAX_DIMS)
        return t5x_error(error, t5x_place(array), name, "has more than 8 dimensions");
    if (!(length >= 1 && length <= T5X_WHOLE_MAX) || (double)(size_t)length != length)
        return t5x_error(error, t5x_place(array), name, "its shape holds something other than positive whole numbers");
    shape[array->n_dims++] = (size_t)length;
    return 0;
}

/* The bytes of all elements, and their number; -1 on overflow. */
static int t5x_set_size(T5xArray *array, size_t *bytes, const char *name, Error *error)
{
    array->numel = 1;
    for (size_t d = 0; d < array->n_dims; d++)
        if (__builtin_mul_overflow(array->numel, array->shape[d], &array->numel))
            return t5x_error(error, t5x_place(array), name, "its shape overflows");
    if (__builtin_mul_overflow(array->numel, dtype_bytes(array->dtype), bytes))
        return t5x_error(error, t5x_place(array), name, "its shape overflows");
    return 0;
}

/* NumPy's names of types, in the index, and zarr's. TensorStore calls a bfloat16 by its name in both. */
static Dtype t5x_dtype(const char *text, size_t length)
{
    static const struct {
        const char *name;
        Dtype dtype;
    } names[] = {{"float32", DTYPE_F32}, {"<f4", DTYPE_F32},  {"float16", DTYPE_F16},  {"<f2", DTYPE_F16},
                 {"float64", DTYPE_F64}, {"<f8", DTYPE_F64},  {"int64", DTYPE_I64},    {"<i8", DTYPE_I64},
                 {"int32", DTYPE_I32},   {"<i4", DTYPE_I32},  {"int16", DTYPE_I16},    {"<i2", DTYPE_I16},
                 {"int8", DTYPE_I8},     {"|i1", DTYPE_I8},   {"uint8", DTYPE_U8},     {"|u1", DTYPE_U8},
                 {"bool", DTYPE_BOOL},   {"|b1", DTYPE_BOOL}, {"bfloat16", DTYPE_BF16}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i].name) == length && memcmp(names[i].name, text, length) == 0) return names[i].dtype;
    return DTYPE_OTHER;
}

static int t5x_set_dtype(T5xArray *array, const char *text, size_t length, const char *name, Error *error)
{
    array->dtype = t5x_dtype(text, length);
    if (array->dtype != DTYPE_OTHER) return 0;
    return error_set(error, EXIT_FAILED,
                     "%.500s: %.250s: has an unknown type (expected float32, bfloat16, float16 or float64, found "
                     "%.*s)",
                     t5x_place(array), name, length > 40 ? 40 : (int)length, text);
}

/* The msgpack within an extension: [shape, type, bytes]. Fills type and shape of the array; *data are the bytes. */
static int t5x_parse_inline(T5xArray *array, const MpItem *extension, const MappedFile *file, MpItem *data,
                            const char *name, Error *error)
{
    MpCursor in = {.at = extension->bytes, .end = extension->bytes + extension->count, .file = file};
    MpItem list, item;
    size_t wanted;
    if (mp_next(&in, &list, error) != 0) return -1;
    if (list.kind != MP_LIST || list.count != 3) return mp_error(&in, "is no array (expected a list of 3)", error);
    if (mp_next(&in, &list, error) != 0) return -1;
    array->n_dims = 0;
    for (size_t d = 0; d < list.count; d++) {
        if (mp_next(&in, &item, error) != 0) return -1;
        if (t5x_add_dimension(array, array->shape, item.kind == MP_UNSIGNED ? item.number : -1, name, error) != 0)
            return -1;
    }
    if (mp_next(&in, &item, error) != 0) return -1;
    if (list.kind != MP_LIST || (item.kind != MP_TEXT && item.kind != MP_BYTES))
        return mp_error(&in, "is no array (expected its shape and type)", error);
    if (t5x_set_dtype(array, (const char *)item.bytes, item.count, name, error) != 0) return -1;
    if (mp_next(&in, data, error) != 0) return -1;
    if (t5x_set_size(array, &wanted, name, error) != 0) return -1;
    if ((data->kind == MP_BYTES || data->kind == MP_TEXT) && data->count == wanted) return 0;
    return error_set(error, EXIT_FAILED, "%.500s: %.250s: has the wrong number of bytes (expected %zu, found %zu)",
                     file->path, name, wanted, data->kind == MP_BYTES || data->kind == MP_TEXT ? data->count : 0);
}

/* Entry "i" of {"0": …, "1": …}, Flax's way of writing a tuple: 1, 0 behind the last, -1 on error. */
static int t5x_tuple_entry(MpCursor tuple, size_t i, MpItem *item, Error *error)
{
    char key[24];
    MpCursor value;
    snprintf(key, sizeof key, "%zu", i);
    int found = mp_find(tuple, key, &value, error);
    return found <= 0 ? found : mp_next(&value, item, error) != 0 ? -1 : 1;
}

/* Goes through the pieces of an array; with `out`, copies them one behind another. They must have `wanted` bytes in all.
 * Each entry is looked for from the front: a piece is a gigabyte, so there are few; T5X_MAX_LAYERS bounds a liar's. */
static int t5x_join_pieces(const T5xArray *array, MpCursor pieces, size_t wanted, unsigned char *out, const char *name,
                           Error *error)
{
    T5xArray piece = {.index = array->index};
    MpItem item, data;
    size_t total = 0;
    int found = 0;
    for (size_t i = 0; i < T5X_MAX_LAYERS && (found = t5x_tuple_entry(pieces, i, &item, error)) == 1; i++) {
        if (item.kind != MP_EXTENSION)
            return t5x_error(error, array->index->path, name, "has a piece that is no array");
        if (t5x_parse_inline(&piece, &item, pieces.file, &data, name, error) != 0) return -1;
        if (piece.dtype != array->dtype)
            return t5x_error(error, array->index->path, name, "has pieces of different types");
        if (data.count > wanted - total)
            return t5x_error(error, array->index->path, name, "has pieces of more bytes than its shape");
        if (out) memcpy(out + total, data.bytes, data.count);
        total += data.count;
    }
    if (found < 0) return -1;
    if (total == wanted) return 0;
    return error_set(error, EXIT_FAILED, "%.500s: %.250s: has the wrong number of bytes (expected %zu, found %zu)",
                     array->index->path, name, wanted, total);
}

/* {"__msgpack_chunked_array__": …}: shape and type, and a check that the pieces make up the whole. */
static int t5x_parse_pieces(T5xArray *array, MpCursor in, const char *name, Error *error)
{
    MpCursor shape, pieces;
    MpItem item, data;
    T5xArray first = {.index = array->index};
    size_t wanted;
    int has_shape = mp_find(in, "shape", &shape, error);
    int has_pieces = has_shape < 0 ? -1 : mp_find(in, "chunks", &pieces, error), found = 0;
    if (has_shape < 0 || has_pieces < 0) return -1;
    if (!has_shape || !has_pieces) return t5x_error(error, array->index->path, name, "lacks \"shape\" or \"chunks\"");
    for (size_t d = 0; d <= CHECKPOINT_MAX_DIMS && (found = t5x_tuple_entry(shape, d, &item, error)) == 1; d++)
        if (t5x_add_dimension(array, array->shape, item.kind == MP_UNSIGNED ? item.number : -1, name, error) != 0)
            return -1;
    if (found == 0) found = t5x_tuple_entry(pieces, 0, &item, error);
    if (found < 0) return -1;
    if (found == 0 || item.kind != MP_EXTENSION) return t5x_error(error, array->index->path, name, "has no pieces");
    if (t5x_parse_inline(&first, &item, in.file, &data, name, error) != 0) return -1;
    array->dtype = first.dtype;
    array->pieces = pieces.at;
    if (t5x_set_size(array, &wanted, name, error) != 0) return -1;
    return t5x_join_pieces(array, pieces, wanted, NULL, name, error);
}

/* ------------------------------------------------------------------------------------------------------------- zarr */

/* A copy of a text of the file, or NULL when there is no memory. */
static char *mp_text(const MpItem *item)
{
    char *text = malloc(item->count + 1);
    if (text) {
        memcpy(text, item->bytes, item->count);
        text[item->count] = '\0';
    }
    return text;
}

/* An item without its entries; NULL when there is no memory. What JSON cannot say becomes null. */
static cJSON *mp_head_to_json(const MpItem *item)
{
    if (item->kind == MP_LIST) return cJSON_CreateArray();
    if (item->kind == MP_MAP) return cJSON_CreateObject();
    if (item->kind == MP_BOOL) return cJSON_CreateBool(item->count == 1);
    if (item->kind == MP_UNSIGNED || item->kind == MP_SIGNED || item->kind == MP_REAL)
        return cJSON_CreateNumber(item->number);
    if (item->kind != MP_TEXT) return cJSON_CreateNull();
    char *text = mp_text(item);
    cJSON *json = text ? cJSON_CreateString(text) : NULL;
    free(text);
    return json;
}

static cJSON *mp_to_json(MpCursor *in, size_t depth, Error *error);

/* One entry of a list, or key and value of a map. */
static int mp_entry_to_json(MpCursor *in, cJSON *json, size_t depth, Error *error)
{
    MpItem item;
    char *key = NULL;
    if (cJSON_IsObject(json)) {
        if (mp_next(in, &item, error) != 0) return -1;
        if (item.kind != MP_TEXT) return mp_error(in, "has a key that is no text", error);
        if (!(key = mp_text(&item))) return checkpoint_no_memory(error, in->file->path);
    }
    cJSON *value = mp_to_json(in, depth, error);
    int status = value ? 0 : -1;
    if (value && !(key ? cJSON_AddItemToObject(json, key, value) : cJSON_AddItemToArray(json, value))) {
        cJSON_Delete(value);
        status = checkpoint_no_memory(error, in->file->path);
    }
    free(key);
    return status;
}

/* A spec is what JSON can say, in msgpack: as JSON it goes through the same code as .zarray. */
static cJSON *mp_to_json(MpCursor *in, size_t depth, Error *error)
{
    MpItem item;
    if (mp_next(in, &item, error) != 0) return NULL;
    cJSON *json = mp_head_to_json(&item);
    int status = json ? 0 : checkpoint_no_memory(error, in->file->path);
    size_t entries = item.kind == MP_LIST || item.kind == MP_MAP ? item.count : 0;
    if (depth == T5X_MAX_DEPTH) status = mp_error(in, "is nested too deeply (expected a TensorStore spec)", error);
    for (size_t i = 0; status == 0 && i < entries; i++) status = mp_entry_to_json(in, json, depth + 1, error);
    if (status == 0) return json;
    cJSON_Delete(json);
    return NULL;
}

/* The directory of an array is beside the index, whatever the path on the machine that wrote it: its last part counts.
 * A downloaded index must not make us read other files of this one. */
static int zarr_set_directory(T5xArray *array, const cJSON *spec, const char *name, Error *error)
{
    const cJSON *store = cJSON_GetObjectItemCaseSensitive(spec, "kvstore");
    const cJSON *path = cJSON_GetObjectItemCaseSensitive(store, "path");
    if (!path) path = cJSON_GetObjectItemCaseSensitive(spec, "path"); /* TensorStore before 0.1.14 */
    const char *text = cJSON_IsString(path) ? path->valuestring : "";
    size_t length = strlen(text), parent = 0;
    while (length > 0 && text[length - 1] == '/') length--;
    size_t start = length;
    while (start > 0 && text[start - 1] != '/') start--;
    for (const char *dots = text; (dots = strstr(dots, "..")); dots++)
        parent += (dots == text || dots[-1] == '/') && (dots[2] == '/' || dots[2] == '\0');
    if (length == start || parent > 0 || strncmp(text + start, ".", length - start) == 0)
        return error_set(error, EXIT_FAILED,
                         "%.400s: %.250s: expected the path of a directory beside the index, found \"%.200s\"",
                         array->index->path, name, text);
    const char *slash = strrchr(array->index->path, '/');
    size_t before = slash ? (size_t)(slash - array->index->path) + 1 : 0;
    array->directory = malloc(before + length - start + 1);
    if (!array->directory) return checkpoint_no_memory(error, array->index->path);
    memcpy(array->directory, array->index->path, before);
    memcpy(array->directory + before, text + start, length - start);
    array->directory[before + length - start] = '\0';
    return 0;
}

/* A list of positive whole numbers; their count becomes n_dims. */
static int zarr_numbers(T5xArray *array, const cJSON *list, size_t *numbers, const char *name, Error *error)
{
    const cJSON *item;
    if (!cJSON_IsArray(list)) return t5x_error(error, array->directory, name, "lacks its \"shape\" or \"chunks\"");
    array->n_dims = 0;
    cJSON_ArrayForEach(item, list)
    {
        double number = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (t5x_add_dimension(array, numbers, number, name, error) != 0) return -1;
    }
    return 0;
}

/* How the numbers of a chunk are stored. zlib tells its own format and gzip's apart by itself. */
static int zarr_layout(T5xArray *array, const cJSON *metadata, const char *name, Error *error)
{
    const cJSON *compressor = cJSON_GetObjectItemCaseSensitive(metadata, "compressor");
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(compressor, "id");
    const cJSON *filters = cJSON_GetObjectItemCaseSensitive(metadata, "filters");
    const cJSON *order = cJSON_GetObjectItemCaseSensitive(metadata, "order");
    const cJSON *separator = cJSON_GetObjectItemCaseSensitive(metadata, "dimension_separator");
    const char *compression = cJSON_IsString(id) ? id->valuestring : "something else";
    if (order && (!cJSON_IsString(order) || strcmp(order->valuestring, "C") != 0))
        return t5x_error(error, array->directory, name, "is not in row-major order (expected order \"C\")");
    if (filters && !cJSON_IsNull(filters))
        return t5x_error(error, array->directory, name, "has filters (expected \"filters\": null)");
    if (separator && (!cJSON_IsString(separator) || strcmp(separator->valuestring, ".") != 0))
        return t5x_error(error, array->directory, name, "has chunks in directories (expected the separator \".\")");
    array->compressed = compressor && !cJSON_IsNull(compressor);
    if (!array->compressed || strcmp(compression, "gzip") == 0 || strcmp(compression, "zlib") == 0) return 0;
    return error_set(error, EXIT_FAILED, "%.500s: %.250s: has an unknown compression (expected gzip, found %.40s)",
                     array->directory, name, compression);
}

/* The metadata of an array: the spec's, whose type may stand beside it, or .zarray's. */
static int zarr_metadata(T5xArray *array, const cJSON *metadata, const cJSON *dtype, const char *name, Error *error)
{
    const cJSON *own = cJSON_GetObjectItemCaseSensitive(metadata, "dtype");
    const cJSON *type = own ? own : dtype;
    if (!cJSON_IsString(type)) return t5x_error(error, array->directory, name, "lacks its \"dtype\"");
    if (t5x_set_dtype(array, type->valuestring, strlen(type->valuestring), name, error) != 0) return -1;
    if (zarr_numbers(array, cJSON_GetObjectItemCaseSensitive(metadata, "shape"), array->shape, name, error) != 0)
        return -1;
    size_t n_dims = array->n_dims;
    if (zarr_numbers(array, cJSON_GetObjectItemCaseSensitive(metadata, "chunks"), array->chunk, name, error) != 0)
        return -1;
    if (array->n_dims != n_dims)
        return error_set(error, EXIT_FAILED,
                         "%.500s: %.250s: has chunks of %zu dimensions (expected %zu, as its shape)", array->directory,
                         name, array->n_dims, n_dims);
    return zarr_layout(array, metadata, name, error);
}

/* The file .zarray says how the chunks beside it were written, so it wins; it must be of the same array. Some ways of
 * copying a directory leave out the files whose names begin with a dot: the spec has to do then. */
static int zarr_metadata_file(T5xArray *array, const char *name, Error *error)
{
    MappedFile file;
    T5xArray spec = *array;
    char *path = path_join(array->directory, ".zarray");
    if (!path) return checkpoint_no_memory(error, array->directory);
    int status = 0;
    if (path_exists(path) && (status = mapped_file_open(&file, path, error)) == 0) {
        cJSON *json = file.bytes <= T5X_MAX_SPEC ? json_parse((const char *)file.data, file.bytes) : NULL;
        status = cJSON_IsObject(json) ? zarr_metadata(array, json, NULL, name, error)
                                      : error_set(error, EXIT_FAILED, "%.700s: is not a JSON object", path);
        cJSON_Delete(json);
        mapped_file_close(&file);
        bool same = array->dtype == spec.dtype && array->n_dims == spec.n_dims &&
                    memcmp(array->shape, spec.shape, spec.n_dims * sizeof *spec.shape) == 0;
        if (status == 0 && !same)
            status = t5x_error(error, path, name, "has another shape or type than the index says");
    }
    free(path);
    return status;
}

/* The chunks of an array, one after the other in row-major order of the grid. */
typedef struct {
    size_t index[CHECKPOINT_MAX_DIMS];
    char *path; /* of the chunk's file: the directory and 8 numbers */
    size_t room, chunk_bytes;
} ZarrChunks;

static int zarr_chunks_start(ZarrChunks *chunks, const T5xArray *array, const char *name, Error *error)
{
    *chunks = (ZarrChunks){.chunk_bytes = dtype_bytes(array->dtype)};
    for (size_t d = 0; d < array->n_dims; d++)
        if (__builtin_mul_overflow(chunks->chunk_bytes, array->chunk[d], &chunks->chunk_bytes))
            return t5x_error(error, array->directory, name, "its chunks overflow");
    chunks->room = strlen(array->directory) + 21 * (CHECKPOINT_MAX_DIMS + 1);
    chunks->path = malloc(chunks->room);
    return chunks->path ? 0 : checkpoint_no_memory(error, array->directory);
}

/* "DIRECTORY/row.column"; an array without dimensions has one chunk, "0". */
static void zarr_chunk_name(ZarrChunks *chunks, const T5xArray *array)
{
    size_t at = (size_t)snprintf(chunks->path, chunks->room, "%s/%s", array->directory, array->n_dims ? "" : "0");
    for (size_t d = 0; d < array->n_dims; d++)
        at += (size_t)snprintf(chunks->path + at, chunks->room - at, d ? ".%zu" : "%zu", chunks->index[d]);
}

/* Goes on to the next chunk; false behind the last. */
static bool zarr_chunks_next(ZarrChunks *chunks, const T5xArray *array)
{
    for (size_t d = array->n_dims; d-- > 0;) {
        if (++chunks->index[d] <= (array->shape[d] - 1) / array->chunk[d]) return true;
        chunks->index[d] = 0;
    }
    return false;
}

/* Every chunk must be there, and large enough for what it is said to hold: so no header makes us allocate what no file
 * backs. Zarr would take a missing chunk for zeros; here it is far more likely that a download is incomplete. */
static int zarr_check_chunks(const T5xArray *array, const char *name, Error *error)
{
    ZarrChunks chunks;
    int status = zarr_chunks_start(&chunks, array, name, error);
    while (status == 0) {
        struct stat found;
        zarr_chunk_name(&chunks, array);
        if (stat(chunks.path, &found) != 0 || !S_ISREG(found.st_mode)) {
            status = error_set(error, EXIT_FAILED, "%.600s: is not there (a chunk of %.250s)", chunks.path, name);
        } else {
            size_t bytes = (size_t)found.st_size;
            if (array->compressed ? chunks.chunk_bytes / DEFLATE_MAX_RATIO > bytes : chunks.chunk_bytes != bytes)
                status = error_set(error, EXIT_FAILED,
                                   "%.500s: has the wrong size (expected %zu bytes%s, found a file of %zu)",
                                   chunks.path, chunks.chunk_bytes, array->compressed ? " when unpacked" : "", bytes);
        }
        if (!zarr_chunks_next(&chunks, array)) break;
    }
    free(chunks.path);
    return status;
}

static int zarr_parse(T5xArray *array, MpCursor in, const char *name, Error *error)
{
    MpCursor behind = in;
    size_t ignored;
    if (mp_skip(&behind, error) != 0) return -1;
    if ((size_t)(behind.at - in.at) > T5X_MAX_SPEC)
        return t5x_error(error, array->index->path, name, "has too long a spec");
    cJSON *spec = mp_to_json(&in, 0, error);
    if (!spec) return -1;
    const cJSON *driver = cJSON_GetObjectItemCaseSensitive(spec, "driver");
    int status = 0;
    if (!cJSON_IsString(driver) || strcmp(driver->valuestring, "zarr") != 0)
        status = error_set(error, EXIT_FAILED, "%.500s: %.250s: has an unknown driver (expected zarr, found %.40s)",
                           array->index->path, name, cJSON_IsString(driver) ? driver->valuestring : "something else");
    if (status == 0) status = zarr_set_directory(array, spec, name, error);
    if (status == 0 && !path_is_directory(array->directory))
        status =
            error_set(error, EXIT_FAILED, "%.500s: is not there (the directory of %.250s)", array->directory, name);
    if (status == 0)
        status = zarr_metadata(array, cJSON_GetObjectItemCaseSensitive(spec, "metadata"),
                               cJSON_GetObjectItemCaseSensitive(spec, "dtype"), name, error);
    cJSON_Delete(spec);
    if (status == 0) status = zarr_metadata_file(array, name, error);
    if (status == 0) status = t5x_set_size(array, &ignored, name, error);
    return status == 0 ? zarr_check_chunks(array, name, error) : -1;
}

/* -------------------------------------------------------------------------------------------------------- unpacking */

/* Inflates a whole file into exactly `bytes` bytes. zlib counts in 32 bits, so both sides go piece by piece. */
static int zarr_inflate(const MappedFile *file, unsigned char *out, size_t bytes, Error *error)
{
    enum { PIECE = 1 << 30, GZIP_OR_ZLIB = 32 };
    z_stream stream = {0};
    size_t used = 0, made = 0;
    int code = inflateInit2(&stream, MAX_WBITS + GZIP_OR_ZLIB);
    if (code != Z_OK) return checkpoint_no_memory(error, file->path);
    while (code == Z_OK) {
        uInt in = (uInt)(file->bytes - used < PIECE ? file->bytes - used : PIECE);
        uInt room = (uInt)(bytes - made < PIECE ? bytes - made : PIECE);
        stream.next_in = (unsigned char *)(uintptr_t)(file->data + used); /* zlib only reads it */
        stream.next_out = out + made;
        stream.avail_in = in;
        stream.avail_out = room;
        code = inflate(&stream, Z_NO_FLUSH);
        used += in - stream.avail_in;
        made += room - stream.avail_out;
    }
    inflateEnd(&stream);
    if (code == Z_MEM_ERROR) return checkpoint_no_memory(error, file->path);
    if (code == Z_STREAM_END && made == bytes && used == file->bytes) return 0;
    return error_set(error, EXIT_FAILED, "%.700s: is no gzip of a chunk (expected %zu bytes in it, found %s%zu)",
                     file->path, bytes, code == Z_STREAM_END ? "" : "damage or an end other than at ", made);
}

/* Where each dimension's next element is in the unpacked array: row-major, but for the layers, which go to the front. */
static void t5x_strides(const T5xArray *array, size_t *strides)
{
    size_t stride = 1;
    for (size_t d = array->n_dims; d-- > 0;) {
        if (d == 1 && array->layers_first) continue;
        strides[d] = stride;
        stride *= array->shape[d];
    }
    if (array->layers_first) strides[1] = stride;
}

/* Copies the box that begins at `origin` and has row-major dimensions `box` from `from` into the unpacked array, as far
 * as it lies in it. */
static void t5x_copy_box(const T5xArray *array, const size_t *origin, const size_t *box, const unsigned char *from,
                         unsigned char *to)
{
    const size_t size = dtype_bytes(array->dtype), n = array->n_dims;
    size_t strides[CHECKPOINT_MAX_DIMS] = {0}, extent[CHECKPOINT_MAX_DIMS], index[CHECKPOINT_MAX_DIMS] = {0};
    if (n == 0) {
        memcpy(to, from, size);
        return;
    }
    t5x_strides(array, strides);
    for (size_t d = 0; d < n; d++) {
        extent[d] = array->shape[d] - origin[d] < box[d] ? array->shape[d] - origin[d] : box[d];
        to += origin[d] * strides[d] * size;
    }
    for (bool more = true; more;) { /* one row of the last dimension at a time */
        size_t source = 0, target = 0, d;
        for (d = 0; d < n; d++) {
            source = source * box[d] + index[d];
            target += index[d] * strides[d];
        }
        if (strides[n - 1] == 1)
            memcpy(to + target * size, from + source * size, extent[n - 1] * size);
        else
            for (size_t i = 0; i < extent[n - 1]; i++)
                memcpy(to + (target + i * strides[n - 1]) * size, from + (source + i) * size, size);
        for (d = n - 1; d > 0 && ++index[d - 1] == extent[d - 1]; d--) index[d - 1] = 0;
        more = d > 0;
    }
}

static int zarr_unpack(const T5xArray *array, unsigned char *bytes, Error *error)
{
    ZarrChunks chunks;
    int status = zarr_chunks_start(&chunks, array, "", error);
    if (status != 0) return -1;
    unsigned char *inflated = array->compressed ? malloc(chunks.chunk_bytes) : NULL;
    if (array->compressed && !inflated) status = checkpoint_no_memory(error, array->directory);
    while (status == 0) {
        MappedFile file;
        size_t origin[CHECKPOINT_MAX_DIMS] = {0};
        for (size_t d = 0; d < array->n_dims; d++) origin[d] = chunks.index[d] * array->chunk[d];
        zarr_chunk_name(&chunks, array);
        status = mapped_file_open(&file, chunks.path, error);
        if (status != 0) break;
        if (array->compressed)
            status = zarr_inflate(&file, inflated, chunks.chunk_bytes, error);
        else if (file.bytes != chunks.chunk_bytes)
            status = error_set(error, EXIT_FAILED, "%.700s: has changed its size while it was read", chunks.path);
        if (status == 0) t5x_copy_box(array, origin, array->chunk, array->compressed ? inflated : file.data, bytes);
        mapped_file_close(&file);
        if (!zarr_chunks_next(&chunks, array)) break;
    }
    free(inflated);
    free(chunks.path);
    return status;
}

/* Of an array in the index: its pieces are joined, and its layers go to the front. */
static int t5x_unpack_inline(const T5xArray *array, unsigned char *bytes, size_t size, Error *error)
{
    static const size_t origin[CHECKPOINT_MAX_DIMS];
    const MappedFile *file = array->index;
    MpCursor pieces = {.at = array->pieces, .end = file->data + file->bytes, .file = file};
    unsigned char *joined = array->pieces ? malloc(size) : NULL;
    int status = 0;
    if (array->pieces)
        status = joined ? t5x_join_pieces(array, pieces, size, joined, "", error)
                        : checkpoint_no_memory(error, array->index->path);
    if (status == 0) t5x_copy_box(array, origin, array->shape, array->pieces ? joined : array->data, bytes);
    free(joined);
    return status;
}

const unsigned char *t5x_array_bytes(T5xArray *array, Error *error)
{
    T5xArray **recent = array->checkpoint->recent;
    size_t size = array->numel * dtype_bytes(array->dtype); /* did not overflow when the array was listed */
    if (!array->bytes) {
        if (recent[1]) {
            free(recent[1]->bytes);
            recent[1]->bytes = NULL;
        }
        recent[1] = recent[0];
        recent[0] = NULL;
        unsigned char *bytes = malloc(size);
        if (!bytes) {
            checkpoint_no_memory(error, t5x_place(array));
            return NULL;
        }
        if ((array->directory ? zarr_unpack(array, bytes, error) : t5x_unpack_inline(array, bytes, size, error)) != 0) {
            free(bytes);
            return NULL;
        }
        array->bytes = bytes;
        recent[0] = array;
    } else if (recent[1] == array) {
        recent[1] = recent[0];
        recent[0] = array;
    }
    return array->bytes;
}

/* ------------------------------------------------------------------------------------------------------------ names */

/* How a parameter becomes torch's tensor: as it is, or transposed. A kernel may have its heads as a dimension of their
 * own, [input, heads, d_kv] or [heads, d_kv, output], which is flattened. */
typedef enum { FORM_AS_IS, FORM_FIRST_IS_INPUT, FORM_LAST_IS_OUTPUT } T5xForm;

/* T5X's names (t5x/examples/t5/network.py) and those of transformers' T5. Within a layer: */
static const struct {
    const char *t5x, *encoder, *decoder; /* the latter two behind "encoder.block.0.layer."; NULL: not in this stack */
    T5xForm form;
} T5X_LAYER_NAMES[] = {
    {"attention/query/kernel", "0.SelfAttention.q", NULL, FORM_FIRST_IS_INPUT},
    {"attention/key/kernel", "0.SelfAttention.k", NULL, FORM_FIRST_IS_INPUT},
    {"attention/value/kernel", "0.SelfAttention.v", NULL, FORM_FIRST_IS_INPUT},
    {"attention/out/kernel", "0.SelfAttention.o", NULL, FORM_LAST_IS_OUTPUT},
    {"self_attention/query/kernel", NULL, "0.SelfAttention.q", FORM_FIRST_IS_INPUT},
    {"self_attention/key/kernel", NULL, "0.SelfAttention.k", FORM_FIRST_IS_INPUT},
    {"self_attention/value/kernel", NULL, "0.SelfAttention.v", FORM_FIRST_IS_INPUT},
    {"self_attention/out/kernel", NULL, "0.SelfAttention.o", FORM_LAST_IS_OUTPUT},
    {"encoder_decoder_attention/query/kernel", NULL, "1.EncDecAttention.q", FORM_FIRST_IS_INPUT},
    {"encoder_decoder_attention/key/kernel", NULL, "1.EncDecAttention.k", FORM_FIRST_IS_INPUT},
    {"encoder_decoder_attention/value/kernel", NULL, "1.EncDecAttention.v", FORM_FIRST_IS_INPUT},
    {"encoder_decoder_attention/out/kernel", NULL, "1.EncDecAttention.o", FORM_LAST_IS_OUTPUT},
    {"mlp/wi/kernel", "1.DenseReluDense.wi", "2.DenseReluDense.wi", FORM_FIRST_IS_INPUT},
    {"mlp/wi_0/kernel", "1.DenseReluDense.wi_0", "2.DenseReluDense.wi_0", FORM_FIRST_IS_INPUT},
    {"mlp/wi_1/kernel", "1.DenseReluDense.wi_1", "2.DenseReluDense.wi_1", FORM_FIRST_IS_INPUT},
    {"mlp/wo/kernel", "1.DenseReluDense.wo", "2.DenseReluDense.wo", FORM_LAST_IS_OUTPUT},
    {"pre_attention_layer_norm/scale", "0.layer_norm", NULL, FORM_AS_IS},
    {"pre_self_attention_layer_norm/scale", NULL, "0.layer_norm", FORM_AS_IS},
    {"pre_cross_attention_layer_norm/scale", NULL, "1.layer_norm", FORM_AS_IS},
    {"pre_mlp_layer_norm/scale", "1.layer_norm", "2.layer_norm", FORM_AS_IS},
    {"relpos_bias/rel_embedding", "0.SelfAttention.relative_attention_bias", "0.SelfAttention.relative_attention_bias",
     FORM_FIRST_IS_INPUT},
};

/* And outside of the layers. */
static const struct {
    const char *t5x, *hugging_face;
    T5xForm form;
} T5X_NAMES[] = {
    {"token_embedder/embedding", "shared", FORM_AS_IS},
    {"decoder/logits_dense/kernel", "lm_head", FORM_FIRST_IS_INPUT},
    {"encoder/encoder_norm/scale", "encoder.final_layer_norm", FORM_AS_IS},
    {"decoder/decoder_norm/scale", "decoder.final_layer_norm", FORM_AS_IS},
    {"encoder/relpos_bias/rel_embedding", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
     FORM_FIRST_IS_INPUT},
    {"decoder/relpos_bias/rel_embedding", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
     FORM_FIRST_IS_INPUT},
};

/* What a path of keys means. */
typedef struct {
    const char *stack; /* "encoder" or "decoder" for a parameter of a layer, NULL for another */
    const char *name;  /* Hugging Face's: of a layer behind "….layer.", otherwise whole; NULL: there is none */
    T5xForm form;
    bool stacked; /* all layers in one array; otherwise: */
    size_t layer;
} T5xMeaning;

/* Steps over "layers_7/", or over "encoder/" where all layers are stacked; NULL when there is neither. */
static const char *t5x_parse_layer(const char *rest, T5xMeaning *meaning)
{
    size_t length = strlen(meaning->stack), digits;
    meaning->stacked = strncmp(rest, meaning->stack, length) == 0 && rest[length] == '/';
    if (meaning->stacked) return rest + length + 1;
    if (strncmp(rest, "layers_", 7) != 0) return NULL;
    digits = strspn(rest + 7, "0123456789");
    if (digits == 0 || digits > 4 || rest[7 + digits] != '/') return NULL;
    meaning->layer = (size_t)strtoul(rest + 7, NULL, 10);
    return rest + 7 + digits + 1;
}

static T5xMeaning t5x_meaning(const char *path)
{
    T5xMeaning meaning = {0};
    for (size_t i = 0; i < sizeof T5X_NAMES / sizeof *T5X_NAMES; i++)
        if (strcmp(path, T5X_NAMES[i].t5x) == 0)
            return (T5xMeaning){.name = T5X_NAMES[i].hugging_face, .form = T5X_NAMES[i].form};
    bool is_encoder = strncmp(path, "encoder/", 8) == 0;
    if (!is_encoder && strncmp(path, "decoder/", 8) != 0) return meaning;
    meaning.stack = is_encoder ? "encoder" : "decoder";
    const char *rest = t5x_parse_layer(path + 8, &meaning);
    for (size_t i = 0; rest && i < sizeof T5X_LAYER_NAMES / sizeof *T5X_LAYER_NAMES; i++)
        if (strcmp(rest, T5X_LAYER_NAMES[i].t5x) == 0) {
            meaning.name = is_encoder ? T5X_LAYER_NAMES[i].encoder : T5X_LAYER_NAMES[i].decoder;
            meaning.form = T5X_LAYER_NAMES[i].form;
        }
    return meaning;
}

/* ---------------------------------------------------------------------------------------------------------- listing */

/* Lists one tensor: the array, or one layer of it. With transposition [a, b, c] becomes [b c, a] or [c, a b]: the
 * elements of a layer are dense, so flattened dimensions have one stride. */
static int t5x_add(Checkpoint *checkpoint, T5xArray *array, T5xForm form, size_t layer, const char *name, Error *error)
{
    StoredTensor tensor = {.file = t5x_place(array), .dtype = array->dtype};
    size_t layers = array->layers_first ? array->shape[1] : 1, size = dtype_bytes(array->dtype);
    for (size_t d = 0; d < array->n_dims; d++)
        if (d != 1 || !array->layers_first) tensor.shape[tensor.n_dims++] = array->shape[d];
    if (form != FORM_AS_IS && tensor.n_dims != 2 && tensor.n_dims != 3)
        return error_set(error, EXIT_FAILED, "%.500s: %.250s: has %zu dimensions (expected 2 or 3%s)", t5x_place(array),
                         name, array->n_dims, array->layers_first ? ", and the layers" : "");
    tensor_set_row_major(&tensor); /* cannot overflow: the whole array does not */
    if (form != FORM_AS_IS) {
        size_t input = form == FORM_FIRST_IS_INPUT ? tensor.shape[0] : tensor.numel / tensor.shape[tensor.n_dims - 1];
        size_t output = tensor.numel / input;
        tensor.n_dims = 2;
        tensor.shape[0] = output;
        tensor.shape[1] = input;
        tensor.strides[0] = 1;
        tensor.strides[1] = output;
    }
    if (array->data && !array->layers_first) {
        tensor.data = array->data;
    } else {
        tensor.packed = array;
        tensor.packed_offset = layer * (array->numel / layers) * size;
    }
    return checkpoint_add(checkpoint, &tensor, name, strlen(name),
                          tensor.data ? tensor.data + array->numel * size : NULL, error);
}

/* T5X's scalable_t5 and umT5 train a relative position bias in every layer; mT5 and T5 have one for the stack. */
static int t5x_check_same_bias(T5xArray *array, const char *path, Error *error)
{
    const unsigned char *bytes = t5x_array_bytes(array, error);
    if (!bytes) return -1;
    size_t layer_bytes = array->numel / array->shape[1] * dtype_bytes(array->dtype);
    for (size_t l = 1; l < array->shape[1]; l++)
        if (memcmp(bytes, bytes + l * layer_bytes, layer_bytes) != 0)
            return t5x_error(error, t5x_place(array), path,
                             "is another in every layer, as in umT5 (expected one for all layers, as in mT5 and T5)");
    return 0;
}

/* Lists the parameter of a path under its Hugging Face names. */
static int t5x_list(Checkpoint *checkpoint, T5xArray *array, const char *path, Error *error)
{
    char name[T5X_MAX_NAME];
    T5xMeaning meaning = t5x_meaning(path);
    if (!meaning.name) return t5x_add(checkpoint, array, FORM_AS_IS, 0, path, error);
    if (!meaning.stack) {
        snprintf(name, sizeof name, "%s.weight", meaning.name);
        return t5x_add(checkpoint, array, meaning.form, 0, name, error);
    }
    bool is_bias = strstr(meaning.name, "relative_attention_bias");
    array->layers_first = meaning.stacked;
    if (meaning.stacked && (array->n_dims < 2 || array->shape[1] > T5X_MAX_LAYERS))
        return t5x_error(error, t5x_place(array), path, "is not of stacked layers (expected them on axis 1)");
    if (meaning.stacked && is_bias && t5x_check_same_bias(array, path, error) != 0) return -1;
    if (!meaning.stacked && is_bias && meaning.layer > 0)
        return t5x_error(error, t5x_place(array), path,
                         "is of one layer, as in umT5 (expected one for all layers, as in mT5 and T5)");
    size_t count = meaning.stacked && !is_bias ? array->shape[1] : 1;
    for (size_t l = 0; l < count; l++) {
        snprintf(name, sizeof name, "%s.block.%zu.layer.%s.weight", meaning.stack, meaning.layer + l, meaning.name);
        if (t5x_add(checkpoint, array, meaning.form, l, name, error) != 0) return -1;
    }
    return 0;
}

int t5x_orbax_error(const char *path, Error *error)
{
    return error_set(
        error, EXIT_FAILED,
        "%.700s: is an Orbax checkpoint (expected one of T5X's own layout, whose file \"checkpoint\" holds "
        "arrays and TensorStore specs)",
        path);
}

/* Is this map an array? Its kind is known by one key. */
static int t5x_is_array(MpCursor map, const char *key, MpKind kind, Error *error)
{
    MpCursor value;
    MpItem item;
    int found = mp_find(map, key, &value, error);
    if (found <= 0) return found;
    return mp_next(&value, &item, error) != 0 ? -1 : item.kind == kind;
}

/* The map or leaf at `in`, under `path`; steps over it. The path grows and shrinks with the recursion. */
static int t5x_walk(Checkpoint *checkpoint, MpCursor *in, char *path, size_t depth, Error *error)
{
    MpCursor start = *in;
    MpItem item, key, data;
    size_t length = strlen(path);
    if (mp_next(in, &item, error) != 0) return -1;
    if (item.kind == MP_NIL) return 0;
    if (item.kind == MP_TEXT && item.count > 11 && memcmp(item.bytes, "PLACEHOLDER", 11) == 0)
        return t5x_orbax_error(in->file->path, error);
    if (item.kind != MP_MAP && !(item.kind == MP_EXTENSION && (item.extension == 1 || item.extension == 3)))
        return t5x_error(error, in->file->path, path, "is neither an array nor a map");
    int is_spec = t5x_is_array(start, "driver", MP_TEXT, error);
    int is_pieces = is_spec < 0 ? -1 : t5x_is_array(start, "__msgpack_chunked_array__", MP_BOOL, error);
    if (is_pieces < 0) return -1;
    if (item.kind == MP_EXTENSION || is_spec || is_pieces) {
        T5xArray *array = t5x_array_new(checkpoint, in->file, error);
        int status = !array                      ? -1
                     : item.kind == MP_EXTENSION ? t5x_parse_inline(array, &item, in->file, &data, path, error)
                     : is_spec                   ? zarr_parse(array, start, path, error)
                                                 : t5x_parse_pieces(array, start, path, error);
        if (status == 0 && item.kind == MP_EXTENSION) array->data = data.bytes;
        if (status == 0) status = t5x_list(checkpoint, array, path, error);
        *in = start;
        return status == 0 ? mp_skip(in, error) : -1;
    }
    if (depth == T5X_MAX_DEPTH) return t5x_error(error, in->file->path, path, "is nested too deeply");
    for (size_t i = 0; i < item.count; i++) {
        if (mp_next(in, &key, error) != 0) return -1;
        if (key.kind != MP_TEXT || key.count == 0 || length + 1 + key.count >= T5X_MAX_NAME ||
            utf8_valid_length((const char *)key.bytes, key.count) != key.count)
            return mp_error(in, "has a key that is no short text", error);
        snprintf(path + length, T5X_MAX_NAME - length, "%s%.*s", length ? "/" : "", (int)key.count,
                 (const char *)key.bytes);
        if (t5x_walk(checkpoint, in, path, depth + 1, error) != 0) return -1;
        path[length] = '\0';
    }
    return 0;
}

/* -------------------------------------------------------------------------------------------------------- the faces */

/* By the files that Orbax leaves beside or in place of the index; T5X has it write into a directory "state". */
bool t5x_is_orbax(const char *directory)
{
    static const char *const marks[] = {"_CHECKPOINT_METADATA", "_METADATA",       "manifest.ocdbt",
                                        "state/checkpoint",     "state/_METADATA", "state/manifest.ocdbt"};
    bool found = false;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        char *path = path_join(directory, marks[i]);
        found = found || (path && path_exists(path));
        free(path);
    }
    return found;
}

bool t5x_recognised(const MappedFile *file)
{
    static const char *const first_keys[] = {"version", "optimizer", "target", "state", "_optimizer", "flax_mutables"};
    Error ignored;
    MpCursor in = {.at = file->data, .end = file->data + file->bytes, .file = file};
    MpItem item;
    if (mp_next(&in, &item, &ignored) != 0 || item.kind != MP_MAP || item.count == 0) return false;
    if (mp_next(&in, &item, &ignored) != 0) return false;
    for (size_t i = 0; i < sizeof first_keys / sizeof *first_keys; i++)
        if (mp_text_is(&item, first_keys[i])) return true;
    return false;
}

int t5x_read(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    MpCursor whole = {.at = file->data, .end = file->data + file->bytes, .file = file}, behind = whole, optimizer,
             target;
    char path[T5X_MAX_NAME] = "";
    if (mp_skip(&behind, error) != 0) return -1;
    if (behind.at != behind.end) return mp_error(&behind, "has bytes behind its end", error);
    int found = mp_find(whole, "_optimizer", &target, error);
    if (found > 0) return t5x_orbax_error(file->path, error);
    if (found == 0) found = mp_find(whole, "optimizer", &optimizer, error);
    if (found >= 0) found = mp_find(found ? optimizer : whole, "target", &target, error);
    if (found < 0) return -1;
    if (!found)
        return error_set(error, EXIT_FAILED, "%.700s: has no parameters (expected {\"optimizer\": {\"target\": …}})",
                         file->path);
    if (t5x_walk(checkpoint, &target, path, 0, error) != 0) return -1;
    return checkpoint->count ? 0 : t5x_error(error, file->path, "target", "holds no array");
}

/* ----------------------------------------------------------------------------------------------------- config.json */

/* Length d of a tensor's shape; 0 when there is no such tensor. */
static size_t t5x_length(const Checkpoint *checkpoint, const char *name, size_t d)
{
    const StoredTensor *tensor = checkpoint_find(checkpoint, name);
    return tensor && d < tensor->n_dims ? tensor->shape[d] : 0;
}

static size_t t5x_count_layers(const Checkpoint *checkpoint, const char *stack)
{
    char name[T5X_MAX_NAME];
    for (size_t layers = 0;; layers++) {
        snprintf(name, sizeof name, "%s.block.%zu.layer.0.layer_norm.weight", stack, layers);
        if (!checkpoint_find(checkpoint, name)) return layers;
    }
}

/* T5X keeps a model's settings in gin files elsewhere. All that matters is in the shapes, but for three numbers that
 * are the same in all its models: the largest distance 128, the norm's 1e-6, and the special ids. */
static char *t5x_format_config(const Checkpoint *checkpoint, const char *directory, Error *error)
{
    static const char mlp[] = "encoder.block.0.layer.1.DenseReluDense.";
    static const char bias[] = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    char gated_name[80], relu_name[80], *text = NULL;
    snprintf(gated_name, sizeof gated_name, "%swi_0.weight", mlp);
    snprintf(relu_name, sizeof relu_name, "%swi.weight", mlp);
    bool gated = checkpoint_find(checkpoint, gated_name);
    size_t vocabulary = t5x_length(checkpoint, "shared.weight", 0), heads = t5x_length(checkpoint, bias, 1);
    size_t inner = t5x_length(checkpoint, "encoder.block.0.layer.0.SelfAttention.q.weight", 0);
    if (!vocabulary || !heads || !inner || inner % heads != 0) {
        error_set(error, EXIT_FAILED,
                  "%.600s: is no T5 model (expected token_embedder/embedding, encoder/relpos_bias/rel_embedding and "
                  "attention/query kernels for its heads, found a vocabulary of %zu, %zu heads, a width of %zu)",
                  directory, vocabulary, heads, inner);
        return NULL;
    }
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {
        {"vocab_size", vocabulary},
        {"d_model", t5x_length(checkpoint, "shared.weight", 1)},
        {"d_kv", inner / heads},
        {"d_ff", t5x_length(checkpoint, gated ? gated_name : relu_name, 0)},
        {"num_heads", heads},
        {"num_layers", t5x_count_layers(checkpoint, "encoder")},
        {"num_decoder_layers", t5x_count_layers(checkpoint, "decoder")},
        {"relative_attention_num_buckets", t5x_length(checkpoint, bias, 0)},
        {"relative_attention_max_distance", 128},
        {"pad_token_id", 0},
        {"eos_token_id", 1},
        {"decoder_start_token_id", 0},
    };
    enum { MT5_VOCABULARY = 250112 }; /* 250,100 pieces, rounded up to a multiple of 128 */
    bool is_mt5 = vocabulary == MT5_VOCABULARY, good = true;
    cJSON *config = cJSON_CreateObject();
    cJSON *architectures = config ? cJSON_AddArrayToObject(config, "architectures") : NULL;
    cJSON *architecture = cJSON_CreateString(is_mt5 ? "MT5ForConditionalGeneration" : "T5ForConditionalGeneration");
    good = architectures && architecture && cJSON_AddItemToArray(architectures, architecture);
    if (!good) cJSON_Delete(architecture);
    good = good && cJSON_AddStringToObject(config, "model_type", is_mt5 ? "mt5" : "t5") &&
           cJSON_AddStringToObject(config, "feed_forward_proj", gated ? "gated-gelu" : "relu") &&
           cJSON_AddBoolToObject(config, "tie_word_embeddings", !checkpoint_find(checkpoint, "lm_head.weight")) &&
           cJSON_AddBoolToObject(config, "is_encoder_decoder", true) &&
           cJSON_AddNumberToObject(config, "layer_norm_epsilon", 1e-6) &&
           cJSON_AddNumberToObject(config, "dropout_rate", 0.1);
    for (size_t i = 0; good && i < sizeof sizes / sizeof *sizes; i++)
        good = cJSON_AddNumberToObject(config, sizes[i].name, (double)sizes[i].value);
    if (good) text = cJSON_Print(config);
    if (!text) checkpoint_no_memory(error, directory);
    cJSON_Delete(config);
    return text;
}

bool t5x_directory(const char *directory)
{
    char *path = path_join(directory, "checkpoint");
    bool there = path && path_exists(path);
    free(path);
    return there || t5x_is_orbax(directory);
}

char *t5x_config_json(const char *directory, Error *error)
{
    Checkpoint *checkpoint = checkpoint_open(directory, error);
    char *text = checkpoint ? t5x_format_config(checkpoint, directory, error) : NULL;
    checkpoint_close(checkpoint);
    return text;
}
