/* test_house.c: the rules that keep promot.c and its commands readable: the table of contents is true, lines and
 * functions stay short. */
#include <glob.h>

#include "test.h"

enum { MAX_CHAPTERS = 16, MAX_COLUMNS = 120, MAX_FUNCTION_LINES = 90 };

typedef struct {
    char title[MAX_CHAPTERS][128];
    int count;
} Titles;

static void add_title(Titles *titles, const char *text)
{
    if (titles->count < MAX_CHAPTERS) snprintf(titles->title[titles->count++], sizeof titles->title[0], "%.120s", text);
}

/* The contents are the lines " *   [N] …" of the first comment, a banner is a line " * [N] …". */
static void test_contents_and_banners_agree(void)
{
    FILE *file = fopen("promot.c", "r");
    Titles contents = {.count = 0}, banners = {.count = 0};
    char line[1024];
    CHECK(file, "promot.c is not here");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, " *   [", 6) == 0) add_title(&contents, line + 5);
        if (strncmp(line, " * [", 4) == 0 && line[4] >= '0' && line[4] <= '9') add_title(&banners, line + 3);
    }
    fclose(file);
    CHECK(contents.count >= 10, "%d chapters", contents.count);
    CHECK(contents.count == banners.count, "%d in the contents, %d banners", contents.count, banners.count);
    for (int i = 0; i < contents.count && i < banners.count; i++)
        CHECK(strcmp(contents.title[i], banners.title[i]) == 0, "'%s' and '%s'", contents.title[i], banners.title[i]);
}

/* Columns, counted in characters; rows of the option table may be longer. */
static void check_columns(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[4096];
    for (int number = 1; file && fgets(line, sizeof line, file); number++) {
        int columns = 0;
        for (const char *at = line; *at && *at != '\n'; at++) columns += (*at & 0xC0) != 0x80;
        CHECK(columns <= MAX_COLUMNS || strncmp(line, "    X(", 6) == 0, "%s:%d has %d columns", path, number, columns);
    }
    if (file) fclose(file);
}

/* A function begins at a line "{" after its head and ends at the next line "}". */
static void check_functions(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[4096], head[4096] = "";
    int begun = 0;
    for (int number = 1; file && fgets(line, sizeof line, file); number++) {
        if (strcmp(line, "{\n") == 0)
            begun = number;
        else if (strcmp(line, "}\n") == 0 && begun) {
            CHECK(number - begun < MAX_FUNCTION_LINES, "%d lines before %s:%d: %s", number - begun, path, number, head);
            begun = 0;
        } else if (!begun)
            snprintf(head, sizeof head, "%s", line);
    }
    if (file) fclose(file);
}

/* Calls check for the engine's own files. */
static void for_each_file(void (*check)(const char *path))
{
    glob_t commands;
    check("promot.c");
    check("promot.h");
    CHECK(glob("commands/*.c", 0, NULL, &commands) == 0 && commands.gl_pathc >= 10, "commands/ is not here");
    for (size_t i = 0; i < commands.gl_pathc; i++) check(commands.gl_pathv[i]);
    globfree(&commands);
}

static void test_lines_are_short(void)
{
    for_each_file(check_columns);
}

static void test_functions_fit_on_a_screen(void)
{
    for_each_file(check_functions);
}

/* Without chapter 2 the rest must still compile: a GPU build links other kernels. */
static void test_seam_holds(void)
{
    int status =
        system("cc -std=gnu11 -DPROMOT_GPU -DPROMOT_NO_MAIN -Wall -Wno-unused-function -Werror -fsyntax-only promot.c");
    CHECK(status == 0, "the compiler exits with %d", status);
}

static const Test tests[] = {
    {"seam holds", test_seam_holds},
    {"contents and banners agree", test_contents_and_banners_agree},
    {"lines are short", test_lines_are_short},
    {"functions fit on a screen", test_functions_fit_on_a_screen},
};
TEST_MAIN(tests)
