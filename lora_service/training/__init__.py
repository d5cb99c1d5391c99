"""Training: from pictures to one LoRA file, in two stages.

config.py              the inputs, the defaults of tasks, their resolution on a base
input_warnings.py      inputs that have no effect, as sentences
trigger_words.py       rare words for the trigger
trainer.py             one training from upload to file
latent_cache.py        the VAE's posteriors of the pictures
batches.py             the pictures and captions of every step, planned beforehand
stages.py              textual inversion, then LoRA
loop.py                the optimiser's loop, and the callbacks that watch it
optimizers.py          optimisers and learning rate schedules
weight_average.py      the mean of the weights, where it is what is kept
training_progress.py   what is told of a stage on the way
denoising_loss.py      the loss of noisy latents on a base
loss.py                noise, timesteps, targets and weights, as pure functions
lora_targets.py        the layers of a base that learn
lora_layers.py         peft's LoRA, DoRA and LoKr layers, in and out of a model
textual_inversion.py   new tokens whose embeddings learn
memory.py              GPU memory, estimated
export.py              a trained adapter -> the file
lora_metadata.py       the strings of the file's header
"""
