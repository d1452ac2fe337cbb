"""From a name to models that are ready to run."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, ModelMixin
from diffusers.utils import logging as diffusers_logging
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
from transformers.utils import logging as transformers_logging

from diffusers_helper.bucket_tools import buckets
from diffusers_helper.errors import WeightsError
from diffusers_helper.models.float8 import kernels, to_float8, why_not_float8
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from diffusers_helper.models.vae_decoder import fuse_decoder
from diffusers_helper.settings import GenerationSettings

logger = logging.getLogger(__name__)

_HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
_REDUX = "lllyasviel/flux_redux_bfl"
_TRANSFORMERS = {
    "f1": "lllyasviel/FramePack_F1_I2V_HY_20250503",
    "framepack": "lllyasviel/FramePackI2V_HY",
}
_BUNDLED = Path(__file__).parent / "tiny"
_DESCRIPTION = "framepack.json"

MODEL_NAMES = (*_TRANSFORMERS, "tiny")


@dataclass(frozen=True)
class ModelDescription:
    """What a model tells of itself without being loaded."""

    resolution: int = 640
    """Of the buckets that the transformer was trained on, see `bucket_tools`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Recommended values of `GenerationSettings`, where they are not its defaults."""
    notice: str = ""
    """What a user should know before trying it, in Markdown."""
    latent_rgb: torch.Tensor | None = None
    """Preview colours, see `vae_decode_fake`."""


@dataclass(frozen=True)
class Models:
    """Everything that turns an image and a prompt into a video."""

    name: str
    resolution: int
    settings: dict[str, Any]
    notice: str
    latent_rgb: torch.Tensor | None
    """These four as in `ModelDescription`."""
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
                f"The {self.label} in {folder} lacks {len(missing)} tensors "
                f"({missing[0]}, ...): fetch it again."
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
    components = [
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
            _TRANSFORMERS.get(name, ""),
        ),
    ]
    if name == "tiny":  # all in one folder
        return [replace(c, repository="", subfolder=c.attribute) for c in components]
    return components


def component_folders(name: str) -> dict[str, str]:
    """Where each component, by its attribute in `Models`, lies below a folder of weights."""
    return {c.attribute: str(Path(c.repository) / c.subfolder) for c in _components(name)}


def _dtype(attribute: str, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if attribute == "transformer" else torch.float16


def choose_model(name: str, real: str) -> str:
    """`name`; if that is "auto", the checkpoint `real` on a CUDA GPU, and "tiny" without one."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return real
    logger.warning("There is no CUDA GPU: the small built-in model runs instead of %r.", real)
    return "tiny"


def model_description(name: str, weights: Path | str | None = None) -> ModelDescription:
    """What a model tells of itself; nothing is loaded or fetched.

    Args:
        name, weights: see `load_models`.

    Raises:
        WeightsError: what "tiny" tells is missing or makes no sense.
    """
    if name != "tiny":
        return ModelDescription()
    folder = _BUNDLED if weights is None else Path(weights)
    file = folder / _DESCRIPTION
    try:
        return _described(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{folder} has no {_DESCRIPTION}. {_tiny_source(weights)}") from error
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{file} describes no model: {_first_line(error)}") from error


def _described(told: Any) -> ModelDescription:
    names = [f.name for f in fields(ModelDescription)]
    if not isinstance(told, dict) or told.keys() != set(names):
        raise ValueError(f"it must be an object of {', '.join(names)}")
    resolution, settings, notice, latent_rgb = (told[name] for name in names)
    buckets(resolution)
    known = {f.name for f in fields(GenerationSettings)}
    if not isinstance(settings, dict) or not settings.keys() <= known:
        raise ValueError(f"settings must be some of {', '.join(sorted(known))}, got {settings!r}")
    GenerationSettings(**settings)
    if not isinstance(notice, str):
        raise ValueError(f"notice must be a text, got {notice!r}")
    try:
        rows = torch.tensor(latent_rgb, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        rows = None
    if rows is None or rows.shape != (17, 3) or not rows.isfinite().all():
        raise ValueError("latent_rgb must be 17 rows of 3 numbers")
    return ModelDescription(resolution, settings, notice, rows)


def default_device() -> torch.device:
    """A CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_models(
    name: str,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    report: Callable[[str], None] = logger.info,
    fp8: bool = False,
) -> Models:
    """Load the models of a demo, ready to run but still on the CPU.

    Args:
        name: "f1", "framepack" or "tiny".
        device: where they will run; None is the GPU if there is one.
        weights: folder with a folder per repository (`lllyasviel/FramePackI2V_HY`, ...), used
            instead of the Hugging Face hub; for "tiny" a folder as `training.tiny_world` writes,
            used instead of the bundled one.
        report: told what is being loaded, in a few words.
        fp8: round the transformer's weights to float8; where that cannot run, it is told and left.

    Returns:
        Models in evaluation mode. On a GPU the transformer is bfloat16 and the rest float16, as
        they were trained; on the CPU all are float32.

    Raises:
        ValueError: an unknown name.
        WeightsError: a checkpoint is missing, incomplete or damaged.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"name must be one of {', '.join(MODEL_NAMES)}, got {name!r}")
    device = default_device() if device is None else torch.device(device)

    description = model_description(name, weights)
    loaded = _load(name, device, weights, report)
    for component in loaded.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    if device.type == "cuda":
        fuse_decoder(loaded["vae"])
    else:
        # With channels last a CPU decodes in three quarters of the time.
        loaded["vae"].to(memory_format=torch.channels_last_3d)
    transformer = loaded["transformer"]
    transformer.high_quality_fp32_output_for_inference = True
    if device.type == "cuda" and kernels is None:
        logger.warning("Triton is not installed: steps take a third longer than they could.")
    if fp8 and (reason := why_not_float8(device, transformer)):
        logger.warning("The transformer does not run in float8: %s.", reason)
    elif fp8:
        report("Rounding the transformer to float8")
        to_float8(transformer, device)
    return Models(name=name, device=device, **vars(description), **loaded)


def _load(
    name: str,
    device: torch.device,
    weights: Path | str | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    components = _components(name)
    if weights is not None:
        repositories = {c.repository: Path(weights) / c.repository for c in components}
    elif name == "tiny":
        repositories = {"": _BUNDLED}
    else:
        repositories = _download(components, report)
    folders = {c.attribute: repositories[c.repository] / c.subfolder for c in components}
    missing = [file for c in components for file in c.missing_files(folders[c.attribute])]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        cure = (
            _tiny_source(weights)
            if name == "tiny"
            else _how_to_get(components, repositories, missing)
        )
        raise WeightsError(f"{len(missing)} files are missing: {shown}. {cure}")

    loaded = {}
    with _no_bars():
        for i, component in enumerate(components, start=1):
            report(f"Loading the {component.label} ({i} of {len(components)})")
            folder = folders[component.attribute]
            try:
                loaded[component.attribute] = component.load(
                    folder, _dtype(component.attribute, device)
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                # All that both libraries raise for broken JSON, cut files and tensors of other
                # shapes.
                raise _damaged(folder, error) from error
    return loaded


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the libraries' progress bars, a line a model, out of the command line's own."""
    shown = [x for x in (diffusers_logging, transformers_logging) if x.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _tiny_source(weights: Path | str | None) -> str:
    """A sentence for an error message."""
    if weights is None:
        return "The tiny model is part of this program: fetch the program again."
    return "For the tiny model, --weights names a folder that training.tiny_world has written."


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is damaged ({_first_line(error)}): delete it and fetch it again.")


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
    """A sentence for an error message: the commands that fetch what is missing."""
    commands = []
    for repository, folder in repositories.items():
        if any(file.is_relative_to(folder) for file in missing):
            # Only our parts of repositories that hold much more.
            subfolders = [c.subfolder for c in components if c.repository == repository]
            included = "".join(f" --include '{s}/*'" for s in subfolders if s)
            commands.append(f"hf download {repository}{included} --local-dir {quote(str(folder))}")
    return f"To get them: {'; '.join(commands)}"
