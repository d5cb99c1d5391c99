"""Build the embedded base model, from nothing to the folder that the package ships.

    python -m tools.embedded.build

An interrupted build resumes where it was when it is started again; ``--work`` holds the checkpoints. There are four
parts: the VAE's encoder, its decoder, and the UNet with the text encoder in two. The first three do not depend on
each other, as all are trained on the same principal components of pictures: ``--only`` one of them in a shell each
trains them at the same time.

    python -m tools.embedded.build --vae lora_service/models/embedded --device cuda --seconds 285 --batch 2048

keeps the VAE and the tokenizer of a model that exists, and trains a new UNet and text encoder in a time budget, to
which a minute or two for the pictures and the compiler are added.

    python -m tools.embedded.build --start lora_service/models/embedded

starts from all of such a model, and trains the last part only.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from tools.embedded import diffusion, tokenizer, vae
from tools.embedded.loop import Plan
from tools.embedded.pool import load_pool, start_pool
from tools.synthetic import subjects

VAE_PICTURES, UNSEEN_PICTURES, COMPONENTS_PICTURES = 24_000, 256, 4_000
"""Numbers of pictures to train the VAE on, to measure it on, and to compute the principal components from."""
PARTS = ("encoder", "decoder", "denoiser", "finish")


@dataclass(frozen=True)
class Steps:
    """Steps of each part; with ``seconds``, the UNet and text encoder are trained in one part of that time budget."""

    encoder: int
    decoder: int
    denoiser: int
    finish: int
    seconds: float = 0.0


@dataclass(frozen=True)
class DenoiserOptions:
    """The device that trains the UNet and text encoder, the number of pictures in all, and the batch size."""

    device: str = "cpu"
    pictures: int = 96_000
    batch: int = 32
    compiled: bool = False


CPU_OPTIONS = DenoiserOptions()


@dataclass(frozen=True)
class PretrainedModel:
    """An existing model whose VAE and tokenizer are kept; with ``resume``, its UNet and text encoder are trained on."""

    folder: Path
    resume: bool

    def pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(self.folder, safety_checker=None, dtype=torch.float32)


def build(
    work: Path,
    steps: Steps,
    only: str | None = None,
    pretrained: PretrainedModel | None = None,
    options: DenoiserOptions = CPU_OPTIONS,
) -> StableDiffusionPipeline | None:
    """Train all parts that have no finished checkpoint in ``work``.

    Returns the model, or None where ``only`` names the part to stop after.
    """
    variety, _ = load_pool("variety", COMPONENTS_PICTURES if pretrained else VAE_PICTURES, work / "pictures")
    components = vae.PrincipalComponents.fit(variety[:COMPONENTS_PICTURES])
    autoencoder = vae.new_vae()
    source = pretrained.pipeline() if pretrained else None
    if source:
        autoencoder.load_state_dict(source.vae.state_dict())
    if not source and only in (None, "encoder"):
        vae.train_encoder(autoencoder, components, variety, work, steps.encoder)
    if not source and only in (None, "decoder"):
        vae.train_decoder(autoencoder, components, variety, work, steps.decoder)
    if only in ("encoder", "decoder"):
        return None
    synthetic = start_pool("synthetic", options.pictures, work / "pictures")
    if source:
        clip_tokenizer = source.tokenizer
    else:
        clip_tokenizer = tokenizer.load_or_train((caption for caption, _ in synthetic()[1]), work / "tokenizer")
    resume = pretrained is not None and pretrained.resume
    model = _denoiser(source if resume else None, clip_tokenizer, options)
    training_set = diffusion.TrainingSet.encode(components, clip_tokenizer, synthetic(), torch.device(options.device))
    for name, plan in _plans(steps, resume, only):
        diffusion.train(model, training_set, plan, work / f"{name}.pt", options.batch)
    if only:
        return None
    if not source:
        print(json.dumps(reconstruction_psnr(autoencoder, work)), flush=True)
    return assemble_pipeline(autoencoder, clip_tokenizer, model.prepare(torch.device("cpu")))


def _denoiser(
    source: StableDiffusionPipeline | None, clip_tokenizer: CLIPTokenizer, options: DenoiserOptions
) -> diffusion.Denoiser:
    """Return the UNet and text encoder of ``source``, or new ones, on the device and perhaps compiled."""
    if source:
        model = diffusion.Denoiser.pretrained(source.unet, source.text_encoder)
    else:
        model = diffusion.Denoiser.new(clip_tokenizer)
    model.prepare(torch.device(options.device))
    if options.compiled:
        model.compile(dynamic=False)
        diffusion.warm_up(model, options.batch)  # while the pictures are being drawn
    return model


def _plans(steps: Steps, resume: bool, only: str | None) -> list[tuple[str, Plan]]:
    """Return the trainings of the UNet and text encoder, each with the name of its checkpoint."""
    if steps.seconds:
        return [("finish" if resume else "denoiser", diffusion.timed_plan(steps.seconds))]
    plans = [] if resume else [("denoiser", diffusion.first_plan(steps.denoiser))]
    return plans if only == "denoiser" else [*plans, ("finish", diffusion.second_plan(steps.finish))]


def reconstruction_psnr(autoencoder: AutoencoderKL, work: Path) -> dict[str, float]:
    """Return the VAE's mean PSNR in dB on the synthetic dataset, and on each kind of held-out subject."""
    kinds = ("synthetic", *(f"unseen-{kind}s" for kind in subjects.KINDS))
    return {
        kind: round(vae.mean_psnr(autoencoder, load_pool(kind, UNSEEN_PICTURES, work / "pictures")[0]), 1)
        for kind in kinds
    }


def assemble_pipeline(
    autoencoder: AutoencoderKL, clip_tokenizer: CLIPTokenizer, model: diffusion.Denoiser
) -> StableDiffusionPipeline:
    """Return diffusers' pipeline of the trained parts, with DDIM sampling."""
    scheduler = DDIMScheduler.from_config(diffusion.new_scheduler().config, set_alpha_to_one=False)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=clip_tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Write the model to ``out`` in diffusers' layout, in fp16; ``base.json`` and the model card there stay."""
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    # transformers would load the text encoder in its config's dtype, diffusers the other parts in fp32.
    config = out / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    # Older readers need vocab.json and merges.txt.
    pipeline.tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    # On a GPU: TF32 for the products that autocast leaves in fp32, and the fastest convolution algorithms.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    on_gpu = DenoiserOptions(arguments.device, 400_000, 1024, not arguments.no_compile)
    overrides = {name: getattr(arguments, name) for name in ("pictures", "batch") if getattr(arguments, name)}
    options = replace(CPU_OPTIONS if arguments.device == "cpu" else on_gpu, **overrides)
    steps = Steps(
        arguments.encoder_steps, arguments.decoder_steps, arguments.steps, arguments.finish_steps, arguments.seconds
    )
    folder = arguments.start or arguments.vae
    pretrained = PretrainedModel(folder, resume=bool(arguments.start)) if folder else None
    pipeline = build(arguments.work, steps, arguments.only, pretrained, options)
    if pipeline is not None:
        export(pipeline, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("build/embedded"), help="folder of the pictures and checkpoints")
    add("--out", type=Path, default=Path("lora_service/models/embedded"), help="folder that the model is written to")
    add("--encoder-steps", type=int, default=6_000)
    add("--decoder-steps", type=int, default=8_000)
    add("--steps", type=int, default=17_500, help="steps of the first part of the UNet and text encoder")
    add("--finish-steps", type=int, default=5_750, help="steps of their second part")
    add("--seconds", type=float, default=0, help="train them in one part with this time budget instead")
    add("--vae", type=Path, help="folder of a model whose VAE and tokenizer are kept")
    add("--start", type=Path, help="folder of a model to start from, in place of the first three parts")
    add("--only", choices=PARTS, help="stop after this part, and export nothing")
    add("--device", default="cpu", help="device that trains the UNet and text encoder: cpu or cuda")
    add("--batch", type=int, help="their batch size: 32, or 1024 on a GPU")
    add("--pictures", type=int, help="number of different pictures: 96000, or 400000 on a GPU")
    add("--no-compile", action="store_true", help="on a GPU, do not compile the model")
    add("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.start and (arguments.vae or arguments.only not in (None, "finish")):
        parser.error("--start includes what --vae keeps, and replaces the first three parts; leave one of them out")
    if arguments.vae and arguments.only in ("encoder", "decoder"):
        parser.error(f"--only {arguments.only} trains a part of the VAE that --vae keeps; leave one of them out")
    return arguments


if __name__ == "__main__":
    main()
