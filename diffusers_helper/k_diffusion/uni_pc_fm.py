"""UniPC for flow matching: multistep, order 3, one model evaluation per step.

"UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
(arXiv 2302.04867), predicting x0, in lambda = -log(sigma). Symbols as there.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, TypedDict

import numpy as np
import torch
from tqdm.auto import tqdm

MAX_ORDER = 3


class Step(TypedDict):
    """State after a solver step: `x` at its sigma, its index `i`, the model's `denoised` there."""

    x: torch.Tensor
    i: int
    denoised: torch.Tensor


def _weights(r: list[float], h: float, variant: str, corrector: bool) -> tuple[float, np.ndarray]:
    """B(h) and the weights of the differences at the points `r`, UniPC's equations 7 to 9.

    `r` are the earlier points in units of the step `h`, nearest first; the corrector has one point
    more, the step's own end at 1.
    """
    z = -h
    points = [*r, 1.0] if corrector else r
    order = len(points)
    B = z if variant == "bh1" else math.expm1(z)
    if order == 1:
        return B, np.array([0.5])  # the paper's choice, which the linear system only approaches
    b, phi = [], math.expm1(z) / z - 1
    for k in range(1, order + 1):
        b.append(phi * math.factorial(k) / B)
        phi = phi / z - 1 / math.factorial(k + 1)
    R = np.vander(points, order, increasing=True).T
    return B, np.linalg.solve(R, b)


@torch.inference_mode()
def unipc_steps(
    model: Callable[..., torch.Tensor],
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    variant: Literal["bh1", "bh2"] = "bh1",
) -> Iterator[Step]:
    """Sample step by step; the caller may stop between any two.

    Args:
        model: `model(x, sigma, **extra_args)` with sigma of shape [batch], returns x0 shaped as x.
        noise: x at `sigmas[0]`, shape [batch, ...].
        sigmas: falling noise levels, on any device, shape [steps + 1]; the last is never evaluated.
        extra_args: passed to `model`.
        variant: B(h) of the paper, "bh1" = h or "bh2" = e^h - 1.

    Yields:
        One `Step` a sigma; the `denoised` of the last is the sample.
    """
    extra_args = extra_args or {}
    # Weights are plain numbers: sigmas on the CPU are read without a wait for a GPU.
    s = sigmas.tolist()[:-1]
    order = min(MAX_ORDER, len(s) - 1)
    x, m = noise, []  # m: the latest x0, newest first

    for i, t in enumerate(s):
        if i > 0:
            h = math.log(s[i - 1] / t)
            r = [math.log(s[i - 1] / s[i - 1 - k]) / h for k in range(1, min(i, order))]
            D = [(m_k - m[0]) / r_k for r_k, m_k in zip(r, m[1:], strict=False)]
            x_ = t / s[i - 1] * x - math.expm1(-h) * m[0]
            B, rho = _weights(r, h, variant, corrector=False) if r else (0.0, ())
            x = x_ - B * sum(w * d for w, d in zip(rho, D, strict=True))

        m_t = model(x, sigmas[i].expand(x.shape[0]), **extra_args)

        if i > 0:
            B, rho = _weights(r, h, variant, corrector=True)
            x = x_ - B * sum(w * d for w, d in zip(rho, [*D, m_t - m[0]], strict=True))
        m = [m_t, *m[: order - 1]]
        yield Step(x=x, i=i, denoised=m_t)


def sample_unipc(
    model: Callable[..., torch.Tensor],
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[Step], None] | None = None,
    disable: bool = False,
    variant: Literal["bh1", "bh2"] = "bh1",
) -> torch.Tensor:
    """Sample to the end and return x0, shaped as `noise`. Arguments as `unipc_steps`, and:

    Args:
        callback: called with every `Step`.
        disable: no progress bar.
    """
    steps = unipc_steps(model, noise, sigmas, extra_args, variant)
    for step in tqdm(steps, total=len(sigmas) - 1, disable=disable):
        if callback is not None:
            callback(step)
    return step["denoised"]
