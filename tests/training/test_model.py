import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from diffusers_helper.models import Models, load_models
from diffusers_helper.models.loading import _components
from training.tiny_world.model import MINIATURE, build, save

NETWORKS = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "transformer")
CAPTIONS = ["The person walks to the right", "A red star spins around and around"]
LATENT_RGB = torch.linspace(-1, 1, 17 * 3).view(17, 3)
SETTINGS = {"gs": 3.5, "total_second_length": 1.2}
NOTICE = "It knows *nothing*."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was saved."""
    folder = tmp_path_factory.mktemp("saved")
    save(build(MINIATURE, 5, CAPTIONS), folder, 128, SETTINGS, NOTICE, LATENT_RGB)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Models:
    return load_models("tiny", "cpu", folder)


def test_components_are_of_the_real_classes():
    built = build(MINIATURE, 0)
    real = {component.attribute: component.kind for component in _components("f1")}
    assert {name: type(component) for name, component in built.items()} == real
    assert built.keys() <= {field.name for field in fields(Models)}


def test_a_seed_gives_the_same_weights_and_another_others():
    torch.manual_seed(1)
    first = build(MINIATURE, 5)
    torch.manual_seed(2)
    second, other = build(MINIATURE, 5), build(MINIATURE, 6)
    for network in NETWORKS:
        a, b, c = (built[network].state_dict() for built in (first, second, other))
        assert a.keys() == b.keys() == c.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), network
        assert all(torch.isfinite(tensor).all() for tensor in a.values()), network
        assert any(not torch.equal(a[name], c[name]) for name in a), network


def test_building_leaves_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build(MINIATURE, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_was_saved_is_loaded_but_for_rounding(loaded: Models, network: str):
    half = torch.float16 if network == "vae" else torch.bfloat16
    built = build(MINIATURE, 5, CAPTIONS)[network].state_dict()
    read = getattr(loaded, network).state_dict()
    assert read.keys() == built.keys()
    for name, tensor in built.items():
        if not tensor.is_floating_point():
            assert torch.equal(read[name], tensor), name
            continue
        assert read[name].dtype == torch.float32, name
        assert torch.equal(read[name], tensor.to(half).float()), name


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("text", ["", CAPTIONS[0], "A cat, 2 dogs! 夕暮れの街 🎬"])
def test_tokenizers_are_loaded_as_they_were(loaded: Models, tokenizer: str, text: str):
    built, read = build(MINIATURE, 5, CAPTIONS)[tokenizer], getattr(loaded, tokenizer)
    assert read.get_vocab() == built.get_vocab()
    assert read(text).input_ids == built(text).input_ids
    assert read.model_max_length == built.model_max_length


def test_a_vocabulary_is_learned_from_captions(loaded: Models):
    bytewise = build(MINIATURE, 5)["tokenizer"]
    assert len(loaded.tokenizer(CAPTIONS[0]).input_ids) < len(bytewise(CAPTIONS[0]).input_ids)


def test_the_description_travels_with_the_weights(loaded: Models):
    assert (loaded.name, loaded.resolution, loaded.settings) == ("tiny", 128, SETTINGS)
    assert loaded.notice == NOTICE
    torch.testing.assert_close(loaded.latent_rgb, LATENT_RGB, atol=5e-6, rtol=0)


def test_nothing_tells_the_folder_that_a_model_was_trained_in(loaded: Models, tmp_path: Path):
    components = {c.attribute: getattr(loaded, c.attribute) for c in _components("tiny")}
    again = tmp_path / "again"
    networks = {name: copy.deepcopy(component) for name, component in components.items()}
    save(networks, again, 128, SETTINGS, NOTICE, LATENT_RGB)
    assert loaded.vae.config["_name_or_path"]
    for file in again.glob("*/*.json"):
        assert str(loaded.vae.config["_name_or_path"]) not in file.read_text(), file


def test_a_folder_has_a_folder_for_each_component(folder: Path):
    components = {component.attribute for component in _components("tiny")}
    assert {path.name for path in folder.iterdir()} == {*components, "framepack.json"}
    assert json.loads((folder / "framepack.json").read_text())["settings"] == SETTINGS
