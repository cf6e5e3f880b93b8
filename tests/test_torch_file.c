/* test_torch_file.c: data/torch_file.c, with pickles and zip files built by hand. That it reads what torch writes is
 * tested with the golden files in test_checkpoint.c, and here with the shared fixtures. */
#include "../data/files.c"
#include "../data/checkpoint.c"
#include "../data/safetensors.c"
#include "../data/torch_file.c"

#include "test.h"

#define SCRATCH "build/test/torch_file"

static Error error;

/* --------------------------------------------------------------------------------------------------- building files */

typedef struct {
    unsigned char *bytes;
    size_t used, room;
} Buffer;

static void put(Buffer *buffer, const void *bytes, size_t count)
{
    if (count == 0) return;
    while (buffer->room < buffer->used + count) {
        buffer->room = 2 * buffer->room + 1024;
        buffer->bytes = realloc(buffer->bytes, buffer->room);
    }
    memcpy(buffer->bytes + buffer->used, bytes, count);
    buffer->used += count;
}

static void put_number(Buffer *buffer, uint64_t number, size_t bytes)
{
    put(buffer, &number, bytes);
}

static void put_zeros(Buffer *buffer, size_t count)
{
    for (size_t i = 0; i < count; i++) put(buffer, "", 1);
}

#define PUT(buffer, literal) put(buffer, literal, sizeof literal - 1)

static void buffer_save(Buffer *buffer, const char *path)
{
    remove(path);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(buffer->bytes, 1, buffer->used, file) == buffer->used, "%s", path);
    if (file) fclose(file);
    free(buffer->bytes);
    *buffer = (Buffer){0};
}

/* Pieces of pickles. A hexadecimal escape swallows what follows it, hence the many short strings. */
#define S1 "X\x01\0\0\0"
#define STORAGE_ID "(X\x07\0\0\0storagectorch\nFloatStorage\n" S1 "0X\x03\0\0\0cpuK\x06"
#define STORAGE STORAGE_ID "tQ"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n("
#define HOOKS                                                                                                          \
    "\x89"                                                                                                             \
    "ccollections\nOrderedDict\n)RtR"
#define TENSOR REBUILD STORAGE "K\0(K\x02K\x03t(K\x03K\x01t" HOOKS
#define DICT_OF(tensor) "\x80\x02}" S1 "w" tensor "s."
#define ONE_KEY "\x80\x02]" S1 "0a."
#define PREAMBLE "\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s."

static void put_floats(Buffer *buffer, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float value = (float)i + 0.5f;
        put(buffer, &value, sizeof value);
    }
}

static void save_legacy(const char *path, const char *object, size_t object_bytes)
{
    Buffer file = {0};
    put(&file, LEGACY_MAGIC, sizeof LEGACY_MAGIC);
    PUT(&file, PREAMBLE);
    put(&file, object, object_bytes);
    PUT(&file, ONE_KEY);
    put_number(&file, 6, 8);
    put_floats(&file, 6);
    buffer_save(&file, path);
}

/* A zip while it is built: the members, and the directory that goes behind them. */
typedef struct {
    Buffer file, directory;
    size_t members;
} ZipBuilder;

static void zip_add(ZipBuilder *zip, const char *name, const void *data, size_t bytes, unsigned method, unsigned flags)
{
    size_t start = zip->file.used, padding = 5; /* only the local header has an extra field, as torch writes it */
    PUT(&zip->file, "PK\x03\x04");
    put_zeros(&zip->file, 22); /* sizes and checksum may be zero here */
    put_number(&zip->file, strlen(name), 2);
    put_number(&zip->file, padding, 2);
    put(&zip->file, name, strlen(name));
    put(&zip->file, "FB\1\0Z", padding);
    put(&zip->file, data, bytes);
    PUT(&zip->directory, "PK\x01\x02");
    put_number(&zip->directory, 0, 4);
    put_number(&zip->directory, flags, 2);
    put_number(&zip->directory, method, 2);
    put_number(&zip->directory, 0, 8);
    put_number(&zip->directory, bytes, 4);
    put_number(&zip->directory, bytes, 4);
    put_number(&zip->directory, strlen(name), 2);
    put_number(&zip->directory, 0, 8);
    put_number(&zip->directory, 0, 4);
    put_number(&zip->directory, start, 4);
    put(&zip->directory, name, strlen(name));
    zip->members++;
}

static void zip_save(ZipBuilder *zip, const char *path, const char *comment)
{
    size_t start = zip->file.used;
    put(&zip->file, zip->directory.bytes, zip->directory.used);
    PUT(&zip->file, "PK\x05\x06");
    put_number(&zip->file, 0, 4);
    put_number(&zip->file, zip->members, 2);
    put_number(&zip->file, zip->members, 2);
    put_number(&zip->file, zip->directory.used, 4);
    put_number(&zip->file, start, 4);
    put_number(&zip->file, strlen(comment), 2);
    put(&zip->file, comment, strlen(comment));
    free(zip->directory.bytes);
    buffer_save(&zip->file, path);
    *zip = (ZipBuilder){0};
}

static void zip_add_pickle(ZipBuilder *zip)
{
    static const char object[] = DICT_OF(TENSOR);
    zip_add(zip, "m/data.pkl", object, sizeof object - 1, 0, 0);
}

static void zip_add_storage(ZipBuilder *zip, const char *name, size_t floats)
{
    Buffer data = {0};
    put_floats(&data, floats);
    zip_add(zip, name, data.bytes, data.used, 0, 0);
    free(data.bytes);
}

/* ----------------------------------------------------------------------------------------------------- expectations */

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

static void expect_refused(const char *path, const char *said)
{
    memset(&error, 0, sizeof error);
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(!checkpoint && error.exit_code == EXIT_FAILED && strstr(error.text, said) && strstr(error.text, path),
          "%s (expected: %s)", checkpoint ? "it was opened" : error.text, said);
    checkpoint_close(checkpoint);
}

/* The 2 x 3 tensor of DICT_OF(TENSOR): 0.5, 1.5, … */
static void expect_tensor(const char *path, const char *name)
{
    float values[6];
    size_t wrong = 0;
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(checkpoint, "%s", error.text);
    const StoredTensor *tensor = checkpoint ? checkpoint_find(checkpoint, name) : NULL;
    CHECK(tensor && tensor->n_dims == 2 && tensor->shape[0] == 2 && tensor->shape[1] == 3, "%s", path);
    if (tensor) CHECK(stored_tensor_read_float(tensor, 0, 6, values, &error) == 0, "%s", error.text);
    for (size_t i = 0; tensor && i < 6; i++) wrong += values[i] != (float)i + 0.5f;
    CHECK(wrong == 0, "%s: %zu values are wrong", path, wrong);
    checkpoint_close(checkpoint);
}

/* ---------------------------------------------------------------------------------------------------------- pickles */

#define PICKLE(literal) (literal), sizeof(literal) - 1

static void reads_pickles_of_many_forms(void)
{
    static const struct {
        const char *object;
        size_t bytes;
        const char *name;
    } cases[] = {
        {PICKLE(DICT_OF(TENSOR)), "w"},
        {PICKLE("\x80\x02" TENSOR "."), ""},
        /* OrderedDict, MARK … SETITEMS, memo, and BUILD with attributes */
        {PICKLE("\x80\x02"
                "ccollections\nOrderedDict\nq\0)Rq\x01(" S1 "w" TENSOR "q\x02u}" S1 "_Nsb."),
         "w"},
        /* a Parameter */
        {PICKLE(DICT_OF("ctorch._utils\n_rebuild_parameter\n(" TENSOR "\x88"
                        "NtR")),
         "w"},
        /* protocol 4: short strings, STACK_GLOBAL, MEMOIZE, FRAME */
        {PICKLE("\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94\x8c\x01w\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_"
                "v2\x94\x93(" STORAGE "K\0K\x02K\x03\x86K\x03K\x01\x86" HOOKS "s."),
         "w"},
        /* Python 2's strings */
        {PICKLE("\x80\x02}U\x01w" TENSOR "s."), "w"},
        {PICKLE("\x80\x02}T\x01\0\0\0w" TENSOR "s."), "w"},
        /* nested, beside things that are not tensors */
        {PICKLE("\x80\x02}(X\x05\0\0\0epochK\x07X\x04\0\0\0lossG\0\0\0\0\0\0\0\0X\x05\0\0\0model"
                "}" S1 "w" TENSOR "sX\x03\0\0\0opt](K\x01Neu."),
         "w"},
        {PICKLE("\x80\x02}X\x0a\0\0\0state_dict}" S1 "w" TENSOR "ss."), "w"},
        /* numbers in long form: LONG1 of 0, 1 and 9 bytes */
        {PICKLE(DICT_OF(REBUILD STORAGE "\x8a\0(\x8a\x01\x02\x8a\x02\x03\0t(K\x03K\x01t" HOOKS)), "w"},
        {PICKLE("\x80\x02}(" S1 "x\x8a\x09"
                "123456789" S1 "w" TENSOR "u."),
         "w"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        save_legacy(SCRATCH "/a.bin", cases[i].object, cases[i].bytes);
        expect_tensor(SCRATCH "/a.bin", cases[i].name);
    }
}

static void never_calls_anything(void)
{
    static const struct {
        const char *object;
        size_t bytes;
        const char *said;
    } cases[] = {
        {PICKLE("\x80\x02"
                "cos\nsystem\nX\x04\0\0\0true\x85R."),
         "would call os.system"},
        {PICKLE(DICT_OF("cposix\nsystem\nX\x04\0\0\0true\x85R")), "would call posix.system"},
        {PICKLE("\x80\x04\x8c\x08"
                "builtins\x8c\x04"
                "eval\x93\x8c\x01"
                "1\x85R."),
         "would call builtins.eval"},
        {PICKLE("\x80\x02"
                "c__builtin__\nexec\n."),
         "would call __builtin__.exec"},
        {PICKLE("\x80\x02"
                "ctorch\nload\n."),
         "would call torch.load"},
        {PICKLE("\x80\x02"
                "ctorch._utils\n_rebuild_tensor_v3\n."),
         "would call torch._utils._rebuild_tensor_v3"},
        {PICKLE("\x80\x02"
                "ca\nb\x1b[2J\x07\n."),
         "would call a.b?[2J?"},
        {PICKLE("\x80\x02"
                "ctorch\nFloatStorage\n)R."),
         "calls a storage class"},
        {PICKLE("\x80\x02)}\x81."), "instruction"},                  /* NEWOBJ */
        {PICKLE("\x80\x02(S'true'\nios\nsystem\n."), "instruction"}, /* STRING, INST */
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        save_legacy(SCRATCH "/a.bin", cases[i].object, cases[i].bytes);
        expect_refused(SCRATCH "/a.bin", cases[i].said);
    }
}

static void refuses_damaged_pickles(void)
{
    static const struct {
        const char *object;
        size_t bytes;
        const char *said;
    } cases[] = {
        {PICKLE("\x80\x09."), "unknown protocol"},
        {PICKLE("\x80\x02."), "stack is empty"},
        {PICKLE("\x80\x02(."), "stack is empty"},
        {PICKLE("\x80\x02t."), "no mark"},
        {PICKLE("\x80\x02Nu."), "no mark"},
        {PICKLE("\x80\x02\x87."), "stack is empty"},
        {PICKLE("\x80\x02h\x05."), "never remembered"},
        {PICKLE("\x80\x02Nr\xff\xff\xff\x7f."), "remembers too many"},
        {PICKLE("\x80\x02q\0."), "stack is empty"},
        {PICKLE("\x80\x02}(Nu."), "key without a value"},
        {PICKLE("\x80\x02](NNu."), "wrong kind"},
        {PICKLE("\x80\x02}Na."), "wrong kind"},
        {PICKLE("\x80\x02NNR."), "wrong kind"},
        {PICKLE("\x80\x02X\xff\xff\xff\xff"), "ends too early"},
        {PICKLE("\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), "ends too early"},
        {PICKLE("\x80\x02"
                "cos"),
         "ends too early"},
        {PICKLE("\x80\x02"
                "ccollections\nOrderedDict\n]\x85R."),
         "OrderedDict is made from arguments"},
        {PICKLE("\x80\x02"
                "ctorch._utils\n_rebuild_parameter\n)R."),
         "parameter is not made"},
        {PICKLE("\x80\x02"
                "ctorch._utils\n_rebuild_tensor_v2\n)R."),
         "not described"},
        {PICKLE("\x80\x02)Q."), "does not describe a storage"},
        {PICKLE("\x80\x02(X\x07\0\0\0storageNNNNtQ."), "does not describe a storage"},
        {PICKLE("\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" S1 "0NJ\xff\xff\xff\xfftQ."), "does not describe"},
        {PICKLE(DICT_OF(REBUILD STORAGE_ID "(" S1 "0K\0K\x01ttQK\0))" HOOKS)), "view of another"},
        {PICKLE(DICT_OF(REBUILD STORAGE "J\xff\xff\xff\xff))" HOOKS)), "not described"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x02K\x03t(K\x03t" HOOKS)), "right length"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x02J\xff\xff\xff\xfft(K\x03K\x01t" HOOKS)), "whole numbers"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x02\x8a\x01\xff"
                                        "t(K\x03K\x01t" HOOKS)),
         "whole numbers"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(NNt(K\x03K\x01t" HOOKS)), "whole numbers"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(NNNNNNNNNt)" HOOKS)), "more than 8 dimensions"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\x01(K\x02K\x03t(K\x03K\x01t" HOOKS)), "tensor w: reaches beyond"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\x07(K\0t(K\x01t" HOOKS)), "outside of its storage"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x02K\x03t(K\x04K\x01t" HOOKS)), "reaches beyond"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x02t(\x8a\x08\0\0\0\0\0\0\0\x40t" HOOKS)), "overflows"},
        {PICKLE(DICT_OF(REBUILD STORAGE "K\0(K\x03t(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ft" HOOKS)), "overflows"},
        {PICKLE(DICT_OF(REBUILD STORAGE
                        "K\0(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff"
                        "\x7ft(K\0K\0t" HOOKS)),
         "outside of its storage"},
        {PICKLE("\x80\x02}" S1 "w" STORAGE "s."), "no dictionary of tensors"},
        {PICKLE("\x80\x02]" TENSOR "a."), "no dictionary of tensors"},
        {PICKLE("\x80\x02" STORAGE "."), "no dictionary of tensors"},
        {PICKLE("\x80\x02}K\x05" TENSOR "s."), "name is not text"},
        {PICKLE("\x80\x02}(" S1 "w" TENSOR S1 "w" TENSOR "u."), "tensor w: is there twice"},
        {PICKLE("\x80\x02}" S1 "\xff" TENSOR "s."), "not UTF-8"},
        {PICKLE("\x80\x02}" S1 "\0" TENSOR "s."), "not UTF-8"},
        /* a dictionary that holds itself */
        {PICKLE("\x80\x02}q\0(X\x05\0\0\0modelh\0" S1 "w" STORAGE "u."), "no dictionary of tensors"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        save_legacy(SCRATCH "/a.bin", cases[i].object, cases[i].bytes);
        /* What ends too early would go on with the list of keys behind it: cut the file there. */
        if (strcmp(cases[i].said, "ends too early") == 0)
            CHECK(truncate(SCRATCH "/a.bin", (off_t)(sizeof LEGACY_MAGIC + sizeof PREAMBLE - 1 + cases[i].bytes)) == 0);
        expect_refused(SCRATCH "/a.bin", cases[i].said);
    }
}

/* A program of one instruction, over and over. */
static void bounds_memory(void)
{
    static const struct {
        const char *start, *repeated, *said;
    } cases[] = {
        {"", "(", "stack is too deep"},
        {"N", "Nb", "too many values"},
        {"N", "\x85", "too many values"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Buffer object = {0};
        put(&object, cases[i].start, strlen(cases[i].start));
        for (size_t n = 0; n <= PICKLE_MAX_VALUES; n++) put(&object, cases[i].repeated, strlen(cases[i].repeated));
        PUT(&object, ".");
        save_legacy(SCRATCH "/a.bin", (const char *)object.bytes, object.used);
        free(object.bytes);
        expect_refused(SCRATCH "/a.bin", cases[i].said);
    }
}

/* ------------------------------------------------------------------------------------------------------ legacy form */

static void refuses_damaged_legacy_files(void)
{
    static const char object[] = DICT_OF(TENSOR);
    static const struct {
        const char *preamble;
        size_t preamble_bytes;
        const char *keys;
        size_t keys_bytes;
        uint64_t numel;
        size_t floats;
        const char *said;
    } cases[] = {
        {PICKLE("\x80\x02M\xea\x03.\x80\x02}."), PICKLE(ONE_KEY), 6, 6, "unknown torch protocol"},
        {PICKLE("\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x89s."), PICKLE(ONE_KEY), 6, 6, "little-endian"},
        {PICKLE("\x80\x02M\xe9\x03.\x80\x02}."), PICKLE(ONE_KEY), 6, 6, "little-endian"},
        {PICKLE("\x80\x02M\xe9\x03.\x80\x02N."), PICKLE(ONE_KEY), 6, 6, "little-endian"},
        {PICKLE(PREAMBLE), PICKLE("\x80\x02N."), 6, 6, "list of storages is missing"},
        {PICKLE(PREAMBLE), PICKLE("\x80\x02]."), 6, 6, "data of storage 0 is missing"},
        {PICKLE(PREAMBLE),
         PICKLE("\x80\x02]K\x05"
                "a."),
         6, 6, "holds something else"},
        {PICKLE(PREAMBLE), PICKLE("\x80\x02]" S1 "1a."), 6, 6, "names 1, which is unknown"},
        {PICKLE(PREAMBLE), PICKLE("\x80\x02](" S1 "0" S1 "0e."), 6, 6, "there twice"},
        {PICKLE(PREAMBLE), PICKLE(ONE_KEY), 7, 7, "expected 6 elements of 4 bytes"},
        {PICKLE(PREAMBLE), PICKLE(ONE_KEY), 6, 5, "damaged or truncated"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Buffer file = {0};
        put(&file, LEGACY_MAGIC, sizeof LEGACY_MAGIC);
        put(&file, cases[i].preamble, cases[i].preamble_bytes);
        PUT(&file, object);
        put(&file, cases[i].keys, cases[i].keys_bytes);
        put_number(&file, cases[i].numel, 8);
        put_floats(&file, cases[i].floats);
        buffer_save(&file, SCRATCH "/a.bin");
        expect_refused(SCRATCH "/a.bin", cases[i].said);
    }
}

/* One storage, mentioned twice with different sizes. */
static void refuses_a_storage_of_two_kinds(void)
{
    static const char object[] = "\x80\x02}(" S1 "v" REBUILD "(X\x07\0\0\0storagectorch\nHalfStorage\n" S1
                                 "0X\x03\0\0\0cpuK\x06tQK\0))" HOOKS S1 "w" TENSOR "u.";
    fresh_scratch();
    save_legacy(SCRATCH "/a.bin", object, sizeof object - 1);
    memset(&error, 0, sizeof error);
    CHECK(!checkpoint_open(SCRATCH "/a.bin", &error), "it was opened");
    CHECK(strstr(error.text, "two ways") || strstr(error.text, "damaged"), "%s", error.text);
}

/* -------------------------------------------------------------------------------------------------------------- zip */

static void reads_a_zip(void)
{
    ZipBuilder zip = {0};
    fresh_scratch();
    zip_add_pickle(&zip);
    zip_add_storage(&zip, "m/data/0", 6);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_tensor(SCRATCH "/a.bin", "w");
    zip_add_storage(&zip, "m/data/0", 6);
    zip_add(&zip, "m/byteorder", "little", 6, 0, 0);
    zip_add(&zip, "m/code/data.pkl", "junk", 4, 8, 1); /* other members may be anything */
    zip_add_pickle(&zip);
    zip_save(&zip, SCRATCH "/a.bin", "a comment PK\5\6 within");
    expect_tensor(SCRATCH "/a.bin", "w");
}

static void refuses_damaged_zips(void)
{
    static const char object[] = DICT_OF(TENSOR);
    ZipBuilder zip = {0};
    fresh_scratch();
    zip_add_storage(&zip, "m/data/0", 6);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "0 members data.pkl");
    zip_add_pickle(&zip);
    zip_add(&zip, "n/data.pkl", "", 0, 0, 0);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "2 members data.pkl");
    zip_add_pickle(&zip);
    zip_add_pickle(&zip);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "same name");
    zip_add_pickle(&zip);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "data of storage 0 is missing");
    zip_add_pickle(&zip);
    zip_add_storage(&zip, "m/data/0", 5);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "too few bytes (expected 6 x 4, found 20)");
    zip_add_pickle(&zip);
    zip_add(&zip, "m/data/0", object, 24, 8, 0);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "m/data/0 is compressed");
    zip_add_pickle(&zip);
    zip_add(&zip, "m/data/0", object, 24, 0, 1);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "encrypted");
    zip_add_pickle(&zip);
    zip_add(&zip, "m/byteorder", "big", 3, 0, 0);
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "wrong byte order (expected little, found big)");
    zip_save(&zip, SCRATCH "/a.bin", "");
    expect_refused(SCRATCH "/a.bin", "0 members data.pkl");
}

/* What a directory may lie about: each case overwrites some bytes of it. The last member is m/data/0. */
static void refuses_lying_zip_directories(void)
{
    static const struct {
        size_t place; /* in the directory entry, or from the end record (END + place) */
        const char *bytes;
        size_t count;
        const char *said;
    } cases[] = {
        {0, "XX", 2, "directory is cut short"},
        {28, "\xff\xff", 2, "directory is cut short"},
        {30, "\xff\xff", 2, "directory is cut short"},
        {32, "\xff\xff", 2, "directory is cut short"},
        {20, "\xff\xff\xff\0\xff\xff\xff\0", 8, "truncated: its member m/data/0"},
        {24, "\x01", 1, "compressed"},
        {42, "\xf0\xff\xff\xff", 4, "header is missing"},
        {42, "\x01\0\0\0", 4, "header is missing"},
        {20, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "truncated: its member m/data/0"},
        {1000 + 10, "\x03\0", 2, "directory is cut short"},
        {1000 + 10, "\x01\0", 2, "data of storage 0 is missing"},
        {1000 + 12, "\xff\xff\xff\xff", 4, "outside of the file"},
        {1000 + 16, "\xff\xff\xff\xff", 4, "outside of the file"},
        {1000 + 16, "\0\0\0\0", 4, "directory is cut short"},
        {1000 + 20, "\x01\0", 2, "end record is missing"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ZipBuilder zip = {0};
        zip_add_pickle(&zip);
        zip_add_storage(&zip, "m/data/0", 6);
        zip_save(&zip, SCRATCH "/a.bin", "");
        FILE *file = fopen(SCRATCH "/a.bin", "r+b");
        long from_end = cases[i].place >= 1000 ? (long)cases[i].place - 1000 - 22
                                               : (long)cases[i].place - 22 - 46 - (long)strlen("m/data/0");
        CHECK(file && fseek(file, from_end, SEEK_END) == 0 && fwrite(cases[i].bytes, 1, cases[i].count, file) > 0);
        if (file) fclose(file);
        expect_refused(SCRATCH "/a.bin", cases[i].said);
    }
}

/* A zip of more than 4 GiB: the storage is written behind a hole of 4.5 GiB, so that its offset needs 64 bits. The
 * zip64 field holds only the numbers that are all ones where they usually are: the sizes as well, or just the
 * offset. */
static bool save_zip64(const char *path, bool sizes_too)
{
    static const char object[] = DICT_OF(TENSOR);
    const uint64_t hole = (uint64_t)9 << 29;
    const uint32_t size = sizes_too ? UINT32_MAX : 24;
    const size_t field = sizes_too ? 24 : 8;
    ZipBuilder zip = {0};
    Buffer tail = {0};
    zip_add(&zip, "m/data.pkl", object, sizeof object - 1, 0, 0);
    Buffer directory = zip.directory;
    buffer_save(&zip.file, path);
    PUT(&tail, "PK\x03\x04");
    put_zeros(&tail, 22);
    put_number(&tail, 8, 2);
    put_number(&tail, 0, 2);
    PUT(&tail, "m/data/0");
    put_floats(&tail, 6);
    uint64_t directory_start = hole + tail.used;
    PUT(&directory, "PK\x01\x02");
    put_zeros(&directory, 16);
    put_number(&directory, size, 4);
    put_number(&directory, size, 4);
    put_number(&directory, 8, 2);
    put_number(&directory, 6 + 4 + field, 2); /* another extra field comes first */
    put_zeros(&directory, 10);
    put_number(&directory, UINT32_MAX, 4);
    PUT(&directory, "m/data/0xx\x02\0ab\x01\0");
    put_number(&directory, field, 2);
    if (sizes_too) put_number(&directory, 24, 8);
    if (sizes_too) put_number(&directory, 24, 8);
    put_number(&directory, hole, 8);
    put(&tail, directory.bytes, directory.used);
    PUT(&tail, "PK\x06\x06");
    put_number(&tail, 44, 8);
    put_number(&tail, 0, 8);
    put_number(&tail, 0, 4);
    put_number(&tail, 2, 8);
    put_number(&tail, 2, 8);
    put_number(&tail, directory.used, 8);
    put_number(&tail, directory_start, 8);
    PUT(&tail, "PK\x06\x07");
    put_number(&tail, 0, 4);
    put_number(&tail, directory_start + directory.used, 8);
    put_number(&tail, 1, 4);
    PUT(&tail, "PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    free(directory.bytes);
    int fd = open(path, O_WRONLY);
    bool sparse = pwrite(fd, tail.bytes, tail.used, (off_t)hole) == (ssize_t)tail.used;
    close(fd);
    free(tail.bytes);
    return sparse;
}

static void reads_zip64(void)
{
    fresh_scratch();
    for (int sizes_too = 0; sizes_too < 2; sizes_too++) {
        if (!save_zip64(SCRATCH "/a.bin", sizes_too)) SKIP("no sparse files here");
        expect_tensor(SCRATCH "/a.bin", "w");
    }
    remove(SCRATCH "/a.bin");
}

/* ---------------------------------------------------------------------------------------------- the shared fixtures */

static double json_number(const cJSON *item)
{
    return cJSON_IsString(item) ? strtod(item->valuestring, NULL) : item->valuedouble;
}

/* Compares with a number, a list or a list of lists; text says no more than the shape. Returns the elements seen. */
static size_t compare_values(const StoredTensor *tensor, size_t at, const cJSON *expected)
{
    float value;
    int64_t integer;
    if (cJSON_IsArray(expected)) {
        size_t seen = 0;
        const cJSON *item;
        cJSON_ArrayForEach(item, expected) seen += compare_values(tensor, at + seen, item);
        return seen;
    }
    double wanted = json_number(expected);
    if (tensor->dtype <= DTYPE_F64) {
        CHECK(stored_tensor_read_float(tensor, at, 1, &value, &error) == 0, "%s", error.text);
        CHECK((isnan(wanted) && isnan(value)) || value == (float)wanted, "%s: %g, not %g", tensor->name, value, wanted);
    } else {
        CHECK(stored_tensor_read_int(tensor, at, 1, &integer, &error) == 0, "%s", error.text);
        CHECK((double)integer == wanted, "%s: %lld, not %g", tensor->name, (long long)integer, wanted);
    }
    return 1;
}

static void check_shared_file(const char *shared, const cJSON *entry)
{
    char path[1200];
    const cJSON *item;
    snprintf(path, sizeof path, "%s/formats/torch/%s", shared, entry->string);
    if (strcmp(entry->string, "broken.pt") == 0) {
        expect_refused(path, "neither");
        return;
    }
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(checkpoint, "%s", error.text);
    if (!checkpoint) return;
    if (cJSON_IsString(entry)) /* checkpoint.pt: nested under model_state_dict */
        CHECK(checkpoint_count(checkpoint) == 4 && checkpoint_find(checkpoint, "fc1.weight"), "%s", path);
    else
        CHECK(checkpoint_count(checkpoint) == (size_t)cJSON_GetArraySize(entry), "%s", path);
    cJSON_ArrayForEach(item, entry)
    {
        const StoredTensor *tensor = checkpoint_find(checkpoint, item->string);
        CHECK(tensor, "%s: no %s", path, item->string);
        if (!tensor || cJSON_IsString(item)) continue;
        size_t seen = compare_values(tensor, 0, item);
        CHECK(seen == tensor->numel, "%s %s: %zu elements", path, item->string, tensor->numel);
    }
    checkpoint_close(checkpoint);
}

static void reads_the_shared_files(void)
{
    char path[1200];
    MappedFile file;
    const char *shared = test_shared();
    if (!shared) SKIP("no shared fixtures");
    snprintf(path, sizeof path, "%s/formats/torch/expected.json", shared);
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    cJSON *expected = json_parse((const char *)file.data, file.bytes), *entry;
    CHECK(cJSON_GetArraySize(expected) > 10, "%s", path);
    cJSON_ArrayForEach(entry, expected) check_shared_file(shared, entry);
    cJSON_Delete(expected);
    mapped_file_close(&file);
}

static const Test tests[] = {
    {"reads_pickles_of_many_forms", reads_pickles_of_many_forms},
    {"never_calls_anything", never_calls_anything},
    {"refuses_damaged_pickles", refuses_damaged_pickles},
    {"bounds_memory", bounds_memory},
    {"refuses_damaged_legacy_files", refuses_damaged_legacy_files},
    {"refuses_a_storage_of_two_kinds", refuses_a_storage_of_two_kinds},
    {"reads_a_zip", reads_a_zip},
    {"refuses_damaged_zips", refuses_damaged_zips},
    {"refuses_lying_zip_directories", refuses_lying_zip_directories},
    {"reads_zip64", reads_zip64},
    {"reads_the_shared_files", reads_the_shared_files},
};

TEST_MAIN(tests)
