/* gpu_twins.h: how a test calls a CPU kernel and its CUDA twin side by side.
 *
 * The CPU's kernels are chapters 1 and 2 of promot.c, compiled as C by gpu_twins.c with every name of the seam made
 * cpu_name. A test of gpu/ includes its .cu files and then this header, which declares the cpu_ functions a second time
 * over the seam's CPU types, in namespace cpu:
 *
 *     cpu::Device *host = cpu_device_open(1, cpu::MATMUL_FP32, &error);
 *     cpu_rmsnorm_forward(host, y, rstd, x, scale, rows, width, epsilon);     floats
 *     rmsnorm_forward(dev, dev_y, dev_rstd, dev_x, dev_scale, ...);           bf16, in the device's memory
 *
 * (A function with a cpu::Device is found by its argument; the others are named at the end.) */
#define device_open cpu_device_open
#define device_close cpu_device_close
#define device_threads cpu_device_threads
#define device_wait cpu_device_wait
#define device_has_bf16 cpu_device_has_bf16
#define device_memory_available cpu_device_memory_available
#define device_alloc cpu_device_alloc
#define device_free cpu_device_free
#define weights_alloc cpu_weights_alloc
#define weights_free cpu_weights_free
#define device_clear cpu_device_clear
#define device_copy cpu_device_copy
#define device_upload cpu_device_upload
#define device_download cpu_device_download
#define weights_park cpu_weights_park
#define weights_offload cpu_weights_offload
#define device_stream_weights cpu_device_stream_weights
#define weights_alloc_model cpu_weights_alloc_model
#define weights_are_streamed cpu_weights_are_streamed
#define weights_device_bytes cpu_weights_device_bytes
#define weights_keep cpu_weights_keep
#define weights_stream cpu_weights_stream
#define weights_copy cpu_weights_copy
#define weights_upload cpu_weights_upload
#define weights_download cpu_weights_download
#define activations_download cpu_activations_download
#define logits_download cpu_logits_download
#define stats_upload cpu_stats_upload
#define stats_download cpu_stats_download
#define readback_create cpu_readback_create
#define readback_free cpu_readback_free
#define readback_copy cpu_readback_copy
#define readback_is_there cpu_readback_is_there
#define readback_wait cpu_readback_wait
#define embedding_forward cpu_embedding_forward
#define embedding_backward cpu_embedding_backward
#define dropout_forward cpu_dropout_forward
#define residual_forward cpu_residual_forward
#define residual_backward cpu_residual_backward
#define rmsnorm_forward cpu_rmsnorm_forward
#define rmsnorm_backward cpu_rmsnorm_backward
#define linear_forward cpu_linear_forward
#define linear_backward_input cpu_linear_backward_input
#define linear_backward_weight cpu_linear_backward_weight
#define linear_forward_layers cpu_linear_forward_layers
#define linear_backward_input_layers cpu_linear_backward_input_layers
#define linear_residual_forward cpu_linear_residual_forward
#define linear_mlp_forward cpu_linear_mlp_forward
#define linear_mlp_backward cpu_linear_mlp_backward
#define lora_merge_forward cpu_lora_merge_forward
#define lora_backward cpu_lora_backward
#define mlp_activation_forward cpu_mlp_activation_forward
#define mlp_activation_backward cpu_mlp_activation_backward
#define attention_forward cpu_attention_forward
#define attention_backward cpu_attention_backward
#define attention_cached_forward cpu_attention_cached_forward
#define head_forward cpu_head_forward
#define softmax_cross_entropy cpu_softmax_cross_entropy
#define head_top_log_probabilities cpu_head_top_log_probabilities
#define head_sketch_bytes cpu_head_sketch_bytes
#define head_sketch_create cpu_head_sketch_create
#define head_sketch_free cpu_head_sketch_free
#define best_words cpu_best_words
#define scale_forward cpu_scale_forward
#define adafactor_update cpu_adafactor_update
#define adafactor_update_rows cpu_adafactor_update_rows
#define rows_sum_of_squares cpu_rows_sum_of_squares
#define dot_product cpu_dot_product

#ifdef __cplusplus
#undef PROMOT_H
#undef PROMOT_GPU
namespace cpu
{
struct Device; /* not the one that CUDA's side has */
extern "C" {
#include "../promot.h"
}
} // namespace cpu
#define PROMOT_GPU

using cpu::cpu_device_alloc;
using cpu::cpu_device_free;
using cpu::cpu_device_has_bf16;
using cpu::cpu_device_memory_available;
using cpu::cpu_device_open;
using cpu::cpu_weights_alloc;
using cpu::cpu_weights_free;

#undef device_open
#undef device_close
#undef device_threads
#undef device_wait
#undef device_has_bf16
#undef device_memory_available
#undef device_alloc
#undef device_free
#undef weights_alloc
#undef weights_free
#undef device_clear
#undef device_copy
#undef device_upload
#undef device_download
#undef weights_park
#undef weights_offload
#undef device_stream_weights
#undef weights_alloc_model
#undef weights_are_streamed
#undef weights_device_bytes
#undef weights_keep
#undef weights_stream
#undef weights_copy
#undef weights_upload
#undef weights_download
#undef activations_download
#undef logits_download
#undef stats_upload
#undef stats_download
#undef readback_create
#undef readback_free
#undef readback_copy
#undef readback_is_there
#undef readback_wait
#undef embedding_forward
#undef embedding_backward
#undef dropout_forward
#undef residual_forward
#undef residual_backward
#undef rmsnorm_forward
#undef rmsnorm_backward
#undef linear_forward
#undef linear_backward_input
#undef linear_backward_weight
#undef linear_forward_layers
#undef linear_backward_input_layers
#undef linear_residual_forward
#undef linear_mlp_forward
#undef linear_mlp_backward
#undef lora_merge_forward
#undef lora_backward
#undef mlp_activation_forward
#undef mlp_activation_backward
#undef attention_forward
#undef attention_backward
#undef attention_cached_forward
#undef head_forward
#undef softmax_cross_entropy
#undef head_top_log_probabilities
#undef head_sketch_bytes
#undef head_sketch_create
#undef head_sketch_free
#undef best_words
#undef scale_forward
#undef adafactor_update
#undef adafactor_update_rows
#undef rows_sum_of_squares
#undef dot_product

/* What a test needs beside the seam: numbers as the device holds them, on both sides. */
static inline float round_to_bf16(float x) /* to nearest, ties to even */
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Activations are made on the device and only ever downloaded; a test makes some up. */
__attribute__((unused)) static void activations_upload(Device *dev, act_t *to, const float *host, size_t n)
{
    act_t *rounded = (act_t *)malloc(n * sizeof *rounded);
    for (size_t i = 0; i < n; i++) {
        const float x = round_to_bf16(host[i]);
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        rounded[i].bits = (uint16_t)(u >> 16);
    }
    device_upload(dev, to, rounded, n * sizeof *rounded);
    free(rounded);
}
#endif
