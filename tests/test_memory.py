from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusers_helper import memory
from diffusers_helper.memory import bring, choose_tiling, home_of
from diffusers_helper.models import Models
from diffusers_helper.streaming import plan

GB = 1024**3
SIZES = {
    "text_encoder": 15.0,
    "text_encoder_2": 0.25,
    "image_encoder": 0.9,
    "vae": 0.5,
    "transformer": 24.0,
}
"""GB."""
BLOCKS = {"text_encoder": ("layers", 32, 0.4375), "transformer": ("transformer_blocks", 40, 0.5625)}
"""Name, number and GB of what can be streamed."""
BESIDE = {"text_encoder": ["text_encoder_2"], "transformer": ["vae"]}
JOB = [
    *("text_encoder_2", "text_encoder", "image_encoder", "vae"),
    *("transformer", "vae", "transformer", "vae"),
]


def weights(size_gb: float) -> nn.Parameter:
    return nn.Parameter(
        torch.empty(int(size_gb * GB), dtype=torch.uint8, device="meta"), requires_grad=False
    )


class Network(nn.Module):
    """A network of some size that notes where it is told to be."""

    def __init__(self, size_gb: float, blocks: tuple[str, int, float] | None) -> None:
        super().__init__()
        self.place = "cpu"
        if blocks is not None:
            name, count, each_gb = blocks
            size_gb -= count * each_gb
            setattr(self, name, nn.ModuleList(nn.ParameterList() for _ in range(count)))
            for block in getattr(self, name):
                block.append(weights(each_gb))
        self.weight = weights(size_gb)

    def to(self, device: torch.device | str) -> "Network":
        self.place = torch.device(device).type
        return self

    @property
    def on_gpu_gb(self) -> float:
        if (home := home_of(self)) is not None:
            return home.held / GB
        return memory._size_gb(self) if self.place == "cuda" else 0.0


class Turns:
    """`Streamed` without a GPU: what it would hold there."""

    def __init__(self, module: Network, blocks: Sequence[nn.Module], device: torch.device) -> None:
        assert device.type == "cuda"
        assert module.place == "cpu"
        self.sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks]
        self.size = sum(p.nbytes for p in module.parameters())
        self.held = self.streamed = 0

    def arrange(self, room: int) -> None:
        rest = self.size - sum(self.sizes)
        made = plan(self.sizes, room - rest)
        self.held = rest + made.size
        self.streamed = sum(self.sizes[i] for i in made.streamed)

    def release(self) -> None:
        self.held = self.streamed = 0


class Card:
    """A GPU that holds what is on it, and five networks that want to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size_gb: float) -> None:
        self.size_gb = size_gb
        self.networks = {name: Network(size, BLOCKS.get(name)) for name, size in SIZES.items()}
        others = {f.name: None for f in fields(Models)} | {"device": torch.device("cuda")}
        self.models = Models(**(others | self.networks))
        monkeypatch.setattr(memory, "free_gb", lambda device: self.free_gb)
        monkeypatch.setattr(memory, "_is_resident", lambda module: module.on_gpu_gb > 0)
        monkeypatch.setattr(memory, "Streamed", Turns)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    @property
    def free_gb(self) -> float:
        return self.size_gb - sum(n.on_gpu_gb for n in self.networks.values())

    def bring(self, name: str, preserved_gb: float = 6.0) -> None:
        beside = [self.networks[other] for other in BESIDE.get(name, ())]
        bring(self.networks[name], self.models, preserved_gb, beside)
        assert self.networks[name].on_gpu_gb > 0

    def run(self, preserved_gb: float = 6.0) -> Iterator[str]:
        """Bring all in the order of a job of two sections."""
        for name in JOB:
            self.bring(name, preserved_gb)
            yield name

    def streamed_gb(self, name: str) -> float:
        home = home_of(self.networks[name])
        return 0.0 if home is None else home.streamed / GB


@pytest.mark.parametrize(
    ("size_gb", "streamed"),
    [
        (80, set()),
        (48, set()),
        (31, set()),
        (24, {"transformer"}),
        (12, {"transformer", "text_encoder"}),
        (9.5, {"transformer", "text_encoder"}),
    ],
)
def test_what_does_not_fit_is_streamed(monkeypatch, size_gb, streamed):
    card = Card(monkeypatch, size_gb)
    for _ in range(2):
        found = set()
        for name in card.run():
            assert card.free_gb >= 6
            if card.streamed_gb(name):
                found.add(name)
        assert found == streamed


def test_all_stay_where_all_fit(monkeypatch):
    card = Card(monkeypatch, 80)
    for _ in card.run():
        pass
    assert {network.place for network in card.networks.values()} == {"cuda"}
    assert not any(map(home_of, card.networks.values()))


def test_others_make_room(monkeypatch):
    card = Card(monkeypatch, 31)
    card.bring("text_encoder")
    card.bring("transformer")
    assert card.networks["text_encoder"].on_gpu_gb == 0
    assert card.streamed_gb("transformer") == 0


@pytest.mark.parametrize(("size_gb", "preserved_gb"), [(12, 6), (16, 6), (24, 6), (24, 15)])
def test_as_much_is_resident_as_leaves_the_preserved_memory(monkeypatch, size_gb, preserved_gb):
    card = Card(monkeypatch, size_gb)
    card.bring("vae", preserved_gb)
    card.bring("transformer", preserved_gb)
    _, _, block_gb = BLOCKS["transformer"]
    assert preserved_gb <= card.free_gb < preserved_gb + block_gb


def test_more_preserved_memory_takes_effect_on_what_is_there(monkeypatch):
    card = Card(monkeypatch, 31)
    card.bring("transformer")
    assert card.streamed_gb("transformer") == 0
    card.bring("transformer", preserved_gb=8)
    assert card.streamed_gb("transformer") > 0
    assert card.free_gb >= 8


def test_where_it_does_not_fit_the_least_is_taken(monkeypatch):
    card = Card(monkeypatch, 6)
    card.bring("transformer")
    (rest, (_, count, block_gb)) = SIZES["transformer"], BLOCKS["transformer"]
    assert card.networks["transformer"].on_gpu_gb == rest - (count - 2) * block_gb


@pytest.mark.parametrize("size_gb", [6, 12, 24, 80])
def test_text_encoders_are_there_together(monkeypatch, size_gb):
    card = Card(monkeypatch, size_gb)
    for _ in range(2):
        for name in card.run():
            if name == "text_encoder":
                assert card.networks["text_encoder_2"].on_gpu_gb > 0


@pytest.mark.parametrize("size_gb", [12, 24])
def test_sections_move_nothing(monkeypatch, size_gb):
    """Transformer and VAE take turns; where there is memory for both, neither goes."""
    card = Card(monkeypatch, size_gb)
    for name in ("vae", "transformer"):
        card.bring(name)
    held = {name: network.on_gpu_gb for name, network in card.networks.items()}
    for name in ("vae", "transformer"):
        card.bring(name)
        assert {name: network.on_gpu_gb for name, network in card.networks.items()} == held


def test_decoding_on_a_small_card_has_it_alone(monkeypatch):
    card = Card(monkeypatch, 6)
    for name in ("vae", "transformer", "vae"):
        card.bring(name)
    assert card.free_gb == 6 - SIZES["vae"]


@pytest.mark.parametrize(
    ("size_gb", "fused", "tiled"),
    [(80, False, False), (54, False, True), (54, True, False), (24, True, True)],
)
def test_whole_frames_are_decoded_where_they_fit(monkeypatch, size_gb, fused, tiled):
    card = Card(monkeypatch, size_gb)
    for _ in card.run():
        pass
    monkeypatch.setattr(memory, "is_fused", lambda vae: vae is card.networks["vae"] and fused)
    choose_tiling(card.models)
    assert card.networks["vae"].use_tiling is tiled


def test_on_the_cpu_nothing_is_asked_of_a_gpu(monkeypatch):
    monkeypatch.setattr(memory, "free_gb", lambda device: pytest.fail("asked a GPU"))
    network = Network(1, None)
    models = SimpleNamespace(device=torch.device("cpu"), vae=network)
    bring(network, models, 6)
    choose_tiling(models)
    assert network.place == "cpu"
    assert not hasattr(network, "use_tiling")
