import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from evaluation.arms import constant
from evaluation.rows import FIELDS, Part
from training.tiny_world.card import HEALTHY, SCALES, STUDENT, TEACHER, card, figures, write_card
from training.tiny_world.config import MINIATURE_TRAINING, TrainingConfig
from training.tiny_world.model import MINIATURE, build, save

SCALE = MINIATURE_TRAINING.recommended_scale
SCENES = 20


def facts(**vae: float) -> dict[str, Any]:
    return {
        "config": asdict(MINIATURE_TRAINING),
        "machine": {"device": "a GPU", "processes": 1, "torch": "2"},
        "seconds": {"vae": 1.5, "flow": 20.0, "distil": 3.0},
        "vae": {"losses": {"pixels": 0.1}, "steps": 5, "psnr": 37.0, "subject_psnr": 27.0} | vae,
        "flow": {"loss": 0.25},
        "distil": {"loss": 0.125},
    }


def rows(change: dict[tuple, dict] | None = None) -> list[dict]:
    """Of a training that reaches everything, but for a change by model, scale, action and scene;
    None is any of them."""
    made = []
    plan = [(STUDENT, s) for s in (SCALE, *SCALES)] + [(TEACHER, s) for s in SCALES]
    for model, scale in [*plan, (HEALTHY, 1.0)]:
        arm = constant(scale)
        for action in ("still", "fade", "up"):
            for scene in range(SCENES):
                stuck = scale == 1 and scene < SCENES // 2 and model != HEALTHY
                row = dict.fromkeys(FIELDS) | {
                    "model": model,
                    "setting": "true CFG" if model == TEACHER else "distilled guidance",
                    "case": "a case",
                    "action": action,
                    "scene": str(scene),
                    "noise": "1",
                    "clip": f"{action}-{scene}",
                    "arm": arm.name,
                    "kind": arm.kind,
                    "base": arm.base,
                    "beta": 0.0,
                    "mean": arm.mean,
                    "happened": float(not stuck or action == "still"),
                    "frozen": float(stuck or action == "still"),
                    "shape_kept": None if action == "fade" else 1.0,
                    "colour_kept": None if action == "fade" else 1.0,
                    "centroid_jump": None if action == "fade" else 0.5,
                }
                for key, values in (change or {}).items():
                    known = (model, scale, action, scene)
                    if all(k in (None, is_) for k, is_ in zip(key, known, strict=True)):
                        row |= values
                made.append(row)
    return made


JUMPS = {
    (STUDENT, SCALE, action, scene): {"centroid_jump": 1.1}
    for action in ("still", "up")
    for scene in range(11)
}


def test_a_good_training_reaches_everything():
    reached = figures(rows(), facts())
    assert all(figure.reached for figure in reached), reached
    measured = [figure.measured for figure in reached]
    assert measured[:3] == ["37.0", "27.0", "100.0 [100.0, 100.0] of 60"]
    assert measured[6].startswith("+0.0 at scale 1 (1: +0.0, 2: +0.0,")
    student, teacher, healthy = measured[7].split("], ")
    assert student.split()[0] == teacher.split()[0] == "50.0"
    assert healthy == "0.0 [0.0, 0.0]"


@pytest.mark.parametrize(
    ("number", "change", "vae", "measured"),
    [
        (0, {}, {"psnr": 35.9}, "35.9"),
        (1, {}, {"subject_psnr": 25.0}, "25.0"),
        (2, {(STUDENT, SCALE, None, s): {"happened": 0.0} for s in range(4)}, {}, "80.0 ["),
        (3, {(STUDENT, SCALE, "up", s): {"happened": 0.0} for s in range(7)}, {}, "65.0"),
        (4, {(STUDENT, SCALE, "still", s): {"shape_kept": 0.9} for s in range(2)}, {}, "90.0 ["),
        (5, {(STUDENT, SCALE, "up", s): {"colour_kept": 0.9} for s in range(8)}, {}, "80.0 ["),
        (6, {(TEACHER, 6.0, None, s): {"happened": 0.0} for s in range(2)}, {}, "+10.0 at scale 6"),
        (6, {(STUDENT, 4.0, None, s): {"happened": 0.0} for s in range(2)}, {}, "-10.0 at scale 4"),
        (7, {(HEALTHY, 1.0, None, s): {"frozen": 1.0} for s in range(10)}, {}, "50.0 ["),
        (8, JUMPS, {}, "45.0 ["),
    ],
)
def test_what_falls_short_is_told(number, change, vae, measured):
    reached = figures(rows(change), facts(**vae))
    assert not reached[number].reached
    assert measured in reached[number].measured
    others = {i for i, figure in enumerate(reached) if not figure.reached} - {number}
    assert not others, [reached[i] for i in others]


def test_without_a_seam_there_is_none_to_measure():
    change = {(STUDENT, SCALE, None, None): {"centroid_jump": None}}
    seam = figures(rows(change), facts())[8]
    assert (seam.measured, seam.reached) == ("not measured", False)


def test_what_was_not_run_is_not_measured():
    alone = [row for row in rows() if row["model"] == STUDENT and row["base"] == SCALE]
    apart, stiller = figures(alone, facts())[6:8]
    assert (apart.measured, apart.reached) == ("not measured", False)
    assert (stiller.measured, stiller.reached) == ("not measured", False)

    some = [row for row in rows() if row["model"] != TEACHER or row["base"] in (1.0, 4.0)]
    apart = figures(some, facts())[6]
    assert (apart.measured, apart.reached) == ("+0.0 at scale 1 (1: +0.0, 4: +0.0)", False)


def test_the_worst_action_is_named():
    change = {(STUDENT, SCALE, "up", s): {"happened": 0.0} for s in range(3)}
    assert "(up)" in figures(rows(change), facts())[3].name


def test_the_card_stands_beside_the_weights(tmp_path):
    training, model = tmp_path / "training", tmp_path / "model"
    training.mkdir()
    (training / "facts.json").write_text(json.dumps(facts(psnr=30.5)))
    Part(tmp_path / "check" / "parts" / "0.csv").append(rows())
    components = build(MINIATURE, 0)
    save(components, model, 128, {}, "", torch.zeros(17, 3))
    write_card(training, tmp_path / "check", model)
    assert (model / "facts.json").read_text() == (training / "facts.json").read_text()
    text = (model / "README.md").read_text()
    count = sum(p.numel() for p in components["vae"].parameters())
    assert f"vae {count / 1e6:.2f}" in text
    assert f"In {TrainingConfig.still_share:.0%} of the clips nothing happens" in text
    assert "| VAE | 5 | 1.5 | pixels 0.1 |" in text
    assert "| flow matching: the teacher | 3 | 20 | 0.25 |" in text
    assert "| VAE: PSNR of whole frames, dB | at least 36 | 30.5 | **no** |" in text
    assert text.count("| yes |") == 8


def test_a_vae_from_elsewhere_is_told():
    known = facts()
    known["vae"] |= {"from": "another"}
    assert "| VAE: taken from another | 5 |  | pixels 0.1 |" in card(known, [], {})
