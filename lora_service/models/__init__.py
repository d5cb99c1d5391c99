"""Base models: which one, how it is loaded, and the rates and guidance that suit it."""
