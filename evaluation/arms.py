"""What is compared, schedules of guidance and levers, and how a video is made with each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any
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
class Levers:
    """What weakens the hold of what the transformer is shown beside the noise; the default is
    nothing. Arguments of `sample_hunyuan`, and of `section_gates`."""

    low_pass_factor: float = 1.0
    low_pass_sigma: float = 0.9
    low_pass_frames: str = "both"
    history_low_pass: float = 0.0
    prompt_gate: float = 0.0

    @property
    def name(self) -> str:
        """Such as "low-pass 0.25 start sigma 0.9", "history 0.5 sigma 0.9", "prompt gate 1 sigma
        0.9"; empty for none."""
        parts = []
        if self.low_pass_factor != 1:
            parts.append(f"low-pass {self.low_pass_factor:g} {self.low_pass_frames}")
        if self.history_low_pass:
            parts.append(f"history {self.history_low_pass:g}")
        if self.prompt_gate:
            parts.append(f"prompt gate {self.prompt_gate:g}")
        return " ".join([*parts, f"sigma {self.low_pass_sigma:g}"]) if parts else ""


NO_LEVERS = Levers()


@dataclass(frozen=True)
class Arm:
    """One way to make videos; those of one clip differ in nothing else."""

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
    levers: Levers = NO_LEVERS

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Arm":
        """That of a row."""
        given = {n: row[n] for n in asdict(NO_LEVERS) if row[n] not in (None, "")}
        return cls(row["kind"], row["base"], row["beta"], row["mean"], Levers(**given))

    @property
    def columns(self) -> dict[str, Any]:
        """What rows tell of it; those of no levers are empty."""
        levers = asdict(self.levers)
        return {
            "arm": self.name,
            "kind": self.kind,
            "base": self.base,
            "beta": self.beta,
            "mean": self.mean,
            **(dict.fromkeys(levers) if self.levers == NO_LEVERS else levers),
        }

    @property
    def name(self) -> str:
        """Such as "constant 5", "schedule 10 beta 0.7 history 0.5 sigma 0.9"."""
        beta = f"beta {self.beta:g}" if self.beta else ""
        return " ".join(filter(None, [self.kind, f"{self.base:g}", beta, self.levers.name]))

    @property
    def baseline(self) -> "Arm":
        """Its beta 0, without levers."""
        return constant(self.base)

    @property
    def control(self) -> "Arm":
        """With levers, the same guidance without; else the constant at its mean."""
        if self.levers != NO_LEVERS:
            return replace(self, levers=NO_LEVERS)
        return constant(self.mean)

    def settings(self, true_cfg: bool) -> dict[str, Any]:
        """Values of `GenerationSettings` that it is made with, inside `applied`."""
        scales = {"cfg": self.base, "gs": 1.0} if true_cfg else {"cfg": 1.0, "gs": self.base}
        schedule = {"adaptive_cfg_beta": self.beta, "adaptive_cfg_min": 1.0}
        return scales | schedule | asdict(self.levers)


def constant(scale: float) -> Arm:
    """The same guidance at every step."""
    return Arm("constant", scale, 0.0, scale)


def plan_levers(
    factors: Sequence[float],
    frames: Sequence[str],
    strengths: Sequence[float],
    gates: Sequence[float],
    prompt_gates: Sequence[float] = (),
) -> list[Levers]:
    """Low-passes of the image by `factors` and `frames`, and of history by `strengths`, and
    `prompt_gates`, each alone and at each of the `gates` in sigma; what is off is left out."""
    of_image = product(sorted(set(factors) - {1.0}), gates, frames)
    of_history = product(sorted(set(strengths) - {0.0}), gates)
    of_prompt = product(sorted(set(prompt_gates) - {0.0}), gates)
    return [
        *(Levers(factor, gate, which) for factor, gate, which in of_image),
        *(Levers(low_pass_sigma=gate, history_low_pass=s) for s, gate in of_history),
        *(Levers(low_pass_sigma=gate, prompt_gate=s) for s, gate in of_prompt),
    ]


def plan_arms(
    betas: Iterable[float],
    bases: Iterable[float],
    sigmas: torch.Tensor,
    controls: bool,
    levers: Sequence[Levers] = (),
    combine: bool = False,
) -> list[Arm]:
    """The arms of an evaluation; those that coincide are one.

    Args:
        betas: of the schedules, in [0, 1]; 0, the baseline, is always among them.
        bases: guidance scales at sigma 0; the schedules' minimum is 1.
        sigmas: noise levels of a section, shape [steps + 1].
        controls: whether there are, besides, the reversed schedules, constants at the schedules'
            means, and SWEEP.
        levers: each at the bases.
        combine: whether each is with every schedule, too, and with the constant at its mean.
    """
    arms = []
    for base in bases:
        arms.append(constant(base))
        arms += [replace(constant(base), levers=lever) for lever in levers]
        for beta in sorted(set(betas) - {0.0}) if base != 1 else ():
            scales = adaptive_cfg_scale(sigmas[:-1].double(), base, 1.0, beta)
            mean = round(float(scales.mean()), _DECIMALS)
            schedule = Arm("schedule", base, beta, mean)
            arms.append(schedule)
            if combine:
                guidance = schedule, constant(mean)
                arms.append(constant(mean))
                arms += [replace(arm, levers=lever) for arm in guidance for lever in levers]
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
