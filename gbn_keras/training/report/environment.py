"""What trainings ran on: commit, versions, hardware and time, for a reader."""

from collections.abc import Iterable


def environment(results: Iterable[dict]) -> dict[str, list[str]]:
    """All values of commit, versions and hardware, by name, and the time in all.

    Args:
        results: Outcomes of trainings, from `read_outcome`. Those of earlier versions
            do not know their commit.
    """
    seconds, rows = 0, {}
    for result in results:
        seconds += result["wall_seconds"]
        source = {"commit": result["commit"]} if "commit" in result else {}
        facts = source | result["versions"] | result["hardware"]
        for name, value in facts.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            if text and text not in rows.setdefault(name, []):
                rows[name].append(text)
    told = {name: texts for name, texts in rows.items() if texts}
    return told | {"time of training": [f"{seconds:,.0f} s"]}
