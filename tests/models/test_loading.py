import fnmatch
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from diffusers_helper.errors import WeightsError
from diffusers_helper.models import (
    MODEL_NAMES,
    ModelDescription,
    Models,
    choose_model,
    load_models,
    loading,
    model_description,
)
from diffusers_helper.models.loading import component_folders
from training.tiny_world.model import MINIATURE, build

HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
REDUX = "lllyasviel/flux_redux_bfl"
TRANSFORMERS = {
    "f1": "lllyasviel/FramePack_F1_I2V_HY_20250503",
    "framepack": "lllyasviel/FramePackI2V_HY",
}
NETWORKS = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "transformer")
SHARDED = ("text_encoder", "transformer")
TEXT = "A cat in 夕暮れの街"

LLAMA_SHARD = f"{HUNYUAN}/text_encoder/model-00002-of-00003.safetensors"
LLAMA_INDEX = f"{HUNYUAN}/text_encoder/model.safetensors.index.json"
CLIP_WEIGHTS = f"{HUNYUAN}/text_encoder_2/model.safetensors"
SIGLIP_WEIGHTS = f"{REDUX}/image_encoder/model.safetensors"
VAE_WEIGHTS = f"{HUNYUAN}/vae/diffusion_pytorch_model.safetensors"
F1_SHARD = f"{TRANSFORMERS['f1']}/diffusion_pytorch_model-00002-of-00008.safetensors"
F1_INDEX = f"{TRANSFORMERS['f1']}/diffusion_pytorch_model.safetensors.index.json"

DESCRIPTION = {
    "resolution": 128,
    "settings": {"gs": 4.5, "steps": 20},
    "notice": "A model *of tests*.",
    "latent_rgb": [[0.1 * i, 0, -0.5] for i in range(17)],
}

HTTPClientError = HfHubHTTPError.__bases__[0]  # of whichever client the hub uses


@pytest.fixture(scope="module")
def saved() -> dict:
    return build(MINIATURE, 0)


def transformer_of(name: str) -> torch.nn.Module:
    """The demos' transformers differ in their weights alone."""
    transformer = build(MINIATURE, 0)["transformer"]
    if name == "framepack":
        transformer.proj_out.bias.data += 1
    return transformer


@pytest.fixture(scope="module")
def checkpoints(saved, tmp_path_factory) -> Path:
    """Models in the layout of the real repositories, and one as "tiny" beside them."""
    root = tmp_path_factory.mktemp("weights")
    for name in TRANSFORMERS:
        components = saved | {"transformer": transformer_of(name)}
        for attribute, folder in component_folders(name).items():
            sharding = {"max_shard_size": "250KB"} if attribute == "text_encoder" else {}
            if attribute == "transformer":
                sharding = {"max_shard_size": "275KB"}
            components[attribute].save_pretrained(root / folder, **sharding)
    for attribute, folder in component_folders("tiny").items():
        saved[attribute].save_pretrained(root / folder)
    (root / "framepack.json").write_text(json.dumps(DESCRIPTION))
    return root


@pytest.fixture
def weights(checkpoints, tmp_path) -> Path:
    """A copy to take files from, or to replace them in; never to write into them."""
    root = tmp_path / "weights"
    shutil.copytree(checkpoints, root, copy_function=os.link)
    return root


def replace(path: Path, content: bytes) -> None:
    assert path.is_file()
    path.unlink()  # the copy shares its content
    path.write_bytes(content)


def error_of(weights: Path, name: str = "f1") -> str:
    with pytest.raises(WeightsError) as caught:
        load_models(name, "cpu", weights=weights)
    return str(caught.value)


def commands_in(message: str) -> list[list[str]]:
    """The `hf download` commands of an error, as a shell would split them."""
    _, _, commands = message.partition("To get them: ")
    return [shlex.split(command) for command in commands.split("; ")]


def assert_same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def test_the_layout_is_that_of_the_repositories(checkpoints):
    files = {str(p.relative_to(checkpoints)) for p in checkpoints.rglob("*") if p.is_file()}
    expected = {
        *(LLAMA_SHARD, LLAMA_INDEX, CLIP_WEIGHTS, SIGLIP_WEIGHTS, VAE_WEIGHTS, F1_SHARD, F1_INDEX),
        f"{HUNYUAN}/tokenizer/tokenizer.json",
        f"{HUNYUAN}/tokenizer_2/tokenizer_config.json",
        f"{HUNYUAN}/vae/config.json",
        f"{REDUX}/feature_extractor/preprocessor_config.json",
        *(f"{repository}/config.json" for repository in TRANSFORMERS.values()),
    }
    assert expected <= files


@pytest.mark.parametrize(
    ("attribute", "file", "prefix"),
    [
        ("text_encoder_2", CLIP_WEIGHTS, "text_model."),
        ("image_encoder", SIGLIP_WEIGHTS, "vision_model."),
    ],
)
def test_names_of_tensors_as_the_repositories_have_them(weights, saved, attribute, file, prefix):
    # The real files were written by an older transformers, which had one module more.
    old = {f"{prefix}{name}": x for name, x in load_file(weights / file).items()}
    (weights / file).unlink()
    save_file(old, weights / file, metadata={"format": "pt"})
    loaded = load_models("f1", "cpu", weights=weights)
    assert_same_tensors(getattr(loaded, attribute), saved[attribute])


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_was_saved_is_loaded(checkpoints, saved, name, as_type):
    reports = []
    models = load_models(name, "cpu", weights=as_type(checkpoints), report=reports.append)
    for network in NETWORKS:
        expected = saved[network] if network != "transformer" else transformer_of(name)
        assert_same_tensors(getattr(models, network), expected)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        ours, theirs = getattr(models, tokenizer), saved[tokenizer]
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours(TEXT).input_ids == theirs(TEXT).input_ids
        assert ours.model_max_length == theirs.model_max_length
    assert models.feature_extractor.to_dict() == saved["feature_extractor"].to_dict()
    assert (models.name, models.resolution) == (name, 640)
    assert len(reports) == 8
    assert "(8 of 8)" in reports[-1]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_networks_are_ready_to_run(checkpoints, name):
    models = load_models(name, "cpu", weights=checkpoints)
    for network in NETWORKS:
        module = getattr(models, network)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert models.transformer.high_quality_fp32_output_for_inference
    assert models.device == torch.device("cpu")


@torch.inference_mode()
def test_on_a_cpu_the_vae_has_its_channels_last_and_decodes_the_same(tiny):
    file = files("diffusers_helper") / "models" / "tiny" / "vae"
    vae = AutoencoderKLHunyuanVideo.from_pretrained(file)
    z = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    kernels = [p for p in tiny.vae.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
    decoded = tiny.vae.decode(z).sample
    torch.testing.assert_close(decoded, vae.decode(z).sample, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_for_a_gpu_networks_are_of_half_precision_and_rest_on_the_cpu(checkpoints, name):
    models = load_models(name, "cuda", weights=checkpoints)
    for network in NETWORKS:
        expected = torch.bfloat16 if network == "transformer" else torch.float16
        parameters = list(getattr(models, network).parameters())
        assert {p.dtype for p in parameters} == {expected}
        assert {p.device.type for p in parameters} == {"cpu"}
    assert models.device == torch.device("cuda")


@pytest.mark.parametrize(
    ("file", "prefix"), [(CLIP_WEIGHTS, "text_model."), (SIGLIP_WEIGHTS, "vision_model.")]
)
def test_names_of_tensors_as_the_real_checkpoints_have_them(weights, saved, file, prefix):
    """They were saved by older versions of transformers, which put a prefix before them."""
    tensors = {prefix + name: tensor for name, tensor in load_file(weights / file).items()}
    (weights / file).unlink()
    save_file(tensors, weights / file, metadata={"format": "pt"})
    models = load_models("f1", "cpu", weights=weights)
    assert_same_tensors(models.text_encoder_2, saved["text_encoder_2"])
    assert_same_tensors(models.image_encoder, saved["image_encoder"])


def test_clips_tokenizer_in_the_real_repositorys_older_form(weights, saved):
    folder = weights / HUNYUAN / "tokenizer_2"
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    assert "tokenizer_2/tokenizer.json" in error_of(weights)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = load_models("f1", "cpu", weights=weights).tokenizer_2
    assert tokenizer(TEXT).input_ids == saved["tokenizer_2"](TEXT).input_ids


MISSING = [
    (LLAMA_SHARD, HUNYUAN),
    (CLIP_WEIGHTS, HUNYUAN),
    (SIGLIP_WEIGHTS, REDUX),
    (VAE_WEIGHTS, HUNYUAN),
    (F1_SHARD, TRANSFORMERS["f1"]),
    (f"{HUNYUAN}/text_encoder/config.json", HUNYUAN),
    (f"{HUNYUAN}/vae/config.json", HUNYUAN),
    (f"{TRANSFORMERS['f1']}/config.json", TRANSFORMERS["f1"]),
    (f"{HUNYUAN}/tokenizer/tokenizer.json", HUNYUAN),
    (f"{HUNYUAN}/tokenizer_2/tokenizer.json", HUNYUAN),
    (f"{REDUX}/feature_extractor/preprocessor_config.json", REDUX),
]


@pytest.mark.parametrize(
    ("file", "repository"),
    [
        *MISSING,
        (f"{HUNYUAN}/tokenizer_2/tokenizer_config.json", HUNYUAN),
    ],
)
def test_a_missing_file_is_named_with_its_cure(weights, file, repository):
    (weights / file).unlink()
    message = error_of(weights)
    assert str(weights / file) in message
    assert "\n" not in message
    (command,) = commands_in(message)
    assert command[:3] == ["hf", "download", repository]
    assert command[-2:] == ["--local-dir", str(weights / repository)]
    patterns = [value for option, value in pairwise(command) if option == "--include"]
    within = str(Path(file).relative_to(repository))
    assert not patterns or any(fnmatch.fnmatch(within, pattern) for pattern in patterns)


@pytest.mark.parametrize("index", [LLAMA_INDEX, F1_INDEX])
def test_without_its_index_a_checkpoint_should_be_one_file(weights, index):
    (weights / index).unlink()
    assert index.removesuffix(".index.json") in error_of(weights)


@pytest.mark.parametrize("folder", component_folders("f1").values())
def test_a_missing_folder_is_named_with_its_cure(weights, folder):
    shutil.rmtree(weights / folder)
    message = error_of(weights)
    assert str(weights / folder) in message
    (command,) = commands_in(message)
    assert folder.startswith(command[2])


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_empty_folder_lacks_everything(tmp_path, name, exists):
    root = tmp_path / "weights"
    if exists:
        root.mkdir()
    message = error_of(root, name)
    # An image processor, and two files for each of two tokenizers and five networks.
    assert message.startswith("15 files are missing")
    repositories = [HUNYUAN, REDUX, TRANSFORMERS[name]]
    assert [command[2] for command in commands_in(message)] == repositories


def test_a_command_is_right_for_a_folder_with_a_space(tmp_path):
    for command in commands_in(error_of(tmp_path / "my weights")):
        assert command[-1] == str(tmp_path / "my weights" / command[2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["a byte short", "half", "empty", "git-lfs"],
)
@pytest.mark.parametrize(
    "file",
    [
        LLAMA_SHARD,
        CLIP_WEIGHTS,
        SIGLIP_WEIGHTS,
        VAE_WEIGHTS,
        F1_SHARD,
    ],
)
def test_a_damaged_weights_file(weights, file, damage):
    replace(weights / file, damage((weights / file).read_bytes()))
    message = error_of(weights)
    assert "damaged" in message
    assert str((weights / file).parent) in message


@pytest.mark.parametrize(
    "file",
    [
        f"{HUNYUAN}/tokenizer/tokenizer.json",
        f"{HUNYUAN}/tokenizer_2/tokenizer.json",
        f"{HUNYUAN}/tokenizer_2/tokenizer_config.json",
        LLAMA_INDEX,
        F1_INDEX,
        f"{HUNYUAN}/text_encoder/config.json",
        f"{HUNYUAN}/vae/config.json",
        f"{TRANSFORMERS['f1']}/config.json",
        f"{REDUX}/feature_extractor/preprocessor_config.json",
    ],
)
def test_half_a_json(weights, file):
    content = (weights / file).read_bytes()
    replace(weights / file, content[: len(content) // 2])
    assert "damaged" in error_of(weights)


@pytest.mark.parametrize(
    ("file", "label"),
    [
        (CLIP_WEIGHTS, "CLIP text encoder"),
        (SIGLIP_WEIGHTS, "SigLIP image encoder"),
        (VAE_WEIGHTS, "VAE"),
    ],
)
def test_a_missing_tensor_is_named(weights, file, label):
    tensors = load_file(weights / file)
    lost = sorted(tensors)[len(tensors) // 2]
    del tensors[lost]
    (weights / file).unlink()
    save_file(tensors, weights / file, metadata={"format": "pt"})
    message = error_of(weights)
    assert lost in message
    assert f"The {label}" in message


@pytest.mark.parametrize("index", [LLAMA_INDEX, F1_INDEX])
def test_a_tensor_missing_from_shards_is_named(weights, index):
    content = json.loads((weights / index).read_text())
    lost, shard = sorted(content["weight_map"].items())[3]
    del content["weight_map"][lost]
    replace(weights / index, json.dumps(content).encode())
    file = (weights / index).parent / shard
    tensors = load_file(file)
    del tensors[lost]
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    assert lost in error_of(weights)


@pytest.mark.parametrize("name", ["", "F1", "tiny ", "hunyuan"])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match=re.escape(f"f1, framepack, tiny, got {name!r}")):
        load_models(name, "cpu")


def hub(checkpoints: Path, cache: Path) -> Callable[..., str]:
    """The Hugging Face hub, with files in its repositories that are not ours to fetch."""

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        folder = cache / repository
        for source in (checkpoints / repository).rglob("*"):
            file = str(source.relative_to(checkpoints / repository))
            if source.is_file() and any(fnmatch.fnmatch(file, p) for p in allow_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.link(source, folder / file)
        return str(folder)

    return snapshot_download


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_without_a_folder_the_hub_is_asked_for_what_is_needed(
    weights, saved, tmp_path, monkeypatch, name
):
    unwanted = ("transformer/model.safetensors", "text_encoder_3/model.safetensors")
    for file in unwanted:
        (weights / HUNYUAN / file).parent.mkdir()
        (weights / HUNYUAN / file).write_bytes(b"25 GB")
    cache = tmp_path / "cache"
    monkeypatch.setattr(loading, "snapshot_download", hub(weights, cache))
    reports = []
    models = load_models(name, "cpu", report=reports.append)
    assert_same_tensors(models.transformer, transformer_of(name))
    assert_same_tensors(models.vae, saved["vae"])
    for repository in (HUNYUAN, REDUX, TRANSFORMERS[name]):
        assert any(repository in report for report in reports)
    assert not any((cache / HUNYUAN / file).exists() for file in unwanted)
    assert {str(p.relative_to(cache)) for p in cache.glob("*/*")} == {
        *(HUNYUAN, REDUX, TRANSFORMERS[name])
    }


def test_an_incomplete_cache_of_the_hub_is_named(weights, tmp_path, monkeypatch):
    (weights / F1_SHARD).unlink()
    monkeypatch.setattr(loading, "snapshot_download", hub(weights, tmp_path / "cache"))
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "cache" / F1_SHARD))):
        load_models("f1", "cpu")


def test_offline_and_nothing_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load_models("f1", "cpu")
    message = str(caught.value)
    assert HUNYUAN in message
    assert "--weights" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        OSError("Cannot reach the hub.\nTry again\nor not."),
        ConnectionError("refused"),
        HTTPClientError("The read operation timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_hub_fails(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading, "snapshot_download", fail)
    with pytest.raises(WeightsError) as caught:
        load_models("framepack", "cpu")
    message = str(caught.value)
    assert str(error).splitlines()[0] in message
    assert "check the connection" in message
    assert "\n" not in message


# The tiny model


def test_tiny_is_bundled_and_asks_no_hub(tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(loading, "snapshot_download", fail)
    models = load_models("tiny", "cpu")
    assert (models.name, models.resolution) == ("tiny", 128)
    assert_same_tensors(models.transformer, tiny.transformer)


@pytest.mark.parametrize("as_type", [str, Path])
def test_another_tiny_may_take_its_place(checkpoints, saved, as_type):
    reports = []
    models = load_models("tiny", "cpu", weights=as_type(checkpoints), report=reports.append)
    for network in NETWORKS:
        assert_same_tensors(getattr(models, network), saved[network])
    assert models.tokenizer(TEXT).input_ids == saved["tokenizer"](TEXT).input_ids
    assert (models.resolution, models.settings) == (128, DESCRIPTION["settings"])
    assert models.notice == DESCRIPTION["notice"]
    assert torch.equal(models.latent_rgb, torch.tensor(DESCRIPTION["latent_rgb"]))
    assert len(reports) == 8


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_real_model_keeps_the_settings_own_defaults(checkpoints, name):
    models = load_models(name, "cpu", weights=checkpoints)
    assert (models.resolution, models.settings) == (640, {})
    assert (models.notice, models.latent_rgb) == ("", None)


def test_a_description_is_had_without_loading(weights):
    (weights / "vae" / "config.json").unlink()
    described = model_description("tiny", weights)
    assert (described.resolution, described.settings) == (128, DESCRIPTION["settings"])
    assert described.notice == DESCRIPTION["notice"]
    assert torch.equal(described.latent_rgb, torch.tensor(DESCRIPTION["latent_rgb"]))
    for name in TRANSFORMERS:
        assert model_description(name, weights) == ModelDescription(640, {}, "", None)


def changed(**changes) -> str:
    return json.dumps(DESCRIPTION | changes)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "Expecting value"),
        ("\xff", "utf-8"),
        (changed()[:-1], "delimiter"),
        ("[128]", "resolution, settings, notice, latent_rgb"),
        ('{"resolution": 128}', "resolution, settings, notice, latent_rgb"),
        (changed(seed=1), "resolution, settings, notice, latent_rgb"),
        (changed(resolution=100), "resolution must be one of [128, 640], got 100"),
        (changed(resolution=[128]), "unhashable"),
        (changed(settings={"scale": 5}), "got {'scale': 5}"),
        (changed(settings=["gs"]), "got ['gs']"),
        (changed(settings={"gs": 0}), "gs must be in [1, 32], got 0"),
        (changed(settings={"gs": "5"}), "gs must be in [1, 32], got '5'"),
        (changed(notice=None), "notice must be a text, got None"),
        (changed(latent_rgb=None), "latent_rgb must be 17 rows of 3 numbers"),
        (changed(latent_rgb=[]), "latent_rgb must be 17 rows of 3 numbers"),
        (changed(latent_rgb=[[0, 0, 0]] * 16), "latent_rgb must be 17 rows of 3 numbers"),
        (changed(latent_rgb=[[0, 0, 0], [0]]), "latent_rgb must be 17 rows of 3 numbers"),
        (changed(latent_rgb=[["red"] * 3] * 17), "latent_rgb must be 17 rows of 3 numbers"),
        (changed(latent_rgb=[[math.nan] * 3] * 17), "latent_rgb must be 17 rows of 3 numbers"),
    ],
)
def test_a_bad_description_is_told_in_one_line(weights, content, told):
    replace(weights / "framepack.json", content.encode("latin-1"))
    message = error_of(weights, "tiny")
    assert message.startswith(f"{weights / 'framepack.json'} describes no model: ")
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_no_tiny_model(tmp_path, exists):
    root = tmp_path / "weights"
    if exists:
        root.mkdir()
    message = error_of(root, "tiny")
    assert message.startswith(f"{root} has no framepack.json.")
    assert "training.tiny_world" in message
    assert "hf download" not in message


@pytest.mark.parametrize(
    "file",
    [
        "tokenizer/tokenizer.json",
        "feature_extractor/preprocessor_config.json",
        "vae/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_missing_file_of_tiny_is_named(weights, file):
    (weights / file).unlink()
    message = error_of(weights, "tiny")
    assert message.startswith(f"1 files are missing: {weights / file}. ")
    assert "training.tiny_world" in message
    assert "hf download" not in message


def test_a_damaged_file_of_tiny(weights):
    file = weights / "transformer/diffusion_pytorch_model.safetensors"
    replace(file, file.read_bytes()[:-1])
    assert error_of(weights, "tiny").startswith(f"{file.parent} is damaged")


def test_a_missing_tensor_of_tiny_is_named(weights):
    file = weights / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lost, _ = tensors.popitem()
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    message = error_of(weights, "tiny")
    assert message.startswith(f"The VAE in {file.parent} lacks 1 tensors ({lost}")


def test_a_program_without_its_model(weights, tmp_path, monkeypatch):
    (weights / "vae/config.json").unlink()
    for folder, told in ((tmp_path, "has no framepack.json"), (weights, "vae/config.json")):
        monkeypatch.setattr(loading, "_BUNDLED", folder)
        with pytest.raises(WeightsError, match="fetch the program again") as caught:
            load_models("tiny", "cpu")
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cuda", "chosen"),
    [
        ("auto", False, "tiny"),
        ("auto", True, "f1"),
        ("f1", False, "f1"),
        ("framepack", False, "framepack"),
        ("tiny", True, "tiny"),
    ],
)
def test_auto_is_what_the_machine_runs(monkeypatch, caplog, name, cuda, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_model(name, real="f1") == chosen
    told = [record.message for record in caplog.records]
    if (name, cuda) == ("auto", False):
        (line,) = told
        assert "no CUDA GPU" in line
    else:
        assert told == []


def test_the_libraries_show_bars_again_after_loading(checkpoints, capsys):
    load_models("tiny", "cpu", weights=checkpoints)
    assert capsys.readouterr().err == ""
    for library in (loading.diffusers_logging, loading.transformers_logging):
        assert library.is_progress_bar_enabled()


# Float8


def test_float8_where_it_cannot_run_is_told_and_left(
    miniature_weights: Path, miniature: Models, caplog: pytest.LogCaptureFixture
):
    models = load_models("tiny", "cpu", miniature_weights, fp8=True)
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("diffusers_helper")]
    assert message.startswith("The transformer does not run in float8: it needs an NVIDIA GPU")
    loaded, plain = (m.transformer.state_dict() for m in (models, miniature))
    assert loaded.keys() == plain.keys()
    assert all(tensor.equal(plain[name]) for name, tensor in loaded.items())


def test_float8_where_it_can_run(miniature_weights: Path, monkeypatch: pytest.MonkeyPatch):
    told = []
    monkeypatch.setattr(loading, "why_not_float8", lambda *_: None)
    models = load_models("tiny", "cpu", miniature_weights, told.append, fp8=True)
    assert told[-1] == "Rounding the transformer to float8"
    assert models.transformer.single_transformer_blocks[0].proj_out.weight.dtype == (
        torch.float8_e4m3fn
    )
    assert models.transformer.dtype == torch.float32
