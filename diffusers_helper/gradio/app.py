"""FramePack's demos: what the page's events do, and how the page is served."""

import argparse
import asyncio
import inspect
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from diffusers_helper.errors import (
    PromptError,
    SettingsError,
    UserError,
    WeightsError,
    explain,
)
from diffusers_helper.generation import Event, generate, open_image
from diffusers_helper.gradio.jobs import Job, JobQueue, Status
from diffusers_helper.gradio.page import (
    CHOSEN,
    CSS,
    DRAWN,
    TIMING,
    Page,
    page_rejection,
    page_updates,
)
from diffusers_helper.gradio.plot import guidance_note, guidance_table
from diffusers_helper.gradio.presets import preset_note, preset_of
from diffusers_helper.gradio.prompts import prompt_note, wrong_note
from diffusers_helper.models import Models, choose_model, load_models, model_description
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from diffusers_helper.utils import generate_timestamp

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


def _takes_inputs(function: Callable) -> Callable:
    """Show `(input_image, *inputs, **named_inputs)` as the flat list of FramePack's inputs.

    That list is `GenerationSettings`; Gradio names the interface's parameters after what it sees
    here.
    """
    own = inspect.signature(function).parameters
    flat = inspect.signature(GenerationSettings).parameters
    kept = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    before, after = ([p for p in own.values() if p.kind is kind] for kind in kept)
    function.__signature__ = inspect.Signature([*before, *flat.values(), *after])
    return function


class Demo:
    """One of FramePack's two demos.

    Args:
        title: of the page.
        model: name of its real checkpoint, see `load_models`.
        order: of its sections.
    """

    def __init__(self, title: str, model: str, order: SectionOrder) -> None:
        self.title = title
        self.order = order
        self.real_model = model
        self.model = model
        self.description = model_description(model)
        self.weights: Path | None = None
        self.output_dir = Path("outputs")
        self.loading = ""
        """What is being loaded, in a few words; empty when nothing is."""
        self.load_error = ""
        """Why loading failed, in a sentence; it is tried again with the next job."""
        self._models: Models | None = None
        self._fp8 = False
        """Whether they were loaded for float8."""
        self.jobs = JobQueue(prepare=self.models, explain=self._explain)

    def main(self, arguments: list[str] | None = None) -> None:
        """Serve the page until interrupted."""
        options = self._parse(arguments)
        try:
            self.configure(options.model, options.weights, options.output_dir)
        except WeightsError as error:
            sys.exit(f"error: {error}")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            handlers=[logging.StreamHandler(), logging.FileHandler(self._log, encoding="utf-8")],
        )
        logging.getLogger("diffusers_helper").setLevel(logging.INFO)
        local = options.server in ("127.0.0.1", "localhost", "::1") and not options.share
        if not local and options.auth is None:
            logger.warning(
                "Anyone who reaches this address can use this machine: set --auth USER:PASSWORD"
            )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as by Ctrl-C
        self.loading = "Starting"
        self.jobs.start()
        try:
            self.page().blocks.launch(
                server_name=options.server,
                server_port=options.port,
                share=options.share,
                inbrowser=options.inbrowser,
                auth=options.auth,
                show_error=True,
                run_history=False,  # it would keep inputs and videos in the browser's storage
                css=CSS,
            )
        finally:
            self.jobs.close()

    def configure(self, model: str, weights: Path | None, output_dir: Path) -> None:
        """Choose what to load and where to write.

        Args:
            model: the real checkpoint's name, "tiny", or "auto" for whichever this machine runs.
            weights: see `load_models`.
            output_dir: of videos and the log.

        Raises:
            WeightsError: `weights` is no folder of the tiny model.
        """
        self.model = choose_model(model, self.real_model)
        self.description = model_description(self.model, weights)
        self.weights = weights
        self.output_dir = output_dir.absolute()

    def models(self, fp8: bool | None = None) -> Models:
        """The models, loaded at the first call and whenever `fp8` changes; None takes any."""
        if fp8 is not None and fp8 != self._fp8:
            self._models, self._fp8 = None, fp8  # first let go of these: both may not fit
        if self._models is None:
            self.load_error = ""
            try:
                self._models = load_models(
                    self.model, weights=self.weights, report=self._report, fp8=self._fp8
                )
            except Exception as error:
                self.load_error = self._explain(error)
                raise
            finally:
                self.loading = ""
        return self._models

    def page(self) -> Page:
        """The page, wired to this demo."""
        return Page(self)

    @_takes_inputs
    def worker(
        self,
        input_image: Any,
        *inputs: Any,
        stop: threading.Event | None = None,
        **named_inputs: Any,
    ) -> Iterator[Event]:
        """Make a video; FramePack's inputs in FramePack's order, then those of ours.

        Args:
            input_image: what `open_image` takes.
            *inputs, **named_inputs: see `GenerationSettings`.
            stop: set it to end, see `generate`.

        Returns:
            The events of `generate`; nothing runs before the first is asked for.

        Raises:
            UserError: the image or an input cannot be used.
        """
        settings = GenerationSettings(*inputs, **named_inputs)
        image = open_image(input_image)
        stop = threading.Event() if stop is None else stop

        def events() -> Iterator[Event]:
            output = self.output_dir / f"{generate_timestamp()}.mp4"
            models = self.models(settings.fp8)
            yield from generate(models, image, settings, self.order, output, stop)

        return events()

    @_takes_inputs
    async def process(
        self, input_image: Any, *inputs: Any, **named_inputs: Any
    ) -> AsyncIterator[list]:
        """Start a job with these inputs and follow it: the page's updates until it ends.

        Raises:
            gr.Error: with the sentence that the page shows.
        """
        stop = threading.Event()
        try:
            events = self.worker(input_image, *inputs, stop=stop, **named_inputs)
        except UserError as error:
            yield page_rejection(str(error))
            raise gr.Error(str(error), print_exception=False) from error
        job = self.jobs.submit(events, stop)
        async for update in self._follow(job):
            yield update
        if job.view.error is not None:
            raise gr.Error(job.view.error, print_exception=False)

    async def attach(self, job_id: str | None) -> AsyncIterator[list]:
        """Follow the job that this browser started before the page was loaded, if any."""
        job = self.jobs.get(job_id)
        if job is None:
            yield gr.skip()
            return
        async for update in self._follow(job):
            yield update

    def end(self, job_id: str | None) -> dict:
        """Stop the job that the page shows."""
        self.jobs.end(job_id)
        return gr.update(interactive=False, value="Ending ...")

    def draw(self, *drawn: Any) -> list:
        """The plot and its note for the inputs named in `DRAWN`."""
        inputs = dict(zip(DRAWN, drawn, strict=True))
        input_image = inputs.pop("input_image")
        try:
            settings = GenerationSettings(**inputs)
        except SettingsError:  # half typed
            return [gr.skip(), gr.skip()]
        table = guidance_table(self.description.resolution, input_image, settings)
        # The table alone: with limits of the axes beside it, the drawing stays one update behind.
        return [table, guidance_note(table, settings)]

    def tell_prompts(self, *timing: Any) -> str:
        """The note on timed prompts for the inputs named in `TIMING`."""
        try:
            settings = GenerationSettings(**dict(zip(TIMING, timing, strict=True)))
        except PromptError as error:
            return wrong_note(error)
        except SettingsError:  # half typed
            return gr.skip()
        return prompt_note(settings, self.order)

    def tell_preset(self, *chosen: Any) -> list:
        """The preset, None if it is none, and its note for the inputs named in `CHOSEN`."""
        try:
            settings = GenerationSettings(**dict(zip(CHOSEN, chosen, strict=True)))
        except SettingsError:  # half typed
            return [gr.skip(), gr.skip()]
        preset = preset_of(settings)
        return [preset and preset.name, preset_note(settings, self.order)]

    async def watch_loading(self) -> AsyncIterator[str]:
        """The notice at the top of the page, until the models are there."""
        shown = None
        while True:
            notice = self._notice()
            if notice != shown:
                yield notice
                shown = notice
            if not self.loading:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow(self, job: Job) -> AsyncIterator[list]:
        shown = None
        while True:
            view = job.view
            place = self.jobs.place(job) if view.status is Status.WAITING else 0
            now = (view, place, self.loading)
            if now != shown:
                new_video = shown is None or view.status.ended or view.frames != shown[0].frames
                yield page_updates(view, place, self.loading, new_video)
                shown = now
            if view.status.ended:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _notice(self) -> str:
        if self.loading:
            return f"⏳ {self.loading} ..."
        if self.load_error:
            return f"⚠️ {self.load_error}"
        return self.description.notice

    def _report(self, loading: str) -> None:
        logger.info(loading)
        self.loading = loading

    @property
    def _log(self) -> Path:
        return self.output_dir / "framepack.log"

    def _explain(self, error: BaseException) -> str:
        return explain(error, str(self._log))

    def _parse(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=f"{self.title} with Step-Adaptive CFG")
        parser.add_argument("--share", action="store_true", help="open a public Gradio link")
        parser.add_argument("--server", default="127.0.0.1", help="address to listen on")
        parser.add_argument("--port", type=int, help="default: the first free one from 7860")
        parser.add_argument("--inbrowser", action="store_true", help="open the page in a browser")
        parser.add_argument("--auth", type=_user_and_password, metavar="USER:PASSWORD")
        parser.add_argument(
            "--model",
            choices=("auto", self.real_model, "tiny"),
            default="auto",
            help="auto: the real checkpoint on a CUDA GPU, else tiny",
        )
        parser.add_argument("--weights", type=Path, metavar="DIR", help="local copy of the weights")
        parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("outputs"))
        return parser.parse_args(arguments)


def _user_and_password(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError(f"must be USER:PASSWORD, got {text!r}")
    return user, password
