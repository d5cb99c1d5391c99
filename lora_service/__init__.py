"""Teach Stable Diffusion a face, an object or a style, and draw with what it learned."""

import os

__version__ = "0.1.0"

# Notices of the libraries at import (no torchvision, deprecations) would open every log that a user reads; errors stay.
for _library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{_library}_VERBOSITY", "error")
