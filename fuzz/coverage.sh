#!/bin/sh
# rustc for the house's own crates, told to count what is reached: edges, and both sides of each comparison. As a wrapper of
# workspace members alone it leaves all other crates as the tests have built them; build scripts are not for the fuzzer.
case " $* " in
*" --crate-name hatchery_"*)
    coverage=-sanitizer-coverage
    exec "$@" -Cpasses=sancov-module -Cllvm-args=$coverage-level=4 -Cllvm-args=$coverage-inline-8bit-counters \
        -Cllvm-args=$coverage-pc-table -Cllvm-args=$coverage-trace-compares
    ;;
*)
    exec "$@"
    ;;
esac
