"""Scores without a target: they order what can be ordered, and repeat."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from oldrestore.evaluate.naturalness import (
    _generalised_gaussian,
    fit_naturalness,
    patch_features,
    sharpness_of,
)
from oldrestore.evaluate.real import SCORES, evaluate_real
from oldrestore.evaluate.scores import psnr_between
from oldrestore.pipeline import Restorer

PHOTOS = Path(__file__).parents[1] / "photos"


def pixels_of(name: str) -> np.ndarray:
    with Image.open(PHOTOS / f"{name}.jpg") as photo:
        return np.asarray(photo.convert("RGB"))


def test_shapes_of_known_distributions_are_found() -> None:
    rng = np.random.default_rng(0)
    gaussian = rng.normal(0, 2, (1, 200, 200))
    shape, left, right, mean = _generalised_gaussian(gaussian)
    assert shape == pytest.approx([2], rel=0.05)
    # a Gaussian of deviation s has the scale s * sqrt(2); in NIQE's parametrisation times sqrt(1/2)
    assert left == pytest.approx(right, rel=0.05)
    assert mean == pytest.approx([0], abs=0.05)
    shape, *_ = _generalised_gaussian(rng.laplace(0, 1, (1, 200, 200)))
    assert shape == pytest.approx([1], rel=0.05)
    lopsided = np.where(gaussian > 0, 3 * gaussian, gaussian)
    shape, left, right, mean = _generalised_gaussian(lopsided)
    assert right / left == pytest.approx([3], rel=0.05)
    assert mean > 0


def test_features_are_36_a_patch_and_do_not_depend_on_brightness() -> None:
    photo = pixels_of("film-frame")[:200, :300]
    features, sharpness = patch_features(photo)
    assert features.shape == (2 * 3, 36)
    assert sharpness.shape == (6,)
    darker, _ = patch_features(photo // 2)
    assert np.abs(darker - features)[:, 0].max() < 0.5 * features[:, 0].mean()
    assert patch_features(photo[:95])[0].shape == (0, 36)


def test_noise_and_blur_are_less_natural() -> None:
    photo = pixels_of("carte-de-visite")
    natural = fit_naturalness([photo])
    other = photo[40:-40, 40:-40]
    noise = np.random.default_rng(0).normal(0, 40, other.shape)
    noisy = (other + noise).clip(0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(other).filter(ImageFilter.GaussianBlur(3)))
    own = natural.distance(other)
    assert own is not None
    for worse in (noisy, blurred):
        distance = natural.distance(worse)
        assert distance is not None
        assert distance > 1.5 * own
    assert natural.distance(photo[:96, :96]) is None
    with pytest.raises(ValueError, match="expected some of 96 px"):
        fit_naturalness([photo[:50, :50]])


def test_blur_takes_fine_structure_away() -> None:
    photo = pixels_of("film-frame")
    blurred = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(2)))
    assert sharpness_of(blurred) < 0.8 * sharpness_of(photo)
    assert sharpness_of(np.full((20, 20, 3), 9, np.uint8)) == 0


def test_real_photos_are_scored_in_every_way(
    old_folder: Path, clean_folder: Path, restorer: Restorer
) -> None:
    results = evaluate_real(old_folder, clean_folder, restorer)
    assert results == evaluate_real(old_folder, clean_folder, restorer)
    assert results.photos == 4  # the broken one is none
    untouched = results.rows["input"]
    assert untouched["change"].value == untouched["again"].value == 100
    assert 6 < untouched["noise"].value < 9  # 12 a channel, less in grey
    pictures = [np.asarray(Image.open(old_folder / f"{i}.png").convert("RGB")) for i in range(4)]
    for title, options in (
        ("ours as `restore(photo)`", {}),
        ("ours, `denoise=1`", {"denoise": 1.0}),
        ('ours, `outside_mask="keep"`', {"outside_mask": "keep"}),
    ):
        once = [restorer.restore(picture, **options).image for picture in pictures]
        twice = [restorer.restore(picture, **options).image for picture in once]
        scores = results.rows[title]
        for name, expected in (
            ("change", [psnr_between(a, b) for a, b in zip(once, pictures, strict=True)]),
            ("again", [psnr_between(a, b) for a, b in zip(twice, once, strict=True)]),
            ("sharpness", [sharpness_of(a) for a in once]),
            ("flagged", [(restorer.detect(a) > 0).mean() for a in once]),
        ):
            assert scores[name].value == pytest.approx(np.mean(expected)), (title, name)
    lines = results.tables()[0].markdown().splitlines()
    assert lines[0] == f"|  | {' | '.join(SCORES.values())} |"
    assert len(lines) == 8
    with pytest.raises(ValueError, match="none of its 1 photos can be read"):
        evaluate_real(_only_broken(old_folder), clean_folder, restorer)


def _only_broken(folder: Path) -> Path:
    alone = folder.with_name(f"{folder.name}-broken")
    alone.mkdir()
    (alone / "broken.png").write_bytes((folder / "broken.png").read_bytes())
    return alone


def test_weights_without_a_detector_are_refused(
    old_folder: Path, clean_folder: Path, restorer: Restorer
) -> None:
    restorer.detector = None
    with pytest.raises(ValueError, match="have no scratch detector"):
        evaluate_real(old_folder, clean_folder, restorer, limit=1)
