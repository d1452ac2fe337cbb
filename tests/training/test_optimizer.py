import copy

import torch
from torch import nn

from training.tiny_world.optimizer import MatrixOptimizer, matrices_and_vectors, orthogonalised

RATE = 0.01


def gradients(parameters: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in parameters]


def test_steps_are_those_of_torchs_own_muon():
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 4, 3, 3), (12, 12)]
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [p.detach().flatten(1).clone().requires_grad_() for p in ours]
    start = [p.clone() for p in theirs]
    bias = torch.zeros(3, requires_grad=True)
    optimizer = MatrixOptimizer(ours, [bias], RATE, RATE)
    muon = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.0)
    for step in range(4):
        for a, b, gradient in zip(ours, theirs, gradients(ours, step), strict=True):
            a.grad, b.grad = gradient, gradient.flatten(1).clone()
        bias.grad = torch.ones(3)
        optimizer.step(torch.tensor(1.0))
        muon.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (b - before).abs().max() > RATE
        # bfloat16 rounds products of several matrices at once in another order.
        torch.testing.assert_close(a.detach().flatten(1), b.detach(), atol=0.02 * RATE, rtol=0)
    torch.testing.assert_close(bias.detach(), torch.full((3,), -4 * RATE))


def test_a_share_of_the_rates_is_a_share_of_the_step():
    whole, half = (torch.ones(4, 6, requires_grad=True) for _ in range(2))
    (gradient,) = gradients([whole], 1)
    for matrix, share in ((whole, 1.0), (half, 0.5)):
        bias = torch.zeros(1, requires_grad=True)
        matrix.grad, bias.grad = gradient.clone(), torch.ones(1)
        MatrixOptimizer([matrix], [bias], RATE, RATE).step(torch.tensor(share))
        torch.testing.assert_close(bias.detach(), torch.full((1,), -share * RATE))
        assert matrix.grad is None and bias.grad is None
    torch.testing.assert_close(2 * (half - 1), whole - 1)


def test_what_has_no_gradient_stays():
    used, unused = (torch.ones(3, 3, requires_grad=True) for _ in range(2))
    optimizer = MatrixOptimizer([unused, used], [torch.zeros(1)], RATE, RATE)
    used.grad = torch.eye(3)
    optimizer.step(torch.tensor(1.0))
    assert torch.equal(unused, torch.ones(3, 3)) and not torch.equal(used, torch.ones(3, 3))


def test_it_goes_on_from_its_state():
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    whole, pieces = network, copy.deepcopy(network)

    def trained(some: nn.Module) -> MatrixOptimizer:
        return MatrixOptimizer(*matrices_and_vectors([some]), RATE, RATE)

    def step(some: nn.Module, optimizer: MatrixOptimizer, number: int) -> None:
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
        some(inputs).square().mean().backward()
        optimizer.step(torch.tensor(1.0))

    optimizer = trained(whole)
    for number in range(4):
        step(whole, optimizer, number)
    state = None
    for number in range(4):
        optimizer = trained(pieces)
        if state is not None:
            optimizer.load(state)
        step(pieces, optimizer, number)
        state = copy.deepcopy(optimizer.state())
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(a, b)


def test_singular_values_come_near_one():
    matrices = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalised(matrices).float())
    assert values.shape == (3, 7)
    assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonalised(torch.zeros(1, 3, 5)).any()
