"""Makes the embedded base model: ``python -m tools.embedded.build``."""
