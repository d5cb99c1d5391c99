"""The file formats of LoRAs, one module each; ``lora_service.lora.files`` holds their registry.

kohya.py           ``lora_unet_….lora_down.weight``: what every tool reads
diffusers.py       diffusers and PEFT, of three generations
comfyui.py         transformers under the names of their original models
cloneofsimo.py     lora_pti: numbered modules, in two dialects
named_modules.py   keys of the first two, in every spelling that is met
flow_keys.py       keys of transformers, in every spelling
adapter_config.py  rank and alpha of PEFT
other_files.py     what is no LoRA: checkpoints, VAEs, ControlNets
embedding.py       textual inversion's files: learned tokens alone
stored_tokens.py   learned tokens inside the other formats: header string, bundled embeddings
"""
