"""Image generation: from a prompt and LoRAs to image files.

``request``           the inputs, validated
``references``        ``<1>`` and ``<1:name>`` in prompts
``input_images``      the pictures that a request brings along
``initial_image``     the one that is drawn over, and its mask, in the size of the result
``sizes``             the size of its images, and the most work that it may ask for
``clip_skip``         the text encoder's layer that is read, of the request or its LoRAs
``prompts``           the prompts, expanded and encoded
``schedulers``        the schedulers by the names that clients use
``scheduler_classes`` diffusers' schedulers with a base's scheduler config, and own ones
``pipelines``         diffusers' pipelines around the models of a base
``modes``             text2img, img2img or inpainting: the pipeline, and what it starts from
``denoising``         from seeds to latents, with callbacks between the steps
``denoiser``          stands in for the UNet: rescaled guidance, drafts
``layer_cache``       leaves out layers in most steps
``step_callbacks``    LoRAs that act in a share of the steps
``prompt_cache``      prompt embeds kept from request to request
``few_steps``         LoRAs that were distilled for few steps
``prompt_syntax``     weights and breaks in prompts
``prompt_loras``      ``<lora:name:0.8>`` in prompts
``prompt_weights``    the states of weighted prompts
``prompt_embeddings`` textual inversions of a request
``control``           pictures that follow the structure of another one
``safety``            the safety checker
``progress``          the line of speed and time left, and previews
``memory``            how many images fit the memory
``batches``           images drawn together, and decoded
``generator``         a base that generates images with LoRAs
``text_parameters``   settings as A1111 writes them
``image_files``       generated images and their files
``image_grid``        labelled rows of images in one
"""
