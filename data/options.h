/* options.h: a command line from one table: parsing, checking, help, and what a run records of it. */
#ifndef PROMOT_OPTIONS_H
#define PROMOT_OPTIONS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* LIST: may be given several times; WORDS: takes all words up to the next option, and may be given several times. */
typedef enum { FLAG, WHOLE, REAL, TEXT, CHOICE, LIST, WORDS } OptionKind;

/* A row of the table. One name may have several rows, for different commands. */
typedef struct {
    const char *name;
    OptionKind kind;
    const char *fallback;        /* its default; NULL: none */
    double least, most;          /* of a WHOLE or REAL number */
    unsigned commands;           /* a bit for each command that takes it */
    const char *argument, *help; /* argument: what stands for the value in the help; of a CHOICE "a|b|c" */
} Option;

enum { MAX_OPTIONS = 160 };

/* The options of one call. Values are checked when they are parsed, so the functions below cannot fail. */
typedef struct {
    const Option *table; /* [count] */
    size_t count;
    const char *program, *command; /* argv[0] and argv[1] */
    unsigned which;                /* the command's bit */
    const char *text[MAX_OPTIONS]; /* NULL: not given, and no default */
    bool given[MAX_OPTIONS];
    const char **list[MAX_OPTIONS]; /* of a LIST or WORDS */
    size_t n_list[MAX_OPTIONS];
} Options;

/* Parses "--name value", "--name=value" and "--flag"; every error is EXIT_USAGE. Set table, count, command and which
 * first; end with options_free, also after an error. The values point into argv. */
int options_parse(Options *o, int argc, char **argv, Error *error);
void options_free(Options *o);

double option_real(const Options *o, size_t id);
size_t option_size(const Options *o, size_t id);
bool option_true(const Options *o, size_t id);                           /* of a FLAG, or a CHOICE true|false */
int option_need(const Options *o, size_t id, Error *error);              /* an error when there is no value */
int option_check(const Option *option, const char *value, Error *error); /* is this a value of the option? */

/* A line for each option of the command; to be freed, NULL when there is no memory. */
char *options_help(const Options *o);

/* The options' values as a JSON object of texts and lists of texts, but for those that skip() names. */
void options_record(const Options *o, bool (*skip)(size_t id), cJSON *into);

/* Takes recorded values for everything that was not given again; what was must be the same. The values then point into
 * `recorded`. path: the file it came from, for errors. */
int options_recall(Options *o, bool (*skip)(size_t id), const cJSON *recorded, const char *path, Error *error);

#endif
