import pytest

from diffusers_helper.bucket_tools import buckets, find_nearest_bucket

BUCKETS_640 = (
    (416, 960),
    (448, 864),
    (480, 832),
    (512, 768),
    (544, 704),
    (576, 672),
    (608, 640),
    (640, 608),
    (672, 576),
    (704, 544),
    (768, 512),
    (832, 480),
    (864, 448),
    (960, 416),
)


def test_buckets_of_640_are_framepacks():
    assert buckets(640) == BUCKETS_640


def test_buckets_of_128_hold_the_square_once():
    assert buckets(128) == ((96, 160), (128, 128), (160, 96))


@pytest.mark.parametrize("bucket", BUCKETS_640)
@pytest.mark.parametrize("scale", [1, 3])
def test_a_buckets_own_shape_is_nearest_to_it(bucket, scale):
    h, w = bucket
    assert find_nearest_bucket(scale * h, scale * w) == bucket


@pytest.mark.parametrize(
    ("h", "w", "expected"),
    [
        (1080, 1920, (480, 832)),  # |h*bw - w*bh|: 23040, next best 72960
        (1920, 1080, (832, 480)),
        (1, 100, (416, 960)),
        (100, 1, (960, 416)),
        (768, 1024, (544, 704)),
    ],
)
def test_nearest_of_other_shapes(h, w, expected):
    assert find_nearest_bucket(h, w) == expected


@pytest.mark.parametrize(
    ("h", "w", "resolution", "expected"),
    [
        (1, 1, 640, (640, 608)),
        (416 + 448, 960 + 864, 640, (448, 864)),
        (960 + 864, 416 + 448, 640, (960, 416)),
        (96 + 128, 160 + 128, 128, (128, 128)),
    ],
)
def test_of_two_equally_near_the_later_wins(h, w, resolution, expected):
    assert find_nearest_bucket(h, w, resolution) == expected


@pytest.mark.parametrize("resolution", [0, 512, -640])
def test_unknown_resolution_is_an_error(resolution):
    with pytest.raises(ValueError, match=rf"\[128, 640\], got {resolution}"):
        find_nearest_bucket(100, 100, resolution)
