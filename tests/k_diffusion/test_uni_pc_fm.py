import math
from itertools import pairwise

import pytest
import torch

from diffusers_helper.k_diffusion.uni_pc_fm import sample_unipc, unipc_steps
from tests.golden_case import read_tensors

VARIANTS = ("bh1", "bh2")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def falling_sigmas(steps: int, last: float = 0.05) -> torch.Tensor:
    """Evenly spaced in lambda from 1 to `last`, then 0."""
    sigmas = torch.logspace(0, math.log10(last), steps, dtype=torch.float64)
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


class ConstantVelocity:
    """x(sigma) = x0 + sigma * v; counts what it is asked."""

    def __init__(self, v: torch.Tensor) -> None:
        self.v = v
        self.sigmas: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.sigmas.append(sigma)
        return x - sigma[:, None] * self.v


class Gaussian:
    """Denoiser of data N(mean, std^2), and the closed form of its probability flow."""

    mean, std = 0.7, 0.5

    def spread(self, sigma: torch.Tensor) -> torch.Tensor:
        return ((1 - sigma) ** 2 * self.std**2 + sigma**2).sqrt()

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        gain = (1 - sigma) * self.std**2 / self.spread(sigma) ** 2
        return self.mean + gain * (x - (1 - sigma) * self.mean)

    def flow(self, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x at `sigma` on the path that starts as `noise` at sigma 1."""
        return (1 - sigma) * self.mean + self.spread(sigma) * noise


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden(variant: str):
    golden, _ = read_tensors("unipc")
    sample = sample_unipc(
        lambda x, sigma: 0.5 * torch.tanh(x * (1 + sigma[:, None])),
        golden[f"7.{variant}.x"],
        golden[f"7.{variant}.sigmas"],
        disable=True,
        variant=variant,
    )
    torch.testing.assert_close(sample, golden[f"7.{variant}.out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_constant_velocity_is_exact(steps: int, variant: str):
    x0, v = randn(2, 5), randn(2, 5, seed=1)
    sigmas = falling_sigmas(steps)
    model = ConstantVelocity(v)
    for step in unipc_steps(model, x0 + v, sigmas, variant=variant):
        torch.testing.assert_close(step["x"], x0 + sigmas[step["i"]] * v)
        torch.testing.assert_close(step["denoised"], x0)
    assert step["i"] == steps - 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_gaussian_data(variant: str):
    model, noise = Gaussian(), randn(3, 100)

    def error(steps: int) -> float:
        sigmas = falling_sigmas(steps)
        # What the model says of the last point is the sample, so that is what is compared.
        expected = model(model.flow(noise, sigmas[-2]), sigmas[-2])
        sample = sample_unipc(model, noise, sigmas, disable=True, variant=variant)
        return (sample - expected).abs().max().item()

    errors = [error(steps) for steps in (16, 32, 64, 128)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 1e-5
    assert min(orders) > 2.5, orders


def test_gaussian_data_has_the_datas_mean_and_spread():
    model = Gaussian()
    sigmas = falling_sigmas(30, last=1e-3)
    sample = sample_unipc(model, randn(20_000, 1), sigmas, disable=True)
    assert sample.mean().item() == pytest.approx(model.mean, abs=0.02)
    assert sample.std().item() == pytest.approx(model.std, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_one_call_a_sigma_and_none_at_zero(steps: int):
    model = ConstantVelocity(randn(2, 5))
    sigmas = falling_sigmas(steps)
    sample_unipc(model, randn(2, 5), sigmas, disable=True)
    asked = torch.stack(model.sigmas)
    assert asked.equal(sigmas[:-1, None].expand(steps, 2))
    assert asked.min() > 0


def test_one_step_is_one_guess():
    model, noise = Gaussian(), randn(2, 5)
    sample = sample_unipc(model, noise, torch.tensor([0.8, 0.0]), disable=True)
    assert sample.equal(model(noise, torch.tensor(0.8)))


def test_callback():
    model, noise, sigmas, steps = Gaussian(), randn(2, 5), falling_sigmas(6), []
    sample = sample_unipc(model, noise, sigmas, callback=steps.append, disable=True)
    assert [set(step) for step in steps] == [{"x", "i", "denoised"}] * 6
    assert [step["i"] for step in steps] == list(range(6))
    assert steps[0]["x"].equal(noise)
    assert steps[0]["denoised"].equal(model(noise, sigmas[0]))
    assert steps[-1]["denoised"] is sample
    for step, sigma in zip(steps, sigmas, strict=False):
        torch.testing.assert_close(step["x"], model.flow(noise, sigma), rtol=0, atol=0.05)


def test_extra_args_reach_the_model():
    sample = sample_unipc(
        lambda x, sigma, mean: torch.full_like(x, mean),
        randn(2, 5),
        falling_sigmas(3),
        extra_args={"mean": 4.0},
        disable=True,
    )
    torch.testing.assert_close(sample, torch.full_like(sample, 4.0))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_steps_stop_when_closed(taken: int):
    model = ConstantVelocity(randn(2, 5))
    steps = unipc_steps(model, randn(2, 5), falling_sigmas(8))
    for _ in range(taken):
        next(steps)
    steps.close()
    assert len(model.sigmas) == taken
    assert list(steps) == []


@pytest.mark.parametrize("disable", [True, False])
def test_progress_bar(disable: bool, capsys: pytest.CaptureFixture):
    sample_unipc(ConstantVelocity(randn(1, 1)), randn(1, 1), falling_sigmas(3), disable=disable)
    assert ("3/3" in capsys.readouterr().err) != disable
