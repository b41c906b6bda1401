"""The image decoder: a diffusion network that draws what the language model has read."""
