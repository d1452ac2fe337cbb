import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.tiny_world import together
from training.tiny_world.__main__ import main
from training.tiny_world.config import MINIATURE_TRAINING
from training.tiny_world.flow import Trained

PROCESSES = 2


def _step(x: torch.Tensor) -> torch.Tensor:
    """The first layer's weights after a step on some data."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    trained = Trained([network], MINIATURE_TRAINING, 1.0)
    F.mse_loss(network(x), torch.ones(len(x), 2)).backward()
    trained.step(torch.tensor(1.0), torch.tensor(0.5))
    return network[0].weight.detach()


def _process(number: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": (folder / "port").read_text(),
    }
    together.join()
    share = _data()[number::PROCESSES]
    found = {
        "place": (together.number(), together.count()),
        "any": (together.any_of(number == 1), together.any_of(False)),
        "weight": _step(share),
    }
    torch.save(found, folder / f"{number}.pt")
    together.leave()


def _data() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def test_processes_step_as_one_would_on_all_data(tmp_path: Path):
    (tmp_path / "port").write_text(str(_free_port()))
    torch.multiprocessing.spawn(_process, (tmp_path,), PROCESSES)
    for number in range(PROCESSES):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found["place"] == (number, PROCESSES)
        assert found["any"] == (True, False)
        torch.testing.assert_close(found["weight"], _step(_data()))
    # Which a process on its share alone would not.
    assert not torch.allclose(_step(_data()[::PROCESSES]), _step(_data()))


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
    assert facts["machine"]["processes"] == PROCESSES
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
