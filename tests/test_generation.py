import errno
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import chain, count, takewhile
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_helper import __version__, generation, video
from diffusers_helper.errors import ImageError, NonFiniteError
from diffusers_helper.generation import (
    Done,
    Event,
    Progress,
    SectionFinished,
    generate,
    open_image,
)
from diffusers_helper.hunyuan import encode_prompt_conds
from diffusers_helper.k_diffusion.low_pass import low_pass
from diffusers_helper.models import Models
from diffusers_helper.prompt_gate import THRESHOLD
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from tests.conftest import read_video

FORWARD, INVERTED = SectionOrder.FORWARD, SectionOrder.INVERTED
WINDOW, SECTIONS, STEPS = 3, 2, 2
TWO_SECTIONS = GenerationSettings(
    prompt="A cat, 猫",
    seed=7,
    total_second_length=1,
    latent_window_size=WINDOW,
    steps=STEPS,
    use_teacache=False,
    mp4_crf=0,
)
ALL_FRAMES = 4 * WINDOW * SECTIONS + 1
# For jobs that end early: a second is eight sections of one latent frame.
SHORT = {"latent_window_size": 1}
SHORT_SECTIONS = 8


def first_section_frames(order: SectionOrder, window: int = 1) -> int:
    """Decoded with the start image in front, or without."""
    return 4 * window + (1 if order is FORWARD else -3)


def settings(**changes) -> GenerationSettings:
    return GenerationSettings(**(asdict(TWO_SECTIONS) | changes))


def picture(height: int = 60, width: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def start(
    models: Models, output: Path, order: SectionOrder, stop: Flag | None = None, **changes
) -> Iterator[Event]:
    return generate(models, picture(), settings(**changes), order, output, stop or Flag())


def stopped_at(
    models: Models, output: Path, order: SectionOrder, wanted: Callable[[Event], bool], **changes
) -> list[Event]:
    """All events of a job whose visitor ends it at the first `wanted` one."""
    stop = Flag()
    events = []
    for event in start(models, output, order, stop, **changes):
        events.append(event)
        if wanted(event):
            stop.set()
    return events


@contextmanager
def calls(module: torch.nn.Module) -> Iterator[list[int]]:
    """A list that has an entry for every call of `module`."""
    made = []
    handle = module.register_forward_pre_hook(lambda *_: made.append(1))
    try:
        yield made
    finally:
        handle.remove()


@contextmanager
def broken(module: torch.nn.Module, after: int, value: float) -> Iterator[None]:
    """One number of what `module` returns is `value`, after some good calls."""
    calls = count()

    def spoil(module, args, output):
        if next(calls) >= after:
            (output[0] if isinstance(output, tuple) else output).flatten()[-1] = value

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def read_prompts() -> Iterator[list[str]]:
    """A list that has every prompt that is encoded."""
    prompts = []
    encode = generation.encode_prompt_conds

    def note(prompt, *models):
        prompts.append(prompt)
        return encode(prompt, *models)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "encode_prompt_conds", note)
        yield prompts


@contextmanager
def heard(models: Models) -> Iterator[list[dict[str, torch.Tensor]]]:
    """A list that has what every call of the transformer was given."""
    given = []
    handle = models.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    try:
        yield given
    finally:
        handle.remove()


def encoded(models: Models, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return encode_prompt_conds(prompt, *(getattr(models, name) for name in names))


@pytest.fixture(scope="module", params=SectionOrder, ids=lambda order: order.value)
def finished(request, miniature, tmp_path_factory):
    """A whole job of either order, whose files tests only read."""
    output = tmp_path_factory.mktemp(request.param.value) / "a.mp4"
    events, first = [], None
    with calls(miniature.transformer) as made:
        for event in start(miniature, output, request.param):
            events.append(event)
            if first is None and isinstance(event, SectionFinished):
                first = read_video(output).yuv
    return SimpleNamespace(
        order=request.param, output=output, events=events, first=first, calls=len(made)
    )


def test_events_come_in_order(finished):
    def told(event: Event) -> tuple:
        if isinstance(event, Progress):
            return event.stage, event.section, event.step
        return type(event), getattr(event, "section", None), event.frames

    assert [told(event) for event in finished.events] == [
        ("Reading the prompt", 0, 0),
        ("Looking at the image", 0, 0),
        ("Denoising", 1, 1),
        ("Denoising", 1, 2),
        ("Decoding", 1, 2),
        (SectionFinished, 1, first_section_frames(finished.order, WINDOW)),
        ("Denoising", 2, 1),
        ("Denoising", 2, 2),
        ("Decoding", 2, 2),
        (SectionFinished, 2, ALL_FRAMES),
        (Done, None, ALL_FRAMES),
    ]
    assert finished.calls == SECTIONS * STEPS


def test_events_name_the_whole(finished):
    for event in finished.events[:-1]:
        assert event.sections == SECTIONS
    for event in finished.events:
        if isinstance(event, Progress):
            assert event.steps == (STEPS if event.section else 0)
        else:
            assert event.path == finished.output
    assert finished.events[-1].stopped is False


def test_the_mp4_is_whole(finished):
    decoded = read_video(finished.output)
    assert decoded.times == [Fraction(i, 30) for i in range(ALL_FRAMES)]
    assert decoded.size == (96, 160)  # the nearest bucket to 60 x 100
    assert {p.name for p in finished.output.parent.iterdir()} == {"a.mp4", "a.json"}


def test_sections_come_first_first_or_last_first(finished):
    """The outer frame of the first section stays, the inner ones are blended into the second."""
    whole = read_video(finished.output).yuv
    outer, inner = (0, -1) if finished.order is FORWARD else (-1, 0)
    np.testing.assert_array_equal(whole[outer], finished.first[outer])
    assert not np.array_equal(whole[inner], finished.first[inner])


def test_the_settings_travel_with_the_video(finished):
    beside = json.loads(finished.output.with_suffix(".json").read_text(encoding="utf-8"))
    within = json.loads(read_video(finished.output).comment)
    assert beside == within
    assert beside.items() >= asdict(TWO_SECTIONS).items()
    described = {
        "model": "tiny",
        "section_order": finished.order.value,
        "version": __version__,
        "width": 160,
        "height": 96,
    }
    assert beside.items() >= described.items()


def test_previews_are_latent_frames_side_by_side(finished):
    previews = [e.preview for e in finished.events if getattr(e, "stage", "") == "Denoising"]
    for preview in previews:
        assert preview.shape == (96 // 8, WINDOW * 160 // 8, 3)
        assert preview.dtype == np.uint8
    assert not np.array_equal(previews[0], previews[1])


def test_previews_have_the_models_own_colours(miniature, tmp_path):
    """A map whose only number that is not 0 is the bias of green."""
    latent_rgb = torch.zeros(17, 3)
    latent_rgb[16, 1] = 0.6
    job = start(replace(miniature, latent_rgb=latent_rgb), tmp_path / "a.mp4", FORWARD, **SHORT)
    preview = next(e.preview for e in job if getattr(e, "preview", None) is not None)
    assert np.unique(preview.reshape(-1, 3), axis=0).tolist() == [[0, 153, 0]]


def test_a_preview_runs_from_left_to_right():
    rgb = np.array([[[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]]] * 3)  # 3 channels, 3 frames of 1 x 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "vae_decode_fake", lambda x, _: x)
        preview = generation._preview(torch.from_numpy(rgb)[None, :, :, None], None)
    assert preview[..., 0].tolist() == [[0, 51, 102, 153, 204, 255]]


def test_the_time_left_is_steps_and_ends_to_come(miniature, tmp_path, monkeypatch):
    """By a clock on which every step and every end of a section takes a second, but the first
    step, which warms up, a hundred."""
    ticks = chain([0], count(100))
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=ticks.__next__))
    job = start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT)
    left = []
    for event in takewhile(lambda e: not isinstance(e, SectionFinished) or e.section < 2, job):
        if isinstance(event, Progress) and event.section:
            left.append(event.seconds_left)
    steps, ends = SHORT_SECTIONS * STEPS, SHORT_SECTIONS
    assert left == [
        None,
        *[steps - 2] * 2,  # no end was seen so far
        (steps - 3) + (ends - 1),
        *[(steps - 4) + (ends - 1)] * 2,
    ]


def test_a_job_touches_no_global_generator_and_no_inference_mode(miniature, tmp_path):
    before = torch.get_rng_state()
    for event in start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT):
        assert not torch.is_inference_mode_enabled()
        if isinstance(event, SectionFinished):
            break
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_makes_the_same_video(miniature, tmp_path, finished):
    list(start(miniature, tmp_path / "a.mp4", finished.order))
    frames, expected = read_video(tmp_path / "a.mp4").yuv, read_video(finished.output).yuv
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("seed", [7, 31337])
def test_the_noise_is_framepacks_for_the_seed(miniature, tmp_path, seed):
    """One generator for all sections, which nothing else draws from."""
    seen = []
    handle = miniature.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    for event in start(miniature, tmp_path / "a.mp4", INVERTED, **SHORT, seed=seed):
        if isinstance(event, Progress) and (event.section, event.step) == (2, 1):
            break
    handle.remove()
    generator = torch.Generator("cpu").manual_seed(seed)
    for latents in (seen[0], seen[STEPS]):
        assert torch.equal(latents, torch.randn(1, 16, 1, 96 // 8, 160 // 8, generator=generator))


def latents_of(models: Models, output: Path, **changes) -> np.ndarray:
    """The first section, undecoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_preview", lambda latents, _: latents.numpy())
        job = start(models, output, FORWARD, **SHORT | {"steps": 3} | changes)
        *_, last = takewhile(lambda event: event.stage != "Decoding", job)
    assert last.step == 3
    return last.preview


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({}, {"seed": 8}),
        ({}, {"prompt": "A dog"}),
        ({}, {"gs": 3.0}),
        ({}, {"adaptive_cfg_beta": 0.7}),
        ({"adaptive_cfg_beta": 0.7}, {"adaptive_cfg_min": 5.0}),
        ({}, {"low_pass_factor": 0.25}),
        ({"low_pass_factor": 0.25}, {"low_pass_sigma": 0.5}),
        ({"low_pass_factor": 0.25}, {"low_pass_frames": "last"}),
        ({}, {"cfg": 3.0}),
        ({"cfg": 3.0}, {"n_prompt": "rain"}),
        ({"cfg": 3.0}, {"rs": 0.5}),
        ({"cfg": 3.0}, {"adaptive_cfg_beta": 0.7}),
    ],
    ids=str,
)
def test_what_changes_the_video(miniature, tmp_path, given, change):
    plain = latents_of(miniature, tmp_path / "a.mp4", **given)
    changed = latents_of(miniature, tmp_path / "a.mp4", **given | change)
    assert np.abs(plain - changed).max() > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n_prompt": "rain"},  # true CFG is off
        {"rs": 0.5},
        {"adaptive_cfg_min": 5.0},  # beta is 0
        {"low_pass_sigma": 0.0},  # the factor is 1
        {"low_pass_frames": "start"},
        {"history_low_pass": 1.0},  # there is none yet
        {"gpu_memory_preservation": 20.0},
        {"mp4_crf": 3},
    ],
    ids=str,
)
def test_what_leaves_the_video(miniature, tmp_path, change):
    plain, changed = (latents_of(miniature, tmp_path / "a.mp4", **c) for c in ({}, change))
    np.testing.assert_array_equal(plain, changed)


@pytest.mark.parametrize("order", SectionOrder)
def test_history_is_low_passed_where_there_is_some(miniature, tmp_path, order):
    """The gate leaves the second of two steps sharp."""
    shown = []
    handle = miniature.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: shown.append(kwargs["clean_latents_2x"]), with_kwargs=True
    )
    with handle:
        list(start(miniature, tmp_path / "a.mp4", order, history_low_pass=1.0, low_pass_sigma=1.0))
    first, again, soft, sharp = shown
    assert first.equal(again) and first.eq(0).all()
    assert not soft.equal(sharp)


CHANGE = {
    FORWARD: "[0s: a cat] [0.25s: rain falls on the city at night]",
    INVERTED: "[0s: rain falls on the city at night] [0.75s: a cat]",
}
"""After two sections of eight are made."""


@pytest.mark.parametrize("order", SectionOrder)
def test_the_past_is_weaker_where_the_prompt_changes(miniature, tmp_path, monkeypatch, order):
    """The noise level is at the low-pass's gate in the first of two steps alone."""
    change = SHORT | {"prompt": CHANGE[order], "low_pass_sigma": 1.0}
    texts = [encoded(miniature, part.text)[1] for part in settings(**change).prompts]
    assert 1 - torch.cosine_similarity(*texts) > THRESHOLD
    monkeypatch.setattr(
        generation,
        "vae_decode",
        lambda latents, vae, pieces: torch.zeros(1, 3, 4 * latents.shape[2] - 3, 96, 160),
    )

    def shown(**gate: float) -> list[dict[str, torch.Tensor]]:
        """In the first five sections."""
        with heard(miniature) as given:
            job = start(miniature, tmp_path / "a.mp4", order, **change, **gate)
            next(e for e in job if isinstance(e, SectionFinished) and e.section == 5)
            job.close()
        return given

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cosine_similarity", None)  # which nothing may call
        whole = shown()
    weak = shown(prompt_gate=1.0)
    for number, gate in enumerate((0, 0, 1, 0.5, 0)):
        noisy, clean = (call["clean_latents"] for call in weak[2 * number :][:2])
        assert noisy[:, :, 0].equal(clean[:, :, 0])
        mixed = clean.lerp(low_pass(clean, 0.25), gate)
        torch.testing.assert_close(noisy[:, :, 1], mixed[:, :, 1])
    # The frames two and three back, of the third and the fourth section, were made before it.
    for call, gate in ((0, 0), (2, 0), (4, 1), (5, 1), (6, 0.5), (7, 0.5)):
        before, now = whole[call]["clean_latents_2x"], weak[call]["clean_latents_2x"]
        assert now.equal((1 - gate) * before) and (before.any() or call < 4)
    for call, gated in zip(whole, weak, strict=True):
        assert all(call[n].equal(gated[n]) for n in call if "indices" in n)


@pytest.mark.parametrize(("cfg", "read"), [(1.0, ["wanted"]), (3.0, ["wanted", "unwanted"])])
def test_the_negative_prompt_is_read_with_true_cfg_alone(miniature, tmp_path, cfg, read):
    with calls(miniature.transformer) as made, read_prompts() as prompts:
        stopped_at(
            *(miniature, tmp_path / "a.mp4", FORWARD),
            lambda event: getattr(event, "step", 0) == 1,
            **SHORT,
            cfg=cfg,
            prompt="wanted",
            n_prompt="unwanted",
        )
    assert prompts == read
    assert len(made) == len(read)  # one step of as many passes


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("order", SectionOrder)
def test_a_section_hears_the_prompt_at_its_middle(miniature, tmp_path, order, cfg):
    """Eight sections of 4 / 30 s each, so that the third has its middle at a third of a second."""
    typed = "[0s: a cat] [0.3s: a dog, 犬]\n[0.5s: a cat]"
    in_the_video = ["a cat"] * 2 + ["a dog, 犬"] * 2 + ["a cat"] * 4
    expected = in_the_video if order is FORWARD else in_the_video[::-1]
    asked = SHORT | {"prompt": typed, "n_prompt": "rain", "cfg": cfg, "steps": 1}
    with heard(miniature) as given, read_prompts() as prompts:
        list(start(miniature, tmp_path / "a.mp4", order, **asked))
    negative = [] if cfg == 1.0 else ["rain"]
    assert sorted(prompts) == ["a cat", "a dog, 犬", *negative]
    for call, text in zip(given, chain(*([text, *negative] for text in expected)), strict=True):
        embeds, pooled = encoded(miniature, text)
        tokens = embeds.shape[1]
        assert torch.equal(call["encoder_hidden_states"][:, :tokens], embeds)
        assert torch.equal(call["pooled_projections"], pooled)
        assert call["encoder_attention_mask"].sum() == tokens
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert json.loads(read_video(tmp_path / "a.mp4").comment) == told
    assert GenerationSettings(**{name: told[name] for name in asdict(TWO_SECTIONS)}) == settings(
        **asked
    )


@pytest.mark.parametrize("prompt", ["", " a [red] cat:\n2s ", "[2 cats: asleep]"])
def test_a_prompt_without_times_is_read_as_typed(miniature, tmp_path, prompt):
    with read_prompts() as prompts:
        job = start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT, prompt=prompt)
        next(event for event in job if getattr(event, "step", 0) == 1)
    assert prompts == [prompt]


def test_timed_prompts_of_one_text_make_the_plain_ones_video(miniature, tmp_path, finished):
    text = TWO_SECTIONS.prompt
    timed = {"prompt": f"[0s: {text}] [0.5s: {text}]", "prompt_gate": 1.0}
    list(start(miniature, tmp_path / "a.mp4", finished.order, **timed))
    frames, expected = read_video(tmp_path / "a.mp4").yuv, read_video(finished.output).yuv
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize(
    ("prompt", "unused"),
    [
        ("[0s: a] [0.2s: b]", []),
        ("[0s: a] [0.21s: b] [0.3s: c]", ["[0.21s: b]"]),  # middles at 0.2 and 0.33
        ("[0s: a] [0.05s: b]", ["[0s: a]"]),  # the first middle is at 0.07
    ],
)
def test_a_prompt_too_short_for_a_section_is_told(miniature, tmp_path, caplog, prompt, unused):
    with read_prompts() as prompts:
        job = start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT, prompt=prompt)
        next(event for event in job if getattr(event, "step", 0) == 1)
    told = [record.getMessage() for record in caplog.records if record.name == generation.__name__]
    assert told == [f"Not used, too short for a section: {part}" for part in unused]
    assert len(prompts) == len(settings(prompt=prompt).prompts) - len(unused)


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("step", [1, STEPS])
def test_stopped_in_the_first_section_there_is_no_file(miniature, tmp_path, order, step):
    with calls(miniature.transformer) as made:
        events = stopped_at(
            *(miniature, tmp_path / "a.mp4", order),
            lambda event: isinstance(event, Progress) and event.step == step,
            **SHORT,
        )
    assert events[-1] == Done(path=None, frames=0, stopped=True)
    assert len(made) == step
    assert list(tmp_path.iterdir()) == []


def test_stopped_before_it_began_a_job_runs_no_step(miniature, tmp_path):
    with calls(miniature.transformer) as made:
        events = stopped_at(miniature, tmp_path / "a.mp4", FORWARD, lambda event: True, **SHORT)
    assert events[-1] == Done(path=None, frames=0, stopped=True)
    assert made == []


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize(
    ("when", "steps"),
    [
        (("Decoding", 1), STEPS),  # what is sampled is kept
        (("SectionFinished", 1), STEPS),
        (("Denoising", 2), STEPS + 1),
    ],
)
def test_stopped_after_the_first_section_it_stays(miniature, tmp_path, order, when, steps):
    output = tmp_path / "a.mp4"

    def wanted(event: Event) -> bool:
        stage = getattr(event, "stage", type(event).__name__)
        return (stage, getattr(event, "section", None)) == when

    with calls(miniature.transformer) as made:
        events = stopped_at(miniature, output, order, wanted, **SHORT)
    frames = first_section_frames(order)
    assert events[-1] == Done(output, frames, stopped=True)
    assert len(made) == steps
    assert len(read_video(output).yuv) == frames
    assert {p.name for p in tmp_path.iterdir()} == {"a.mp4", "a.json"}


def test_stopped_after_the_last_section_a_job_is_done(miniature, tmp_path):
    *_, section, done = stopped_at(
        *(miniature, tmp_path / "a.mp4", FORWARD),
        lambda event: isinstance(event, SectionFinished),
        **{"latent_window_size": 7, "steps": 1},
    )
    assert section.section == section.sections == 1
    assert done.stopped is False


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("good", [0, 1])
def test_numbers_that_are_no_picture_end_the_job_at_once(miniature, tmp_path, good, value):
    with broken(miniature.transformer, after=good, value=value):
        events = start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT)
        steps = 0
        with pytest.raises(NonFiniteError, match="section 1"):
            for event in events:
                steps += isinstance(event, Progress) and event.step > 0
    assert steps == good
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize(
    ("module", "good"),
    [(lambda m: m.transformer, STEPS + 1), (lambda m: m.vae.decoder, 1)],
    ids=["transformer", "vae"],
)
def test_numbers_that_are_no_picture_leave_the_sections_before(
    miniature, tmp_path, order, module, good
):
    output = tmp_path / "a.mp4"
    with (
        broken(module(miniature), after=good, value=float("nan")),
        pytest.raises(NonFiniteError, match="section 2"),
    ):
        list(start(miniature, output, order, **SHORT))
    assert len(read_video(output).yuv) == first_section_frames(order)
    assert {p.name for p in tmp_path.iterdir()} == {"a.mp4", "a.json"}


def test_after_an_error_the_next_job_is_as_any_other(miniature, tmp_path):
    before = latents_of(miniature, tmp_path / "a.mp4")
    with (
        broken(miniature.transformer, after=3, value=float("nan")),
        pytest.raises(NonFiniteError),
    ):
        list(
            start(
                miniature, tmp_path / "a.mp4", FORWARD, **SHORT, cfg=2.0, use_teacache=True, steps=5
            )
        )
    np.testing.assert_array_equal(latents_of(miniature, tmp_path / "a.mp4"), before)


def test_a_full_disk_ends_the_job_and_leaves_the_sections_before(miniature, tmp_path, monkeypatch):
    output = tmp_path / "a.mp4"
    events = start(miniature, output, FORWARD, **SHORT)
    while not isinstance(next(events), SectionFinished):
        pass

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video, "_join", full)
    with pytest.raises(OSError) as caught:
        list(events)
    assert caught.value.errno == errno.ENOSPC
    assert len(read_video(output).yuv) == first_section_frames(FORWARD)
    assert {p.name for p in tmp_path.iterdir()} == {"a.mp4", "a.json"}


@pytest.mark.parametrize("events", [1, 3, 6, 7])
def test_closed_early_a_job_leaves_no_folder(miniature, tmp_path, events):
    job = start(miniature, tmp_path / "a.mp4", FORWARD, **SHORT)
    for _ in range(events):
        next(job)
    job.close()
    expected = {"a.mp4", "a.json"} if events >= 6 else set()
    assert {p.name for p in tmp_path.iterdir()} == expected


def test_a_second_job_replaces_the_mp4_of_the_first(miniature, tmp_path):
    output = tmp_path / "a.mp4"
    output.write_bytes(b"not a video")
    job = start(miniature, output, FORWARD, **SHORT)
    event = next(event for event in job if isinstance(event, SectionFinished))
    assert event.path == output
    assert len(read_video(output).yuv) == event.frames == 5


def saved(image: Image.Image, kind: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


def as_png(pixels: np.ndarray) -> bytes:
    return saved(Image.fromarray(pixels), "PNG")


@pytest.mark.parametrize(
    "source",
    [
        lambda pixels, file: file(as_png(pixels)),
        lambda pixels, file: str(file(as_png(pixels))),
        lambda pixels, file: Image.fromarray(pixels),
        lambda pixels, file: pixels,
    ],
    ids=["Path", "str", "PIL", "array"],
)
def test_an_image_comes_as_a_file_or_pixels(file, source):
    pixels = picture(40, 50)
    opened = open_image(source(pixels, file))
    assert opened.dtype == np.uint8
    np.testing.assert_array_equal(opened, pixels)


def test_no_image():
    with pytest.raises(ImageError, match="no image"):
        open_image(None)


PNG = as_png(picture(48, 48))
JPEG = saved(Image.fromarray(picture(48, 48)), "JPEG")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Dear reader, this is a letter.",
        PNG[: len(PNG) // 2],
        PNG[:20],
        JPEG[: len(JPEG) // 2],
        PNG[:60] + b"\0" * 40 + PNG[100:],
    ],
    ids=["empty", "text", "half a PNG", "a PNG's head", "half a JPEG", "a damaged PNG"],
)
def test_a_broken_file(file, content):
    with pytest.raises(ImageError, match="cannot be read as an image"):
        open_image(file(content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=re.escape(str(tmp_path / "nothing.png"))):
        open_image(tmp_path / "nothing.png")


def huge_png() -> bytes:
    """A valid head of 20,000 x 20,000 pixels; more than Pillow trusts."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_file_of_too_many_pixels(file):
    with pytest.raises(ImageError, match="too many pixels"):
        open_image(file(huge_png()))


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [(32, 32, True), (31, 32, False), (32, 31, False), (1, 1, False), (31, 4000, False)],
)
def test_small_images(height, width, fits):
    if fits:
        assert open_image(picture(height, width)).shape == (height, width, 3)
    else:
        with pytest.raises(ImageError, match=rf"{width} x {height} pixels.*at least 32"):
            open_image(picture(height, width))


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (255, 255, 255)), (255, (255, 0, 100)), (51, (255, 204, 224))]
)
def test_transparency_lies_on_white(alpha, expected):
    """At 51 of 255, a fifth of the colour and four fifths of white."""
    opened = open_image(Image.new("RGBA", (40, 40), (255, 0, 100, alpha)))
    np.testing.assert_allclose(opened, np.broadcast_to(expected, (40, 40, 3)), atol=1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("LA", (40, 40), (77, 0)), (255, 255, 255)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.new("P", (40, 40), 0), (0, 0, 0)),
        (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), (255, 0, 0)),
        (np.full((40, 40), 77, dtype=np.uint8), (77, 77, 77)),
        (np.full((40, 40, 4), (1, 2, 3, 255), dtype=np.uint8), (1, 2, 3)),
        (Image.fromarray(np.full((40, 40), 77 * 257, dtype=np.uint16)), (77, 77, 77)),
    ],
    ids=["L", "LA", "1", "P", "CMYK", "array HW", "array HW4", "16 bit"],
)
def test_kinds_of_pixels(image, expected):
    np.testing.assert_array_equal(open_image(image), np.broadcast_to(expected, (40, 40, 3)))


# Orientations of EXIF: what turns the stored pixels upright, as turns to the left and a mirroring.
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, -1)[::-1]),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_photographs_stand_upright(file, orientation, upright):
    pixels = picture(40, 50)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = file(saved(Image.fromarray(pixels), "PNG", exif=exif))
    np.testing.assert_array_equal(open_image(path), upright(pixels))
