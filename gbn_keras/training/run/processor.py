"""The model of the processor and its instruction sets, which rounding depends on."""

import pathlib
import platform

# Those that TensorFlow's kernels choose between, by the names that Linux has for them.
_INSTRUCTION_SETS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}


def processor(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> dict:
    """The `processor`, and the `instruction_sets` that matter, as far as they are told.

    Args:
        cpuinfo: Linux's file about the processors. Elsewhere, Python knows the name of
            the model at most, and the list of instruction sets is empty.
    """
    if not cpuinfo.is_file():
        return {"processor": platform.processor(), "instruction_sets": []}
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    # The first processor's, because the others are like it.
    facts = {}
    for name, _, value in lines:
        facts.setdefault(name.strip(), value.strip())
    has = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "instruction_sets": [
            name for flag, name in _INSTRUCTION_SETS.items() if flag in has
        ],
    }
