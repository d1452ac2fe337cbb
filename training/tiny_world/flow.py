"""Stages 2 and 3: the transformer by flow matching, and its guidance by distillation."""

import math
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusers_helper.k_diffusion.wrapper import GUIDANCE_INPUT_SCALE
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from training.tiny_world import together
from training.tiny_world.config import TrainingConfig
from training.tiny_world.data import Batch, Clips, Text
from training.tiny_world.loop import take_steps
from training.tiny_world.optimizer import MatrixOptimizer, matrices_and_vectors
from training.tiny_world.recorded import Tensors

_TIMESTEP = 1000.0
"""Of sigma 1."""
_FUSED = {"triton.coalesce_tiling_analysis": False}
"""Of the compiler, whose analysis fails on lengths that change."""


def velocity(
    transformer: HunyuanVideoTransformer3DModelPacked,
    inputs: Tensors,
    text: torch.Tensor,
    pooled: torch.Tensor,
    image: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """The transformer's forward for a batch without padding, which needs no mask.

    Args:
        inputs: "noisy" latents, shape [batch, 16, frames, height, width]; their noise levels
            "sigma", shape [batch]; and what `LatentHistory.context` says.
        text, pooled, image: as the encoders give them.
        scale: guidance input, shape [batch].

    Returns:
        float32, shaped as the latents.
    """
    dtype = transformer.dtype
    context = {name: inputs[name] for name in inputs if "clean" in name or "indices" in name}
    return transformer(
        hidden_states=inputs["noisy"].to(dtype),
        timestep=(_TIMESTEP * inputs["sigma"]).to(dtype),
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=None,
        pooled_projections=pooled.to(dtype),
        guidance=(GUIDANCE_INPUT_SCALE * scale).to(dtype),
        image_embeddings=image,
        return_dict=False,
        **context,
    )[0].float()


class Trained:
    """Networks in training: float32 copies of their weights, which the optimizer steps, and the
    copies' running mean, which is the result.

    Args:
        networks: on one device.
        config: rates and the mean's pace.
        share: of the rates.
    """

    def __init__(
        self, networks: Collection[nn.Module], config: TrainingConfig, share: float
    ) -> None:
        matrices, vectors = matrices_and_vectors(networks)
        self._weights = matrices + vectors
        self._exact = [p.detach().float().clone() for p in self._weights]
        self._mean = [p.clone() for p in self._exact]
        self._ema = config.ema
        self._optimizer = MatrixOptimizer(
            self._exact[: len(matrices)],
            self._exact[len(matrices) :],
            share * config.matrix_rate,
            share * config.vector_rate,
        )

    def keep(self, done: int) -> float:
        """Share of the running mean that a step keeps after `done` others: a young mean follows
        faster, or it would remember the random start."""
        return min(self._ema, (1 + done) / (10 + done))

    @torch.no_grad()
    def step(self, share: torch.Tensor, keep: torch.Tensor) -> None:
        """Take a step by the gradients at hand, at a share of the rates, and forget them."""
        for weight, exact in zip(self._weights, self._exact, strict=True):
            exact.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        together.average([p.grad for p in self._exact if p.grad is not None])
        nn.utils.clip_grad_norm_(self._exact, 1.0)
        self._optimizer.step(share)
        torch._foreach_copy_(self._weights, self._exact)
        ahead = torch._foreach_sub(self._exact, self._mean)
        torch._foreach_mul_(ahead, 1 - keep)
        torch._foreach_add_(self._mean, ahead)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the running mean into the networks."""
        torch._foreach_copy_(self._weights, self._mean)

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {
            "exact": self._exact,
            "mean": self._mean,
            "optimizer": self._optimizer.state(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        torch._foreach_copy_(self._exact, state["exact"])
        torch._foreach_copy_(self._mean, state["mean"])
        torch._foreach_copy_(self._weights, self._exact)
        self._optimizer.load(state["optimizer"])


def _train(
    stage: str,
    steps: int,
    trained: Trained,
    inputs: Callable[[int], Tensors],
    loss: Callable[[Tensors], torch.Tensor],
    config: TrainingConfig,
    device: torch.device,
    checkpoint: Path,
    deadline: float,
) -> float:
    """Run a stage, see `take_steps`.

    Args:
        inputs: of the number of a step, what `loss` takes.

    Returns:
        The last mean loss.
    """

    def take(inputs: Tensors) -> Tensors:
        value = loss(inputs)
        value.backward()
        trained.step(inputs["share"], inputs["keep"])
        return {"loss": value.detach()}

    def make(step: int) -> tuple[Tensors, dict[str, Any]]:
        left = (steps - step) / max(1, config.decay_share * steps)
        share = min(1.0, left, (step + 1) / config.warm_up)
        made = inputs(step) | {
            "share": torch.tensor(share, device=device),
            "keep": torch.tensor(trained.keep(step), device=device),
        }
        return made, {}

    losses = take_steps(stage, steps, trained, make, take, device, checkpoint, deadline)
    trained.finish()
    return losses.get("loss", math.nan)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    """Each process has its own."""
    own = random.Random(f"{seed} {together.number()}").getrandbits(32)
    return torch.Generator(device).manual_seed(own)


def _noisy(batch: Batch, step: int, config: TrainingConfig) -> Tensors:
    """Inputs of a step: "noisy" latents, their noise levels "sigma", the true "velocity", and the
    history as it is shown."""
    target = batch.target.float()
    device = target.device
    generator = _generator(config.seed * 10_000_019 + step, device)

    def uniform(low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(target), generator=generator, device=device)

    shift = uniform(*map(math.log, config.shift_range)).exp()
    t = uniform()
    sigma = shift * t / (1 + (shift - 1) * t)
    noise = torch.randn(target.shape, generator=generator, device=device)
    level = sigma.view(-1, 1, 1, 1, 1)

    strength = config.history_noise * uniform().view(-1, 1, 1, 1, 1)

    def worn(latents: torch.Tensor) -> torch.Tensor:
        """The model's own history is less than perfect; what is absent stays zero."""
        spoilt = torch.randn(latents.shape, generator=generator, device=device) * strength
        return latents.float() + spoilt * (latents != 0)

    near = batch.context["clean_latents"]
    context = batch.context | {
        "clean_latents": torch.cat([near[:, :, :1].float(), worn(near[:, :, 1:])], dim=2),
        "clean_latents_2x": worn(batch.context["clean_latents_2x"]),
        "clean_latents_4x": worn(batch.context["clean_latents_4x"]),
    }
    return {
        "noisy": torch.lerp(target, noise, level),
        "sigma": sigma,
        "velocity": noise - target,
        "thumbnails": batch.thumbnails,
        "weight": batch.weight,
        **context,
    }


def train_flow(
    components: dict[str, Any],
    clips: Clips,
    config: TrainingConfig,
    device: torch.device,
    checkpoint: Path,
    deadline: float,
) -> float:
    """Stage 2, in place: transformer and encoders by flow matching; the caption is dropped from
    some batches, and the guidance input is always 1.

    Returns:
        The last mean loss.

    Raises:
        Interrupted: see `take_steps`.
    """
    names = ("transformer", "text_encoder", "text_encoder_2", "image_encoder")
    networks = [_ready(components[name], device) for name in names]
    transformer = components["transformer"]
    _fuse(transformer)
    text = Text(components, device)
    nothing = clips.no_caption()

    def inputs(step: int) -> Tensors:
        batch = clips.batch(step)
        dropped = random.Random(step).random() < config.drop_caption
        llama, clip = nothing if dropped else (batch.llama, batch.clip)
        return _noisy(batch, step, config) | {"llama": llama, "clip": clip}

    def loss(inputs: Tensors) -> torch.Tensor:
        words, pooled = text.encode(inputs["llama"], inputs["clip"])
        image = _look(components["image_encoder"], inputs["thumbnails"])
        one = torch.ones_like(inputs["sigma"])
        guess = velocity(transformer, inputs, words, pooled, image, one)
        return (inputs["weight"] * (guess - inputs["velocity"]).square()).mean()

    return _train(
        "Flow matching",
        config.flow_steps,
        Trained(networks, config, 1.0),
        inputs,
        loss,
        config,
        device,
        checkpoint,
        deadline,
    )


def distil_guidance(
    components: dict[str, Any],
    student: HunyuanVideoTransformer3DModelPacked,
    clips: Clips,
    config: TrainingConfig,
    device: torch.device,
    checkpoint: Path,
    deadline: float,
) -> float:
    """Stage 3, in place: a student learns to give in one pass what its teacher,
    `components["transformer"]`, gives in two with true CFG.

    Returns:
        The last mean loss.

    Raises:
        Interrupted: see `take_steps`.
    """
    teacher = components["transformer"]
    student.load_state_dict(teacher.state_dict())
    for name in ("transformer", "text_encoder", "text_encoder_2", "image_encoder"):
        _ready(components[name], device).requires_grad_(False)
    _ready(student, device)
    _forget_guidance(student)
    _fuse(teacher)
    _fuse(student)
    text = Text(components, device)
    nothing = clips.no_caption()
    low, high = map(math.log, config.scale_range)

    def inputs(step: int) -> Tensors:
        batch = clips.batch(step + config.flow_steps)
        uniform = torch.rand(len(batch.target), generator=_generator(step, device), device=device)
        return _noisy(batch, step + config.flow_steps, config) | {
            "llama": batch.llama,
            "clip": batch.clip,
            "scale": (low + (high - low) * uniform).exp(),
        }

    def loss(inputs: Tensors) -> torch.Tensor:
        scale = inputs["scale"]
        with torch.no_grad():
            image = _look(components["image_encoder"], inputs["thumbnails"])
            conditions = text.encode(inputs["llama"], inputs["clip"])
            blank = text.encode(*nothing)
            one = torch.ones_like(scale)
            with_caption = velocity(teacher, inputs, *conditions, image, one)
            without = velocity(teacher, inputs, *blank, image, one)
            target = torch.lerp(without, with_caption, scale.view(-1, 1, 1, 1, 1))
        guess = velocity(student, inputs, *conditions, image, scale)
        # What guidance adds grows with the scale; low scales are to be as right as high ones.
        error = (inputs["weight"] * (guess - target).square()).mean(dim=(1, 2, 3, 4))
        return (error / scale).mean()

    return _train(
        "Guidance distillation",
        config.distil_steps,
        Trained([student], config, config.distil_share),
        inputs,
        loss,
        config,
        device,
        checkpoint,
        deadline,
    )


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    network.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return network.train()


def _fuse(transformer: HunyuanVideoTransformer3DModelPacked) -> None:
    """On a GPU, compile its blocks, once for all lengths and sizes."""
    if transformer.device.type == "cuda":
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            block.compile(dynamic=True, options=_FUSED)


def _look(encoder: nn.Module, thumbnails: torch.Tensor) -> torch.Tensor:
    return encoder(pixel_values=thumbnails.to(encoder.dtype)).last_hidden_state


@torch.no_grad()
def _forget_guidance(student: HunyuanVideoTransformer3DModelPacked) -> None:
    """Start as the teacher at scale 1, whatever the guidance input."""
    embedding = student.time_text_embed
    one = torch.full((1,), GUIDANCE_INPUT_SCALE, device=student.device)
    projected = embedding.time_proj(one).to(student.dtype)
    constant = embedding.guidance_embedder(projected)
    embedding.guidance_embedder.linear_2.weight.zero_()
    embedding.guidance_embedder.linear_2.bias.copy_(constant[0])
