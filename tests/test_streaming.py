import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from torch import nn

from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.streaming import Link, Plan, Streamed, plan
from tests.golden_case import golden_case

CPU = torch.device("cpu")
LARGE, SMALL = 680, 283
FRAMEPACK = [LARGE] * 20 + [SMALL] * 40
"""MB of the transformer's blocks."""


@pytest.mark.parametrize(("room", "resident"), [(0, 0), (299, 0), (300, 1), (799, 5), (999, 7)])
def test_equal_blocks_stay_as_far_as_there_is_room(room, resident):
    made = plan([100] * 10, room)
    assert len(made.resident) == resident
    assert made.slot == 100
    assert made.size == 200 + 100 * resident


@pytest.mark.parametrize("room", [1000, 5000])
def test_where_all_fit_there_are_no_slots(room):
    assert plan([100] * 10, room) == Plan(tuple(range(10)), (), 0, 1000)


def test_a_network_without_blocks():
    assert plan([], 5) == Plan((), (), 0, 0)


@pytest.mark.parametrize("room", range(0, 26_000, 500))
def test_no_more_than_the_room_and_little_less(room):
    made = plan(FRAMEPACK, room)
    assert sorted(made.resident + made.streamed) == list(range(60))
    assert made.size <= max(room, 2 * LARGE)
    if room >= 2 * LARGE and made.streamed:
        assert made.size > room - 2 * LARGE


@pytest.mark.parametrize("room", [3000, 8000, 13_000])
def test_copies_are_spread_evenly_over_the_blocks(room):
    made = plan(FRAMEPACK, room)
    copied = [size if i in made.streamed else 0 for i, size in enumerate(FRAMEPACK)]
    share = max(sum(copied[a : a + 10]) for a in range(0, 60, 10)) / 10
    for start in range(60):
        for end in range(start + 1, 61):
            assert sum(copied[start:end]) <= share * (end - start) + LARGE


def test_more_room_means_fewer_copies():
    made = [plan(FRAMEPACK, room) for room in range(0, 26_000, 100)]
    copied = [sum(FRAMEPACK[i] for i in p.streamed) for p in made]
    assert copied == sorted(copied, reverse=True)
    assert copied[0] == sum(FRAMEPACK)
    assert copied[-1] == 0


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(8, width)
        self.outer = nn.Linear(width, 8, bias=False)
        self.register_buffer("scale", torch.rand(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.outer(torch.tanh(self.inner(x)))


class Network(nn.Module):
    def __init__(self, large: int = 3, small: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([Block(64) for _ in range(large)])
        self.blocks.extend([Block(16) for _ in range(small)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class FakeLink(Link):
    """Copies at one end of what CUDA may do: as soon as asked, or when waited for."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self.asked: list[Callable[[], None]] = []
        self.copied = 0
        self.log: list[int] = []
        self.pinned: set[int] = set()

    def pin(self, memory):
        address = memory.data_ptr()
        self.pinned.add(address)
        return lambda: self.pinned.remove(address)

    def copy(self, weights, flat):
        def run() -> None:
            weights.copy_to(flat)
            self.copied += flat.nbytes

        self.log.append(flat.nbytes)
        self.asked.append(run)
        if not self.late:
            self.wait(len(self.asked))
        return len(self.asked)

    def wait(self, copied):
        for n in range(copied):
            self.asked[n]()
            self.asked[n] = lambda: None

    def finish(self):
        self.wait(len(self.asked))


@pytest.fixture(params=[False, True], ids=["early", "late"])
def link(request) -> FakeLink:
    return FakeLink(request.param)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_values_are_those_of_the_network(network, link, share):
    expected = network(X)
    streamed = Streamed(network, network.blocks, CPU, link)
    room = int(share * streamed.size)
    streamed.arrange(room)
    for _ in range(3):
        assert torch.equal(network(X), expected)
    calls = 3 * streamed.streamed
    assert calls <= sum(link.log) <= calls + streamed.held
    assert (streamed.streamed == 0) is (share == 1.0)


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_between_calls_every_tensor_is_true(network, link, share):
    state = {name: t.clone() for name, t in network.state_dict().items()}
    streamed = Streamed(network, network.blocks, CPU, link)
    for step in (lambda: streamed.arrange(int(share * streamed.size)), lambda: network(X)):
        step()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_blocks_are_copied_ahead_but_not_into_each_other(network):
    link = FakeLink(late=False)
    streamed = Streamed(network, network.blocks, CPU, link)
    streamed.arrange(0)
    asked = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: asked.append(len(link.log)))
    network(X)
    ahead = [n - i - 1 for i, n in enumerate(asked)]
    assert min(ahead) >= 1
    assert streamed.held <= streamed.size


def test_a_call_that_was_cut_off(network, link):
    expected = network(X)
    state = {name: t.clone() for name, t in network.state_dict().items()}
    Streamed(network, network.blocks, CPU, link).arrange(0)
    network(X)

    def fail(*_):
        raise RuntimeError("stop")

    hook = network.blocks[4].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        network(X)
    hook.remove()
    nn.Sequential(*network.blocks[:3])(X)  # overwrites what was in the slots
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert torch.equal(network(X), expected)


def test_blocks_that_are_left_out(network, link):
    streamed = Streamed(network, network.blocks, CPU, link)
    expected = nn.Sequential(*network.blocks[2:5])(X)
    streamed.arrange(0)
    network(X)
    for _ in range(2):
        assert torch.equal(nn.Sequential(*network.blocks[2:5])(X), expected)


def test_rearranged_and_released(network, link):
    expected = network(X)
    streamed = Streamed(network, network.blocks, CPU, link)
    for share in (0.8, 0.0, 1.0, 0.6):
        streamed.arrange(int(share * streamed.size))
        assert torch.equal(network(X), expected)
    streamed.release()
    assert link.copied == sum(link.log), "no copy may come when its slot is given away"
    assert streamed.held == 0
    assert torch.equal(network(X), expected)


def test_a_little_more_room_moves_nothing(network, link):
    streamed = Streamed(network, network.blocks, CPU, link)
    room = int(0.8 * streamed.size)
    streamed.arrange(room)
    held = [p.data_ptr() for p in network.parameters()]
    (small,) = {sum(p.nbytes for p in block.parameters()) for block in network.blocks[3:]}
    streamed.arrange(room + 2 * small)
    assert [p.data_ptr() for p in network.parameters()] == held
    streamed.arrange(streamed.size)
    assert streamed.streamed == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_order_in_memory_is_kept(link, share):
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3))).requires_grad_(False)
    network[0].bias.data = torch.ones(1).expand(4)
    network.to(memory_format=torch.channels_last)
    x = torch.rand(1, 4, 9, 9)
    expected = network(x)
    streamed = Streamed(network, network, CPU, link)
    orders = []
    for block in network:
        block.register_forward_pre_hook(lambda block, _: orders.append(block.weight.stride()))
    streamed.arrange(int(share * streamed.size))
    assert torch.equal(network(x), expected)
    assert orders == [(36, 1, 12, 4)] * 3
    assert network[0].weight.stride() == (36, 1, 12, 4)


def test_only_what_is_streamed_is_pinned(network, link):
    streamed = Streamed(network, network.blocks, CPU, link)
    streamed.arrange(streamed.size)
    assert not link.pinned
    streamed.arrange(0)
    assert len(link.pinned) == 1 + len(network.blocks)


def test_memory_is_given_back_with_the_network(link):
    network = Network().requires_grad_(False)
    former = weakref.ref(network.blocks[0].inner.weight.data.untyped_storage())
    streamed = Streamed(network, network.blocks, CPU, link)
    streamed.arrange(0)
    assert former() is None, "the former home must not double it"
    assert link.pinned
    del network, streamed
    gc.collect()
    assert not link.pinned


def test_a_section_of_framepack(link):
    """True CFG, TeaCache, which reads the first block's weights by itself, and LoRA that comes
    when blocks are streamed already."""
    case = golden_case("i2v_true_cfg")
    whole, model = case.transformer(), case.transformer()
    streamed = Streamed(
        model, [*model.transformer_blocks, *model.single_transformer_blocks], CPU, link
    )
    outputs = []
    for adapted in (False, True):
        if adapted:
            for transformer in (whole, model):
                torch.manual_seed(0)
                targets = ["to_q", "proj_mlp", "proj_out"]
                transformer.add_adapter(
                    LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
                )
        streamed.arrange(0)
        assert streamed.size >= sum(p.nbytes for p in model.parameters())
        for transformer in (whole, model):
            transformer.initialize_teacache(num_steps=case.settings["steps"])
            outputs.append(sample_hunyuan(transformer, device=CPU, **case.sample_args()))
    assert outputs[0].equal(outputs[1])
    assert outputs[2].equal(outputs[3])
    assert not outputs[0].equal(outputs[2])


@torch.inference_mode()
def test_inside_inference_mode(network, link):
    expected = network(X)
    Streamed(network, network.blocks, CPU, link).arrange(0)
    assert torch.equal(network(X), expected)
    network.blocks[0].inner.weight.detach().clone()
    assert not network.blocks[0].inner.weight.is_inference()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.fixture
def large() -> nn.Sequential:
    """Of 12 blocks of 64 MB, and more computing than copying."""
    torch.manual_seed(0)
    blocks = [nn.Linear(4096, 4096, bias=False) for _ in range(12)]
    return nn.Sequential(*blocks).requires_grad_(False)


@needs_gpu
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@torch.inference_mode()
def test_on_a_gpu(large, share):
    x = torch.randn(4096, 4096, device="cuda")
    weights = torch.stack([block.weight for block in large])
    expected = large.to("cuda")(x)
    large.to("cpu")
    before = torch.cuda.memory_allocated()
    streamed = Streamed(large, large, torch.device("cuda"))
    streamed.arrange(int(share * streamed.size))
    assert torch.cuda.memory_allocated() - before == streamed.held
    for _ in range(5):  # without waiting: copies of the next call meet computing of this one
        y = large(x)
    assert torch.equal(y, expected)
    streamed.release()
    assert all(torch.equal(b.weight, w) for b, w in zip(large, weights, strict=True))
    assert any(block.weight.is_pinned() for block in large) is (share < 1.0)


@needs_gpu
@torch.inference_mode()
def test_compiled_blocks_on_a_gpu(large):
    x = torch.randn(256, 4096, device="cuda")
    expected = large.to("cuda")(x)
    large.to("cpu")
    streamed = Streamed(large, large, torch.device("cuda"))
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    for block in large:
        block.forward = torch.compile(block.forward, backend=backend)
    for share in (0.0, 0.5, 1.0):
        streamed.arrange(int(share * streamed.size))
        assert torch.equal(large(x), expected)
    assert len(compiled) == 1
