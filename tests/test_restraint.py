"""How much of a restoration is taken: denoise, and a repair of the holes alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import oldrestore
from oldrestore.cli import run_command
from oldrestore.config import CompactConfig, PaperConfig
from oldrestore.pipeline import Restorer
from oldrestore.restraint import hold_back, read_wishes

PHOTOS = Path(__file__).parent / "photos"
LITTLE = 255**2 / 10**3.8  # a PSNR of 38 dB
KINDS = (np.uint8, np.uint16, np.float32, np.float64)


def random_photo(kind: type = np.uint8, side: int = 48) -> np.ndarray:
    values = np.random.default_rng(0).random((side, side, 3))
    return (values * (np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1)).astype(kind)


def holes(side: int = 48) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[10:14] = mask[20:30, 20:30] = 255
    return mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"outside_mask": "keep"}, {"denoise": 0, "tone": 0}], ids=str)
def test_outside_the_mask_no_bit_changes(restorer: Restorer, kind: type, options: dict) -> None:
    photo, mask = random_photo(kind), holes()
    result = restorer.restore(photo, mask=mask, **options).image
    assert result.dtype == kind
    assert np.array_equal(result[mask == 0], photo[mask == 0])
    assert (result[mask > 0] != photo[mask > 0]).mean() > 0.9


def test_a_photo_that_is_not_faded_is_kept_to_the_bit_at_denoise_0(restorer: Restorer) -> None:
    photo = random_photo(np.float32)
    assert not np.array_equal(restorer.restore(photo, mask=None, denoise=0, tone=1).image, photo)
    restorer.tone_head.to_curve.bias[-1] = -5.0
    assert np.array_equal(restorer.restore(photo, mask=None, denoise=0, tone=1).image, photo)


def test_outside_holes_denoise_mixes_photo_and_restoration(restorer: Restorer) -> None:
    photo, mask = random_photo(np.float32), holes()
    none, half, full = (
        restorer.restore(photo, mask=mask, denoise=d, tone=0).image for d in (0.0, 0.5, 1.0)
    )
    outside = mask == 0
    assert np.abs(half - (none + full) / 2)[outside].max() < 1e-6
    assert np.abs(full - none)[outside].mean() > 0.01
    image, damage = torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1, torch.from_numpy(mask)
    restored = restorer.restore_tensor(image, (damage[None, None] > 0).float())
    assert np.abs((restored[0].permute(1, 2, 0) + 1).numpy() / 2 - full).max() < 1e-6


def test_holes_get_the_grain_that_stays_around_them() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.1 * torch.randn(1, 1, 96, 96, generator=generator).expand(1, 3, 96, 96)
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., 30:60, 30:60] = 1
    smooth = torch.zeros_like(image)
    for denoise, expected in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        inside = hold_back(image, smooth, mask, denoise)[..., 30:60, 30:60]
        assert float(inside.std()) == pytest.approx(expected, rel=0.2)
        assert (inside - inside[:, :1]).abs().max() < 1e-6


def test_kept_grey_photos_stay_grey(restorer: Restorer) -> None:
    grey = random_photo()[..., :1].repeat(3, axis=2)
    result = restorer.restore(grey, mask=holes(), outside_mask="keep").image
    assert (result == result[..., :1]).all()
    assert (result != grey).any()


def test_a_repair_of_the_holes_repeated_changes_nothing(restorer: Restorer) -> None:
    photo, mask = random_photo(), holes()
    once = restorer.restore(photo, mask=mask, outside_mask="keep").image
    assert np.array_equal(restorer.restore(once, mask=mask, outside_mask="keep").image, once)


def test_nothing_is_kept_of_a_photo_without_holes_but_itself(restorer: Restorer) -> None:
    photo = random_photo(np.float64)
    assert np.array_equal(restorer.restore(photo, mask=None, outside_mask="keep").image, photo)


def test_defaults_are_the_photos_or_moderate_and_the_published_networks_as_published() -> None:
    nothing = {"threshold": None, "denoise": None, "tone": None, "strength": 1.0}
    compact = read_wishes(CompactConfig(), outside_mask="restore", **nothing)
    assert compact.denoise is None
    headless = read_wishes(CompactConfig(denoise=None), outside_mask="restore", **nothing)
    assert 0.4 < headless.denoise < 0.9
    assert read_wishes(PaperConfig(), outside_mask="restore", **nothing).denoise == 1
    keep = read_wishes(CompactConfig(), outside_mask="keep", **nothing)
    assert (keep.denoise, keep.tone, keep.strength) == (0, 0, 1)


def test_what_contradicts_itself_is_refused(restorer: Restorer) -> None:
    photo = random_photo()
    with pytest.raises(ValueError, match="outside_mask: expected 'restore' or 'keep', got 'all'"):
        restorer.restore(photo, outside_mask="all")  # type: ignore[arg-type]
    for name in ("denoise", "tone"):
        with pytest.raises(ValueError, match=f'{name}: expected 0 with outside_mask="keep"'):
            restorer.restore(photo, outside_mask="keep", **{name: 0.5})
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="denoise: expected 0 to 1"):
            restorer.restore(photo, denoise=value)
    restorer.mapping.uses_mask = False
    with pytest.raises(ValueError, match=r'outside_mask: expected "restore"; .* fill no holes'):
        restorer.restore(photo, outside_mask="keep")


def test_the_options_reach_the_restorer(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out.png"
    Image.fromarray(random_photo()).save(source)
    Image.fromarray(holes()).save(tmp_path / "mask.png")
    command = ["restore", str(source), "-o", str(out), "--weights", str(weights)]
    for options, expected in (
        (["--denoise", "0.25"], {"denoise": 0.25}),
        (
            ["--outside-mask", "keep", "--mask", str(tmp_path / "mask.png")],
            {"outside_mask": "keep", "mask": holes()},
        ),
    ):
        assert run_command([*command, *options]) == 0
        wanted = oldrestore.restore(source, weights=weights, **expected)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(Image.open(out)), np.asarray(wanted))
    capsys.readouterr()
    assert run_command([*command, "--outside-mask", "keep", "--no-mask"]) == 2
    assert "--outside-mask keep: expected no --no-mask" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["carte-de-visite", "film-frame", "glass-plate"])
@pytest.mark.parametrize("denoise", [None, 1.0])
def test_restoring_twice_changes_little(name: str, denoise: float | None) -> None:
    photo = np.asarray(Image.open(PHOTOS / f"{name}.jpg").convert("RGB"))[:192, :192]

    def restore(picture: np.ndarray) -> np.ndarray:
        return oldrestore.restore(picture, mask=None, denoise=denoise, tone=0)

    once = restore(photo)
    twice = restore(once)
    assert (once != photo).any()
    assert np.square(once.astype(float) - twice).mean() < LITTLE
