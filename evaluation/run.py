"""Making the videos of an evaluation and measuring them, on as many processes as there are."""

import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from diffusers_helper.models import Models, load_models
from diffusers_helper.pipelines.k_diffusion_hunyuan import section_sigmas
from diffusers_helper.sections import FPS, SectionOrder, section_frames
from diffusers_helper.settings import GenerationSettings
from evaluation import metrics
from evaluation.arms import Arm, Levers, applied, plan_arms
from evaluation.clips import Clip, Studio
from evaluation.images import EXAMPLES, Images, image_clips
from evaluation.rows import METRICS, Part, Row, identity, read_rows, slug
from evaluation.transitions import ClipSimilarity, changes
from evaluation.videos import write_video

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to run; see the command's help for its options."""

    model: str
    weights: Path | None
    label: str
    order: SectionOrder
    cases: Sequence[tuple[str, Path, str]] | None
    """See `image_clips`; None takes EXAMPLES. Not of the small world."""
    actions: Sequence[str] | None
    """See `world_clips`."""
    transitions: bool
    """Whether, in the small world, each action comes after a section in which nothing moves."""
    clip_model: str | None
    """See `ClipSimilarity`; None measures no STF of images."""
    seeds: int
    betas: Sequence[float]
    scales: Sequence[float] | None
    """Bases of distilled guidance; None takes the model's own."""
    cfg: Sequence[float] | None
    """Bases of true CFG, which takes the place of distilled guidance then."""
    controls: bool
    levers: Sequence[Levers]
    combine: bool
    """See `plan_arms`."""
    shift: float | None
    steps: int | None
    seconds: float | None
    batch: int
    """Videos to make at once in the small world."""
    videos: int
    """Seeds of which videos are kept."""
    deadline: float
    """By `time.monotonic`, after which no batch is begun."""


@dataclass(frozen=True)
class Job:
    """Videos to make in one batch."""

    clips: tuple[Clip, ...]
    arm: Arm
    sigmas: torch.Tensor
    """Of a section."""

    @property
    def noise(self) -> int:
        """Seed of the noise, which depends on all clips of a batch: others get other noise, so that
        only videos with the same noise are ever compared."""
        return zlib.crc32(" ".join(clip.id for clip in self.clips).encode())


def run(plan: Plan, folder: Path, state: PartialState) -> bool:
    """Make and measure the videos that are not in `folder` yet; all processes end together.

    Returns:
        Whether all are there now.
    """
    evaluation = _Evaluation(plan, folder, _device(state))
    jobs = evaluation.unfinished()
    _meet()  # nobody writes while others still read what is finished
    name = f"{slug(f'{plan.label} {evaluation.setting}')}-{state.process_index}.csv"
    part = Part(folder / "parts" / name)
    threads = torch.get_num_threads()
    if metrics.cv2 is None and state.is_main_process:
        logger.warning("OpenCV is not installed here: the column of motion stays empty.")
    mine = jobs[state.process_index :: state.num_processes]
    for number, job in enumerate(mine, start=1):
        began = time.monotonic()
        if began > plan.deadline:
            break
        part.append(evaluation.make(job, threads))
        logger.info(
            "%s: %d of %d, %s: %d videos in %.1f s",
            plan.label,
            number,
            len(mine),
            job.arm.name,
            len(job.clips),
            time.monotonic() - began,
        )
    _meet()
    if left := len(evaluation.unfinished()):
        logger.info("Time is up with %d batches left; the same command goes on from here", left)
    return not left


def _meet() -> None:
    """Wait for all processes; accelerate's way of it takes each to have a GPU of its own."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _device(state: PartialState) -> torch.device:
    """A GPU that this process shares with as few others as possible."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", state.local_process_index % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


class _Evaluation:
    """One model in one setting."""

    def __init__(self, plan: Plan, folder: Path, device: torch.device) -> None:
        self._plan = plan
        self._folder = folder
        self._models = load_models(plan.model, device, plan.weights)
        self._settings = _settings(plan, self._models)
        if plan.model == "tiny":
            from evaluation.tiny_world import TinyWorld, world_clips  # needs the training's package

            self._studio: Studio = TinyWorld(self._models, plan.order)
            quiet = 4 * self._settings.latent_window_size / FPS if plan.transitions else 0.0
            self._clips = world_clips(plan.actions, plan.seeds, quiet)
            self._batch = plan.batch
        else:
            self._studio = Images(self._models, plan.order)
            self._clips = image_clips(plan.cases or EXAMPLES, plan.seeds)
            self._batch = 1
        self._clip_model = None if plan.clip_model is None else ClipSimilarity(plan.clip_model)

    @property
    def setting(self) -> str:
        """What all videos have in common, in words."""
        plan, settings = self._plan, self._settings
        parts = [
            "distilled guidance" if plan.cfg is None else "true CFG",
            f"{plan.order.value} sections",
            f"{settings.steps} steps",
            f"{settings.total_second_length:g} s",
        ]
        parts += [] if plan.shift is None else [f"shift {plan.shift:g}"]
        return ", ".join([*parts, "transitions"] if plan.transitions else parts)

    def unfinished(self) -> list[Job]:
        """Batches that are not whole in the folder yet."""
        finished = {identity(row) for row in read_rows(self._folder)}
        return [
            job
            for job in self._jobs()
            if not {identity(row) for row in self._rows(job)} <= finished
        ]

    def make(self, job: Job, threads: int) -> list[Row]:
        """Make a batch of videos and measure them.

        Args:
            threads: to measure with.
        """
        plan, clips, rows = self._plan, job.clips, self._rows(job)
        settings = replace(self._settings, **job.arm.settings(true_cfg=plan.cfg is not None))
        with applied(job.arm, job.sigmas, plan.shift):
            videos = self._studio.make(clips, settings, job.noise)
        if videos is None:
            logger.warning("The model returned NaN for %s, %s", clips[0].id, job.arm.name)
            return rows
        section = 4 * settings.latent_window_size
        seams = range(1 + section, videos.shape[2], section)
        measured = {
            "motion": metrics.motion(videos, threads),
            "subject_similarity": metrics.subject_similarity(videos, self._studio.subjects(clips)),
            "encoder_similarity": metrics.encoder_similarity(
                videos, self._models, settings.gpu_memory_preservation
            ),
            "seam_jump": metrics.seam_jump(videos, seams),
            "sharpness": metrics.sharpness(videos),
        }
        changing = [changes(replace(settings, prompt=clip.prompt)) for clip in clips]
        if (clip_model := self._clip_model) is not None:
            both = zip(videos, changing, strict=True)
            measured["stf"] = [clip_model.fidelity(video, some) for video, some in both]
        truths = self._studio.truth(clips, videos, seams, changing)
        for i, (clip, row) in enumerate(zip(clips, rows, strict=True)):
            row |= {name: values[i] for name, values in measured.items() if values is not None}
            row |= truths[i]
            if clip.seed < plan.videos:
                parts = plan.label, self.setting, clip.id, job.arm.name
                row["video"] = f"{Path('videos', *map(slug, parts)).as_posix()}.mp4"
                write_video(videos[i], self._folder / row["video"])
        return rows

    def _jobs(self) -> Iterator[Job]:
        """All batches, the arms of the same clips together: a run that is cut short has pairs."""
        plan, settings = self._plan, self._settings
        bases = plan.cfg or plan.scales or [settings.gs]
        frames = section_frames(settings.latent_window_size)
        for start in range(0, len(self._clips), self._batch):
            clips = tuple(self._clips[start : start + self._batch])
            height, width = self._studio.size(clips[0])
            sigmas = section_sigmas(settings.steps, width, height, frames, plan.shift)
            arms = plan_arms(plan.betas, bases, sigmas, plan.controls, plan.levers, plan.combine)
            for arm in arms:
                yield Job(clips, arm, sigmas)

    def _rows(self, job: Job) -> list[Row]:
        """What is known of its videos before they are made."""
        return [
            dict.fromkeys(METRICS)
            | {
                "model": self._plan.label,
                "setting": self.setting,
                "case": clip.case,
                "action": clip.action,
                "scene": clip.scene,
                "noise": job.noise,
                "clip": clip.id,
                "prompt": clip.prompt,
                "video": None,
            }
            | job.arm.columns
            for clip in job.clips
        ]


def _settings(plan: Plan, models: Models) -> GenerationSettings:
    """Of all videos, as far as they are alike."""
    values = models.settings | {"use_teacache": False, "mp4_crf": 0}
    if plan.transitions:
        three = 3 * 4 * GenerationSettings(**values).latent_window_size / FPS
        values["total_second_length"] = max(three, 1.0)
    asked = {"steps": plan.steps, "total_second_length": plan.seconds}
    values |= {name: value for name, value in asked.items() if value is not None}
    return GenerationSettings(**values)
