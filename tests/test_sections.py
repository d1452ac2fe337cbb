import pytest
import torch

from diffusers_helper.sections import (
    FPS,
    LatentHistory,
    SectionOrder,
    plan_sections,
    section_frames,
)

FORWARD, INVERTED = SectionOrder.FORWARD, SectionOrder.INVERTED
START = 1000
BLANK = 0


def numbered(numbers: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Latent frames that hold nothing but their number."""
    return torch.tensor(numbers, dtype=dtype).view(1, 1, -1, 1, 1).expand(1, 16, -1, 2, 3)


def numbers(latents: torch.Tensor) -> list[int]:
    assert latents.shape[:2] + latents.shape[3:] == (1, 16, 2, 3)
    assert (latents == latents[:, :1, :, :1, :1]).all()
    return latents[0, 0, :, 0, 0].int().tolist()


def seconds_for(sections: int, window: int) -> float:
    return sections * 4 * window / FPS


@pytest.mark.parametrize(
    ("seconds", "window", "count"),
    [
        (1, 1, 8),  # 7.5, of equals the even
        (1, 9, 1),  # 0.83
        (1.8, 9, 2),  # 1.5, of equals the even
        (5, 9, 4),  # 4.17
        (120, 9, 100),
        (1, 33, 1),  # 0.23 would be none
        (10, 33, 2),  # 2.27
        (60, 1, 450),
    ],
)
@pytest.mark.parametrize("order", SectionOrder)
def test_count_of_sections(order, seconds, window, count):
    plan = plan_sections(order, seconds, window)
    assert [s.number for s in plan] == list(range(1, count + 1))
    assert {s.count for s in plan} == {count}
    assert [s.is_last for s in plan] == [False] * (count - 1) + [True]


@pytest.mark.parametrize(
    "paddings",
    [
        [0],
        [1, 0],
        [2, 1, 0],
        [3, 2, 1, 0],
        [3, 2, 2, 1, 0],
        [3, 2, 2, 2, 1, 0],
        [3, *[2] * 17, 1, 0],
    ],
    ids=len,
)
@pytest.mark.parametrize("window", [1, 9])
def test_paddings(paddings, window):
    seconds = seconds_for(len(paddings), window)
    assert [s.padding for s in plan_sections(INVERTED, seconds, window)] == paddings
    assert [s.padding for s in plan_sections(FORWARD, seconds, window)] == [0] * len(paddings)


@pytest.mark.parametrize("window", [1, 9, 33])
@pytest.mark.parametrize("sections", [1, 3, 5, 24])
def test_times_of_sections(sections, window):
    """Sections follow each other from the image on, whatever the padding."""
    length = 4 * window / FPS
    starts = [length * i for i in range(sections)]
    middles = [length * i + length / 2 for i in range(sections)]
    for order, step in ((FORWARD, 1), (INVERTED, -1)):
        plan = plan_sections(order, seconds_for(sections, window), window)
        assert [s.start for s in plan] == pytest.approx(starts[::step])
        assert [s.middle for s in plan] == pytest.approx(middles[::step])


@pytest.mark.parametrize("order", SectionOrder)
def test_middles_are_the_numbers_that_a_user_types(order):
    middles = {s.middle for s in plan_sections(order, 6, 9)}
    assert middles == {0.6, 1.8, 3.0, 4.2, 5.4}


@pytest.mark.parametrize(("window", "frames"), [(1, 1), (2, 5), (9, 33), (33, 129)])
def test_section_frames(window, frames):
    assert section_frames(window) == frames


@pytest.mark.parametrize(
    ("order", "sections", "window", "number", "rows"),
    [
        (
            *(FORWARD, 3, 2, 2),
            {
                "latent_indices": [20, 21],
                "clean_latent_indices": [0, 19],
                "clean_latent_2x_indices": [17, 18],
                "clean_latent_4x_indices": [*range(1, 17)],
            },
        ),
        (
            *(FORWARD, 1, 9, 1),
            {
                "latent_indices": [20, 21, 22, 23, 24, 25, 26, 27, 28],
                "clean_latent_indices": [0, 19],
                "clean_latent_2x_indices": [17, 18],
                "clean_latent_4x_indices": [*range(1, 17)],
            },
        ),
        (
            *(INVERTED, 4, 2, 1),  # padding 3
            {
                "latent_indices": [7, 8],
                "clean_latent_indices": [0, 9],
                "clean_latent_2x_indices": [10, 11],
                "clean_latent_4x_indices": [*range(12, 28)],
            },
        ),
        (
            *(INVERTED, 4, 9, 3),  # padding 1
            {
                "latent_indices": [10, 11, 12, 13, 14, 15, 16, 17, 18],
                "clean_latent_indices": [0, 19],
                "clean_latent_2x_indices": [20, 21],
                "clean_latent_4x_indices": [*range(22, 38)],
            },
        ),
        (
            *(INVERTED, 4, 3, 4),  # padding 0
            {
                "latent_indices": [1, 2, 3],
                "clean_latent_indices": [0, 4],
                "clean_latent_2x_indices": [5, 6],
                "clean_latent_4x_indices": [*range(7, 23)],
            },
        ),
    ],
)
def test_index_rows(order, sections, window, number, rows):
    section = plan_sections(order, seconds_for(sections, window), window)[number - 1]
    context = LatentHistory(order, window, numbered([START])).context(section)
    assert {name: context[name].tolist() for name in rows} == {n: [r] for n, r in rows.items()}


def walk(order: SectionOrder, sections: int, window: int):
    """Make a video of numbered latents; yields each section with what the history showed before
    it, what it gave to decode, and all latents in the video's order, before and after."""
    history = LatentHistory(order, window, numbered([START]))
    made = [START] if order is FORWARD else []
    for section in plan_sections(order, seconds_for(sections, window), window):
        first = 1 + (section.number - 1) * window
        new = list(range(first, first + window))
        before = list(made)
        image = [START] if section.is_last else []
        made = made + new if order is FORWARD else image + new + made
        context = history.context(section)
        yield section, context, history.add(section, numbered(new)), before, made


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("window", [1, 2, 9, 33])
@pytest.mark.parametrize("sections", [1, 2, 5, 24])
def test_what_is_shown_of_the_rest(order, window, sections):
    for _, context, _, before, _ in walk(order, sections, window):
        if order is FORWARD:
            *rest, near = ([BLANK] * 19 + before)[-19:]
            far, middle = rest[:16], rest[16:]
        else:
            near, *rest = (before + [BLANK] * 19)[:19]
            middle, far = rest[:2], rest[2:]
        assert numbers(context["clean_latents"]) == [START, near]
        assert numbers(context["clean_latents_2x"]) == middle
        assert numbers(context["clean_latents_4x"]) == far


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("window", [1, 2, 9, 33])
@pytest.mark.parametrize("sections", [1, 2, 5, 24])
def test_what_is_decoded(order, window, sections):
    for section, _, to_decode, _, made in walk(order, sections, window):
        if section.number == 1:
            expected = made
        elif order is FORWARD:
            expected = made[-2 * window :]
        else:
            expected = made[: 2 * window + section.is_last]
        assert numbers(to_decode) == expected
        assert BLANK not in expected


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("window", [1, 2, 9, 33])
@pytest.mark.parametrize("sections", [1, 2, 5, 24])
def test_the_video_is_4wn_plus_1_frames(order, window, sections):
    frames = 0
    for section, _, to_decode, _, _ in walk(order, sections, window):
        frames += 4 * to_decode.shape[2] - 3
        if section.number > 1:
            frames -= section_frames(window)
    assert frames == 4 * window * sections + 1


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("window", [1, 2, 9, 33])
@pytest.mark.parametrize("sections", [1, 2, 5, 24])
def test_a_section_lies_in_the_video_where_its_times_say(order, window, sections):
    *_, (_, _, _, _, made) = walk(order, sections, window)
    for section in plan_sections(order, seconds_for(sections, window), window):
        first = made.index(1 + (section.number - 1) * window)
        last = first + window - 1
        # Latent frame 0 is the image; every other one is four frames, the last of them at its time.
        assert section.start == pytest.approx(4 * (first - 1) / FPS)
        assert section.middle == pytest.approx((4 * (first - 1) + 4 * last) / 2 / FPS)


@pytest.mark.parametrize("order", SectionOrder)
def test_the_history_does_not_grow(order):
    window = 9
    history = LatentHistory(order, window, numbered([START]))
    for section in plan_sections(order, seconds_for(24, window), window):
        history.add(section, numbered([1] * window))
        tensors = [t for t in vars(history).values() if isinstance(t, torch.Tensor)]
        longest = max(t.untyped_storage().nbytes() for t in tensors)
        assert longest <= (1 + 2 * (1 + 2 * window) + window) * 16 * 2 * 3 * 4


@pytest.mark.parametrize("order", SectionOrder)
def test_latents_take_the_starts_dtype(order):
    (section,) = plan_sections(order, 1, 9)
    history = LatentHistory(order, 9, numbered([START]))
    decoded = history.add(section, numbered([1] * 9, torch.float64))
    assert decoded.dtype == torch.float32


@pytest.mark.parametrize("window", [1, 9])
@pytest.mark.parametrize("order", SectionOrder)
def test_what_a_section_shares_with_the_next(order, window):
    history = LatentHistory(order, window, numbered([START]))
    plan = plan_sections(order, seconds_for(4, window), window)
    before = None
    for section in plan[:-1]:
        made = range(section.number * 10, section.number * 10 + window)
        latents = numbers(history.add(section, numbered(list(made))))
        if before is not None:
            rest = [n for n in latents if n not in made]
            assert rest == before
        before = latents[history.shared]
        assert len(before) == window
