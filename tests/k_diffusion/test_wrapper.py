from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from diffusers_helper.k_diffusion.wrapper import (
    adaptive_cfg_scale,
    append_dims,
    fm_wrapper,
    rescale_noise_cfg,
)

SHAPE = (2, 4, 3, 2, 2)
DTYPES = (torch.float32, torch.bfloat16)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Call:
    name: str | None
    hidden_states: torch.Tensor
    timestep: torch.Tensor
    conditions: dict[str, Any]


class ConstantVelocities:
    """A velocity for each pass, and a record of the calls."""

    def __init__(self, positive: Any = 1.0, negative: Any = 0.0) -> None:
        self.velocities = {"positive": positive, "negative": negative}
        self.calls: list[Call] = []
        self.name = None

    @contextmanager
    def cache_context(self, name: str):
        self.name = name
        yield
        self.name = None

    def __call__(self, hidden_states, timestep, return_dict, **conditions):
        assert return_dict is False
        self.calls.append(Call(self.name, hidden_states, timestep, conditions))
        velocity = torch.as_tensor(self.velocities[self.name])
        return (velocity.expand_as(hidden_states) if velocity.ndim == 0 else velocity,)

    def guidance(self) -> list[float]:
        return [call.conditions["guidance"][0].item() for call in self.calls]


def denoise(transformer, x=None, sigma=0.5, dtype=torch.float32, guidance=10_000.0, **extra_args):
    conditions = {"guidance": torch.full((SHAPE[0],), guidance, dtype=dtype)}
    extra_args = {
        "dtype": dtype,
        "cfg_scale": 1.0,
        "cfg_rescale": 0.0,
        "concat_latent": None,
        "positive": conditions,
        "negative": conditions,
    } | extra_args
    x = torch.zeros(SHAPE) if x is None else x
    return fm_wrapper(transformer)(x, torch.as_tensor(sigma).expand(len(x)), **extra_args)


def adaptive(**settings: float) -> dict[str, Any]:
    return {"enabled": True, **settings}


@pytest.mark.parametrize(
    ("sigma", "scale"), [(1.0, 3.7), (0.5, 6.85), (0.0, 10.0), (1.7, 3.7), (-0.4, 10.0)]
)
def test_schedule(sigma: float, scale: float):
    torch.testing.assert_close(
        adaptive_cfg_scale(torch.tensor(sigma), 10.0, cfg_min=1.0, beta=0.7), torch.tensor(scale)
    )


def test_schedule_has_the_designs_defaults():
    torch.testing.assert_close(adaptive_cfg_scale(1.0, 10.0), torch.tensor(3.7))


@pytest.mark.parametrize(
    ("cfg_min", "beta", "scale"), [(4.0, 1.0, 4.0), (0.0, 0.5, 5.0), (12.0, 1.0, 12.0)]
)
def test_schedule_at_full_noise(cfg_min: float, beta: float, scale: float):
    assert adaptive_cfg_scale(1.0, 10.0, cfg_min, beta) == scale


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)])
def test_schedule_keeps_shape(shape: tuple[int, ...]):
    sigma = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adaptive_cfg_scale(sigma, 10.0), 1 + 9 * (1 - 0.7 * sigma))


def test_schedule_keeps_device():
    sigma = torch.empty(3, device="meta")
    scale = adaptive_cfg_scale(sigma, 10.0)
    assert (scale.device, scale.shape, scale.dtype) == (sigma.device, sigma.shape, sigma.dtype)


@pytest.mark.parametrize("sigma", [1, 1.0, torch.tensor(1.0)])
def test_schedule_of_a_number_is_a_tensor(sigma: Any):
    torch.testing.assert_close(adaptive_cfg_scale(sigma, 10.0), torch.tensor(3.7))


@pytest.mark.parametrize("base", [10.0, 1.0, 0.1])
def test_schedule_without_beta_is_the_base(base: float):
    scale = adaptive_cfg_scale(torch.linspace(0, 1, 7), base, cfg_min=1.3, beta=0.0)
    torch.testing.assert_close(scale, torch.full((7,), base))


def test_schedule_ignores_t_scale():
    assert adaptive_cfg_scale(0.3, 10.0, t_scale=1.0) == adaptive_cfg_scale(0.3, 10.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cfg_min", [0.0, 1.0, 4.0])
def test_true_cfg_off_schedules_guidance(dtype: torch.dtype, cfg_min: float):
    transformer = ConstantVelocities()
    denoise(transformer, dtype=dtype, adaptive_cfg=adaptive(beta=0.7, cfg_min=cfg_min))

    (call,) = transformer.calls
    expected = 1000 * (cfg_min + (10.0 - cfg_min) * 0.65)
    guidance = torch.full((SHAPE[0],), expected).to(dtype)
    torch.testing.assert_close(call.conditions["guidance"], guidance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("base", [10_000.0, 9984.0, 6300.0])
def test_scheduled_guidance_starts_from_the_guidance_of_the_pass(base: float):
    transformer = ConstantVelocities()
    denoise(transformer, guidance=base, sigma=1.0, adaptive_cfg=adaptive(beta=0.5, cfg_min=2.0))
    assert transformer.guidance() == pytest.approx([(2000 + base) / 2])


def test_scheduled_guidance_does_not_pile_up():
    transformer = ConstantVelocities()
    positive = {"guidance": torch.full((SHAPE[0],), 10_000.0)}
    for _ in range(3):
        denoise(transformer, sigma=1.0, positive=positive, adaptive_cfg=adaptive(beta=0.7))
    assert transformer.guidance() == pytest.approx([3700.0] * 3)


@pytest.mark.parametrize("cfg", [0.0, 2.0, 10.0])
@pytest.mark.parametrize(("cfg_min", "beta"), [(1.0, 0.7), (4.0, 1.0), (0.0, 0.5)])
def test_true_cfg_on_schedules_cfg(cfg: float, cfg_min: float, beta: float):
    positive, negative = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    transformer = ConstantVelocities(positive, negative)
    x = randn(*SHAPE)
    denoised = denoise(
        transformer, x, cfg_scale=cfg, adaptive_cfg=adaptive(beta=beta, cfg_min=cfg_min)
    )

    scale = cfg_min + (cfg - cfg_min) * (1 - 0.5 * beta)
    expected = x - 0.5 * (negative + scale * (positive - negative))
    torch.testing.assert_close(denoised, expected)
    assert [call.name for call in transformer.calls] == ["positive", "negative"]
    assert transformer.guidance() == [10_000.0, 10_000.0]


@pytest.mark.parametrize("conditions", [{}, {"guidance": None}])
def test_without_guidance_nothing_changes(conditions: dict):
    transformer = ConstantVelocities(randn(*SHAPE))
    args = {"positive": conditions, "adaptive_cfg": adaptive(beta=0.7)}
    assert denoise(transformer, **args).equal(denoise(transformer, positive=conditions))
    assert [call.conditions for call in transformer.calls] == [conditions, conditions]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cfg", [1.0, 3.7, 0.1])
@pytest.mark.parametrize(
    "neutral",
    [None, {}, {"enabled": False, "beta": 0.7, "cfg_min": 1.0}, adaptive(beta=0.0, cfg_min=1.3)],
    ids=["none", "empty", "disabled", "beta0"],
)
def test_neutral_is_bit_identical(neutral: dict | None, cfg: float, dtype: torch.dtype):
    positive, negative = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    for guidance in (10_000.0, 6300.0, 3210.7, 123.4):
        plain, fed = (ConstantVelocities(positive, negative) for _ in range(2))
        args = {"x": randn(*SHAPE), "cfg_scale": cfg, "dtype": dtype, "guidance": guidance}
        assert denoise(plain, **args).equal(denoise(fed, adaptive_cfg=neutral, **args))
        assert fed.guidance() == plain.guidance()


@pytest.mark.parametrize("cfg", [1.0, 10.0])
def test_enabled_alone_takes_the_designs_defaults(cfg: float):
    defaults, written = ConstantVelocities(), ConstantVelocities()
    args = {"cfg_scale": cfg, "sigma": 1.0}
    denoised = denoise(defaults, adaptive_cfg=adaptive(), **args)
    assert denoised.equal(denoise(written, adaptive_cfg=adaptive(beta=0.7, cfg_min=1.0), **args))
    assert defaults.guidance() == written.guidance()
    scale = defaults.guidance()[0] / 1000 if cfg == 1.0 else -denoised.mean().item()
    assert scale == pytest.approx(3.7)


@pytest.mark.parametrize("cfg", [1.0, 10.0])
def test_mean_sigma_schedules_the_batch(cfg: float):
    transformer = ConstantVelocities()
    sigma = torch.tensor([0.2, 0.6])
    denoised = denoise(
        transformer, sigma=sigma, cfg_scale=cfg, adaptive_cfg=adaptive(beta=0.5, cfg_min=0.0)
    )
    scale = 10 * (1 - 0.5 * 0.4)
    if cfg == 1.0:
        torch.testing.assert_close(
            transformer.calls[0].conditions["guidance"], torch.full((2,), 1000 * scale)
        )
    velocity = 1.0 if cfg == 1.0 else scale
    torch.testing.assert_close(denoised, -velocity * append_dims(sigma, 5).expand(SHAPE))


@pytest.mark.parametrize(
    ("sigma", "gate", "is_soft"),
    [
        ([0.9], 0.75, True),
        ([0.75], 0.75, True),
        ([0.7499], 0.75, False),
        ([1.0], 1.0, True),
        ([0.9999], 1.0, False),
        ([0.001], 0.0, True),
        ([0.5, 1.0], 0.75, True),
        ([0.5, 0.9], 0.75, False),
    ],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_low_pass_takes_the_place_of_latents_down_to_its_mean_sigma(
    cfg: float, sigma: list[float], gate: float, is_soft: bool
):
    names = ["positive", "negative"][: 1 if cfg == 1.0 else 2]
    sharp = {name: randn(*SHAPE, seed=i) for i, name in enumerate(names)}
    soft = {name: randn(*SHAPE, seed=9 + i) for i, name in enumerate(names)}
    passes = {name: {"clean_latents": sharp[name], "which": name} for name in names}
    low_pass = {"sigma": gate, **{name: {"clean_latents": soft[name]} for name in names}}
    transformer = ConstantVelocities()
    sigma = torch.tensor(sigma).expand(SHAPE[0])
    denoise(transformer, sigma=sigma, cfg_scale=cfg, low_pass=low_pass, **passes)
    assert [call.conditions["which"] for call in transformer.calls] == names
    for call in transformer.calls:
        shown = soft if is_soft else sharp
        assert call.conditions["clean_latents"].equal(shown[call.name])


@pytest.mark.parametrize("low_pass", [None, {}, {"sigma": 0.0, "positive": {}, "negative": {}}])
def test_without_low_pass_a_pass_gets_its_own_tensors(low_pass: dict | None):
    transformer, conditions = ConstantVelocities(), {"clean_latents": randn(*SHAPE)}
    passes = {"positive": conditions, "negative": conditions}
    denoise(transformer, cfg_scale=3.0, low_pass=low_pass, **passes)
    for call in transformer.calls:
        assert call.conditions["clean_latents"] is conditions["clean_latents"]


@pytest.mark.parametrize(
    ("sigma", "schedule", "names"),
    [
        (1.0, {"beta": 1.0, "cfg_min": 1.0}, ["positive"]),
        (0.999, {"beta": 1.0, "cfg_min": 1.0}, ["positive", "negative"]),
        (1.0, {"beta": 0.9, "cfg_min": 1.0}, ["positive", "negative"]),
        (1.0, {"beta": 1.0, "cfg_min": 0.0}, ["positive", "negative"]),
        (0.5, {"beta": 1.0, "cfg_min": -1.0}, ["positive"]),
    ],
)
def test_a_step_whose_scheduled_scale_is_1_has_no_negative_pass(
    sigma: float, schedule: dict[str, float], names: list[str]
):
    transformer = ConstantVelocities(positive=1.0, negative=0.25)
    args = {"cfg_scale": 3.0, "cfg_rescale": 0.7, "sigma": sigma}
    denoised = denoise(transformer, adaptive_cfg=adaptive(**schedule), **args)
    assert [call.name for call in transformer.calls] == names
    if len(names) == 1:
        assert denoised.equal(torch.full(SHAPE, -sigma))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_sigmas_on_the_cpu_leave_nothing_to_wait_for(cfg: float):
    """Tensors without values would refuse to be read."""
    x = torch.empty(SHAPE, device="meta")
    passes = {
        name: {"guidance": torch.empty(2, device="meta"), "clean_latents": x}
        for name in ("positive", "negative")
    }
    denoised = fm_wrapper(lambda hidden_states, **_: (hidden_states,))(
        x,
        torch.tensor([0.9, 0.9]),
        dtype=torch.bfloat16,
        cfg_scale=cfg,
        cfg_rescale=0.7,
        concat_latent=None,
        adaptive_cfg=adaptive(beta=0.7, cfg_min=1.0),
        low_pass={"sigma": 0.9, **{name: {"clean_latents": x} for name in passes}},
        **passes,
    )
    assert (denoised.shape, denoised.device.type) == (x.shape, "meta")


@pytest.mark.parametrize("cfg", [1.0, 0.0, 3.0])
def test_true_cfg(cfg: float):
    denoised = denoise(ConstantVelocities(positive=1.0, negative=0.25), cfg_scale=cfg)
    torch.testing.assert_close(denoised, torch.full(SHAPE, -0.5 * (0.25 + cfg * 0.75)))


@pytest.mark.parametrize(("cfg", "names"), [(1.0, ["positive"]), (3.0, ["positive", "negative"])])
def test_passes_are_named(cfg: float, names: list[str]):
    transformer = ConstantVelocities()
    passes = {name: {"guidance": torch.full((2,), 1.0), "which": name} for name in names}
    denoise(transformer, cfg_scale=cfg, **passes)
    assert [call.name for call in transformer.calls] == names
    assert [call.conditions["which"] for call in transformer.calls] == names


def test_a_plain_function_will_do():
    denoised = denoise(lambda hidden_states, **_: (torch.ones_like(hidden_states),), sigma=0.25)
    assert denoised.equal(torch.full(SHAPE, -0.25))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescale_noise_cfg(share: float):
    text, guided = randn(*SHAPE, seed=1), 3 * randn(*SHAPE, seed=2) + 1
    spread = rescale_noise_cfg(guided, text, share).flatten(1).std(dim=1)
    expected = share * text.flatten(1).std(dim=1) + (1 - share) * guided.flatten(1).std(dim=1)
    torch.testing.assert_close(spread, expected)


def test_rescale_scales_each_sample_by_one_number():
    text, guided = randn(*SHAPE, seed=1), 3 * randn(*SHAPE, seed=2)
    ratio = (rescale_noise_cfg(guided, text, 0.7) / guided).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio[0, 0] != ratio[1, 0]


def test_rescale_pulls_towards_the_positive_pass():
    positive, negative = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    transformer = ConstantVelocities(positive, negative)
    denoised = denoise(transformer, cfg_scale=4.0, cfg_rescale=1.0)
    spread = (denoised / -0.5).flatten(1).std(dim=1)
    torch.testing.assert_close(spread, positive.flatten(1).std(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_concat_latent_joins_the_channels(dtype: torch.dtype):
    transformer = ConstantVelocities()
    x, concat = randn(*SHAPE), randn(2, 3, *SHAPE[2:], seed=1)
    transformer.velocities["positive"] = torch.ones(SHAPE)
    denoised = denoise(transformer, x, dtype=dtype, concat_latent=concat)
    assert transformer.calls[0].hidden_states.equal(torch.cat([x, concat], dim=1).to(dtype))
    torch.testing.assert_close(denoised, x - 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_timestep_and_latents_in_the_transformers_dtype(dtype: torch.dtype):
    transformer = ConstantVelocities()
    x = randn(*SHAPE)
    denoise(transformer, x, sigma=torch.tensor([0.1234, 0.9876]), dtype=dtype)
    (call,) = transformer.calls
    torch.testing.assert_close(call.timestep, torch.tensor([123.4, 987.6]).to(dtype))
    assert call.hidden_states.equal(x.to(dtype))


def test_t_scale_is_the_timestep_at_sigma_one():
    transformer = ConstantVelocities()
    fm_wrapper(transformer, t_scale=7.0)(
        torch.zeros(SHAPE),
        torch.ones(2),
        dtype=torch.float32,
        cfg_scale=1.0,
        cfg_rescale=0.0,
        concat_latent=None,
        positive={},
    )
    assert transformer.calls[0].timestep.tolist() == [7.0, 7.0]


def test_denoised_is_computed_in_float32():
    x, v = randn(*SHAPE).bfloat16(), randn(*SHAPE, seed=1).bfloat16()
    denoised = denoise(ConstantVelocities(v), x, sigma=0.3, dtype=torch.bfloat16)
    assert denoised.dtype == torch.bfloat16
    assert denoised.equal((x.float() - 0.3 * v.float()).bfloat16())
    assert not denoised.equal(x - torch.tensor(0.3).bfloat16() * v)


def test_float32_latents_stay_float32_with_a_bfloat16_transformer():
    x, v = randn(*SHAPE), randn(*SHAPE, seed=1).bfloat16()
    denoised = denoise(ConstantVelocities(v), x, dtype=torch.bfloat16)
    torch.testing.assert_close(denoised, x - 0.5 * v.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dims", "shape"), [(1, (3,)), (3, (3, 1, 1)), (5, (3, 1, 1, 1, 1))])
def test_append_dims(dims: int, shape: tuple[int, ...]):
    x = torch.arange(3)
    assert append_dims(x, dims).shape == shape
    assert append_dims(x, dims).flatten().equal(x)
