"""The file formats of LoRAs, one module each; ``lora_service.lora.files`` holds their registry.

kohya.py           ``lora_unet_….lora_down.weight``: what every tool reads
diffusers.py       diffusers and PEFT, of three generations
cloneofsimo.py     lora_pti: numbered modules, in two dialects
embedding.py       textual inversion's files: learned tokens alone
stored_tokens.py   learned tokens inside the other formats: header string, bundled embeddings
"""
