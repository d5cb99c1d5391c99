"""Teach Stable Diffusion a face, an object or a style, and draw with what it learned."""

__version__ = "0.1.0"
