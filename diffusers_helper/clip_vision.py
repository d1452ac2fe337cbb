"""The image that a video starts from, as SigLIP sees it."""

from typing import Any

import numpy as np


def hf_clip_vision_encode(image: np.ndarray, feature_extractor: Any, image_encoder: Any) -> Any:
    """Encode an image.

    Args:
        image: uint8, shape [height, width, 3].
        feature_extractor: SiglipImageProcessor.
        image_encoder: SiglipVisionModel.

    Returns:
        The encoder's output; `last_hidden_state` has shape [1, tokens, dim].
    """
    inputs = feature_extractor(images=image, return_tensors="pt")
    return image_encoder(**inputs.to(device=image_encoder.device, dtype=image_encoder.dtype))
