"""Training: from pictures to one LoRA file, in two stages.

trainer.py             from upload to file
preparation.py         inputs resolved, pictures loaded
preview.py             the pictures alone, without torch
context.py             the inputs of the stages
stages.py              textual inversion, then LoRA
export.py              a trained adapter -> the file
nested_tensors.py      the tensors in a micro-batch

inputs/                the inputs, as given and as used on a base
data/                  class pictures, cached latents, batches
adapters/              the layers and tokens that learn
losses/                what a step makes smaller
optimization/          the optimiser's loop
callbacks/             held-out loss, samples, progress, trackers
runs/                  run folder, checkpoints, going on
memory/                a GPU's memory: estimate, precision, off-loading
together/              several trainings in the same batches
"""
