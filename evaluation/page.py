"""The videos of an evaluation side by side, as a web page that needs no server."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import quote

from evaluation.arms import Arm
from evaluation.results import Results
from evaluation.rows import Row

_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
.wide { overflow: auto; max-height: 88vh; }
table { border-collapse: collapse; }
th, td { padding: 4px 6px; vertical-align: top; text-align: left; background: #fff;
  font-weight: normal; }
thead th { position: sticky; top: 0; z-index: 2; font-weight: 600; }
th:first-child { position: sticky; left: 0; z-index: 1; min-width: 9rem; max-width: 12rem; }
thead th:first-child { z-index: 3; }
video { width: 160px; min-height: 90px; display: block; background: #ddd; }
.yes { color: #1a7f37; } .no { color: #b91c1c; }
img { max-width: 100%; display: block; }
"""
_SCRIPT = """
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) { target.pause(); continue; }
    if (!target.src) target.src = target.dataset.src;
    target.play().catch(() => {});
  }
}, { rootMargin: "100px" });
document.querySelectorAll("video").forEach(video => watcher.observe(video));
"""


def write_page(rows: Iterable[Row], plots: Sequence[str], path: Path) -> None:
    """Write a page with the plots and all videos that were kept."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["video"]:
            groups.setdefault((row["setting"], row["case"]), []).append(row)
    parts = ["<h1>Step-Adaptive CFG, measured</h1>"]
    parts.append('<p><a href="summary.md">Tables</a>, <a href="results.csv">all rows</a></p>')
    parts += [f'<img src="{quote(plot)}" alt="{escape(plot)}">' for plot in plots]
    for (setting, case), some in groups.items():
        parts += [f"<h2>{escape(case)}</h2><p>{escape(setting)}</p>", _table(some)]
    body = "\n".join(parts)
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Step-Adaptive CFG, measured</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n<script>{_SCRIPT}</script></body></html>\n",
        encoding="utf-8",
    )


def _table(rows: Sequence[Row]) -> str:
    """A row a clip of a model, a column an arm."""
    arms = _side_by_side(Results(rows))
    heads = "".join(f"<th>{escape(arm.name)}<br>mean {arm.mean:g}</th>" for arm in arms)
    clips: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        clips.setdefault((row["clip"], row["noise"], row["model"]), {})[row["arm"]] = row
    lines = [f"<thead><tr><th>clip</th>{heads}</tr></thead><tbody>"]
    for (clip, _, model), videos in sorted(clips.items()):
        prompt = next(iter(videos.values()))["prompt"]
        cells = "".join(_cell(videos.get(arm.name)) for arm in arms)
        lines.append(
            f"<tr><th>{escape(clip)}, {escape(model)}<br>{escape(prompt)}</th>{cells}</tr>"
        )
    return f'<div class="wide"><table>{"".join(lines)}</tbody></table></div>'


def _side_by_side(results: Results) -> list[Arm]:
    """Each schedule beside what it is compared with, and then the other arms."""
    arms = [
        other
        for arm in results.of_kind("schedule")
        for other in (arm.baseline, arm, arm.control, replace(arm, kind="reversed"))
    ]
    return [arm for arm in dict.fromkeys([*arms, *results.arms]) if arm in results.arms]


def _cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    video = quote(row["video"])
    return (
        f'<td><video data-src="{video}" preload="none" muted loop playsinline></video>'
        f"{_mark(row)}</td>"
    )


def _mark(row: Row) -> str:
    if row["happened"] is None:
        return "" if row["motion"] is None else f"motion {row['motion']:.2f}"
    if not row["happened"]:
        return f'<span class="no">✗ {"frozen" if row["frozen"] else "did not happen"}</span>'
    delay = "" if row["delay"] is None else f" after {row['delay']:.1f} s"
    return f'<span class="yes">✓ happened{delay}</span>'
