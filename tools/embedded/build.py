"""Makes the embedded base model, from nothing to the folder that the package ships.

    python -m tools.embedded.build

Stopped at any moment, it goes on where it was when started again; ``--work`` holds
what is in progress. About 100 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from tools.embedded import diffusion, tokenizer, vae
from tools.embedded.pool import pool

PICTURES = 40_000
HELD_OUT = 512


def build(work: Path, out: Path, vae_steps: int, steps: int) -> None:
    """Train what is not trained yet and write the model to ``out``."""
    autoencoder = vae.train(work, vae_steps, 24_000)
    unseen, _ = pool("strangers", HELD_OUT, work / "pictures")
    seen, captions = pool("world", PICTURES, work / "pictures")
    figures = {
        "vae_db_world": round(vae.decibels(autoencoder, seen[:HELD_OUT]), 1),
        "vae_db_unseen_subjects": round(vae.decibels(autoencoder, unseen), 1),
    }
    print(json.dumps(figures), flush=True)
    words = tokenizer.train(captions)
    model = diffusion.train(autoencoder, words, work, steps, PICTURES)
    export(autoencoder, words, model, out)


def export(autoencoder: AutoencoderKL, words: CLIPTokenizer, model: diffusion.Denoiser, out: Path) -> None:
    """Write the model to ``out`` in diffusers' layout, in fp16; ``base.json`` and the card there stay."""
    scheduler = PNDMScheduler.from_config(diffusion.new_scheduler().config, skip_prk_steps=True, set_alpha_to_one=False)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=words,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    # transformers would load the text encoder in the dtype its config names, diffusers the rest in fp32.
    config = out / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    words.backend_tokenizer.model.save(str(out / "tokenizer"))  # vocab.json and merges.txt, which older readers want


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/embedded"), help="what is in progress")
    parser.add_argument(
        "--out", type=Path, default=Path("lora_service/models/embedded"), help="where the model is written"
    )
    parser.add_argument("--vae-steps", type=int, default=5600)
    parser.add_argument("--steps", type=int, default=10000, help="steps of the UNet and text encoder")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    build(arguments.work, arguments.out, arguments.vae_steps, arguments.steps)


if __name__ == "__main__":
    main()
