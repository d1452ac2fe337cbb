"""The networks, and how they are loaded."""

from diffusers_helper.models.loading import MODEL_NAMES, Models, load_models, model_resolution

__all__ = ["MODEL_NAMES", "Models", "load_models", "model_resolution"]
