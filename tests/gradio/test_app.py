import argparse
import asyncio
import html
import inspect
import itertools
import json
import logging
import runpy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import demo_gradio
import demo_gradio_f1
from diffusers_helper.errors import ImageError, PromptError, SettingsError, WeightsError
from diffusers_helper.generation import Done, Event, Progress, open_image
from diffusers_helper.gradio import app, page
from diffusers_helper.gradio.app import Demo
from diffusers_helper.gradio.page import INPUT_NAMES
from diffusers_helper.gradio.presets import PRESETS, preset_values
from diffusers_helper.gradio.prompts import prompt_note
from diffusers_helper.models import Models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from tests.conftest import MINIATURE_NOTICE, MINIATURE_SETTINGS, read_video
from tests.test_settings import DEFAULTS
from training.tiny_world.config import TrainingConfig
from training.tiny_world.world import render, sample_scene, truth

ROOT = Path(demo_gradio.__file__).parent
DEMOS = {"framepack": demo_gradio, "f1": demo_gradio_f1}
REQUIRED = inspect.Parameter.empty
INPUTS = {"input_image": REQUIRED, **DEFAULTS}
OTHERS = {
    "prompt": "a dancer",
    "n_prompt": "rain",
    "seed": 7,
    "total_second_length": 3.5,
    "latent_window_size": 4,
    "steps": 11,
    "cfg": 2.5,
    "gs": 8.5,
    "rs": 0.3,
    "gpu_memory_preservation": 9.5,
    "use_teacache": False,
    "mp4_crf": 20,
    "adaptive_cfg_beta": 0.65,
    "adaptive_cfg_min": 1.5,
    "low_pass_factor": 0.625,
    "low_pass_frames": "last",
    "low_pass_sigma": 0.95,
    "history_low_pass": 0.4,
    "prompt_gate": 0.45,
    "fp8": True,
}
PIXELS = np.full((64, 96, 3), 200, np.uint8)


def new_demo() -> Demo:
    return Demo(title="A title", model="f1", order=SectionOrder.FORWARD)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("models are loaded")

    monkeypatch.setattr(app, "load_models", load)


# The demos


@pytest.mark.parametrize("name", ["demo_gradio.py", "demo_gradio_f1.py"])
def test_importing_a_demo_does_nothing(name: str, monkeypatch: pytest.MonkeyPatch, no_models: None):
    def forbidden(*args: Any, **kwargs: Any) -> None:
        pytest.fail("importing must not do this")

    monkeypatch.setattr("sys.argv", [name, "--no-such-option"])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", forbidden)
    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    monkeypatch.setattr(threading.Thread, "start", forbidden)
    monkeypatch.setattr(gr.Blocks, "__init__", forbidden)
    made = runpy.run_path(str(ROOT / name), run_name="imported")
    assert {"worker", "process"} <= made.keys()


@pytest.mark.parametrize("function", ["worker", "process"])
@pytest.mark.parametrize("demo", DEMOS.values(), ids=DEMOS)
def test_inputs_are_framepacks_then_ours(demo: Any, function: str):
    parameters = inspect.signature(getattr(demo, function)).parameters
    positional = {
        name: p.default for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
    }
    assert list(positional) == list(INPUTS)
    assert positional == INPUTS


@pytest.mark.parametrize(
    ("name", "title", "order"),
    [
        ("framepack", "FramePack", SectionOrder.INVERTED),
        ("f1", "FramePack-F1", SectionOrder.FORWARD),
    ],
)
def test_the_two_demos_differ_in_title_model_and_order(name: str, title: str, order: SectionOrder):
    demo = DEMOS[name].demo
    assert (demo.title, demo.real_model, demo.order) == (title, name, order)


# The worker


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[inspect.BoundArguments]:
    """The calls of `generate`, which makes nothing."""
    calls, signature = [], inspect.signature(app.generate)

    def generate(*args: Any, **kwargs: Any) -> Iterator[Done]:
        calls.append(signature.bind(*args, **kwargs))
        yield Done(None, 0, stopped=False)

    monkeypatch.setattr(app, "generate", generate)
    monkeypatch.setattr(app, "load_models", lambda *args, **kwargs: "the models")
    return calls


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("demo", DEMOS.values(), ids=DEMOS)
def test_the_worker_passes_everything_on(
    demo: Any, by_name: bool, generated: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(demo.demo, "_models", None)
    monkeypatch.setattr(demo.demo, "output_dir", tmp_path)
    stop = threading.Event()
    if by_name:
        events = demo.worker(input_image=PIXELS, stop=stop, **OTHERS)
    else:
        events = demo.worker(PIXELS, *OTHERS.values(), stop=stop)
    assert generated == []
    assert list(events) == [Done(None, 0, stopped=False)]
    (call,) = generated
    passed = call.arguments
    assert passed["models"] == "the models"
    assert np.array_equal(passed["image"], PIXELS)
    assert asdict(passed["settings"]) == OTHERS
    assert passed["order"] is demo.demo.order
    assert passed["output"].parent == tmp_path
    assert passed["output"].suffix == ".mp4"
    assert passed["stop"] is stop


def test_the_workers_defaults_are_the_settings_own(generated: list):
    list(new_demo().worker(PIXELS))
    assert generated[0].arguments["settings"] == GenerationSettings()
    assert not generated[0].arguments["stop"].is_set()


def test_every_job_has_a_file_of_its_own(generated: list):
    demo = new_demo()
    for _ in range(5):
        list(demo.worker(PIXELS))
    assert len({call.arguments["output"] for call in generated}) == 5


@pytest.mark.parametrize(
    ("inputs", "error", "told"),
    [
        ({"input_image": None}, ImageError, "There is no image"),
        ({"input_image": PIXELS[:20]}, ImageError, "96 x 20"),
        ({"input_image": __file__}, ImageError, "cannot be read as an image"),
        ({"input_image": "nowhere.png"}, ImageError, "nowhere.png"),
        ({"steps": 0}, SettingsError, "steps must be in [1, 100], got 0"),
        ({"adaptive_cfg_beta": 1.5}, SettingsError, "adaptive_cfg_beta must be in [0, 1], got 1.5"),
        ({"gs": float("nan")}, SettingsError, "gs must be in [1, 32], got nan"),
        ({"prompt": None}, SettingsError, "prompt must be str, got None"),
        ({"prompt": "[0s: a] b"}, PromptError, "'b' has no time"),
    ],
)
def test_the_worker_refuses_before_anything_runs(
    inputs: dict[str, Any], error: type[Exception], told: str, generated: list, no_models: None
):
    with pytest.raises(error) as caught:
        new_demo().worker(**({"input_image": PIXELS} | inputs))
    assert told in str(caught.value)
    assert generated == []


# Options


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What pages would have been launched with."""
    terminate = signal.getsignal(signal.SIGTERM)
    launched: list[dict[str, Any]] = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: launched.append(options))
    monkeypatch.setattr(app, "load_models", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield launched
    signal.signal(signal.SIGTERM, terminate)


def serve(tmp_path: Path, *arguments: str) -> Demo:
    demo = new_demo()
    demo.main(["--output-dir", str(tmp_path), *arguments])
    return demo


def test_unless_told_otherwise_the_page_is_private(served: list, tmp_path: Path):
    serve(tmp_path)
    (options,) = served
    assert options["server_name"] == "127.0.0.1"
    assert options["server_port"] is None
    assert (options["share"], options["inbrowser"], options["auth"]) == (False, False, None)


def test_options_reach_the_server(served: list, tmp_path: Path):
    arguments = "--share --server 0.0.0.0 --port 7861 --inbrowser --auth me:a:b"
    serve(tmp_path, *arguments.split())
    (options,) = served
    assert (options["server_name"], options["server_port"]) == ("0.0.0.0", 7861)
    assert (options["share"], options["inbrowser"]) == (True, True)
    assert options["auth"] == ("me", "a:b")


@pytest.mark.parametrize("text", ["", "me", "me:", ":secret", ":"])
def test_half_an_auth_is_a_usage_error(
    text: str, served: list, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as exit_:
        serve(tmp_path, "--auth", text)
    assert exit_.value.code == 2
    assert f"must be USER:PASSWORD, got {text!r}" in capsys.readouterr().err
    assert served == []


@pytest.mark.parametrize(
    ("chosen", "cuda", "loaded"),
    [
        ("auto", False, "tiny"),
        ("auto", True, "f1"),
        ("f1", False, "f1"),
        ("f1", True, "f1"),
        ("tiny", True, "tiny"),
        (None, False, "tiny"),
        (None, True, "f1"),
    ],
)
def test_which_model_is_loaded(
    chosen: str | None,
    cuda: bool,
    loaded: str,
    served: list,
    miniature_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    loads = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(
        app, "load_models", lambda name, weights, report, fp8: loads.append((name, weights))
    )
    arguments = ["--weights", str(miniature_weights)] + (["--model", chosen] if chosen else [])
    demo = serve(tmp_path, *arguments)
    demo.models()
    assert set(loads) == {(loaded, miniature_weights)}


def test_a_job_in_float8_loads_anew(monkeypatch: pytest.MonkeyPatch):
    loads = []

    def load(*_: Any, fp8: bool, **__: Any) -> str:
        loads.append(fp8)
        return f"models, {fp8}"

    monkeypatch.setattr(app, "load_models", load)
    demo = new_demo()
    assert demo.models() == demo.models(False) == "models, False"
    assert demo.models(True) == demo.models() == demo.models(True) == "models, True"
    assert demo.models(False) == "models, False"
    assert loads == [False, True, False]


def test_weights_that_are_no_tiny_model_are_told_at_once(served: list, tmp_path: Path):
    with pytest.raises(SystemExit) as exit_:
        serve(tmp_path, "--model", "tiny", "--weights", str(tmp_path))
    assert str(exit_.value).startswith(f"error: {tmp_path} has no framepack.json")
    assert served == []


@pytest.mark.parametrize("demo", DEMOS.values(), ids=DEMOS)
def test_a_demo_offers_its_own_model_only(
    demo: Any, served: list, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (other,) = DEMOS.keys() - {demo.demo.real_model}
    with pytest.raises(SystemExit):
        demo.demo.main(["--model", other])
    assert f"invalid choice: '{other}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ([], False),
        (["--server", "localhost"], False),
        (["--server", "0.0.0.0"], True),
        (["--server", "192.168.1.7"], True),
        (["--share"], True),
        (["--share", "--auth", "me:secret"], False),
        (["--server", "0.0.0.0", "--auth", "me:secret"], False),
    ],
)
def test_an_open_page_is_warned_of(
    arguments: list[str],
    warned: bool,
    served: list,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING):
        serve(tmp_path, *arguments)
    assert ("set --auth USER:PASSWORD" in caplog.text) is warned


def test_the_output_folder_is_made_and_not_served(served: list, tmp_path: Path):
    folder = tmp_path / "a" / "b"
    serve(folder)
    assert folder.is_dir()
    assert "allowed_paths" not in served[0]


# Loading


def notice(demo: Demo) -> str:
    """The first that a new page shows at its top."""
    return asyncio.run(anext(demo.watch_loading()))


def test_the_page_tells_what_is_loaded_and_what_failed(
    monkeypatch: pytest.MonkeyPatch, miniature_weights: Path, tmp_path: Path
):
    demo, told, failures = new_demo(), [], [WeightsError("The VAE is missing.")]
    demo.configure("tiny", miniature_weights, tmp_path)

    def load(name: str, weights: Path | None, report: Callable[[str], None], fp8: bool) -> str:
        report("Loading the VAE")
        told.append(notice(demo))
        if failures:
            raise failures.pop()
        return "the models"

    monkeypatch.setattr(app, "load_models", load)
    with pytest.raises(WeightsError):
        demo.models()
    told.append(notice(demo))
    assert demo.models() == demo.models() == "the models"
    told.append(notice(demo))
    assert told == [
        "⏳ Loading the VAE ...",
        "⚠️ The VAE is missing.",
        "⏳ Loading the VAE ...",
        MINIATURE_NOTICE,
    ]


# The page


def values(demo: Demo) -> dict[str, Any]:
    """What the page's inputs are when it opens, by their names."""
    return {n: c.value for n, c in zip(INPUT_NAMES, demo.page().inputs, strict=True)}


@pytest.mark.parametrize("lacking", [None, "it needs a better GPU"])
def test_float8_is_offered_where_it_runs(monkeypatch, lacking):
    monkeypatch.setattr(page, "why_not_float8", lambda device: lacking)
    inputs = Demo("title", "f1", SectionOrder.FORWARD).page().inputs
    box = inputs[INPUT_NAMES.index("fp8")]
    assert box.interactive == (lacking is None)
    assert (box.info == f"Not on this machine: {lacking}.") == (lacking is not None)


def test_a_real_models_page_opens_with_the_settings_own_defaults(tmp_path: Path):
    demo = new_demo()
    demo.configure("f1", tmp_path, tmp_path)
    assert values(demo) == INPUTS | {"input_image": None}


def test_the_tiny_models_page_opens_with_what_it_recommends(
    tiny: Models, miniature_weights: Path, tmp_path: Path
):
    demo = new_demo()
    for weights, settings in ((None, tiny.settings), (miniature_weights, MINIATURE_SETTINGS)):
        demo.configure("tiny", weights, tmp_path)
        assert values(demo) == INPUTS | settings | {"input_image": None}


@pytest.mark.parametrize(
    ("model", "examples"), [("f1", page._REAL_EXAMPLES), ("tiny", page._TINY_EXAMPLES)]
)
def test_a_page_offers_its_models_own_examples(model: str, examples: tuple, tmp_path: Path):
    demo = new_demo()
    demo.configure(model, None, tmp_path)
    blocks = demo.page().blocks.blocks.values()
    prompts, files = (block.raw_samples for block in blocks if isinstance(block, gr.Dataset))
    assert prompts == [*([text] for _, text in examples), [page._TIMED_PROMPT]]
    assert files == [[str(page._EXAMPLES_FOLDER / file)] for file, _ in examples]


@pytest.mark.parametrize("examples", [page._REAL_EXAMPLES, page._TINY_EXAMPLES])
def test_examples_are_there(examples: tuple):
    for file, _ in examples:
        assert open_image(page._EXAMPLES_FOLDER / file).shape[2] == 3


@pytest.mark.parametrize(
    ("file", "seed", "action", "shape"),
    [
        ("person", 23, "fade", "person"),
        ("walker", 31, "leave", "person"),
        ("day", 35, "night", None),
        ("star", 2, "spin", "star"),
    ],
)
def test_the_tiny_models_examples_are_of_its_world_but_not_of_its_training(
    file: str, seed: int, action: str, shape: str | None
):
    seed += TrainingConfig().unseen_seed
    scenes = [sample_scene(seed, action=action, size=(128, 128), shape=shape)]
    drawn = render(scenes, truth(scenes, 1))[0, :, 0].permute(1, 2, 0).numpy()
    image = open_image(page._EXAMPLES_FOLDER / "world" / f"{file}.png")
    assert np.abs(image - drawn.astype(float)).max() <= 1


@pytest.mark.parametrize("demo", DEMOS.values(), ids=DEMOS)
def test_the_note_on_timed_prompts_is_of_the_demos_own_order(demo: Any):
    prompt = "[0s: a] [2s: b]"
    settings = GenerationSettings(prompt=prompt, total_second_length=6)
    assert demo.demo.tell_prompts(prompt, 6, 9) == prompt_note(settings, demo.demo.order)


@pytest.mark.parametrize(
    ("timing", "told"),
    [
        (("[0s: a] b", 5, 9), "'b' has no time"),
        (("[0s: a] [2s: b]", 2, 9), "'[2s:' begins when the video of 2 s is over"),
    ],
)
def test_wrong_times_are_told_before_the_start(timing: tuple, told: str):
    assert html.escape(told) in new_demo().tell_prompts(*timing)


@pytest.mark.parametrize("prompt", ["a", "[0s: a] b"])
def test_numbers_that_are_half_typed_leave_the_note(prompt: str):
    for seconds, window in ((0, 9), (None, 9), (5, 0)):
        assert new_demo().tell_prompts(prompt, seconds, window) == gr.skip()


# Over the network


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def client(
    miniature: Models, miniature_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("outputs")
    demo = new_demo()
    demo.configure("tiny", miniature_weights, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "load_models", lambda *args, **kwargs: miniature)
        demo.jobs.start()
        blocks = demo.page().blocks
        _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, show_error=True)
        try:
            yield Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
        finally:
            blocks.close()
            demo.jobs.close()


def test_only_process_is_public(client: Client):
    interface = client.view_api(return_format="dict")
    assert list(interface["named_endpoints"]) == ["/process"]
    assert interface["unnamed_endpoints"] == {}
    parameters = interface["named_endpoints"]["/process"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == list(INPUTS)
    for parameter in parameters:
        if parameter["parameter_has_default"]:
            expected = INPUTS | MINIATURE_SETTINGS
            assert parameter["parameter_default"] == expected[parameter["parameter_name"]]


def test_what_is_shown_last_is_of_the_last_change(client: Client, monkeypatch: pytest.MonkeyPatch):
    """However long the answer to an earlier one takes: a preset changes several inputs at once."""
    preset_of = app.preset_of

    def told(settings: GenerationSettings) -> Any:
        if settings.low_pass_sigma == 0.9:
            time.sleep(0.5)
        return preset_of(settings)

    monkeypatch.setattr(app, "preset_of", told)
    (following,) = (
        call["id"]
        for call in client.config["dependencies"]
        if len(call["inputs"]) == len(page.CHOSEN) and len(call["outputs"]) == 2
    )
    beta, factor, frames, gate, *others = preset_values("Livelier")
    for sigma in (0.9, gate):
        asked = [DEFAULTS["prompt"], 1, beta, factor, frames, sigma, *others]
        call = {"data": asked, "fn_index": following, "session_hash": "somebody"}
        httpx.post(f"{client.src_prefixed}queue/join", json=call).raise_for_status()
    with httpx.stream(
        "GET", f"{client.src_prefixed}queue/data", params={"session_hash": "somebody"}, timeout=30
    ) as answers:
        lines = (line.removeprefix("data: ") for line in answers.iter_lines())
        messages = (json.loads(line) for line in lines if line)
        ended = (message for message in messages if message["msg"] == "process_completed")
        presets = [message["output"]["data"][0] for message in itertools.islice(ended, 2)]
    assert presets == [None, "Livelier"]


def test_only_the_image_must_be_given(client: Client):
    interface = client.view_api(return_format="dict")
    parameters = interface["named_endpoints"]["/process"]["parameters"]
    required = [p["parameter_name"] for p in parameters if not p["parameter_has_default"]]
    assert required == ["input_image"]


def test_a_video_by_parameter_names(client: Client, image_file: Path):
    asked = {"prompt": "a dancer", "n_prompt": "", "seed": 3, "total_second_length": 1}
    asked |= {"latent_window_size": 4, "steps": 2, "adaptive_cfg_beta": 0.7, "mp4_crf": 20}
    video, *_ = client.predict(input_image=handle_file(image_file), **asked, api_name="/process")
    decoded = read_video(Path(video))
    assert decoded.size == (96, 160)
    assert len(decoded.yuv) == 33
    told = json.loads(decoded.comment)
    expected = {
        **INPUTS,
        **MINIATURE_SETTINGS,
        **asked,
        "model": "tiny",
        "section_order": "forward",
    }
    del expected["input_image"]
    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input_image": None}, "There is no image to start from"),
        ({"input_image": handle_file(__file__)}, "This file cannot be read as an image"),
        ({"seed": -1}, "seed must be in [0, 9223372036854775807], got -1"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"prompt": "[0s: a] [9s: b]"}, "'[9s:' begins when the video of 1.5 s is over"),
    ],
)
def test_an_invalid_request_is_told_why(
    client: Client, image_file: Path, changes: dict[str, Any], told: str
):
    inputs = {"input_image": handle_file(image_file), "prompt": "", "n_prompt": ""}
    with pytest.raises(AppError) as caught:
        client.predict(**(inputs | changes), api_name="/process")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"meta": {}},
        {"meta": {"_type": "gradio.FileData"}},
    ],
)
def test_only_uploaded_files_are_read(
    client: Client, image_file: Path, generated: list, meta: dict[str, Any]
):
    call = f"{client.src_prefixed}call/process"
    inputs = [{"path": str(image_file)} | meta, *OTHERS.values()]
    event = httpx.post(call, json={"data": inputs}).json()["event_id"]
    told = httpx.get(f"{call}/{event}", timeout=30).text
    assert "event: error" in told
    assert generated == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The GPU ran out of memory"),
        (OSError(28, "No space left on device", "a.mp4"), "The disk is full"),
        (KeyError("lost"), "framepack.log"),
    ],
)
def test_a_job_that_fails_is_told_why(
    client: Client,
    image_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
):
    def generate(*args: Any) -> Iterator[Event]:
        yield Progress("Denoising", 1, 2, 1, 25)
        raise error

    monkeypatch.setattr(app, "generate", generate)
    inputs = {"input_image": handle_file(image_file), "prompt": "", "n_prompt": ""}
    job = client.submit(**inputs, api_name="/process")
    with pytest.raises(AppError) as caught:
        job.result()
    assert told in str(caught.value)
    assert told in job.outputs()[-1][2]


@pytest.mark.parametrize("module", DEMOS.values(), ids=DEMOS)
def test_the_preset_is_told_of_the_inputs_by_their_names(module: Any):
    demo, timed = module.demo, "[0s: a] [2s: b]"
    for preset in PRESETS:
        told = demo.tell_preset(timed, 5, *preset_values(preset.name))
        assert told == [preset.name, preset.effect[demo.order]]
    assert demo.tell_preset(timed, 5, 0.35, *preset_values("As trained")[1:])[0] is None


def test_prompts_that_are_half_typed_leave_the_preset():
    half = new_demo().tell_preset("[0s: a", 5, *preset_values("As trained"))
    assert half == [gr.skip(), gr.skip()]


def test_inputs_are_followed_in_the_order_of_all_inputs():
    for names in (page.DRAWN, page.TIMING, page.CHOSEN):
        assert [name for name in INPUT_NAMES if name in names] == list(names)
