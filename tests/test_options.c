/* test_options.c: the table-driven command line of data/options.c, on a small table of its own. */
#include "../data/options.c"
#include "test.h"

enum { COOK = 1, SERVE = 2 };
enum { TIME, HEAT, SPICE, MODE, QUIET, NOTE, N_ROWS };

static const Option table[N_ROWS] = {
    [TIME] = {"time", WHOLE, "10", 1, 60, COOK | SERVE, "N", "minutes"},
    [HEAT] = {"heat", REAL, "0.5", 0, 1, COOK, "R", "how hot"},
    [SPICE] = {"spice", LIST, NULL, 0, 0, COOK, "NAME", "a spice"},
    [MODE] = {"mode", CHOICE, "slow", 0, 0, COOK, "slow|fast",
              "how a cook who has nothing else to do, or everything at "
              "once, sets about it: with patience, or with fire"},
    [QUIET] = {"quiet", FLAG, NULL, 0, 0, COOK | SERVE, NULL, "no noise"},
    [NOTE] = {"note", TEXT, " ", 0, 0, SERVE, "TEXT", "a note"},
};

/* Parses a line of words; at most 16. */
static int parse(Options *o, unsigned which, char *line, Error *error)
{
    char *argv[16], *rest = NULL;
    int argc = 0;
    for (char *word = strtok_r(line, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) argv[argc++] = word;
    *o = (Options){.table = table, .count = N_ROWS, .command = which == COOK ? "cook" : "serve", .which = which};
    return options_parse(o, argc, argv, error);
}

static void test_values_and_defaults(void)
{
    Options o;
    Error error;
    char line[] = "--time 7 --heat=0.25 --spice salt --quiet --spice=pepper=black";
    CHECK(parse(&o, COOK, line, &error) == 0, "%s", error.text);
    CHECK(option_size(&o, TIME) == 7 && option_real(&o, HEAT) == 0.25);
    CHECK(option_true(&o, QUIET) && !o.given[MODE] && strcmp(o.text[MODE], "slow") == 0);
    CHECK(o.n_list[SPICE] == 2 && strcmp(o.list[SPICE][1], "pepper=black") == 0);
    CHECK(o.text[NOTE] == NULL, "an option of another command has no value");
    CHECK(option_need(&o, NOTE, &error) == -1 && error.exit_code == EXIT_USAGE);
    options_free(&o);
}

static void test_bad_values(void)
{
    static const char *const lines[] = {"--time 0",       "--time 61",  "--time 1.5",  "--time x",     "--time",
                                        "--heat nan",     "--heat inf", "--heat 0x1",  "--heat 1e-1x", "--heat 2",
                                        "--mode quick",   "--mode slo", "--quiet=yes", "time 3",       "--note x",
                                        "--unheard-of 1", "--",         "--heat="};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        Options o;
        Error error = {0};
        char line[64];
        snprintf(line, sizeof line, "%s", lines[i]);
        CHECK(parse(&o, COOK, line, &error) == -1 && error.exit_code == EXIT_USAGE && error.text[0], "%s", lines[i]);
        options_free(&o);
    }
}

static void test_the_nearest_name_is_offered(void)
{
    Options o;
    Error error;
    char near_miss[] = "--tmie 3", far_off[] = "--temperature 3";
    CHECK(parse(&o, COOK, near_miss, &error) == -1 && strstr(error.text, "did you mean --time?"), "%s", error.text);
    CHECK(parse(&o, COOK, far_off, &error) == -1 && strstr(error.text, "--help"), "%s", error.text);
    CHECK(edit_distance("kitten", "sitting") == 3 && edit_distance("", "abc") == 3 && edit_distance("abc", "abc") == 0);
}

static void test_help_names_every_option_of_the_command(void)
{
    Options o = {.table = table, .count = N_ROWS, .command = "serve", .which = SERVE};
    char *help = options_help(&o);
    CHECK(strstr(help, "--time N") && strstr(help, "[10]") && strstr(help, "--note TEXT") && strstr(help, "[a space]"));
    CHECK(strstr(help, "--quiet") && !strstr(help, "--heat") && !strstr(help, "null"));
    free(help);
}

/* Every line of the help has an end that a terminal shows, and no word is lost. */
static void test_help_is_wrapped(void)
{
    Options o = {.table = table, .count = N_ROWS, .command = "cook", .which = COOK};
    char *help = options_help(&o), *rest = NULL;
    const char *mode = strstr(help, "--mode slow|fast"),
               *wrapped = strstr(help, "\n                                     ");
    CHECK(mode && wrapped && wrapped > mode && strstr(wrapped, "fire [slow]\n"), "%s", help);
    for (char *line = strtok_r(help, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        CHECK(strlen(line) <= 118, "%zu columns: %s", strlen(line), line);
    free(help);
}

static bool skip_quiet(size_t id)
{
    return id == QUIET;
}

/* What was recorded comes back; what is given again must be the same. */
static void test_recorded_and_recalled(void)
{
    Options o, again;
    Error error = {0};
    char line[] = "--time 7 --spice salt --spice mint --quiet", same[] = "--spice salt --spice mint",
         other[] = "--time 8", fewer[] = "--spice salt", none[] = "";
    cJSON *json = cJSON_CreateObject();
    parse(&o, COOK, line, &error);
    options_record(&o, skip_quiet, json);
    CHECK(!cJSON_HasObjectItem(json, "quiet") && !cJSON_HasObjectItem(json, "note"));
    CHECK(parse(&again, COOK, none, &error) == 0 && options_recall(&again, skip_quiet, json, "run.json", &error) == 0,
          "%s", error.text);
    CHECK(option_size(&again, TIME) == 7 && again.n_list[SPICE] == 2 && strcmp(again.list[SPICE][1], "mint") == 0);
    CHECK(!option_true(&again, QUIET));
    options_free(&again);
    CHECK(parse(&again, COOK, same, &error) == 0 && options_recall(&again, skip_quiet, json, "run.json", &error) == 0,
          "%s", error.text);
    options_free(&again);
    CHECK(parse(&again, COOK, other, &error) == 0 &&
              options_recall(&again, skip_quiet, json, "run.json", &error) == -1 && error.exit_code == EXIT_USAGE &&
              strstr(error.text, "--time 8"),
          "%s", error.text);
    options_free(&again);
    CHECK(parse(&again, COOK, fewer, &error) == 0 &&
              options_recall(&again, skip_quiet, json, "run.json", &error) == -1 && strstr(error.text, "--spice"),
          "%s", error.text);
    options_free(&again);
    cJSON_ReplaceItemInObject(json, "heat", cJSON_CreateString("3"));
    CHECK(parse(&again, COOK, none, &error) == 0 && options_recall(&again, skip_quiet, json, "run.json", &error) == -1,
          "a recorded value out of range");
    options_free(&again);
    cJSON_DeleteItemFromObject(json, "heat");
    CHECK(parse(&again, COOK, none, &error) == 0 &&
              options_recall(&again, skip_quiet, json, "run.json", &error) == -1 && error.exit_code == EXIT_FAILED,
          "a setting that is missing");
    options_free(&again);
    options_free(&o);
    cJSON_Delete(json);
}

static const Test tests[] = {
    {"values and defaults", test_values_and_defaults},
    {"bad values", test_bad_values},
    {"the nearest name is offered", test_the_nearest_name_is_offered},
    {"help names every option of the command", test_help_names_every_option_of_the_command},
    {"help is wrapped", test_help_is_wrapped},
    {"recorded and recalled", test_recorded_and_recalled},
};
TEST_MAIN(tests)
