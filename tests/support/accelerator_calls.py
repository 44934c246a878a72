"""Calls `benchmarks/accelerator.py` several times in a process, which imports JAX once.

`python tests/support/accelerator_calls.py CALLS`: CALLS is a JSON list of the words
of each call. The last line of the output is the list of the calls' exit codes.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))


def exit_code(words):
    """Of one call, which ends as it would in a process of its own."""
    import accelerator

    sys.argv = ["accelerator.py", *words]
    try:
        accelerator.main()
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    print([exit_code(words) for words in json.loads(sys.argv[1])])
