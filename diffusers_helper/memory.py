"""Where models rest and run: all on the GPU when they fit, otherwise in turns."""

import logging
from collections.abc import Collection

import torch
from torch import nn

from diffusers_helper.models import Models
from diffusers_helper.models.vae_decoder import is_fused
from diffusers_helper.streaming import Streamed

logger = logging.getLogger(__name__)

_GB = 1024**3
_WHOLE_DECODE_GB = {False: 24.0, True: 12.0}
"""Free memory from which on the VAE decodes whole frames, by whether its decoder is fused: a
section at 544x704 takes 21 or 10 GB."""
_BLOCKS = ("layers", "transformer_blocks", "single_transformer_blocks")
"""Where networks keep the bulk of their weights, in the order it is used."""


def bring(
    module: nn.Module, models: Models, preserved_gb: float, beside: Collection[nn.Module] = ()
) -> None:
    """Make one of `models` ready to run on their device.

    On a GPU that holds all of them beside `preserved_gb` they stay there. On a smaller one they
    take turns, from host memory; of one that does not fit alone, only some blocks are on the GPU
    all the time, as many as leave `preserved_gb` free, and the others are streamed.

    Args:
        module: one of `models`.
        models: all that may take turns.
        preserved_gb: GB of GPU memory to leave free for what is computed.
        beside: others that stay where they are: they run together with it, or in turns so often
            that moving them would take longer than their memory is worth.
    """
    device = models.device
    if device.type != "cuda" or (home_of(module) is None and _all_fit(models, preserved_gb)):
        module.to(device)
        return
    home = home_of(module) or _take_home(module, device)
    if free_gb(device) + home.held / _GB < preserved_gb + home.size / _GB:
        for other in _modules(models):
            if other is module or other in beside:
                continue
            if (others := home_of(other)) is not None:
                others.release()
            else:
                other.to("cpu")
        torch.cuda.empty_cache()
    streamed = home.streamed
    home.arrange(int((free_gb(device) - preserved_gb) * _GB) + home.held)
    if home.streamed and home.streamed != streamed:
        logger.info(
            "%.1f of %.1f GB of %s are streamed: they do not fit beside %.1f GB kept free",
            home.streamed / _GB,
            home.size / _GB,
            type(module).__name__,
            preserved_gb,
        )


def home_of(module: nn.Module) -> Streamed | None:
    """What keeps the weights of a module that takes turns; None of one that does not."""
    return getattr(module, "_home", None)


def _take_home(module: nn.Module, device: torch.device) -> Streamed:
    module.to("cpu")
    blocks = [block for name in _BLOCKS for block in getattr(module, name, ())]
    module._home = Streamed(module, blocks, device)
    return module._home


def _all_fit(models: Models, preserved_gb: float) -> bool:
    absent = sum(_size_gb(m) for m in _modules(models) if not _is_resident(m))
    return free_gb(models.device) >= absent + preserved_gb


def _size_gb(module: nn.Module) -> float:
    return sum(p.nbytes for p in module.parameters()) / _GB


def _is_resident(module: nn.Module) -> bool:
    return next(module.parameters()).device.type == "cuda"


def _modules(models: Models) -> tuple[nn.Module, ...]:
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
