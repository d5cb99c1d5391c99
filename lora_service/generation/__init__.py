"""Image generation: from a prompt and LoRAs to image files.

``request``     the inputs, validated
``clip_skip``   the text encoder's layer that is read, of the request or its LoRAs
``schedulers``  the schedulers by the names that clients use
``pipelines``   diffusers' pipelines and schedulers around the models of a base
``generator``   a base that generates images with LoRAs, and saving them
``image_grid``  labelled rows of images in one
"""
