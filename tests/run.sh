#!/bin/sh
# Runs test programs, as many at a time as there are cores (or JOBS of them), and ends with a line of the sum: N passed,
# N failed, N skipped. Each prints such a line of its own last; one that does not (a crash) counts as a failure.
export OMP_WAIT_POLICY=passive # threads that wait must not take the cores of a shared machine
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
programs=$#
printf '%s\n' "$@" | xargs -n 1 -P "$jobs" sh -c '
    line=$("$0" | tail -n 1)
    case "$line" in
    *" passed, "*" failed, "*" skipped") ;;
    *) line="ended before its end: 0 passed, 1 failed, 0 skipped" ;;
    esac
    echo "${0##*/}: $line"' | {
    passed=0 failed=0 skipped=0 ended=0
    while IFS= read -r line; do
        echo "$line"
        set -- ${line##*: }
        passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5)) ended=$((ended + 1))
    done
    failed=$((failed + programs - ended))
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
