"""A small synthetic dataset: pictures with captions, and subjects it never contains.

Everything is drawn with Pillow from a ``random.Random``, so a seed is a picture.
``captions.sample`` draws one picture of the synthetic dataset with its caption, from a
``description.Description`` of what it shows; ``subjects`` draws, from a seed, a subject
that no caption of the synthetic dataset describes; ``textures`` draws the variety that only the VAE
is taught.
"""
