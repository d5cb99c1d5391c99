"""LoRAs of the transformers that flow matching trains: FLUX, Chroma, Z-Image, Krea 2, Qwen-Image, Stable Diffusion 3.

families.py    one table per family: its modules' names in the original model and in diffusers', and its sizes
names.py       a module's name, in any spelling -> the modules of diffusers' class that it stands for
detection.py   names and shapes -> the families that they can be of
rows.py        rows of a change: splitting fused projections and joining split ones
conversion.py  a file's changes <-> changes of the modules of diffusers' class
"""
