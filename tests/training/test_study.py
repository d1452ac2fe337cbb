import math
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from diffusers_helper.pipelines.k_diffusion_hunyuan import section_sigmas
from diffusers_helper.sections import section_frames
from evaluation import __main__ as evaluation
from evaluation.arms import plan_arms
from training.tiny_world import __main__ as training
from training.tiny_world import study
from training.tiny_world.config import TrainingConfig
from training.tiny_world.study import Job, plan_jobs, run_jobs

FOLDER = Path("/somewhere/a study")
PARSERS = {"training.tiny_world": training._parser, "evaluation": evaluation._parser}


def planned() -> list[Job]:
    return plan_jobs(
        FOLDER, ["--set", "batch=64"], ["--steps=7"], "0,0.5", seeds=4, gpus_each=2, processes=3
    )


def test_jobs_are_what_the_commands_understand():
    for job in planned():
        option, _ = study._LIMITS[job.module]
        options = PARSERS[job.module]().parse_args([*job.arguments, option, "3.00"])
        assert options.output.parent == FOLDER, job.name
        if job.module == "evaluation":
            assert options.steps == 7 and options.weights.parent.parent == FOLDER, job.name
        else:
            assert ("batch", 64) in options.set, job.name
        shape = (1, 3) if job.module == "evaluation" else (2, 1)
        assert (job.gpus, job.processes) == shape, job.name


def test_prompts_change_in_miniature_too():
    for job in plan_jobs(
        FOLDER, [], ["--steps=1", "--seconds=1"], "0", seeds=1, gpus_each=1, processes=1
    ):
        if job.module == "evaluation":
            options = PARSERS["evaluation"]().parse_args(job.arguments)
            assert options.seconds == (3.6 if options.transitions else 1), job.name


def test_jobs_come_after_what_they_need_and_have_names_of_their_own():
    jobs = planned()
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for i, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:i]), job.name
        assert "/" not in job.name


def test_the_card_is_of_the_shipped_seed_and_results_are_of_both():
    assert TrainingConfig().seed == study._SEEDS[0]
    weights = {}
    for job in planned():
        if job.module == "evaluation":
            options = PARSERS["evaluation"]().parse_args(job.arguments)
            of = options.weights.relative_to(FOLDER).as_posix()
            weights.setdefault(options.output.name, set()).add(of)
            assert options.controls == (options.output.name == "results")
    assert weights["check"] == {"seed1/student", "seed1/teacher", "healthy/teacher"}
    assert weights["results"] == {f"seed{n}/{m}" for n in (0, 1) for m in ("student", "teacher")}
    assert weights["levers"] == weights["transitions"] == {"seed0/student", "seed1/student"}


def test_jobs_that_write_the_same_file_come_one_after_the_other():
    """That is, of one model in one setting."""
    writers = {}
    for job in planned():
        if job.module == "evaluation":
            plan = evaluation._plan(PARSERS["evaluation"]().parse_args(job.arguments), began=0)
            setting = plan.order, plan.shift, plan.cfg is None, plan.transitions
            file = job.arguments[0], plan.label, *setting
            writers.setdefault(file, []).append(job)
    assert any(len(jobs) > 1 for jobs in writers.values())
    for first, *others in writers.values():
        assert all(first.name in job.needs for job in others)


def test_the_number_of_videos_is_as_told():
    """By the arms at one base, at the small world's noise levels."""
    sigmas = section_sigmas(25, 128, 128, section_frames(9))
    made, videos = {}, Counter()
    for job in plan_jobs(FOLDER, [], [], "0,0.3,0.5,0.7,0.8,1", seeds=32, gpus_each=1, processes=1):
        if job.module == "evaluation":
            plan = evaluation._plan(PARSERS["evaluation"]().parse_args(job.arguments), began=0)
            folder = job.arguments[0].rsplit("/")[-1]
            arms = plan_arms(
                plan.betas, plan.cfg or [5.0], sigmas, plan.controls, plan.levers, plan.combine
            )
            setting = plan.order, plan.shift, plan.cfg
            known = made.setdefault((folder, plan.label, *setting), set())
            videos[folder] += len(set(arms) - known) * 8 * plan.seeds
            known.update(arms)
    assert videos["levers"] == 23040 + 10240 + 1536 and videos["transitions"] == 7680 + 1536
    assert videos["results"] == pytest.approx(52000, rel=0.02)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Jobs whose commands are a line of Python each, which may note something."""
    notes, python = tmp_path / "notes", sys.executable
    monkeypatch.setattr(study, "_LIMITS", {"line": ("limit", 1.0)})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    shell = f"""#!/bin/sh
test "$2" = torch.distributed.run && echo "$5" processes
for code; do :; done
exec {python} -c "$code" "$CUDA_VISIBLE_DEVICES" {notes}
"""
    (tmp_path / "python").write_text(shell)
    (tmp_path / "python").chmod(0o755)

    def noted() -> list[str]:
        return notes.read_text().split() if notes.exists() else []

    return noted


def line(name: str, *needs: str, status: int = 0, **count: int) -> Job:
    code = "import sys, time; note = lambda t: open(sys.argv[2], 'a').write(t + ' '); "
    code += f"note('>{name}'); time.sleep(0.2); note('{name}:' + sys.argv[1]); "
    return Job(name, "line", (code + f"print('told'); sys.exit({status})",), needs, **count)


def ended(notes: list[str]) -> list[str]:
    """Names of jobs with their GPUs, by when they ended."""
    return [note for note in notes if ":" in note]


def test_what_is_done_is_not_done_again(tmp_path, commands):
    jobs = [line("a"), line("b", "a"), line("c", "b")]
    logs = tmp_path / "logs"
    assert run_jobs(jobs[:2], logs, [None], math.inf) == {"a", "b"}
    assert run_jobs(jobs, logs, [None], math.inf) == {"a", "b", "c"}
    assert [note.split(":")[0] for note in ended(commands())] == ["a", "b", "c"]
    assert (logs / "c.txt").read_text() == "told\n"


def test_every_gpu_has_one_job_at_a_time(tmp_path, commands, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    jobs = [line("a"), line("b"), line("c", "a", "b")]
    run_jobs(jobs, tmp_path, ["0", "1"], math.inf)
    notes = dict(note.split(":") for note in ended(commands()))
    assert {notes["a"], notes["b"]} == {"0", "1"} and notes["c"] in ("0", "1")


def test_a_training_on_two_gpus_waits_for_both(tmp_path, commands, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    run_jobs([line("a"), line("b", gpus=2), line("c")], tmp_path, ["0", "1"], math.inf)
    assert (tmp_path / "b.txt").read_text() == "2 processes\ntold\n"
    notes = commands()
    assert [note.split(":")[0] for note in notes] == [">a", "a", ">b", "b", ">c", "c"]
    assert set(ended(notes)[1].removeprefix("b:").split(",")) == {"0", "1"}


def test_a_job_may_have_several_processes_on_its_gpu(tmp_path, commands, monkeypatch):
    """Which torchrun starts; here it is a program that starts one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    run_jobs([line("a", processes=3)], tmp_path, ["7"], math.inf)
    assert ended(commands()) == ["a:7"]
    assert (tmp_path / "a.txt").read_text() == "3 processes\ntold\n"


def test_only_gpus_that_the_user_shows_are_used(monkeypatch):
    monkeypatch.setattr(study.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert study._gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert study._gpus() == ["3", "5"]
    monkeypatch.setattr(study.torch.cuda, "device_count", lambda: 0)
    assert study._gpus() == [None]


def test_nothing_is_begun_when_time_is_up_and_what_ran_out_of_time_is_not_done(tmp_path, commands):
    jobs = [line("a", status=3), line("b", "a"), line("c")]
    assert run_jobs(jobs, tmp_path, [None], time.monotonic() + 5) == set()
    assert commands() == []
    assert run_jobs(jobs, tmp_path, [None], math.inf) == {"c"}
    assert [note.split(":")[0] for note in ended(commands())] == ["a", "c"]


def test_a_failure_is_told_and_begins_nothing_more(tmp_path, commands):
    jobs = [line("a", status=1), line("b")]
    with pytest.raises(RuntimeError, match=f"a failed: see {tmp_path}"):
        run_jobs(jobs, tmp_path, [None], math.inf)
    assert [note.split(":")[0] for note in ended(commands())] == ["a"]


@pytest.mark.parametrize("seeds", ["1", "many"])
def test_a_single_scene_is_refused(tmp_path, capsys, seeds):
    with pytest.raises(SystemExit):
        study.main(["--output", str(tmp_path), "--seeds", seeds])
    assert f"2 or more, for intervals, got '{seeds}'" in capsys.readouterr().err
