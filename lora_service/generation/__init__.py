"""Image generation: from a prompt and LoRAs to image files.

``request``           the inputs, validated
``references``        ``<1>`` and ``<1:name>`` in prompts
``unsupported_inputs`` inputs that the family of the base has no counterpart of
``initial_image``     the pictures of a request; the one that is drawn over, in the size of the result
``sizes``             the size of its images, and the most work that it may ask for
``clip_skip``         the text encoder's layer that is read, of the request or its LoRAs
``prompts``           the prompts, expanded and encoded
``schedulers``        the schedulers by the names that clients use
``scheduler_classes`` diffusers' schedulers with a base's scheduler config, and own ones
``pipelines``         diffusers' pipelines around the models of a base
``modes``             text2img, img2img or inpainting: the pipeline, and what it starts from
``flow_modes``        the same on a base of flow matching
``denoising``         from seeds to latents, with callbacks between the steps
``denoiser``          stands in for the UNet: rescaled guidance, drafts
``layer_cache``       leaves out layers in most steps
``prompt_cache``      prompt embeds kept from request to request
``few_steps``         LoRAs that were distilled for few steps
``prompt_syntax``     weights and breaks in prompts
``prompt_loras``      ``<lora:name:0.8>`` in prompts
``prompt_weights``    the states of weighted prompts
``prompt_embeddings`` textual inversions of a request
``control``           pictures that follow the structure of another one
``safety``            the safety checker
``denoising_progress`` the line of speed and time left, and previews
``image_memory``      how many images fit the memory
``image_batches``     images drawn together, and decoded
``lora_sets``         LoRAs that images have together, applied, and their prompts
``own_loras``         images that each have a LoRA for themselves, in one batch
``image_settings``    what the files' metadata tells
``generator``         a base that generates images with LoRAs
``image_files``       generated images and their files, with their settings
``image_grid``        labelled rows of images in one
"""
