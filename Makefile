# promot. `make` builds ./promot, `make demo` shows it at work, `make test` runs the tests. `make help` lists the rest.

ARCH     ?= native
CC       ?= cc
CXX      ?= c++
WARNINGS  = -Wall -Wextra -Wshadow -Werror
CFLAGS   ?= -O3
CXXFLAGS ?= -O2
C        := $(CC) -std=gnu11 $(CFLAGS) -g -march=$(ARCH) -fopenmp $(WARNINGS) -Wstrict-prototypes -Wmissing-prototypes
CXX_     := $(CXX) -std=c++17 $(CXXFLAGS) -g $(WARNINGS)
LIBS      = -lsentencepiece -lsentencepiece_train -lcjson -lutf8proc -lz -lm
ifeq ($(shell uname),Darwin)
# Apple's compiler takes OpenMP only this way, and brew keeps its libraries to itself.
BREW     := $(shell brew --prefix)
OPENMP    = -Xpreprocessor -fopenmp
C        := $(subst -fopenmp,$(OPENMP) -I$(BREW)/include -I$(BREW)/opt/libomp/include,$(C))
CXX_     += -I$(BREW)/include
LIBS     += -L$(BREW)/lib -L$(BREW)/opt/libomp/lib -lomp
else
OPENMP    = -fopenmp
endif

DATA      = checkpoint dataset dataset_files files lora_file metrics options prompt_file report results \
            safetensors study_report t5x task_rows tasks text_buffer torch_file unicode_text
HEADERS   = promot.h $(wildcard data/*.h data/demo/*.h tokenizer/*.h tests/*.h)
TESTS     = $(patsubst tests/%.c,%,$(wildcard tests/test_*.c)) fuzz_formats
# These run a second time with every number a double, for finite differences.
DOUBLE    = test_kernels test_lora test_matmul_attention test_mixed_prompts test_model
# Test programs include the file they test, promot.c among them.
INCLUDED  = promot.c $(wildcard commands/*.c data/*.c data/demo/*.c)

# One directory of objects for each way of building: plain, for another processor, with sanitizers.
B         = $(if $(filter native,$(ARCH)),build,build/$(ARCH))
SANITIZE  = -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: all demo bench test test-sanitized setup help clean
all: promot

.PHONY: promot
promot: $(B)/promot
	@cmp -s $< $@ || cp $< $@

$(B)/promot: promot.c $(wildcard commands/*.c) $(HEADERS) $(B)/libparts.a | setup
	$(C) -DNDEBUG -c promot.c -o $(B)/promot.o
	$(CXX_) $(OPENMP) $(B)/promot.o $(B)/libparts.a $(LIBS) -o $@

$(B)/libparts.a: $(DATA:%=$(B)/%.o) $(B)/tokenizer.o
	rm -f $@
	ar rcs $@ $^

$(B)/%.o: data/%.c $(HEADERS) | setup
	$(C) $(EXTRA) -c $< -o $@

$(B)/tokenizer.o: tokenizer/tokenizer.cc $(HEADERS) | setup
	$(CXX_) $(EXTRA) -c $< -o $@

$(B)/%: tests/%.c $(HEADERS) $(INCLUDED) $(B)/libparts.a
	$(C) $(EXTRA) -I. -DPROMOT_NO_MAIN -DBUILD='"$(B)"' -c $< -o $@.o
	$(CXX_) $(EXTRA) $(OPENMP) $@.o $(B)/libparts.a $(LIBS) -o $@

# It pretrains on the small world's text.
$(B)/test_train: $(B)/world

$(B)/double_%: tests/%.c $(HEADERS) $(INCLUDED) $(B)/libparts.a
	$(C) $(EXTRA) -I. -DPROMOT_NO_MAIN -DPROMOT_DOUBLE -c $< -o $@.o
	$(CXX_) $(EXTRA) $(OPENMP) $@.o $(B)/libparts.a $(LIBS) -o $@

# Is what the build needs there? If not, it is installed where that is possible, or the line to run is printed.
setup:
	@mkdir -p $(B) build && CC="$(CC)" CXX="$(CXX)" sh tests/setup.sh

# The main job on an embedded default: the paper's claim in miniature (commands/study_jobs.c).
demo: promot
	@rm -rf out/demo
	@./promot study --out out/demo

# How near the machine's limits, and beside PyTorch and CTranslate2 where a Python has them.
PYTHON   ?= python3
BENCH    ?=
bench: promot
	@mkdir -p out
	@./promot bench $(BENCH) --out out/bench.json
	@if $(PYTHON) -c 'import torch, transformers' 2>/dev/null; \
	then $(PYTHON) tests/bench_pytorch.py --against out/bench.json --out out/bench_pytorch.json; \
	else echo; echo "Nothing to compare with: $(PYTHON) has no torch and transformers (make bench PYTHON=...)"; fi

$(B)/world: data/demo/world.c data/demo/words.h | setup
	$(C) $< -o $@

test: promot $(TESTS:%=$(B)/%) $(DOUBLE:%=$(B)/double_%)
	@sh tests/run.sh $(TESTS:%=$(B)/%) $(DOUBLE:%=$(B)/double_%)

# Without warnings: the plain build has them as errors, and sanitizers make gcc see ghosts.
test-sanitized:
	@$(MAKE) B=build/sanitized CFLAGS=-O1 CXXFLAGS=-O1 WARNINGS= EXTRA="$(SANITIZE)" build-tests
	@sh tests/run.sh $(TESTS:%=build/sanitized/%) $(DOUBLE:%=build/sanitized/double_%)

.PHONY: build-tests
build-tests: $(TESTS:%=$(B)/%) $(DOUBLE:%=$(B)/double_%)

help:
	@echo "make                 build ./promot"
	@echo "make demo            ProMoT on an embedded small model and task"
	@echo "make bench           speed, as shares of what the machine can do (BENCH=--quick: the short form)"
	@echo "make test            build and run all tests"
	@echo "make test-sanitized  the same tests under the address and undefined-behaviour sanitizers"
	@echo "make clean           remove what was built"
	@echo "make ARCH=...        build for another processor (-march)"

clean:
	rm -rf build promot
