"""The guidance schedules that are compared, and how a video is made with each."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

from diffusers_helper.k_diffusion import wrapper
from diffusers_helper.k_diffusion.wrapper import adaptive_cfg_scale
from diffusers_helper.pipelines import k_diffusion_hunyuan as pipeline

SWEEP = (1.0, 2.0, 3.0, 5.0, 6.0, 8.0, 10.0)
"""Constant scales among the controls."""
_DECIMALS = 2
"""Of means; the transformer reads scales in steps of 0.4 % and more."""


@dataclass(frozen=True)
class Arm:
    """One way to guide; videos of one clip differ in nothing else."""

    kind: str
    """"schedule" (low while noise is high), "reversed" (its values in reverse order) or
    "constant"."""
    base: float
    """Of the schedule, or the constant."""
    beta: float
    """0 of constants."""
    mean: float
    """Guidance scale averaged over the steps of a section, to two decimals. A reversed schedule has
    the mean of its schedule, so that one constant is the control of both."""

    @property
    def name(self) -> str:
        """Such as "constant 5", "schedule 10 beta 0.7"."""
        return f"{self.kind} {self.base:g}" + (f" beta {self.beta:g}" if self.beta else "")

    @property
    def baseline(self) -> "Arm":
        """Its beta 0."""
        return constant(self.base)

    @property
    def control(self) -> "Arm":
        """The constant at its mean."""
        return constant(self.mean)

    def settings(self, true_cfg: bool) -> dict[str, float]:
        """Values of `GenerationSettings` that it is made with, inside `applied`."""
        scales = {"cfg": self.base, "gs": 1.0} if true_cfg else {"cfg": 1.0, "gs": self.base}
        return scales | {"adaptive_cfg_beta": self.beta, "adaptive_cfg_min": 1.0}


def constant(scale: float) -> Arm:
    """The same guidance at every step."""
    return Arm("constant", scale, 0.0, scale)


def plan_arms(
    betas: Iterable[float], bases: Iterable[float], sigmas: torch.Tensor, controls: bool
) -> list[Arm]:
    """The arms of an evaluation; those that coincide are one.

    Args:
        betas: of the schedules, in [0, 1]; 0, the baseline, is always among them.
        bases: guidance scales at sigma 0; the schedules' minimum is 1.
        sigmas: noise levels of a section, shape [steps + 1].
        controls: whether there are, besides, the reversed schedules, constants at the schedules'
            means, and SWEEP.
    """
    arms = []
    for base in bases:
        arms.append(constant(base))
        for beta in sorted(set(betas) - {0.0}) if base != 1 else ():
            scales = adaptive_cfg_scale(sigmas[:-1].double(), base, 1.0, beta)
            mean = round(float(scales.mean()), _DECIMALS)
            arms.append(Arm("schedule", base, beta, mean))
            if controls:
                arms += [constant(mean), Arm("reversed", base, beta, mean)]
    if controls:
        arms += map(constant, SWEEP)
    return list(dict.fromkeys(arms))


@contextmanager
def applied(arm: Arm, sigmas: torch.Tensor, shift: float | None) -> Iterator[None]:
    """While videos are made: what `GenerationSettings` has no word for.

    Args:
        arm: a reversed schedule takes the place of the wrapper's own, for distilled guidance and
            true CFG alike.
        sigmas: noise levels of a section, shape [steps + 1].
        shift: e^mu of the time shift; None leaves it to the number of tokens.
    """
    with ExitStack() as stack:
        if arm.kind == "reversed":
            stack.enter_context(patch.object(wrapper, "adaptive_cfg_scale", _reversed(sigmas)))
        if shift is not None:
            stack.enter_context(
                patch.object(pipeline, "section_sigmas", lambda *_, **__: sigmas.clone())
            )
        yield


def _reversed(sigmas: torch.Tensor) -> Callable[..., torch.Tensor]:
    """`adaptive_cfg_scale` with its values over the steps in reverse order."""
    steps = sigmas[:-1]

    def scale(sigma: torch.Tensor, *args: float, **kwargs: float) -> torch.Tensor:
        own = steps.to(sigma)
        step = (own - sigma).abs().argmin()
        return adaptive_cfg_scale(own.flip(0)[step], *args, **kwargs)

    return scale
