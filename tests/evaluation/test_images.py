import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_helper.errors import ImageError, NonFiniteError, UserError
from diffusers_helper.gradio import page
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from evaluation import images
from evaluation.images import EXAMPLES, Images, image_clips, read_cases
from tests.evaluation.conftest import WINDOW


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (160, 96), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_examples_are_the_pages():
    source = Path(page.__file__).read_text()
    assert all(
        image.is_file() and f'("{image.name}", "{prompt}")' in source
        for _, image, prompt in EXAMPLES
    )
    clips = image_clips(EXAMPLES, seeds=2)
    assert len({clip.id for clip in clips}) == 6 and len({clip.scene for clip in clips}) == 3


def test_cases_are_read(picture):
    file = picture.with_name("cases.json")
    entry = {"case": "Moves", "image": "a.png", "prompt": "goes\n up"}
    file.write_text(json.dumps([entry, entry | {"prompt": "goes down"}]))
    first, second = image_clips(read_cases(file), seeds=1)
    assert (first.prompt, first.source, first.case) == ("goes up", picture, "Moves")
    assert first.id != second.id and first.id.startswith("moves-")


@pytest.mark.parametrize("content", ["[", "3", '["a"]', '[{"case": "x", "image": "a.png"}]'])
def test_what_is_wrong_is_said(picture, content):
    file = picture.with_name("cases.json")
    file.write_text(content)
    with pytest.raises(UserError, match=r"must be a JSON list .*cases\.json"):
        read_cases(file)


def test_missing_image(tmp_path):
    file = tmp_path / "cases.json"
    file.write_text('[{"case": "x", "image": "no.png", "prompt": ""}]')
    with pytest.raises(ImageError, match=r"no\.png"):
        read_cases(file)


def test_a_video_is_made_as_the_page_makes_it(miniature, picture):
    clips = image_clips([("x", picture, "a ball")], seeds=1)
    studio = Images(miniature, SectionOrder.INVERTED)
    assert studio.size(clips[0]) == (96, 160)
    settings = GenerationSettings(
        total_second_length=1, latent_window_size=WINDOW, steps=1, use_teacache=False, mp4_crf=0
    )
    videos = studio.make(clips, settings, noise=5)
    assert videos.dtype == torch.uint8 and videos.shape == (1, 3, 25, 96, 160)
    assert studio.truth(clips, videos, [], [[]]) == [{}] and studio.subjects(clips) is None


def test_a_model_that_fails_gives_no_video(miniature, picture, monkeypatch):
    def fails(*args):
        raise NonFiniteError("NaN")
        yield

    monkeypatch.setattr(images, "generate", fails)
    clips = image_clips([("x", picture, "a ball")], seeds=1)
    assert Images(miniature, SectionOrder.FORWARD).make(clips, GenerationSettings(), 0) is None
