/* lora_file.h: LoRA adapters on disk, as PEFT writes and reads them. */
#ifndef PROMOT_LORA_FILE_H
#define PROMOT_LORA_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* The two matrices that stand beside the weight of one module: W = W0 + scale * B·A. */
typedef struct {
    char *name;     /* of the module in the model: "encoder.block.0.layer.0.SelfAttention.q" */
    size_t in, out; /* of W [out, in] */
    float *a, *b;   /* [rank, in], [out, rank] */
} LoraModule;

typedef struct {
    size_t rank, count;
    double alpha;
    bool rank_stabilised; /* use_rslora: scale is alpha / sqrt(rank), not alpha / rank */
    LoraModule *modules;  /* [count], in name order when they were read */
} LoraFile;

/* directory: adapter_config.json with adapter_model.safetensors, or the older adapter_model.bin. Which modules there are
 * is said by the tensors alone. An adapter that needs more than A and B (DoRA, biases, whole modules, ranks of their own
 * for some modules …) is refused. All numbers are finite. On an error `lora` is zeroed. */
int lora_file_read(LoraFile *lora, const char *directory, Error *error);

/* target_modules: what PEFT shall look for in the model, to find the modules that are here. */
int lora_file_write(const LoraFile *lora, const char *directory, const char *base_model,
                    const char *const *target_modules, size_t n_targets, Error *error);

void lora_file_free(LoraFile *lora); /* a zeroed one is fine */

#endif
