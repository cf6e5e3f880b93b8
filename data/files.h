/* files.h: reading and writing files so that a reader never sees half of one.
 *
 * Everything the engine writes goes to a temporary name beside its final one, is synced, and is then renamed. */
#ifndef PROMOT_FILES_H
#define PROMOT_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* A file mapped read-only into memory; an empty file has bytes 0 and data "" (never NULL). */
typedef struct {
    char *path;
    const unsigned char *data;
    size_t bytes;
    bool on_disk; /* not collected from a pipe: what was read can be read again */
} MappedFile;

int mapped_file_open(MappedFile *file, const char *path, Error *error); /* EXIT_USAGE when it is not there or a directory */
void mapped_file_close(MappedFile *file);                               /* also on a zeroed struct */

/* Bytes from..to were read and are not needed now: their pages need not stay in this process' memory. */
void mapped_file_forget(const MappedFile *file, size_t from, size_t to);

/* A file being written. commit syncs it, renames it into place and syncs the directory; abandon removes it. */
typedef struct AtomicFile AtomicFile;
AtomicFile *atomic_file_create(const char *path, Error *error);
int atomic_file_write(AtomicFile *file, const void *data, size_t bytes, Error *error);
int atomic_file_commit(AtomicFile *file, Error *error); /* frees it, whatever the outcome */
void atomic_file_abandon(AtomicFile *file);             /* frees it; NULL is fine */

int file_write_text(const char *path, const char *text, Error *error);      /* all of it, atomically */
int file_copy(const char *from, const char *to, Error *error);              /* atomically */
bool path_exists(const char *path);
bool path_is_directory(const char *path);
int directory_create(const char *path, Error *error);                       /* with its parents; fine if it is there */
int directory_remove(const char *path, Error *error);                       /* with what is in it; fine if it is not there */
char *path_join(const char *directory, const char *name);                   /* to be freed */

/* The lines of a UTF-8 text, without their ends (\n or \r\n). An invalid UTF-8 or NUL byte is an error that names file
 * and line (EXIT_USAGE). A last line without an end counts; an empty file has no lines. */
typedef struct {
    char **text; /* [count], NUL-terminated */
    size_t count;
} Lines;
int lines_read(Lines *lines, const char *path, Error *error);
int lines_split(Lines *lines, const char *data, size_t bytes, const char *name_for_errors, Error *error);
void lines_free(Lines *lines);

/* The place of the first byte that is not UTF-8, or is NUL; `bytes` when there is none. */
size_t utf8_valid_length(const char *text, size_t bytes);

#endif
