"""What step caching skips and what it costs, at constant guidance and with a schedule.

    python -m benchmarks.caching

The small model on the CPU, first sections of unseen scenes: how many of 25 steps are computed, and
how far the latents are from those without a cache (relative L2 norm). FramePack's TeaCache, and
diffusers' first-block cache for comparison. Prints a Markdown table.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig

from diffusers_helper.hunyuan import vae_encode
from diffusers_helper.models import Models, load_models
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections, section_frames
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.sample import encode_captions, encode_look
from training.tiny_world.world import Scene, render, sample_scene, truth

_STEPS, _WINDOW, _SIDE = 25, 9, 128
_ACTIONS = ("fade", "leave", "left", "up", "jump", "night", "grow", "wave")
_TEACACHE = (0.1, 0.15, 0.25)
_FIRST_BLOCK = (0.12, 0.2, 0.35)


@torch.inference_mode()
def conditions(models: Models, scene: Scene) -> dict[str, Any]:
    """Arguments of `sample_hunyuan` for the first section of a scene."""
    first = render([scene], truth([scene], 1))
    start = vae_encode(first.float() / 127.5 - 1, models.vae, torch.Generator().manual_seed(0))
    (section, *_) = plan_sections(SectionOrder.FORWARD, 2.0, _WINDOW)
    return {
        "image_embeddings": encode_look(models, first[0]),
        **encode_captions(models, [caption(scene, 0)]),
        **LatentHistory(SectionOrder.FORWARD, _WINDOW, start).context(section),
    }


@contextmanager
def teacache(transformer: Any, threshold: float) -> Iterator[None]:
    transformer.initialize_teacache(True, _STEPS, threshold)
    yield
    transformer.initialize_teacache(False)


@contextmanager
def first_block(transformer: Any, threshold: float) -> Iterator[None]:
    transformer.enable_cache(FirstBlockCacheConfig(threshold))
    yield
    transformer.disable_cache()


def measure(
    models: Models, given: dict[str, Any], beta: float, cache: Callable, threshold: float
) -> tuple[int, torch.Tensor]:
    """Steps that were computed, and the latents."""
    computed = []
    last = models.transformer.single_transformer_blocks[-1].norm
    hook = last.register_forward_hook(lambda *_: computed.append(1))
    with cache(models.transformer, threshold):
        latents = sample(models, given, beta)
    hook.remove()
    return len(computed), latents


def sample(models: Models, given: dict[str, Any], beta: float) -> torch.Tensor:
    return sample_hunyuan(
        models.transformer,
        width=_SIDE,
        height=_SIDE,
        frames=section_frames(_WINDOW),
        distilled_guidance_scale=models.settings["gs"],
        num_inference_steps=_STEPS,
        generator=torch.Generator().manual_seed(31337),
        dtype=torch.float32,
        adaptive_cfg_beta=beta,
        **given,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="unseen scenes of each action")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    options = parser.parse_args()
    models = load_models("tiny", "cpu")
    seeds = range(TrainingConfig.unseen_seed, TrainingConfig.unseen_seed + options.seeds)
    scenes = [sample_scene(seed, action, (_SIDE, _SIDE)) for seed in seeds for action in _ACTIONS]
    clips = [conditions(models, scene) for scene in scenes]
    caches = [("TeaCache", teacache, threshold) for threshold in _TEACACHE]
    caches += [("first block", first_block, threshold) for threshold in _FIRST_BLOCK]
    print("| cache | threshold | beta | steps computed, of 25 | error |\n|---|---|---|---|---|")
    whole = {beta: [sample(models, given, beta) for given in clips] for beta in options.betas}
    for name, cache, threshold in caches:
        for beta, references in whole.items():
            made = [measure(models, given, beta, cache, threshold) for given in clips]
            errors = [
                ((latents - reference).norm() / reference.norm()).item()
                for (_, latents), reference in zip(made, references, strict=True)
            ]
            steps = statistics.mean(count for count, _ in made)
            row = [name, f"{threshold:g}", f"{beta:g}", f"{steps:.1f}"]
            print(f"| {' | '.join(row)} | {statistics.mean(errors):.3f} |", flush=True)


if __name__ == "__main__":
    main()
