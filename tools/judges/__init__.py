"""What judges pictures that a model drew: a reader of simple prompts, an image-text model, an image encoder.

``python -m tools.judges.build`` trains them into ``benchmarks/judges/``,
``python -m tools.judges.validate`` says how far they can be trusted.
"""
