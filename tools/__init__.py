"""Tools that make the assets of the package and its tests; nothing here is needed at run time.

synthetic        the synthetic dataset: drawn pictures with captions, and held-out subjects
embedded         the build of the embedded base model
judges           the build of the models that judge pictures, and their validation
write_entries    writes the inputs of ``train.py`` and ``predict.py`` from the configs
"""
