/* checkpoint.h: the tensors of a model as they lie on disk.
 *
 * Reads safetensors (one file, or sharded with an index), pytorch_model.bin (zip or legacy form, one file or sharded
 * with an index) and T5X checkpoints. Files are mapped, not slurped; a pickle is parsed, never executed. Writes
 * safetensors.
 * Every damaged, truncated or lying file ends in one Error that names the file, the place, what was expected and found. */
#ifndef PROMOT_CHECKPOINT_H
#define PROMOT_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef enum { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F64, DTYPE_I64, DTYPE_I32, DTYPE_I16, DTYPE_I8, DTYPE_U8, DTYPE_BOOL, DTYPE_OTHER } Dtype;
size_t dtype_bytes(Dtype dtype);
const char *dtype_name(Dtype dtype); /* "F32", … as safetensors spells them */

enum { CHECKPOINT_MAX_DIMS = 8 };

/* One stored tensor: where its elements are in the mapped file. strides are in elements (torch files hold views). */
typedef struct {
    const char *name, *file;
    Dtype dtype;
    size_t n_dims, shape[CHECKPOINT_MAX_DIMS], strides[CHECKPOINT_MAX_DIMS];
    size_t numel;
    const unsigned char *data;
    struct T5xArray *packed; /* T5X: what the bytes come out of when they are read, from packed_offset on; data is NULL */
    size_t packed_offset;
} StoredTensor;

typedef struct Checkpoint Checkpoint;

/* path: a model directory (looked for in this order: model.safetensors, model.safetensors.index.json, pytorch_model.bin,
 * pytorch_model.bin.index.json, checkpoint), or one file of either kind, told apart by its content. */
Checkpoint *checkpoint_open(const char *path, Error *error);
void checkpoint_close(Checkpoint *checkpoint); /* NULL is fine */
size_t checkpoint_count(const Checkpoint *checkpoint);
const StoredTensor *checkpoint_at(const Checkpoint *checkpoint, size_t i);               /* in name order */
const StoredTensor *checkpoint_find(const Checkpoint *checkpoint, const char *name);     /* NULL when there is none */

/* Elements [first, first + count) in row-major order, converted. Integers only from integer types, floats only from float types. */
int stored_tensor_read_float(const StoredTensor *tensor, size_t first, size_t count, float *out, Error *error);
int stored_tensor_read_int(const StoredTensor *tensor, size_t first, size_t count, int64_t *out, Error *error);

/* A T5X checkpoint has no config.json: here is what it would say, as the shapes tell it; to be freed. */
bool t5x_directory(const char *directory); /* is there one, or one of Orbax's? */
char *t5x_config_json(const char *directory, Error *error);

/* Writing: the header from the specs, then the data of each tensor in the order of the specs, in any number of pieces. */
typedef struct {
    const char *name;
    Dtype dtype;
    size_t n_dims, shape[CHECKPOINT_MAX_DIMS];
} TensorSpec;
typedef struct SafetensorsWriter SafetensorsWriter;
SafetensorsWriter *safetensors_create(const char *path, const TensorSpec *specs, size_t count, Error *error);
int safetensors_append(SafetensorsWriter *writer, const void *data, size_t bytes, Error *error);
int safetensors_commit(SafetensorsWriter *writer, Error *error); /* all bytes must have come; syncs, renames, frees */
void safetensors_abandon(SafetensorsWriter *writer);

#endif
