"""Cog's training entry: pictures in, one LoRA file out.

Cog reads this file without running it, so the inputs are plain literals. They are
written by ``python -m tools.write_entries`` from lora_service/training/inputs/config.py:
change them there.
"""

from cog import Input, Path, current_scope

from lora_service.services.kept_runs import train_or_resume
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.services.worker import Worker

service = TrainingService(worker=Worker())
service.warm_up()


def train(
    instance_data: Path | None = Input(
        default=None,
        description="A zip of pictures of what is to be taught; 4 to 30 are enough. This or instance_data_urls.",
    ),
    instance_data_urls: str = Input(
        default="", description="Links to pictures or zips instead: a JSON list, or one per line, or split by |."
    ),
    task: str = Input(
        default="face",
        choices=["face", "object", "style", "location"],
        description="What the pictures show. Picks caption templates, rank, mirroring and the noise levels.",
    ),
    class_word: str = Input(
        default="", max_length=60, description="The kind of thing it is, like dog. The new tokens start from this word."
    ),
    trigger: str = Input(
        default="",
        max_length=60,
        description="Empty: one is chosen and reported. The plain word that calls the subject, in any tool.",
    ),
    max_train_steps_ti: int = Input(
        default=700,
        ge=0,
        le=20000,
        description="Steps of stage 1, which learns new tokens on bases with a CLIP. 0: only the trigger is taught.",
    ),
    max_train_steps_tuning: int = Input(
        default=700,
        ge=0,
        le=20000,
        description="Steps of stage 2, which learns the LoRA. 0: only new tokens are learned.",
    ),
    preset: str = Input(
        default="full",
        choices=["full", "fast"],
        description="full: as asked for. fast: a third of the time, without stage 1, by fewer steps of two pictures.",
    ),
    resolution: int | None = Input(
        default=None,
        ge=16,
        le=2048,
        description="Empty: the base model's own (SD 1.5: 512). Side of the training pictures in pixels.",
    ),
    lora_rank: int | None = Input(
        default=None,
        ge=1,
        le=128,
        description="Empty: 8 for objects, else 16. Rank of the LoRA: more holds more detail.",
    ),
    seed: int | None = Input(
        default=None,
        ge=0,
        le=4294967295,
        description="Empty: random, and reported. The same seed gives the same file on the same machine.",
    ),
    more_resolutions: str = Input(
        default="",
        max_length=60,
        description="Further sides in pixels, split by commas: every picture is taught at each of them too.",
    ),
    learning_rate_ti: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 5e-4). Learning rate of the new tokens in stage 1.",
    ),
    learning_rate_text: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 1e-5). Learning rate of the text encoder's LoRA.",
    ),
    learning_rate_unet: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 2e-4). Learning rate of the UNet's LoRA.",
    ),
    optimizer: str = Input(
        default="adamw",
        choices=["adamw", "adamw8bit", "prodigy", "adamw_schedule_free", "muon"],
        description="prodigy finds the rates by itself; adamw8bit saves memory; muon is for the LoRA alone.",
    ),
    lr_scheduler: str = Input(
        default="constant",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
        description="How the learning rates change over the steps.",
    ),
    lr_warmup_steps: int = Input(
        default=0, ge=0, le=10000, description="Steps over which the learning rates rise from 0 to their value."
    ),
    lr_warmup_ratio: float = Input(
        default=0.0,
        ge=0,
        le=1,
        description="lr_warmup_steps as a share of each stage's steps; one of the two may be given.",
    ),
    lr_cycles: int = Input(
        default=3, ge=1, le=100, description="How often cosine_with_restarts begins anew in a stage."
    ),
    lr_power: float = Input(
        default=2.0, ge=0.1, le=10, description="Power of polynomial: 1 is linear, more falls sooner."
    ),
    lora_alpha: float | None = Input(
        default=None,
        ge=0.001,
        le=1024,
        description="Empty: the rank, which every tool reads alike. The LoRA counts alpha / rank.",
    ),
    lora_kind: str = Input(
        default="lora",
        choices=["lora", "dora", "rslora", "lokr"],
        description="dora learns magnitudes apart, rslora counts alpha / √rank, lokr is small. lora is the fastest.",
    ),
    lora_targets: str = Input(
        default="attention+geglu",
        choices=[
            "attention",
            "attention+geglu",
            "attention+ff",
            "attention+ff+conv",
            "all-linear",
            "kohya",
            "kohya+conv",
        ],
        description="The layers that learn; more hold more and make a larger file.",
    ),
    lora_plus_ratio: float = Input(
        default=1.0,
        ge=1,
        le=64,
        description="Learning rate of the LoRA's up matrices in those of the down ones (LoRA+).",
    ),
    caption_mode: str = Input(
        default="auto",
        choices=["auto", "files", "filename", "template", "model"],
        description="auto: text files beside the pictures, else templates. model: CAPTION_MODEL writes them.",
    ),
    custom_prompts: str = Input(
        default="",
        max_length=20000,
        description="Empty: the task's own. JSON list of caption templates with {} for the subject.",
    ),
    captions: str = Input(
        default="",
        max_length=1000000,
        description='Captions of single pictures in place of their own: a JSON object like {"1.jpg": "{} at sea"}.',
    ),
    shuffle_tags: bool = Input(
        default=False, description="Put a caption's comma-separated tags in a new order each step."
    ),
    keep_tokens: int = Input(
        default=1, ge=0, le=100, description="With shuffle_tags: how many tags at the front keep their place."
    ),
    caption_dropout: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: 0.1 for styles, else 0.05. Share of stage 2's steps without a caption.",
    ),
    max_token_length: str = Input(
        default="auto",
        choices=["auto", "75", "150", "225"],
        description="Most tokens of a caption that are read, in chunks of 75. auto: as many as captions need.",
    ),
    clip_skip: int | None = Input(
        default=None,
        ge=1,
        le=32,
        description="Empty: the base model's own. Layer of the text encoder that is read, from the end; 1: the last.",
    ),
    mask_mode: str = Input(
        default="auto",
        choices=["auto", "face", "none", "files"],
        description="What counts most in a picture. auto: a mask file, else the face for faces, else transparency.",
    ),
    aspect_ratio_buckets: bool = Input(
        default=False, description="Keep the pictures' shapes instead of cropping them to squares."
    ),
    random_crop: bool = Input(default=False, description="Eight random crops of each picture instead of one."),
    color_jitter: bool | None = Input(
        default=None, description="Empty: no. Vary brightness, contrast and saturation a little."
    ),
    flip: bool | None = Input(
        default=None, description="Empty: yes for objects and styles, else no. Mirror pictures at random."
    ),
    train_batch_size: int = Input(default=1, ge=1, le=64, description="Pictures per batch."),
    gradient_accumulation_steps: int = Input(
        default=1, ge=1, le=64, description="Batches per step; a step counts once however many it has."
    ),
    gradient_checkpointing: str = Input(
        default="auto",
        choices=["auto", "on", "off"],
        description="Save memory for about a third more time. auto: where it is needed.",
    ),
    mixed_precision: str = Input(
        default="auto",
        choices=["auto", "no", "fp16", "bf16"],
        description="auto: bf16 on a GPU that has it, fp16 on older ones, full precision on a CPU.",
    ),
    weight_decay_lora: float = Input(default=0.001, ge=0, le=1, description="Weight decay of the LoRA."),
    weight_decay_ti: float = Input(default=0.0, ge=0, le=1, description="Weight decay of the new tokens."),
    max_grad_norm: float = Input(
        default=1.0, ge=0, le=1000, description="Gradients whose norm is larger are scaled down to it. 0: none are."
    ),
    clip_by_group: bool = Input(
        default=False, description="Clip the gradients of UNet, text encoders and tokens apart, not as one."
    ),
    ema_decay: float = Input(
        default=0.0,
        ge=0,
        le=0.9999,
        description="Decay of a running mean of what is learned, which is kept in place of it.",
    ),
    snr_gamma: float | None = Input(
        default=None, ge=0, le=100, description="Empty: 5. Gamma of the loss's min-SNR weighting; 0 turns it off."
    ),
    noise_offset: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: 0.03 for styles and locations, else 0. Helps with very dark and bright pictures.",
    ),
    timestep_sampling: str = Input(
        default="auto",
        choices=["auto", "logit_normal", "uniform", "cubic", "mode"],
        description="For bases of flow matching: how noise levels are drawn. auto: logit_normal.",
    ),
    preservation: str = Input(
        default="none",
        choices=["none", "prior", "output"],
        description="Keep what the base knows of the class: prior, by class pictures; output, by what it predicts.",
    ),
    preservation_weight: float | None = Input(
        default=None, ge=0.001, le=100, description="Empty: 1. How much the class counts beside the subject."
    ),
    class_data: Path | None = Input(
        default=None,
        description="With preservation prior: a zip of other things of the class. Else the base draws some.",
    ),
    class_prompt: str = Input(
        default="",
        max_length=2000,
        description="Empty: a photo of a CLASS_WORD. What the class pictures show; several split by |.",
    ),
    num_class_images: int | None = Input(
        default=None, ge=1, le=2000, description="Empty: 100. Class pictures that the base draws where none are given."
    ),
    placeholder_tokens: str = Input(
        default="<s1>|<s2>", max_length=200, description="Names of the new tokens, in angle brackets, split by |."
    ),
    initializer_tokens: str = Input(
        default="",
        max_length=200,
        description="Empty: class_word. Words the new tokens start from, split by |; the rest start random.",
    ),
    continue_inversion: bool | None = Input(
        default=None, description="Empty: as suits the base model (SD 1.5: no). Go on learning the tokens in stage 2."
    ),
    continue_inversion_lr: float | None = Input(
        default=None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 1e-4). Learning rate of the tokens in stage 2.",
    ),
    start_from: str = Input(
        default="",
        max_length=4000,
        description="Empty: a new LoRA. Link to a LoRA file to go on from; its layers, tokens and trigger are kept.",
    ),
    stop_after_seconds: int = Input(
        default=0,
        ge=0,
        le=604800,
        description="0: no limit. The file is written within so many seconds of the job's start.",
    ),
    samples: int | None = Input(
        default=None,
        ge=0,
        le=100,
        description="Empty: 4 or 1, in a tenth of the time at most. How often samples are drawn; 0: never.",
    ),
    sample_prompts: str = Input(
        default="",
        max_length=20000,
        description="Empty: the task's own. Prompts of the samples, one per line or a JSON list; {} is the subject.",
    ),
    keep: str = Input(
        default="last",
        choices=["last", "best"],
        description="The step of stage 2 that is returned: the last, or the one of the lowest held-out loss.",
    ),
    lora_format: str = Input(
        default="kohya",
        choices=["kohya", "diffusers", "cloneofsimo"],
        description="Format of the file; kohya is read by every tool.",
    ),
) -> Path:
    inputs = dict(locals())
    upload = TrainingUpload(*(inputs.pop(name) for name in ("instance_data", "instance_data_urls", "class_data")))
    scope = current_scope()
    return Path(train_or_resume(service, upload, inputs, scope.context.get("run", ""), scope.record_metric))
