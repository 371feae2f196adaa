"""The latent gap: nought for the same, as defined for shifts, and read from runs and files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.evaluate.latents import evaluate_latents, gap_between
from oldrestore.pipeline import Restorer


def vectors(seed: int, *, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * (rng.standard_normal((16, 64, 8)) + shift * np.eye(8)[0])


def test_the_gap_of_a_shift_is_the_shift_in_deviations() -> None:
    same = gap_between(vectors(0), vectors(1))
    assert same.gap < 0.12
    assert same.floor < 0.17
    far = gap_between(vectors(0), vectors(1, shift=2.0))
    # a unit vector in 8 dimensions has 1/8 of its square on each axis
    assert far.gap == pytest.approx(2 / np.sqrt(8), rel=0.1)
    assert far.low < far.gap < far.high


def test_the_unit_of_the_latents_does_not_matter() -> None:
    first = gap_between(vectors(0), vectors(1, shift=1.0))
    second = gap_between(vectors(0, scale=50.0), vectors(1, shift=1.0, scale=50.0))
    assert second.gap == pytest.approx(first.gap)


def test_vaes_of_weights_files_are_compared(
    clean_folder: Path, old_folder: Path, restorer: Restorer, tmp_path: Path
) -> None:
    paths = {}
    for name in ("first", "second"):
        paths[name] = tmp_path / f"{name}.safetensors"
        restorer.save(paths[name], {})
        with torch.no_grad():  # the second looks at fine detail alone
            restorer.vae_old_encoder.skip.weight -= restorer.vae_old_encoder.skip.weight.mean(
                dim=(1, 2, 3), keepdim=True
            )
    results = evaluate_latents(paths, old_folder, clean_folder)
    assert results == evaluate_latents(paths, old_folder, clean_folder)
    assert (results.real, results.synthetic) == (4, 4)
    first, second = results.gaps.values()
    assert first.gap > 0
    assert second.gap != first.gap
    lines = results.tables()[0].markdown().splitlines()
    assert lines[2].startswith(f"| first | {first.gap:.3f} [")
    assert lines[2].endswith("| 1.00 |")
    assert lines[3].endswith(f"| {second.gap / first.gap:.2f} |")


def test_too_few_photos_and_files_without_a_vae_are_refused(
    clean_folder: Path, old_folder: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="expected two photos or more in each"):
        evaluate_latents({"a": weights}, old_folder, clean_folder, limit=1)
    with pytest.raises(ValueError, match="no training state there"):
        evaluate_latents({"a": tmp_path}, old_folder, clean_folder)
