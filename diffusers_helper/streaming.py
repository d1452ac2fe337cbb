"""Networks larger than their share of the GPU: weights rest in host memory, blocks take turns.

The blocks of a network run one after another, again and again. Some stay on the GPU, as many as
there is room for; the others are copied, each while earlier ones compute, into one of two slots.
"""

import logging
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_ALIGNMENT = 256
"""Bytes, as of CUDA's own allocations: kernels compiled for aligned weights take these too."""
_CAPS = 8
"""Shares of the link that are tried, for each block: how finely the room is used."""
_PINNING_THREADS = 4
_PORTABLE = 1
"""CUDA's flag: memory is pinned for every context."""


@dataclass(frozen=True)
class Plan:
    """Which blocks of a network, by their index, stay on the GPU and which are streamed."""

    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    slot: int
    """Bytes of a slot, which are of the largest block that is streamed."""
    size: int
    """Bytes of GPU memory: of two slots, in which one block computes while the next arrives, and
    of the blocks that stay."""


def plan(sizes: Sequence[int], room: int) -> Plan:
    """Keep as many bytes resident as there is room for, and spread the rest evenly over time.

    Blocks of all kinds compute for about as long. So the bytes copied for each get a cap, the least
    that there is room for, and the link is asked for the same rate all along: where blocks are
    larger, more of them are resident.

    Args:
        sizes: bytes of each block, in the order they run.
        room: bytes of GPU memory for all. If it is less than two slots take, these are taken
            nevertheless.
    """
    steps, largest = _CAPS * len(sizes), max(sizes, default=0)
    for step in range(steps + 1):
        streamed = _streamed(sizes, cap=-(-largest * step // max(steps, 1)))
        resident = tuple(sorted(set(range(len(sizes))) - set(streamed)))
        slot = max((sizes[i] for i in streamed), default=0)
        size = 2 * slot + sum(sizes[i] for i in resident)
        if size <= room:
            break
    return Plan(resident, tuple(streamed), slot, size)


def _streamed(sizes: Sequence[int], cap: int) -> list[int]:
    streamed, allowed = [], 0
    for i, size in enumerate(sizes):
        allowed += cap
        if allowed >= size:
            streamed.append(i)
            # What a small block leaves of its share is of no use to a large one much later.
            allowed = min(allowed - size, cap)
    return streamed


class _Weights:
    """Tensors that travel together: their home in host memory, and where they are at present.

    Whoever reads a tensor finds its values, wherever that is.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self._home = [t.data for t in tensors]
        self._flat: torch.Tensor | None = None
        self._at_home = True
        self._starts, self.size = [], 0
        for tensor in tensors:
            self._starts.append(self.size)
            self.size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        # Kernels care for the order in memory (channels last), which `empty_like` keeps.
        self._strides = [torch.empty_like(t, device="meta").stride() for t in tensors]

    def pin(self, link: "Link") -> None:
        """Move home, once, to one piece of memory that the GPU copies from by itself."""
        if self._flat is not None or not self.size:
            return
        flat = _pages(self.size)
        home = self.views(flat)
        for new, old in zip(home, self._home, strict=True):
            new.copy_(old)
        weakref.finalize(self, link.pin(flat)).atexit = False
        self._home, self._flat = home, flat
        if self._at_home:  # and with the last of its tensors, the former home goes
            self.rest()

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The tensors in `flat`, uint8, shape [size]."""
        return [
            flat[start : start + t.nbytes].view(t.dtype).as_strided(t.shape, stride)
            for start, stride, t in zip(self._starts, self._strides, self.tensors, strict=True)
        ]

    def copy_to(self, flat: torch.Tensor) -> None:
        if self._flat is not None:
            flat.copy_(self._flat, non_blocking=True)
            return
        for view, home in zip(self.views(flat), self._home, strict=True):
            view.copy_(home)

    def stand(self, views: list[torch.Tensor]) -> None:
        """Have the tensors be `views`."""
        self._at_home = views is self._home
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view

    def rest(self) -> None:
        self.stand(self._home)

    def move_to(self, device: torch.device) -> None:
        """Stay there until `rest`."""
        if self._at_home:
            flat = torch.empty(self.size, dtype=torch.uint8, device=device)
            self.copy_to(flat)
            self.stand(self.views(flat))


def _pages(size: int) -> torch.Tensor:
    """Host memory straight from the system, uint8, shape [size]; it goes back there at once."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # far fewer pages to pin
    return torch.frombuffer(pages, dtype=torch.uint8)


class Link:
    """The way from host memory to a GPU, used beside its computing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pin(self, memory: torch.Tensor) -> Callable[[], None]:
        """Let the GPU copy from `memory` by itself; what undoes it. Refused, copies are slower."""
        runtime, address = torch.cuda.cudart(), memory.data_ptr()
        error = int(runtime.cudaHostRegister(address, memory.nbytes, _PORTABLE))
        if error:
            logger.warning("Host memory cannot be pinned (CUDA error %d): slower.", error)
            return lambda: None
        return lambda: runtime.cudaHostUnregister(address)

    def copy(self, weights: _Weights, flat: torch.Tensor) -> Any:
        """Copy once all that was asked of the GPU so far is done; what to wait for."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            weights.copy_to(flat)
        return self._stream.record_event()

    def wait(self, copied: Any) -> None:
        """What is asked of the GPU from now on comes after that copy."""
        torch.cuda.current_stream(self._device).wait_event(copied)

    def finish(self) -> None:
        """What is asked of the GPU from now on comes after all copies."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


@dataclass(frozen=True)
class _Arrival:
    """A block in a slot, or on its way there."""

    block: int
    slot: int
    start: int
    end: int
    place: torch.Tensor
    """These bytes of the slot."""
    copied: Any
    """What to wait for."""


class Streamed:
    """A network that runs on a GPU and takes no more of its memory than it is given.

    Between their calls, streamed blocks are in host memory, whole and true; so is all else after
    `release`. For inference: a change of weights in place would be lost.

    Args:
        module: in host memory.
        blocks: its parts that run one after another, in this order, in every call.
        device: the GPU.
        link: to it.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        link: Link | None = None,
    ) -> None:
        self._module, self._modules, self._device = module, blocks, device
        self._link = link or Link(device)
        self._plan: Plan | None = None
        self._next: dict[int, int] = {}
        """Of each streamed block, the one after it around the circle."""
        self._ahead: deque[_Arrival] = deque()
        """The streamed blocks that run next, as far as there is place for them."""
        self._collect()
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._enter, i))
            block.register_forward_hook(partial(self._leave, i), always_call=True)

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return self._rest.size + sum(block.size for block in self._blocks)

    @property
    def held(self) -> int:
        """Bytes of GPU memory taken at present."""
        return 0 if self._plan is None else self._rest.size + self._plan.size

    @property
    def streamed(self) -> int:
        """Bytes that are copied for every call at present."""
        return 0 if self._plan is None else sum(self._blocks[i].size for i in self._plan.streamed)

    @torch.inference_mode(False)
    def arrange(self, room: int) -> None:
        """Get ready to run in `room` bytes of GPU memory, or in the least that is possible.

        What is there already stays as long as it is not too much and little could be added.
        Parameters that were added since, as by PEFT, are taken in.
        """
        if self._tensors() != self._known:
            self.release()
            self._collect()
        sizes = [block.size for block in self._blocks]
        room -= self._rest.size
        new = plan(sizes, room)
        if self._plan and self._plan.size <= room:
            saved = self.streamed - sum(sizes[i] for i in new.streamed)
            if saved < max(sizes, default=1):
                return
        self._empty_slots()
        for i in new.streamed:
            self._blocks[i].rest()
        if new.streamed:
            with ThreadPoolExecutor(_PINNING_THREADS) as pool:
                pin = partial(_Weights.pin, link=self._link)
                list(pool.map(pin, [self._rest, *(self._blocks[i] for i in new.streamed)]))
        for weights in (self._rest, *(self._blocks[i] for i in new.resident)):
            weights.move_to(self._device)
        self._slots = torch.empty((2, new.slot), dtype=torch.uint8, device=self._device)
        self._next = dict(pairwise((*new.streamed, *new.streamed[:1])))
        self._plan = new

    @torch.inference_mode(False)
    def release(self) -> None:
        """Leave the GPU."""
        self._empty_slots()
        for weights in (self._rest, *self._blocks):
            weights.rest()
        self._plan, self._next = None, {}

    def _tensors(self) -> list[list[int]]:
        return [[id(t) for t in _tensors(m)] for m in (self._module, *self._modules)]

    def _collect(self) -> None:
        self._known = self._tensors()
        self._blocks = [_Weights(_tensors(block)) for block in self._modules]
        inside = {id(t) for block in self._blocks for t in block.tensors}
        self._rest = _Weights([t for t in _tensors(self._module) if id(t) not in inside])

    def _empty_slots(self) -> None:
        self._link.finish()  # what they occupy may be given away now
        self._ahead.clear()
        self._slots = None

    @torch.compiler.disable
    def _enter(self, i: int, *_: Any) -> None:
        if i not in self._next:
            return
        if not self._ahead or self._ahead[0].block != i:  # the first call, or one was cut off
            self._ahead.clear()
            self._fetch(i)
        arrival = self._ahead[0]
        self._link.wait(arrival.copied)
        self._blocks[i].stand(self._blocks[i].views(arrival.place))

    @torch.compiler.disable
    def _leave(self, i: int, *_: Any) -> None:
        if i not in self._next:
            return
        self._blocks[i].rest()
        last = self._ahead[-1].block
        self._ahead.popleft()
        self._fetch(self._next[last])

    def _fetch(self, i: int) -> None:
        """Have block `i` copied, and those that follow, as far as there is place."""
        while (found := self._find_place(self._blocks[i].size)) is not None:
            slot, start, end = found
            place = self._slots[slot, start:end]
            copied = self._link.copy(self._blocks[i], place)
            self._ahead.append(_Arrival(i, slot, start, end, place, copied))
            i = self._next[i]

    def _find_place(self, size: int) -> tuple[int, int, int] | None:
        """Slot, start and end of `size` bytes that no block ahead is in; None if there is none."""
        slot, start = 0, 0
        if self._ahead:
            last = self._ahead[-1]
            if last.end + size <= self._plan.slot:
                slot, start = last.slot, last.end
            else:
                slot = 1 - last.slot
        end = start + size
        taken = (a for a in self._ahead if a.slot == slot)
        return None if any(a.start < end and start < a.end for a in taken) else (slot, start, end)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
