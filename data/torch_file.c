/* torch_file.c: reading what torch.save writes: pytorch_model.bin, *.pt, *.bin.
 *
 * Since torch 1.6 that is a zip of uncompressed members: ROOT/data.pkl, a pickle that describes the tensors, and
 * ROOT/data/KEY, the bytes of each storage. Before, it was five parts in a row: three small pickles (magic number,
 * version, machine), the pickle that describes the tensors, a pickled list of keys, and the storages in that order.
 *
 * A pickle is a program for a stack machine, and Python's machine can be told to call anything. The machine below knows
 * only the instructions that a dictionary of tensors needs, and "calls" four functions by building the value that they
 * would return; any other function is refused by its name. Nothing of the file is ever executed. */
#include "checkpoint.h"
#include "checkpoint_internal.h"

#include <stdlib.h>

/* Far above what a model needs (mT5-XXL: 15 thousand values), and low enough that a hostile file stays cheap. */
enum { PICKLE_MAX_VALUES = 1 << 20, PICKLE_MAX_MEMO = 1 << 20, ZIP_MAX_ENTRIES = 1 << 20 };

/* ----------------------------------------------------------------------------------------------------------- values */

typedef enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE } Function;

/* Everything that a pickle may name. */
typedef struct {
    const char *module, *name;
    Function function;
    Dtype dtype;  /* of a storage's elements */
    size_t bytes; /* of one element */
} Global;

static const Global GLOBALS[] = {
    {"collections", "OrderedDict", ORDERED_DICT, 0, 0},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, 0, 0},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, 0, 0},
    {"torch", "FloatStorage", STORAGE, DTYPE_F32, 4},
    {"torch", "HalfStorage", STORAGE, DTYPE_F16, 2},
    {"torch", "BFloat16Storage", STORAGE, DTYPE_BF16, 2},
    {"torch", "DoubleStorage", STORAGE, DTYPE_F64, 8},
    {"torch", "LongStorage", STORAGE, DTYPE_I64, 8},
    {"torch", "IntStorage", STORAGE, DTYPE_I32, 4},
    {"torch", "ShortStorage", STORAGE, DTYPE_I16, 2},
    {"torch", "CharStorage", STORAGE, DTYPE_I8, 1},
    {"torch", "ByteStorage", STORAGE, DTYPE_U8, 1},
    {"torch", "BoolStorage", STORAGE, DTYPE_BOOL, 1},
    {"torch", "ComplexFloatStorage", STORAGE, DTYPE_OTHER, 8},
    {"torch", "ComplexDoubleStorage", STORAGE, DTYPE_OTHER, 16},
};

typedef enum {
    VALUE_OTHER, /* None, a float, a huge integer: nothing of it is needed */
    VALUE_BOOL,
    VALUE_INT,
    VALUE_TEXT,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT,
    VALUE_GLOBAL,
    VALUE_STORAGE,
    VALUE_TENSOR,
} ValueKind;

typedef struct {
    const char *at; /* in the mapped file */
    size_t length;
} Text;

typedef struct {
    const Global *type;
    Text key;
    size_t numel;
    const unsigned char *data; /* NULL until it is found in the file */
} Storage;

typedef struct Value Value;
struct Value {
    ValueKind kind;
    Value *older; /* all values of a pickle form a list, by which they are freed */
    union {
        int64_t integer;
        Text text;
        struct {
            Value **items; /* of a dictionary: key, value, key, value, … */
            size_t count, capacity;
        } list;
        const Global *global;
        Storage storage;
        struct {
            const Value *storage;
            size_t offset, n_dims, shape[CHECKPOINT_MAX_DIMS], strides[CHECKPOINT_MAX_DIMS];
        } tensor;
    };
};

/* ----------------------------------------------------------------------------------------------- the pickle machine */

/* The machine has a stack, on which instructions leave and find values, and a memo, where a value can be kept under a
 * number to be used again. A mark on the stack is where a list of operands begins. A state dict with one matrix reads:
 *
 *     EMPTY_DICT                                         {}
 *     BINUNICODE "shared.weight"                         {} "shared.weight"
 *     GLOBAL torch._utils _rebuild_tensor_v2             … function
 *     MARK                                               … function (
 *     MARK BINUNICODE "storage" GLOBAL torch FloatStorage BINUNICODE "0" BINUNICODE "cpu" BININT 12 TUPLE BINPERSID
 *                                                        … function ( storage
 *     BININT1 0  BININT1 3 BININT1 4 TUPLE2  BININT1 4 BININT1 1 TUPLE2  NEWFALSE  GLOBAL … REDUCE
 *                                                        … function ( storage 0 (3, 4) (4, 1) False {}
 *     TUPLE REDUCE                                       {} "shared.weight" tensor
 *     SETITEM STOP                                       {"shared.weight": tensor}
 *
 * Each instruction makes at most one value, so a pickle's length bounds its memory; the limits above bound it
 * further. */
typedef struct {
    const MappedFile *file;
    const unsigned char *at, *end; /* the program that is left */
    Value **stack;                 /* NULL is a mark */
    size_t depth, stack_capacity;
    Value **memo; /* NULL: not set */
    size_t memo_capacity, memo_count;
    Value *newest; /* of all values */
    size_t n_values;
    Error *error;
} Pickle;

/* Frees all values, whoever holds them: they may form cycles, so ownership is with the machine alone. */
static void pickle_free(Pickle *pickle)
{
    for (Value *value = pickle->newest, *older; value; value = older) {
        older = value->older;
        if (value->kind == VALUE_TUPLE || value->kind == VALUE_LIST || value->kind == VALUE_DICT)
            free(value->list.items);
        free(value);
    }
    free(pickle->stack);
    free(pickle->memo);
    *pickle = (Pickle){0};
}

/* Says where in the file the instruction is that went wrong. */
static int pickle_error(const Pickle *pickle, const char *what)
{
    return error_set(pickle->error, EXIT_FAILED, "%.700s: byte %zu: damaged pickle: %s", pickle->file->path,
                     (size_t)(pickle->at - pickle->file->data), what);
}

static int pickle_no_memory(const Pickle *pickle)
{
    return checkpoint_no_memory(pickle->error, pickle->file->path);
}

/* The next bytes of the program; NULL with the error set when it ends before. */
static const unsigned char *take(Pickle *pickle, uint64_t bytes)
{
    const unsigned char *start = pickle->at;
    if (bytes > (size_t)(pickle->end - start)) {
        pickle_error(pickle, "it ends too early");
        return NULL;
    }
    pickle->at += bytes;
    return start;
}

/* Makes room for one more pointer. */
static int grow(const Pickle *pickle, Value ***items, size_t count, size_t *capacity)
{
    if (count < *capacity) return 0;
    size_t wanted = *capacity ? 2 * *capacity : 16;
    Value **larger = realloc(*items, wanted * sizeof *larger);
    if (!larger) return pickle_no_memory(pickle);
    *items = larger;
    *capacity = wanted;
    return 0;
}

/* Every push is through here, so that the stack has a limit. */
static int push(Pickle *pickle, Value *value_or_mark)
{
    if (pickle->depth == PICKLE_MAX_VALUES) return pickle_error(pickle, "its stack is too deep");
    if (grow(pickle, &pickle->stack, pickle->depth, &pickle->stack_capacity) != 0) return -1;
    pickle->stack[pickle->depth++] = value_or_mark;
    return 0;
}

/* A new value of this kind on the stack, its contents all zero; NULL with the error set when it cannot be. */
static Value *push_new(Pickle *pickle, ValueKind kind)
{
    if (pickle->n_values == PICKLE_MAX_VALUES) {
        pickle_error(pickle, "it makes too many values");
        return NULL;
    }
    Value *value = calloc(1, sizeof *value);
    if (!value) {
        pickle_no_memory(pickle);
        return NULL;
    }
    *value = (Value){.kind = kind, .older = pickle->newest};
    pickle->newest = value;
    pickle->n_values++;
    return push(pickle, value) == 0 ? value : NULL;
}

/* The topmost value; it is an error if there is none, or a mark is in its place. */
static Value *top(const Pickle *pickle)
{
    Value *value = pickle->depth > 0 ? pickle->stack[pickle->depth - 1] : NULL;
    if (!value) pickle_error(pickle, "its stack is empty");
    return value;
}

static Value *pop(Pickle *pickle)
{
    Value *value = top(pickle);
    if (value) pickle->depth--;
    return value;
}

static Value *top_of_kind(const Pickle *pickle, ValueKind kind)
{
    Value *value = top(pickle);
    if (!value || value->kind == kind) return value;
    pickle_error(pickle, "an instruction finds the wrong kind of value");
    return NULL;
}

static Value *pop_of_kind(Pickle *pickle, ValueKind kind)
{
    Value *value = top_of_kind(pickle, kind);
    if (value) pickle->depth--;
    return value;
}

/* Takes everything above the topmost mark, and the mark. The items stay readable until the next push. */
static int pop_to_mark(Pickle *pickle, Value ***items, size_t *count)
{
    size_t mark = pickle->depth;
    *items = pickle->stack;
    *count = 0;
    while (mark > 0 && pickle->stack[mark - 1]) mark--;
    if (mark == 0) return pickle_error(pickle, "there is no mark on its stack");
    *items = pickle->stack + mark;
    *count = pickle->depth - mark;
    pickle->depth = mark - 1;
    return 0;
}

static int list_append(const Pickle *pickle, Value *list, Value *item)
{
    if (grow(pickle, &list->list.items, list->list.count, &list->list.capacity) != 0) return -1;
    list->list.items[list->list.count++] = item;
    return 0;
}

static int list_append_all(const Pickle *pickle, Value *list, Value **items, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list_append(pickle, list, items[i]) != 0) return -1;
    return 0;
}

/* A tuple of the `count` topmost values, which it replaces. */
static int make_tuple(Pickle *pickle, size_t count)
{
    Value *items[3];
    for (size_t i = count; i-- > 0;)
        if (!(items[i] = pop(pickle))) return -1;
    Value *tuple = push_new(pickle, VALUE_TUPLE);
    return tuple ? list_append_all(pickle, tuple, items, count) : -1;
}

static int make_tuple_from_mark(Pickle *pickle)
{
    Value **items, *tuple;
    size_t count;
    if (pop_to_mark(pickle, &items, &count) != 0) return -1;
    size_t start = (size_t)(items - pickle->stack);
    /* The new tuple is pushed where the mark was, so the items above stay, but the stack itself may move. */
    if (!(tuple = push_new(pickle, VALUE_TUPLE))) return -1;
    return list_append_all(pickle, tuple, pickle->stack + start, count);
}

/* APPENDS and SETITEMS: what is above the mark goes into the list or dictionary below it. */
static int extend_from_mark(Pickle *pickle, ValueKind kind)
{
    Value **items, *target;
    size_t count;
    if (pop_to_mark(pickle, &items, &count) != 0 || !(target = top_of_kind(pickle, kind))) return -1;
    if (kind == VALUE_DICT && count % 2 != 0) return pickle_error(pickle, "a dictionary has a key without a value");
    return list_append_all(pickle, target, items, count);
}

/* SETITEM: dictionary key value -> dictionary. A key that comes twice shows up as a tensor that is there twice. */
static int set_item(Pickle *pickle)
{
    Value *value = pop(pickle), *key = value ? pop(pickle) : NULL;
    Value *target = key ? top_of_kind(pickle, VALUE_DICT) : NULL;
    if (!target || list_append(pickle, target, key) != 0) return -1;
    return list_append(pickle, target, value);
}

/* APPEND: list item -> list. */
static int append_item(Pickle *pickle)
{
    Value *item = pop(pickle), *target = item ? top_of_kind(pickle, VALUE_LIST) : NULL;
    return target ? list_append(pickle, target, item) : -1;
}

static int push_int(Pickle *pickle, ValueKind kind, int64_t integer)
{
    Value *value = push_new(pickle, kind);
    if (!value) return -1;
    value->integer = integer;
    return 0;
}

/* A two's complement integer of any length. More than 8 bytes: none that is needed is so large. */
static int push_long(Pickle *pickle, size_t bytes)
{
    const unsigned char *data = take(pickle, bytes);
    uint64_t bits = 0;
    if (!data) return -1;
    if (bytes > 8) return push_new(pickle, VALUE_OTHER) ? 0 : -1;
    if (bytes > 0 && data[bytes - 1] & 0x80) bits = UINT64_MAX;
    for (size_t i = bytes; i-- > 0;) bits = bits << 8 | data[i];
    return push_int(pickle, VALUE_INT, (int64_t)bits);
}

/* The text is not copied: the file stays mapped for longer than any value lives. */
static int push_text(Pickle *pickle, uint64_t bytes)
{
    const unsigned char *data = take(pickle, bytes);
    Value *value = data ? push_new(pickle, VALUE_TEXT) : NULL;
    if (!value) return -1;
    value->text = (Text){.at = (const char *)data, .length = (size_t)bytes};
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------- memo */

/* BINPUT and its kin: keeps the topmost value, which stays on the stack. torch numbers them from 0 up. */
static int memo_put(Pickle *pickle, size_t index)
{
    Value *value = top(pickle);
    if (!value) return -1;
    if (index >= PICKLE_MAX_MEMO) return pickle_error(pickle, "it remembers too many values");
    if (index >= pickle->memo_capacity) {
        size_t wanted = 2 * pickle->memo_capacity > index ? 2 * pickle->memo_capacity : index + 64;
        Value **larger = realloc(pickle->memo, wanted * sizeof *larger);
        if (!larger) return pickle_no_memory(pickle);
        memset(larger + pickle->memo_capacity, 0, (wanted - pickle->memo_capacity) * sizeof *larger);
        pickle->memo = larger;
        pickle->memo_capacity = wanted;
    }
    pickle->memo_count += pickle->memo[index] == NULL;
    pickle->memo[index] = value;
    return 0;
}

static int memo_get(Pickle *pickle, size_t index)
{
    if (index >= pickle->memo_capacity || !pickle->memo[index])
        return pickle_error(pickle, "it recalls a value that it never remembered");
    return push(pickle, pickle->memo[index]);
}

/* -------------------------------------------------------------------------------------------- functions and results */

static bool text_is(Text text, const char *expected)
{
    return text.length == strlen(expected) && memcmp(text.at, expected, text.length) == 0;
}

/* GLOBAL: the name of a function or class. A name that is not in GLOBALS ends it, before anything could be done with
 * it. */
static int push_global(Pickle *pickle, Text module, Text name)
{
    for (size_t i = 0; i < sizeof GLOBALS / sizeof *GLOBALS; i++) {
        if (!text_is(module, GLOBALS[i].module) || !text_is(name, GLOBALS[i].name)) continue;
        Value *value = push_new(pickle, VALUE_GLOBAL);
        if (!value) return -1;
        value->global = &GLOBALS[i];
        return 0;
    }
    return error_set(pickle->error, EXIT_FAILED,
                     "%.500s: would call %.*s.%.*s (only files of plain tensors are read, nothing was called)",
                     pickle->file->path, (int)(module.length < 100 ? module.length : 100), module.at,
                     (int)(name.length < 100 ? name.length : 100), name.at);
}

/* GLOBAL's two operands are lines of text. */
static int take_line(Pickle *pickle, Text *line)
{
    size_t left = (size_t)(pickle->end - pickle->at);
    const unsigned char *newline = left ? memchr(pickle->at, '\n', left) : NULL;
    if (!newline) return pickle_error(pickle, "it ends too early");
    *line = (Text){.at = (const char *)pickle->at, .length = (size_t)(newline - pickle->at)};
    pickle->at = newline + 1;
    return 0;
}

static int global(Pickle *pickle)
{
    Text module, name;
    if (take_line(pickle, &module) != 0 || take_line(pickle, &name) != 0) return -1;
    return push_global(pickle, module, name);
}

/* The same with both names on the stack (protocol 4). */
static int stack_global(Pickle *pickle)
{
    Value *name = pop_of_kind(pickle, VALUE_TEXT), *module = name ? pop_of_kind(pickle, VALUE_TEXT) : NULL;
    return module ? push_global(pickle, module->text, name->text) : -1;
}

/* A persistent id stands for a storage: ("storage", its class, key, device, numel), and in the legacy form a sixth: the
 * part of it that is meant, None for all. */
static int push_storage(Pickle *pickle)
{
    const Value *id = pop_of_kind(pickle, VALUE_TUPLE);
    if (!id) return -1;
    Value **item = id->list.items;
    if (id->list.count < 5 || id->list.count > 6 || item[0]->kind != VALUE_TEXT || !text_is(item[0]->text, "storage") ||
        item[1]->kind != VALUE_GLOBAL || item[1]->global->function != STORAGE || item[2]->kind != VALUE_TEXT ||
        item[4]->kind != VALUE_INT || item[4]->integer < 0)
        return pickle_error(pickle, "a persistent id does not describe a storage");
    if (id->list.count == 6 && item[5]->kind != VALUE_OTHER)
        return pickle_error(pickle, "a storage is a view of another one, which is not supported");
    Value *value = push_new(pickle, VALUE_STORAGE);
    if (!value) return -1;
    value->storage = (Storage){.type = item[1]->global, .key = item[2]->text, .numel = (size_t)item[4]->integer};
    return 0;
}

/* A shape or stride: a tuple of whole numbers. torch has no negative strides. */
static int take_sizes(const Pickle *pickle, const Value *tuple, size_t n_dims, size_t *sizes)
{
    if (tuple->kind != VALUE_TUPLE || tuple->list.count != n_dims)
        return pickle_error(pickle, "a tensor's shape or stride is not a tuple of the right length");
    for (size_t d = 0; d < n_dims; d++) {
        const Value *item = tuple->list.items[d];
        if (item->kind != VALUE_INT || item->integer < 0)
            return pickle_error(pickle, "a tensor's shape or stride holds something other than whole numbers");
        sizes[d] = (size_t)item->integer;
    }
    return 0;
}

/* _rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks) */
static int push_tensor(Pickle *pickle, const Value *arguments)
{
    Value **item = arguments->list.items;
    if (arguments->list.count < 4 || item[0]->kind != VALUE_STORAGE || item[1]->kind != VALUE_INT ||
        item[1]->integer < 0 || item[2]->kind != VALUE_TUPLE)
        return pickle_error(pickle, "a tensor is not described by storage, offset, shape and stride");
    if (item[2]->list.count > CHECKPOINT_MAX_DIMS) return pickle_error(pickle, "a tensor has more than 8 dimensions");
    Value *value = push_new(pickle, VALUE_TENSOR);
    if (!value) return -1;
    value->tensor.storage = item[0];
    value->tensor.offset = (size_t)item[1]->integer;
    value->tensor.n_dims = item[2]->list.count;
    if (take_sizes(pickle, item[2], value->tensor.n_dims, value->tensor.shape) != 0) return -1;
    return take_sizes(pickle, item[3], value->tensor.n_dims, value->tensor.strides);
}

/* REDUCE calls a function. These are all the functions there are. */
static int reduce(Pickle *pickle)
{
    Value *arguments = pop_of_kind(pickle, VALUE_TUPLE);
    Value *function = arguments ? pop_of_kind(pickle, VALUE_GLOBAL) : NULL;
    if (!function) return -1;
    switch (function->global->function) {
    case ORDERED_DICT:
        if (arguments->list.count != 0) return pickle_error(pickle, "an OrderedDict is made from arguments");
        return push_new(pickle, VALUE_DICT) ? 0 : -1;
    case REBUILD_TENSOR:
        return push_tensor(pickle, arguments);
    case REBUILD_PARAMETER: /* (tensor, requires_grad, hooks): the tensor */
        if (arguments->list.count == 0 || arguments->list.items[0]->kind != VALUE_TENSOR)
            return pickle_error(pickle, "a parameter is not made from a tensor");
        return push(pickle, arguments->list.items[0]);
    default:
        return pickle_error(pickle, "it calls a storage class");
    }
}

/* ----------------------------------------------------------------------------------------------------- instructions */

/* Instructions that carry a number or text behind them. 1: it was none of these. */
static int step_with_operand(Pickle *pickle, unsigned char opcode)
{
    /* The operand's bytes, which most instructions read as a little-endian number. */
    static const unsigned char operand_bytes[256] = {
        ['K'] = 1, ['M'] = 2, ['J'] = 4, [0x8a] = 1, ['X'] = 4, [0x8c] = 1, [0x8d] = 8, ['U'] = 1,
        ['T'] = 4, ['q'] = 1, ['r'] = 4, ['h'] = 1,  ['j'] = 4, [0x80] = 1, [0x95] = 8, ['G'] = 8,
    };
    size_t bytes = operand_bytes[opcode];
    if (bytes == 0) return 1;
    const unsigned char *operand = take(pickle, bytes);
    if (!operand) return -1;
    uint64_t number = 0;
    memcpy(&number, operand, bytes);
    switch (opcode) {
    case 'K': /* BININT1 */
    case 'M': /* BININT2 */
        return push_int(pickle, VALUE_INT, (int64_t)number);
    case 'J': /* BININT */
        return push_int(pickle, VALUE_INT, (int32_t)(uint32_t)number);
    case 0x8a: /* LONG1 */
        return push_long(pickle, (size_t)number);
    case 'X':  /* BINUNICODE */
    case 0x8c: /* SHORT_BINUNICODE */
    case 0x8d: /* BINUNICODE8 */
    case 'U':  /* SHORT_BINSTRING: a str of Python 2 */
    case 'T':  /* BINSTRING */
        return push_text(pickle, number);
    case 'q': /* BINPUT */
    case 'r': /* LONG_BINPUT */
        return memo_put(pickle, (size_t)number);
    case 'h': /* BINGET */
    case 'j': /* LONG_BINGET */
        return memo_get(pickle, (size_t)number);
    case 'G': /* BINFLOAT */
        return push_new(pickle, VALUE_OTHER) ? 0 : -1;
    case 0x80: /* PROTO */
        return number <= 5 ? 0 : pickle_error(pickle, "it is of an unknown protocol");
    default: /* FRAME: the length of what follows, for readers that buffer */
        return 0;
    }
}

/* One instruction. 0: go on; -1: the error is set. The letters are those of Python's pickletools. */
static int step(Pickle *pickle, unsigned char opcode)
{
    int status = step_with_operand(pickle, opcode);
    if (status <= 0) return status;
    switch (opcode) {
    case '(': /* MARK */
        return push(pickle, NULL);
    case '}': /* EMPTY_DICT */
        return push_new(pickle, VALUE_DICT) ? 0 : -1;
    case ']': /* EMPTY_LIST */
        return push_new(pickle, VALUE_LIST) ? 0 : -1;
    case ')': /* EMPTY_TUPLE */
        return make_tuple(pickle, 0);
    case 0x85: /* TUPLE1, TUPLE2, TUPLE3 */
    case 0x86:
    case 0x87:
        return make_tuple(pickle, (size_t)opcode - 0x84);
    case 't': /* TUPLE */
        return make_tuple_from_mark(pickle);
    case 'N': /* NONE */
        return push_new(pickle, VALUE_OTHER) ? 0 : -1;
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push_int(pickle, VALUE_BOOL, opcode == 0x88);
    case 'a': /* APPEND */
        return append_item(pickle);
    case 'e': /* APPENDS */
        return extend_from_mark(pickle, VALUE_LIST);
    case 's': /* SETITEM */
        return set_item(pickle);
    case 'u': /* SETITEMS */
        return extend_from_mark(pickle, VALUE_DICT);
    case 'c': /* GLOBAL */
        return global(pickle);
    case 0x93: /* STACK_GLOBAL */
        return stack_global(pickle);
    case 0x94: /* MEMOIZE */
        return memo_put(pickle, pickle->memo_count);
    case 'Q': /* BINPERSID */
        return push_storage(pickle);
    case 'R': /* REDUCE */
        return reduce(pickle);
    case 'b': /* BUILD sets attributes (_metadata of a state dict), which are not needed */
        return pop(pickle) && top(pickle) ? 0 : -1;
    default:
        return pickle_error(pickle, "it has an instruction that no file of tensors needs");
    }
}

/* Runs the program at [start, end) to its STOP, and returns what it leaves on the stack; pickle->at is behind it then.
 */
static const Value *pickle_run(Pickle *pickle, const MappedFile *file, const unsigned char *start,
                               const unsigned char *end, Error *error)
{
    *pickle = (Pickle){.file = file, .at = start, .end = end, .error = error};
    for (;;) {
        const unsigned char *opcode = take(pickle, 1);
        if (!opcode) return NULL;
        if (*opcode == '.') return top(pickle);
        if (step(pickle, *opcode) != 0) return NULL;
    }
}

/* ------------------------------------------------------------------------------------------------ values to tensors */

static const Value *dict_find(const Value *dict, const char *key)
{
    for (size_t i = 0; i + 1 < dict->list.count; i += 2) {
        const Value *name = dict->list.items[i];
        if (name->kind == VALUE_TEXT && text_is(name->text, key)) return dict->list.items[i + 1];
    }
    return NULL;
}

static bool dict_has_tensors(const Value *dict)
{
    for (size_t i = 1; i < dict->list.count; i += 2)
        if (dict->list.items[i]->kind == VALUE_TENSOR) return true;
    return false;
}

/* The state dict within what was saved: itself, or under the name that training scripts give it. */
static const Value *find_state_dict(const Value *root)
{
    static const char *const names[] = {"model_state_dict", "state_dict", "model", "module"};
    if (root->kind != VALUE_DICT) return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const Value *inner = dict_find(root, names[i]);
        if (inner && inner->kind == VALUE_DICT && dict_has_tensors(inner)) return inner;
    }
    return dict_has_tensors(root) ? root : NULL;
}

/* The storages are found by now, and have all the bytes that their numel asks for. */
static int add_tensor(Checkpoint *checkpoint, const MappedFile *file, Text name, const Value *value, Error *error)
{
    const Storage *storage = &value->tensor.storage->storage;
    StoredTensor tensor = {.file = file->path, .dtype = storage->type->dtype, .n_dims = value->tensor.n_dims};
    memcpy(tensor.shape, value->tensor.shape, sizeof tensor.shape);
    bool fits = tensor_set_row_major(&tensor) == 0 && value->tensor.offset <= storage->numel;
    if (!fits)
        return error_set(error, EXIT_FAILED, "%.500s: tensor %.*s: lies outside of its storage (%zu elements)",
                         file->path, (int)(name.length < 200 ? name.length : 200), name.at, storage->numel);
    memcpy(tensor.strides, value->tensor.strides, sizeof tensor.strides);
    tensor.data = storage->data + value->tensor.offset * storage->type->bytes;
    const unsigned char *end = storage->data + storage->numel * storage->type->bytes;
    return checkpoint_add(checkpoint, &tensor, name.at, name.length, end, error);
}

static int add_tensors(Checkpoint *checkpoint, const MappedFile *file, const Value *root, Error *error)
{
    if (root->kind == VALUE_TENSOR) return add_tensor(checkpoint, file, (Text){.at = ""}, root, error);
    const Value *dict = find_state_dict(root);
    if (!dict) return error_set(error, EXIT_FAILED, "%.700s: holds no dictionary of tensors", file->path);
    for (size_t i = 0; i + 1 < dict->list.count; i += 2) {
        const Value *name = dict->list.items[i], *value = dict->list.items[i + 1];
        if (value->kind != VALUE_TENSOR) continue;
        if (name->kind != VALUE_TEXT)
            return error_set(error, EXIT_FAILED, "%.700s: has a tensor whose name is not text", file->path);
        if (add_tensor(checkpoint, file, name->text, value, error) != 0) return -1;
    }
    return 0;
}

/* -------------------------------------------------------------------------------------------------------------- zip */

/* The parts of a zip file that matter here (PKWARE's APPNOTE.TXT), each with the offsets that are read below:
 *
 *     for each member:  local header    30 bytes  26 name length, 28 extra length; then name, extra field
 *                       data
 *     for each member:  directory entry 46 bytes  8 flags, 10 method, 20 stored bytes, 24 bytes, 28 name length,
 *                                                 30 extra length, 32 comment length, 42 place of the local header;
 *                                                 then name, extra field, comment
 *     zip64 end record  56 bytes  32 number of members, 40 bytes of the directory, 48 its place
 *     zip64 locator     20 bytes  8 place of the zip64 end record
 *     end record        22 bytes  10 number of members, 12 bytes of the directory, 16 its place, 20 comment length
 *
 * A local header may hold zeros for the sizes, so only the directory is believed. */
typedef struct {
    Text name;
    unsigned method, flags;
    uint64_t stored_bytes, bytes, local_header;
} ZipEntry;

typedef struct {
    const MappedFile *file;
    ZipEntry *entries; /* [count], sorted by name */
    size_t count;
} Zip;

/* What each record of a zip begins with: "PK" and two bytes. */
static const uint32_t ZIP_LOCAL = 0x04034b50, ZIP_DIRECTORY = 0x02014b50, ZIP_END = 0x06054b50;
static const uint32_t ZIP64_END = 0x06064b50, ZIP64_LOCATOR = 0x07064b50;

static int zip_error(Error *error, const MappedFile *file, const char *what)
{
    return error_set(error, EXIT_FAILED, "%.700s: damaged zip: %s", file->path, what);
}

static int compare_texts(Text a, Text b)
{
    int order = memcmp(a.at, b.at, a.length < b.length ? a.length : b.length);
    return order ? order : a.length < b.length ? -1 : a.length > b.length;
}

static int compare_entries(const void *a, const void *b)
{
    return compare_texts(((const ZipEntry *)a)->name, ((const ZipEntry *)b)->name);
}

/* The end record is the last 22 bytes, or before a comment of at most 65535 bytes. */
static const unsigned char *zip_end_record(const MappedFile *file)
{
    const size_t size = 22, longest_comment = 65535;
    for (size_t comment = 0; comment <= longest_comment && comment + size <= file->bytes; comment++) {
        const unsigned char *at = file->data + file->bytes - size - comment;
        if (read_u32(at) == ZIP_END && read_u16(at + 20) == comment) return at;
    }
    return NULL;
}

/* Where the central directory is: from the zip64 end record when there is one (torch always writes it), else from the
 * end record. */
static int zip_directory(const MappedFile *file, uint64_t *offset, uint64_t *bytes, uint64_t *count, Error *error)
{
    const unsigned char *end = zip_end_record(file);
    if (!end) return zip_error(error, file, "its end record is missing (the file is truncated?)");
    *count = read_u16(end + 10);
    *bytes = read_u32(end + 12);
    *offset = read_u32(end + 16);
    if (end - file->data >= 20 && read_u32(end - 20) == ZIP64_LOCATOR) {
        uint64_t place = read_u64(end - 20 + 8);
        if (file->bytes < 56 || place > file->bytes - 56 || read_u32(file->data + place) != ZIP64_END)
            return zip_error(error, file, "its zip64 end record is missing");
        *count = read_u64(file->data + place + 32);
        *bytes = read_u64(file->data + place + 40);
        *offset = read_u64(file->data + place + 48);
    }
    if (*offset > file->bytes || *bytes > file->bytes - *offset)
        return zip_error(error, file, "its directory lies outside of the file");
    if (*count > ZIP_MAX_ENTRIES) return zip_error(error, file, "it has too many members");
    return 0;
}

/* Sizes and offsets that do not fit in 32 bits are in the extra field with id 1, in this order. */
static void zip64_sizes(ZipEntry *entry, const unsigned char *extra, size_t bytes)
{
    uint64_t *fields[] = {&entry->bytes, &entry->stored_bytes, &entry->local_header};
    while (bytes >= 4) {
        size_t id = read_u16(extra), length = read_u16(extra + 2), at = 4;
        if (length > bytes - 4) return;
        for (size_t i = 0; i < 3 && id == 1; i++) {
            if (*fields[i] != UINT32_MAX || at + 8 > length + 4) continue;
            *fields[i] = read_u64(extra + at);
            at += 8;
        }
        extra += 4 + length;
        bytes -= 4 + length;
    }
}

/* Walks the directory; nothing of the members themselves is touched yet. */
static int zip_read_entries(Zip *zip, const unsigned char *at, const unsigned char *end, Error *error)
{
    for (size_t i = 0; i < zip->count; i++) {
        if (end - at < 46 || read_u32(at) != ZIP_DIRECTORY)
            return zip_error(error, zip->file, "its directory is cut short");
        size_t name = read_u16(at + 28), extra = read_u16(at + 30), comment = read_u16(at + 32);
        if ((size_t)(end - at) - 46 < name + extra + comment)
            return zip_error(error, zip->file, "its directory is cut short");
        ZipEntry *entry = &zip->entries[i];
        *entry = (ZipEntry){.name = {.at = (const char *)at + 46, .length = name},
                            .flags = read_u16(at + 8),
                            .method = read_u16(at + 10),
                            .stored_bytes = read_u32(at + 20),
                            .bytes = read_u32(at + 24),
                            .local_header = read_u32(at + 42)};
        zip64_sizes(entry, at + 46 + name, extra);
        at += 46 + name + extra + comment;
    }
    return 0;
}

/* Reads the directory and sorts it by name, for zip_find. zip->entries is to be freed, also after an error. */
static int zip_open(Zip *zip, const MappedFile *file, Error *error)
{
    uint64_t offset = 0, bytes = 0, count = 0;
    *zip = (Zip){.file = file};
    if (zip_directory(file, &offset, &bytes, &count, error) != 0) return -1;
    zip->entries = malloc((size_t)(count + 1) * sizeof *zip->entries);
    if (!zip->entries) return checkpoint_no_memory(error, file->path);
    zip->count = (size_t)count;
    if (zip_read_entries(zip, file->data + offset, file->data + offset + bytes, error) != 0) return -1;
    qsort(zip->entries, zip->count, sizeof *zip->entries, compare_entries);
    for (size_t i = 1; i < zip->count; i++)
        if (compare_entries(&zip->entries[i - 1], &zip->entries[i]) == 0)
            return zip_error(error, file, "two members have the same name");
    return 0;
}

/* The bytes of ROOT/FOLDER/NAME, which must be stored without compression. 1: there is no such member. */
static int zip_find(const Zip *zip, Text root, const char *folder, Text name, const unsigned char **data, size_t *bytes,
                    Error *error)
{
    char path[1024];
    const MappedFile *file = zip->file;
    if (root.length + strlen(folder) + name.length >= sizeof path) return 1;
    char *tail = path + root.length;
    memcpy(path, root.at, root.length);
    memcpy(tail, folder, strlen(folder));
    memcpy(tail + strlen(folder), name.at, name.length);
    ZipEntry wanted = {.name = {.at = path, .length = root.length + strlen(folder) + name.length}};
    const ZipEntry *entry = bsearch(&wanted, zip->entries, zip->count, sizeof wanted, compare_entries);
    if (!entry) return 1;
    if (entry->flags & 1) return zip_error(error, file, "a member is encrypted");
    if (entry->method != 0 || entry->stored_bytes != entry->bytes)
        return error_set(error, EXIT_FAILED, "%.500s: its member %.*s is compressed (torch stores members as they are)",
                         file->path, (int)(entry->name.length < 200 ? entry->name.length : 200), entry->name.at);
    if (file->bytes < 30 || entry->local_header > file->bytes - 30 ||
        read_u32(file->data + entry->local_header) != ZIP_LOCAL)
        return zip_error(error, file, "a member's header is missing");
    /* The local name and extra field need not be as long as those in the directory: torch pads here to align. */
    const unsigned char *header = file->data + entry->local_header;
    uint64_t start = entry->local_header + 30 + read_u16(header + 26) + read_u16(header + 28);
    if (start > file->bytes || entry->bytes > file->bytes - start)
        return error_set(error, EXIT_FAILED, "%.500s: is truncated: its member %.*s reaches beyond the end", file->path,
                         (int)(entry->name.length < 200 ? entry->name.length : 200), entry->name.at);
    *data = file->data + start;
    *bytes = (size_t)entry->bytes;
    return 0;
}

/* The folder in which everything is: the archive's name when it was saved. */
static int zip_root(const Zip *zip, Text *root, Error *error)
{
    static const char tail[] = "/data.pkl";
    const size_t length = sizeof tail - 1;
    size_t found = 0;
    for (size_t i = 0; i < zip->count; i++) {
        Text name = zip->entries[i].name;
        if (name.length < length || memcmp(name.at + name.length - length, tail, length) != 0) continue;
        if (memchr(name.at, '/', name.length - length)) continue;
        *root = (Text){.at = name.at, .length = name.length - length + 1};
        found++;
    }
    if (found == 1) return 0;
    return error_set(error, EXIT_FAILED, "%.700s: is not a torch file: a zip with %zu members data.pkl (expected 1)",
                     zip->file->path, found);
}

/* torch on a big-endian machine says so in ROOT/byteorder, and writes its numbers that way. */
static int zip_check_byte_order(const Zip *zip, Text root, Error *error)
{
    const unsigned char *data;
    size_t bytes;
    int status = zip_find(zip, root, "", (Text){.at = "byteorder", .length = 9}, &data, &bytes, error);
    if (status != 0) return status < 0 ? -1 : 0; /* older files do not say, and are little-endian */
    if (bytes == 6 && memcmp(data, "little", 6) == 0) return 0;
    return error_set(error, EXIT_FAILED,
                     "%.700s: its numbers are in the wrong byte order (expected little, found %.*s)", zip->file->path,
                     (int)(bytes < 20 ? bytes : 20), (const char *)data);
}

/* Gives every storage that the pickle mentions its bytes. Tied tensors mention the same key more than once. */
static int zip_find_storages(const Zip *zip, Text root, const Pickle *pickle, Error *error)
{
    for (Value *value = pickle->newest; value; value = value->older) {
        if (value->kind != VALUE_STORAGE) continue;
        Storage *storage = &value->storage;
        size_t bytes = 0, wanted;
        int shown = (int)(storage->key.length < 200 ? storage->key.length : 200);
        int status = zip_find(zip, root, "data/", storage->key, &storage->data, &bytes, error);
        if (status < 0) return -1;
        if (status == 1)
            return error_set(error, EXIT_FAILED, "%.500s: the data of storage %.*s is missing", zip->file->path, shown,
                             storage->key.at);
        if (__builtin_mul_overflow(storage->numel, storage->type->bytes, &wanted) || wanted > bytes)
            return error_set(error, EXIT_FAILED,
                             "%.500s: storage %.*s has too few bytes (expected %zu x %zu, found %zu)", zip->file->path,
                             shown, storage->key.at, storage->numel, storage->type->bytes, bytes);
    }
    return 0;
}

/* Each step sees only what the one before has checked; nothing is freed before the end, as all of it is borrowed. */
static int read_zip(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    Zip zip;
    Pickle pickle = {0};
    Text root, program = {.at = "data.pkl", .length = 8};
    const unsigned char *data;
    const Value *value = NULL;
    size_t bytes;
    int status = zip_open(&zip, file, error);
    if (status == 0) status = zip_root(&zip, &root, error);
    if (status == 0) status = zip_check_byte_order(&zip, root, error);
    if (status == 0) status = zip_find(&zip, root, "", program, &data, &bytes, error);
    if (status == 0) value = pickle_run(&pickle, file, data, data + bytes, error);
    status = value ? zip_find_storages(&zip, root, &pickle, error) : -1;
    if (status == 0) status = add_tensors(checkpoint, file, value, error);
    pickle_free(&pickle);
    free(zip.entries);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ legacy form */

/* The first pickle: protocol 2, the number 0x1950a86a20f9469cfc6c in 10 bytes, stop. */
static const unsigned char LEGACY_MAGIC[15] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                               0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
enum { LEGACY_PROTOCOL = 1001 };

static int compare_storages(const void *a, const void *b)
{
    return compare_texts((*(Storage *const *)a)->key, (*(Storage *const *)b)->key);
}

/* All storages that the pickle mentions, sorted by key; a tied one may be mentioned several times. */
static Storage **list_storages(const Pickle *pickle, size_t *count)
{
    *count = 0;
    for (Value *value = pickle->newest; value; value = value->older) *count += value->kind == VALUE_STORAGE;
    Storage **list = malloc((*count + 1) * sizeof *list);
    if (!list) return NULL;
    size_t i = 0;
    for (Value *value = pickle->newest; value; value = value->older)
        if (value->kind == VALUE_STORAGE) list[i++] = &value->storage;
    if (*count > 0) qsort(list, *count, sizeof *list, compare_storages);
    return list;
}

/* The first of the storages with this key; `count` when there is none. */
static size_t first_with_key(Storage *const *storages, size_t count, Text key)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_texts(storages[middle]->key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && compare_texts(storages[low]->key, key) == 0 ? low : count;
}

/* One storage behind the pickles: its numel in 8 bytes, then its data. Moves *at behind it. */
static int place_storage(const MappedFile *file, Storage *const *storages, size_t count, Text key,
                         const unsigned char **at, Error *error)
{
    size_t left = (size_t)(file->data + file->bytes - *at), first = first_with_key(storages, count, key), bytes;
    int shown = (int)(key.length < 200 ? key.length : 200);
    if (first == count || storages[first]->data)
        return error_set(error, EXIT_FAILED, "%.500s: its list of storages names %.*s, which is unknown or there twice",
                         file->path, shown, key.at);
    const Storage *storage = storages[first];
    if (left < 8 || read_u64(*at) != storage->numel ||
        __builtin_mul_overflow(storage->numel, storage->type->bytes, &bytes) || bytes > left - 8)
        return error_set(error, EXIT_FAILED,
                         "%.500s: storage %.*s: its data are damaged or truncated (expected %zu elements of %zu bytes)",
                         file->path, shown, key.at, storage->numel, storage->type->bytes);
    for (size_t i = first; i < count && compare_texts(storages[i]->key, key) == 0; i++) {
        if (storages[i]->numel != storage->numel || storages[i]->type != storage->type)
            return error_set(error, EXIT_FAILED, "%.500s: storage %.*s is described in two ways", file->path, shown,
                             key.at);
        storages[i]->data = *at + 8;
    }
    *at += 8 + bytes;
    return 0;
}

/* The storages lie behind one another in the order of the list, and only adding up their sizes tells where each begins.
 * Every storage that the object mentions must be in the list. */
static int place_storages(const Pickle *object, const Value *keys, const unsigned char *at, Error *error)
{
    const MappedFile *file = object->file;
    size_t count;
    Storage **storages = list_storages(object, &count);
    int status = storages ? 0 : checkpoint_no_memory(error, file->path);
    for (size_t i = 0; i < keys->list.count && status == 0; i++) {
        const Value *key = keys->list.items[i];
        status = key->kind == VALUE_TEXT
                     ? place_storage(file, storages, count, key->text, &at, error)
                     : error_set(error, EXIT_FAILED, "%.700s: its list of storages holds something else", file->path);
    }
    for (size_t i = 0; i < count && status == 0; i++)
        if (!storages[i]->data)
            status =
                error_set(error, EXIT_FAILED, "%.500s: the data of storage %.*s is missing", file->path,
                          (int)(storages[i]->key.length < 200 ? storages[i]->key.length : 200), storages[i]->key.at);
    free(storages);
    return status;
}

/* The pickles before the object: the protocol, and what kind of machine wrote the file. Moves *at behind them. */
static int read_legacy_preamble(const MappedFile *file, const unsigned char **at, Error *error)
{
    const unsigned char *end = file->data + file->bytes;
    Pickle pickle;
    *at = file->data + sizeof LEGACY_MAGIC;
    const Value *protocol = pickle_run(&pickle, file, *at, end, error);
    int status = protocol ? 0 : -1;
    if (protocol && (protocol->kind != VALUE_INT || protocol->integer != LEGACY_PROTOCOL))
        status = error_set(error, EXIT_FAILED, "%.700s: is of an unknown torch protocol (expected %d)", file->path,
                           LEGACY_PROTOCOL);
    *at = pickle.at;
    pickle_free(&pickle);
    if (status != 0) return -1;
    const Value *machine = pickle_run(&pickle, file, *at, end, error);
    const Value *little = machine && machine->kind == VALUE_DICT ? dict_find(machine, "little_endian") : NULL;
    if (!machine)
        status = -1;
    else if (!little || little->kind != VALUE_BOOL || !little->integer)
        status = error_set(error, EXIT_FAILED, "%.700s: its numbers are not little-endian", file->path);
    *at = pickle.at;
    pickle_free(&pickle);
    return status;
}

/* The two pickles stay alive until the tensors are listed: the names and storages belong to them. */
static int read_legacy(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    const unsigned char *at, *end = file->data + file->bytes;
    Pickle object = {0}, list = {0};
    if (read_legacy_preamble(file, &at, error) != 0) return -1;
    const Value *root = pickle_run(&object, file, at, end, error);
    const Value *keys = root ? pickle_run(&list, file, object.at, end, error) : NULL;
    int status = keys ? 0 : -1;
    if (keys && keys->kind != VALUE_LIST)
        status = error_set(error, EXIT_FAILED, "%.700s: its list of storages is missing", file->path);
    if (status == 0) status = place_storages(&object, keys, list.at, error);
    if (status == 0) status = add_tensors(checkpoint, file, root, error);
    pickle_free(&list);
    pickle_free(&object);
    return status;
}

/* -------------------------------------------------------------------------------------------------------- the faces */

bool torch_recognised(const MappedFile *file)
{
    if (file->bytes >= 4 && (memcmp(file->data, "PK\3\4", 4) == 0 || memcmp(file->data, "PK\5\6", 4) == 0)) return true;
    return file->bytes >= sizeof LEGACY_MAGIC && memcmp(file->data, LEGACY_MAGIC, sizeof LEGACY_MAGIC) == 0;
}

int torch_read(Checkpoint *checkpoint, const MappedFile *file, Error *error)
{
    return file->data[0] == 'P' ? read_zip(checkpoint, file, error) : read_legacy(checkpoint, file, error);
}
