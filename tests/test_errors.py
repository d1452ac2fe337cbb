import errno

import pytest
import torch

from diffusers_helper.errors import (
    ImageError,
    NonFiniteError,
    PromptError,
    SettingsError,
    UserError,
    WeightsError,
    explain,
)

LOG = "/var/log/framepack.log"


@pytest.mark.parametrize(
    "kind", [UserError, SettingsError, PromptError, WeightsError, ImageError, NonFiniteError]
)
def test_a_users_error_speaks_for_itself(kind):
    assert explain(kind("Choose an image first."), LOG) == "Choose an image first."


MEMORY = torch.OutOfMemoryError("CUDA out of memory")
DISK = OSError(errno.ENOSPC, "No space left on device", "/out/a.mp4")
FORBIDDEN = PermissionError(errno.EACCES, "Permission denied", "/out/a.mp4")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MEMORY, "ran out of memory"),
        (MEMORY, "GPU Inference Preserved Memory"),
        (DISK, "The disk is full"),
        (DISK, "another output folder"),
        (FORBIDDEN, "/out/a.mp4"),
        (FORBIDDEN, "Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/in/a.png"), "/in/a.png"),
    ],
)
def test_what_the_user_can_act_on(error, told):
    sentence = explain(error, LOG)
    assert told in sentence
    assert LOG not in sentence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        ValueError("steps must be at least 1"),
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("without a number"),
        KeyboardInterrupt("x"),
    ],
)
def test_the_rest_names_its_kind_and_the_log(error):
    sentence = explain(error, LOG)
    assert type(error).__name__ in sentence
    assert str(error) in sentence
    assert LOG in sentence


@pytest.mark.parametrize("error", [MEMORY, DISK, FORBIDDEN, RuntimeError("x")])
def test_one_sentence(error):
    sentence = explain(error, LOG)
    assert "\n" not in sentence
    assert sentence.endswith(".")
