"""The processes of a training, one a GPU, that `torchrun` started; alone without it."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist


def join() -> None:
    """Begin, before anything else of this module and before anything is put on a GPU."""
    if "WORLD_SIZE" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()


def leave() -> None:
    """End."""
    if dist.is_initialized():
        dist.destroy_process_group()


def number() -> int:
    """Of this process; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Put the mean over the processes in the place of tensors, which must be float32 and of the
    same shapes everywhere."""
    if count() > 1:
        flat = torch.cat([x.flatten() for x in tensors]) / count()
        dist.all_reduce(flat)
        parts = flat.split([x.numel() for x in tensors])
        torch._foreach_copy_(
            list(tensors), [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]
        )


def any_of(flag: bool) -> bool:
    """Whether it is true of any process, which all learn."""
    if count() == 1:
        return flag
    flags = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def wait() -> None:
    """Until all have come so far."""
    any_of(False)
