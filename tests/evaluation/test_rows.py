import csv
from dataclasses import replace

import pytest

from evaluation.arms import Arm, Levers, constant
from evaluation.rows import FIELDS, Part, identity, read_rows, slug, write_rows


def row(clip: str, **values) -> dict:
    known = {"model": "tiny", "setting": "a, b", "clip": clip, "noise": "1", "motion": 0.25}
    return dict.fromkeys(FIELDS) | constant(6.0).columns | known | values


@pytest.fixture
def path(tmp_path):
    return tmp_path / "parts" / "0.csv"


def test_rows_come_back(tmp_path, path):
    Part(path).append([row("a", motion=1 / 3), row("b", prompt='says "a, b"', happened=1.0)])
    a, b = read_rows(tmp_path)
    assert (a["clip"], a["motion"], a["happened"]) == ("a", pytest.approx(1 / 3, rel=1e-5), None)
    assert (b["prompt"], b["happened"], b["noise"]) == ('says "a, b"', 1.0, "1")
    assert identity(a) == identity(row("a"))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_half_written_row_counts_for_nothing_and_is_replaced(tmp_path, path, cut):
    Part(path).append([row("a"), row("b", prompt="a ball vanishes")])
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["clip"] for r in read_rows(tmp_path)] == ["a"]
    Part(path).append([row("c")])
    assert [r["clip"] for r in read_rows(tmp_path)] == ["a", "c"]


def test_a_part_from_before_levers_and_changes_goes_on(tmp_path, path):
    new = [name for name in FIELDS if "low_pass" in name]
    new += ["prompt_gate", "ghosting", "stf"]
    known = [name for name in FIELDS if name not in new]
    path.parent.mkdir()
    old = {name: value for name, value in row("a").items() if name in known}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, known, lineterminator="\n")
        writer.writeheader()
        writer.writerow(old)
    (before,) = read_rows(tmp_path)
    assert Arm.of(before) == constant(6.0)
    soft = replace(constant(6.0), levers=Levers(0.25, 0.0, "last", prompt_gate=0.5))
    Part(path).append([row("a", stf=1.5, **soft.columns)])
    first, second = read_rows(tmp_path)
    assert first == before and (Arm.of(second), second["stf"]) == (soft, 1.5)


def test_nothing_but_half_a_header(tmp_path, path):
    path.parent.mkdir()
    path.write_text("model,set")
    assert read_rows(tmp_path) == []
    Part(path).append([row("a")])
    assert len(read_rows(tmp_path)) == 1


def test_a_video_counts_once(tmp_path, path):
    for part in (path, path.with_name("1.csv")):
        Part(part).append([row("a")])
    Part(path).append([row("a", arm="constant 3"), row("a", model="other"), row("a", noise=2)])
    assert len(read_rows(tmp_path)) == 4


def test_all_in_one_file(tmp_path, path):
    Part(path).append([row("a")])
    write_rows(read_rows(tmp_path), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        (record,) = csv.DictReader(file)
    assert tuple(record) == FIELDS
    assert (record["clip"], record["motion"], record["happened"]) == ("a", "0.25", "")


def test_names_of_files():
    assert slug("Schedule 5 beta 0.7") == "schedule-5-beta-0.7"
    assert slug("../true CFG, 2 s") == "true-cfg-2-s"
