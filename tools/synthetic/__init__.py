"""A small synthetic dataset: pictures with captions, and subjects that it never contains.

Everything is drawn with Pillow from a ``random.Random``, so that a seed determines a picture.

    canvas        the drawing surface, the palette, and a brush in relative coordinates
    things        the 35 things, each a function of a brush
    creatures     monsters of the dataset, and two-coloured creatures as held-out subjects
    faces         cartoon faces whose traits a caption names
    scenes        backgrounds: patterns and places
    styles        the drawing styles that captions name
    description   a picture's content as data, which can be drawn and captioned
    captions      samples of the dataset, and held-out descriptions for evaluation
    portraits     faces with features that no caption names
    looks         drawing styles that no caption names
    subjects      zips of a held-out creature, face or style, to train a LoRA on
    textures      uncaptioned pictures that only the VAE is trained on
"""
