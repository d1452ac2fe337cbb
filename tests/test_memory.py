from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from diffusers_helper import memory
from diffusers_helper.memory import bring, choose_tiling
from diffusers_helper.models import Models

GB = 1024**3
SIZES = {
    "text_encoder": 15.0,
    "text_encoder_2": 0.25,
    "image_encoder": 0.9,
    "vae": 0.5,
    "transformer": 24.0,
}


class Network(torch.nn.Module):
    """A network of some size that notes where it is told to be."""

    def __init__(self, size_gb: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.empty(int(size_gb * GB), dtype=torch.uint8, device="meta"), requires_grad=False
        )
        self.size_gb = size_gb
        self.place = "cpu"

    def to(self, device: torch.device | str) -> "Network":
        self.place = torch.device(device).type
        return self


class Card:
    """A GPU that holds what is on it, and five networks that want to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size_gb: float) -> None:
        self.size_gb = size_gb
        self.networks = {name: Network(size) for name, size in SIZES.items()}
        others = {f.name: None for f in fields(Models)} | {"device": torch.device("cuda")}
        self.models = Models(**(others | self.networks))
        monkeypatch.setattr(memory, "free_gb", lambda device: self.free_gb)
        monkeypatch.setattr(memory, "_is_resident", lambda module: module.place == "cuda")
        monkeypatch.setattr(
            memory, "_is_group_offload_enabled", lambda module: module.place == "streamed"
        )
        monkeypatch.setattr(memory, "apply_group_offloading", self.stream)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    @property
    def free_gb(self) -> float:
        resident = (n.size_gb for n in self.networks.values() if n.place == "cuda")
        return self.size_gb - sum(resident)

    def stream(self, module: Network, device: torch.device, **options) -> None:
        assert device.type == "cuda"
        assert options["use_stream"]
        assert module.place == "cpu"
        module.place = "streamed"

    def run(self, preserved_gb: float = 6.0) -> dict[str, str]:
        """Bring all in the order of a job; where each was while it ran."""
        places = {}
        for name in (*SIZES, "vae"):
            bring(self.networks[name], self.models, preserved_gb)
            places[name] = self.networks[name].place
        return places


@pytest.mark.parametrize(
    ("size_gb", "streamed"),
    [
        (80, set()),
        (48, set()),
        (31, set()),
        (24, {"transformer"}),
        (12, {"transformer", "text_encoder"}),
        (8, {"transformer", "text_encoder"}),
    ],
)
def test_what_does_not_fit_is_streamed(monkeypatch, size_gb, streamed):
    card = Card(monkeypatch, size_gb)
    for _ in range(2):
        places = card.run()
        assert {name for name, place in places.items() if place == "streamed"} == streamed
        assert {places[name] for name in SIZES.keys() - streamed} == {"cuda"}
        assert card.free_gb >= 6


def test_all_stay_where_all_fit(monkeypatch):
    card = Card(monkeypatch, 80)
    card.run()
    assert {network.place for network in card.networks.values()} == {"cuda"}


def test_others_make_room(monkeypatch):
    card = Card(monkeypatch, 31)
    bring(card.networks["text_encoder"], card.models, 6)
    bring(card.networks["transformer"], card.models, 6)
    assert card.networks["text_encoder"].place == "cpu"
    assert card.networks["transformer"].place == "cuda"


def test_more_preserved_memory_takes_effect_on_what_is_resident(monkeypatch):
    card = Card(monkeypatch, 31)
    bring(card.networks["transformer"], card.models, 6)
    bring(card.networks["transformer"], card.models, 8)
    assert card.networks["transformer"].place == "streamed"


@pytest.mark.parametrize(
    ("size_gb", "fused", "tiled"),
    [(80, False, False), (54, False, True), (54, True, False), (12, True, True)],
)
def test_whole_frames_are_decoded_where_they_fit(monkeypatch, size_gb, fused, tiled):
    card = Card(monkeypatch, size_gb)
    card.run()
    monkeypatch.setattr(memory, "is_fused", lambda vae: vae is card.networks["vae"] and fused)
    choose_tiling(card.models)
    assert card.networks["vae"].use_tiling is tiled


def test_on_the_cpu_nothing_is_asked_of_a_gpu(monkeypatch):
    monkeypatch.setattr(memory, "free_gb", lambda device: pytest.fail("asked a GPU"))
    network = Network(1)
    models = SimpleNamespace(device=torch.device("cpu"), vae=network)
    bring(network, models, 6)
    choose_tiling(models)
    assert network.place == "cpu"
    assert not hasattr(network, "use_tiling")
