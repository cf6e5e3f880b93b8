/* checkpoint_internal.h: what the readers of this directory's formats share: checkpoint.c (where all of it is defined),
 * safetensors.c, torch_file.c, t5x.c, prompt_file.c and lora_file.c; and results.c and report.c, which read JSON. Not
 * for anybody else. */
#ifndef PROMOT_CHECKPOINT_INTERNAL_H
#define PROMOT_CHECKPOINT_INTERNAL_H

#include <stdbool.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "checkpoint.h"
#include "files.h"

/* The formats hold little-endian numbers, and the readers copy them as they are. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "promot needs a little-endian machine");
_Static_assert(sizeof(size_t) == 8, "promot maps whole model files: it needs a 64-bit machine");

typedef struct T5xArray T5xArray;

struct Checkpoint {
    MappedFile *files; /* [n_files] */
    size_t n_files;
    StoredTensor *tensors; /* [count], in name order once the checkpoint is open; the names belong to it */
    size_t count, capacity;
    T5xArray *arrays;    /* T5X: all of them, as a list */
    T5xArray *recent[2]; /* those that are unpacked, the one read last first */
};

/* Lists one tensor of a file. Everything of it is set but its name, which is copied from the file's text: it must be
 * UTF-8 without NULs. Checks that all elements lie within [tensor->data, end), unless the type is DTYPE_OTHER. */
int checkpoint_add(Checkpoint *checkpoint, const StoredTensor *tensor, const char *name, size_t name_length,
                   const unsigned char *end, Error *error);

/* numel = the product of the shape, and row-major strides; -1 on overflow. */
int tensor_set_row_major(StoredTensor *tensor);

int safetensors_read(Checkpoint *checkpoint, const MappedFile *file, Error *error);
int torch_read(Checkpoint *checkpoint, const MappedFile *file, Error *error);
bool torch_recognised(const MappedFile *file); /* by its first bytes: a zip, or the legacy magic number */

int t5x_read(Checkpoint *checkpoint, const MappedFile *file, Error *error); /* the index: its arrays are beside it */
bool t5x_recognised(const MappedFile *file);                                /* a msgpack map with a key of T5X's */
const unsigned char *t5x_array_bytes(T5xArray *array, Error *error);        /* of all elements; NULL on error */
void t5x_close(Checkpoint *checkpoint);
bool t5x_is_orbax(const char *directory);
int t5x_orbax_error(const char *path, Error *error); /* returns -1 */

Dtype dtype_from_name(const char *name);                  /* DTYPE_OTHER when it is none of ours */
int checkpoint_no_memory(Error *error, const char *path); /* returns -1 */

/* The tensors of a PEFT adapter's directory: adapter_model.safetensors, or adapter_model.bin of older versions. what: an
 * adapter of what kind, for the error when there is neither. */
Checkpoint *adapter_open(const char *directory, const char *what, Error *error);

/* Parses all of the text as one JSON value; NULL when it is not JSON (or there is no memory). Freed by cJSON_Delete. */
cJSON *json_parse(const char *text, size_t length);

/* Little-endian numbers at any address. */
static inline uint16_t read_u16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t read_u32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t read_u64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

#endif
