from dataclasses import replace

import pytest
import torch

from diffusers_helper.k_diffusion.low_pass import low_pass
from diffusers_helper.k_diffusion.wrapper import GUIDANCE_INPUT_SCALE
from diffusers_helper.pipelines.k_diffusion_hunyuan import guidance_schedule, section_sigmas
from diffusers_helper.prompts import timed_prompts
from diffusers_helper.sections import SectionOrder, section_frames
from diffusers_helper.settings import GenerationSettings
from evaluation.arms import Arm, Levers, applied, plan_arms
from evaluation.rows import TRUTH
from evaluation.tiny_world import CASES, TinyWorld, world_clips
from evaluation.transitions import changes
from tests.evaluation.conftest import WINDOW
from training.tiny_world import sample
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.world import render, truth


def test_clips_are_unseen_and_their_action_happens():
    clips = world_clips(None, seeds=3)
    assert len({clip.id for clip in clips}) == len(clips) == 3 * sum(map(len, CASES.values()))
    for clip in clips:
        assert clip.action in CASES[clip.case]
        assert clip.source.action == clip.action and clip.source.happens
        assert clip.source.seed == TrainingConfig().unseen_seed + clip.seed
        assert clip.scene == str(clip.source.seed)
    assert len({clip.prompt for clip in clips if clip.action == "fade"}) == 3
    (spin,) = world_clips(["spin"], seeds=1)
    assert spin.case == "other actions"


def test_subjects_are_where_scenes_have_them(miniature):
    clips = world_clips(["fade", "night"], seeds=2)
    masks = TinyWorld(miniature, SectionOrder.FORWARD).subjects(clips)
    for clip, mask in zip(clips, masks, strict=True):
        scene = clip.source
        rows, columns = mask.float().nonzero().T.float()
        assert abs(columns.mean() - (0.5 + scene.x) * 128) < 0.5 * scene.radius * 128
        assert abs(rows.mean() - (0.5 + scene.y) * 128) < 0.5 * scene.radius * 128
        assert 0.2 < mask.sum() / (2 * scene.radius * 128) ** 2 < 1.3


def test_what_is_not_defined_is_none(miniature):
    clips = world_clips(["still"], seeds=1)
    scenes = [clip.source for clip in clips]
    videos = render(scenes, truth(scenes, 20))
    (measured,) = TinyWorld(miniature, SectionOrder.FORWARD).truth(clips, videos, [9], [[]])
    assert tuple(measured) == (*TRUTH, "stf")
    assert (measured["happened"], measured["frozen"], measured["delay"]) == (1.0, 1.0, None)
    assert (measured["ghosting"], measured["stf"]) == (None, None)


def test_a_clip_that_changes_is_the_same_scene_with_two_prompts():
    plain, changing = (world_clips(None, seeds=2, quiet=quiet) for quiet in (0.0, 1.2))
    for before, clip in zip(plain, changing, strict=True):
        begin = pytest.approx(before.source.begin + 1.2)
        assert replace(clip.source, begin=before.source.begin) == before.source
        assert clip.source.begin == begin and clip.id == before.id
        still, action = timed_prompts(clip.prompt, 3.6)
        assert (still.start, action.start, action.text) == (0, 1.2, before.prompt)
        assert still.text == caption(replace(clip.source, action="still"), clip.seed)


@pytest.mark.parametrize(
    ("share", "fidelity", "ghosting"), [(1.0, 2, 0), (0.5, 1.5, 0.5), (0.0, 0, 1)]
)
def test_the_fidelity_of_clips_that_are_known(miniature, share, fidelity, ghosting):
    """What fades in part, after a still section, by the prompts that an evaluation has."""
    clips = world_clips(["fade"], seeds=2, quiet=1.2)
    scenes = [clip.source for clip in clips]
    values = truth(scenes, 109)
    videos = render(scenes, replace(values, opacity=1 - share * (1 - values.opacity)))
    settings = GenerationSettings(total_second_length=3.6)
    changing = [changes(replace(settings, prompt=clip.prompt)) for clip in clips]
    world = TinyWorld(miniature, SectionOrder.FORWARD)
    for measured in world.truth(clips, videos, [37, 73], changing):
        assert measured["stf"] == pytest.approx(fidelity, abs=0.1)
        assert measured["ghosting"] == pytest.approx(ghosting, abs=0.1)
        assert measured["happened"] == (share == 1)
        assert (measured["delay"] is None) or 0.1 < measured["delay"] < 0.8


@pytest.mark.parametrize("true_cfg", [False, True])
def test_the_transformer_receives_the_schedule(miniature, monkeypatch, true_cfg):
    """In the real chain: clips of a batch, both sections, every step."""
    received, steps = [], 3
    settings = GenerationSettings(
        total_second_length=1, latent_window_size=WINDOW, steps=steps, use_teacache=False
    )
    frames = section_frames(WINDOW)
    sigmas = section_sigmas(steps, 128, 128, frames)
    arms = {arm.kind: arm for arm in plan_arms([0.7], [6.0], sigmas, True)}
    schedule = guidance_schedule(sigmas, 1.0, 6.0, 0.7, 1.0).tolist()

    def no_decode(latents, vae, pieces):
        return torch.zeros(latents.shape[0], 3, 4 * latents.shape[2] - 3, 128, 128)

    def record(module, args, kwargs):
        received.append((kwargs["guidance"] / GUIDANCE_INPUT_SCALE).tolist())

    monkeypatch.setattr(sample, "vae_decode", no_decode)
    world = TinyWorld(miniature, SectionOrder.FORWARD)
    clips = world_clips(["jump"], seeds=2)
    hook = miniature.transformer.register_forward_pre_hook(record, with_kwargs=True)
    with hook:
        for kind, expected in (("schedule", schedule), ("reversed", schedule[::-1])):
            received.clear()
            values = {**vars(settings), **arms[kind].settings(true_cfg)}
            with applied(arms[kind], sigmas, None):
                videos = world.make(clips, GenerationSettings(**values), noise=0)
            assert videos.shape == (2, 3, 25, 128, 128)
            if true_cfg:  # what the passes are combined with is in test_arms
                assert received == [[1.0, 1.0]] * (2 * 2 * steps)
            else:
                assert received == [pytest.approx([s, s], rel=1e-5) for s in expected * 2]


def test_the_transformer_is_shown_the_low_pass(miniature, monkeypatch):
    """In the real chain: of the start frame alone, down to the gate, in both sections."""
    shown = []
    settings = GenerationSettings(total_second_length=1, latent_window_size=WINDOW, steps=2)
    arm = Arm("constant", 6.0, 0.0, 6.0, Levers(0.25, 1.0, "start", history_low_pass=1.0))

    def record(module, args, kwargs):
        shown.append((kwargs["clean_latents"], kwargs["clean_latents_2x"]))

    monkeypatch.setattr(
        sample,
        "vae_decode",
        lambda latents, vae, pieces: torch.zeros(
            len(latents), 3, 4 * latents.shape[2] - 3, 128, 128
        ),
    )
    hook = miniature.transformer.register_forward_pre_hook(record, with_kwargs=True)
    with hook, applied(arm, section_sigmas(2, 128, 128, section_frames(WINDOW)), None):
        values = {**vars(settings), **arm.settings(False)}
        TinyWorld(miniature, SectionOrder.FORWARD).make(
            world_clips(["jump"], seeds=2), GenerationSettings(**values), noise=0
        )
    for (soft, soft_past), (sharp, past) in (shown[:2], shown[2:]):
        torch.testing.assert_close(soft[:, :, :1], low_pass(sharp[:, :, :1], 0.25))
        assert not soft[:, :, :1].equal(sharp[:, :, :1])
        assert soft[:, :, 1:].equal(sharp[:, :, 1:])
        assert soft_past.equal(past) == past.eq(0).all()  # as before the first section
