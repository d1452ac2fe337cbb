"""Where models rest and run: all on the GPU when they fit, otherwise in turns."""

import logging

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _is_group_offload_enabled

from diffusers_helper.models import Models
from diffusers_helper.models.vae_decoder import is_fused

logger = logging.getLogger(__name__)

_GB = 1024**3
_WHOLE_DECODE_GB = {False: 24.0, True: 12.0}
"""Free memory from which on the VAE decodes whole frames, by whether its decoder is fused: a
section at 544x704 takes 21 or 10 GB."""


def bring(module: torch.nn.Module, models: Models, preserved_gb: float) -> None:
    """Make one of `models` ready to run on their device.

    On a GPU it stays there if it fits and leaves `preserved_gb` free; others are sent to host
    memory if it needs their place. A model that does not fit alone is streamed through the GPU a
    block at a time from then on.

    Args:
        module: one of `models`.
        models: all that may take turns.
        preserved_gb: GB of GPU memory to leave free for what is computed.
    """
    device = models.device
    if device.type != "cuda":
        module.to(device)
        return
    if _is_group_offload_enabled(module):
        return
    size = sum(p.nbytes for p in module.parameters()) / _GB
    needed = preserved_gb + (0 if _is_resident(module) else size)
    if free_gb(device) < needed:
        for other in _modules(models):
            if other is not module and not _is_group_offload_enabled(other):
                other.to("cpu")
        torch.cuda.empty_cache()
    streamable = module in (models.text_encoder, models.transformer)
    if streamable and free_gb(device) < needed:
        logger.info(
            "Streaming %s: its %.1f GB do not fit beside %.1f GB kept free",
            type(module).__name__,
            size,
            preserved_gb,
        )
        module.to("cpu")
        torch.cuda.empty_cache()
        apply_group_offloading(
            module, device, offload_type="block_level", num_blocks_per_group=1, use_stream=True
        )
    else:
        module.to(device)


def _is_resident(module: torch.nn.Module) -> bool:
    return next(module.parameters()).device.type == "cuda"


def _modules(models: Models) -> tuple[torch.nn.Module, ...]:
    return (
        models.text_encoder,
        models.text_encoder_2,
        models.image_encoder,
        models.vae,
        models.transformer,
    )


def choose_tiling(models: Models) -> None:
    """Let the VAE decode in tiles where whole frames would not fit; call before decoding."""
    if models.device.type == "cuda":
        models.vae.use_tiling = free_gb(models.device) < _WHOLE_DECODE_GB[is_fused(models.vae)]


def free_gb(device: torch.device) -> float:
    """Memory of a GPU that this process could still take, in GB."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) / _GB
