#!/bin/sh
# The first call on a machine with a card: builds the tests and the benchmark of gpu/, runs and times everything, and
# prints a short table last. It needs nvcc, a C and a C++ compiler and make, nothing else; products are measured beside
# cuBLAS where that is installed.
#
#     sh gpu/on_a_card.sh LOGS [SECONDS]
#
# LOGS is a directory for the full output of every step. SECONDS is what all of it may take (570): later steps get what
# the earlier ones have left, and time for the benchmark is kept back.
#
# The order is from what everything stands on to what stands on it: the card and its memory; the instructions (TMA,
# wgmma) alone; products; attention; the kernels that wait for memory; the same under compute-sanitizer, if it is there;
# speed. Each test program is a process of its own under a timeout, and nothing stops after a failure: one that fails or
# hangs is run again test by test, so that its log names the guilty.
#
# Exit status: 0 when everything that ran is right, 1 when not, 2 for wrong usage.
set -u

usage() {
    echo "usage: sh gpu/on_a_card.sh LOGS [SECONDS]" >&2
    exit 2
}

case $# in 1 | 2) ;; *) usage ;; esac
case $1 in -* | '') usage ;; esac
case ${2:-570} in *[!0-9]* | '') usage ;; esac
seconds=${2:-570}
mkdir -p "$1" || exit 2
logs=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2

begun=$(date +%s)
build=build/card
table=$logs/table.txt
status=0
: >"$table"

order='device emulator matmul matmul_cluster attention rmsnorm elementwise head lora adafactor'
test_limit=90      # seconds for a test program,
one_limit=20       # for one of its tests,
sanitizer_limit=40 # for a program under a sanitizer,
bench_limit=150    # and for the benchmark: these are kept back for it

elapsed() { echo $(($(date +%s) - begun)); }

# What a step may take: its limit, or what is left beside the seconds that are kept back.
allowed() { # limit kept
    left=$((seconds - $2 - $(elapsed)))
    [ "$left" -lt "$1" ] && echo "$left" || echo "$1"
}

# A line of the table.
say() { # step verdict since what
    printf '%-34s %-9s %4s s  %s\n' "$1" "$2" "$(($(date +%s) - $3))" "$4" | tee -a "$table"
    case $2 in failed | hung | WRONG) status=1 ;; esac
}

missing() {
    echo "on_a_card: $1" >&2
    exit 1
}

# --- what is here

for tool in nvcc cc c++ make timeout; do
    command -v $tool >/dev/null 2>&1 || missing "$tool is missing"
done
command -v nvidia-smi >/dev/null 2>&1 || missing "no card (nvidia-smi is missing)"
nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version,power.limit,clocks.max.sm --format=csv,noheader \
    >"$logs/card.txt" 2>&1 || missing "no card ($(head -n 1 "$logs/card.txt"))"
echo "card: $(head -n 1 "$logs/card.txt")"

# Code for this card alone is compiled three times as fast as for all.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
[ "$capability" = 90 ] && capability=90a
code="-gencode=arch=compute_$capability,code=sm_$capability"
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
LD_LIBRARY_PATH=$cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
export OMP_WAIT_POLICY=passive

# --- build

names=$order
for file in tests/test_gpu_*.cc; do # those that the list above does not know come last
    name=$(basename "$file" .cc)
    name=${name#test_gpu_}
    case " $names " in *" $name "*) ;; *) names="$names $name" ;; esac
done
programs=
for name in $names; do
    [ -f "tests/test_gpu_$name.cc" ] && programs="$programs $build/card_test_gpu_$name"
done

benches=$build/gpu-bench
[ "$capability" = 90a ] && benches="$benches $build/gpu-bench-cluster"

since=$(date +%s)
# shellcheck disable=SC2086
timeout "$(allowed 400 0)" make -k -j "$(getconf _NPROCESSORS_ONLN)" B="$build" GPU_ARCH="$code" CUDA="$cuda" WARNINGS= \
    $benches $programs >"$logs/build.log" 2>&1
built=$?
if [ $built = 0 ]; then
    say build passed "$since" "$(nvcc --version | sed -n 's/.*release //p')"
else
    say build failed "$since" "status $built: see build.log; what was built is run"
fi

# --- the tests

# Runs a command under a timeout into a log; sets verdict and last, the last line of its output. A test program ends
# with "N passed, N failed, N skipped".
try() { # limit log command…
    limit=$1 log=$2
    shift 2
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    code_of=$?
    last=$(tail -n 1 "$log" | cut -c 1-120)
    case $code_of in
    0) verdict=passed ;;
    124 | 137) verdict=hung last="after $limit s; $last" ;;
    *) verdict=failed ;;
    esac
}

# Test by test: which of them fails?
narrow() { # program log
    timeout "$one_limit" "$1" --list 2>/dev/null | sed '$d' >"$2.list" # without the line of sums
    while IFS= read -r test; do
        limit=$(allowed "$one_limit" "$bench_limit")
        if [ "$limit" -lt 5 ]; then
            say "    $test" 'not run' "$(date +%s)" 'no time'
            continue
        fi
        since=$(date +%s)
        try "$limit" "$2.one" "$1" "$test"
        { echo "=== $test"; cat "$2.one"; } >>"$2"
        [ "$verdict" = passed ] && [ "$last" = '1 passed, 0 failed, 0 skipped' ] && continue
        say "    $test" "$verdict" "$since" "$(grep -v '^  FAILED' "$2.one" | head -n 1 | cut -c 1-100)"
    done <"$2.list"
    rm -f "$2.list" "$2.one"
}

for program in $programs; do
    name=$(basename "$program")
    name=${name#card_}
    since=$(date +%s)
    limit=$(allowed $test_limit $bench_limit)
    if [ ! -x "$program" ]; then
        say "$name" 'not run' "$since" 'not built'
        status=1
    elif [ "$limit" -lt 5 ]; then
        say "$name" 'not run' "$since" 'no time'
    else
        try "$limit" "$logs/$name.log" "$program"
        say "$name" "$verdict" "$since" "$last"
        [ "$verdict" = passed ] || narrow "$program" "$logs/$name.log"
    fi
done

# --- the same under compute-sanitizer: first bad addresses, then races in shared memory

sanitizer=$(command -v compute-sanitizer || ls "$cuda/bin/compute-sanitizer" 2>/dev/null)
for tool in memcheck racecheck; do
    for program in $programs; do
        name=$(basename "$program")
        name="$tool ${name#card_test_gpu_}"
        since=$(date +%s)
        limit=$(allowed $sanitizer_limit $bench_limit)
        if [ -z "$sanitizer" ]; then
            say "$tool" 'not run' "$since" 'compute-sanitizer is not here'
            break
        fi
        [ -x "$program" ] || continue
        if [ "$limit" -lt 10 ]; then
            say "$name" 'not run' "$since" 'no time'
            continue
        fi
        log="$logs/$(echo "$name" | tr ' ' '_').log"
        # Some tests ask for more memory than there is: an answer is no error.
        try "$limit" "$log" "$sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 99 "$program"
        summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|not supported|Error:' "$log" | tail -n 1 | sed 's/^=* *//')
        # Under a sanitizer a program may be too slow to reach its end: what it did until then counts.
        if [ "$verdict" = hung ]; then
            errors=$(grep -cE '=+ +(Invalid|Error|Race|Uninit)' "$log")
            if [ "$errors" = 0 ]; then verdict=stopped; else verdict=failed; fi
            summary="$errors errors until it was stopped after $limit s"
        fi
        if grep -q 'not supported' "$log"; then verdict='not run'; fi # some virtual machines hide what it needs
        say "$name" "$verdict" "$since" "${summary:-$last}"
    done
done

# --- speed

measure() { # name command…
    name=$1
    shift
    since=$(date +%s)
    limit=$(allowed $bench_limit 0)
    if [ ! -x "$1" ]; then
        say "$name" 'not run' "$since" 'not built'
        status=1
    elif [ "$limit" -lt 20 ]; then
        say "$name" 'not run' "$since" 'no time'
    else
        try "$limit" "$logs/$name.log" "$@"
        say "$name" "$verdict" "$since" "$last"
    fi
}

measure bench $build/gpu-bench "$logs/bench.json"

# Hopper's large tiles made by two blocks together: products only.
[ "$capability" = 90a ] && measure bench_cluster $build/gpu-bench-cluster --only products "$logs/bench_cluster.json"

# --- last: the marks, and the table once more in one piece

sed -n '/^The marks/,$p' "$logs/bench.log" 2>/dev/null
printf '\n%s\n\n' "$(head -n 1 "$logs/card.txt"), $(elapsed) s of $seconds"
cat "$table"
if grep -q ' hung ' "$table"; then
    echo 'make gpu-test B=build/waits DIAGNOSE=-DPROMOT_BOUNDED_WAITS names the barrier at which a test hangs'
fi
exit $status
