import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from diffusers_helper.gradio.plot import guidance_table
from diffusers_helper.sections import FPS
from diffusers_helper.settings import GenerationSettings
from tests.conftest import MINIATURE_NOTICE, MINIATURE_SETTINGS

try:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, expect, sync_playwright
except ImportError:
    sync_playwright = None

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 90
PAGE_SECONDS = 20
JOB_SECONDS = 90

RESOLUTION = 128
SCALE = f"{MINIATURE_SETTINGS['gs']:.2f}"

BETA, LENGTH = "Adaptive CFG Beta", "Total Video Length (Seconds)"
WINDOW, STEPS, CFG = "Latent Window Size", "Steps", "CFG Scale"
ONE_SECTION = {LENGTH: 1, STEPS: 2}
ENDLESS = {LENGTH: 120, STEPS: 2, WINDOW: 3}
KEPT = re.compile(r"Ended: \d+\.\d s of video \((\d+) frames\) kept\.")
ONE_FINISHED = "Finished: 1.2 s of video (37 frames)."
TWO_FINISHED = "Finished: 2.4 s of video (73 frames)."


@dataclass(frozen=True)
class Server:
    """The demo, in a process of its own."""

    url: str
    log: Path
    outputs: Path


@dataclass(frozen=True)
class Video:
    """The video that a page shows."""

    address: str
    size: tuple[int, int]
    frames: int


class Visitor:
    """Somebody with a browser of their own in front of the page."""

    def __init__(self, browser: "Browser", url: str) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PAGE_SECONDS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.start = self.page.get_by_role("button", name="Start Generation")
        self.end = self.page.get_by_role("button", name=re.compile("End Generation|Ending"))
        self.text = self.page.locator("#progress-text").get_by_test_id("markdown")
        self.note = self.page.locator("#guidance-note").get_by_test_id("markdown")
        self.video = self.page.locator("#result-video video")
        latents = self.page.locator(".block").filter(has_text="Next Latents")
        self.preview = latents.locator("img")
        self.image = self.page.get_by_test_id("image").locator("img")
        self.remove_image = self.page.get_by_label("Remove Image")
        self.prompt = self.page.get_by_label("Prompt", exact=True)
        self.page.goto(url)
        self.wait_for_plot()
        self.remove_image.wait_for()  # an example is there from the start

    def _note(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def wait_for_plot(self) -> None:
        expect(self.note).to_have_text(re.compile("Distilled CFG Scale|CFG Scale"))
        self._points.first.wait_for(state="attached")

    @property
    def _points(self) -> "Locator":
        return self.page.locator('#guidance-plot .hover_marks [aria-label^="Step:"]')

    def plotted(self) -> list[float]:
        """Guidance of the steps as the drawing has it."""
        labels = self._points.evaluate_all("points => points.map(p => p.ariaLabel)")
        return [float(label.rsplit(" ", 1)[1]) for label in labels]

    def sees_plotted(self, guidance: list[float]) -> None:
        deadline = time.monotonic() + PAGE_SECONDS
        while (plotted := self.plotted()) != pytest.approx(guidance, abs=0.01):
            assert time.monotonic() < deadline, (plotted, guidance)
            self.page.wait_for_timeout(50)

    def line(self) -> str:
        """The drawn line itself."""
        return self.page.locator("#guidance-plot .plot_marks path").get_attribute("d")

    def upload(self, image: Path) -> None:
        if self.remove_image.is_visible():
            self.remove_image.click()
        self.page.locator("input[type=file]").first.set_input_files(image)
        self.remove_image.wait_for()

    def set(self, numbers: dict[str, float]) -> None:
        for label, value in numbers.items():
            number = self.page.get_by_label(f"number input for {label}", exact=True)
            number.fill(str(value))
            number.press("Tab")

    def ask_for(self, image: Path, numbers: dict[str, float]) -> None:
        self.upload(image)
        self.set(numbers)
        self.start.click()

    def sees(self, text: "str | re.Pattern[str]", seconds: float = PAGE_SECONDS) -> None:
        expect(self.text).to_have_text(text, timeout=1000 * seconds)

    def sees_job_end(self, text: "str | re.Pattern[str]") -> None:
        self.sees(text, JOB_SECONDS)
        expect(self.start).to_be_enabled()
        expect(self.end).to_be_disabled()

    def shown(self) -> Video:
        """The video, once the browser knows its size."""
        self.video.wait_for()
        is_ready = "video => video.readyState >= HTMLMediaElement.HAVE_METADATA"
        self.page.wait_for_function(is_ready, arg=self.video.element_handle())
        read = "v => [v.src, v.videoWidth, v.videoHeight, v.duration]"
        address, width, height, duration = self.video.evaluate(read)
        return Video(address, (width, height), round(FPS * duration))

    def kept_frames(self) -> int:
        return int(KEPT.search(self.text.inner_text())[1])

    def leave_a_screenshot(self, path: Path) -> None:
        if not self.page.is_closed():
            self.page.screenshot(path=path, full_page=True)
            sys.stderr.write(f"Screenshot: {path}\n")

    def leave(self) -> None:
        """Nobody should have to wait for a job that a failed test has left behind."""
        if not self.page.is_closed() and self.end.is_enabled():
            self.end.click()
            expect(self.end).to_be_disabled()
        self.context.close()


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI is true")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if sync_playwright is None:
        unavailable("playwright is not installed (requirements-dev.txt)")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        unavailable(f"there is no browser (none of {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(
    browser: "Browser", miniature_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = Server(f"http://127.0.0.1:{port}", folder / "server.log", folder / "outputs")
    options = ["--model", "tiny", "--weights", str(miniature_weights)]
    options += ["--port", str(port), "--output-dir", str(served.outputs)]
    with served.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "demo_gradio_f1.py", *options],
            cwd=ROOT,
            # Of two cores, one is the browser's.
            env=os.environ | {"GRADIO_TEMP_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_answer(served, process)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_answer(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(server.url, timeout=PAGE_SECONDS):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"The page does not answer:\n{server.log.read_text()}")
            time.sleep(0.1)


@pytest.fixture
def new_visitor(
    browser: "Browser",
    server: Server,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Visitor]]:
    visitors: list[Visitor] = []
    failures, log_start = request.session.testsfailed, server.log.stat().st_size

    def come() -> Visitor:
        visitors.append(Visitor(browser, server.url))
        return visitors[-1]

    yield come
    if request.session.testsfailed > failures:
        folder = tmp_path_factory.mktemp("screenshots")
        for number, visitor in enumerate(visitors):
            visitor.leave_a_screenshot(folder / f"{request.node.name}_{number}.png")
        sys.stderr.write(server.log.read_bytes()[log_start:].decode(errors="replace"))
    for visitor in visitors:
        visitor.leave()


@pytest.fixture
def visitor(new_visitor: Callable[[], Visitor]) -> Visitor:
    return new_visitor()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, good and bad."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.linear_gradient("L").resize((200, 120)).save(folder / "wide.png")
    Image.radial_gradient("L").resize((120, 200)).save(folder / "tall.jpg")
    Image.new("RGB", (31, 200)).save(folder / "small.png")
    (folder / "text.png").write_text("This is no picture.")
    return folder


@pytest.fixture(scope="module")
def wide(pictures: Path) -> Path:
    """Makes a video of 160 x 96."""
    return pictures / "wide.png"


@pytest.fixture(scope="module")
def tall(pictures: Path) -> Path:
    """Makes a video of 96 x 160."""
    return pictures / "tall.jpg"


def test_the_result_stands_where_start_is_pressed(visitor: Visitor):
    """Beside it, or right below on a phone: before the settings in any case."""
    for width in (1280, 390):
        visitor.page.set_viewport_size({"width": width, "height": 900})
        start, result, settings = (
            place.bounding_box()
            for place in (
                visitor.start,
                visitor.page.locator("#result"),
                visitor.page.get_by_label("Seed"),
            )
        )
        if width == 390:
            assert start["y"] + start["height"] < result["y"] < settings["y"]
            wide = visitor.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
        else:
            assert result["x"] > start["x"] + start["width"]
            assert result["y"] < start["y"] < settings["y"]


def test_a_press_of_start_is_all_that_is_needed(visitor: Visitor):
    expect(visitor.image).to_have_attribute("src", re.compile("/person.png$"))
    expect(visitor.prompt).to_have_value("The person gradually fades away and disappears")
    for label, name in ((LENGTH, "total_second_length"), ("Distilled CFG Scale", "gs")):
        number = visitor.page.get_by_label(f"number input for {label}", exact=True)
        expect(number).to_have_value(f"{MINIATURE_SETTINGS[name]:g}")
    expect(visitor.page.locator("#notice")).to_have_text(MINIATURE_NOTICE)
    visitor.set({STEPS: 2})  # it would come to an end with 25 as well, but later
    visitor.start.click()
    visitor.sees_job_end(ONE_FINISHED)
    assert visitor.shown().size == (128, 128)
    assert visitor.errors == []


def test_from_an_image_to_a_video_that_plays(visitor: Visitor, wide: Path):
    visitor.upload(wide)
    visitor.set({LENGTH: 2, STEPS: 3})
    expect(visitor.page.locator("#guidance-plot .hover_marks path")).to_have_count(3)
    expect(visitor.note).to_have_text(f"Constant: Distilled CFG Scale {SCALE} at every step.")
    assert visitor.plotted() == [float(SCALE)] * 3
    line = visitor.line()

    visitor.set({BETA: 0.7})
    settings = GenerationSettings(**MINIATURE_SETTINGS | {"steps": 3, "adaptive_cfg_beta": 0.7})
    guidance = list(guidance_table(RESOLUTION, wide, settings)["guidance"])
    figures = rf"{SCALE}: {guidance[0]:.2f} at the first step, {guidance[-1]:.2f} at the last"
    expect(visitor.note).to_have_text(re.compile(rf"Acts on Distilled CFG Scale {figures}"))
    expect(visitor.page.locator("#guidance-plot .plot_marks path")).not_to_have_attribute("d", line)
    assert visitor.plotted() == pytest.approx(guidance, abs=0.01)

    visitor.start.click()
    visitor.sees_job_end(TWO_FINISHED)
    video = visitor.shown()
    assert (video.size, video.frames) == ((160, 96), 73)
    plays_on = "([video, start]) => !video.paused && video.currentTime != start"
    handle = visitor.video.element_handle()
    for _ in range(2):
        visitor.page.wait_for_function(
            plays_on, arg=[handle, handle.evaluate("v => v.currentTime")]
        )
    expect(visitor.preview).to_be_hidden()
    assert visitor.errors == []


def test_two_visitors_at_once(new_visitor: Callable[[], Visitor], wide: Path, tall: Path):
    first, second = new_visitor(), new_visitor()
    for visitor, picture, seconds in ((first, wide, 3), (second, tall, 1)):
        visitor.upload(picture)
        visitor.set({LENGTH: seconds, STEPS: 2})
    first.start.click()
    first.sees(re.compile("Section 1 of 2"))
    second.start.click()
    second.sees("Waiting: 1 job before yours.")
    second.end.click()
    second.sees_job_end("Ended before a section was finished.")
    second.start.click()
    second.sees("Waiting: 1 job before yours.")

    first.sees_job_end(TWO_FINISHED)
    second.sees_job_end(ONE_FINISHED)
    first.sees(TWO_FINISHED)
    videos = [first.shown(), second.shown()]
    assert [video.size for video in videos] == [(160, 96), (96, 160)]
    assert [video.frames for video in videos] == [73, 37]
    assert first.errors + second.errors == []


def test_a_reloaded_page_finds_its_job_again(visitor: Visitor, wide: Path):
    visitor.ask_for(wide, ENDLESS)
    visitor.sees(re.compile("so far"), JOB_SECONDS)
    visitor.page.reload()
    visitor.sees(re.compile(r"Section \d+ of 300 .* so far"))
    expect(visitor.start).to_be_disabled()
    assert visitor.shown().size == (160, 96)
    visitor.end.click()
    visitor.sees_job_end(KEPT)
    kept = visitor.kept_frames()
    visitor.page.reload()
    visitor.sees_job_end(KEPT)
    assert visitor.kept_frames() == visitor.shown().frames == kept


def test_ending_keeps_what_is_finished(visitor: Visitor, wide: Path):
    visitor.ask_for(wide, ENDLESS)
    visitor.sees(re.compile(r"Section \d+ of 300 .* so far"), JOB_SECONDS)
    expect(visitor.preview).to_be_visible()
    growing = visitor.shown().frames
    assert growing % 12 == 1
    visitor.end.click()
    visitor.sees_job_end(KEPT)
    kept = visitor.kept_frames()
    assert growing <= kept < 12 * 20
    assert visitor.shown().frames == kept

    visitor.set(ONE_SECTION | {WINDOW: 9})
    visitor.start.click()
    visitor.sees_job_end(ONE_FINISHED)
    assert visitor.shown().frames == 37


def test_a_closed_tab_troubles_nobody(new_visitor: Callable[[], Visitor], wide: Path, tall: Path):
    first = new_visitor()
    first.ask_for(wide, ONE_SECTION)
    first.sees(re.compile("Section 1"))
    first.context.close()
    later = new_visitor()
    expect(later.text).to_have_text("")
    expect(later.video).to_have_count(0)
    expect(later.end).to_be_disabled()
    later.ask_for(tall, ONE_SECTION)
    later.sees_job_end(ONE_FINISHED)
    assert later.shown().size == (96, 160)


def test_errors_are_read_on_the_page_and_the_next_job_works(
    visitor: Visitor, pictures: Path, wide: Path
):
    for picture, told in (
        (None, "There is no image to start from: choose one first."),
        ("text.png", "This file cannot be read as an image: try a PNG or JPEG."),
        (
            "small.png",
            "The image is too small (31 x 200 pixels): both sides must have at least 32.",
        ),
    ):
        if picture is None:
            visitor.remove_image.click()
        else:
            visitor.upload(pictures / picture)
        visitor.start.click()
        visitor.sees_job_end(told)
        expect(visitor.text.get_by_role("alert")).to_be_in_viewport()
        visitor.ask_for(wide, ONE_SECTION)
        visitor.sees_job_end(ONE_FINISHED)
        expect(visitor.text.get_by_role("alert")).to_have_count(0)


def test_the_quick_list_and_the_examples_fill_in(visitor: Visitor):
    for text in (
        "The person walks out of the frame to the left",
        "The scene turns from day to night",
        "The star jumps up and down",
        "[0s: The person stands still] [1s: The person fades away]",
        "The person gradually fades away and disappears",
    ):
        visitor.page.get_by_role("button", name=text).click()
        expect(visitor.prompt).to_have_value(text)
    examples = visitor.page.locator(".gallery-item img")
    expect(examples).to_have_count(4)
    for file, prompt in (("star.png", "The star jumps"), ("person.png", "The person")):
        visitor.page.locator(f'.gallery-item img[src$="{file}"]').click()
        expect(visitor.image).to_have_attribute("src", re.compile(f"{file}$"))
        expect(visitor.prompt).to_have_value(re.compile(prompt))


def test_the_drawing_follows_every_input(visitor: Visitor):
    asked = {}
    for label, name, value in (
        (BETA, "adaptive_cfg_beta", 0.7),
        ("Distilled CFG Scale", "gs", 20),
        ("Adaptive CFG Min", "adaptive_cfg_min", 3),
        (WINDOW, "latent_window_size", 2),
        (STEPS, "steps", 4),
        (CFG, "cfg", 5),
    ):
        visitor.set({label: value})
        asked[name] = value
        settings = GenerationSettings(**MINIATURE_SETTINGS | asked)
        table = guidance_table(RESOLUTION, None, settings)
        visitor.sees_plotted(list(table["guidance"]))


def test_the_note_speaks_of_what_is_set(visitor: Visitor):
    visitor.set({BETA: 0.8})
    expect(visitor.note).to_contain_text(f"Acts on Distilled CFG Scale {SCALE}")
    expect(visitor.note).not_to_contain_text("quality may drop")
    visitor.set({BETA: 0.85})
    expect(visitor.note).to_contain_text("Above 0.8 quality may drop")
    visitor.set({CFG: 2})
    expect(visitor.note).to_contain_text("Acts on CFG Scale 2.00")
    visitor.set({BETA: 0})
    expect(visitor.note).to_have_text("Constant: CFG Scale 2.00 at every step.")


def test_a_preset_sets_what_is_below_and_is_left_by_moving_it(visitor: Visitor):
    note = visitor.page.locator("#preset-note").get_by_test_id("markdown")
    gate = visitor.page.get_by_label("number input for Prompt Gate")
    beta = visitor.page.get_by_label(f"number input for {BETA}")
    visitor.page.get_by_role("button", name="Low-Pass Conditioning").click()
    expect(visitor.page.get_by_label("As trained")).to_be_checked()
    visitor.set({BETA: 0.5})
    expect(note).to_have_text("Settings of your own.")
    expect(visitor.page.locator("#preset input:checked")).to_have_count(0)
    visitor.page.get_by_label("Let it leave").check()
    expect(gate).to_have_value("1")
    expect(beta).to_have_value("0")
    expect(note).to_contain_text("This prompt does not change")
    visitor.prompt.fill("[0s: The person stands still] [1.2s: The person fades away]")
    expect(note).not_to_contain_text("This prompt does not change")
    expect(visitor.page.get_by_label("Let it leave")).to_be_checked()
    visitor.page.get_by_label("As trained").check()
    expect(gate).to_have_value("0")


def test_a_timed_prompt_tells_its_sections_and_what_is_wrong(visitor: Visitor, wide: Path):
    note = visitor.page.locator("#prompt-note")
    expect(note).to_be_hidden()
    visitor.upload(wide)
    visitor.set({LENGTH: 2.4, STEPS: 2})
    visitor.prompt.fill("[0s: The person stands] [1.5s: The person *walks* out]")
    lines = note.locator(".prose > *")
    expect(lines).to_have_text(
        [
            "From 0.0 s, section 1: The person stands",
            "From 1.2 s, section 2: The person *walks* out",
        ]
    )
    visitor.set({LENGTH: 1.5})
    wrong = "'[1.5s:' begins when the video of 1.5 s is over."
    expect(lines).to_have_text([wrong])
    visitor.start.click()
    visitor.sees_job_end(wrong)
    expect(visitor.prompt).to_have_value("[0s: The person stands] [1.5s: The person *walks* out]")
    visitor.set({LENGTH: 2.4})
    expect(lines).to_have_count(2)
    visitor.start.click()
    visitor.sees_job_end(TWO_FINISHED)
    visitor.prompt.fill("The person walks out")
    expect(note).to_be_hidden()


@pytest.mark.parametrize("name", ["framepack.log", "another.mp4"])
def test_the_output_folder_is_not_for_visitors(server: Server, name: str):
    file = server.outputs / name
    file.touch()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{server.url}/gradio_api/file={file}", timeout=PAGE_SECONDS)
