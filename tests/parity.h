/* parity.h: what the tests share that run promot's commands in-process and compare the numbers they write. */
#ifndef PROMOT_PARITY_H
#define PROMOT_PARITY_H

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../data/checkpoint.h"
#include "test.h"

enum { PARITY_MAX_ARGUMENTS = 64 };

/* Runs `promot COMMAND`, words separated by blanks, with stdout going to a file (NULL: it stays). The exit code. */
__attribute__((unused)) static int run_promot(const char *command, const char *stdout_path)
{
    char *words = strdup(command), *rest = NULL, name[] = "promot";
    char *argv[PARITY_MAX_ARGUMENTS + 1] = {name};
    int argc = 1, saved = -1, code;
    for (char *word = strtok_r(words, " ", &rest); word && argc < PARITY_MAX_ARGUMENTS;
         word = strtok_r(NULL, " ", &rest))
        argv[argc++] = word;
    fflush(stdout);
    if (stdout_path) {
        int file = open(stdout_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        saved = dup(STDOUT_FILENO);
        dup2(file, STDOUT_FILENO);
        close(file);
    }
    code = promot_main(argc, argv);
    fflush(stdout);
    if (stdout_path) {
        dup2(saved, STDOUT_FILENO);
        close(saved);
    }
    free(words);
    return code;
}

/* All elements of a tensor, to be freed; NULL (and a failed check) when they cannot be read. */
__attribute__((unused)) static float *tensor_floats(const StoredTensor *tensor)
{
    Error error = {0};
    float *out = malloc((tensor->numel + 1) * sizeof *out);
    int code = stored_tensor_read_float(tensor, 0, tensor->numel, out, &error);
    CHECK(code == 0, "%s: %s", tensor->name, error.text);
    if (code == 0) return out;
    free(out);
    return NULL;
}

/* Opens a file that must be there. */
__attribute__((unused)) static Checkpoint *open_checked(const char *path)
{
    Error error = {0};
    Checkpoint *file = checkpoint_open(path, &error);
    CHECK(file != NULL, "%s", error.text);
    return file;
}

/* sqrt(sum x[i]^2) */
__attribute__((unused)) static double norm(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

#endif
