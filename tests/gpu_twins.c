/* gpu_twins.c: the CPU's kernels under the names cpu_..., see gpu_twins.h. */
#define PROMOT_KERNELS_ONLY
#include "gpu_twins.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* what only the chapters behind the kernels use */
#include "../promot.c"
