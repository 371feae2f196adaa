"""Grain: what is measured is what is there, and what is drawn is like it, bit for bit the same."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.degradation.unstructured import FilmGrain, add_film_grain
from oldrestore.grain import BLOCK_PX, GrainSurvey, draw_grain, grain_field, measure_grain

HEIGHT, WIDTH = 192, 256


def shaded() -> Tensor:
    """A grey slope: what a photo of a sky is without its grain."""
    slope = torch.linspace(-0.6, 0.4, WIDTH).expand(1, 3, HEIGHT, WIDTH)
    return slope.contiguous()


def grainy(sigma: float, size_px: float) -> Tensor:
    grain = FilmGrain(sigma, size_px, seed=3)
    return torch.from_numpy(add_film_grain(shaded().numpy(), grain)).float().clamp(-1, 1)


def hole() -> Tensor:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 60:130, 90:170] = 1
    mask[..., 40:43, :] = 1
    return mask


def correlation(noise: np.ndarray, lag: int) -> float:
    """Of pixels ``lag`` columns apart."""
    return float((noise[:, lag:] * noise[:, :-lag]).mean() / np.square(noise).mean())


@pytest.mark.parametrize("size_px", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_grain_is_drawn_as_it_was_measured(sigma: float, size_px: float) -> None:
    photo, mask = grainy(sigma, size_px), hole()
    drawn = draw_grain(measure_grain(photo, mask), shaded(), mask)[0, 0, 60:130, 90:170].numpy()
    there = (photo - shaded())[0, 0].numpy()
    # the blocks taken are the quietest ones: a little less, never more
    assert 0.8 * there.std() < drawn.std() < 1.05 * there.std()
    assert abs(drawn.mean()) < 0.1 * there.std()
    assert correlation(drawn, 1) == pytest.approx(correlation(there, 1), abs=0.1)


def test_what_lies_in_holes_does_not_count() -> None:
    photo, mask = grainy(0.05, 0.5), hole()
    painted = torch.where(mask > 0, torch.rand(photo.shape), photo)
    first, second = measure_grain(photo, mask), measure_grain(painted, mask)
    for name in ("curve", "level", "psf", "colours"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_the_level_is_that_of_the_surroundings() -> None:
    calm, rough = grainy(0.02, 0.4), grainy(0.1, 0.4)
    photo = torch.cat([calm[..., : WIDTH // 2], rough[..., WIDTH // 2 :]], dim=3)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 80:110, 20:50] = mask[..., 80:110, 206:236] = 1
    drawn = draw_grain(measure_grain(photo, mask), shaded(), mask)[0, 0]
    left, right = drawn[80:110, 20:50].std(), drawn[80:110, 206:236].std()
    assert 3 < right / left < 7  # five times


def test_bright_holes_get_the_grain_of_bright_parts() -> None:
    dark, bright = grainy(0.1, 0.4) - 0.3, 0.9 + 0.2 * (grainy(0.1, 0.4) - shaded())
    photo = torch.cat([dark[..., : WIDTH // 2], bright[..., WIDTH // 2 :]], dim=3)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    middle = WIDTH // 2
    mask[..., 80:110, middle - 30 : middle + 30] = 1
    filled = torch.full_like(photo, 0.9)
    filled[..., :middle] = -0.4
    drawn = draw_grain(measure_grain(photo, mask), filled, mask)[0, 0, 80:110]
    left, right = drawn[:, middle - 30 : middle].std(), drawn[:, middle : middle + 30].std()
    assert 3 < left / right < 7  # five times


def test_texture_is_not_taken_for_grain() -> None:
    photo = grainy(0.02, 0.4)
    photo[..., ::7] *= -1  # bars all over the lower half
    photo[..., : HEIGHT // 2, :] = grainy(0.02, 0.4)[..., : HEIGHT // 2, :]
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 85:110, 90:170] = 1
    drawn = draw_grain(measure_grain(photo, mask), shaded(), mask)[0, 0, 85:110, 90:170]
    assert 0.014 < drawn.std() < 0.022


def test_cloth_before_a_compressed_backdrop_gets_no_more_than_it_has() -> None:
    """The backdrop's grain has no fine detail left, the cloth is nothing else."""
    backdrop, weave = grainy(0.02, 2.5), torch.zeros(1, 3, HEIGHT, WIDTH)
    weave[..., ::2, ::2] = weave[..., 1::2, 1::2] = 0.2
    photo = torch.where(torch.arange(WIDTH) < WIDTH // 2, backdrop, weave)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 60:130:10, 40:250:10] = 1
    drawn = draw_grain(measure_grain(photo, mask), photo, mask)[0, 0].numpy()
    in_cloth = drawn[:, 140:][mask[0, 0, :, 140:].numpy() > 0]
    assert in_cloth.std() < 1.2 * weave.std()


def test_grey_grain_is_grey_and_coloured_grain_coloured() -> None:
    mask = hole()
    drawn = draw_grain(measure_grain(grainy(0.05, 0.4), mask), shaded(), mask)[0]
    assert (drawn - drawn[:1]).abs().max() < 1e-6
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.02, 0.04, 0.08])[:, None, None]
    photo = shaded() + torch.randn(shaded().shape, generator=generator) * scales
    drawn = draw_grain(measure_grain(photo, mask), shaded(), mask)[0, :, 60:130, 90:170].flatten(1)
    assert drawn.std(dim=1).numpy() == pytest.approx([0.02, 0.04, 0.08], rel=0.15)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.1


def test_grain_lies_in_holes_alone() -> None:
    photo, mask = grainy(0.05, 0.4), hole()
    drawn = draw_grain(measure_grain(photo, mask), shaded(), mask)
    assert (drawn[(mask == 0).expand_as(drawn)] == 0).all()
    assert (drawn[(mask > 0).expand_as(drawn)] != 0).float().mean() > 0.99


def test_a_part_of_the_field_is_the_field_of_the_part() -> None:
    grain = measure_grain(grainy(0.05, 0.6), hole())
    whole = grain_field(grain, 0, 0, (150, 140))
    assert np.array_equal(grain_field(grain, 37, 51, (80, 64)), whole[:, 37:117, 51:115])
    assert whole.std() == pytest.approx(1, abs=0.05)


def test_threads_change_no_bit() -> None:
    photo, mask = grainy(0.05, 0.6), hole()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(draw_grain(measure_grain(photo, mask), shaded(), mask))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    "photo",
    [shaded(), torch.ones(1, 3, HEIGHT, WIDTH), torch.zeros(1, 3, 8, 9)],
    ids=["smooth", "burnt out", "small"],
)
def test_photos_without_grain_are_given_none(photo: Tensor) -> None:
    mask = torch.zeros(1, 1, *photo.shape[2:])
    mask[..., 2:6, 2:6] = 1
    assert draw_grain(measure_grain(photo, mask), photo, mask).abs().max() < 1e-3


def test_what_a_survey_holds_does_not_grow_with_the_photo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oldrestore.grain.MOST_NOISE_BLOCKS", 64)
    rng = np.random.default_rng(0)
    holes = np.zeros((BLOCK_PX, 2048), bool)
    holes[4:8, ::100] = True
    held = []
    tracemalloc.start()
    for rows in (8, 64):
        survey = GrainSurvey(rows * BLOCK_PX, 2048)
        before, _ = tracemalloc.get_traced_memory()
        for row in range(rows):
            image = rng.normal(0, 0.1, (3, BLOCK_PX, 2048)).astype(np.float32)
            survey.add(row * BLOCK_PX, image, holes, row * BLOCK_PX)
        held.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    blocks = 3 * BLOCK_PX**2 * 4 * 64  # and 64 bytes of each block of the photo beside
    assert held[0] > blocks / 4
    assert held[1] < blocks + 64 * (2048 // BLOCK_PX) * 64 + 2**20


def test_photos_that_are_all_hole_are_given_none() -> None:
    mask = torch.ones(1, 1, 40, 40)
    photo = torch.rand(1, 3, 40, 40)
    drawn = draw_grain(measure_grain(photo, mask), photo, mask)
    assert (drawn == 0).all()
