/* files.c: reading and writing files so that a reader never sees half of one. See files.h.
 *
 * Reading is by mapping: a model of 50 GB costs address space and no memory of its own, and the kernel brings in what
 * is touched. A file that somebody shortens while it is mapped ends the program (SIGBUS); that cannot be helped from
 * here, and promot itself never shortens a file, it only renames a new one over the old.
 *
 * Writing is: temporary name, data, fsync, rename, fsync of the directory. A reader sees all of the old file or all
 * of the new one, and so does whoever comes back after a power cut. The rename is the commit. */
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utf8proc.h>

/* A pipe has no length to map: what it gives is collected in memory, up to this much (/dev/zero never ends). */
static const size_t STREAM_MAX_BYTES = (size_t)1 << 30;
static const size_t STREAM_FIRST_BYTES = (size_t)1 << 16;

enum { TEMPORARY_NAMES = 10000 };

/* Who is to blame for a failed system call: the machine (1), or the path that was given (2). */
static int exit_code_of_errno(int number)
{
    switch (number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EIO:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return EXIT_FAILED;
    default:
        return EXIT_USAGE;
    }
}

/* Call right after the system call that failed: what it says is in errno. */
static int error_from_errno(Error *error, const char *path, const char *what)
{
    int number = errno;
    return error_set(error, exit_code_of_errno(number), "%.700s: %s: %s", path, what, strerror(number));
}

static int error_no_memory(Error *error, const char *path, size_t bytes)
{
    return error_set(error, EXIT_FAILED, "%.700s: no memory (%zu bytes wanted)", path, bytes);
}

/* ----------------------------------------------------------------------------------------------------- mapped files */

/* Fresh zeroed pages. A mapping, not malloc, so that mapped_file_close has one way to give memory back. */
static void *map_anonymous(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* mapped_file_close unmaps file->bytes bytes, so the unused end of the collecting buffer goes back here. */
static void stream_keep(MappedFile *file, unsigned char *memory, size_t capacity, size_t used)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), kept = (used + page - 1) / page * page;
    if (kept < capacity) munmap(memory + kept, capacity - kept);
    if (used > 0) {
        file->data = memory;
        file->bytes = used;
    }
}

/* Collects what a pipe, a terminal or /dev/null gives, so that `--file <(zcat x.gz)` works like a file. The buffer
 * doubles whenever it is full. */
static int stream_read(MappedFile *file, int fd, Error *error)
{
    size_t capacity = STREAM_FIRST_BYTES, used = 0;
    unsigned char *memory = map_anonymous(capacity);
    if (!memory) return error_no_memory(error, file->path, capacity);
    for (;;) {
        if (used == capacity) {
            unsigned char *larger = capacity < STREAM_MAX_BYTES ? map_anonymous(2 * capacity) : NULL;
            if (larger) memcpy(larger, memory, used);
            munmap(memory, capacity);
            if (!larger)
                return error_set(error, EXIT_FAILED, "%.700s: does not end (at most %zu bytes are taken from a stream)",
                                 file->path, STREAM_MAX_BYTES);
            memory = larger;
            capacity *= 2;
        }
        ssize_t got = read(fd, memory + used, capacity - used);
        if (got == 0) break;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            error_from_errno(error, file->path, "cannot be read");
            munmap(memory, capacity);
            return -1;
        }
        used += (size_t)got;
    }
    stream_keep(file, memory, capacity, used);
    return 0;
}

/* Looks at what was opened before it is mapped: each kind of thing has its own way, or its own refusal. */
static int map_descriptor(MappedFile *file, int fd, Error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0) return error_from_errno(error, file->path, "cannot be read");
    if (S_ISDIR(status.st_mode))
        return error_set(error, EXIT_USAGE, "%.700s: is a directory (expected a file)", file->path);
    if (S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode) || S_ISSOCK(status.st_mode))
        return stream_read(file, fd, error);
    if (!S_ISREG(status.st_mode))
        return error_set(error, EXIT_USAGE, "%.700s: is neither a file nor a pipe", file->path);
    if (status.st_size == 0) return 0; /* mmap refuses an empty range; data is "" already */
    if ((uintmax_t)status.st_size > SIZE_MAX) return error_no_memory(error, file->path, SIZE_MAX);
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) return error_from_errno(error, file->path, "cannot be mapped");
    file->data = memory;
    file->bytes = (size_t)status.st_size;
    file->on_disk = true;
    return 0;
}

int mapped_file_open(MappedFile *file, const char *path, Error *error)
{
    *file = (MappedFile){.path = strdup(path), .data = (const unsigned char *)"", .bytes = 0};
    if (!file->path) return error_no_memory(error, path, strlen(path) + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int status = fd < 0 ? error_from_errno(error, path, "cannot be opened") : map_descriptor(file, fd, error);
    if (fd >= 0) close(fd); /* the mapping outlives it */
    if (status != 0) mapped_file_close(file);
    return status;
}

/* Whoever touches a page gets its neighbours as well: Linux maps 64 kB around it. */
void mapped_file_forget(const MappedFile *file, size_t from, size_t to)
{
    const size_t around = 64 << 10;
    if (!file->on_disk || to > file->bytes || from > to) return;
    from -= from % around;
    to = to / around < file->bytes / around ? (to / around + 1) * around : file->bytes;
    madvise((void *)(uintptr_t)(file->data + from), to - from, MADV_DONTNEED); /* a hint: its failure changes nothing */
}

void mapped_file_close(MappedFile *file)
{
    if (file->bytes > 0) munmap((void *)(uintptr_t)file->data, file->bytes);
    free(file->path);
    *file = (MappedFile){0};
}

/* ----------------------------------------------------------------------------------------------------- atomic files */

/* stdio collects small pieces into large writes; what its buffer still holds reaches the disk in the commit. */
struct AtomicFile {
    char *path;      /* the final name */
    char *temporary; /* where it grows; NULL for a pipe or a device, which is written straight */
    FILE *stream;
};

/* Closes and frees; the temporary file, if it is still there, is the caller's business. */
static void atomic_file_free(AtomicFile *file)
{
    if (file->stream) fclose(file->stream);
    free(file->path);
    free(file->temporary);
    free(file);
}

/* A free name beside the final one. O_EXCL makes it ours alone, whoever else writes to the same path; open, and not
 * mkstemp, because a new file should have the mode that the user's umask gives. */
static int open_temporary(AtomicFile *file)
{
    size_t room = strlen(file->path) + 64;
    file->temporary = malloc(room);
    if (!file->temporary) return -1;
    for (int attempt = 0; attempt < TEMPORARY_NAMES; attempt++) {
        snprintf(file->temporary, room, "%s.%ld-%d.tmp", file->path, (long)getpid(), attempt);
        int fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

/* Sets file->path: a symbolic link is followed, so that the link stays and its target is replaced. Returns whether
 * the path is something other than a file (/dev/stdout, /dev/null), which must not be renamed over. */
static bool resolve_target(AtomicFile *file, const char *path)
{
    struct stat status;
    bool exists = stat(path, &status) == 0;
    file->path = exists ? realpath(path, NULL) : NULL;
    if (!file->path) file->path = strdup(path);
    return exists && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
}

AtomicFile *atomic_file_create(const char *path, Error *error)
{
    if (path_is_directory(path)) {
        error_set(error, EXIT_USAGE, "%.700s: is a directory (expected a file to write)", path);
        return NULL;
    }
    AtomicFile *file = calloc(1, sizeof *file);
    bool straight = file && resolve_target(file, path);
    if (!file || !file->path) {
        error_no_memory(error, path, sizeof *file);
        if (file) atomic_file_free(file);
        return NULL;
    }
    int fd = straight ? open(path, O_WRONLY | O_CLOEXEC) : open_temporary(file);
    if (fd >= 0) file->stream = fdopen(fd, "wb");
    if (file->stream) return file;
    error_from_errno(error, path, "cannot be created");
    if (fd >= 0) {
        close(fd);
        if (file->temporary) unlink(file->temporary);
    }
    atomic_file_free(file);
    return NULL;
}

int atomic_file_write(AtomicFile *file, const void *data, size_t bytes, Error *error)
{
    if (bytes == 0 || fwrite(data, 1, bytes, file->stream) == bytes) return 0;
    return error_from_errno(error, file->path, "cannot be written");
}

/* Some things cannot be synced (a pipe, some network file systems); that is not a failed write. */
static int sync_descriptor(int fd)
{
    return fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP || errno == EROFS ? 0 : -1;
}

/* A rename is only safe from a power cut once the directory is on disk as well. */
static int sync_directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *directory = slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    if (!directory) return -1;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(directory);
    if (fd < 0) return 0; /* a directory that one may write to but not list */
    int status = sync_descriptor(fd), number = errno;
    close(fd);
    errno = number;
    return status;
}

/* A full disk may show only here, when the buffer is written, or the file synced, or even closed (NFS): all three are
 * checked, and only then is the old file replaced. */
int atomic_file_commit(AtomicFile *file, Error *error)
{
    int status = fflush(file->stream) == 0 ? sync_descriptor(fileno(file->stream)) : -1;
    if (status != 0) {
        error_from_errno(error, file->path, "cannot be written");
        atomic_file_abandon(file);
        return -1;
    }
    status = fclose(file->stream);
    file->stream = NULL;
    if (status == 0 && file->temporary) status = rename(file->temporary, file->path);
    if (status != 0) {
        error_from_errno(error, file->path, "cannot be written");
        atomic_file_abandon(file);
        return -1;
    }
    if (file->temporary && sync_directory_of(file->path) != 0)
        status = error_from_errno(error, file->path, "its directory cannot be synced");
    atomic_file_free(file);
    return status;
}

void atomic_file_abandon(AtomicFile *file)
{
    if (!file) return;
    if (file->temporary) unlink(file->temporary);
    atomic_file_free(file);
}

int file_write_text(const char *path, const char *text, Error *error)
{
    AtomicFile *file = atomic_file_create(path, error);
    if (!file) return -1;
    if (atomic_file_write(file, text, strlen(text), error) != 0) {
        atomic_file_abandon(file);
        return -1;
    }
    return atomic_file_commit(file, error);
}

int file_copy(const char *from, const char *to, Error *error)
{
    MappedFile source;
    if (mapped_file_open(&source, from, error) != 0) return -1;
    AtomicFile *file = atomic_file_create(to, error);
    int status = file ? atomic_file_write(file, source.data, source.bytes, error) : -1;
    if (status == 0)
        status = atomic_file_commit(file, error);
    else
        atomic_file_abandon(file);
    mapped_file_close(&source);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ paths */

bool path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool path_is_directory(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* One level of directory_create. */
static int directory_create_one(const char *path, Error *error)
{
    if (mkdir(path, 0777) == 0) return 0;
    int number = errno;
    if (path_is_directory(path)) return 0; /* also when somebody else made it just now */
    if (number == EEXIST) return error_set(error, EXIT_USAGE, "%.700s: is a file (expected a directory)", path);
    errno = number;
    return error_from_errno(error, path, "cannot be created");
}

/* mkdir -p: cuts the path at each slash in turn. */
int directory_create(const char *path, Error *error)
{
    char *part = strdup(path);
    int status = 0;
    if (!part) return error_no_memory(error, path, strlen(path) + 1);
    for (char *slash = strchr(part + (*part == '/'), '/'); slash && status == 0; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        status = directory_create_one(part, error);
        *slash = '/';
    }
    if (status == 0 && !path_is_directory(path)) status = directory_create_one(path, error);
    free(part);
    return status;
}

static int directory_remove_at(int parent, const char *name);

/* Removes what is in an open directory, and closes it. Links are removed, not followed. */
static int directory_empty(DIR *directory)
{
    struct dirent *entry;
    int status = 0;
    while (status == 0 && (errno = 0, entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (unlinkat(dirfd(directory), entry->d_name, 0) == 0) continue;
        /* POSIX says EPERM, Linux EISDIR, of a directory that is given to unlink. */
        status = errno == EISDIR || errno == EPERM ? directory_remove_at(dirfd(directory), entry->d_name) : -1;
    }
    if (errno != 0) status = -1;
    int number = errno;
    closedir(directory);
    errno = number;
    return status;
}

/* Works relative to the open parent, so that nobody can swap a directory for a link on the way down (O_NOFOLLOW). */
static int directory_remove_at(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return -1;
    DIR *directory = fdopendir(fd);
    if (!directory) {
        close(fd);
        return -1;
    }
    if (directory_empty(directory) != 0) return -1;
    return unlinkat(parent, name, AT_REMOVEDIR);
}

int directory_remove(const char *path, Error *error)
{
    if (directory_remove_at(AT_FDCWD, path) == 0 || errno == ENOENT) return 0;
    return error_from_errno(error, path, "cannot be removed");
}

char *path_join(const char *directory, const char *name)
{
    size_t length = strlen(directory), room = length + strlen(name) + 2;
    const char *separator = length == 0 || directory[length - 1] == '/' ? "" : "/";
    char *path = malloc(room);
    if (path) snprintf(path, room, "%s%s%s", directory, separator, name);
    return path;
}

/* ------------------------------------------------------------------------------------------------------------ lines */

/* utf8proc_iterate knows the rules: no overlong forms, no surrogates, nothing above U+10FFFF. It gets at most 4
 * bytes, the longest sequence. */
size_t utf8_valid_length(const char *text, size_t bytes)
{
    const utf8proc_uint8_t *data = (const utf8proc_uint8_t *)text;
    size_t at = 0;
    while (at < bytes) {
        utf8proc_int32_t codepoint;
        if (data[at] > 0 && data[at] < 0x80) { /* most text is ASCII */
            at++;
            continue;
        }
        size_t rest = bytes - at > 4 ? 4 : bytes - at;
        utf8proc_ssize_t length = utf8proc_iterate(data + at, (utf8proc_ssize_t)rest, &codepoint);
        if (length <= 0 || codepoint == 0) break;
        at += (size_t)length;
    }
    return at;
}

/* Finds the line of the first bad byte only when there is one; the usual text is passed over once. */
static int lines_check(const char *data, size_t bytes, const char *name, Error *error)
{
    size_t valid = utf8_valid_length(data, bytes), line = 1, start = 0;
    if (valid == bytes) return 0;
    for (size_t i = 0; i < valid; i++) {
        if (data[i] != '\n') continue;
        line++;
        start = i + 1;
    }
    if (data[valid] == '\0')
        return error_set(error, EXIT_USAGE, "%.700s:%zu: has a NUL byte (byte %zu of the line; expected text)",
                         name, line, valid - start + 1);
    return error_set(error, EXIT_USAGE, "%.700s:%zu: is not valid UTF-8 (byte %zu of the line is 0x%02x)", name,
                     line, valid - start + 1, (unsigned char)data[valid]);
}

/* One block of memory holds the pointers and, behind them, the text; so lines_free is one free. A line ends at \n,
 * and a \r just before it is dropped; a lone \r is text, as it is for Python's newline="\n" readers and for Unix
 * tools. */
int lines_split(Lines *lines, const char *data, size_t bytes, const char *name_for_errors, Error *error)
{
    *lines = (Lines){0};
    if (lines_check(data, bytes, name_for_errors, error) != 0) return -1;
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) count += data[i] == '\n';
    if (bytes > 0 && data[bytes - 1] != '\n') count++;
    if (count == 0) return 0;
    size_t room = count * sizeof(char *) + bytes + 1;
    char **block = malloc(room);
    if (!block) return error_no_memory(error, name_for_errors, room);
    char *at = (char *)(block + count), *end = at + bytes;
    memcpy(at, data, bytes);
    for (size_t i = 0; i < count; i++) {
        char *newline = memchr(at, '\n', (size_t)(end - at));
        char *stop = newline ? newline : end;
        block[i] = at;
        at = newline ? newline + 1 : end;
        if (newline && stop > block[i] && stop[-1] == '\r') stop--;
        *stop = '\0';
    }
    *lines = (Lines){.text = block, .count = count};
    return 0;
}

int lines_read(Lines *lines, const char *path, Error *error)
{
    MappedFile file;
    *lines = (Lines){0};
    if (mapped_file_open(&file, path, error) != 0) return -1;
    int status = lines_split(lines, (const char *)file.data, file.bytes, path, error);
    mapped_file_close(&file);
    return status;
}

void lines_free(Lines *lines)
{
    free(lines->text);
    *lines = (Lines){0};
}
