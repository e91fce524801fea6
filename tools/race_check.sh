#!/usr/bin/env bash
# Races of the compiled engines: the stress and the tests with threads, under ThreadSanitizer.
#
# tools/race_check.sh [SECONDS]: so long for each part of the stress. docs/races.md tells what it found.
# Without a GIL, since with one most of what could go wrong is kept apart by it.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-5}

skip() {
    echo "== races: skipped, $1"
    exit 0
}

free_threaded=$(command -v python3.13t || command -v python3.14t || true)
archive=$(ls ../shared/python3.*t-linux-x86_64.tar.xz 2>/dev/null | head -n 1 || true)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$free_threaded" ] && [ -n "$archive" ]; then
    tar -xf "$archive" -C "$folder"
    free_threaded=$(ls "$folder"/*/bin/python3.*t | head -n 1)
fi
[ -n "$free_threaded" ] || skip "no free-threaded interpreter (python3.13t) was found"

CC=${CC:-gcc}
library=$($CC -print-file-name=libtsan.so 2>/dev/null || true)
[ "${library#/}" != "$library" ] || skip "$CC has no libtsan"
# The tool wants the address space as it is without randomization.
plain=()
if setarch -R true 2>/dev/null; then
    plain=(setarch -R)
fi
export TSAN_OPTIONS="suppressions=$PWD/tools/tsan.supp ignore_noninstrumented_modules=1 \
history_size=7 exitcode=0 report_signal_unsafe=0"
watched() {
    "${plain[@]}" env LD_PRELOAD="$library" PYTHONPATH="$folder/tree/src" "$folder/venv/bin/python" "$@"
}

echo "== races: building with $CC -fsanitize=thread"
"$free_threaded" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'setuptools>=77' 'cython>=3.1' 'pytest>=8' 'pytest-timeout>=2.3' 'hypothesis<6.140'
# A copy, so that the modules in this folder stay as they are.
mkdir -p "$folder/tree" build
tar -c --exclude='*.so' --exclude='*.c' setup.py pyproject.toml README.md src tests tools \
    | tar -x -C "$folder/tree"
(cd "$folder/tree" && CC=$CC LDFLAGS=-fsanitize=thread \
    CFLAGS="-fsanitize=thread -g -include $folder/tree/tools/tsan_python.h" \
    "$folder/venv/bin/python" setup.py --quiet build_ext --inplace >"$folder/build.log" 2>&1) \
    || { tail -n 50 "$folder/build.log"; exit 1; }
(cd "$folder/tree" && watched -c 'import completionport.native.port.port' 2>"$folder/error") \
    || skip "the tool does not run here: $(tail -n 1 "$folder/error")"

report=$PWD/build/races.txt
cd "$folder/tree"
failed=0
echo "== races: stress"
for engine in io_uring epoll; do
    if watched -c "import sys; from completionport.engines import probe; \
sys.exit(not probe('$engine').usable)" 2>/dev/null; then
        watched tools/race_stress.py $engine "$seconds" 2>>"$folder/report" || failed=1
    fi
done
echo "== races: tests"
# The tool writes to the descriptor 2, past pytest. With the first thread it starts one of its own,
# which the tests must not take for one that was left behind. Left out: a test with a LD_PRELOAD of its own,
# those that end a server by a signal (the tool keeps it back while a thread is in a futex), and one that starts
# threads after a fork (the tool can't).
watched -c 'import sys, threading, pytest
first = threading.Thread(target=int)
first.start()
first.join()
sys.exit(pytest.main(sys.argv[1:]))' -q --capture=sys -p no:cacheprovider --timeout 300 --engine io_uring --engine epoll \
    tests/test_random.py tests/test_threads.py tests/test_pool.py tests/test_cancel_and_close.py \
    tests/test_timers.py tests/test_submit.py tests/test_datagram_server.py tests/test_strand.py \
    tests/test_slow_files.py tests/test_shutdown_and_sendfile.py tests/test_one_port.py \
    -k 'not nobody_waits_for_a_name_server and not serve_forever and not child_has_no_pool' \
    2>>"$folder/report" || failed=1

cp "$folder/report" "$report"
if grep -q 'WARNING: ThreadSanitizer' "$report"; then
    grep 'SUMMARY: ThreadSanitizer' "$report" | sort | uniq -c | sort -rn
    echo "== races: found, the whole reports are in build/races.txt"
    exit 1
fi
if [ $failed -ne 0 ]; then
    grep -v '^$' "$report" | tail -n 20
    echo "== races: none found, but something failed"
    exit 1
fi
echo "== races: none found"
