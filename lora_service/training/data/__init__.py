"""The data of a training.

class_dataset.py       class pictures of an upload
class_images.py        class pictures that the base draws
class_image_cache.py   those of earlier jobs
latent_cache.py        the VAE's posteriors of the pictures
batches.py             the pictures and captions of every step
"""
