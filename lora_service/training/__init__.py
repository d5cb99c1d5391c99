"""Training: from pictures to one LoRA file, in two stages.

The inputs:
config.py              the inputs as they are given
resolved_config.py     the defaults of tasks, and the inputs as they will be used on a base
input_warnings.py      inputs that have no effect, as sentences
trigger_words.py       rare words for the trigger

One training:
trainer.py             from upload to file
preparation.py         inputs resolved, pictures loaded
class_dataset.py       class pictures of an upload
class_images.py        class pictures that the base draws
class_image_cache.py   those of earlier jobs
latent_cache.py        the VAE's posteriors of the pictures
batches.py             the pictures and captions of every step
stages.py              textual inversion, then LoRA
precision.py           mixed precision and gradient checkpointing
memory.py              GPU memory, estimated, and what saves it
offloading.py          models that wait in the host's memory
processes.py           several processes that train one LoRA together
export.py              a trained adapter -> the file
lora_metadata.py       the strings of the file's header

The steps:
loop.py                the optimiser's loop, and the callbacks that watch it
optimizers.py          optimisers and learning rate schedules
weight_average.py      the mean of the weights, where it is what is kept
denoising_loss.py      the loss of noisy latents on a base
loss.py                noise, timesteps, targets and weights, as pure functions
preservation.py        losses that keep the subject's class
lora_targets.py        the layers of a base that learn
lora_layers.py         peft's LoRA, DoRA and LoKr layers, in and out of a model
textual_inversion.py   new tokens whose embeddings learn

What watches it:
training_progress.py   what is told of a stage on the way
held_out.py            the loss of fixed pictures, noise and timesteps
best_checkpoint.py     the step of the lowest held-out loss
early_stopping.py      the end of a stage that no longer improves
samples.py             the prompts of samples, and drawing them
sampling.py            samples now and then, in grids
trackers.py            TensorBoard, Weights & Biases, Comet

Stopping and going on:
run_folder.py          the folder of a run
run_record.py          run.json: what is trained on what
checkpoints.py         the state of a run, written now and then, and put back
state_file.py          a tree of state in a safetensors file
stopping.py            an early end, by request or by time
stop_signal.py         the request
starting_lora.py       a LoRA that a training goes on from
"""
