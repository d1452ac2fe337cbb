"""Steps of training at the GPU's pace instead of Python's."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


class Recorded:
    """A step that the GPU repeats from a recording, one for each set of shapes.

    A small network's step is thousands of short kernels, and starting them takes longer than
    running them.

    Args:
        step: of tensors on `device` by name, and of what is fixed, to losses by name. It must not
            wait for the GPU, and what it changes must stay where it is in memory.
        device: on a CPU, steps just run.
    """

    def __init__(self, step: Callable[..., Tensors], device: torch.device) -> None:
        self._step = step
        self._on_gpu = device.type == "cuda"
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensors, Tensors]] = {}
        if self._on_gpu:
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Tensors, **fixed: Any) -> Tensors:
        """Take a step; the first of its shapes runs as it is, the second is recorded."""
        if not self._on_gpu:
            return self._step(inputs, **fixed)
        shapes = (*((n, x.shape) for n, x in inputs.items()), *fixed.items())
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = self._run(shapes, inputs, fixed)
        for x in inputs.values():
            x.record_stream(self._stream)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def _run(self, shapes: Hashable, inputs: Tensors, fixed: dict[str, Any]) -> Tensors:
        self._seen[shapes] += 1
        if self._seen[shapes] == 1:
            return self._step(inputs, **fixed)
        if self._seen[shapes] == 2:
            graph = torch.cuda.CUDAGraph()
            kept = {name: x.clone() for name, x in inputs.items()}
            # Other threads go on allocating memory meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            losses = self._step(kept, **fixed)
            graph.capture_end()
            self._recordings[shapes] = graph, kept, losses
        graph, kept, losses = self._recordings[shapes]
        for name, x in inputs.items():
            kept[name].copy_(x)
        graph.replay()
        return {name: loss.clone() for name, loss in losses.items()}


def made_ahead(make: Callable[[int], Any], steps: range, device: torch.device) -> Iterator[Any]:
    """What each step needs, made while the step before it runs.

    Args:
        make: of the number of a step.
        steps: which.
        device: that the steps run on.
    """
    stream = torch.cuda.Stream() if device.type == "cuda" else None

    def made(step: int) -> Any:
        with torch.cuda.stream(stream):
            things = make(step)
        if stream is not None:
            stream.synchronize()
        return things

    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(made, step) for step in steps[:1])
        for step in steps:
            things = coming.popleft().result()
            if step + 1 in steps:
                coming.append(thread.submit(made, step + 1))
            yield things
