/* test_files.c: data/files.c. It is included, so that a write can be made to fail: see break_stream. */
#include "../data/files.c"

#include "test.h"

#define SCRATCH "build/test/files"

static Error error;

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

static size_t entries_in(const char *path)
{
    DIR *directory = opendir(path);
    size_t count = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));) count += entry->d_name[0] != '.';
    if (directory) closedir(directory);
    return count;
}

static int holds(const char *path, const char *text)
{
    MappedFile file;
    if (mapped_file_open(&file, path, &error) != 0) return 0;
    int same = file.bytes == strlen(text) && memcmp(file.data, text, file.bytes) == 0;
    mapped_file_close(&file);
    return same;
}

/* From now on, what reaches the disk fails with "no space left on device". */
static void break_stream(AtomicFile *file)
{
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    dup2(full, fileno(file->stream));
    close(full);
}

static void maps_files(void)
{
    MappedFile file;
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/a", "hello\n", &error) == 0, "%s", error.text);
    CHECK(mapped_file_open(&file, SCRATCH "/a", &error) == 0, "%s", error.text);
    CHECK(file.bytes == 6 && memcmp(file.data, "hello\n", 6) == 0);
    CHECK(strcmp(file.path, SCRATCH "/a") == 0);
    mapped_file_close(&file);
    CHECK(!file.data && !file.path && file.bytes == 0);
    mapped_file_close(&file);
    CHECK(file_write_text(SCRATCH "/empty", "", &error) == 0);
    CHECK(mapped_file_open(&file, SCRATCH "/empty", &error) == 0);
    CHECK(file.bytes == 0 && file.data);
    mapped_file_close(&file);
    CHECK(mapped_file_open(&file, SCRATCH "/none", &error) == -1 && error.exit_code == EXIT_USAGE);
    CHECK(strstr(error.text, SCRATCH "/none") != NULL, "%s", error.text);
    CHECK(mapped_file_open(&file, SCRATCH, &error) == -1 && error.exit_code == EXIT_USAGE);
    CHECK(strstr(error.text, "directory") != NULL, "%s", error.text);
}

/* A pipe is written by a child of this process, and is longer than the first buffer. */
static void maps_pipes(void)
{
    enum { LENGTH = 300007 };
    int ends[2];
    char path[64];
    MappedFile file;
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < LENGTH; i++) {
            unsigned char byte = (unsigned char)(i % 251);
            if (write(ends[1], &byte, 1) != 1) _exit(1);
        }
        _exit(0);
    }
    close(ends[1]);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    CHECK(file.bytes == LENGTH, "%zu", file.bytes);
    size_t wrong = 0;
    for (size_t i = 0; i < file.bytes; i++) wrong += file.data[i] != i % 251;
    CHECK(wrong == 0, "%zu", wrong);
    mapped_file_close(&file);
    close(ends[0]);
    CHECK(mapped_file_open(&file, "/dev/null", &error) == 0 && file.bytes == 0 && file.data, "%s", error.text);
    mapped_file_close(&file);
}

static void writes_atomically(void)
{
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/a", "old", &error) == 0, "%s", error.text);
    AtomicFile *file = atomic_file_create(SCRATCH "/a", &error);
    CHECK(file != NULL, "%s", error.text);
    CHECK(atomic_file_write(file, "ne", 2, &error) == 0 && atomic_file_write(file, "", 0, &error) == 0);
    CHECK(holds(SCRATCH "/a", "old"), "a reader must see the old file until the commit");
    CHECK(atomic_file_write(file, "w", 1, &error) == 0);
    CHECK(atomic_file_commit(file, &error) == 0, "%s", error.text);
    CHECK(holds(SCRATCH "/a", "new"));
    CHECK(entries_in(SCRATCH) == 1);
    file = atomic_file_create(SCRATCH "/a", &error);
    CHECK(atomic_file_write(file, "gone", 4, &error) == 0);
    atomic_file_abandon(file);
    atomic_file_abandon(NULL);
    CHECK(holds(SCRATCH "/a", "new") && entries_in(SCRATCH) == 1);
}

static void new_files_follow_the_umask(void)
{
    struct stat status;
    fresh_scratch();
    mode_t before = umask(027);
    CHECK(file_write_text(SCRATCH "/a", "x", &error) == 0);
    umask(before);
    CHECK(stat(SCRATCH "/a", &status) == 0 && (status.st_mode & 0777) == 0640, "%o", status.st_mode);
}

/* The last to commit wins, and no bytes of the other are mixed in. */
static void concurrent_writers_do_not_mix(void)
{
    fresh_scratch();
    AtomicFile *a = atomic_file_create(SCRATCH "/x", &error), *b = atomic_file_create(SCRATCH "/x", &error);
    CHECK(a && b && strcmp(a->temporary, b->temporary) != 0);
    CHECK(atomic_file_write(a, "aaaa", 4, &error) == 0 && atomic_file_write(b, "bb", 2, &error) == 0);
    CHECK(atomic_file_commit(b, &error) == 0 && holds(SCRATCH "/x", "bb"));
    CHECK(atomic_file_commit(a, &error) == 0 && holds(SCRATCH "/x", "aaaa"));
    CHECK(entries_in(SCRATCH) == 1);
}

static void a_full_disk_keeps_the_old_file(void)
{
    static char large[1 << 20];
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/a", "old", &error) == 0);
    AtomicFile *file = atomic_file_create(SCRATCH "/a", &error);
    break_stream(file);
    CHECK(atomic_file_write(file, large, sizeof large, &error) == -1 && error.exit_code == EXIT_FAILED);
    CHECK(strstr(error.text, "No space left") && strstr(error.text, SCRATCH "/a"), "%s", error.text);
    atomic_file_abandon(file);
    CHECK(holds(SCRATCH "/a", "old") && entries_in(SCRATCH) == 1);
    file = atomic_file_create(SCRATCH "/a", &error);
    break_stream(file);
    CHECK(atomic_file_write(file, "few", 3, &error) == 0, "buffered");
    CHECK(atomic_file_commit(file, &error) == -1 && error.exit_code == EXIT_FAILED, "the commit must notice");
    CHECK(holds(SCRATCH "/a", "old") && entries_in(SCRATCH) == 1);
}

/* Devices and pipes are written straight: renaming over /dev/null would replace it. */
static void devices_are_not_replaced(void)
{
    struct stat status;
    CHECK(file_write_text("/dev/null", "text", &error) == 0, "%s", error.text);
    CHECK(stat("/dev/null", &status) == 0 && S_ISCHR(status.st_mode));
    CHECK(file_write_text("/dev/full", "text", &error) == -1 && error.exit_code == EXIT_FAILED);
    CHECK(stat("/dev/full", &status) == 0 && S_ISCHR(status.st_mode));
}

static void links_stay_links(void)
{
    struct stat status;
    fresh_scratch();
    CHECK(directory_create(SCRATCH "/store", &error) == 0);
    CHECK(file_write_text(SCRATCH "/store/a", "old", &error) == 0);
    CHECK(symlink("store/a", SCRATCH "/link") == 0);
    CHECK(file_write_text(SCRATCH "/link", "new", &error) == 0, "%s", error.text);
    CHECK(lstat(SCRATCH "/link", &status) == 0 && S_ISLNK(status.st_mode));
    CHECK(holds(SCRATCH "/store/a", "new"));
}

static void bad_targets_are_refused(void)
{
    fresh_scratch();
    CHECK(!atomic_file_create(SCRATCH "/no/such/place", &error) && error.exit_code == EXIT_USAGE, "%s", error.text);
    CHECK(!atomic_file_create(SCRATCH, &error) && error.exit_code == EXIT_USAGE, "%s", error.text);
    CHECK(file_copy(SCRATCH "/none", SCRATCH "/b", &error) == -1 && error.exit_code == EXIT_USAGE);
    CHECK(entries_in(SCRATCH) == 0);
    CHECK(file_write_text(SCRATCH "/a", "copied", &error) == 0);
    CHECK(file_copy(SCRATCH "/a", SCRATCH "/b", &error) == 0 && holds(SCRATCH "/b", "copied"));
    CHECK(file_copy(SCRATCH "/a", SCRATCH "/a", &error) == 0 && holds(SCRATCH "/a", "copied"));
}

static void directories(void)
{
    fresh_scratch();
    CHECK(directory_create(SCRATCH "/one/two/three/", &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH "/one/two/three", &error) == 0, "again");
    CHECK(path_is_directory(SCRATCH "/one/two/three") && path_exists(SCRATCH "/one"));
    CHECK(file_write_text(SCRATCH "/one/file", "x", &error) == 0);
    CHECK(path_exists(SCRATCH "/one/file") && !path_is_directory(SCRATCH "/one/file"));
    CHECK(directory_create(SCRATCH "/one/file", &error) == -1 && error.exit_code == EXIT_USAGE, "%s", error.text);
    CHECK(directory_create(SCRATCH "/one/file/below", &error) == -1 && error.exit_code == EXIT_USAGE);
    CHECK(directory_remove(SCRATCH "/one/file", &error) == -1, "a file is not a directory");
    CHECK(path_exists(SCRATCH "/one/file"));
    CHECK(file_write_text(SCRATCH "/kept", "x", &error) == 0);
    CHECK(symlink("../..", SCRATCH "/one/two/up") == 0);
    CHECK(directory_remove(SCRATCH "/one", &error) == 0, "%s", error.text);
    CHECK(!path_exists(SCRATCH "/one") && path_exists(SCRATCH "/kept"), "links are not followed");
    CHECK(directory_remove(SCRATCH "/one", &error) == 0, "it is not there any more");
}

static void joins_paths(void)
{
    static const char *const cases[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}, {"a/b", "c.d", "a/b/c.d"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = path_join(cases[i][0], cases[i][1]);
        CHECK(path && strcmp(path, cases[i][2]) == 0, "%s", path);
        free(path);
    }
}

static void splits_lines(void)
{
    static const struct {
        const char *text;
        size_t count;
        const char *lines[4];
    } cases[] = {
        {"", 0, {0}},
        {"\n", 1, {""}},
        {"a", 1, {"a"}},
        {"a\n", 1, {"a"}},
        {"a\nb", 2, {"a", "b"}},
        {"a\r\nb\r\n", 2, {"a", "b"}},
        {"\r\n\n", 2, {"", ""}},
        {"a\rb\r\r\n", 1, {"a\rb\r"}},
        {"a\r", 1, {"a\r"}},
        {"\xc3\xa9\n\xf0\x9f\x98\x80 \xe2\x80\xa8x\n\n", 3, {"\xc3\xa9", "\xf0\x9f\x98\x80 \xe2\x80\xa8x", ""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Lines lines;
        CHECK(lines_split(&lines, cases[i].text, strlen(cases[i].text), "text", &error) == 0, "%s", error.text);
        CHECK(lines.count == cases[i].count, "case %zu: %zu lines", i, lines.count);
        for (size_t l = 0; l < lines.count && l < 4; l++)
            CHECK(strcmp(lines.text[l], cases[i].lines[l]) == 0, "case %zu line %zu: '%s'", i, l, lines.text[l]);
        lines_free(&lines);
        CHECK(lines.count == 0 && !lines.text);
    }
}

/* The text need not end in NUL, as a mapped file does not: the bytes are in a block of exactly their size. */
static void refuses_what_is_not_text(void)
{
    static const struct {
        const char *text;
        size_t bytes;
        const char *line;
    } cases[] = {
        {"a\nb\0c\n", 6, ":2:"},      {"\xff", 1, ":1:"},
        {"ok\nok\n\xc3", 7, ":3:"},   {"\xc0\x80\n", 3, ":1:"},
        {"\xed\xa0\x80", 3, ":1:"},   {"x\n\xf4\x90\x80\x80", 6, ":2:"},
        {"\xe2\x82\n\xac", 4, ":1:"}, {"\xc3\xa9\n\n\xa9", 5, ":3:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Lines lines;
        char *exact = malloc(cases[i].bytes);
        memcpy(exact, cases[i].text, cases[i].bytes);
        CHECK(lines_split(&lines, exact, cases[i].bytes, "some.txt", &error) == -1, "case %zu", i);
        CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "some.txt") && strstr(error.text, cases[i].line),
              "case %zu: %s", i, error.text);
        free(exact);
    }
}

static void reads_lines_of_a_file(void)
{
    Lines lines;
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/a", "one\r\ntwo", &error) == 0);
    CHECK(lines_read(&lines, SCRATCH "/a", &error) == 0 && lines.count == 2, "%s", error.text);
    CHECK(strcmp(lines.text[0], "one") == 0 && strcmp(lines.text[1], "two") == 0);
    lines_free(&lines);
    CHECK(lines_read(&lines, SCRATCH "/none", &error) == -1 && error.exit_code == EXIT_USAGE);
    lines_free(&lines);
}

static const Test tests[] = {
    {"maps_files", maps_files},
    {"maps_pipes", maps_pipes},
    {"writes_atomically", writes_atomically},
    {"new_files_follow_the_umask", new_files_follow_the_umask},
    {"concurrent_writers_do_not_mix", concurrent_writers_do_not_mix},
    {"a_full_disk_keeps_the_old_file", a_full_disk_keeps_the_old_file},
    {"devices_are_not_replaced", devices_are_not_replaced},
    {"links_stay_links", links_stay_links},
    {"bad_targets_are_refused", bad_targets_are_refused},
    {"directories", directories},
    {"joins_paths", joins_paths},
    {"splits_lines", splits_lines},
    {"refuses_what_is_not_text", refuses_what_is_not_text},
    {"reads_lines_of_a_file", reads_lines_of_a_file},
};

TEST_MAIN(tests)
