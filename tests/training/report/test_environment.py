"""A report says what made its numbers, for runs of all versions."""

from gbn_keras.training.report.environment import environment

OLD = {"wall_seconds": 1.0, "versions": {"keras": "3"}, "hardware": {"cores": 2}}
NEW = {
    "wall_seconds": 2.0,
    "commit": "abc",
    "versions": {"keras": "4"},
    "hardware": {"cores": 2, "instruction_sets": ["AVX2", "AVX-512"]},
}


def test_trainings_that_differ_are_told_with_all_values():
    assert environment(iter([OLD, NEW, NEW])) == {
        "keras": ["3", "4"],
        "cores": ["2"],
        "commit": ["abc"],
        "instruction_sets": ["AVX2, AVX-512"],
        "time of training": ["5 s"],
    }


def test_what_nobody_knows_is_left_out():
    unknown = OLD | {"hardware": {"processor": "", "instruction_sets": []}}
    assert list(environment([unknown])) == ["keras", "time of training"]
