/* error.h: how the small libraries (data/, tokenizer/) report what went wrong.
 *
 * They never print and never exit: a function that can fail takes an Error, fills it once and returns -1 (or NULL).
 * main prints it as one line, "promot: TEXT", and exits with its code. A text reads "WHERE: WHAT (expected …, found …)". */
#ifndef PROMOT_ERROR_H
#define PROMOT_ERROR_H

#include <stdarg.h>
#include <stdio.h>

enum {
    EXIT_FAILED = 1, /* damaged file, full disk, no memory, a NaN */
    EXIT_USAGE = 2,  /* wrong option, wrong input, a path that is not there */
};

typedef struct {
    int exit_code; /* EXIT_FAILED or EXIT_USAGE */
    char text[1024];
} Error;

/* Fills the error and returns -1, so that `return error_set(error, EXIT_FAILED, "…")` is the idiom. */
__attribute__((format(printf, 3, 4), unused)) static int error_set(Error *error, int exit_code, const char *format, ...)
{
    va_list arguments;
    error->exit_code = exit_code;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return -1;
}

#endif
