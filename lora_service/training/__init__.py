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
held_out.py            the loss of fixed pictures, noise and timesteps
best_checkpoint.py     the step of the lowest held-out loss
early_stopping.py      the end of a stage that no longer improves
samples.py             the prompts of samples, and drawing them
sampling.py            samples now and then, in grids
loss.py                noise, timesteps, targets and weights, as pure functions
lora_targets.py        the layers of a base that learn
lora_layers.py         peft's LoRA, DoRA and LoKr layers, in and out of a model
textual_inversion.py   new tokens whose embeddings learn
memory.py              GPU memory, estimated, and what saves it
offloading.py          models that wait in the host's memory
processes.py           several processes that train one LoRA together
trackers.py            TensorBoard, Weights & Biases, Comet
export.py              a trained adapter -> the file
run_folder.py          the folder of a run
run_record.py          run.json: what is trained on what
checkpoints.py         the state of a run, written now and then, and put back
state_file.py          a tree of state in a safetensors file
stopping.py            an early end, by request or by time
stop_signal.py         the request
starting_lora.py       a LoRA that a training goes on from
lora_metadata.py       the strings of the file's header
"""
