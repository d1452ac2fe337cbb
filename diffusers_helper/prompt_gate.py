"""Semantic gate: where the prompt changes, the past is shown weaker (docs/transitions.md)."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from diffusers_helper.k_diffusion.low_pass import HISTORY

THRESHOLD = 0.01
"""Cosine distance beyond which a prompt counts as another. It parts actions from wordings of one
action in the small model's CLIP; of the real one it is a guess, low since who writes a time means a
change, and long prompts that differ in a word are close."""


def section_gates(pooled: Sequence[torch.Tensor], strength: float) -> list[torch.Tensor]:
    """How much of the past is withheld from each section.

    `strength` where the prompt is farther than THRESHOLD from that of the section made before,
    whose past it is shown; half of it in the section made after; else 0. Section 6.2 of the design
    document (docs/transitions.md).

    Args:
        pooled: CLIP's pooled output for the prompt of each section, in the order of making, shape
            [batch, dim].
        strength: 0 to 1; at 0 nothing is compared.

    Returns:
        In [0, 1], float32 on the CPU, shape [batch] of each section.
    """
    gates = [torch.zeros(len(p)) for p in pooled]
    if strength == 0.0:
        return gates
    for number, (before, now) in enumerate(pairwise(pooled), start=1):
        distance = 1 - torch.cosine_similarity(before.float(), now.float())
        gates[number][distance.cpu() > THRESHOLD] = strength
    halves = [gates[0] * 0, *(gate / 2 for gate in gates[:-1])]
    return [gate.maximum(half) for gate, half in zip(gates, halves, strict=True)]


def weakened(context: dict[str, torch.Tensor], gate: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a section is shown of the past, and how, at a gate.

    Args:
        context: see `LatentHistory.context`.
        gate: see `section_gates`, shape [batch]; all 0 returns `context`.

    Returns:
        Arguments of `sample_hunyuan`: the 2x and 4x history times 1 - gate, at 1 absent as before a
        video begins, and `last_low_pass`. Start image and places in time stay.
    """
    if not gate.any():
        return context
    kept = 1 - gate.view(-1, 1, 1, 1, 1)
    return context | {name: kept * context[name] for name in HISTORY} | {"last_low_pass": gate}
