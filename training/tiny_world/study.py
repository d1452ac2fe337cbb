"""All that docs/results.md tells of: `python -m training.tiny_world.study --help`.

Two trainings from different seeds, a third without the still clips, what their models do, and the
card of the one that is shipped.
"""

import argparse
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.summary import write_summary
from training.tiny_world import sheet
from training.tiny_world.card import HEALTHY, SCALES, STUDENT, TEACHER, write_card

logger = logging.getLogger(__name__)

_TIME_IS_UP = 3
"""Exit status of a command that goes on when it is run again."""
_LEAST = 20.0
"""Seconds left that a command is begun with."""
_TRAINING, _EVALUATION = "training.tiny_world", "evaluation"
_SEEDS = (1, 0)
"""Of the trainings; the first is shipped."""
_SHIPPED = f"seed{_SEEDS[0]}"
"""Its folder."""
_RESULTS = ("results", "levers", "transitions")
"""Folders of evaluations that people read."""
_LIMITS = {_TRAINING: ("--minutes", 60.0), _EVALUATION: ("--time-limit", 1.0)}
"""How each command is told its time: an option, and its unit in seconds."""


@dataclass(frozen=True)
class Job:
    """A command."""

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Names of jobs to be done before."""
    gpus: int = 1
    """How many it needs, for itself."""
    processes: int = 1
    """On each of them."""


def plan_jobs(
    folder: Path,
    training: Sequence[str],
    evaluation: Sequence[str],
    betas: str,
    seeds: int,
    gpus_each: int,
    processes: int,
) -> list[Job]:
    """All jobs, those first that others wait for.

    With 32 seeds of 8 actions and two models, `levers` are 23040 videos of low-passes alone (45
    arms), 10240 of a few with schedules and constants (20 more) and 1536 in inverted order (3), and
    `transitions` are 9216 of three sections (15 arms, and 3 in inverted order); `results` are about
    52000.

    Args:
        folder: of the study.
        training, evaluation: further arguments of all trainings, and of all evaluations.
        betas: as `evaluation` takes them.
        seeds: of each action; twice as many where the model that is shipped is judged.
        gpus_each: of a training.
        processes: of an evaluation.
    """

    def train(output: str, *arguments: str, needs: Sequence[str] = ()) -> Job:
        arguments = (f"--output={folder / output}", *training, *arguments)
        return Job(output, _TRAINING, arguments, tuple(needs), gpus_each)

    def evaluate(
        output: str, label: str, weights: str, *arguments: str, after: Sequence[Job] = ()
    ) -> Job:
        of = (f"--output={folder / output}", f"--label={label}", f"--weights={folder / weights}")
        name = " ".join([output, label, *(a.strip("-") for a in arguments)])
        needs = (weights.split("/")[0], *(job.name for job in after))
        arguments = (*of, *evaluation, *kinds[output], *arguments)
        return Job(name, _EVALUATION, arguments, needs, processes=processes)

    kinds = {
        "check": ("--actions=all", "--betas=0", "--no-controls", "--videos=0"),
        "results": (f"--betas={betas}", f"--seeds={seeds}"),
        "levers": ("--no-controls", f"--seeds={seeds}"),
        "transitions": ("--no-controls", f"--seeds={seeds}", "--transitions"),
    }
    scales = ",".join(f"{scale:g}" for scale in SCALES)
    still = ("--set", "still_share=0", "--until", "flow")
    # Its twin's VAE.
    from_twin = [] if "--vae" in training else ["--vae", str(folder / _SHIPPED)]
    few, many = f"--seeds={seeds}", f"--seeds={2 * seeds}"
    both = [f"seed{seed}" for seed in _SEEDS]
    student = evaluate("check", STUDENT, f"{_SHIPPED}/student", many)
    alone = ("--betas=0", "--low-pass=0.25,0.4,0.625", "--low-pass-frames=start,last,both")
    alone += ("--low-pass-sigma=0.8,0.9,0.95,0.98", "--history-low-pass=0.5,1")
    combined = ("--betas=0.5,0.7", "--combine")
    few_levers = (
        ("--low-pass=0.25", "--low-pass-frames=last", "--low-pass-sigma=0.95"),
        ("--low-pass=0.25,0.625", "--history-low-pass=1"),
    )
    # Three sections even in miniature, whose single second ends before the prompt changes.
    gates = ("--prompt-gate=0.5,1", "--seconds=3.6")
    inverted = ("--demo=framepack",)
    nearest = ("--betas=0", "--low-pass=0.25", "--low-pass-frames=last,both")
    nearest += ("--low-pass-sigma=0.95",)
    low_passes = []
    for seed in both:
        its_own: list[Job] = []
        for arguments in (alone, *((*combined, *some) for some in few_levers)):
            # One after the other, since they write one file.
            its_own.append(evaluate("levers", seed, f"{seed}/student", *arguments, after=its_own))
        low_passes += its_own
    return [
        *(train(f"seed{seed}", "--set", f"seed={seed}") for seed in _SEEDS),
        train(HEALTHY, *still, *from_twin, needs=[_SHIPPED] if from_twin else []),
        student,
        evaluate(
            "check", STUDENT, f"{_SHIPPED}/student", few, f"--scales={scales}", after=[student]
        ),
        evaluate("check", TEACHER, f"{_SHIPPED}/teacher", few, f"--cfg={scales}"),
        evaluate("check", HEALTHY, f"{HEALTHY}/teacher", few, "--cfg=1"),
        *(evaluate("results", seed, f"{seed}/student") for seed in both),
        *(evaluate("results", seed, f"{seed}/student", *inverted) for seed in both),
        *(evaluate("results", seed, f"{seed}/student", "--shift=7") for seed in both),
        *(evaluate("results", seed, f"{seed}/teacher", "--cfg=6,10") for seed in both),
        *(evaluate("transitions", seed, f"{seed}/student", *combined, *gates) for seed in both),
        *(
            evaluate("transitions", seed, f"{seed}/student", *inverted, "--betas=0", *gates)
            for seed in both
        ),
        *low_passes,
        *(evaluate("levers", seed, f"{seed}/student", *inverted, *nearest) for seed in both),
    ]


def run_jobs(
    jobs: Sequence[Job], logs: Path, gpus: Sequence[str | None], deadline: float
) -> set[str]:
    """Run those that are not done yet, in their order as far as GPUs are free.

    Args:
        logs: folder of what the commands print, and of marks of what is done.
        gpus: those to use, as CUDA_VISIBLE_DEVICES calls them; None is the CPU.
        deadline: by `time.monotonic`.

    Returns:
        Names of the jobs that are done, now or before.

    Raises:
        RuntimeError: a job failed; the others that had begun are finished.
    """
    logs.mkdir(parents=True, exist_ok=True)
    done = {job.name for job in jobs if _mark(logs, job).exists()}
    waiting = [job for job in jobs if job.name not in done]
    running: dict[Future[int], tuple[Job, list[str | None]]] = {}
    free = list(gpus)
    failed = []
    with ThreadPoolExecutor(len(gpus)) as pool:
        while True:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            late = deadline - time.monotonic() < _LEAST
            for job in [] if late or failed else ready:
                if len(free) < job.gpus:
                    break
                waiting.remove(job)
                taken, free = free[: job.gpus], free[job.gpus :]
                logger.info("%s has begun", job.name)
                threads = max((os.cpu_count() or 1) // (len(gpus) * job.processes), 1)
                running[pool.submit(_run, job, logs, taken, threads, deadline)] = job, taken
            if not running:
                break
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                job, taken = running.pop(ended)
                free += taken
                status = ended.result()
                logger.info("%s has ended with status %d", job.name, status)
                if status == 0:
                    done.add(job.name)
                    _mark(logs, job).touch()
                elif status != _TIME_IS_UP and time.monotonic() < deadline:
                    # After it, torchrun tells a failure for each process that ran out of time.
                    failed.append(job.name)
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed: see {logs}")
    return done


def _run(job: Job, logs: Path, gpus: Sequence[str | None], threads: int, deadline: float) -> int:
    option, unit = _LIMITS[job.module]
    left = max(deadline - time.monotonic(), 0.0) / unit
    limit = [] if math.isinf(left) else [option, f"{left:.2f}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment |= {} if None in gpus else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    count = job.gpus * job.processes
    spread = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    several = spread if count > 1 else []
    command = [sys.executable, "-m", *several, job.module, *job.arguments, *limit]
    with (logs / f"{job.name}.txt").open("a") as log:
        return subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode


def _gpus() -> list[str | None]:
    """Those there are, as CUDA_VISIBLE_DEVICES calls them; None is the CPU."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count))
    return list(names)[:count] or [None]


def _mark(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.done"


def write_model(folder: Path) -> Path:
    """Put together what is shipped: a student with its card, and a picture of its clips.

    Returns:
        Its folder.
    """
    model = folder / "model"
    shutil.copytree(folder / _SHIPPED / "student", model, dirs_exist_ok=True)
    write_card(folder / _SHIPPED, folder / "check", model)
    sheet.main(["--weights", str(model), "--output", str(folder / "actions.png")])
    return model


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 3 time was up before."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    deadline = time.monotonic() + 60 * options.minutes
    training = [word for setting in options.set for word in ("--set", setting)]
    evaluation = [f"--videos={options.videos}"]
    if options.vae is not None:
        training += ["--vae", str(options.vae)]
    if options.miniature:
        training.append("--miniature")
        evaluation += ["--steps=1", "--seconds=1"]
    gpus = _gpus()
    if options.gpus_each > len(gpus):
        parser.error(f"--gpus-each is {options.gpus_each}, and there are {len(gpus)}")
    jobs = plan_jobs(
        options.output,
        training,
        evaluation,
        options.betas,
        options.seeds,
        options.gpus_each,
        options.processes,
    )
    try:
        done = run_jobs(jobs, options.output / "logs", gpus, deadline)
    except RuntimeError as error:
        logger.error("%s", error)
        return 1
    if done.issuperset(job.name for job in jobs if job.name.startswith("check ")):
        logger.info("The model is in %s", write_model(options.output))
    if len(done) < len(jobs):
        logger.info("%d of %d are done; the same command goes on", len(done), len(jobs))
        return _TIME_IS_UP
    for name in _RESULTS:
        write_summary(options.output / name)
        logger.info("There are results in %s", options.output / name / "summary.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.tiny_world.study",
        description="Train the small model from two seeds, and once without still clips; measure "
        "how good it is and what Step-Adaptive CFG does. On all GPUs there are. Run it again to go "
        "on.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after these; go on by another run"
    )
    parser.add_argument(
        "--seeds", type=_scenes, default=32, help="scenes of each action (default: 32)"
    )
    parser.add_argument(
        "--videos",
        type=int,
        default=2,
        metavar="N",
        help="scenes of each action whose videos are kept (default: 2)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        choices=range(1, 9),
        metavar="N",
        help="of an evaluation, which share its GPU, 1 to 8 (default: 1; five fill an H200)",
    )
    parser.add_argument(
        "--gpus-each",
        type=int,
        default=1,
        choices=range(1, 17),
        metavar="N",
        help="GPUs of each training, 1 to 16 (default: 1)",
    )
    parser.add_argument(
        "--betas", default="0,0.3,0.5,0.7,0.8,1", help="(default: 0,0.3,0.5,0.7,0.8,1)"
    )
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="of all trainings; default: each trains its own"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of all trainings, such as flow_steps=4000",
    )
    parser.add_argument(
        "--miniature", action="store_true", help="everything in minutes on a CPU, telling nothing"
    )
    return parser


def _scenes(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be 2 or more, for intervals, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
