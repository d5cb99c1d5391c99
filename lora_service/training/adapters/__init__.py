"""The parameters that learn: layers of a LoRA, and the embeddings of new tokens.

lora_targets.py        the layers of a base that learn
lora_layers.py         peft's LoRA, DoRA and LoKr layers, in and out of a model
textual_inversion.py   new tokens whose embeddings learn
lora_metadata.py       the strings of the file's header
"""
