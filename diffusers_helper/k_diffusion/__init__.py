"""Sampling maths. Knows sigmas, models and guidance; knows no page and no files."""
