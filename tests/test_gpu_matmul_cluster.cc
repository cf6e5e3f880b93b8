/* test_gpu_matmul_cluster.cc: the same tests with Hopper's large tiles made by two blocks together, which share what
 * they load of b (gpu/matmul_hopper.cu). */
#define MATMUL_CLUSTER 2
#define FIRST_FLOOR 1
#include "test_gpu_matmul.cc"
