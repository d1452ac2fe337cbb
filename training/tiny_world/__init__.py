"""The small world: its clips with their ground truth, and the model that is trained on them."""
