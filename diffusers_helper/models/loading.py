"""From a name to models that are ready to run."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, XetDownloadError
from safetensors import SafetensorError
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from diffusers_helper.errors import WeightsError
from diffusers_helper.models import tiny
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

logger = logging.getLogger(__name__)

_HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
_REDUX = "lllyasviel/flux_redux_bfl"
_TRANSFORMERS = {
    "f1": "lllyasviel/FramePack_F1_I2V_HY_20250503",
    "framepack": "lllyasviel/FramePackI2V_HY",
}
_RESOLUTION = 640

MODEL_NAMES = (*_TRANSFORMERS, "tiny")


@dataclass(frozen=True)
class Models:
    """Everything that turns an image and a prompt into a video."""

    name: str
    resolution: int
    """Of the buckets that the transformer was trained on, see `bucket_tools`."""
    tokenizer: Any
    tokenizer_2: Any
    feature_extractor: Any
    text_encoder: torch.nn.Module
    text_encoder_2: torch.nn.Module
    image_encoder: torch.nn.Module
    vae: torch.nn.Module
    transformer: HunyuanVideoTransformer3DModelPacked
    device: torch.device
    """Where they run; on a GPU they may rest elsewhere (see `memory`)."""


@dataclass(frozen=True)
class _Component:
    attribute: str
    label: str
    kind: type
    repository: str
    subfolder: str = ""

    def load(self, folder: Path, dtype: torch.dtype) -> Any:
        if not issubclass(self.kind, torch.nn.Module):
            return self.kind.from_pretrained(folder, local_files_only=True)
        # diffusers and transformers name the same argument differently.
        dtype_name = "torch_dtype" if issubclass(self.kind, ModelMixin) else "dtype"
        model, info = self.kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **{dtype_name: dtype}
        )
        # The libraries fill what a checkpoint lacks with random numbers and carry on.
        if missing := sorted(info["missing_keys"]):
            raise WeightsError(
                f"The {self.label} of {self.repository} lacks {len(missing)} tensors "
                f"({missing[0]}, ...): download it again."
            )
        return model

    def missing_files(self, folder: Path) -> list[Path]:
        """What a copy in `folder` lacks."""
        if issubclass(self.kind, torch.nn.Module):
            needed = ["config.json", *self._weight_files(folder)]
        elif issubclass(self.kind, PreTrainedTokenizerBase):
            # CLIP's may come in its older form of two files.
            old = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
            needed = ["tokenizer_config.json", *([] if old else ["tokenizer.json"])]
        else:
            needed = ["preprocessor_config.json"]
        return [folder / file for file in needed if not (folder / file).is_file()]

    def _weight_files(self, folder: Path) -> list[str]:
        name = "diffusion_pytorch_model" if issubclass(self.kind, ModelMixin) else "model"
        index = folder / f"{name}.safetensors.index.json"
        if not index.is_file():
            return [f"{name}.safetensors"]
        try:
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise _damaged(index, error) from error


def _components(name: str) -> list[_Component]:
    """What a demo loads, the small first, so that what is missing shows early."""
    return [
        _Component("tokenizer", "Llama tokenizer", PreTrainedTokenizerFast, _HUNYUAN, "tokenizer"),
        _Component("tokenizer_2", "CLIP tokenizer", CLIPTokenizer, _HUNYUAN, "tokenizer_2"),
        _Component(
            "feature_extractor",
            "SigLIP image processor",
            SiglipImageProcessorPil,
            _REDUX,
            "feature_extractor",
        ),
        _Component(
            "text_encoder_2", "CLIP text encoder", CLIPTextModel, _HUNYUAN, "text_encoder_2"
        ),
        _Component(
            "image_encoder", "SigLIP image encoder", SiglipVisionModel, _REDUX, "image_encoder"
        ),
        _Component("vae", "VAE", AutoencoderKLHunyuanVideo, _HUNYUAN, "vae"),
        _Component("text_encoder", "Llama text encoder", LlamaModel, _HUNYUAN, "text_encoder"),
        _Component(
            "transformer",
            "transformer",
            HunyuanVideoTransformer3DModelPacked,
            _TRANSFORMERS[name],
        ),
    ]


def component_folders(name: str) -> dict[str, str]:
    """Where each component of "f1" or "framepack", by its attribute in `Models`, lies below a
    folder of weights."""
    return {c.attribute: str(Path(c.repository) / c.subfolder) for c in _components(name)}


def _dtype(attribute: str, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if attribute == "transformer" else torch.float16


def model_resolution(name: str) -> int:
    """Of the buckets that a model was trained on, see `bucket_tools`."""
    return tiny.RESOLUTION if name == "tiny" else _RESOLUTION


def load_models(
    name: str,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    report: Callable[[str], None] = logger.info,
) -> Models:
    """Load the models of a demo, ready to run but still on the CPU.

    Args:
        name: "f1", "framepack" or "tiny".
        device: where they will run; None is the GPU if there is one.
        weights: folder with a folder per repository (`lllyasviel/FramePackI2V_HY`, ...), used
            instead of the Hugging Face hub. "tiny" needs none.
        report: told what is being loaded, in a few words.

    Returns:
        Models in evaluation mode. On a GPU the transformer is bfloat16 and the rest float16, as
        they were trained; on the CPU all are float32.

    Raises:
        ValueError: an unknown name.
        WeightsError: a checkpoint is missing, incomplete or damaged.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"name must be one of {', '.join(MODEL_NAMES)}, got {name!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)

    if name == "tiny":
        report("Building the tiny model")
        loaded = tiny.build_tiny()
        for attribute, component in loaded.items():
            if device.type != "cpu" and isinstance(component, torch.nn.Module):
                component.to(_dtype(attribute, device))
    else:
        loaded = _load(
            _components(name), device, None if weights is None else Path(weights), report
        )

    for component in loaded.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    loaded["transformer"].high_quality_fp32_output_for_inference = True
    return Models(name=name, resolution=model_resolution(name), device=device, **loaded)


def _load(
    components: list[_Component],
    device: torch.device,
    weights: Path | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    if weights is None:
        repositories = _download(components, report)
    else:
        repositories = {c.repository: weights / c.repository for c in components}
    folders = {c.attribute: repositories[c.repository] / c.subfolder for c in components}
    missing = [file for c in components for file in c.missing_files(folders[c.attribute])]
    if missing:
        raise WeightsError(_how_to_get(components, repositories, missing))

    loaded = {}
    for i, component in enumerate(components, start=1):
        report(f"Loading the {component.label} ({i} of {len(components)})")
        attribute = component.attribute
        try:
            loaded[attribute] = component.load(folders[attribute], _dtype(attribute, device))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            # All that both libraries raise for broken JSON, cut files and tensors of other shapes.
            raise _damaged(folders[attribute], error) from error
    return loaded


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} is damaged ({_first_line(error)}): delete it and download it again."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _download(components: list[_Component], report: Callable[[str], None]) -> dict[str, Path]:
    """Where the hub's cache holds each repository, after fetching what is not there yet."""
    repositories: dict[str, list[_Component]] = {}
    for component in components:
        repositories.setdefault(component.repository, []).append(component)
    folders = {}
    for repository, parts in repositories.items():
        report(f"Fetching {repository} (the first time, this takes long)")
        try:
            folder = snapshot_download(
                repository, allow_patterns=[str(PurePosixPath(c.subfolder) / "*") for c in parts]
            )
        except (OSError, HTTPError, XetDownloadError) as error:
            raise WeightsError(
                f"{repository} could not be fetched ({_first_line(error)}): check the "
                f"connection, or download it elsewhere and name its folder with --weights."
            ) from error
        folders[repository] = Path(folder)
    return folders


def _how_to_get(
    components: list[_Component], repositories: dict[str, Path], missing: list[Path]
) -> str:
    """An error message: what is missing, and the commands that fetch it."""
    commands = []
    for repository, folder in repositories.items():
        if any(file.is_relative_to(folder) for file in missing):
            # Only our parts of repositories that hold much more.
            subfolders = [c.subfolder for c in components if c.repository == repository]
            included = "".join(f" --include '{s}/*'" for s in subfolders if s)
            commands.append(f"hf download {repository}{included} --local-dir {quote(str(folder))}")
    shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
    return f"{len(missing)} files are missing: {shown}. To get them: {'; '.join(commands)}"
