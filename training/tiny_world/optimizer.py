"""The optimizer of every stage."""

from collections.abc import Iterable

import torch
from torch import nn


class MatrixOptimizer:
    """Muon for what is a matrix, a convolution's kernel as one of [out, the rest]; Adam for the
    rest.

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
        # Muon takes matrices only, and its rate is not a tensor: it moves these from zero, and
        # what they become is the step.
        self._steps = [nn.Parameter(torch.zeros_like(m).flatten(1)) for m in matrices]
        self._muon = torch.optim.Muon(self._steps, lr=matrix_rate, weight_decay=0.0)
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
        for step, matrix in zip(self._steps, self._matrices, strict=True):
            step.zero_()
            step.grad = None if matrix.grad is None else matrix.grad.flatten(1)
            matrix.grad = None
        self._muon.step()
        for step, matrix in zip(self._steps, self._matrices, strict=True):
            matrix.add_(step.view_as(matrix) * share)
        self._adam.param_groups[0]["lr"].copy_(self._vector_rate * share)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> list[dict]:
        """All that `load` needs to go on."""
        return [self._muon.state_dict(), self._adam.state_dict()]

    def load(self, state: list[dict]) -> None:
        """Go on from a state."""
        self._muon.load_state_dict(state[0])
        self._adam.load_state_dict(state[1])


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
