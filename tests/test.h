/* test.h: the whole test harness. A test file lists its tests in one table and ends with TEST_MAIN(table).
 *
 * A test returns by falling off its end; CHECK records a failure and goes on; SKIP leaves the test, counted as skipped.
 * The program prints failures on stderr and one line "N passed, N failed, N skipped" on stdout; it exits 1 when one failed.
 * Arguments choose tests by name; --list prints the names. */
#ifndef PROMOT_TEST_H
#define PROMOT_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    void (*run)(void);
} Test;

static int test_failures; /* of the running test */
static int test_skipped;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            test_failures++;                                                                                           \
            fprintf(stderr, "    %s:%d: %s:", __FILE__, __LINE__, #condition);                                         \
            fprintf(stderr, " " __VA_ARGS__);                                                                          \
            fputc('\n', stderr);                                                                                       \
        }                                                                                                              \
    } while (0)

#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        fprintf(stderr, "    skipped: %s\n", why);                                                                     \
        test_skipped = 1;                                                                                              \
        return;                                                                                                        \
    } while (0)

/* Where the shared fixtures are, or NULL: tests that read them skip then. */
__attribute__((unused)) static const char *test_shared(void)
{
    const char *named = getenv("PROMOT_SHARED");
    const char *path = named ? named : "../shared/data";
    FILE *probe;
    static char file[1024];
    snprintf(file, sizeof file, "%s/SOURCE.md", path);
    probe = fopen(file, "r");
    if (!probe) return NULL;
    fclose(probe);
    return path;
}

static int test_run(const char *file, const Test *tests, size_t count, int argc, char **argv)
{
    int passed = 0, failed = 0, skipped = 0;
    for (size_t i = 0; i < count; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (argc == 2 && strcmp(argv[1], "--list") == 0) {
            puts(tests[i].name);
            continue;
        }
        if (!wanted) continue;
        test_failures = test_skipped = 0;
        tests[i].run();
        if (test_failures) fprintf(stderr, "  FAILED %s: %s\n", file, tests[i].name);
        failed += test_failures != 0;
        skipped += !test_failures && test_skipped;
        passed += !test_failures && !test_skipped;
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}

#define TEST_MAIN(tests)                                                                                               \
    int main(int argc, char **argv) { return test_run(__FILE__, tests, sizeof tests / sizeof *tests, argc, argv); }

#endif
