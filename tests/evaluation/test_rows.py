import csv

import pytest

from evaluation.rows import FIELDS, Part, identity, read_rows, slug, write_rows


def row(clip: str, arm: str = "constant 6", **values) -> dict:
    numbers = {"noise": "1", "beta": 0.0, "base": 6.0, "mean": 6.0, "motion": 0.25}
    known = {"model": "tiny", "setting": "a, b", "clip": clip, "arm": arm, "kind": "constant"}
    return dict.fromkeys(FIELDS) | known | numbers | values


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
