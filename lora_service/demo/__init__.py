"""The demonstration: the embedded model is trained on a subject it has never seen, and its images are evaluated.

``show``        trains, evaluates and draws the result
``evaluation``  images of the base and of a LoRA, and metrics of both
"""
