#!/bin/sh
# run_tests.sh PYTHON [ARGS]: run the tests on two cores; run those that failed once more, alone.
# A test that fails beside others and not alone has a race, in itself or in what it tests: it is named at the end, to be mended.
python=$1
shift
unset PYTHONDONTWRITEBYTECODE  # a thousand processes would each compile what they import
rm -f .pytest_cache/v/cache/lastfailed  # of another run
"$python" -m pytest -n 2 --dist worksteal --durations 40 --durations-min 3 "$@" && exit 0  # names the slowest, too
echo "Once more, alone: what failed beside other tests." >&2
"$python" -m pytest --last-failed --last-failed-no-failures none -p no:randomly "$@" || exit 1
echo "The tests above failed beside others and passed alone: find their races (CONTRIBUTING.md)." >&2
