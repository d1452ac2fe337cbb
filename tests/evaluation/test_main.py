import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluation
from evaluation import images, metrics, plots, run, tiny_world, transitions
from evaluation.__main__ import main
from evaluation.rows import METRICS, TRUTH, read_rows
from training.tiny_world.world import render, truth

ROOT = Path(evaluation.__file__).parents[1]
SMALL = ["--actions=fade", "--seeds=2", "--steps=1", "--betas=0.5", "--no-controls", "--batch=1"]
"""Four videos, each a batch of its own."""


@pytest.fixture
def made(monkeypatch, miniature):
    """Videos are drawn instead of sampled; this is what they were drawn for."""
    calls = []

    def draw(models, scenes, captions, **settings):
        calls.append({"captions": captions, **settings})
        return render(scenes, truth(scenes, 37 if "[" in captions[0] else 15))

    monkeypatch.setattr(tiny_world, "sample_clips", draw)
    monkeypatch.setattr(run, "load_models", lambda *_: miniature)
    monkeypatch.setattr(plots, "matplotlib", None)  # which takes a second
    return calls


def test_every_video_is_measured(tmp_path, made):
    assert main([*SMALL, "--videos", "1", "--output", str(tmp_path)]) == 0
    rows = read_rows(tmp_path)
    assert [row["arm"] for row in rows] == ["constant 6", "schedule 6 beta 0.5"] * 2
    for row, call in zip(rows, made, strict=True):
        assert all(row[m] is not None for m in set(METRICS) - {*TRUTH, "stf"})
        assert row["stf"] is None and row["ghosting"] is None
        assert row["frozen"] is not None and row["model"] == "tiny"
        assert row["mean"] == (3.5 if row["beta"] else 6)  # the only step is at sigma 1
        assert call["captions"] == [row["prompt"]] and str(call["seed"]) == row["noise"]
        assert (call["gs"], call["adaptive_cfg_beta"]) == (6, row["beta"])
        assert (call["cfg"], call["steps"], call["window"]) == (1, 1, 3)
        kept = row["clip"] == "fade-000"
        assert kept == bool(row["video"]) and (not kept or (tmp_path / row["video"]).is_file())
    for name in ("results.csv", "summary.md", "index.html"):
        assert (tmp_path / name).is_file()


def test_started_again_it_makes_only_what_is_missing(tmp_path, made):
    assert main([*SMALL, "--output", str(tmp_path)]) == 0
    before = read_rows(tmp_path)
    assert main([*SMALL, "--output", str(tmp_path)]) == 0
    assert len(made) == 4
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-25])  # as a process leaves it that is killed
    assert len(read_rows(tmp_path)) == 3
    assert main([*SMALL, "--output", str(tmp_path)]) == 0
    assert len(made) == 5 and read_rows(tmp_path) == before


def test_a_batch_shares_its_noise_and_is_made_again_as_a_whole(tmp_path, made):
    options = [*SMALL, "--batch", "8", "--videos", "0", "--output", str(tmp_path)]
    assert main(options) == 0
    assert [len(call["captions"]) for call in made] == [2, 2]
    assert len({row["noise"] for row in read_rows(tmp_path)}) == 1
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-25])
    assert main(options) == 0
    assert len(made) == 3 and len(read_rows(tmp_path)) == 4
    assert not (tmp_path / "videos").exists()


def test_time_limit(tmp_path, made):
    assert main([*SMALL, "--time-limit", "0", "--output", str(tmp_path)]) == 3
    assert not made and not (tmp_path / "summary.md").exists()


def test_models_and_settings_share_a_folder(tmp_path, made):
    for options in (["--label", "a"], ["--label", "b"], ["--label", "b", "--cfg", "6,10"]):
        assert main([*SMALL, "--seeds", "1", *options, "--output", str(tmp_path)]) == 0
    assert [(call["cfg"], call["gs"]) for call in made[4:]] == [(6, 1), (6, 1), (10, 1), (10, 1)]
    assert len({row["noise"] for row in read_rows(tmp_path)}) == 1
    text = (tmp_path / "summary.md").read_text()
    assert "## distilled guidance, forward sections, 1 steps, 1 s\n\nModels: a, b." in text
    assert "## true CFG, forward sections, 1 steps, 1 s\n\nModels: b." in text


LEVERS = ("low_pass_factor", "low_pass_sigma", "history_low_pass")


def test_low_passes_are_made_and_gone_on_with(tmp_path, made):
    small = [*SMALL, "--seeds=1", "--videos=0", f"--output={tmp_path}"]
    assert main(small) == 0
    levers = ["--low-pass=0.25,1", "--low-pass-frames=start", "--history-low-pass=0.5"]
    levers += ["--low-pass-sigma=0.8,1"]
    assert main([*small, *levers]) == 0
    soft = ["low-pass 0.25 start sigma 0.8", "low-pass 0.25 start sigma 1"]
    soft += ["history 0.5 sigma 0.8", "history 0.5 sigma 1"]
    guidance = ["constant 6", "schedule 6 beta 0.5"]
    alone = [f"constant 6 {name}" for name in soft]
    assert [row["arm"] for row in read_rows(tmp_path)] == [*guidance, *alone]
    expected = [(0.25, 0.8, 0.0), (0.25, 1.0, 0.0), (1.0, 0.8, 0.5), (1.0, 1.0, 0.5)]
    assert [tuple(call[name] for name in LEVERS) for call in made] == [
        *[(1.0, 0.9, 0.0)] * 2,
        *expected,
    ]
    assert main([*small, *levers, "--combine"]) == 0
    constant, *combined = made[6:]  # at the schedule's mean, without levers
    assert [tuple(call[name] for name in LEVERS) for call in (constant, *combined)] == [
        (1.0, 0.9, 0.0),
        *expected * 2,
    ]
    mean = constant["gs"]
    guided = [(call["gs"], call["adaptive_cfg_beta"]) for call in (constant, *combined)]
    assert guided == [(mean, 0.0), *[(6.0, 0.5)] * 4, *[(mean, 0.0)] * 4] and 1 < mean < 6
    assert "### Levers against none" in (tmp_path / "summary.md").read_text()
    assert main([*small, *levers, "--combine"]) == 0 and len(made) == 15


def test_transitions_are_made_with_the_prompt_gate(tmp_path, made):
    small = ["--transitions", *SMALL, "--seeds=1", "--videos=0", f"--output={tmp_path}"]
    assert main([*small, "--prompt-gate=0,0.5,1", "--combine"]) == 0
    rows = read_rows(tmp_path)
    six, beta = "constant 6", "schedule 6 beta 0.5"
    mean = rows[4]["arm"]
    assert mean == f"constant {rows[3]['mean']:g}"
    half, whole = " prompt gate 0.5 sigma 0.9", " prompt gate 1 sigma 0.9"
    assert [row["arm"] for row in rows] == [
        *(six, six + half, six + whole),
        *(beta, mean, beta + half, beta + whole, mean + half, mean + whole),
    ]
    assert [call["prompt_gate"] for call in made] == [0, 0.5, 1, 0, 0, 0.5, 1, 0.5, 1]
    for row, call in zip(rows, made, strict=True):
        assert call["seconds"] == pytest.approx(1.2)  # three sections of a window of 3
        assert call["captions"] == [row["prompt"]] and "] [0.4s: " in row["prompt"]
        assert row["setting"].endswith("1.2 s, transitions")
        assert row["stf"] is not None and row["ghosting"] is not None
        assert (row["prompt_gate"] or 0) == call["prompt_gate"]
    assert main([*small, "--prompt-gate=0,0.5,1", "--combine"]) == 0 and len(made) == 9
    text = (tmp_path / "summary.md").read_text()
    (title,) = {line for line in text.splitlines() if line.startswith("| case | arm |")}
    assert "| minus control | minus control: STF | minus control: ghosting, % |" in title
    assert "2 is perfect" in text


def test_without_transitions_the_summary_knows_no_stf(tmp_path, made):
    assert main([*SMALL, "--seeds=1", f"--output={tmp_path}"]) == 0
    assert "STF" not in (tmp_path / "summary.md").read_text()


def test_summary_only_makes_no_videos(tmp_path, made):
    assert main([*SMALL, "--output", str(tmp_path)]) == 0
    (tmp_path / "summary.md").unlink()
    made.clear()
    assert main(["--summary-only", "--output", str(tmp_path)]) == 0
    assert not made and (tmp_path / "summary.md").is_file()


def test_images_are_made_one_by_one_and_failures_are_kept(tmp_path, monkeypatch, made):
    results = [torch.full((1, 3, 25, 32, 48), 90, dtype=torch.uint8), None]
    asked = []

    def make(self, clips, settings, noise):
        asked.append(([clip.prompt for clip in clips], settings, noise))
        return results[len(asked) % 2 - 1]

    monkeypatch.setattr(images.Images, "make", make)
    options = ["--model=f1", "--seeds=1", "--betas=0.5", "--no-controls", f"--output={tmp_path}"]
    assert main(options) == 0
    rows = read_rows(tmp_path)
    assert [row["case"] for row in rows[::2]] == ["disappearance", "large motion", "scene change"]
    for row, (prompts, settings, noise) in zip(rows, asked, strict=True):
        assert prompts == [row["prompt"]] and str(noise) == row["noise"]
        assert not settings.use_teacache and settings.adaptive_cfg_beta == row["beta"]
        assert row["happened"] is None
        assert (row["sharpness"] is None) == (row["video"] == "") == (row["kind"] == "schedule")
    assert main(options) == 0 and len(asked) == 6


def test_images_with_timed_prompts_have_an_stf_by_clip(tmp_path, monkeypatch, made):
    """By a CLIP to which bright frames are the new prompt, and all are as much the old one."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    cases = [("changes", "[0s: a] [0.4s: b]"), ("stays", "a")]
    entries = [{"case": case, "image": "a.png", "prompt": prompt} for case, prompt in cases]
    (tmp_path / "cases.json").write_text(json.dumps(entries))
    video = torch.zeros(1, 3, 25, 32, 32, dtype=torch.uint8)
    video[:, :, 12:] = 255

    class Clip(transitions.ClipSimilarity):
        def __init__(self, name):
            assert name == "a-clip"

        def similarity(self, frames, prompts):
            bright = frames.float().mean(dim=(0, 2, 3)) / 255
            return torch.stack([bright if p == "b" else 0 * bright for p in prompts], dim=1)

    monkeypatch.setattr(images.Images, "make", lambda *_: video)
    monkeypatch.setattr(run, "ClipSimilarity", Clip)
    options = ["--model=f1", "--seeds=1", "--betas=0", "--no-controls", "--prompt-gate=1"]
    options += [f"--cases={tmp_path / 'cases.json'}", "--clip-model=a-clip", "--seconds=1"]
    assert main([*options, f"--output={tmp_path / 'out'}"]) == 0
    stf = {(row["case"], row["prompt_gate"]): row["stf"] for row in read_rows(tmp_path / "out")}
    assert stf == {("changes", g): 1.0 for g in (None, 1)} | {("stays", g): None for g in (None, 1)}


def test_without_opencv_only_motion_is_missing(tmp_path, made, monkeypatch):
    monkeypatch.setattr(metrics, "cv2", None)
    assert main([*SMALL, "--seeds", "1", "--output", str(tmp_path)]) == 0
    assert all(r["motion"] is None and r["sharpness"] is not None for r in read_rows(tmp_path))


def test_two_processes_share_the_work_and_give_the_rows_of_one(tmp_path, weights):
    options = [*SMALL, "--seeds", "1", "--weights", str(weights)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "evaluation"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*launch, *options, "--output", str(tmp_path / "two")],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=120,
    )
    assert len(list((tmp_path / "two" / "parts").iterdir())) == 2
    assert (tmp_path / "two" / "index.html").is_file()
    assert main([*options, "--betas=0", "--output", str(tmp_path / "one")]) == 0
    (one,) = read_rows(tmp_path / "one")
    two, schedule = sorted(read_rows(tmp_path / "two"), key=lambda row: row["beta"])
    assert schedule["arm"] == "schedule 6 beta 0.5" and schedule["motion"] is not None
    assert all(one[field] == two[field] for field in set(one) - set(METRICS))
    known = [metric for metric in METRICS if one[metric] is not None]
    assert known == [metric for metric in METRICS if two[metric] is not None]
    assert [one[m] for m in known] == pytest.approx([two[m] for m in known], rel=1e-3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--betas", "0,2"], "must be in [0, 1], got '2'"),
        (["--betas", "a"], "must be in [0, 1], got 'a'"),
        (["--seeds", "0"], "whole number"),
        (["--cfg", "0.5"], "must be in [1, 32]"),
        (["--cfg", "6", "--scales", "6"], "not allowed with"),
        (["--actions", "fly"], "'fly'"),
        (["--low-pass", "0"], "must be in [0.1, 1], got '0'"),
        (["--history-low-pass", "2"], "must be in [0, 1], got '2'"),
        (["--prompt-gate", "-1"], "must be in [0, 1], got '-1'"),
        (["--low-pass-frames", "start,end"], "must be of both, start, last, got 'end'"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, option, message):
    with pytest.raises(SystemExit) as exit:
        main([*option, "--output", str(tmp_path)])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--actions", "fade", "--model", "f1"], "small world"),
        (["--cases", "x.json"], "small world"),
        (["--cases", "x.json", "--model", "f1"], "x.json"),
        (["--transitions", "--model", "f1"], "small world"),
        (["--clip-model", "x"], "small world"),
        (["--prompt-gate", "1"], "prompts that change"),
        (["--prompt-gate", "1", "--model", "f1"], "prompts that change"),
        (["--summary-only"], "no measured video"),
    ],
)
def test_options_that_cannot_be_are_explained(tmp_path, capsys, option, message):
    assert main([*option, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
