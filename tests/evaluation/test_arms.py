from dataclasses import asdict

import pytest
import torch

from diffusers_helper.k_diffusion import wrapper
from diffusers_helper.k_diffusion.wrapper import GUIDANCE_INPUT_SCALE
from diffusers_helper.pipelines import k_diffusion_hunyuan as pipeline
from diffusers_helper.pipelines.k_diffusion_hunyuan import (
    get_flux_sigmas_from_mu,
    guidance_schedule,
    sample_hunyuan,
    section_sigmas,
)
from diffusers_helper.settings import GenerationSettings
from evaluation.arms import (
    NO_LEVERS,
    SWEEP,
    Arm,
    Levers,
    applied,
    plan_arms,
    plan_levers,
)
from evaluation.rows import FIELDS

EVEN = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
"""Four steps, whose mean sigma is 0.625."""
SECTION = {"steps": 5, "width": 16, "height": 16, "frames": 5}


def named(*args) -> dict[str, Arm]:
    return {arm.name: arm for arm in plan_arms(*args)}


def test_means_in_closed_form():
    arms = named([0.0, 0.4], [9.0], EVEN, True)
    schedule, reverse = arms["schedule 9 beta 0.4"], arms["reversed 9 beta 0.4"]
    assert schedule.mean == reverse.mean == pytest.approx(1 + 8 * (1 - 0.4 * 0.625))
    assert schedule.control == reverse.control == arms["constant 7"]
    assert schedule.baseline == reverse.baseline == arms["constant 9"]
    assert {f"constant {scale:g}" for scale in SWEEP} <= set(arms)
    assert len(arms) == 1 + 3 + len(SWEEP)


def test_coincident_arms_are_one():
    # Both bases are in the sweep, and so is the mean of a schedule: 1 + 4 * (1 - 0.8 * 0.625) = 3.
    arms = plan_arms([0.8], [5.0, 10.0], EVEN, True)
    assert len({arm.name for arm in arms}) == len(arms) == len(SWEEP) + 2 * 2 + 1


def test_baseline_is_always_there_and_controls_only_when_asked_for():
    assert list(named([0.5], [6.0], EVEN, False)) == ["constant 6", "schedule 6 beta 0.5"]


def test_nothing_to_schedule_leaves_constants():
    assert all(arm.kind == "constant" for arm in plan_arms([0.5, 1.0], [1.0], EVEN, True))


SOFT, PAST = Levers(0.25, 0.95, "start"), Levers(history_low_pass=0.5)
GATED = Levers(prompt_gate=0.5)


def test_low_passes_are_alone_unless_combined():
    alone = plan_arms([0.5], [6.0], EVEN, False, [SOFT, PAST, GATED])
    assert [arm.name for arm in alone] == [
        "constant 6",
        "constant 6 low-pass 0.25 start sigma 0.95",
        "constant 6 history 0.5 sigma 0.9",
        "constant 6 prompt gate 0.5 sigma 0.9",
        "schedule 6 beta 0.5",
    ]
    combined = plan_arms([0.5], [6.0], EVEN, False, [SOFT, PAST, GATED], combine=True)
    mean = combined[4].mean
    assert [arm.name for arm in combined[5:]] == [
        f"constant {mean:g}",
        "schedule 6 beta 0.5 low-pass 0.25 start sigma 0.95",
        "schedule 6 beta 0.5 history 0.5 sigma 0.9",
        "schedule 6 beta 0.5 prompt gate 0.5 sigma 0.9",
        f"constant {mean:g} low-pass 0.25 start sigma 0.95",
        f"constant {mean:g} history 0.5 sigma 0.9",
        f"constant {mean:g} prompt gate 0.5 sigma 0.9",
    ]
    constant_6, soft, _, _, schedule, matched, soft_schedule, _, _, soft_matched, *_ = combined
    assert soft.control == soft.baseline == soft_schedule.baseline == constant_6
    assert soft_schedule.control == schedule and soft_matched.control == matched


def test_every_low_pass_once():
    planned = plan_levers(
        [1.0, 0.5, 0.25, 0.5], ["both", "last"], [0.0, 1.0], [0.9, 0.8], [0.5, 0.0, 1.0]
    )
    assert len({arm.name for arm in planned}) == len(planned) == 2 * 2 * 2 + 2 + 2 * 2
    assert NO_LEVERS not in planned
    assert Levers(0.25, 0.8, "last") in planned
    assert Levers(1.0, 0.8, "both", 1.0) in planned
    assert Levers(low_pass_sigma=0.8, prompt_gate=0.5) in planned


@pytest.mark.parametrize("levers", [NO_LEVERS, SOFT, PAST, GATED, Levers(0.5, 0.0)])
def test_an_arm_comes_back_from_its_columns(levers):
    arm = Arm("schedule", 6.0, 0.5, 3.0, levers)
    assert Arm.of(arm.columns) == arm
    assert set(arm.columns) <= set(FIELDS)


@pytest.mark.parametrize("levers", [NO_LEVERS, SOFT, PAST, GATED])
def test_a_video_is_made_with_an_arms_levers(levers):
    settings = GenerationSettings(**Arm("constant", 6.0, 0.0, 6.0, levers).settings(False))
    assert {name: getattr(settings, name) for name in asdict(levers)} == asdict(levers)


def scales_in_force(arm: Arm, true_cfg: bool, shift: float | None = None) -> list[float]:
    """Guidance at every step of a section: what the transformer is told, or what its two passes
    are combined with."""

    def transformer(hidden_states, guidance, encoder_hidden_states, **_):
        told = guidance.view(-1, 1, 1, 1, 1) / GUIDANCE_INPUT_SCALE
        assert not true_cfg or (told == 1).all()
        sign = encoder_hidden_states[0, 0, 0]  # 1 and 0 in the positive and the negative pass
        return (torch.ones_like(hidden_states) * (sign if true_cfg else told),)

    def sampler(model, noise, sigmas, extra_args, callback):
        x = torch.zeros_like(noise)
        return [-model(x, s[None], **extra_args).mean().item() / s.item() for s in sigmas[:-1]]

    settings = arm.settings(true_cfg)
    texts = {f"{sign}prompt_embeds": torch.full((1, 1, 1), 1.0 - len(sign)) for sign in ("", "-")}
    one = torch.ones(1, 1)
    with applied(arm, section_sigmas(**SECTION, shift=shift), shift):
        return sample_hunyuan(
            transformer,
            sampler=sampler,
            width=16,
            height=16,
            frames=5,
            num_inference_steps=5,
            real_guidance_scale=settings["cfg"],
            distilled_guidance_scale=settings["gs"],
            adaptive_cfg_beta=settings["adaptive_cfg_beta"],
            adaptive_cfg_min=settings["adaptive_cfg_min"],
            prompt_embeds=texts["prompt_embeds"],
            prompt_embeds_mask=one,
            prompt_poolers=one,
            negative_prompt_embeds=texts["-prompt_embeds"],
            negative_prompt_embeds_mask=one,
            negative_prompt_poolers=one,
            dtype=torch.float32,
            device="cpu",
        )


@pytest.mark.parametrize("shift", [None, 7.0])
@pytest.mark.parametrize("true_cfg", [False, True])
def test_each_kind_guides_as_it_says(true_cfg, shift):
    sigmas = section_sigmas(**SECTION, shift=shift)
    arms = named([0.8], [6.0], sigmas, True)
    schedule = guidance_schedule(sigmas, 1.0, 6.0, 0.8, 1.0).tolist()
    assert schedule[0] == pytest.approx(2.0) and schedule == sorted(schedule)

    def scales(name: str) -> list[float]:
        return scales_in_force(arms[name], true_cfg, shift)

    assert scales("constant 6") == pytest.approx([6.0] * 5)
    assert scales("schedule 6 beta 0.8") == pytest.approx(schedule)
    assert scales("reversed 6 beta 0.8") == pytest.approx(schedule[::-1])
    control = arms["schedule 6 beta 0.8"].control
    assert scales(control.name) == pytest.approx([sum(schedule) / 5] * 5, abs=0.005)


def test_everything_is_as_before_afterwards():
    def patched() -> tuple:
        return wrapper.adaptive_cfg_scale, pipeline.section_sigmas

    before = patched()
    arm = named([0.8], [6.0], EVEN, True)["reversed 6 beta 0.8"]
    with pytest.raises(KeyError), applied(arm, EVEN, shift=7.0):
        assert not set(before) & set(patched())
        raise KeyError
    assert patched() == before


def test_shift_takes_the_place_of_the_models_own():
    expected = get_flux_sigmas_from_mu(5, torch.tensor(7.0).log().item())
    torch.testing.assert_close(section_sigmas(**SECTION, shift=7.0), expected)
    assert not torch.equal(expected, section_sigmas(**SECTION))
