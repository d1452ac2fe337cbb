"""Measurements in files: a row a video, a file a process, so that any process may die."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OUTCOME = ("happened", "delay", "extent", "frozen", "shape_kept", "colour_kept", "ghosting")
"""Fields of `training.tiny_world.measure.Outcome`."""
TRUTH = (*OUTCOME, "centroid_jump")
"""Metrics that only the small world has."""
METRICS = (
    *TRUTH,
    "stf",
    "motion",
    "subject_similarity",
    "encoder_similarity",
    "seam_jump",
    "sharpness",
)
_NUMBERS = (
    *("base", "beta", "mean", "low_pass_factor", "low_pass_sigma", "history_low_pass"),
    "prompt_gate",
    *METRICS,
)
FIELDS = (
    "model",
    "setting",
    "case",
    "action",
    "scene",
    "noise",
    "clip",
    "prompt",
    "arm",
    "kind",
    "base",
    "beta",
    "mean",
    "low_pass_factor",
    "low_pass_sigma",
    "low_pass_frames",
    "history_low_pass",
    "prompt_gate",
    "video",
    *METRICS,
)
"""Columns. `setting` is what else than the arm and the clip the videos of a comparison have in
common; `noise` is the seed of the noise; `arm` to `prompt_gate` are those of an `Arm`; `video` is
relative to the folder, empty if it was not kept. What could not be measured is empty."""
_IDENTITY = ("model", "setting", "arm", "clip", "noise")

Row = dict[str, Any]


def identity(row: Row) -> tuple[str, ...]:
    """What no other video has in common with it."""
    return tuple(str(row[name]) for name in _IDENTITY)


def slug(text: str) -> str:
    """A part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


class Part:
    """One process's rows, in a file that only it appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read(path) if path.exists() else []
        path.write_bytes(_text([FIELDS, *_values(rows)]))  # which may have had fewer columns

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows that are there even if the process ends right after it."""
        with self._path.open("ab") as file:
            file.write(_text(_values(rows)))


def read_rows(folder: Path) -> list[Row]:
    """All rows of an evaluation's parts; what could not be measured is None."""
    rows: dict[tuple[str, ...], Row] = {}
    for path in sorted((folder / "parts").glob("*.csv")):
        for row in _read(path):
            rows.setdefault(identity(row), row)
    return list(rows.values())


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write them all into one CSV file."""
    path.write_bytes(_text([FIELDS, *_values(rows)]))


def _read(path: Path) -> list[Row]:
    """A part's rows; columns that it was written without are empty."""
    rows = []
    for read in csv.DictReader(io.StringIO(_whole_lines(path).decode("utf-8"))):
        row = dict.fromkeys(FIELDS, "") | read
        rows.append(row | {n: float(row[n]) if row[n] else None for n in _NUMBERS})
    return rows


def _values(rows: Iterable[Row]) -> list[list[Any]]:
    return [
        [f"{v:.6g}" if isinstance(v, float) else v for v in (row[name] for name in FIELDS)]
        for row in rows
    ]


def _whole_lines(path: Path) -> bytes:
    """What is in a file up to its last line's end: a process may have ended within a line."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _text(lines: Iterable[Iterable[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue().encode("utf-8")
