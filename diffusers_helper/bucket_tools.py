"""Sizes of video that a model was trained on."""

_RISING_HALF = {
    640: ((416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640)),
    128: ((96, 160), (128, 128)),
}


def buckets(resolution: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of a resolution in rising height, transposes included.

    Raises:
        ValueError: no buckets are known for `resolution`.
    """
    if resolution not in _RISING_HALF:
        raise ValueError(f"resolution must be one of {sorted(_RISING_HALF)}, got {resolution}")
    half = _RISING_HALF[resolution]
    transposed = tuple((w, h) for h, w in reversed(half) if h != w)
    return half + transposed


def find_nearest_bucket(h: int, w: int, resolution: int = 640) -> tuple[int, int]:
    """The bucket (height, width) whose shape is nearest to `h` x `w`: least |h*bw - w*bh|, of
    equals the later."""
    rising = reversed(buckets(resolution))
    return min(rising, key=lambda bucket: abs(h * bucket[1] - w * bucket[0]))
