"""Fitting a training into a GPU.

estimate.py            the memory it takes, estimated, and what saves it
transformers.py        the part of a transformer, block by block
precision.py           mixed precision and gradient checkpointing
offloading.py          models that wait in the host's memory
"""
