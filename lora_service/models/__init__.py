"""Base models: which one, where its weights are, and how they are loaded.

``defaults``          the defaults that suit a base
``families``          what differs between Stable Diffusion 1.x, 2.x, XL and the others, one file each
``registry``          all families, the names of ``BASE_MODEL``, and where weights lie
``hub_files``         the files of a hub repository that make up a base
``hub_download``      fetches them, checked against the hub's hashes
``text_encoders``     token ids, prompt embeds, and the interface of text encoders
``clip_text_encoders``  one of CLIP's text encoders, or XL's two
``chat_text_encoder``  a frozen chat model, such as Qwen3
``template_text_encoder``  a frozen vision-language model with a fixed template
``t5_text_encoder``   a frozen T5, and CLIP's pooled states
``sd3_text_encoders``  two of CLIP's text encoders that learn, beside a frozen T5
``block_offloading``  transformers' blocks that wait on the host
``diffusion_base``    a base in memory, the same for all families
``components``        the models as loaded, and the checks that they are whole
``diffusers_folder``  loads them from a folder in diffusers' layout
``single_file``       loads them from one checkpoint in the original layout
``single_transformer``  loads a transformer from one file, and the rest from its family's base
``compiled``          modules compiled once for each class of shapes
``float8``            linear layers with weights in 8-bit floats, for drawing
``quantization``      puts 8- or 4-bit linear layers into the backbone, for trainings
``control_registry``  ControlNets and T2I-Adapters by what they are conditioned on
``control_loading``   loads them, and keeps the last one
``fingerprint``       a hash of a base's weights
``image_judge``       how alike pictures are
``loading``           chooses device and dtype, and loads whatever ``BASE_MODEL`` names
"""
