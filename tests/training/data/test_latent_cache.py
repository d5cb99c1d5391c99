"""The VAE's posterior, cached."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageOps

from lora_service.dataset.training_images import UncroppedImage
from lora_service.training.data.latent_cache import CROPPED, JITTERED, cache_latents
from tests.small_base import picture, small_base


def posterior(image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    base = small_base()
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    found = base.vae.encode(pixels).latent_dist
    scale = base.vae.config.scaling_factor
    return found.mean * scale, found.std * scale


def test_versions_are_the_picture_and_its_mirror() -> None:
    red = picture("red")
    (cache,) = cache_latents([red, picture("green")], small_base(), flip=True, color_jitter=False, seed=0)
    assert cache.mean.shape == (2, 2, 4, 8, 8)
    for version, image in enumerate((red.image, ImageOps.mirror(red.image))):
        mean, std = posterior(image)
        torch.testing.assert_close(cache.mean[version, 0], mean[0])
        torch.testing.assert_close(cache.std[version, 0], std[0])


def test_each_draw_is_a_fresh_sample_of_the_posterior() -> None:
    (cache,) = cache_latents([picture()], small_base(), flip=False, color_jitter=False, seed=0)
    generator, zeros = torch.Generator().manual_seed(0), torch.zeros(4000, dtype=torch.long)
    drawn = cache.sample(zeros, zeros, generator)
    torch.testing.assert_close(drawn.mean(dim=0), cache.mean[0, 0], atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), cache.std[0, 0], atol=0.1, rtol=0)


def test_masks_are_mirrored_along_and_pictures_without_one_count_whole() -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 8, 32))
    masked = [picture("red", mask=mask), picture("green")]
    (cache,) = cache_latents(masked, small_base(), flip=True, color_jitter=False, seed=0)
    found = cache.masks(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
    assert found is not None
    assert found[0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert found[1, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert found[2].min() == 1


def test_sizes_are_kept_apart_and_jitter_adds_versions() -> None:
    pictures = [picture("red"), picture("green", size=(48, 32))]
    caches = cache_latents(pictures, small_base(), flip=False, color_jitter=True, seed=0)
    assert [c.mean.shape for c in caches] == [(JITTERED, 1, 4, 8, 8), (JITTERED, 1, 4, 8, 12)]
    assert [c.images for c in caches] == [(0,), (1,)]
    assert not torch.equal(caches[0].mean[0], caches[0].mean[1])


def test_random_crops_are_the_same_every_time_and_all_of_one_size() -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, :, 0] = np.arange(128)[None, :]  # the red of a pixel says where it is
    uncropped = UncroppedImage(Image.fromarray(wide), None, None)
    own = picture(original=(128, 64), crop=(32, 0, 96, 64), uncropped=uncropped)
    base = small_base(family="sdxl")
    (cache,), (again,), (other,) = (
        cache_latents([own], base, flip=True, color_jitter=True, random_crop=True, seed=seed) for seed in (0, 0, 1)
    )
    (plain,) = cache_latents([own], base, flip=True, color_jitter=True, seed=0)
    assert cache.mean.shape[:2] == (2 * CROPPED, 1)
    assert torch.equal(cache.mean, again.mean)
    assert torch.equal(cache.mean[:2], plain.mean[:2])  # the first variants are the crop without random_crop
    assert not torch.equal(cache.mean, other.mean)
    assert cache.sizes is not None
    assert len({tuple(row) for row in cache.sizes[::2, 0].tolist()}) == CROPPED
    assert {tuple(row[:2]) for row in cache.sizes[:, 0].tolist()} == {(64, 128)}


def test_masks_are_cropped_as_their_pictures() -> None:
    mask = Image.new("L", (128, 64), 0)
    mask.paste(255, (100, 20, 116, 40))
    uncropped = UncroppedImage(Image.new("RGB", (128, 64)), mask, (100, 20, 116, 40))
    own = picture(original=(128, 64), crop=(64, 0, 128, 64), uncropped=uncropped, mask=mask.crop((64, 0, 128, 64)))
    own = replace(own, mask=mask.crop((64, 0, 128, 64)).resize((32, 32)))
    (cache,) = cache_latents([own], small_base(), flip=False, color_jitter=False, random_crop=True, seed=0)
    assert cache.mask is not None
    assert cache.mask.shape[0] == CROPPED
    assert all(mask.max() > 0.9 for mask in cache.mask)  # the subject is in each of them
    assert len({tuple(mask.flatten().tolist()) for mask in cache.mask}) > CROPPED / 2
