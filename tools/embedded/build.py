"""Makes the embedded base model, from nothing to the folder that the package ships.

    python -m tools.embedded.build

Stopped at any moment, it goes on where it was when started again; ``--work`` holds
what is in progress. Four parts of at most 90 minutes each on two CPU cores: the VAE's
encoder, its decoder, and the UNet with the text encoder in two. The first three do not
wait for each other, as all learn from the same components of pictures: ``--only`` one of
them in a shell each trains them at the same time.

    python -m tools.embedded.build --start lora_service/models/embedded

takes a model that was made before in place of the first three parts.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from tools.embedded import diffusion, tokenizer, vae
from tools.embedded.components import Components
from tools.embedded.pool import pool
from tools.world import subjects

PICTURES = 96_000
VARIETY = 24_000
UNSEEN = 256
FOR_COMPONENTS = 4_000
PARTS = ("encoder", "decoder", "denoiser", "finish")


@dataclass(frozen=True)
class Steps:
    """How long each part is trained."""

    encoder: int
    decoder: int
    denoiser: int
    finish: int


def build(work: Path, steps: Steps, only: str | None, start: Path | None = None) -> StableDiffusionPipeline | None:
    """Train what is not trained yet; the model, or None when ``only`` one part was asked for.

    ``start`` is the folder of a model made before, whose UNet and text encoder are finished anew.
    """
    variety, _ = pool("variety", VARIETY, work / "pictures")
    components = Components.of(variety[:FOR_COMPONENTS])
    if start:
        autoencoder, words, model = _made_before(start)
    else:
        autoencoder = vae.new_vae()
        if only in (None, "encoder"):
            vae.train_encoder(autoencoder, components, variety, work, steps.encoder)
        if only in (None, "decoder"):
            vae.train_decoder(autoencoder, components, variety, work, steps.decoder)
        if only in ("encoder", "decoder"):
            return None
        words = tokenizer.kept(pool("world", PICTURES, work / "pictures")[1], work / "tokenizer")
        model = diffusion.Denoiser(words)
    lessons = diffusion.Lessons.of(components, words, PICTURES, work / "pictures")
    if not start:
        diffusion.train(model, lessons, diffusion.starting(steps.denoiser), work / "denoiser.pt")
    if only != "denoiser":
        diffusion.train(model, lessons, diffusion.finishing(steps.finish), work / "finish.pt")
    if only:
        return None
    print(json.dumps(reconstruction(autoencoder, work)), flush=True)
    return pipeline_of(autoencoder, words, model)


def _made_before(folder: Path) -> tuple[AutoencoderKL, CLIPTokenizer, diffusion.Denoiser]:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    autoencoder, model = vae.new_vae(), diffusion.Denoiser(pipeline.tokenizer)
    autoencoder.load_state_dict(pipeline.vae.state_dict())
    model.unet.load_state_dict(pipeline.unet.state_dict())
    model.text_encoder.load_state_dict(pipeline.text_encoder.state_dict())
    return autoencoder, pipeline.tokenizer, model


def reconstruction(autoencoder: AutoencoderKL, work: Path) -> dict[str, float]:
    """Decibels of the VAE on the world and on what it never saw."""
    kinds = ("world", *(f"unseen-{kind}s" for kind in subjects.KINDS))
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
    parser.add_argument("--start", type=Path, help="a model's folder, in place of the first three parts")
    parser.add_argument("--only", choices=PARTS, help="stop after this part, and export nothing")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.start and arguments.only not in (None, "finish"):
        parser.error(f"--only {arguments.only} makes what --start has ready-made; leave one of them out")
    torch.set_num_threads(arguments.threads)
    steps = Steps(arguments.encoder_steps, arguments.decoder_steps, arguments.steps, arguments.finish_steps)
    pipeline = build(arguments.work, steps, arguments.only, arguments.start)
    if pipeline is not None:
        export(pipeline, arguments.out)


if __name__ == "__main__":
    main()
