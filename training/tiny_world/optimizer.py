"""The optimizer of every stage."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


class MatrixOptimizer:
    """Muon (Jordan et al. 2024) for what is a matrix, a convolution's kernel as one of [out, the
    rest]; Adam for the rest.

    The same steps as `torch.optim.Muon` takes without weight decay, for all matrices of a shape at
    once: one by one, a small network's are thousands of short kernels.

    Args:
        matrices: of two dimensions or more.
        vectors: the rest; those that are looked up by number too.
        matrix_rate, vector_rate: learning rates.
    """

    def __init__(
        self,
        matrices: list[torch.Tensor],
        vectors: list[torch.Tensor],
        matrix_rate: float,
        vector_rate: float,
    ) -> None:
        self._matrices = matrices
        self._momenta = [torch.zeros_like(m) for m in matrices]
        self._matrix_rate = matrix_rate
        device = vectors[0].device
        self._vector_rate = vector_rate
        self._adam = torch.optim.Adam(
            vectors,
            lr=torch.zeros((), device=device),
            betas=(0.9, 0.99),
            capturable=device.type == "cuda",
        )

    @torch.no_grad()
    def step(self, share: torch.Tensor) -> None:
        """Take a step by the gradients at hand, at a share of the rates, and forget them."""
        self._step_matrices(share)
        self._adam.param_groups[0]["lr"].copy_(self._vector_rate * share)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def _step_matrices(self, share: torch.Tensor) -> None:
        learning = [
            (m, momentum)
            for m, momentum in zip(self._matrices, self._momenta, strict=True)
            if m.grad is not None
        ]
        matrices, momenta = (list(some) for some in zip(*learning, strict=True))
        gradients = [m.grad for m in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
        alike = defaultdict(list)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.grad = None
            alike[update.flatten(1).shape].append((matrix, update))
        for (rows, columns), some in alike.items():
            steps = orthogonalised(torch.stack([update.flatten(1) for _, update in some]))
            steps = -self._matrix_rate * math.sqrt(max(1, rows / columns)) * share * steps.float()
            changes = [step.view_as(m) for step, (m, _) in zip(steps, some, strict=True)]
            torch._foreach_add_([m for m, _ in some], changes)

    def state(self) -> list[Any]:
        """All that `load` needs to go on."""
        return [self._momenta, self._adam.state_dict()]

    @torch.no_grad()
    def load(self, state: list[Any]) -> None:
        """Go on from a state."""
        torch._foreach_copy_(self._momenta, state[0])
        self._adam.load_state_dict(state[1])


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices whose singular values are brought to about 1, by Newton-Schulz iterations.

    Args:
        matrices: shape [matrices, rows, columns].

    Returns:
        bfloat16, of the same shape.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def matrices_and_vectors(
    networks: Iterable[nn.Module],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as `MatrixOptimizer` takes them."""
    matrices, vectors = [], []
    for network in networks:
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    is_matrix = parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
                    (matrices if is_matrix else vectors).append(parameter)
    return matrices, vectors
