import errno
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_helper import video
from diffusers_helper.video import (
    GrowingVideo,
    save_bcthw_as_mp4,
    soft_append_bcthw,
    to_frames,
)
from tests.conftest import read_video

FPS = 30
FORWARD, INVERTED = False, True
# Frames of each section and its overlap with the next, as FramePack decodes them: window 1, 2, 3.
GROWTHS = [
    (FORWARD, [5, 5, 5, 5], 1),
    (FORWARD, [9, 13, 13], 5),
    (FORWARD, [13, 21], 9),
    (INVERTED, [1, 5, 5, 9], 1),
    (INVERTED, [5, 13, 17], 5),
    (INVERTED, [9, 25], 9),
    (FORWARD, [6, 6, 9], 0),
    (INVERTED, [6, 6, 9], 0),
    (INVERTED, [7], 3),
]
BT709 = (1, 1, 1, 1)


def moving(frames: int, seed: int = 0, height: int = 32, width: int = 48) -> torch.Tensor:
    """Texture whose brightness rises through the clip, so that frames are told apart."""
    generator = torch.Generator().manual_seed(seed)
    texture = torch.rand(1, 3, 1, height, width, generator=generator) - 0.5
    return (texture + torch.linspace(-1, 1, frames).view(1, 1, -1, 1, 1)).clamp(-1, 1)


def plain(r: float, g: float, b: float, frames: int = 3, size: tuple = (32, 48)) -> torch.Tensor:
    colour = torch.tensor([r, g, b]).view(1, 3, 1, 1, 1) / 127.5 - 1
    return colour.expand(1, 3, frames, *size)


def growing(path: Path, at_start: bool = FORWARD, crf: int = 0, **metadata: str) -> GrowingVideo:
    return GrowingVideo(path, FPS, crf, metadata, at_start)


def test_to_frames_rounds_and_clamps():
    x = torch.tensor([-2.0, -1.0, 0.0, 3 / 255, 1.0, 2.0]).view(1, 1, 6, 1, 1)
    frames = to_frames(x.expand(1, 3, 6, 1, 1))
    assert frames.shape == (1, 6, 1, 1, 3)
    assert frames[0, :, 0, 0, 0].tolist() == [0, 0, 128, 129, 255, 255]


@pytest.mark.parametrize(("at_start", "lengths", "overlap"), GROWTHS)
def test_growing_equals_blending_and_encoding_in_one_piece(tmp_path, at_start, lengths, overlap):
    path = tmp_path / "a.mp4"
    whole = None
    with growing(path, at_start) as grown:
        for seed, length in enumerate(lengths):
            section = moving(length, seed)
            grown.add(section, overlap)
            if whole is None:
                whole = section
            elif at_start:
                whole = soft_append_bcthw(section, whole, overlap)
            else:
                whole = soft_append_bcthw(whole, section, overlap)
            save_bcthw_as_mp4(whole, tmp_path / "whole.mp4", FPS, crf=0)
            expected = read_video(tmp_path / "whole.mp4")
            got = read_video(path)
            assert len(got.yuv) == grown.frames == whole.shape[2]
            np.testing.assert_array_equal(got.yuv, expected.yuv)
            assert got.times == expected.times


@pytest.mark.parametrize(
    ("at_start", "first", "later", "overlap", "crf"),
    [
        (FORWARD, 5, 5, 1, 0),
        (INVERTED, 1, 5, 1, 0),
        (FORWARD, 5, 5, 1, 16),
        (INVERTED, 1, 5, 1, 16),
        (FORWARD, 9, 13, 5, 16),
        (INVERTED, 5, 13, 5, 16),
        (FORWARD, 7, 7, 2, 16),
        (FORWARD, 8, 8, 3, 16),
        (INVERTED, 9, 25, 9, 16),
    ],
)
def test_frames_are_evenly_spaced_over_many_sections(
    tmp_path, at_start, first, later, overlap, crf
):
    path = tmp_path / "a.mp4"
    with growing(path, at_start, crf) as grown:
        for i in range(8):
            grown.add(moving(later if i else first, i, height=16, width=32), overlap)
    decoded = read_video(path)
    total = first + 7 * (later - overlap)
    assert decoded.times == [Fraction(i, FPS) for i in range(total)]
    assert decoded.fps == FPS


def test_frames_in_order_survive_b_frames(tmp_path):
    path = tmp_path / "a.mp4"
    with growing(path, crf=16) as grown:
        for i in range(5):
            level = torch.linspace(-1 + 0.4 * i, -1 + 0.4 * (i + 1), 11)[:10]
            grown.add(level.view(1, 1, 10, 1, 1).expand(1, 3, 10, 32, 48), 0)
    y, _, _ = read_video(path).planes()
    brightness = y.mean(axis=(1, 2))
    assert (np.diff(brightness) > 2).all()  # 219 levels over 50 frames are 4.4 a frame


def test_the_comment_is_read_back(tmp_path):
    comment = '{"prompt": "雨の街 \\"quoted\\"; a=b", "seed": 1}' + " " * 1000 + "end"
    with growing(tmp_path / "a.mp4", comment=comment) as grown:
        for i in range(2):
            grown.add(moving(5, i), 1)
            assert read_video(grown.path).comment == comment


@pytest.mark.parametrize("height", [32, 33])
@pytest.mark.parametrize("width", [48, 47])
def test_an_odd_side_grows_by_its_last_row_or_column(tmp_path, height, width):
    path = tmp_path / "a.mp4"
    with growing(path) as grown:
        grown.add(moving(4, height=height, width=width), 2)
    decoded = read_video(path)
    assert decoded.size == (height + height % 2, width + width % 2)
    y, _, _ = decoded.planes()
    if height % 2:
        np.testing.assert_array_equal(y[:, -1], y[:, -2])
    if width % 2:
        np.testing.assert_array_equal(y[:, :, -1], y[:, :, -2])


def test_crf_trades_size_for_quality(tmp_path):
    clip = moving(8, height=64, width=96)
    sizes, planes = {}, {}
    for crf in (0, 16, 40, 51, 100):
        path = tmp_path / f"{crf}.mp4"
        with growing(path, crf=crf) as grown:
            grown.add(clip, 2)
        sizes[crf] = path.stat().st_size
        planes[crf] = read_video(path).yuv
    assert sizes[0] > 1.5 * sizes[16] > 3 * sizes[100]
    np.testing.assert_array_equal(planes[100], planes[51])  # x264's last
    assert not np.array_equal(planes[100], planes[40])


@pytest.mark.parametrize("crf", [0, 16])
@pytest.mark.parametrize(
    "rgb",
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255), (200, 120, 40)],
)
def test_colours_are_bt709_and_say_so(tmp_path, rgb, crf):
    path = tmp_path / "a.mp4"
    with growing(path, crf=crf) as grown:
        grown.add(plain(*rgb), 1)
    decoded = read_video(path)
    assert decoded.colours == BT709
    y, u, v = (
        (plane[0].astype(float) - low)
        for plane, low in zip(decoded.planes(), (16, 128, 128), strict=True)
    )
    y, u, v = y.mean() / 219, u.mean() / 224, v.mean() / 224
    r = y + 2 * (1 - 0.2126) * v
    b = y + 2 * (1 - 0.0722) * u
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    np.testing.assert_allclose(255 * np.array([r, g, b]), rgb, atol=4)


@pytest.mark.parametrize("crf", [0, 16])
def test_the_sections_keep_their_colours(tmp_path, crf):
    path = tmp_path / "a.mp4"
    with growing(path, INVERTED, crf) as grown:
        grown.add(plain(0, 0, 255, 4), 0)
        grown.add(plain(255, 0, 0, 4), 0)
    _, u, v = read_video(path).planes()
    assert (v[:4] > 230).all()
    assert (u[4:] > 230).all()


def test_what_is_left_is_the_mp4_alone(tmp_path):
    path = tmp_path / "new" / "folders" / "a.mp4"
    with growing(path) as grown:
        grown.add(moving(5), 1)
        assert len(list(path.parent.iterdir())) == 2
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_after_an_exception(tmp_path):
    with pytest.raises(KeyError), growing(tmp_path / "a.mp4") as grown:
        grown.add(moving(5), 1)
        raise KeyError
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_nothing_is_left_where_nothing_was_added(tmp_path):
    with growing(tmp_path / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def _folder_removed(grown: GrowingVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = (p for p in grown.path.parent.iterdir() if p.is_dir())
    shutil.rmtree(folder)


def _fails_after(name: str) -> Callable[[GrowingVideo, pytest.MonkeyPatch], None]:
    def prepare(grown: GrowingVideo, monkeypatch: pytest.MonkeyPatch) -> None:
        function = getattr(video, name)

        def disk_full(*args):
            function(*args)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(video, name, disk_full)

    return prepare


@pytest.mark.parametrize("at_start", [FORWARD, INVERTED])
@pytest.mark.parametrize(
    "prepare",
    [_folder_removed, _fails_after("_join"), _fails_after("_encode")],
    ids=["folder removed", "disk full joining", "disk full encoding"],
)
def test_a_failing_write_leaves_the_former_mp4(tmp_path, monkeypatch, at_start, prepare):
    path = tmp_path / "a.mp4"
    with growing(path, at_start) as grown:
        grown.add(moving(9), 3)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            prepare(grown, patch)
            with pytest.raises(OSError):
                grown.add(moving(9, seed=1), 3)
        assert path.read_bytes() == before
    assert len(read_video(path).yuv) == 9
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at_start", [FORWARD, INVERTED])
def test_no_more_pixels_are_held_than_the_overlap(tmp_path, at_start):
    overlap, height, width = 3, 32, 48
    with growing(tmp_path / "a.mp4", at_start) as grown:
        for i in range(3):
            grown.add(moving(40, i, height, width), overlap)
            tensors = [t for t in vars(grown).values() if isinstance(t, torch.Tensor)]
            held = sum(t.untyped_storage().nbytes() for t in tensors)
            assert held == 3 * overlap * height * width * 4


@pytest.mark.parametrize(
    ("batch", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 1, 5), (7, 1, 7), (8, 2, 4), (9, 3, 3)]
)
def test_videos_stand_in_a_row(tmp_path, batch, rows, columns):
    clips = torch.cat([plain(20 * i, 20 * i, 20 * i, 2, (16, 16)) for i in range(batch)])
    grid = save_bcthw_as_mp4(clips, tmp_path / "a.mp4", fps=12, crf=0)
    assert grid.dtype == torch.uint8
    tiles = 20 * np.arange(batch).reshape(rows, columns)
    expected = np.kron(tiles, np.ones((16, 16)))
    np.testing.assert_array_equal(
        grid, np.broadcast_to(expected[None, ..., None], (2, *expected.shape, 3))
    )
    decoded = read_video(tmp_path / "a.mp4")
    assert decoded.fps == 12
    y, _, _ = decoded.planes()
    np.testing.assert_allclose(y[0], 16 + expected * 219 / 255, atol=1)


@pytest.mark.parametrize("as_type", [str, Path])
def test_saving_takes_any_kind_of_path(tmp_path, as_type):
    save_bcthw_as_mp4(moving(3), as_type(tmp_path / "a.mp4"), fps=FPS, crf=16)
    assert len(read_video(tmp_path / "a.mp4").yuv) == 3
