from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from diffusers_helper.errors import UserError
from evaluation import plots
from evaluation.rows import TRUTH, Part, slug
from evaluation.summary import write_summary
from tests.evaluation.test_results import WITH_LEVERS, rows

MODELS = ("s0", "s1")


class Links(HTMLParser):
    """All that a page points to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.videos = 0
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.videos += tag == "video"
        known = dict(attrs)
        self.found += [known[key] for key in ("href", "src", "data-src") if key in known]


@pytest.fixture
def folder(tmp_path):
    made = rows(MODELS, ("fade", "leave", "night")) + rows(MODELS, ("fade",), "true CFG")
    for row in made:
        if row["scene"] == "0":
            parts = row["setting"], row["model"], row["clip"], row["arm"]
            row["video"] = "/".join(["videos", *map(slug, parts)]) + ".mp4"
            (tmp_path / row["video"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / row["video"]).touch()
    Part(tmp_path / "parts" / "0.csv").append(made)
    return tmp_path


def line(folder: Path, title: str, beginning: str) -> str:
    """Of the first table with that title."""
    table = (folder / "summary.md").read_text().split(f"### {title}")[1].split("#")[0]
    (found,) = (row for row in table.splitlines() if row.startswith(f"| {beginning}"))
    return found


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "matplotlib", None)


def test_tables_tell_the_comparisons(folder, no_plots):
    write_summary(folder)
    assert line(folder, "Schedules", "disappearance | schedule 6 beta 0.8 ").startswith(
        "| disappearance | schedule 6 beta 0.8 | 3.00 | 16 | 75 [25, 100] | +50 [+0, +100] | "
        "+25 [+0, +75] | +25 | +25 | -25 [-75, +0] | x1.17"
    )
    assert "| 3.00 | 24 | 0 [0, 0] |" in line(folder, "Schedules", "all | reversed 6 beta 0.8 ")
    captions = line(folder, "Every caption by itself", "schedule 6 beta 0.8 ")
    assert captions.endswith("| +25 [+0, +75] |")  # night, the last
    assert line(folder, "Every caption by itself", "constant 6 ").endswith("| 25 [0, 75] |")
    assert line(folder, "All cases: every metric", "reversed").count(" -50 [") == 1
    assert "| 100 [100, 100] |" in line(folder, "All cases: means", "constant 3 ")


def test_without_schedules_there_are_means_only(tmp_path, no_plots):
    constants = [row for row in rows(MODELS, ("fade", "leave")) if row["arm"] == "constant 6"]
    Part(tmp_path / "parts" / "0.csv").append(constants)
    write_summary(tmp_path)
    titles = [
        title.strip("# ")
        for title in (tmp_path / "summary.md").read_text().splitlines()
        if title.startswith("###")
    ]
    assert titles == ["Every caption by itself: happened, %", "All cases: means"]
    assert line(tmp_path, "Every caption by itself", "arm ") == "| arm | fade | leave |"
    assert line(tmp_path, "Every caption by itself", "constant 6 ").count("[") == 2


def test_low_passes_have_a_table_of_their_own(folder, no_plots):
    write_summary(folder)
    assert "### Levers" not in (folder / "summary.md").read_text()
    Part(folder / "parts" / "1.csv").append(rows(MODELS, ("fade",), happened_in=WITH_LEVERS))
    write_summary(folder)
    for arm, difference in (
        ("constant 6 low-pass 0.25 start sigma 0.95", "+75 [+25, +100] | +75 [+25, +100]"),
        ("schedule 6 beta 0.8 history 0.5 sigma 0.9", "+75 [+25, +100] | +25 [+0, +75]"),
    ):
        mean = "3.00" if "schedule" in arm else "6.00"
        assert line(folder, "Levers against none", f"disappearance | {arm} ").startswith(
            f"| disappearance | {arm} | {mean} | 8 | 100 [100, 100] | {difference} | "
        )
        assert line(folder, "All cases: every metric", f"{arm} ")
        captions = line(folder, "Every caption by itself", f"{arm} ")
        assert captions == f"| {arm} | {difference.split(' | ')[1]} | - | - |"
        assert arm not in (folder / "summary.md").read_text().split("### Levers")[0]


def test_changes_of_prompts_have_columns_of_their_own(tmp_path, no_plots):
    made = rows(MODELS, ("fade",))
    for row in made:
        row |= {"stf": 1 + row["happened"], "ghosting": 1 - row["happened"]}
    Part(tmp_path / "parts" / "0.csv").append(made)
    write_summary(tmp_path)
    columns = " | ".join(f"minus control: {m}" for m in ("STF", "ghosting, %", "delay, s"))
    assert columns in line(tmp_path, "Schedules", "case ")
    schedule = line(tmp_path, "Schedules", "disappearance | schedule 6 beta 0.8 ")
    assert "| +0.25 [+0.00, +0.75] | -25 [-75, +0] | +0.00 [+0.00, +0.00] |" in schedule
    assert "Models: s0, s1.\n\nHere prompts change" in (tmp_path / "summary.md").read_text()


def test_plots_and_page(folder):
    write_summary(folder)
    for name in ("outcome.png", "difference.png", "kept.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 200_000
    links = Links(folder / "index.html")
    assert all((folder / unquote(link)).is_file() for link in links.found)
    assert links.videos == 4 * 2 * (3 + 1)  # arms, models, actions of both settings
    text = (folder / "index.html").read_text()
    arms = ["constant 6", "schedule 6 beta 0.8", "constant 3", "reversed 6 beta 0.8"]
    assert sorted(arms, key=lambda name: text.index(f"<th>{name}<")) == arms  # as compared
    assert "<b>" not in text and "✗ frozen" in text and "✓ happened after 0.5 s" in text


def test_without_matplotlib_there_are_no_plots(folder, no_plots):
    write_summary(folder)
    assert not list(folder.glob("*.png"))
    assert ".png" not in (folder / "summary.md").read_text() + (folder / "index.html").read_text()


def test_without_truth_motion_is_the_outcome(folder):
    made = rows()
    for row in made:
        row |= dict.fromkeys(TRUTH) | {"encoder_similarity": 0.9, "setting": "real"}
    (folder / "parts" / "0.csv").unlink()
    Part(folder / "parts" / "0.csv").append(made)
    write_summary(folder)
    text = line(folder, "Schedules", "disappearance | schedule 6 beta 0.8 ")
    assert text.startswith("| disappearance | schedule 6 beta 0.8 | 3.00 | 8 | 1.75 [1.25, 2.00] |")
    assert (folder / "difference.png").is_file()


def test_summary_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no measured video"):
        write_summary(tmp_path)
