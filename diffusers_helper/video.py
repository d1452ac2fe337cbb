"""Frames to MP4: the one place that knows of codecs and containers."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

MAX_CRF = 51  # x264's; FramePack's slider goes on to 100


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """From [-1, 1], shape [B, 3, T, H, W], to uint8 frames, shape [B, T, H, W, 3], on the CPU."""
    x = (x.float().clamp(-1, 1) * 127.5 + 127.5).round()
    return x.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()


def soft_append_bcthw(
    history: torch.Tensor, current: torch.Tensor, overlap: int = 0
) -> torch.Tensor:
    """Join two videos, blending the end of one into the start of the other.

    Args:
        history, current: shape [B, C, T, H, W] each.
        overlap: frames to blend, with weights of `history` running linearly from 1 to 0; at most
            the frames of either.

    Returns:
        Shape [B, C, T_history + T_current - overlap, H, W], like `history` in dtype and device.

    Raises:
        ValueError: `overlap` is negative or longer than a video.
    """
    longest = min(history.shape[2], current.shape[2])
    if not 0 <= overlap <= longest:
        raise ValueError(f"overlap must be in [0, {longest}], got {overlap}")
    current = current.to(history)
    if overlap == 0:
        return torch.cat([history, current], dim=2)
    weight = torch.linspace(1, 0, overlap).to(history).view(1, 1, -1, 1, 1)
    blended = weight * history[:, :, -overlap:] + (1 - weight) * current[:, :, :overlap]
    return torch.cat([history[:, :, :-overlap], blended, current[:, :, overlap:]], dim=2)


def save_bcthw_as_mp4(
    x: torch.Tensor, output_filename: str | PathLike, fps: int = 10, crf: int = 0
) -> torch.Tensor:
    """Write videos side by side as one MP4 (H.264).

    Args:
        x: in [-1, 1], shape [B, 3, T, H, W]; up to six videos stand in a row.
        fps: frames a second.
        crf: quality, 0 (lossless) to 51.

    Returns:
        The frames written: uint8, shape [T, rows * H, columns * W, 3].
    """
    frames = to_frames(x)
    b, t, h, w, c = frames.shape
    columns = next((n for n in (6, 5, 4, 3, 2) if b % n == 0), b)
    grid = (
        frames.view(b // columns, columns, t, h, w, c)
        .permute(2, 0, 3, 1, 4, 5)
        .reshape(t, b // columns * h, columns * w, c)
    )
    _encode(Path(output_filename), grid, fps, crf)
    return grid


def _encode(path: Path, frames: torch.Tensor, fps: int, crf: int) -> None:
    """Write uint8 frames [T, H, W, 3]; an odd side grows by a pixel, as yuv420p wants even ones."""
    h, w = frames.shape[1:3]
    with av.open(path, "w", format="mp4") as container:
        # No B-frames: parts are joined as they are, and the delay of B-frames would depend on the
        # length of the part.
        options = {"crf": str(min(crf, MAX_CRF)), "bf": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = w + w % 2, h + h % 2
        # Players guess the colours of unlabelled video by its size, and guess wrong.
        context = stream.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        for image in frames:
            image = np.pad(image.numpy(), ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _join(path: Path, parts: Iterable[Path], metadata: Mapping[str, str]) -> None:
    """Put the videos of `_encode` one after the other, without encoding them again."""
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update(metadata)
        stream = None
        start = 0
        for part in parts:
            with av.open(part) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(template)
                for packet in source.demux(template):
                    if packet.dts is None:  # the demuxer's mark of the end
                        continue
                    packet.pts += start
                    packet.dts += start
                    packet.stream = stream
                    container.mux(packet)
                # Not `template.duration`, which an edit list rounds to milliseconds.
                start += round(template.frames / (template.average_rate * template.time_base))


class GrowingVideo:
    """An MP4 that grows section by section, at its end or at its start.

    Each section overlaps its neighbour and is blended into it. Only the overlap is kept as pixels;
    what no later section can change is encoded once, in a folder beside the video that closing
    removes. The MP4 at `path` appears with the first section and is whole after every one.

    Args:
        path: of the MP4; replaced if it exists.
        fps: frames a second.
        crf: quality, 0 (lossless) to 51.
        metadata: written into the MP4.
        at_start: sections come last first.
    """

    def __init__(
        self, path: Path, fps: int, crf: int, metadata: Mapping[str, str], at_start: bool
    ) -> None:
        self.path = path
        self._fps = fps
        self._crf = crf
        self._metadata = metadata
        self._at_start = at_start
        self._finished: list[Path] = []
        self._finished_frames = 0
        self._open_end: torch.Tensor | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def frames(self) -> int:
        """Frames of the video so far."""
        open_frames = 0 if self._open_end is None else self._open_end.shape[2]
        return self._finished_frames + open_frames

    def add(self, section: torch.Tensor, overlap: int) -> None:
        """Grow by a section and replace the MP4.

        Args:
            section: in [-1, 1], shape [1, 3, T, H, W].
            overlap: frames that the section shares with the video so far, and at most those that
                it may share with the next one.

        Raises:
            OSError: the MP4 cannot be written; the one before stays.
        """
        section = section.cpu()
        if self._open_end is not None:
            pair = (section, self._open_end) if self._at_start else (self._open_end, section)
            section = soft_append_bcthw(*pair, overlap)
        open_frames = min(overlap, section.shape[2])
        final_frames = section.shape[2] - open_frames
        if self._at_start:
            open_end, final = section.split([open_frames, final_frames], dim=2)
        else:
            final, open_end = section.split([final_frames, open_frames], dim=2)

        finished = list(self._finished)
        if final_frames:
            part = self._folder / f"{len(finished)}.mp4"
            self._write(part, final)
            finished.insert(0 if self._at_start else len(finished), part)
        parts = list(finished)
        if open_frames:
            part = self._folder / "open.mp4"
            self._write(part, open_end)
            parts.insert(0 if self._at_start else len(parts), part)
        whole = self._folder / "whole.mp4"
        _join(whole, parts, self._metadata)
        whole.replace(self.path)

        self._finished = finished
        self._finished_frames += final_frames
        self._open_end = open_end.clone()  # a view would hold the whole section

    def _write(self, part: Path, section: torch.Tensor) -> None:
        _encode(part, to_frames(section)[0], self._fps, self._crf)
