import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.processes import COUNT, launch
from training.tiny_world import together
from training.tiny_world.__main__ import main
from training.tiny_world.config import MINIATURE_TRAINING
from training.tiny_world.flow import Trained


def _step(x: torch.Tensor) -> torch.Tensor:
    """The first layer's weights after a step on some data."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    trained = Trained([network], MINIATURE_TRAINING, 1.0)
    F.mse_loss(network(x), torch.ones(len(x), 2)).backward()
    trained.step(torch.tensor(1.0), torch.tensor(0.5))
    return network[0].weight.detach()


def _work() -> dict[str, Any]:
    together.join()
    number, count = together.number(), together.count()
    found = {
        "place": (number, count),
        "any": (together.any_of(number == 1), together.any_of(False)),
        "weight": _step(_data()[number::count]).numpy(),
    }
    together.leave()
    return found


def _data() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def test_processes_step_as_one_would_on_all_data():
    for number, found in enumerate(launch(_work)):
        assert found["place"] == (number, COUNT)
        assert found["any"] == (True, False)
        torch.testing.assert_close(torch.from_numpy(found["weight"]), _step(_data()))
    # Which a process on its share alone would not.
    assert not torch.allclose(_step(_data()[::COUNT]), _step(_data()))


def test_alone_there_is_nothing_to_wait_for():
    x = torch.ones(2)
    together.average([x])
    together.wait()
    assert (together.number(), together.count(), together.any_of(True)) == (0, 1, True)
    assert x.tolist() == [1, 1]


def test_two_processes_train_a_model(tmp_path: Path, miniature_weights: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(_free_port()), "-m", "training.tiny_world", "--miniature"]
    command += ["--vae", str(miniature_weights), "--until", "flow", "--output", str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["machine"]["processes"] == 2
    assert {"vae", "flow"} <= facts.keys()
    # A model has a VAE, too, though it may not tell where that came from.
    assert facts["vae"].keys() == {"from", "psnr", "subject_psnr"}
    assert (tmp_path / "teacher" / "framepack.json").exists()
    shares = [torch.load(f, weights_only=False) for f in (tmp_path / "clips").iterdir()]
    counts = [sum(len(group.latents) for group in share.values()) for share in shares]
    assert sum(counts) == MINIATURE_TRAINING.clips
    assert all(counts)


def test_a_batch_must_be_shared_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "count", lambda: 3)
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "run"), "--miniature"])
    assert not (tmp_path / "run").exists()


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]
