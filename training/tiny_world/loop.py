"""The steps of a stage, from where the run before left off."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from training.tiny_world import together
from training.tiny_world.progress import Progress
from training.tiny_world.recorded import Recorded, Tensors, made_ahead


class Interrupted(Exception):
    """Time is up; the next run goes on from the checkpoint."""


class Resumable(Protocol):
    """What the steps change."""

    def state(self) -> Any:
        """All that `load` needs to go on."""

    def load(self, state: Any) -> None:
        """Go on from a state."""


def take_steps(
    stage: str,
    steps: int,
    trained: Resumable,
    make: Callable[[int], tuple[Tensors, dict[str, Any]]],
    take: Callable[..., Tensors],
    device: torch.device,
    checkpoint: Path,
    deadline: float,
) -> dict[str, float]:
    """Run a stage to its end, from its checkpoint if there is one.

    Args:
        stage: its name.
        make: of the number of a step, the tensors and what is fixed that `take` takes; the same
            every time.
        take: see `Recorded`.
        deadline: by `time.monotonic`; of several processes the first counts.

    Returns:
        The last mean losses by name.

    Raises:
        Interrupted: at `deadline`, with a checkpoint written.
    """
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        trained.load(saved["trained"])
        done = saved["done"]
    progress = Progress(stage, steps, done)
    recorded = Recorded(take, device)
    losses: dict[str, float] = {}
    coming = made_ahead(make, range(done, steps), device)
    for step, (tensors, fixed) in enumerate(coming, start=done):
        losses = progress.step(recorded(tensors, **fixed))
        if together.any_of(time.monotonic() > deadline) and step + 1 < steps:
            if together.number() == 0:
                torch.save({"done": step + 1, "trained": trained.state()}, checkpoint)
            together.wait()
            raise Interrupted(f"{stage}: {step + 1} of {steps} steps")
    return losses
