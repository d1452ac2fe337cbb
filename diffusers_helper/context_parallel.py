"""Several GPUs share the transformer: each holds all its weights and a part of the sequence.

`torchrun` starts the processes. The first is the program; the others run the transformer's blocks
when it does, and nothing else. In a block a process keeps to its own tokens; in attention it has
all tokens of its own heads (Ulysses, by diffusers).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

from diffusers_helper.errors import UserError
from diffusers_helper.models import default_device
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

_PATIENCE = timedelta(days=1)
"""That the others wait for the first, which may be fetching weights or decoding."""


def launched() -> bool:
    """Whether this is one of several processes of `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this is one of several processes of `torchrun`, and not the first."""
    return launched() and int(os.environ["RANK"]) > 0


class Crew:
    """The processes of a `torchrun`, of which this is one; a context that all leave together."""

    def __init__(self) -> None:
        self.device = default_device()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # What is told goes from host to host, so that no GPU is waited for.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            if self.leads:
                _tell(None)
            dist.destroy_process_group()
        elif isinstance(error, UserError) and not self.leads:
            # The first fails likewise: were this one to end before, torchrun would silence it.
            _hear()

    @property
    def leads(self) -> bool:
        """Whether this process is the program."""
        return self.rank == 0

    def share(self, transformer: HunyuanVideoTransformer3DModelPacked) -> None:
        """Run a transformer's blocks together; every process calls it once, with the same weights.

        In the first process it returns at once, in the others when the first leaves the context.

        Raises:
            UserError: the heads of attention cannot be dealt out to so many processes.
        """
        heads = transformer.config.num_attention_heads
        if self.leads and heads % self.size:
            raise UserError(
                f"The {heads} attention heads of this model cannot be dealt out to {self.size} "
                f"processes: start a number of them that divides {heads}."
            )
        work = _Work(transformer, self)
        if self.leads:
            transformer.run_blocks = work.lead
        else:
            transformer.to(self.device)
            work.follow()


class _Work:
    """A transformer's blocks, run by a crew."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModelPacked, crew: Crew) -> None:
        self._crew = crew
        self._run_blocks = transformer.run_blocks
        blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        self._processors = [block.attn.processor for block in blocks]
        shape, names = (1, crew.size), ("ring", "ulysses")
        mesh = init_device_mesh(crew.device.type, shape, mesh_dim_names=names)
        self._even, self._uneven = (
            ParallelConfig(ContextParallelConfig(ulysses_degree=crew.size, ulysses_anything=uneven))
            for uneven in (False, True)
        )
        for config in (self._even, self._uneven):
            config.setup(crew.rank, crew.size, crew.device, mesh=mesh)

    def lead(
        self,
        packed: torch.Tensor,
        text: torch.Tensor,
        condition: torch.Tensor,
        mask: torch.Tensor | None,
        places: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """As `run_blocks`."""
        given = packed, text, condition, mask, *places
        given = [x if x is None else x.contiguous() for x in given]
        _tell([None if x is None else (x.shape, x.dtype) for x in given])
        return self._run(given)

    @torch.inference_mode()
    def follow(self) -> None:
        """Run what the first process leads, until it ends."""
        device = self._crew.device
        while (told := _hear()) is not None:
            self._run(
                [t if t is None else torch.empty(t[0], dtype=t[1], device=device) for t in told]
            )

    def _run(self, given: list[torch.Tensor | None]) -> torch.Tensor:
        """The blocks, of which this process takes its part."""
        for x in given:
            if x is not None:
                dist.broadcast(x, src=0)
        packed, text, condition, mask, *places = given
        lengths = deal(packed.shape[1], text.shape[1], self._crew.size)
        if mask is not None:  # attention has the tokens in the order of the processes
            streams = mask.split([packed.shape[1], text.shape[1]], dim=-1)
            parts = (m.split(n, dim=-1) for m, n in zip(streams, lengths, strict=True))
            mask = torch.cat([m for of_rank in zip(*parts, strict=True) for m in of_rank], dim=-1)

        rank, (of_packed, of_text) = self._crew.rank, lengths
        with self._attention(even=len({p + t for p, t in zip(*lengths, strict=True)}) == 1):
            mine = self._run_blocks(
                packed.split(of_packed, dim=1)[rank].contiguous(),
                text.split(of_text, dim=1)[rank].contiguous(),
                condition,
                mask,
                tuple(table.split(of_packed)[rank] for table in places),
            )
        pieces = [piece.new_empty(piece.shape) for piece in packed.split(of_packed, dim=1)]
        pieces[rank] = mine.contiguous()
        for source, piece in enumerate(pieces):
            dist.broadcast(piece, src=source)
        return torch.cat(pieces, dim=1)

    @contextmanager
    def _attention(self, even: bool) -> Iterator[None]:
        """Of all processes' tokens together, of which each has as many or not."""
        for processor in self._processors:
            processor._parallel_config = self._even if even else self._uneven
        try:
            yield
        finally:
            for processor in self._processors:
                processor._parallel_config = None


def deal(packed: int, text: int, size: int) -> tuple[list[int], list[int]]:
    """How many tokens of either stream each process takes: sums that differ by one at most."""

    def even(count: int) -> list[int]:
        return [count // size + (rank < count % size) for rank in range(size)]

    both, of_text = even(packed + text), even(text)
    return [b - t for b, t in zip(both, of_text, strict=True)], of_text


def _tell(what: Any) -> None:
    """To the other processes."""
    dist.broadcast_object_list([what], src=0, device=torch.device("cpu"))


def _hear() -> Any:
    """What the first process tells; None, as at its end, if it is gone."""
    box = [None]
    try:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    except RuntimeError:  # it failed, and has said why
        return None
    return box[0]
