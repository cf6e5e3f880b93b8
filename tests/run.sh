#!/bin/sh
# Runs test programs one after the other and ends with a line of the sum: N passed, N failed, N skipped.
# Each prints such a line of its own last; one that does not (a crash) counts as a failure.
export OMP_WAIT_POLICY=passive # threads that wait must not take the cores of a shared machine
passed=0 failed=0 skipped=0
for program in "$@"; do
    line=$("$program" | tail -n 1)
    case "$line" in
    *' passed, '*' failed, '*' skipped')
        echo "$(basename "$program"): $line"
        set -- $line
        passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5))
        ;;
    *)
        echo "$(basename "$program"): ended before its end"
        failed=$((failed + 1))
        ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
