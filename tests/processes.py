"""Work in processes that know each other, as torchrun starts them."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

COUNT = 2
_IMPORTED = ("diffusers_helper.__main__", "training.tiny_world.__main__")
"""Once, by the server that all processes are forks of: it takes longer than what they do."""


def launch(work: Callable, *arguments: Any) -> list[Any]:
    """What `work` returns in each of COUNT processes.

    Raises:
        ChildFailedError: one of them ended otherwise, upon which the others were ended.
    """
    multiprocessing.set_forkserver_preload(list(_IMPORTED))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=COUNT,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="forkserver",
        max_restarts=0,
    )
    results = elastic_launch(config, work)(*arguments)
    return [results[rank] for rank in range(COUNT)]
