"""FramePack's own numbers: a tiny transformer, its inputs, and what it and the sampler gave."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("f1_distilled", "i2v_true_cfg")
TRANSFORMER_TENSORS = json.loads((GOLDEN / "framepack_transformer_tensors.json").read_text())

HISTORY = {
    "clean_latents": "clean_latent_indices",
    "clean_latents_2x": "clean_latent_2x_indices",
    "clean_latents_4x": "clean_latent_4x_indices",
}
"""The transformer's history, each with its places in time."""
CONTEXT = ("latent_indices", "image_embeddings", *HISTORY.keys(), *HISTORY.values())


def read_tensors(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of `tests/golden`."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@dataclass(frozen=True)
class GoldenCase:
    settings: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]

    def transformer(
        self, cls: type = HunyuanVideoTransformer3DModelPacked, dtype: torch.dtype = torch.float32
    ) -> Any:
        model = cls(**self.settings["config"])
        model.load_state_dict(self.weights)
        return model.to(dtype).eval()

    @property
    def context(self) -> dict[str, torch.Tensor]:
        """The past and the image, as the transformer's arguments."""
        return {name: self.inputs[name] for name in CONTEXT}

    def forward_args(self) -> dict[str, torch.Tensor]:
        """Arguments of the forward that gave `outputs["forward"]`."""
        return {
            "hidden_states": self.inputs["x"],
            "timestep": torch.tensor([self.settings["timestep"]]),
            "encoder_hidden_states": self.inputs["prompt_embeds"],
            "encoder_attention_mask": self.inputs["mask"],
            "pooled_projections": self.inputs["prompt_poolers"],
            "guidance": torch.tensor([1000.0 * self.settings["gs"]]),
            **self.context,
        }

    def sample_args(self) -> dict[str, Any]:
        """Arguments of the `sample_hunyuan` that gave `outputs["sample"]`."""
        return {
            "width": 8 * self.settings["W"],
            "height": 8 * self.settings["H"],
            "frames": 4 * self.settings["T"] - 3,
            "real_guidance_scale": self.settings["cfg"],
            "distilled_guidance_scale": self.settings["gs"],
            "guidance_rescale": self.settings["rs"],
            "num_inference_steps": self.settings["steps"],
            "generator": torch.Generator().manual_seed(self.settings["noise_seed"]),
            "prompt_embeds": self.inputs["prompt_embeds"],
            "prompt_embeds_mask": self.inputs["mask"],
            "prompt_poolers": self.inputs["prompt_poolers"],
            "negative_prompt_embeds": self.inputs["neg_embeds"],
            "negative_prompt_embeds_mask": self.inputs["nmask"],
            "negative_prompt_poolers": self.inputs["neg_poolers"],
            "dtype": torch.float32,
            **self.context,
        }


@functools.cache
def golden_case(name: str) -> GoldenCase:
    """Case `name` of `NAMES`."""
    tensors, metadata = read_tensors(name)
    parts = {"in": {}, "w": {}, "out": {}}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = tensor
    return GoldenCase(json.loads(metadata["case"]), parts["in"], parts["w"], parts["out"])
