import torch

from evaluation.videos import read_video, write_video


def test_frames_come_back_in_their_colours(tmp_path):
    colours = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250], [166, 140, 51]])
    row = colours.T.repeat_interleave(16, dim=1).to(torch.uint8)
    video = row[:, None, None, :].expand(3, 5, 64, 64)
    write_video(video, tmp_path / "some" / "a.mp4")
    back = read_video(tmp_path / "some" / "a.mp4")
    assert back.dtype == torch.uint8 and back.shape == video.shape
    middles = (slice(None), 2, 32, slice(8, None, 16))
    torch.testing.assert_close(back[middles].float(), video[middles].float(), atol=5, rtol=0)
