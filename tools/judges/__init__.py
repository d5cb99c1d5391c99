"""Judges of pictures that a model drew: a reader of simple pictures, an image-text model, an image encoder.

build         the command: trains the judges into ``benchmarks/judges/``
validate      the command: measures how reliable the judges are on held-out pictures
judging       ``TextJudge``, which any CLIP can stand in for
questions     the attributes of a picture of one thing, as classes
datasets      the training pictures, and their augmentation
reader        the classifier of these attributes
image_text    the image-text model
image         the image encoder
"""
