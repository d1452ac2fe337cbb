"""Means of arms, and paired comparisons between them."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple

from evaluation.arms import NO_LEVERS, Arm
from evaluation.rows import METRICS, Row
from evaluation.statistics import Estimate, mean, ratio

ALL = "all"
RATIOS = ("motion",)
"""Metrics without a natural unit: these are compared by ratio, the others by difference."""
_KINDS = ("constant", "schedule", "reversed")


class Results:
    """The rows of one setting.

    A scope is a case, an action, or ALL. Several models (trainings from other seeds) are pooled,
    unless one is named.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[str, list[Row]] = {}
        for row in rows:
            self._rows.setdefault(row["arm"], []).append(row)
        self.models = list(dict.fromkeys(row["model"] for row in rows))
        self.cases = list(dict.fromkeys(row["case"] for row in rows))
        self.actions = list(dict.fromkeys(row["action"] for row in rows))
        self.metrics = [m for m in METRICS if any(row[m] is not None for row in rows)]
        self.outcome = "happened" if "happened" in self.metrics else "motion"
        self.arms = sorted({Arm.of(row) for row in rows}, key=_place)

    def of_kind(self, *kinds: str) -> list[Arm]:
        """Arms of some kinds, without levers."""
        return [arm for arm in self.arms if arm.kind in kinds and arm.levers == NO_LEVERS]

    @property
    def with_levers(self) -> list[Arm]:
        """Arms of all kinds with levers."""
        return [arm for arm in self.arms if arm.levers != NO_LEVERS]

    def mean(
        self, arm: Arm, metric: str, scope: str = ALL, model: str | None = None
    ) -> Estimate | None:
        """Mean of an arm; None where nothing was measured."""
        rows = [row for row in self._of(arm, scope, model) if row[metric] is not None]
        return mean([row[metric] for row in rows], [row["scene"] for row in rows])

    def against(
        self, arm: Arm, other: Arm, metric: str, scope: str = ALL, model: str | None = None
    ) -> Estimate | None:
        """Paired comparison of two arms: what `arm` has more than `other`, or, of RATIOS, how many
        times as much; over the videos of the same model, clip and noise that both have."""
        others = {_pair(row): row for row in self._of(other, scope, model)}
        pairs = [
            (row[metric], others[_pair(row)][metric], row["scene"])
            for row in self._of(arm, scope, model)
            if _pair(row) in others
        ]
        pairs = [pair for pair in pairs if None not in pair]
        ours, theirs, scenes = zip(*pairs, strict=True) if pairs else ((), (), ())
        if metric in RATIOS:
            return ratio(ours, theirs, scenes)
        return mean([a - b for a, b in zip(ours, theirs, strict=True)], scenes)

    def _of(self, arm: Arm, scope: str, model: str | None) -> Iterable[Row]:
        return (
            row
            for row in self._rows.get(arm.name, [])
            if scope in (ALL, row["case"], row["action"]) and model in (None, row["model"])
        )


def _place(arm: Arm) -> tuple:
    """In the order of arms: levers after all guidance without."""
    guidance = _KINDS.index(arm.kind), arm.base, arm.beta
    return arm.levers != NO_LEVERS, *guidance, *astuple(arm.levers)


def _pair(row: Row) -> tuple[str, str, str]:
    return row["model"], row["clip"], row["noise"]
