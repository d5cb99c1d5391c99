"""A LoRA in memory, every file layout that holds one, and patching a model with it.

    container.py    the safetensors header, read with bounds and without torch
    weights.py      the one in-memory form: ``LoraWeights``
    kinds.py        what a change of a weight can be: LoRA, LoHa, LoKr, DoRA
    names.py        keys of other tools <-> module paths of the diffusers model
    layouts/        one module per file layout, and the registry of them
    reader.py       file -> ``LoraWeights``
    writer.py       ``LoraWeights`` -> file
    bases.py        which base a LoRA or a model belongs to
    patcher.py      ``LoraWeights`` -> patched model, and exactly back
    vocabulary.py   tokens of LoRAs in copies of tokenizers and in embedding tables
    metadata.py     the ModelSpec and kohya strings of a header
    summary.py      what ``lora-service inspect`` shows
    commands.py     ``inspect`` and ``convert``

Importing the package imports no torch: links check a header without it.
"""
