from dataclasses import replace

import pytest

from evaluation.arms import Arm, Levers, constant
from evaluation.results import Results
from evaluation.rows import FIELDS

SCHEDULE = Arm("schedule", 6.0, 0.8, 3.0)
REVERSED = Arm("reversed", 6.0, 0.8, 3.0)
SOFT = replace(constant(6.0), levers=Levers(0.25, 0.95, "start"))
SOFT_SCHEDULE = replace(SCHEDULE, levers=Levers(history_low_pass=0.5))
WITH_LEVERS = {SOFT: (1, 1, 1, 1), SOFT_SCHEDULE: (1, 1, 1, 1)}
HAPPENED = {
    constant(6.0): (0, 0, 0, 1),
    SCHEDULE: (1, 1, 0, 1),
    constant(3.0): (1, 0, 0, 1),
    REVERSED: (0, 0, 0, 0),
}
"""In four scenes."""


def rows(
    models=("s0",),
    actions=("fade", "leave"),
    setting="distilled guidance",
    happened_in=HAPPENED,
) -> list[dict]:
    return [
        dict.fromkeys(FIELDS)
        | {
            "model": model,
            "setting": setting,
            "case": "disappearance" if action in ("fade", "leave") else "scene change",
            "action": action,
            "scene": str(seed),
            "noise": "7",
            "clip": f"{action}-{seed:03d}",
            "prompt": "the <b>ball</b> vanishes",
            **arm.columns,
            "happened": float(happened),
            "delay": 0.5 if happened else None,
            "frozen": float(not happened),
            "shape_kept": 1.0,
            "motion": 1.0 + happened,
        }
        for model in models
        for action in actions
        for arm, results in happened_in.items()
        for seed, happened in enumerate(results)
    ]


def test_means_and_what_is_known():
    results = Results(rows())
    assert results.arms == [constant(3.0), constant(6.0), SCHEDULE, REVERSED]
    assert results.metrics == ["happened", "delay", "frozen", "shape_kept", "motion"]
    assert results.outcome == "happened"
    assert results.mean(constant(6.0), "happened").value == 0.25
    assert results.mean(constant(6.0), "happened").videos == 8
    assert results.mean(constant(6.0), "sharpness") is None
    assert results.mean(constant(5.0), "happened") is None


def test_differences_are_paired():
    results = Results(rows())
    assert results.against(SCHEDULE, SCHEDULE.baseline, "happened").value == 0.5
    assert results.against(SCHEDULE, SCHEDULE.control, "happened").value == 0.25
    assert results.against(REVERSED, REVERSED.control, "happened").value == -0.5
    # Only the last scene has a delay with both.
    assert results.against(SCHEDULE, SCHEDULE.baseline, "delay", "fade").videos == 1


def test_motion_is_compared_by_ratio():
    ratio = Results(rows()).against(SCHEDULE, SCHEDULE.baseline, "motion")
    assert ratio.value == pytest.approx((2 + 2 + 1 + 2) / (1 + 1 + 1 + 2))


def test_low_passes_are_compared_with_none():
    results = Results(rows(happened_in=HAPPENED | WITH_LEVERS))
    assert results.with_levers == [SOFT, SOFT_SCHEDULE] == results.arms[-2:]
    assert results.of_kind("constant", "schedule") == [constant(3.0), constant(6.0), SCHEDULE]
    assert results.against(SOFT, SOFT.control, "happened").value == 0.75
    assert results.against(SOFT_SCHEDULE, SOFT_SCHEDULE.control, "happened").value == 0.25
    assert results.against(SOFT_SCHEDULE, SOFT_SCHEDULE.baseline, "happened").value == 0.75


def test_other_noise_or_another_model_makes_no_pair():
    made = rows()
    for row in made:
        if row["arm"] == SCHEDULE.name:
            row["noise"] = "8" if row["action"] == "fade" else row["noise"]
            row["model"] = "s1" if row["action"] == "leave" else row["model"]
    assert Results(made).against(SCHEDULE, SCHEDULE.control, "happened") is None


def test_scopes_and_models():
    made = rows(models=("s0", "s1"), actions=("fade", "night"))
    for row in made:
        if row["model"] == "s1" and row["arm"] == SCHEDULE.name and row["action"] == "night":
            row["happened"] = 0.0
    results = Results(made)
    assert (results.models, results.cases) == (["s0", "s1"], ["disappearance", "scene change"])

    def difference(*scope_and_model) -> float:
        return results.against(SCHEDULE, SCHEDULE.control, "happened", *scope_and_model).value

    assert difference("fade") == difference("disappearance") == 0.25
    assert difference("night", "s0") == 0.25
    assert difference("night", "s1") == -0.5
    assert difference("scene change") == pytest.approx((0.25 - 0.5) / 2)
    assert difference() == pytest.approx((3 * 0.25 - 0.5) / 4)


def test_scenes_are_what_is_resampled():
    """More models and actions of the same scenes, with the same results, tell nothing new."""
    few, many = Results(rows(actions=("fade",))), Results(rows(models=("s0", "s1", "s2")))
    a, b = (some.against(SCHEDULE, SCHEDULE.control, "happened") for some in (few, many))
    assert (a.low, a.high, a.videos) == (0, 0.75, 4)
    assert (b.low, b.high, b.videos) == (0, 0.75, 24)
