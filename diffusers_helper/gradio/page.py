"""Layout of the page, and what it shows of a job."""

import html
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from diffusers_helper.generation import Progress
from diffusers_helper.gradio.jobs import JobView, Status
from diffusers_helper.gradio.presets import GOVERNED, PRESETS, preset_values
from diffusers_helper.models import default_device
from diffusers_helper.models.float8 import why_not_float8
from diffusers_helper.sections import FPS
from diffusers_helper.settings import GenerationSettings

if TYPE_CHECKING:
    from diffusers_helper.gradio.app import Demo

_PREVIEW_HEIGHT = 110
_EXAMPLES_FOLDER = Path(__file__).parent / "examples"
_REAL_EXAMPLES = (
    ("person.png", "The person gradually fades away and disappears"),
    ("dancer.png", "The dancer spins and jumps across the stage"),
    ("landscape.png", "The scene transitions from day to night"),
)
_TINY_EXAMPLES = (
    ("world/person.png", "The person gradually fades away and disappears"),
    ("world/walker.png", "The person walks out of the frame to the left"),
    ("world/day.png", "The scene turns from day to night"),
    ("world/star.png", "The star jumps up and down"),
)
"""The tiny model knows only what `training.tiny_world` draws; with the first of them it opens."""
_TIMED_PROMPT = "[0s: The person stands still] [1s: The person fades away]"
"""In the quick list of both, to show how it is written."""
INPUT_NAMES = ("input_image", *(f.name for f in fields(GenerationSettings)))
DRAWN = (
    "input_image",
    "latent_window_size",
    "steps",
    "cfg",
    "gs",
    "adaptive_cfg_beta",
    "adaptive_cfg_min",
)
"""Inputs that the plot depends on, in the order of all inputs."""
TIMING = ("prompt", "total_second_length", "latent_window_size")
"""Inputs that the note on timed prompts depends on, in the order of all inputs."""
CHOSEN = ("prompt", "total_second_length", *GOVERNED)
"""Inputs that the preset and its note depend on, in the order of all inputs."""

# Followers only wait and look; jobs themselves take turns in the demo's own queue.
_QUIET = {"show_progress": "hidden", "concurrency_limit": None}
_PRIVATE = _QUIET | {"api_visibility": "private"}

_BETA_HELP = """\
Lowers guidance while noise is high: at noise level sigma a step gets
`min + (base - min) * (1 - beta * sigma)`. The base is the **scale in force**:
Distilled CFG Scale, or CFG Scale when that is not 1. **On the small model it does harm**: what the
prompt tells happens in 96 % of FramePack-F1's videos at beta 0, in 89 % at 0.7 and in 76 % at 1,
and in about as many fewer of FramePack's (docs/results.md). With the real checkpoints it has not
been tried; compare with beta 0 at the same seed."""

_LOW_PASS_HELP = """\
While the noise level is at or above the gate, the model is shown a start image and a last frame
that were scaled down by the factor and up again, as latents; below it they are sharp. **On the
small model most settings do harm; the last frame's, strong and early, helps FramePack-F1 a
little**; the start image's alone freezes. Noise stays high for long: of 25 steps at full size, gate
0.9 is open for 11, 0.95 for 7, and 1 for the first alone. The idea is ALG's (arXiv 2506.08456),
which reports more motion for other models, and the smallest gain for HunyuanVideo. History Low-Pass
does it to the older frames, and along time as well; on the small model it changes nothing.

Prompt Gate acts **only with timed prompts**: a section with another prompt than the one made before
it is shown the older frames that much fainter, at 1 not at all, and the frame next to it without
its detail while noise is high; the section made after that, half as much. **On the small model it
helps FramePack-F1 more than anything else**, and hardly helps FramePack, which makes the end first
(docs/results.md).

With the real checkpoints none of them has been tried; compare with factor 1, history 0 and gate 0
at the same seed, TeaCache off."""

CSS = """
#page { display: grid; grid-template: "ask result" auto "settings result" 1fr / 1fr 1fr; }
#ask { grid-area: ask; min-width: 0; }
#result { grid-area: result; min-width: 0; }
#settings { grid-area: settings; min-width: 0; }
@media (max-width: 768px) { #page { grid-template: "ask" "result" "settings" / 1fr; } }
.progress-track { height: 10px; border-radius: 5px; background: var(--border-color-primary);
  overflow: hidden; }
.progress-fill { height: 100%; background: var(--color-accent); transition: width 0.3s; }
.job-error { color: var(--error-text-color, #b91c1c); font-weight: 600; }
#notice:empty { display: none; }
#prompt-note { max-height: 9em; overflow-y: auto !important; }
#prompt-note:has(.prose:empty) { display: none; }
#prompt-note .html-container { padding: 0; }
#prompt-note .prose > div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#input-image img { width: 100%; height: 100%; object-fit: contain; }
"""


class Page:
    """The Gradio blocks of a demo; `inputs` and `outputs` are in the order of `process`."""

    def __init__(self, demo: "Demo") -> None:
        self._is_tiny = demo.model == "tiny"
        self._defaults = GenerationSettings(**demo.description.settings)
        with gr.Blocks(
            title=demo.title, delete_cache=(3600, 86400), analytics_enabled=False
        ) as self.blocks:
            gr.Markdown(f"# {demo.title}")
            notice = gr.Markdown(elem_id="notice")
            with gr.Row(elem_id="page"):
                with gr.Column(elem_id="ask"):
                    made = self._subject()
                with gr.Column(elem_id="result"):
                    self.outputs = self._outputs()
                    self._presets()
                    made |= self._adaptive_cfg() | self._low_pass()
                with gr.Column(elem_id="settings"):
                    made |= self._settings()
            self._named = [(name, made[name]) for name in INPUT_NAMES]
            self.inputs = [component for _, component in self._named]
            self._wire(demo, notice)

    def _subject(self) -> dict[str, Any]:
        """Components by the name of their input."""
        image = gr.Image(
            label="Image",
            type="filepath",
            sources=["upload", "clipboard"],
            height=320,
            elem_id="input-image",
        )
        # Gradio would open the file itself and put its own words to a broken one.
        image.preprocess = lambda payload: payload and _uploaded(payload.path, image.GRADIO_CACHE)
        prompt = gr.Textbox(
            label="Prompt",
            placeholder=_setting("prompt").metadata["help"],
            lines=2,
            value=self._defaults.prompt,
        )
        with gr.Row():
            self.start = gr.Button("Start Generation", variant="primary")
            self.end = gr.Button("End Generation", interactive=False)
        self.prompt_note = gr.HTML(elem_id="prompt-note", padding=False)
        examples = _TINY_EXAMPLES if self._is_tiny else _REAL_EXAMPLES
        files = [_EXAMPLES_FOLDER / file for file, _ in examples]
        texts = [text for _, text in examples]

        def example(i: int) -> list[str]:
            return [_served(files[i]), texts[i]]

        quick = [*texts, _TIMED_PROMPT]
        _pick_list("Quick List", quick, lambda i: quick[i], [prompt])
        _pick_list("Examples", [str(file) for file in files], example, [image, prompt])
        if self._is_tiny:
            # Not as values of the components: those are the defaults of the interface as well.
            self.blocks.load(lambda: example(0), None, [image, prompt], **_PRIVATE)
        return {"input_image": image, "prompt": prompt}

    def _settings(self) -> dict[str, Any]:
        """Components by the name of their input."""
        made: dict[str, Any] = {}
        with gr.Group():
            made["use_teacache"] = gr.Checkbox(
                label="Use TeaCache",
                info=_setting("use_teacache").metadata["help"],
                value=self._defaults.use_teacache,
            )
            lacking = why_not_float8(default_device())
            made["fp8"] = gr.Checkbox(
                label="Use Float8",
                info=f"Not on this machine: {lacking}."
                if lacking
                else _setting("fp8").metadata["help"],
                value=self._defaults.fp8,
                interactive=lacking is None,
            )
            made["seed"] = gr.Number(
                label="Seed",
                info=_setting("seed").metadata["help"],
                value=self._defaults.seed,
                precision=0,
            )
            made["total_second_length"] = self._slider(
                "total_second_length", "Total Video Length (Seconds)"
            )
            made["steps"] = self._slider("steps", "Steps")
            made["gs"] = self._slider("gs", "Distilled CFG Scale")
        with gr.Accordion("Advanced", open=True):
            made["cfg"] = self._slider("cfg", "CFG Scale")
            made["n_prompt"] = gr.Textbox(
                label="Negative Prompt",
                info=_setting("n_prompt").metadata["help"],
                value=self._defaults.n_prompt,
            )
            made["rs"] = self._slider("rs", "CFG Re-Scale")
            made["latent_window_size"] = self._slider("latent_window_size", "Latent Window Size")
            made["gpu_memory_preservation"] = self._slider(
                "gpu_memory_preservation", "GPU Inference Preserved Memory (GB)"
            )
            made["mp4_crf"] = self._slider("mp4_crf", "MP4 Compression")
        return made

    def _presets(self) -> None:
        """Not inputs: what they set is."""
        self.preset = gr.Radio(
            [preset.name for preset in PRESETS],
            label="Motion",
            info="Sets what is below, which stays free.",
            value=PRESETS[0].name,
            elem_id="preset",
        )
        self.preset_note = gr.Markdown(elem_id="preset-note")

    def _adaptive_cfg(self) -> dict[str, Any]:
        """Components by the name of their input."""
        with gr.Accordion("Step-Adaptive CFG", open=True):
            beta = self._slider("adaptive_cfg_beta", "Adaptive CFG Beta")
            least = self._slider("adaptive_cfg_min", "Adaptive CFG Min")
            self.plot = gr.LinePlot(
                x="step",
                y="guidance",
                x_title="Step",
                y_title="Guidance",
                y_lim=[0, None],
                label="Guidance of each step",
                height=180,
                elem_id="guidance-plot",
            )
            self.plot_note = gr.Markdown(elem_id="guidance-note")
            with gr.Accordion("What beta does", open=False):
                gr.Markdown(_BETA_HELP)
        return {"adaptive_cfg_beta": beta, "adaptive_cfg_min": least}

    def _low_pass(self) -> dict[str, Any]:
        """Components by the name of their input."""
        with gr.Accordion("Low-Pass Conditioning", open=False):
            factor = self._slider("low_pass_factor", "Low-Pass Factor")
            frames = self._radio("low_pass_frames", "Low-Pass Frames")
            gate = self._slider("low_pass_sigma", "Low-Pass Gate")
            history = self._slider("history_low_pass", "History Low-Pass")
            prompt_gate = self._slider("prompt_gate", "Prompt Gate")
            gr.Markdown(_LOW_PASS_HELP)
        return {
            "low_pass_factor": factor,
            "low_pass_frames": frames,
            "low_pass_sigma": gate,
            "history_low_pass": history,
            "prompt_gate": prompt_gate,
        }

    def _outputs(self) -> list[Any]:
        """In the order of `page_updates`; those that come and go keep their place."""
        video = gr.Video(
            label="Finished Frames",
            autoplay=True,
            loop=True,
            height=400,
            interactive=False,
            elem_id="result-video",
        )
        description = gr.Markdown(elem_id="progress-text")
        bar = gr.HTML(elem_id="progress-bar", padding=False)
        preview = gr.Image(
            label="Next Latents", height=_PREVIEW_HEIGHT, interactive=False, format="jpeg"
        )
        # In the browser's storage, so that a reloaded page finds its job again.
        job = gr.BrowserState()
        return [video, preview, description, bar, self.start, self.end, job]

    def _slider(self, name: str, label: str) -> gr.Slider:
        about = _setting(name).metadata
        limits = {k: about[k] for k in ("minimum", "maximum", "step")}
        value = getattr(self._defaults, name)
        return gr.Slider(label=label, info=about["help"], value=value, **limits)

    def _radio(self, name: str, label: str) -> gr.Radio:
        about = _setting(name).metadata
        value = getattr(self._defaults, name)
        return gr.Radio(list(about["choices"]), label=label, info=about["help"], value=value)

    def _wire(self, demo: "Demo", notice: gr.Markdown) -> None:
        job = self.outputs[-1]
        self.start.click(demo.process, self.inputs, self.outputs, api_name="process", **_QUIET)
        self.end.click(demo.end, job, self.end, **_PRIVATE)
        self.blocks.load(demo.attach, job, self.outputs, **_PRIVATE)
        self.blocks.load(demo.watch_loading, None, notice, **_PRIVATE)
        self._follow(DRAWN, demo.draw, [self.plot, self.plot_note])
        self._follow(TIMING, demo.tell_prompts, self.prompt_note)
        self._follow(CHOSEN, demo.tell_preset, [self.preset, self.preset_note])
        self.preset.input(preset_values, self.preset, self._of(GOVERNED), **_PRIVATE)

    def _of(self, names: tuple[str, ...]) -> list[Any]:
        """The inputs of these names, in the order of all inputs."""
        return [component for name, component in self._named if name in names]

    def _follow(self, names: tuple[str, ...], show: Callable, outputs: Any) -> None:
        """Keep `outputs` what `show` makes of the inputs of these names.

        One call at a time: several inputs may change at once, each with a call, and what comes
        last has to be of the last.
        """
        followed = self._of(names)
        gr.on(
            [self.blocks.load, *(component.change for component in followed)],
            show,
            followed,
            outputs,
            trigger_mode="always_last",
            **_PRIVATE | {"concurrency_limit": 1},
        )


def page_updates(
    view: JobView, place: int = 0, loading: str = "", new_video: bool = True
) -> list[Any]:
    """What a page shows of its job: a value for each of `Page.outputs`.

    Args:
        view: the job.
        place: jobs before it, while it waits.
        loading: what is being loaded, if anything.
        new_video: whether the video has changed since the last update.
    """
    ended = view.status.ended
    return [
        (view.video and _served(view.video)) if new_video else gr.skip(),
        None if ended or view.preview is None else _enlarged(view.preview),
        _description(view, place, loading),
        _bar(view),
        gr.update(interactive=ended),
        gr.update(interactive=not ended and not view.stopping, value="End Generation"),
        view.id,
    ]


def page_rejection(error: str) -> list[Any]:
    """What a page shows when inputs are not taken: why; all else stays."""
    return [gr.skip(), gr.skip(), _error_text(error), *[gr.skip()] * 4]


def _error_text(error: str) -> str:
    return f'<span class="job-error" role="alert">{html.escape(error)}</span>'


def _served(file: Path) -> str:
    """A copy among the files that Gradio serves, so that no other folder need be open to all
    visitors."""
    return save_file_to_cache(file, cache_dir=get_upload_folder())


def _enlarged(preview: np.ndarray) -> np.ndarray:
    """A strip of latents, each pixel as a square, to be seen at all."""
    times = max(1, _PREVIEW_HEIGHT // preview.shape[0])
    return preview.repeat(times, axis=0).repeat(times, axis=1)


def _description(view: JobView, place: int, loading: str) -> str:
    kept = f"{view.frames / FPS:.1f} s of video ({view.frames} frames)"
    match view.status:
        case Status.FAILED:
            return _error_text(view.error) + (f" Kept: {kept}." if view.frames else "")
        case Status.FINISHED:
            return f"Finished: {kept}."
        case Status.STOPPED:
            return f"Ended: {kept} kept." if view.frames else "Ended before a section was finished."
        case Status.WAITING if place:
            return f"Waiting: {place} job{'s' if place > 1 else ''} before yours."
    if loading:
        return f"{loading} ..."
    if view.progress is None:
        return "Starting ..."
    return _progress_text(view.progress, kept if view.frames else "")


def _progress_text(progress: Progress, kept: str) -> str:
    text = progress.stage
    if progress.section:
        text = f"Section {progress.section} of {progress.sections} · {text}"
    if progress.preview is not None:
        text += f" · step {progress.step} of {progress.steps}"
    if progress.seconds_left is not None:
        text += f" · about {_duration(progress.seconds_left)} left"
    return f"{text} · so far {kept}" if kept else text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _bar(view: JobView) -> str:
    progress = view.progress
    if view.status.ended or progress is None or not progress.steps:
        return ""
    done = (progress.section - 1) * progress.steps + progress.step
    percent = 100 * done / (progress.sections * progress.steps)
    return (
        f'<div class="progress-track" role="progressbar" aria-valuenow="{percent:.0f}">'
        f'<div class="progress-fill" style="width: {percent:.1f}%"></div></div>'
    )


def _uploaded(file: str, folder: str) -> str:
    """`file`, if Gradio put it there; a caller of the interface may name any file of the server."""
    if not Path(file).resolve().is_relative_to(Path(folder).resolve()):
        raise gr.Error("The image must be uploaded first.")
    return file


def _pick_list(
    label: str, samples: list[str], picked: Callable[[int], Any], targets: list[Any]
) -> None:
    """Samples for the first of `targets`; a click fills them all with what is `picked`."""
    shown = gr.Dataset(
        label=label, components=targets[:1], samples=[[s] for s in samples], type="index"
    )
    shown.click(picked, shown, targets, show_progress="hidden", api_visibility="private")


def _setting(name: str) -> Any:
    return next(f for f in fields(GenerationSettings) if f.name == name)
