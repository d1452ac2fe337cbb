import math
from typing import Any

import pytest
import torch

from diffusers_helper.k_diffusion import low_pass as filters
from diffusers_helper.k_diffusion.low_pass import low_pass
from diffusers_helper.k_diffusion.uni_pc_fm import sample_unipc
from diffusers_helper.pipelines.k_diffusion_hunyuan import (
    calculate_flux_mu,
    flux_time_shift,
    get_flux_sigmas_from_mu,
    guidance_schedule,
    sample_hunyuan,
    section_sigmas,
)
from tests import golden_case

STEPS = 6


class ConstantVelocities:
    """1 for the prompt and 0 for the negative prompt, told apart by their embeddings."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, hidden_states, encoder_hidden_states, **kwargs):
        self.calls.append(
            kwargs
            | {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states}
        )
        return (torch.full_like(hidden_states, encoder_hidden_states.mean()),)

    def received(self, name: str) -> torch.Tensor:
        """An argument at every call, shape [calls]."""
        return torch.stack([call[name][0] for call in self.calls])


def text(value: float, batch: int = 1, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}prompt_embeds": torch.full((batch, 3, 4), value),
        f"{prefix}prompt_embeds_mask": torch.ones(batch, 3, dtype=torch.long),
        f"{prefix}prompt_poolers": torch.full((batch, 5), value),
    }


def sample(transformer: Any, **changes: Any) -> torch.Tensor:
    args = {
        "width": 32,
        "height": 16,
        "frames": 5,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
        "dtype": torch.float32,
        **text(1.0),
        **text(0.0, prefix="negative_"),
    }
    return sample_hunyuan(transformer, **(args | changes))


def noise(batch: int = 1, seed: int = 0, frames: int = 2) -> torch.Tensor:
    return torch.randn((batch, 16, frames, 2, 4), generator=torch.Generator().manual_seed(seed))


def sigmas(steps: int = STEPS) -> torch.Tensor:
    return section_sigmas(steps, width=32, height=16, frames=5)


# FramePack's numbers


@pytest.mark.parametrize("name", golden_case.NAMES)
def test_golden(name: str):
    case, steps = golden_case.golden_case(name), []
    latents = sample_hunyuan(case.transformer(), callback=steps.append, **case.sample_args())
    denoised = torch.stack([step["denoised"] for step in steps])
    torch.testing.assert_close(latents, case.outputs["sample"], rtol=0, atol=1e-4)
    torch.testing.assert_close(denoised, case.outputs["denoised"], rtol=0, atol=1e-4)


def test_framepacks_sigmas_stay_high():
    s = section_sigmas(25, width=640, height=640, frames=33)
    assert (s > 0.8).sum() == 16
    assert s[-2].item() == pytest.approx(0.226, abs=5e-4)


@pytest.mark.parametrize(
    ("tokens", "mu"),
    [(256, 0.5), (4096, 1.15), (2176, 0.825), (8192, 1.15 + 4096 * 0.65 / 3840), (1e6, None)],
)
def test_flux_mu(tokens: int, mu: float | None):
    assert calculate_flux_mu(tokens) == pytest.approx(math.log(7.0) if mu is None else mu)


def test_flux_mu_of_another_line():
    mu = calculate_flux_mu(30, x1=10, y1=1.0, x2=20, y2=2.0, exp_max=100.0)
    assert mu == pytest.approx(3.0)


@pytest.mark.parametrize("mu", [0.0, 1.15, math.log(7.0)])
@pytest.mark.parametrize("n", [1, 2, 25])
def test_flux_sigmas(n: int, mu: float):
    s = get_flux_sigmas_from_mu(n, mu)
    t = [1 - i / n for i in range(n)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / t_i - 1) for t_i in t] + [0.0]
    torch.testing.assert_close(s, torch.tensor(expected))


def test_flux_time_shift_has_an_exponent():
    shifted = flux_time_shift(torch.tensor([0.25]), mu=math.log(2.0), sigma=2.0)
    torch.testing.assert_close(shifted, torch.tensor([2 / 11]))


def test_section_counts_its_tokens():
    # 9 latent frames of 40 x 32 tokens, too many for the line, and 3 of 8 x 4.
    assert section_sigmas(4, 512, 640, 33).equal(get_flux_sigmas_from_mu(4, math.log(7.0)))
    assert section_sigmas(4, 64, 128, 9).equal(get_flux_sigmas_from_mu(4, calculate_flux_mu(96)))


def test_shift_replaces_the_count():
    assert section_sigmas(4, 64, 64, 9, shift=3.0).equal(get_flux_sigmas_from_mu(4, math.log(3.0)))
    transformer = ConstantVelocities()
    sample(transformer, shift=3.0)
    expected = 1000 * get_flux_sigmas_from_mu(STEPS, math.log(3.0))[:-1]
    torch.testing.assert_close(transformer.received("timestep"), expected)


# What the transformer gets


@pytest.mark.parametrize(("batch_size", "prompts"), [(None, 1), (None, 2), (3, 1), (2, 2)])
def test_batch(batch_size: int | None, prompts: int):
    batch = batch_size or prompts
    transformer = ConstantVelocities()
    latents = sample(transformer, batch_size=batch_size, **text(1.0, prompts))
    torch.testing.assert_close(latents, noise(batch) - 1)
    assert latents.dtype == torch.float32
    shapes = {
        "encoder_hidden_states": (batch, 3, 4),
        "encoder_attention_mask": (batch, 3),
        "pooled_projections": (batch, 5),
        "guidance": (batch,),
        "timestep": (batch,),
    }
    assert {name: transformer.calls[0][name].shape for name in shapes} == shapes


def test_padding_is_cut_off():
    padded = text(1.0, 2) | {"prompt_embeds_mask": torch.tensor([[1, 0, 0], [1, 1, 0]])}
    padded["prompt_embeds"][:, 2] = torch.nan
    transformer = ConstantVelocities()
    torch.testing.assert_close(sample(transformer, **padded), noise(2) - 1)
    assert transformer.calls[0]["encoder_attention_mask"].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("name", golden_case.NAMES)
def test_padding_changes_nothing_for_the_real_transformer(name: str):
    def padded(args: dict[str, Any], more: int) -> dict[str, Any]:
        return args | {
            n: torch.nn.functional.pad(x, (0, 0, 0, more) if x.ndim == 3 else (0, more))
            for n, x in args.items()
            if "prompt_embeds" in n
        }

    case = golden_case.golden_case(name)
    made = [
        sample_hunyuan(case.transformer(), **padded(case.sample_args(), more)) for more in (0, 9)
    ]
    assert made[0].equal(made[1])
    torch.testing.assert_close(made[0], case.outputs["sample"], rtol=0, atol=1e-4)


def test_negative_text_is_expanded_too():
    transformer = ConstantVelocities()
    latents = sample(transformer, batch_size=2, real_guidance_scale=3.0)
    torch.testing.assert_close(latents, noise(2) - 3)
    assert len(transformer.calls[1]["pooled_projections"]) == 2


@pytest.mark.parametrize(("dtype", "guidance"), [(torch.float32, 1e4), (torch.bfloat16, 9984.0)])
def test_inputs_have_the_transformers_dtype(dtype: torch.dtype, guidance: float):
    transformer = ConstantVelocities()
    latents = sample(transformer, dtype=dtype, distilled_guidance_scale=10.0)
    floats = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
    assert {transformer.calls[0][name].dtype for name in (*floats, "guidance")} == {dtype}
    assert transformer.received("timestep").equal((1000 * sigmas()[:-1]).to(dtype))
    assert transformer.received("guidance").unique().tolist() == [guidance]
    assert latents.dtype == torch.float32


@pytest.mark.parametrize("seed", [1, 2])
def test_without_a_generator_the_global_one_is_used(seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latents = sample(ConstantVelocities(), generator=None)
    torch.testing.assert_close(latents, noise(seed=seed) - 1)


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_calls(true_cfg: float):
    transformer = ConstantVelocities()
    sample(transformer, real_guidance_scale=true_cfg)
    prompts = [1.0] if true_cfg == 1.0 else [1.0, 0.0]
    assert transformer.received("encoder_hidden_states")[:, 0, 0].tolist() == prompts * STEPS


def test_kwargs_go_to_both_passes_and_negative_kwargs_override():
    transformer = ConstantVelocities()
    sample(
        transformer,
        real_guidance_scale=2.0,
        num_inference_steps=1,
        latent_indices="both",
        image_embeddings="positive",
        negative_kwargs={"image_embeddings": "negative"},
    )
    positive, negative = transformer.calls
    assert positive["latent_indices"] == negative["latent_indices"] == "both"
    assert (positive["image_embeddings"], negative["image_embeddings"]) == ("positive", "negative")


def test_concat_latent():
    class FirstChannels(ConstantVelocities):
        def __call__(self, hidden_states, **kwargs):
            (velocity,) = super().__call__(hidden_states, **kwargs)
            return (velocity[:, :16],)

    transformer, concat = FirstChannels(), noise(seed=5)[:, :7]
    latents = sample(transformer, concat_latent=concat)
    torch.testing.assert_close(latents, noise() - 1)
    assert all(call["hidden_states"][:, 16:].equal(concat) for call in transformer.calls)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_initial_latent(strength: float):
    transformer, initial = ConstantVelocities(), noise(seed=9)
    latents = sample(transformer, initial_latent=initial, strength=strength)
    start = (1 - strength) * initial + strength * noise()
    torch.testing.assert_close(transformer.calls[0]["hidden_states"], start)
    torch.testing.assert_close(transformer.received("timestep"), 1000 * strength * sigmas()[:-1])
    torch.testing.assert_close(latents, start - strength)


def test_another_sampler_gets_what_unipc_gets():
    def sampler(model, latents, levels, extra_args, callback):
        assert levels.equal(sigmas())
        assert latents.equal(noise())
        return sample_unipc(model, latents, levels, extra_args, callback, disable=True), "mine"

    steps: list = []
    latents, mark = sample(ConstantVelocities(), sampler=sampler, callback=steps.append)
    assert (mark, len(steps)) == ("mine", STEPS)
    assert latents.equal(sample(ConstantVelocities()))


# Errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            (name, value)
            for name in (
                "adaptive_cfg_beta",
                "low_pass_sigma",
                "history_low_pass",
                "last_low_pass",
            )
            for value in (-0.1, 1.01, math.nan, math.inf)
        ],
        *[("low_pass_factor", value) for value in (-0.5, 0.0, 1.01, math.nan)],
        *[
            (name, value)
            for name in (
                "adaptive_cfg_min",
                "real_guidance_scale",
                "distilled_guidance_scale",
                "guidance_rescale",
            )
            for value in (-0.5, math.nan, math.inf, -math.inf)
        ],
        *[("num_inference_steps", value) for value in (0, -3)],
        *[("frames", value) for value in (0, -3, 2, 4, 16)],
        *[(name, value) for name in ("width", "height") for value in (0, -16, 24)],
    ],
)
def test_error_quotes_name_and_value(name: str, value: float):
    transformer = ConstantVelocities()
    with pytest.raises(ValueError, match=rf"{name}\b.*\bgot {value}$"):
        sample(transformer, **{name: value})
    assert transformer.calls == []


def test_unknown_frames():
    transformer = ConstantVelocities()
    with pytest.raises(ValueError, match=r"low_pass_frames must be of both, start, last, got 'x'$"):
        sample(transformer, low_pass_frames="x")
    assert transformer.calls == []


def test_history_needs_its_distance():
    transformer = ConstantVelocities()
    with pytest.raises(ValueError, match=r"latent_indices.*history_low_pass 0\.5"):
        sample(transformer, history_low_pass=0.5)
    assert transformer.calls == []


def test_true_cfg_needs_a_negative_prompt():
    transformer = ConstantVelocities()
    with pytest.raises(ValueError, match=r"negative_prompt_embeds.*2\.5"):
        sample(transformer, real_guidance_scale=2.5, negative_prompt_embeds=None)
    assert transformer.calls == []


def test_unknown_sampler():
    transformer = ConstantVelocities()
    with pytest.raises(NotImplementedError, match="'euler'"):
        sample(transformer, sampler="euler")
    assert transformer.calls == []


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("cfg_min", [0.0, 10.0])
def test_ends_of_the_ranges_are_allowed(beta: float, cfg_min: float):
    latents = sample(
        ConstantVelocities(),
        adaptive_cfg_beta=beta,
        adaptive_cfg_min=cfg_min,
        distilled_guidance_scale=0.0,
        num_inference_steps=1,
        frames=1,
    )
    torch.testing.assert_close(latents, noise(frames=1) - 1)


# Step-Adaptive CFG


@pytest.mark.parametrize("name", golden_case.NAMES)
def test_beta_zero_is_bit_identical(name: str):
    case = golden_case.golden_case(name)
    transformer = case.transformer()
    calls: list = []
    transformer.register_forward_pre_hook(lambda *_: calls.append(None))

    plain = sample_hunyuan(transformer, **case.sample_args())
    plain_calls = len(calls)
    neutral = sample_hunyuan(
        transformer, adaptive_cfg_beta=0.0, adaptive_cfg_min=4.0, **case.sample_args()
    )
    assert neutral.equal(plain)
    assert len(calls) == 2 * plain_calls

    adapted = sample_hunyuan(transformer, adaptive_cfg_beta=0.7, **case.sample_args())
    assert not adapted.equal(plain)
    assert len(calls) == 3 * plain_calls


SCHEDULES = pytest.mark.parametrize(
    ("beta", "cfg_min"), [(0.0, 1.0), (0.35, 4.0), (0.7, 1.0), (1.0, 0.0)]
)


@SCHEDULES
@pytest.mark.parametrize("gs", [10.0, 6.3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_distilled_guidance_follows_the_schedule(
    gs: float, beta: float, cfg_min: float, dtype: torch.dtype, rtol: float
):
    transformer = ConstantVelocities()
    sample(
        transformer,
        distilled_guidance_scale=gs,
        adaptive_cfg_beta=beta,
        adaptive_cfg_min=cfg_min,
        dtype=dtype,
    )
    schedule = guidance_schedule(sigmas(), 1.0, gs, beta, cfg_min)
    torch.testing.assert_close(schedule, cfg_min + (gs - cfg_min) * (1 - beta * sigmas()[:-1]))
    torch.testing.assert_close(
        transformer.received("guidance"), (1000 * schedule).to(dtype), rtol=rtol, atol=0
    )


@SCHEDULES
@pytest.mark.parametrize("cfg", [3.0, 0.0])
def test_true_cfg_follows_the_schedule(cfg: float, beta: float, cfg_min: float):
    transformer, steps = ConstantVelocities(), []
    sample(
        transformer,
        real_guidance_scale=cfg,
        distilled_guidance_scale=6.0,
        adaptive_cfg_beta=beta,
        adaptive_cfg_min=cfg_min,
        callback=steps.append,
    )
    # With the velocities 1 and 0 the guided velocity is the scale.
    x = [call["hidden_states"] for call in transformer.calls[::2]]
    scales = [
        ((x_i - step["denoised"]) / sigma).mean()
        for x_i, step, sigma in zip(x, steps, sigmas(), strict=False)
    ]
    schedule = guidance_schedule(sigmas(), cfg, 6.0, beta, cfg_min)
    torch.testing.assert_close(schedule, cfg_min + (cfg - cfg_min) * (1 - beta * sigmas()[:-1]))
    torch.testing.assert_close(torch.stack(scales), schedule, rtol=1e-4, atol=1e-5)
    assert transformer.received("guidance").tolist() == [6000.0] * (2 * STEPS)


# Low-pass conditioning


CLEAN = torch.randn((1, 16, 2, 6, 6), generator=torch.Generator().manual_seed(3))
GATE = sigmas()[2].item()
"""At the third of six steps."""


@pytest.mark.parametrize("name", golden_case.NAMES)
def test_low_pass_off_is_bit_identical(name: str, monkeypatch):
    case = golden_case.golden_case(name)
    transformer = case.transformer()
    calls: list = []
    transformer.register_forward_pre_hook(lambda *_: calls.append(None))

    plain = sample_hunyuan(transformer, **case.sample_args())
    plain_calls = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(filters, "low_pass", None)  # which nothing may call
        neutral = sample_hunyuan(
            transformer,
            low_pass_factor=1.0,
            low_pass_sigma=0.0,
            low_pass_frames="start",
            history_low_pass=0.0,
            last_low_pass=torch.zeros(1),
            **case.sample_args(),
        )
    assert neutral.equal(plain)
    assert len(calls) == 2 * plain_calls

    levers = {"low_pass_factor": 0.5}, {"history_low_pass": 1.0}, {"last_low_pass": torch.ones(1)}
    for lever in levers:
        calls.clear()
        blurred = sample_hunyuan(transformer, **lever, **case.sample_args())
        assert not blurred.equal(plain)
        assert len(calls) == plain_calls


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_both_passes_are_shown_the_same_and_it_is_filtered_once(true_cfg: float, monkeypatch):
    filtered: list = []
    monkeypatch.setattr(filters, "low_pass", lambda *args: filtered.append(None) or low_pass(*args))
    transformer = ConstantVelocities()
    sample(
        transformer,
        real_guidance_scale=true_cfg,
        clean_latents=CLEAN,
        low_pass_factor=0.5,
        low_pass_sigma=GATE,
    )
    shown = transformer.received("clean_latents")
    passes = 1 if true_cfg == 1.0 else 2
    soft = low_pass(CLEAN, 0.5)
    assert shown[: 3 * passes].equal(soft.expand(3 * passes, -1, -1, -1, -1))
    assert shown[3 * passes :].equal(CLEAN.expand(3 * passes, -1, -1, -1, -1))
    assert len(filtered) == 1


def test_history_is_low_passed_at_the_same_gate():
    transformer = ConstantVelocities()
    past = CLEAN[:, :, :1].expand(1, 16, 5, 6, 6)
    sample(
        transformer,
        latent_indices=torch.arange(19, 21)[None],
        clean_latents=CLEAN,
        clean_latents_4x=past,
        clean_latent_4x_indices=torch.arange(5)[None],
        history_low_pass=1.0,
        low_pass_sigma=GATE,
    )
    shown = transformer.received("clean_latents_4x")
    torch.testing.assert_close(
        shown[:3, :, :1], low_pass(past, 0.25)[:, :, :1].expand(3, -1, -1, -1, -1)
    )
    assert shown[3:].equal(past.expand(3, -1, -1, -1, -1))
    assert all(call["clean_latents"] is CLEAN for call in transformer.calls)


def test_the_last_frame_is_low_passed_further_at_the_same_gate():
    transformer = ConstantVelocities()
    strengths = {"low_pass_factor": 0.5, "last_low_pass": 0.5, "low_pass_sigma": GATE}
    sample(transformer, clean_latents=CLEAN, **strengths)
    shown = transformer.received("clean_latents")
    start, last = low_pass(CLEAN, 0.5).split(1, dim=2)
    last = (last + low_pass(last, 0.25)) / 2
    for soft in shown[:3]:
        torch.testing.assert_close(soft[None], torch.cat([start, last], dim=2))
    assert shown[3:].equal(CLEAN.expand(3, -1, -1, -1, -1))


def test_a_negative_past_is_filtered_too():
    transformer = ConstantVelocities()
    sample(
        transformer,
        real_guidance_scale=2.0,
        num_inference_steps=1,
        clean_latents=CLEAN,
        negative_kwargs={"clean_latents": 2 * CLEAN},
        low_pass_factor=0.5,
        low_pass_frames="last",
    )
    positive, negative = transformer.received("clean_latents")
    torch.testing.assert_close(negative, 2 * positive)
    assert positive[:, 0].equal(CLEAN[0, :, 0])
    assert positive[:, 1].equal(low_pass(CLEAN, 0.5)[0, :, 1])


def test_image_embeddings_stay_sharp():
    transformer, embeddings = ConstantVelocities(), torch.ones(1, 7, 3)
    sample(
        transformer,
        clean_latents=CLEAN,
        image_embeddings=embeddings,
        low_pass_factor=0.5,
        low_pass_sigma=0.0,
    )
    assert all(call["image_embeddings"] is embeddings for call in transformer.calls)
