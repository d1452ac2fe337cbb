"""From a name to models that are ready to run."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, ModelMixin
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

    def load(self, weights: Path | None, dtype: torch.dtype) -> Any:
        if weights is None:
            source = {"pretrained_model_name_or_path": self.repository}
            if self.subfolder:
                source["subfolder"] = self.subfolder
        else:
            source = {
                "pretrained_model_name_or_path": weights / self.repository / self.subfolder,
                "local_files_only": True,
            }
        if not issubclass(self.kind, torch.nn.Module):
            return self.kind.from_pretrained(**source)
        # diffusers and transformers name the same argument differently.
        source["torch_dtype" if issubclass(self.kind, ModelMixin) else "dtype"] = dtype
        model, info = self.kind.from_pretrained(**source, output_loading_info=True)
        # The libraries fill what a checkpoint lacks with random numbers and carry on.
        if missing := sorted(info["missing_keys"]):
            raise WeightsError(
                f"The {self.label} of {self.repository} lacks {len(missing)} tensors "
                f"({missing[0]}, ...): download it again."
            )
        return model

    def missing_files(self, weights: Path) -> list[str]:
        """What a local copy lacks, as paths below `weights`."""
        folder = weights / self.repository / self.subfolder
        if issubclass(self.kind, torch.nn.Module):
            needed = ["config.json", *self._weight_files(folder)]
        elif issubclass(self.kind, PreTrainedTokenizerBase):
            # CLIP's may come in its older form of two files.
            old = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
            needed = [] if old else ["tokenizer.json"]
        else:
            needed = ["preprocessor_config.json"]
        return [
            str((folder / file).relative_to(weights))
            for file in needed
            if not (folder / file).is_file()
        ]

    def _weight_files(self, folder: Path) -> list[str]:
        name = "diffusion_pytorch_model" if issubclass(self.kind, ModelMixin) else "model"
        index = folder / f"{name}.safetensors.index.json"
        if not index.is_file():
            return [f"{name}.safetensors"]
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))


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


def _dtype(attribute: str, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if attribute == "transformer" else torch.float16


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
        resolution = tiny.RESOLUTION
        loaded = tiny.build_tiny()
        for attribute, component in loaded.items():
            if device.type != "cpu" and isinstance(component, torch.nn.Module):
                component.to(_dtype(attribute, device))
    else:
        resolution = _RESOLUTION
        loaded = _load(
            _components(name), device, None if weights is None else Path(weights), report
        )

    for component in loaded.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    loaded["transformer"].high_quality_fp32_output_for_inference = True
    return Models(name=name, resolution=resolution, device=device, **loaded)


def _load(
    components: list[_Component],
    device: torch.device,
    weights: Path | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    if weights is not None:
        missing = [file for component in components for file in component.missing_files(weights)]
        if missing:
            raise WeightsError(_how_to_get(components, weights, missing))
    loaded = {}
    for i, component in enumerate(components, start=1):
        report(f"Loading the {component.label} ({i} of {len(components)})")
        try:
            loaded[component.attribute] = component.load(
                weights, _dtype(component.attribute, device)
            )
        except SafetensorError as error:
            raise WeightsError(
                f"A weights file of {component.repository} {component.subfolder} is damaged "
                f"({error}): delete it and download it again."
            ) from error
        except OSError as error:
            # What both libraries raise when the hub cannot be reached or lacks a file.
            raise WeightsError(
                f"The {component.label} could not be loaded from {component.repository} "
                f"({str(error).splitlines()[0]}). Check the connection, or download the "
                f"repository elsewhere and name its folder with --weights."
            ) from error
    return loaded


def _how_to_get(components: list[_Component], weights: Path, missing: list[str]) -> str:
    """An error message: what is missing, and the commands that fetch it."""
    shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
    wanted: dict[str, list[str]] = {}
    for component in components:
        if any(file.startswith(component.repository) for file in missing):
            parts = wanted.setdefault(component.repository, [])
            if component.subfolder:  # of a repository that holds much more
                parts.append(f" --include '{component.subfolder}/*'")
    commands = "; ".join(
        f"hf download {repository}{''.join(parts)} --local-dir {weights / repository}"
        for repository, parts in wanted.items()
    )
    return f"{len(missing)} files are missing in {weights}: {shown}. To get them: {commands}"
