"""Says how a stage is getting on."""

import logging
import time

import torch

logger = logging.getLogger(__name__)

_EVERY = 100


class Progress:
    """Logs mean losses every hundred steps.

    Args:
        stage: its name.
        steps: how many there will be.
        done: how many there were before.
    """

    def __init__(self, stage: str, steps: int, done: int = 0) -> None:
        self._stage = stage
        self._steps = steps
        self._done = done
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._means: dict[str, float] = {}
        self._began = time.monotonic()
        self._done_at_start = done

    def step(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """Count a step with its losses; returns the means that were last logged."""
        self._done += 1
        self._count += 1
        for name, loss in losses.items():
            # Kept on the device: reading every step's loss would make the device wait.
            self._sums[name] = self._sums.get(name, 0) + loss.detach()
        if self._count == _EVERY or self._done == self._steps:
            self._means = {n: float(s) / self._count for n, s in self._sums.items()}
            pace = (time.monotonic() - self._began) / (self._done - self._done_at_start)
            logger.info(
                "%s %d/%d, %.0f ms a step: %s",
                self._stage,
                self._done,
                self._steps,
                1000 * pace,
                ", ".join(f"{name} {mean:.4g}" for name, mean in self._means.items()),
            )
            self._sums, self._count = {}, 0
        return self._means
