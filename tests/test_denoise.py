import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import oldrestore
from oldrestore.checkpoint import read_checkpoint, write_checkpoint
from oldrestore.denoise import PATCHES, DenoiseConfig, DenoiseHead, Patches, estimate_denoise
from oldrestore.pipeline import Restorer
from oldrestore.train.denoise import best_share, error_at, parabola_of

SIZES = ((64, 64), (65, 200), (301, 97), (30, 90), (9, 8))


def image_of(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def patches_of(image: Tensor) -> Tensor:
    whole = Patches(*image.shape[2:])
    whole.add(0, image)
    return whole.patches()


def test_a_fresh_head_takes_the_same_of_every_photo() -> None:
    head = DenoiseHead(DenoiseConfig())
    assert estimate_denoise(head, patches_of(image_of(70, 90))) == 0.75


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_are_the_photos_own_pixels_from_end_to_end(size: tuple[int, int]) -> None:
    image = image_of(*size)
    found = patches_of(image).unflatten(1, (PATCHES, PATCHES))[0]
    tall, wide = (min(64, side) for side in size)
    assert torch.equal(found[0, 0, :, :tall, :wide], image[0, :, :tall, :wide])
    assert torch.equal(found[-1, -1, :, :tall, :wide], image[0, :, -tall:, -wide:])
    # beyond a short side its end is repeated
    assert torch.equal(found[0, 0, :, :, -1], found[0, 0, :, :, wide - 1])
    assert torch.equal(found[0, 0, :, -1], found[0, 0, :, tall - 1])


@pytest.mark.parametrize("band", [1, 64, 100])
def test_patches_do_not_depend_on_the_bands(band: int) -> None:
    image = image_of(301, 97)
    in_bands = Patches(301, 97)
    for top in range(0, 301, band):
        in_bands.add(top, image[:, :, top : top + band])
    assert torch.equal(in_bands.patches(), patches_of(image))


def test_the_estimate_does_not_depend_on_the_threads(restorer: Restorer) -> None:
    found = set()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.add(restorer.denoise_of(image_of(150, 190)))
    assert len(found) == 1
    assert found != {0.75}


def test_what_is_estimated_is_taken_and_told(restorer: Restorer) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    found = restorer.restore(photo, mask=None)
    (share,) = found.denoise
    assert share not in (0.0, 0.75, 1.0)
    given = restorer.restore(photo, mask=None, denoise=share)
    assert given.denoise == (share,)
    assert np.array_equal(given.image, found.image)
    assert restorer.restore(photo, strength=0).denoise == ()


def test_weights_without_the_head_take_one_share(weights: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(weights)
    config = {name: value for name, value in checkpoint.config.items() if name != "denoise"}
    tensors = {
        name: value for name, value in checkpoint.tensors.items() if not name.startswith("denoise.")
    }
    older = tmp_path / "older.safetensors"
    write_checkpoint(older, tensors, config, {})
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert Restorer.load(older).restore(photo, mask=None).denoise == (0.75,)


def test_the_shipped_head_tells_noisy_photos_from_sound_ones() -> None:
    y, x = np.mgrid[0:256, 0:256] / 256
    sound = np.stack([0.3 + 0.4 * np.sin(5 * x + k) * np.cos(4 * y) ** 2 for k in range(3)], axis=2)
    noise = 0.08 * np.random.default_rng(0).standard_normal(sound.shape)
    restorer = oldrestore.Restorer.load(faces="off")

    def share(picture: np.ndarray) -> float:
        pixels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
        (found,) = restorer.restore(pixels, mask=None, tone=0).denoise
        return found

    assert share(sound + noise) > share(sound) + 0.2
    assert share(sound + noise) > 0.6


def test_the_error_of_a_share_is_a_parabola() -> None:
    image, restored, target = (image_of(20, 30 + k)[..., :30] for k in range(3))
    mask = torch.zeros(1, 1, 20, 30)
    mask[..., :5] = 1
    parabola = parabola_of(image, restored, target, mask)[None]
    shares = torch.linspace(0, 1, 101)
    for share in (0.0, 0.3, 1.0):
        expected = (image.lerp(restored, share) - target)[..., 5:].square().mean()
        assert torch.allclose(error_at(parabola, torch.tensor([share])), expected, rtol=1e-5)
    errors = error_at(parabola.expand(101, 3), shares)
    assert abs(float(best_share(parabola)) - float(shares[errors.argmin()])) <= 0.006


def test_a_crop_that_is_all_hole_teaches_nothing() -> None:
    image = image_of(8, 8)
    parabola = parabola_of(image, image, image, torch.ones(1, 1, 8, 8))
    assert torch.equal(parabola, torch.zeros(3))


def test_the_layout_is_in_the_file(weights: Path, restorer: Restorer) -> None:
    assert restorer.config.denoise is not None
    written = read_checkpoint(weights).config["denoise"]
    assert tuple(written["channels"]) == restorer.config.denoise.channels
    assert set(written) == {field.name for field in dataclasses.fields(DenoiseConfig)}
