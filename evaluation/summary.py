"""The files of an evaluation that people read."""

import logging
from collections.abc import Sequence
from pathlib import Path

from diffusers_helper.errors import UserError
from evaluation.arms import Arm
from evaluation.page import write_page
from evaluation.plots import write_plots
from evaluation.results import ALL, RATIOS, Results
from evaluation.rows import Row, read_rows, write_rows
from evaluation.statistics import Estimate

logger = logging.getLogger(__name__)

_SHOWN = {
    "happened": ("happened, %", 100, 0),
    "delay": ("delay, s", 1, 2),
    "extent": ("extent", 1, 2),
    "frozen": ("frozen, %", 100, 0),
    "shape_kept": ("shape kept, %", 100, 0),
    "colour_kept": ("colour kept, %", 100, 0),
    "ghosting": ("ghosting, %", 100, 0),
    "centroid_jump": ("centroid jump", 1, 2),
    "stf": ("STF", 1, 2),
    "motion": ("motion, pixels a frame", 1, 2),
    "subject_similarity": ("subject similarity", 1, 3),
    "encoder_similarity": ("encoder similarity", 1, 4),
    "seam_jump": ("seam jump", 1, 2),
    "sharpness": ("sharpness", 1, 3),
}
"""Title, factor and decimals of each metric."""
_SIDE_EFFECTS = ("frozen", "motion", "shape_kept", "colour_kept", "encoder_similarity")
"""Metrics in the first table, besides the outcome."""
_OF_CHANGES = ("stf", "ghosting", "delay")
"""Before these, where prompts change."""
_PREFACE = """
In brackets: 95 % bootstrap intervals, scenes resampled, all models pooled. "Minus base" and "minus
control" are paired differences, over the same model, scene, caption and noise. The base is its
constant, without levers. The control of a schedule is the constant at its mean over the steps,
which its reversal shares; that of a lever (a low-pass, the prompt gate) is the same guidance
without. A column with the name of a model has its own "minus control". Of motion the ratio is taken
instead (x). The delay is compared where the action happened in both.
"""
_PREFACE_OF_CHANGES = """
Here prompts change on the way. What happened is judged from the change on, and the delay is the
time from it. STF: the rise of similarity to the new prompt minus that to the old one, from the half
second before the change to the last of the new prompt; where the truth is known, 2 is perfect and 0
is no change. Ghosting: contrast of what is left of a subject that should be gone
(docs/transitions.md).
"""


def write_summary(folder: Path) -> None:
    """Write results.csv, summary.md, the plots and index.html of an evaluation.

    Raises:
        UserError: there is nothing in `folder`.
    """
    rows = read_rows(folder)
    if not rows:
        raise UserError(f"{folder} holds no measured video yet.")
    write_rows(rows, folder / "results.csv")
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row["setting"], []).append(row)
    results = {setting: Results(some) for setting, some in by_setting.items()}
    plots = write_plots(results, folder)
    if not plots:
        logger.warning("matplotlib is not installed here: no plots; --summary-only adds them.")
    (folder / "summary.md").write_text(markdown(results, plots), encoding="utf-8")
    write_page(rows, plots, folder / "index.html")


def markdown(results: dict[str, Results], plots: Sequence[str]) -> str:
    """Tables of every setting, and the plots by their file names."""
    lines = ["# Step-Adaptive CFG, measured", _PREFACE, *(f"![]({plot})\n" for plot in plots)]
    for setting, its_results in results.items():
        models = ", ".join(its_results.models)
        lines += [f"## {setting}", "", f"Models: {models}."]
        lines.append(_PREFACE_OF_CHANGES if "stf" in its_results.metrics else "")
        schedules = its_results.of_kind("schedule", "reversed")
        captions = f"Every caption by itself: {_SHOWN[its_results.outcome][0]}"
        compared = schedules or its_results.with_levers
        tables = {
            "Schedules against constants": _compared(its_results, schedules),
            "Levers against none": _compared(its_results, its_results.with_levers),
            captions + ", the others minus control" * bool(compared): _captions(its_results),
            "All cases: every metric, minus control": _differences(its_results),
            "All cases: means": _means(its_results),
        }
        for title, table in tables.items():
            if len(table) > 2:  # titles and the line below them
                lines += [f"### {title}", "", *table, ""]
    return "\n".join(lines)


def _compared(results: Results, compared: Sequence[Arm]) -> list[str]:
    outcome = results.outcome
    title = _SHOWN[outcome][0]
    effects = [m for m in _SIDE_EFFECTS if m in results.metrics and m != outcome]
    if "stf" in results.metrics:
        effects = [*(m for m in _OF_CHANGES if m in results.metrics), *effects]
    models = results.models if len(results.models) > 1 else []
    titles = ["case", "arm", "mean guidance", "videos", title, "minus base", "minus control"]
    rows = [titles + models + [f"minus control: {_SHOWN[m][0]}" for m in effects]]
    baselines = dict.fromkeys(arm.baseline for arm in compared)
    scopes = [ALL, *results.cases] if len(results.cases) > 1 else results.cases
    for scope in scopes:
        for arm in [*baselines, *compared]:
            if (own := results.mean(arm, outcome, scope)) is None:
                continue
            row = [scope, arm.name, f"{arm.mean:.2f}", str(own.videos), _number(own, outcome)]
            if arm in compared:
                row.append(_against(results.against(arm, arm.baseline, outcome, scope), outcome))
                row.append(_against(results.against(arm, arm.control, outcome, scope), outcome))
                for model in models:
                    own = results.against(arm, arm.control, outcome, scope, model)
                    row.append(_against(own, outcome, interval=False))
                row += [_against(results.against(arm, arm.control, m, scope), m) for m in effects]
            rows.append(row)
    return _table(rows)


def _captions(results: Results) -> list[str]:
    if len(results.actions) < 2:
        return []
    outcome, compared = results.outcome, [*results.of_kind("schedule"), *results.with_levers]
    baselines = list(dict.fromkeys(arm.baseline for arm in compared))
    rows = [["arm", *results.actions]]
    for arm in baselines or results.of_kind("constant"):
        means = [results.mean(arm, outcome, action) for action in results.actions]
        rows.append([arm.name, *(_number(estimate, outcome) for estimate in means)])
    for arm in compared:
        against = [results.against(arm, arm.control, outcome, a) for a in results.actions]
        rows.append([arm.name, *(_against(estimate, outcome) for estimate in against)])
    return _table(rows)


def _differences(results: Results) -> list[str]:
    rows = [["arm", "mean guidance", *(_SHOWN[m][0] for m in results.metrics)]]
    for arm in [*results.of_kind("schedule", "reversed"), *results.with_levers]:
        compared = [_against(results.against(arm, arm.control, m), m) for m in results.metrics]
        rows.append([arm.name, f"{arm.mean:.2f}", *compared])
    return _table(rows)


def _means(results: Results) -> list[str]:
    rows = [["arm", "mean guidance", *(_SHOWN[m][0] for m in results.metrics)]]
    for arm in results.arms:
        means = [_number(results.mean(arm, m), m) for m in results.metrics]
        rows.append([arm.name, f"{arm.mean:.2f}", *means])
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    """Lines of a table, titles first; short rows are filled up."""
    columns = len(rows[0])
    rows = [[*row, *[""] * (columns - len(row))] for row in rows]
    rows.insert(1, ["---"] * columns)
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _number(estimate: Estimate | None, metric: str) -> str:
    """A mean with its interval."""
    _, factor, decimals = _SHOWN[metric]
    return _with_interval(estimate, lambda x: f"{factor * x:.{decimals}f}")


def _against(estimate: Estimate | None, metric: str, interval: bool = True) -> str:
    """A comparison, with its interval unless that is left out."""
    _, factor, decimals = _SHOWN[metric]
    if metric in RATIOS:
        return _with_interval(estimate, lambda x: f"x{x:.2f}", interval)
    return _with_interval(estimate, lambda x: f"{factor * x:+.{decimals}f}", interval)


def _with_interval(estimate: Estimate | None, text, interval: bool = True) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or not interval:
        return text(estimate.value)
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"
