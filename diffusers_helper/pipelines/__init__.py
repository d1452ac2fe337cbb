"""One section from noise to latents."""
