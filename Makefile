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
# And these with the shortest and the longest vectors there are, whatever the machine has: two doubles, and sixteen floats
# with the bf16 products of a processor that has such vectors.
NARROW    = test_kernels test_matmul_attention
WIDE      = test_kernels test_matmul_attention test_model
VARIANTS  = $(DOUBLE:%=double_%) $(NARROW:%=narrow_%) $(WIDE:%=wide_%)
# Test programs include the file they test, promot.c among them.
INCLUDED  = promot.c $(wildcard commands/*.c data/*.c data/demo/*.c)

# The kernels for a graphics card. Hopper has code of its own (sm_90a); the last entry is for cards yet to come.
GPU_CODE  = $(wildcard gpu/*.cu gpu/*.cuh tests/gpu_*.h)
GPU_PARTS = $(filter-out bench,$(patsubst gpu/%.cu,%,$(wildcard gpu/*.cu)))
GPU_TESTS = $(patsubst tests/%.cc,%,$(wildcard tests/test_gpu_*.cc))
ALL_TESTS = test_gpu_model $(GPU_TESTS) $(filter-out test_gpu_model,$(TESTS)) $(VARIANTS) # the longest first
NVCC     ?= nvcc
GPU_ARCH ?= $(foreach a,80 90a 100,-gencode=arch=compute_$(a),code=sm_$(a)) -gencode=arch=compute_80,code=compute_80
NVCC_    := $(NVCC) -std=c++17 -O3 $(GPU_ARCH) -Xcompiler -Wall,-Wextra -Xptxas -v,-warn-spills
CUDA     ?= $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC))))
CUDA_LIBS = -L$(CUDA)/lib64 -lcudart_static -ldl -lrt -lpthread

# One directory of objects for each way of building: plain, for another processor, with sanitizers.
B         = $(if $(filter native,$(ARCH)),build,build/$(ARCH))
SANITIZE  = -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: all demo bench test test-sanitized gpu gpu-check gpu-test gpu-bench setup help clean
all: promot

.PHONY: promot
promot: $(B)/promot
	@cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; } # a program that runs cannot be written to, but replaced

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
	$(C) $(EXTRA) -I. -DPROMOT_NO_MAIN -DBUILD='"$(B)/double"' -DPROMOT_DOUBLE -c $< -o $@.o
	$(CXX_) $(EXTRA) $(OPENMP) $@.o $(B)/libparts.a $(LIBS) -o $@

$(B)/narrow_%: tests/%.c $(HEADERS) $(INCLUDED) $(B)/libparts.a
	$(C) $(EXTRA) -I. -DPROMOT_NO_MAIN -DBUILD='"$(B)/narrow"' -DPROMOT_DOUBLE -DVECTOR_BYTES=16 -c $< -o $@.o
	$(CXX_) $(EXTRA) $(OPENMP) $@.o $(B)/libparts.a $(LIBS) -o $@

# -Wno-psabi: vectors longer than the machine's go between these functions only.
$(B)/wide_%: tests/%.c $(HEADERS) $(INCLUDED) $(B)/libparts.a
	$(C) $(EXTRA) -Wno-psabi -I. -DPROMOT_NO_MAIN -DBUILD='"$(B)/wide"' -DVECTOR_BYTES=64 -DBF16_IN_SOFTWARE -c $< -o $@.o
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

# The CUDA kernels run on the CPU here, in an emulator (tests/gpu_emulator.h), beside their twins of chapter 2.
$(B)/gpu_twins.o: tests/gpu_twins.c promot.c promot.h data/error.h tests/gpu_twins.h
	@mkdir -p $(@D)
	$(C) $(EXTRA) -I. -c $< -o $@

$(B)/test_gpu_%: tests/test_gpu_%.cc $(B)/gpu_twins.o $(GPU_CODE) $(HEADERS)
	$(CXX_) $(EXTRA) -Wno-unknown-pragmas -DGPU_EMULATOR -c $< -o $@.o
	$(CXX_) $(EXTRA) $(OPENMP) $@.o $(B)/gpu_twins.o -lm -o $@

# The whole program on the emulator's card.
$(B)/emulated/%.o: gpu/%.cu $(GPU_CODE) promot.h data/error.h
	@mkdir -p $(@D)
	$(CXX_) $(EXTRA) -Wno-unknown-pragmas -DGPU_EMULATOR -x c++ -c $< -o $@

$(B)/promot-emulated: promot.c $(wildcard commands/*.c) $(HEADERS) $(GPU_PARTS:%=$(B)/emulated/%.o) $(B)/libparts.a
	$(C) $(EXTRA) -DNDEBUG -DPROMOT_GPU -c promot.c -o $(B)/promot_emulated.o
	$(CXX_) $(EXTRA) $(OPENMP) $(B)/promot_emulated.o $(GPU_PARTS:%=$(B)/emulated/%.o) $(B)/libparts.a $(LIBS) -o $@

$(B)/test_gpu_model: $(B)/promot-emulated

test: promot $(ALL_TESTS:%=$(B)/%)
	@sh tests/run.sh $(ALL_TESTS:%=$(B)/%)

# Without warnings: the plain build has them as errors, and sanitizers make gcc see ghosts.
test-sanitized:
	@$(MAKE) B=build/sanitized CFLAGS=-O1 CXXFLAGS=-O1 WARNINGS= EXTRA="$(SANITIZE)" build-tests
	@sh tests/run.sh $(ALL_TESTS:%=build/sanitized/%)

.PHONY: build-tests
build-tests: $(ALL_TESTS:%=$(B)/%)

# The same engine on a graphics card: promot.c without chapter 2, and the kernels of gpu/ in its place.
gpu: $(B)/promot-gpu
	@cmp -s $< promot-gpu || { cp $< promot-gpu.new && mv promot-gpu.new promot-gpu; }

# The kernels for every kind of card. A warning, a register spilled to memory, or a wgmma that the assembler serialises
# (its advisories C75xx), is an error here; elsewhere another compiler may have its opinions.
gpu-check: $(GPU_PARTS:%=$(B)/gpu/%.o) $(B)/gpu/bench.o
	@! grep -E 'C75[0-9][0-9]|[1-9][0-9]* bytes spill|warning' $(^:=.log)

$(B)/gpu/%.o: gpu/%.cu $(GPU_CODE) promot.h data/error.h
	@mkdir -p $(@D)
	@echo "$(NVCC) -c $<"
	@$(NVCC_) -c $< -o $@ >$@.log 2>&1 || { cat $@.log; rm -f $@; exit 1; }

$(B)/promot-gpu: promot.c $(wildcard commands/*.c) $(HEADERS) $(GPU_PARTS:%=$(B)/gpu/%.o) $(B)/libparts.a | setup
	$(C) -DNDEBUG -DPROMOT_GPU -c promot.c -o $(B)/promot_gpu.o
	$(CXX_) $(OPENMP) $(B)/promot_gpu.o $(GPU_PARTS:%=$(B)/gpu/%.o) $(B)/libparts.a $(LIBS) $(CUDA_LIBS) -o $@

# On a machine with a card, with nothing but nvcc: the tests of gpu/ once more on the card itself, and its speed. They
# are compiled as the program is. Where one hangs, B=build/waits DIAGNOSE=-DPROMOT_BOUNDED_WAITS names the barrier.
DIAGNOSE ?=
$(B)/card_%: tests/%.cc $(B)/gpu_twins.o $(GPU_CODE) tests/test.h
	@echo "$(NVCC) -c $<"
	@$(NVCC_) $(DIAGNOSE) -I. -x cu -c $< -o $@.o >$@.log 2>&1 || { cat $@.log; exit 1; }
	$(CXX_) $(OPENMP) $@.o $(B)/gpu_twins.o $(CUDA_LIBS) -lm -o $@

gpu-test: $(GPU_TESTS:%=$(B)/card_%)
	@JOBS=1 sh tests/run.sh $^

# cuBLAS is the yardstick, where it is installed.
CUBLAS    = $(shell echo '\#include <cublas_v2.h>' | $(NVCC) -E -x cu - >/dev/null 2>&1 && echo -lcublas)
$(B)/gpu-bench: $(B)/gpu/bench.o $(GPU_PARTS:%=$(B)/gpu/%.o)
	$(CXX_) $^ $(CUDA_LIBS) $(CUBLAS) -o $@

# Hopper's large tiles made by two blocks together, to be measured beside one.
$(B)/gpu-bench-cluster: $(B)/gpu/bench.o $(B)/gpu/matmul_cluster.o $(patsubst %,$(B)/gpu/%.o,$(filter-out matmul_hopper,$(GPU_PARTS)))
	$(CXX_) $^ $(CUDA_LIBS) $(CUBLAS) -o $@

$(B)/gpu/matmul_cluster.o: gpu/matmul_hopper.cu $(GPU_CODE) promot.h data/error.h
	@mkdir -p $(@D)
	@echo "$(NVCC) -DMATMUL_CLUSTER=2 -c $<"
	@$(NVCC_) -DMATMUL_CLUSTER=2 -c $< -o $@ >$@.log 2>&1 || { cat $@.log; exit 1; }

gpu-bench: $(B)/gpu-bench
	@mkdir -p out
	@$< out/gpu_bench.json

help:
	@echo "make                 build ./promot"
	@echo "make demo            ProMoT on an embedded small model and task"
	@echo "make bench           speed, as shares of what the machine can do (BENCH=--quick: the short form)"
	@echo "make test            build and run all tests"
	@echo "make test-sanitized  the same tests under the address and undefined-behaviour sanitizers"
	@echo "make gpu             build ./promot-gpu, the same program on a graphics card (needs nvcc)"
	@echo "make gpu-check       compile the kernels for every kind of card, and look for spilled registers"
	@echo "make gpu-test        the kernels against their CPU twins, on a card (without one they run in the emulator: make test)"
	@echo "make gpu-bench       the kernels' speed beside cuBLAS, on a card"
	@echo "make clean           remove what was built"
	@echo "make ARCH=...        build for another processor (-march)"

clean:
	rm -rf build promot promot-gpu
