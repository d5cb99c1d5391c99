"""Makes the embedded base model, from nothing to the folder that the package ships.

    python -m tools.embedded.build

Stopped at any moment, it goes on where it was when started again; ``--work`` holds
what is in progress. Four parts: the VAE's encoder, its decoder, and the UNet with the
text encoder in two. The first three do not wait for each other, as all learn from the same
components of pictures: ``--only`` one of them in a shell each trains them at the same time.

    python -m tools.embedded.build --vae lora_service/models/embedded --device cuda --seconds 285 --batch 2048

takes the VAE and the tokenizer of a model that was made before, and trains the UNet and the
text encoder from nothing in so many seconds, beside a minute for the pictures and the compiler.

    python -m tools.embedded.build --start lora_service/models/embedded

takes all of such a model in place of the first three parts.
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
from tools.embedded.components import Components
from tools.embedded.loop import Plan
from tools.embedded.pool import drawing, pool
from tools.synthetic import subjects

VARIETY = 24_000
UNSEEN = 256
FOR_COMPONENTS = 4_000
PARTS = ("encoder", "decoder", "denoiser", "finish")


@dataclass(frozen=True)
class Steps:
    """How long each part is trained; with ``seconds``, the UNet and text encoder in one part of so many."""

    encoder: int
    decoder: int
    denoiser: int
    finish: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Where the UNet and text encoder are trained, on how many pictures, and with how many in each step."""

    device: str = "cpu"
    pictures: int = 96_000
    batch: int = 32
    compiled: bool = False


LAPTOP = Scale()


@dataclass(frozen=True)
class Before:
    """A model made before, whose VAE and tokenizer are taken as they are, and with ``all`` the rest to go on from."""

    folder: Path
    all: bool

    def pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(self.folder, safety_checker=None, dtype=torch.float32)


def build(
    work: Path, steps: Steps, only: str | None = None, before: Before | None = None, scale: Scale = LAPTOP
) -> StableDiffusionPipeline | None:
    """Train what is not trained yet; the model, or None when ``only`` one part was asked for."""
    variety, _ = pool("variety", FOR_COMPONENTS if before else VARIETY, work / "pictures")
    components = Components.of(variety[:FOR_COMPONENTS])
    autoencoder = vae.new_vae()
    made = before.pipeline() if before else None
    if made:
        autoencoder.load_state_dict(made.vae.state_dict())
    if not made and only in (None, "encoder"):
        vae.train_encoder(autoencoder, components, variety, work, steps.encoder)
    if not made and only in (None, "decoder"):
        vae.train_decoder(autoencoder, components, variety, work, steps.decoder)
    if only in ("encoder", "decoder"):
        return None
    synthetic = drawing("synthetic", scale.pictures, work / "pictures")
    words = made.tokenizer if made else tokenizer.kept((caption for caption, _ in synthetic()[1]), work / "tokenizer")
    goes_on = before is not None and before.all
    model = diffusion.Denoiser.of(made.unet, made.text_encoder) if made and goes_on else diffusion.Denoiser.new(words)
    model.on(torch.device(scale.device))
    if scale.compiled:
        model.compile(dynamic=False)
        diffusion.warm_up(model, scale.batch)  # while the pictures are being drawn
    training_set = diffusion.TrainingSet.of(components, words, synthetic(), torch.device(scale.device))
    for name, plan in _parts(steps, goes_on, only):
        diffusion.train(model, training_set, plan, work / f"{name}.pt", scale.batch)
    if only:
        return None
    if not made:
        print(json.dumps(reconstruction(autoencoder, work)), flush=True)
    return pipeline_of(autoencoder, words, model.on(torch.device("cpu")))


def _parts(steps: Steps, goes_on: bool, only: str | None) -> list[tuple[str, Plan]]:
    """What the UNet and text encoder go through, by the name of the part's file."""
    if steps.seconds:
        return [("finish" if goes_on else "denoiser", diffusion.within(steps.seconds))]
    parts = [] if goes_on else [("denoiser", diffusion.starting(steps.denoiser))]
    return parts if only == "denoiser" else [*parts, ("finish", diffusion.finishing(steps.finish))]


def reconstruction(autoencoder: AutoencoderKL, work: Path) -> dict[str, float]:
    """Decibels of the VAE on the synthetic dataset and on what it never saw."""
    kinds = ("synthetic", *(f"unseen-{kind}s" for kind in subjects.KINDS))
    return {kind: round(vae.decibels(autoencoder, pool(kind, UNSEEN, work / "pictures")[0]), 1) for kind in kinds}


def pipeline_of(autoencoder: AutoencoderKL, words: CLIPTokenizer, model: diffusion.Denoiser) -> StableDiffusionPipeline:
    scheduler = DDIMScheduler.from_config(diffusion.new_scheduler().config, set_alpha_to_one=False)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=words,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Write the model to ``out`` in diffusers' layout, in fp16; ``base.json`` and the card there stay."""
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    # transformers would load the text encoder in the dtype its config names, diffusers the rest in fp32.
    config = out / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    pipeline.tokenizer.backend_tokenizer.model.save(
        str(out / "tokenizer")
    )  # vocab.json and merges.txt, which older readers want


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/embedded"), help="what is in progress")
    parser.add_argument(
        "--out", type=Path, default=Path("lora_service/models/embedded"), help="where the model is written"
    )
    parser.add_argument("--encoder-steps", type=int, default=6_000)
    parser.add_argument("--decoder-steps", type=int, default=8_000)
    parser.add_argument(
        "--steps", type=int, default=17_500, help="steps of the first part of the UNet and text encoder"
    )
    parser.add_argument("--finish-steps", type=int, default=5_750, help="steps of their second part")
    parser.add_argument("--seconds", type=float, default=0, help="train them in one part of so many seconds instead")
    parser.add_argument("--vae", type=Path, help="a model's folder whose VAE and tokenizer are taken as they are")
    parser.add_argument("--start", type=Path, help="a model's folder, in place of the first three parts")
    parser.add_argument("--only", choices=PARTS, help="stop after this part, and export nothing")
    parser.add_argument("--device", default="cpu", help="where the UNet and text encoder are trained: cpu or cuda")
    parser.add_argument("--batch", type=int, help="pictures in each of their steps: 32, or 1024 on a GPU")
    parser.add_argument("--pictures", type=int, help="how many different ones: 96000, or 400000 on a GPU")
    parser.add_argument("--no-compile", action="store_true", help="on a GPU, run the model as it is written")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    ready = arguments.start or arguments.vae
    if arguments.start and (arguments.vae or arguments.only not in (None, "finish")):
        parser.error("--start has ready-made what --vae gives and what the first parts make; leave one of them out")
    if arguments.vae and arguments.only in ("encoder", "decoder"):
        parser.error(f"--only {arguments.only} makes what --vae has ready-made; leave one of them out")
    torch.set_num_threads(arguments.threads)
    # On a GPU, where nothing says otherwise: what autocast leaves in fp32 in TF32, and the fastest convolutions sought.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    given = {name: getattr(arguments, name) for name in ("pictures", "batch") if getattr(arguments, name)}
    on_gpu = Scale(arguments.device, 400_000, 1024, not arguments.no_compile)
    scale = replace(LAPTOP if arguments.device == "cpu" else on_gpu, **given)
    steps = Steps(
        arguments.encoder_steps, arguments.decoder_steps, arguments.steps, arguments.finish_steps, arguments.seconds
    )
    before = Before(ready, all=bool(arguments.start)) if ready else None
    pipeline = build(arguments.work, steps, arguments.only, before, scale)
    if pipeline is not None:
        export(pipeline, arguments.out)


if __name__ == "__main__":
    main()
