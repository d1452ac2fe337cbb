"""Three pictures of an evaluation: a row of panels a setting, a panel a case."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluation.arms import Arm
from evaluation.results import RATIOS, Results
from evaluation.statistics import Estimate

try:
    import matplotlib
except ImportError:  # then there are no plots
    matplotlib = None

_STYLES = {
    "constant": ("constant", "#777777", "o"),
    "schedule": ("Step-Adaptive CFG from {base:g}", "#1f6fd0", "s"),
    "reversed": ("reversed from {base:g}", "#d9661f", "^"),
}
_SCALES = (1, 2, 3, 5, 10)
_TITLES = {
    "happened": "captioned action happened",
    "motion": "motion, pixels a frame",
    "shape_kept": "shape kept",
    "encoder_similarity": "similarity to first frame",
}


def write_plots(results: dict[str, Results], folder: Path) -> list[str]:
    """Draw the plots into `folder`; returns their file names, none without matplotlib.

    Without ground truth, motion takes the place of what happened, and the image encoder's
    similarity that of the shape.
    """
    if matplotlib is None:
        return []
    matplotlib.use("Agg")
    plots = {
        "outcome.png": _draw_outcome,
        "difference.png": _draw_difference,
        "kept.png": _draw_kept,
    }
    for name, draw in plots.items():
        _figure(results, draw, folder / name)
    return list(plots)


def _figure(results: dict[str, Results], draw: Callable[..., None], file: Path) -> None:
    from matplotlib import pyplot

    columns = max(len(some.cases) for some in results.values())
    figure = pyplot.figure(figsize=(3.6 * columns + 0.6, 3.4 * len(results)), layout="constrained")
    rows = figure.subfigures(len(results), squeeze=False)[:, 0]
    for row, (setting, some) in zip(rows, results.items(), strict=True):
        axes = row.subplots(1, columns, sharey=True, squeeze=False)[0]
        for ax, case in zip(axes, some.cases, strict=False):
            draw(ax, some, case)
            ax.set_title(case, fontsize=9)
            ax.grid(alpha=0.3)
        for ax in axes[1:]:
            ax.set_ylabel("")
        for ax in axes[len(some.cases) :]:
            ax.set_visible(False)
        row.suptitle(setting, fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        row.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _draw_outcome(ax: Any, results: Results, case: str) -> None:
    for arms in _lines(results, *_STYLES):
        estimates = [results.mean(arm, results.outcome, case) for arm in arms]
        _draw(ax, results, arms, [arm.mean for arm in arms], estimates)
    ax.set_xscale("log")
    ax.set_xticks(_SCALES, labels=[f"{scale:g}" for scale in _SCALES])
    ax.minorticks_off()
    ax.set_xlabel("mean guidance scale; at the squares: beta")
    ax.set_ylabel(_TITLES[results.outcome])


def _draw_difference(ax: Any, results: Results, case: str) -> None:
    outcome = results.outcome
    for arms in _lines(results, "schedule", "reversed"):
        # Side by side, to be told apart.
        betas = [arm.beta + (0.01 if arm.kind == "reversed" else -0.01) for arm in arms]
        estimates = [results.against(arm, arm.control, outcome, case) for arm in arms]
        _draw(ax, results, arms, betas, estimates, noted=False)
        _, colour, marker = _STYLES[arms[0].kind]
        for model in results.models if len(results.models) > 1 else ():
            for arm, beta in zip(arms, betas, strict=True):
                if own := results.against(arm, arm.control, outcome, case, model):
                    ax.plot(beta, own.value, marker, color=colour, markersize=2.5, alpha=0.5)
    ratio = outcome in RATIOS
    ax.axhline(1 if ratio else 0, color="black", linewidth=0.8)
    ax.set_xlabel("beta; small marks: single models")
    ax.set_ylabel(f"{_TITLES[outcome]},\n{'over' if ratio else 'minus'} the constant's")


def _draw_kept(ax: Any, results: Results, case: str) -> None:
    kept = "shape_kept" if "shape_kept" in results.metrics else "encoder_similarity"
    for arms in _lines(results, *_STYLES):
        outcomes = [results.mean(arm, results.outcome, case) for arm in arms]
        places = [None if outcome is None else outcome.value for outcome in outcomes]
        _draw(ax, results, arms, places, [results.mean(arm, kept, case) for arm in arms], line="")
    ax.set_xlabel(_TITLES[results.outcome])
    ax.set_ylabel(_TITLES[kept])


def _lines(results: Results, *kinds: str) -> list[list[Arm]]:
    """Constants, and the schedules of each kind and base."""
    arms = results.of_kind(*kinds)
    return [
        list(some)
        for _, some in groupby(arms, lambda arm: (arm.kind, arm.base if arm.beta else None))
    ]


def _draw(
    ax: Any,
    results: Results,
    arms: list[Arm],
    places: list[float | None],
    estimates: list[Estimate | None],
    line: str = "-",
    noted: bool = True,
) -> None:
    """Estimates with intervals, and betas of schedules where they are `noted`; a second base is
    hollow."""
    label, colour, marker = _STYLES[arms[0].kind]
    base = arms[0].base
    hollow = arms[0].beta > 0 and base > min(arm.base for arm in results.of_kind("schedule"))
    points = [
        (arm.beta, x, y)
        for arm, x, y in zip(arms, places, estimates, strict=True)
        if x is not None and y is not None
    ]
    xs, ys = [x for _, x, _ in points], [y.value for _, _, y in points]
    lows = [0 if y.low is None else y.value - y.low for _, _, y in points]
    highs = [0 if y.high is None else y.high - y.value for _, _, y in points]
    ax.errorbar(xs, ys, [lows, highs], fmt="none", ecolor=colour, alpha=0.3, capsize=2)
    ax.plot(
        xs,
        ys,
        marker + line,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=5,
        linewidth=1,
        label=label.format(base=base),
    )
    for beta, x, y in points:
        if noted and arms[0].kind == "schedule":
            place = {"xytext": (4, -9), "textcoords": "offset points"}
            ax.annotate(f"{beta:g}", (x, y.value), fontsize=7, color=colour, **place)
