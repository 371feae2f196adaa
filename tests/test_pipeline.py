import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import oldrestore
from oldrestore.config import CompactConfig, restorer_config
from oldrestore.fill import FILL_CONTEXT_PX, fill_holes
from oldrestore.pipeline import Restorer


def random_photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def random_image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, width, generator=generator) * 2 - 1


def scratches(height: int, width: int) -> Tensor:
    """A mask with a long line and some spots, small against the hole fill's context."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 3 : height // 3 + 3, :] = 1
    generator = torch.Generator().manual_seed(1)
    spots = torch.rand(1, 1, height // 8, width // 8, generator=generator) < 0.1
    return torch.maximum(mask, spots.float().repeat_interleave(8, 2).repeat_interleave(8, 3))


def in_halves(run: object, image: Tensor, mask: Tensor, split: int, halo: int) -> Tensor:
    """``run`` on two halves that overlap by twice the halo, each cropped to what is its own."""
    left = run(image[..., : split + halo], mask[..., : split + halo])
    right = run(image[..., split - halo :], mask[..., split - halo :])
    return torch.cat([left[..., :split], right[..., halo:]], dim=3)


def test_halves_with_the_computed_halo_equal_the_whole(restorer: Restorer) -> None:
    align, context = restorer.align_px, restorer.context_px
    assert context % align == 0
    image, mask = random_image(72, 4 * context + 24), scratches(72, 4 * context + 24)
    filled = fill_holes(image, mask)
    whole = restorer.translate(filled, mask)
    assert (whole - filled).abs().mean() > 0.05  # else the test could not fail
    halves = in_halves(restorer.translate, filled, mask, 2 * context, context)
    assert (halves - whole).abs().max() <= 2e-5


def test_halves_equal_the_whole_hole_fill_included(restorer: Restorer) -> None:
    cell = max(restorer.align_px, 64)  # the fill's coarsest cells
    halo = -(-(restorer.context_px + FILL_CONTEXT_PX) // cell) * cell
    image, mask = random_image(40, 4 * halo), scratches(40, 4 * halo)
    whole = restorer.restore_tensor(image, mask)
    halves = in_halves(restorer.restore_tensor, image, mask, 2 * halo, halo)
    assert (halves - whole).abs().max() <= 2e-5


def test_too_small_a_halo_is_seen(restorer: Restorer) -> None:
    context = restorer.context_px
    image, mask = random_image(40, 4 * context), scratches(40, 4 * context)
    whole = restorer.translate(image, mask)
    halves = in_halves(restorer.translate, image, mask, 2 * context, restorer.align_px)
    assert (halves - whole).abs().max() > 2e-5


@pytest.mark.parametrize("offset", [0, 3, 7, 13])
def test_nothing_reaches_beyond_the_context(restorer: Restorer, offset: int) -> None:
    # in float64 a convolution is a plain sum; fast ones (Winograd) carry rounding a little further
    restorer.dtype = torch.float64
    for network in restorer.networks().values():
        network.double()
    context = restorer.context_px
    image, mask = random_image(32, 3 * context), scratches(32, 3 * context)
    whole = restorer.translate(image, mask)
    column = context + offset
    changed = image.clone()
    changed[..., column] *= -1
    reached = (restorer.translate(changed, mask) - whole).abs().amax(dim=(0, 1, 2)) > 0
    columns = reached.nonzero().flatten()
    assert columns.numel() > 0
    assert (columns - column).abs().max() <= context
    assert (columns - column).abs().max() > context / 2  # and the bound is not an idle one


def test_each_kind_of_photo_gives_its_kind(restorer: Restorer, tmp_path: Path) -> None:
    array = random_photo(20, 30)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = restorer.restore(array).image
    assert expected.dtype == np.uint8
    assert (expected != array).any()
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        result = restorer.restore(photo).image
        assert isinstance(result, Image.Image)
        assert np.array_equal(np.asarray(result), expected)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert torch.equal(restorer.restore(tensor).image.permute(1, 2, 0), torch.from_numpy(expected))
    result = restorer.restore(tensor[None] / 255).image
    assert result.shape == (1, 3, 20, 30)
    assert (result[0].permute(1, 2, 0) * 255 - torch.from_numpy(expected)).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(8, 8), (9, 23), (64, 8), (33, 65)])
def test_any_size_from_8_px_keeps_its_size(restorer: Restorer, size: tuple[int, int]) -> None:
    result = restorer.restore(random_photo(*size))
    assert result.image.shape == (*size, 3)
    assert result.mask.shape == size


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_grey_photos_stay_grey(restorer: Restorer, mode: str) -> None:
    grey = random_photo(20, 24)[..., 0]
    photo = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    photo = photo.convert("RGB") if mode == "RGB" else photo
    result = restorer.restore(photo, tone=1.0).image
    assert result.mode == mode
    values = np.asarray(result)
    assert (values != np.asarray(photo)).any()
    if mode == "RGB":
        assert (values == values[..., :1]).all()


def test_alpha_is_untouched(restorer: Restorer) -> None:
    photo = np.dstack([random_photo(16, 16), random_photo(16, 16, seed=1)[..., 0]])
    result = restorer.restore(photo).image
    assert np.array_equal(result[..., 3], photo[..., 3])
    assert (result[..., :3] != photo[..., :3]).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_strength_0_returns_the_photo_to_the_bit(restorer: Restorer, dtype: type) -> None:
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    photo = (np.random.default_rng(0).random((16, 17, 4)) * scale).astype(dtype)
    result = restorer.restore(photo, strength=0.0)
    assert result.image.dtype == dtype
    assert np.array_equal(result.image, photo)
    assert result.image is not photo
    assert result.mask is not None


def test_strength_blends_photo_and_restoration(restorer: Restorer) -> None:
    photo = random_photo(16, 24).astype(np.float32) / 255
    whole = restorer.restore(photo).image
    half = restorer.restore(photo, strength=0.5).image
    assert np.abs(half - (photo + whole) / 2).max() < 1e-6


def test_no_mask_and_a_mask_of_zeros_are_the_same(restorer: Restorer) -> None:
    photo = random_photo(24, 24)
    without = restorer.restore(photo, mask=None)
    assert without.mask is None
    zeros = restorer.restore(photo, mask=np.zeros((24, 24), bool))
    assert np.array_equal(without.image, zeros.image)


def test_what_lies_under_the_mask_has_no_influence(restorer: Restorer) -> None:
    photo = random_photo(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    repainted = photo.copy()
    repainted[mask > 0] = 255 - repainted[mask > 0]
    first, second = restorer.restore(photo, mask=mask), restorer.restore(repainted, mask=mask)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, mask)


def test_the_nonlocal_block_can_be_switched_off(restorer: Restorer) -> None:
    image, mask = random_image(32, 32), scratches(32, 32)
    on = restorer.restore_tensor(image, mask)
    off = restorer.restore_tensor(image, mask, use_nonlocal=False)
    assert (on != off).any()
    assert torch.equal(restorer.restore_tensor(image, mask), on)


def test_tone_is_off_at_0_and_grows_with_its_strength(restorer: Restorer) -> None:
    photo = random_photo(32, 32).astype(np.float32) / 255
    none, half, full = (restorer.restore(photo, tone=t) for t in (0.0, 0.5, 1.0))
    assert none.tone == ()
    assert half.tone[0] == dataclasses.replace(full.tone[0], strength=0.5)
    moved = [np.abs(r.image - none.image).mean() for r in (half, full)]
    assert 0 < moved[0] < moved[1]
    assert restorer.restore(photo).tone[0].strength == restorer.config.defaults.tone_strength


def test_a_photo_that_is_not_faded_keeps_its_tone(restorer: Restorer) -> None:
    restorer.tone_head.to_curve.bias[-1] = -5.0
    photo = random_photo(32, 32)
    result = restorer.restore(photo, tone=1.0)
    assert result.tone[0].strength == 0
    assert np.array_equal(result.image, restorer.restore(photo, tone=0.0).image)


def test_a_photo_does_not_depend_on_its_batch_or_list(restorer: Restorer) -> None:
    batch = torch.rand(3, 3, 19, 26, generator=torch.Generator().manual_seed(0))
    alone = [restorer.restore(photo).image for photo in batch]
    together = restorer.restore(batch)
    assert torch.equal(together.image, torch.stack(alone))
    assert together.mask.shape == (3, 1, 19, 26)
    assert len(together.tone) == 3
    listed = restorer.restore(list(batch), mask=["auto", None, torch.zeros(19, 26)])
    assert torch.equal(listed[0].image, alone[0])
    assert torch.equal(listed[1].image, restorer.restore(batch[1], mask=None).image)
    assert listed[1].mask is None
    with pytest.raises(ValueError, match="mask: expected 3 to match photo, got 2"):
        restorer.restore(list(batch), mask=[None, None])


def test_restoring_is_deterministic_and_leaves_torch_alone(restorer: Restorer) -> None:
    photo, threads = random_photo(40, 40), torch.get_num_threads()
    state = torch.random.get_rng_state()
    first, second = restorer.restore(photo), restorer.restore(photo)
    assert np.array_equal(first.image, second.image)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_results_can_be_used_in_autograd(restorer: Restorer) -> None:
    image = restorer.restore(torch.rand(3, 16, 16)).image
    (image * torch.ones(1, requires_grad=True)).sum().backward()


def test_the_threshold_and_the_dilation_shape_the_mask(restorer: Restorer) -> None:
    photo = random_photo(33, 47)
    assert (restorer.detect(photo, threshold=0.0) == 255).all()
    assert (restorer.detect(photo, threshold=1.0) == 0).all()
    wide = restorer.detect(photo)
    assert np.array_equal(wide, restorer.restore(photo).mask)
    defaults = dataclasses.replace(restorer.config.defaults, dilation_px=0)
    restorer.config = dataclasses.replace(restorer.config, defaults=defaults)
    thin = restorer.detect(photo)
    assert 0 < thin.mean() < wide.mean()
    for row, column in zip(*np.nonzero(thin), strict=True):
        around = wide[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert (around == 255).all()


@pytest.mark.parametrize("name", ["threshold", "strength", "tone"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_numbers_out_of_range_are_refused(restorer: Restorer, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected 0 to 1"):
        restorer.restore(random_photo(8, 8), **{name: value})


def test_a_weights_file_gives_the_same_restorer(restorer: Restorer, weights: Path) -> None:
    for network in restorer.networks().values():
        network.half().float()  # what the file keeps
    loaded = Restorer.load(weights, device="cpu")
    assert loaded.config == restorer.config
    assert loaded.about == {"data": "none"}
    photo = random_photo(24, 32)
    assert np.array_equal(loaded.restore(photo).image, restorer.restore(photo).image)


def test_half_precision_is_near_full(weights: Path) -> None:
    photo = random_photo(32, 32).astype(np.float32) / 255
    full = Restorer.load(weights, device="cpu").restore(photo, mask=None)
    half = Restorer.load(weights, device="cpu", dtype=torch.bfloat16).restore(photo, mask=None)
    assert half.image.dtype == np.float32
    assert 0 < np.abs(half.image - full.image).max() < 0.05
    with pytest.raises(ValueError, match="dtype: expected float32"):
        Restorer.load(weights, dtype=torch.int8)


def rewrite(path: Path, **changes: object) -> None:
    """The weights file with its header or tensors changed; a tensor None is taken out."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    tensors |= changes.pop("tensors", {})
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {**header, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"mapping.tail.bias": None}}, "missing key mapping.tail.bias"),
        ({"tensors": {"mapping.more": torch.ones(1)}}, "unknown key mapping.more"),
        ({"tensors": {"vae_old.decoder.x": torch.ones(1)}}, "unknown key vae_old.decoder.x"),
        ({"tensors": {"tone.to_curve.bias": torch.ones(3)}}, "tone.to_curve.bias: expected shape"),
        ({"config": "{}"}, "config.preset: expected one of compact, paper, got None"),
    ],
)
def test_a_wrong_weights_file_is_one_clear_error(
    weights: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(weights, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Restorer.load(weights)
    assert str(weights) in str(caught.value)


def test_configs_that_fit_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="preset: expected one of compact, paper, got 'huge'"):
        restorer_config({"preset": "huge"}, "config")
    config = CompactConfig()
    vae = dataclasses.replace(config.vae, latent_channels=3)
    with pytest.raises(ValueError, match="vae and mapping differ in latent_channels: 3 and 64"):
        Restorer(dataclasses.replace(config, vae=vae))


def test_the_functions_of_the_package_read_the_weights_once(weights: Path) -> None:
    photo = random_photo(24, 24)
    restored = oldrestore.restore(photo, weights=weights)
    mask = oldrestore.detect_scratches(photo, weights=str(weights))
    weights.unlink()
    again = oldrestore.restore([photo, photo], weights=weights)
    assert np.array_equal(again[0], restored)
    assert np.array_equal(again[1], restored)
    assert mask.shape == (24, 24)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        oldrestore.restore(photo, weights=weights.with_name("other"))
