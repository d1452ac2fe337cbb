"""The fused decoder against diffusers', whose modules it takes."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from diffusers_helper.models import vae_decoder
from diffusers_helper.models.vae_decoder import FusedDecoder, doubled_weight, fuse_decoder, is_fused

CONFIG = {"block_out_channels": (8, 8, 12, 12), "layers_per_block": 1, "norm_num_groups": 4}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", params=[True, False], ids=["attention", "no attention"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLHunyuanVideo:
    with torch.random.fork_rng(), torch.device(DEVICE):
        torch.manual_seed(0)
        vae = AutoencoderKLHunyuanVideo(**CONFIG, mid_block_add_attention=request.param).eval()
        for module in vae.modules():
            if isinstance(module, nn.GroupNorm):  # new ones do nothing after the norm
                nn.init.normal_(module.weight, 1.0, 0.5)
                nn.init.normal_(module.bias, std=0.5)
    return vae


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 16, 3, 3, 2), (2, 16, 1, 2, 3), (1, 16, 2, 1, 2)])
def test_it_decodes_as_diffusers_does(vae, shape):
    """About as exactly. In TF32, cuDNN's default, both are a thousand times coarser."""
    pytest.importorskip("triton")
    z = randn(*shape)
    exact = copy.deepcopy(vae.decoder).double()(z.double())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours, theirs = FusedDecoder(vae.decoder)(z), vae.decoder(z)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert (ours - exact).norm() < 4 * (theirs - exact).norm()


def test_its_tensors_keep_their_names(vae):
    theirs, ours = vae.decoder.state_dict(), FusedDecoder(vae.decoder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is not None and ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("grows", [True, False], ids=["in time too", "in space"])
def test_a_doubled_picture_is_convolved_without_being_made(grows):
    """Away from the edges, where padding is another matter."""
    x, weight = randn(1, 2, 3, 4, 5).double(), randn(3, 2, 3, 3, 3, seed=1).double()
    big = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    if grows:  # the first frame stays single
        big = big.repeat_interleave(2, 2)[:, :, 1:]
    expected = F.conv3d(big, weight)
    small = F.conv3d(x, doubled_weight(weight, grows)).unflatten(1, (-1, 2, 2, 3))
    for row in range(expected.shape[3]):
        for column in range(expected.shape[4]):
            for frame in range(expected.shape[2]):
                # Where the middle of the kernel is, and the last of its frames.
                y, x_, t = row + 1, column + 1, frame + 2
                late = (t - 1) % 2 if grows else 0
                place = (t - 1) // 2 if grows else frame
                torch.testing.assert_close(
                    small[:, late, y % 2, x_ % 2, :, place, (y + 1) // 2 - 1, (x_ + 1) // 2 - 1],
                    expected[:, :, frame, row, column],
                    atol=1e-5,
                    rtol=1e-5,
                )


def test_a_small_decoder_stays(vae):
    holder = SimpleNamespace(decoder=vae.decoder)
    fuse_decoder(holder)
    assert not is_fused(holder)


@pytest.mark.parametrize("there", [True, False])
def test_a_large_decoder_is_fused_where_triton_is(vae, monkeypatch, caplog, there):
    monkeypatch.setattr(vae_decoder, "_FEW", 8)
    monkeypatch.setattr(vae_decoder, "kernels", object() if there else None)
    holder = SimpleNamespace(decoder=vae.decoder)
    assert not is_fused(holder)
    fuse_decoder(holder)
    assert is_fused(holder) is there
    assert ("Triton" in caplog.text) is not there
