"""TeaCache as FramePack does it: skip all blocks while the input of the first changes little."""

from collections import defaultdict
from collections.abc import Callable

import torch

# FramePack's fit of the change of the output against the change of the first block's input.
_POLYNOMIAL = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


def _predicted_change(d: float) -> float:
    result = 0.0
    for coefficient in _POLYNOMIAL:
        result = result * d + coefficient
    return result


class TeaCache:
    """What is remembered in one sampling; each of its passes by itself.

    Args:
        num_steps: calls of a pass; the first and the last are always computed.
        threshold: summed predicted change from which on a step is computed.
    """

    def __init__(self, num_steps: int, threshold: float) -> None:
        self._passes: dict[str, _Pass] = defaultdict(lambda: _Pass(num_steps, threshold))

    def step(
        self,
        name: str,
        modulated: torch.Tensor,
        hidden_states: torch.Tensor,
        blocks: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """What the last block gives, computed or guessed.

        Args:
            name: of the pass.
            modulated: the first block's input after its norm, which decides.
            hidden_states: its input.
            blocks: runs all blocks.
        """
        of_pass = self._passes[name]
        if of_pass.skips(modulated):
            return hidden_states + of_pass.residual
        result = blocks()
        of_pass.residual = result - hidden_states
        return result


class _Pass:
    """One pass, positive or negative."""

    residual: torch.Tensor
    """What the blocks added when they were last computed."""

    def __init__(self, num_steps: int, threshold: float) -> None:
        self._num_steps = num_steps
        self._threshold = threshold
        self._step = 0
        self._change = 0.0
        self._modulated: torch.Tensor | None = None

    def skips(self, modulated: torch.Tensor) -> bool:
        """Decide for the next step."""
        before, self._modulated = self._modulated, modulated
        step, self._step = self._step % self._num_steps, self._step + 1
        if step not in (0, self._num_steps - 1):
            d = (modulated - before).abs().mean() / before.abs().mean()
            self._change += _predicted_change(d.item())
            if self._change < self._threshold:
                return True
        self._change = 0.0
        return False
