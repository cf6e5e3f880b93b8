/* prompt_file.h: soft prompts on disk: PEFT prompt-tuning adapters, and NumPy arrays as the T5X prompt-tuning code
 * writes them. */
#ifndef PROMOT_PROMPT_FILE_H
#define PROMOT_PROMPT_FILE_H

#include <stddef.h>

#include "error.h"

/* What adapter_config.json says about the model that the prompt was trained for. */
typedef struct {
    const char *base_model; /* base_model_name_or_path */
    size_t num_layers, num_attention_heads, token_dim;
    const char *init;       /* prompt_tuning_init: "RANDOM", "TEXT" or "SAMPLE_VOCAB" */
    const char *init_text;  /* or NULL */
} PromptInfo;

/* path: a PEFT directory (adapter_config.json with adapter_model.safetensors, or the older adapter_model.bin), or a
 * .npy file of two dimensions in <f4 or <f8, or a torch or safetensors file of one such tensor, known by their content.
 * The rows come as a malloc'd [length, width] array, all of them finite.
 * An adapter that stores num_transformer_submodules times the rows gives its first num_virtual_tokens. */
int prompt_file_read(const char *path, float **rows, size_t *length, size_t *width, Error *error);

/* Writes adapter_config.json (num_transformer_submodules 1, task_type SEQ_2_SEQ_LM) and adapter_model.safetensors. */
int prompt_file_write(const char *directory, const float *rows, size_t length, const PromptInfo *info, Error *error);

/* numpy format 1.0, <f4, C order. */
int npy_write(const char *path, const float *rows, size_t length, size_t width, Error *error);

#endif
