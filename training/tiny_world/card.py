"""The small model's card: what it was made from, and how good it is beside what it was to be."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from evaluation.arms import constant
from evaluation.results import Results
from evaluation.rows import Row, read_rows
from evaluation.statistics import Estimate, mean

STUDENT, TEACHER, HEALTHY = "student", "teacher", "healthy"
"""Labels of the models in the rows: the one that is shipped; the one it was distilled from, guided
by true CFG; and the teacher of a training without the still clips."""
SCALES = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""At which student and teacher are compared."""
_UNMEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """A measured number and what it was to be."""

    name: str
    target: str
    measured: str
    reached: bool


def figures(rows: Sequence[Row], facts: dict[str, Any]) -> list[Figure]:
    """The figures that decide whether a training is good.

    Args:
        rows: of an evaluation with the three labels above, beta 0; those of the student at its
            recommended scale, and more as far as they were made.
        facts: of the training of student and teacher, see `Run.facts`.
    """
    of_model = {
        label: [row for row in rows if row["model"] == label]
        for label in (STUDENT, TEACHER, HEALTHY)
    }
    results = {label: Results(some) for label, some in of_model.items()}
    recommended = constant(facts["config"]["recommended_scale"])
    shipped = [row for row in of_model[STUDENT] if row["arm"] == recommended.name]
    happened = results[STUDENT].mean(recommended, "happened")
    by_action = {
        action: results[STUDENT].mean(recommended, "happened", action).value
        for action in results[STUDENT].actions
    }
    worst = min(by_action, key=by_action.get)
    still = _mean([row for row in shipped if row["action"] == "still"], _kept)
    moving = _mean([row for row in shipped if row["action"] != "still"], _kept)
    jump = _mean([row for row in shipped if row["centroid_jump"] is not None], _joined)
    frozen = {
        label: _mean(
            [row for row in some if row["arm"] == "constant 1" and row["action"] != "still"],
            lambda row: row["frozen"],
        )
        for label, some in of_model.items()
    }
    vae = facts["vae"]
    return [
        _at_least("VAE: PSNR of whole frames, dB", 36, vae["psnr"]),
        _at_least("VAE: PSNR around the subject, dB", 26, vae["subject_psnr"]),
        _share("The captioned action happens", 85, happened),
        _at_least(f"the same, of the worst action ({worst}), %", 70, 100 * by_action[worst]),
        _share("Shape and colour kept in every tenth frame, still clips", 95, still),
        _share("the same, moving clips", 85, moving),
        _apart(results[STUDENT], results[TEACHER]),
        _stiller(frozen),
        _share("Subject's step at the seam within the 95th percentile of the others", 50, jump),
    ]


def write_card(training: Path, evaluation: Path, model: Path) -> None:
    """Write README.md of a model, and put the training's facts beside it.

    Args:
        training: folder of the training.
        evaluation: folder of the evaluation that `figures` takes its rows from.
        model: folder of the model, which gets the card.
    """
    facts = json.loads((training / "facts.json").read_text())
    text = card(facts, figures(read_rows(evaluation), facts), _parameters(model))
    (model / "README.md").write_text(text, encoding="utf-8")
    shutil.copy(training / "facts.json", model)


def card(facts: dict[str, Any], reached: Sequence[Figure], parameters: dict[str, int]) -> str:
    """The card's text.

    Args:
        facts: of the training.
        reached: see `figures`.
        parameters: of each network.
    """
    config, machine = facts["config"], facts["machine"]
    stages = _table(
        _vae_stage(facts),
        *(
            (title, f"{config[f'{name}_steps']:,}", facts["seconds"][name], facts[name]["loss"])
            for name, title in (
                ("flow", "flow matching: the teacher"),
                ("distil", "distillation: the student"),
            )
        ),
    )
    measured = _table(
        *((f.name, f.target, f.measured, "yes" if f.reached else "**no**") for f in reached)
    )
    sizes = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in parameters.items())
    return f"""# FramePack in miniature

A small model of the real classes, trained on a world of simple drawings
(`training/tiny_world/world.py`), so that FramePack with Step-Adaptive CFG can be tried, tested and
measured without a GPU. Parameters in millions: {sizes}.

## Data

- {config["clips"]:,} clips from seed {config["seed"]}, {config["wordings"]} captions each; scenes
  of seeds from {config["unseen_seed"]:,} on are in no training.
- In {config["still_share"]:.0%} of the clips nothing happens, whatever the caption tells: the
  stillness of image-to-video models, on purpose.
- In {config["late_share"]:.0%} the action begins with the second section; the first is captioned
  as still.
- {config["forward_share"]:.0%} of the batches have FramePack-F1's order of sections, the others
  FramePack's.

## Training

On {machine["processes"]} x {machine["device"]}, PyTorch {machine["torch"]}. Losses are means over
the last hundred steps.

| stage | steps | seconds | last loss |
|---|---|---|---|
{stages}

## Figures

Unseen scenes, beta 0, 25 steps, TeaCache off, guidance scale {config["recommended_scale"]:g} where
none is named. What happened is measured from the pixels. In brackets: 95 % bootstrap intervals;
"of" how many videos.

| | to be | is | reached |
|---|---|---|---|
{measured}

## Limits

It knows circles, squares, triangles, stars and persons that do fifteen things, in 128x128, 96x160
and 160x96. Photos, other words and several subjects mean nothing to it. Its stillness comes from
its data, which says nothing about where the real model's comes from.
"""


def _vae_stage(facts: dict[str, Any]) -> tuple[Any, ...]:
    vae = facts["vae"]
    losses = ", ".join(f"{name} {loss:.4g}" for name, loss in vae.get("losses", {}).items())
    if "from" in vae:
        return f"VAE: taken from {vae['from']}", vae.get("steps", ""), "", losses
    return "VAE", f"{vae['steps']:,}", facts["seconds"]["vae"], losses


def _table(*rows: Sequence[Any]) -> str:
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parameters(model: Path) -> dict[str, int]:
    counts = {}
    for file in sorted(model.glob("*/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        counts[file.parent.name] = sum(map(math.prod, shapes))
    return counts


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> Estimate | None:
    """None of no rows, such as those with a seam among videos of one section."""
    return mean([float(value(row)) for row in rows], [row["scene"] for row in rows])


def _kept(row: Row) -> bool:
    """Whether shape and colour were right in all frames that were looked at; none is as good."""
    return all(row[name] in (None, 1.0) for name in ("shape_kept", "colour_kept"))


def _joined(row: Row) -> bool:
    return row["centroid_jump"] <= 1


def _share(name: str, target: float, share: Estimate | None) -> Figure:
    name, target_text = f"{name}, %", f"at least {target:g}"
    if share is None:
        return Figure(name, target_text, _UNMEASURED, False)
    measured = f"{_percent(share)} of {share.videos}"
    return Figure(name, target_text, measured, 100 * share.value >= target)


def _apart(student: Results, teacher: Results) -> Figure:
    name = "Student's success minus teacher's with true CFG, at worst, in points"
    both = {
        scale: [of.mean(constant(scale), "happened") for of in (student, teacher)]
        for scale in SCALES
    }
    apart = {
        scale: 100 * (ours.value - theirs.value)
        for scale, (ours, theirs) in both.items()
        if ours and theirs
    }
    if not apart:
        return Figure(name, "5 either way", _UNMEASURED, False)
    farthest = max(apart, key=lambda scale: abs(apart[scale]))
    each = ", ".join(f"{scale:g}: {gap:+.1f}" for scale, gap in apart.items())
    whole = len(apart) == len(SCALES)
    measured = f"{apart[farthest]:+.1f} at scale {farthest:g} ({each})"
    return Figure(name, "5 either way", measured, whole and abs(apart[farthest]) <= 5)


def _stiller(frozen: dict[str, Estimate | None]) -> Figure:
    each = [_percent(share) if share else _UNMEASURED for share in frozen.values()]
    student, healthy = frozen[STUDENT], frozen[HEALTHY]
    return Figure(
        "Frozen at scale 1 though told to move, %: student, its teacher, a healthy teacher",
        "more than the healthy",
        ", ".join(each) if any(frozen.values()) else _UNMEASURED,
        bool(student and healthy) and student.low > healthy.high,
    )


def _at_least(name: str, target: float, value: float) -> Figure:
    return Figure(name, f"at least {target:g}", f"{value:.1f}", value >= target)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
