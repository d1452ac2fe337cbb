import torch
from torch import nn

from benchmarks.memory import _filled


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
        self.register_buffer("places", torch.arange(4.0), persistent=False)


def test_filled_with_noise_but_for_buffers():
    noise = torch.arange(1.0, 11.0).half()
    network = _filled(Network, noise)
    assert network.places.tolist() == [0, 1, 2, 3]
    for weights in network.parameters():
        flat = weights.flatten()
        assert weights.dtype == torch.float16
        assert torch.equal(flat, noise.repeat(4)[: len(flat)])
        assert not weights.requires_grad
    assert not network.training
