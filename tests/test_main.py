import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_helper import __main__ as command
from diffusers_helper.errors import NonFiniteError
from diffusers_helper.generation import Done, Event, Progress, SectionFinished
from diffusers_helper.models import Models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from tests.conftest import MINIATURE_SETTINGS, read_video

ROOT = Path(command.__file__).parents[1]
OPTIONS = {
    "prompt": ("--prompt", "a dancer"),
    "n_prompt": ("--negative-prompt", "rain"),
    "seed": ("--seed", 7),
    "total_second_length": ("--seconds", 3.5),
    "latent_window_size": ("--latent-window-size", 4),
    "steps": ("--steps", 11),
    "cfg": ("--cfg", 2.5),
    "gs": ("--gs", 8.5),
    "rs": ("--rs", 0.3),
    "gpu_memory_preservation": ("--gpu-memory-preservation", 9.5),
    "use_teacache": ("--no-use-teacache", False),
    "mp4_crf": ("--mp4-crf", 20),
    "adaptive_cfg_beta": ("--adaptive-cfg-beta", 0.65),
    "adaptive_cfg_min": ("--adaptive-cfg-min", 1.5),
    "low_pass_factor": ("--low-pass-factor", 0.625),
    "low_pass_frames": ("--low-pass-frames", "last"),
    "low_pass_sigma": ("--low-pass-sigma", 0.95),
    "history_low_pass": ("--history-low-pass", 0.4),
    "prompt_gate": ("--prompt-gate", 0.45),
    "fp8": ("--fp8", True),
}
SMALL = ["--seconds", "1", "--latent-window-size", "3", "--steps", "2"]
FRAMES, SECTIONS = 25, 2
ONE_SECTION = ["--seconds", "1", "--latent-window-size", "7", "--steps", "1"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "videos" / "out.mp4"


@pytest.fixture
def run(
    image: Path, output: Path, miniature: Models, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """The command, on which "tiny" is the miniature that is already there."""
    load_models = command.load_models

    def load(name: str, **options: Any) -> Models:
        return miniature if name == "tiny" else load_models(name, **options)

    def run(*arguments: str) -> int:
        return command.main(["--image", str(image), "--output", str(output), *arguments])

    monkeypatch.setattr(command, "load_models", load)
    return run


@pytest.fixture
def generated(run: Callable, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of `generate`, which makes nothing."""
    calls, signature = [], inspect.signature(command.generate)

    def generate(*args: Any, **kwargs: Any) -> Iterator[Event]:
        calls.append(signature.bind(*args, **kwargs).arguments)
        yield Done(calls[-1]["output"], 0, stopped=False)

    monkeypatch.setattr(command, "generate", generate)
    monkeypatch.setattr(command, "load_models", lambda name, **options: name)
    return calls


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


# What it makes


def test_the_command_as_a_user_runs_it(image: Path, output: Path):
    arguments = ["--model", "tiny", "--image", str(image), "--output", str(output), *SMALL]
    arguments += ["--prompt", "a dancer", "--seed", "1", "--adaptive-cfg-beta", "0.7"]
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_helper", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert one_line(done.stdout) == f"{output} ({FRAMES} frames)"
    video = read_video(output)
    assert (len(video.yuv), video.size) == (FRAMES, (96, 160))
    told = json.loads(video.comment)
    assert told == json.loads(output.with_suffix(".json").read_text())
    assert (told["prompt"], told["seed"], told["adaptive_cfg_beta"]) == ("a dancer", 1, 0.7)
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.json", "out.mp4"]


@pytest.mark.parametrize(("demo", "order"), [("f1", "forward"), ("framepack", "inverted")])
def test_demo_picks_the_order(run: Callable, output: Path, demo: str, order: str):
    assert run("--model", "tiny", "--demo", demo, *ONE_SECTION) == 0
    assert json.loads(output.with_suffix(".json").read_text())["section_order"] == order
    assert read_video(output).size == (96, 160)


@pytest.mark.parametrize(
    ("arguments", "model", "order"),
    [
        ([], "f1", SectionOrder.FORWARD),
        (["--model", "framepack"], "framepack", SectionOrder.INVERTED),
        (["--model", "framepack", "--demo", "f1"], "framepack", SectionOrder.FORWARD),
        (["--demo", "framepack"], "f1", SectionOrder.INVERTED),
        (["--model", "tiny"], "tiny", SectionOrder.FORWARD),
    ],
)
def test_a_model_has_its_own_order(
    run: Callable,
    generated: list,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    model: str,
    order: SectionOrder,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run(*arguments) == 0
    assert (generated[0]["models"], generated[0]["order"]) == (model, order)


def test_every_setting_has_an_option(run: Callable, generated: list, output: Path):
    assert list(OPTIONS) == [setting.name for setting in fields(GenerationSettings)]
    arguments = []
    for option, value in OPTIONS.values():
        arguments += [option] if isinstance(value, bool) else [option, str(value)]
    assert run(*arguments) == 0
    expected = {name: value for name, (_, value) in OPTIONS.items()}
    assert asdict(generated[0]["settings"]) == expected
    assert generated[0]["output"] == output


@pytest.mark.parametrize("cuda", [True, False])
def test_without_a_gpu_the_model_is_the_tiny_one(
    run: Callable,
    generated: list,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cuda: bool,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert run() == 0
    assert generated[0]["models"] == ("f1" if cuda else "tiny")
    assert ("There is no CUDA GPU" in caplog.text) is not cuda


@pytest.mark.parametrize("model", ["f1", "framepack"])
def test_options_default_to_the_settings_own(run: Callable, generated: list, model: str):
    assert run("--model", model) == 0
    assert generated[0]["settings"] == GenerationSettings()


def test_options_default_to_what_the_model_recommends(
    run: Callable, generated: list, miniature_weights: Path
):
    arguments = ["--model", "tiny", "--weights", str(miniature_weights)]
    for given in ({}, {"gs": 3.0, "steps": 9}):
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        assert run(*arguments, *options) == 0
        assert generated[-1]["settings"] == GenerationSettings(**MINIATURE_SETTINGS | given)


def test_the_shipped_model_recommends_too(run: Callable, generated: list, tiny: Models):
    assert run("--model", "tiny") == 0
    assert generated[0]["settings"] == GenerationSettings(**tiny.settings)


def test_help_names_every_setting_with_its_default(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in fields(GenerationSettings):
        option = OPTIONS[setting.name][0]
        assert f"{option} " in text
        assert " ".join(setting.metadata["help"].split()) in text
        assert f"(default: {setting.default})" in text


class Terminal:
    """A bar that is always shown, and its texts."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int | None]] = []
        self.total: int | None = None
        self.n = 0

    def __call__(self, **_: Any) -> "Terminal":
        return self

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_description(self, text: str) -> None:
        self.shown.append((text, self.n, self.total))


def test_the_bar_runs_from_0_to_all_steps(run: Callable, monkeypatch: pytest.MonkeyPatch):
    bar = Terminal()
    monkeypatch.setattr(command, "tqdm", bar)
    assert run("--model", "tiny", *SMALL) == 0
    steps = [n for _, n, _ in bar.shown]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 2 * SECTIONS)
    assert {total for _, _, total in bar.shown} == {2 * SECTIONS}
    assert {text for text, _, _ in bar.shown} >= {"Reading the prompt", "Denoising", "Decoding"}


# How it fails


@pytest.fixture
def broken_image(tmp_path: Path) -> Path:
    path = tmp_path / "broken.png"
    path.write_text("no picture")
    return path


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--image", "{tmp}/nowhere.png"], 1, "There is no image at {tmp}/nowhere.png."),
        (["--image", "{tmp}/broken.png"], 1, "This file cannot be read as an image"),
        (["--image", "{tmp}/small.png"], 1, "The image is too small (31 x 40 pixels)"),
        (["--image", "{tmp}"], 1, "This file cannot be read as an image"),
        (["--model", "f1", "--weights", "{tmp}"], 1, "{tmp}"),
        (["--model", "f1", "--weights", "{tmp}/nowhere"], 1, "{tmp}/nowhere"),
        (["--weights", "{tmp}"], 1, "{tmp} has no framepack.json"),
        (["--output", "{tmp}/broken.png/out.mp4"], 1, "{tmp}/broken.png"),
        (["--steps", "0"], 2, "steps must be in [1, 100], got 0"),
        (["--seconds", "nan"], 2, "must be in [1, 120], got nan"),
        (["--prompt", "[0s: a] then [0.5s: b]"], 2, "'then' has no time"),
        (["--prompt", "[0s: a] [1s: b]"], 2, "'[1s:' begins when the video of 1 s is over"),
        (["--adaptive-cfg-beta", "1.2"], 2, "adaptive_cfg_beta must be in [0, 1], got 1.2"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    run: Callable,
    tmp_path: Path,
    broken_image: Path,
    output: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    status: int,
    told: str,
):
    Image.new("RGB", (31, 40)).save(tmp_path / "small.png")
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run("--model", "tiny", *SMALL, *filled) == status
    line = one_line(capsys.readouterr().err)
    assert line.startswith("error: ")
    assert told.replace("{tmp}", str(tmp_path)) in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NonFiniteError("no picture in section 2"), "no picture in section 2"),
        (OSError(28, "No space left on device", "out.mp4"), "The disk is full"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        (RuntimeError("shapes differ"), "--verbose"),
    ],
)
def test_an_error_on_the_way_is_one_line(
    run: Callable,
    generated: list,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Exception,
    told: str,
):
    def generate(*_: Any, **__: Any) -> Iterator[Event]:
        yield Progress("Denoising", 1, 2, 1, 25)
        raise error

    monkeypatch.setattr(command, "generate", generate)
    assert run() == 1
    line = one_line(capsys.readouterr().err)
    assert line.startswith("error: ")
    assert told in line
    with pytest.raises(type(error)):
        run("--verbose")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--image"),
        (["--image", "in.png"], "--output"),
        (["--image", "in.png", "--output", "out.mp4", "--model", "big"], "'big'"),
        (["--image", "in.png", "--output", "out.mp4", "--demo", "tiny"], "'tiny'"),
        (["--image", "in.png", "--output", "out.mp4", "--steps", "2.5"], "'2.5'"),
        (["--image", "in.png", "--output", "out.mp4", "--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_call_is_a_usage_error(
    capsys: pytest.CaptureFixture, arguments: list[str], told: str
):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert usage[0].startswith("usage: python -m diffusers_helper ")
    assert told in line


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As at a terminal; what a shell runs in the background ignores interrupts from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_is_finished(
    run: Callable, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    generate, finished = command.generate, []

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Event]:
        for event in generate(*args, **kwargs):
            yield event
            if isinstance(event, SectionFinished):
                finished.append(event)
            elif finished and event.step == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command, "generate", interrupted)
    assert run("--model", "tiny", *SMALL) == 130
    (section,) = finished
    assert 0 < section.frames < FRAMES
    assert len(read_video(output).yuv) == section.frames
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.json", "out.mp4"]
    told = capsys.readouterr()
    assert told.out == f"{output} ({section.frames} frames)\n"
    assert "Traceback" not in told.err


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_before_a_section_is_finished_promises_nothing(
    run: Callable, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Event]:
        yield Progress("Denoising", section=1, sections=2, step=1, steps=2)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command, "generate", interrupted)
    assert run("--model", "tiny", *SMALL) == 130
    assert capsys.readouterr().out == ""
    assert not output.exists()
