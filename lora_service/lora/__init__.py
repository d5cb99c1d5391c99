"""LoRAs in memory, the file formats that hold them, and patching a model with them.

    weights.py             the one in-memory form: ``LoraWeights``, its ``LoraLayer``
    lycoris.py             other changes of a weight: LoHa, LoKr, DoRA, full differences
    scale.py               the factors a LoRA is applied with; imports no torch
    files.py               ``read_lora``, ``write_lora``, the registry of formats
    archive.py             the LoRA in a zip or tar, unpacked safely; imports no torch
    formats/               one module per file format
    flow/                  the modules of transformers: their names, sizes and fused layers
    layer_builder.py       tensors of one module -> its change
    key_mapping.py         keys of other tools <-> module paths of the diffusers model
    pickled_embedding.py   textual inversions in PyTorch's own files
    safetensors_header.py  the header of a safetensors file, read within bounds; imports no torch
    header_facts.py        what a header says of a LoRA; imports no torch
    safetensors_file.py    its tensors read, its bytes written
    base_detection.py      the base that a LoRA or a model belongs to
    patcher.py             ``LoraWeights`` -> patched model, and exactly back
    token_embeddings.py    learned tokens in copies of tokenizers and in embedding tables
    merging.py             the change of a weight by several LoRAs
    side_by_side.py        several LoRAs in one batch, each of its own rows
    arithmetic.py          merging, resizing and comparing LoRAs
    summary.py             the contents that ``lora-service inspect`` shows

Importing the package imports no torch: the downloads check a header without it.
"""
