"""Every kind of structured damage, one by one: exact masks, exact replay, right shapes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.degradation import (
    Degradation,
    DegradationSettings,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.degradation.blending import TOUCHED
from oldrestore.degradation.edges import MissingCorner, Tear, WornEdge
from oldrestore.degradation.folds import Crack, Crease
from oldrestore.degradation.holes import Hole, Spot, Stain
from oldrestore.degradation.scratches import Dust, Hair, Scratch
from oldrestore.degradation.structured import StructuredStep, sample_structured
from oldrestore.degradation.textures import FilmFrame, Sticker

PAPER = (0.95, 0.93, 0.88)
WHITE = (1.0, 1.0, 1.0)
STEPS: list[StructuredStep] = [
    Scratch((5.0, 60.0), 90.0, 80.0, 2.0, 2.0, 0.2, 0.9, PAPER, "hole", 1),
    Scratch((40.0, 10.0), 10.0, 90.0, 4.0, 30.0, 0.0, 0.6, PAPER, "screen", 2),
    Hair((30.0, 40.0), 200.0, 60.0, 1.0, 60.0, 0.8, (0.1, 0.1, 0.1), "multiply", 3),
    Dust(60, 2.0, 0.5, 0.9, PAPER, "lighten", 4),
    Hole((50.0, 60.0), 14.0, 0.4, 3.0, 1.0, PAPER, 5),
    Spot((20.0, 90.0), 5.0, 0.2, 2.0, 0.8, PAPER, "add", 6),
    Stain((60.0, 30.0), 20.0, 0.3, 3.0, 0.6, 0.6, (0.5, 0.4, 0.2), "multiply", 7),
    Crease((48.0, 0.0), 5.0, 130.0, 1.5, 4.0, 0.1, 0.9, PAPER, 8),
    Crack((10.0, 20.0), 50.0, 90.0, 1.5, 35.0, 3, 0.5, 0.9, PAPER, 9),
    Tear((-1.0, 50.0), 80.0, 60.0, 6.0, 30.0, PAPER, 10),
    MissingCorner(1, (30.0, 20.0), 2.0, 2.0, (0.05, 0.05, 0.05), PAPER, 11),
    WornEdge(2, 8.0, 0.9, 0.6, PAPER, "lighten", 12),
    Sticker("stickers/dots/1.png", (40.0, 50.0), 0.7, 33.0, True, 0.9, PAPER, "hole"),
    FilmFrame("frame.png", (0.3, 0.6), 0.5, True, 1, 0.8, PAPER, "screen"),
]


def name(step: object) -> str:
    return type(step).__name__


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_pixels_outside_the_mask_are_untouched_and_those_inside_moved(
    step: StructuredStep, photo: Tensor, textures: TextureSet
) -> None:
    degraded = degrade(photo, Degradation(96, 128, (step,)), textures)
    mask = degraded.mask[0].bool()
    assert 0.0005 < float(mask.float().mean()) < 0.5
    assert torch.equal(degraded.image[:, ~mask], photo[:, ~mask])
    moved = (degraded.image - photo).abs().amax(dim=0) > TOUCHED
    if getattr(step, "mode", "hole") == "hole":
        # paper of the picture's own tone covers it all the same, but that is rare
        assert float((mask & ~moved).float().mean()) < 0.1 * float(mask.float().mean())
    else:
        assert torch.equal(mask, moved)


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_replay_gives_the_same_bits(
    step: StructuredStep, photo: Tensor, textures: TextureSet
) -> None:
    degradation = Degradation(96, 128, (step,))
    first, second = (degrade(photo, degradation, textures) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize("step", STEPS, ids=name)
@pytest.mark.parametrize("size", [(8, 8), (9, 101), (300, 15)])
def test_damage_may_lie_across_any_border(
    step: StructuredStep, size: tuple[int, int], textures: TextureSet
) -> None:
    degraded = degrade(torch.zeros(3, *size), Degradation(*size, (step,)), textures)
    assert torch.isfinite(degraded.image).all()
    assert degraded.image.abs().max() <= 1
    untouched = degraded.mask[0] == 0
    assert (degraded.image[:, untouched] == 0).all()


def test_damage_beside_the_picture_is_none() -> None:
    far = (-500.0, -500.0)
    steps = (
        Scratch(far, 180.0, 80.0, 2.0, 2.0, 0.2, 0.9, PAPER, "hole", 1),
        Hole(far, 14.0, 0.4, 3.0, 1.0, PAPER, 5),
        Stain(far, 20.0, 0.3, 3.0, 0.6, 0.6, PAPER, "multiply", 7),
        Tear(far, 180.0, 60.0, 6.0, 30.0, PAPER, 10),
    )
    degraded = degrade(torch.zeros(3, 32, 32), Degradation(32, 32, steps))
    assert not degraded.mask.any()


def mask_of(step: StructuredStep, height: int = 96, width: int = 128) -> Tensor:
    black = torch.full((3, height, width), -1.0)
    return degrade(black, Degradation(height, width, (step,))).mask[0]


def test_scratch_follows_its_heading_and_width() -> None:
    scratch = Scratch((-5.0, 64.0), 90.0, 150.0, 3.0, 0.0, 0.0, 1.0, WHITE, "hole", 1)
    mask = mask_of(scratch)
    columns = mask.sum(dim=0).nonzero().ravel()
    assert mask.sum(dim=1).min() > 0
    assert columns.min() >= 58
    assert columns.max() <= 70
    assert 2 <= float(mask.sum(dim=1).mean()) <= 6


def test_lines_thinner_than_a_pixel_are_fainter() -> None:
    black = torch.full((3, 96, 128), -1.0)
    whole, half = (
        degrade(
            black,
            Degradation(
                96, 128, (Scratch((0.0, 64.0), 90.0, 96.0, px, 0.0, 0.0, 1.0, WHITE, "hole", 1),)
            ),
        ).image.amax(dim=(0, 2))
        + 1
        for px in (0.6, 0.3)
    )
    assert float((half / whole).mean()) == pytest.approx(0.5, abs=0.1)


def test_gaps_interrupt_a_scratch() -> None:
    whole, broken = (
        mask_of(Scratch((0.0, 64.0), 90.0, 96.0, 2.0, 0.0, gaps, 1.0, WHITE, "hole", 1)).sum()
        for gaps in (0.0, 0.5)
    )
    assert 0.2 * whole < broken < 0.8 * whole


@pytest.mark.parametrize(
    ("corner", "row", "column"), [(0, 0, 0), (1, 0, -1), (2, -1, -1), (3, -1, 0)]
)
def test_the_right_corner_is_missing(corner: int, row: int, column: int) -> None:
    mask = mask_of(MissingCorner(corner, (30.0, 40.0), 1.0, 1.0, WHITE, WHITE, 3))
    assert mask[row, column] == 1
    assert mask[-1 - row, -1 - column] == 0
    # half of 30 x 40, but for the jags and the rim
    assert 450 < int(mask.sum()) < 900


@pytest.mark.parametrize("side", [0, 1, 2, 3])
def test_wear_stays_at_its_side(side: int) -> None:
    mask = mask_of(WornEdge(side, 8.0, 1.0, 0.2, WHITE, "lighten", 3))
    upright = torch.rot90(mask, side)  # brings the side to the top
    assert upright[0].mean() > 0.5
    assert not upright[40:].any()


def test_hole_has_the_area_of_its_radius_and_shows_paper() -> None:
    hole = Hole((48.0, 64.0), 20.0, 0.2, 1.0, 1.0, (0.9, 0.8, 0.7), 5)
    degraded = degrade(torch.full((3, 96, 128), -1.0), Degradation(96, 128, (hole,)))
    mask = degraded.mask[0].bool()
    assert 0.5 < float(mask.sum()) / (np.pi * 20**2) < 1.6
    inside = (degraded.image[:, 44:52, 60:68] + 1) / 2
    for channel, level in enumerate(hole.paper):
        assert float(inside[channel].mean()) == pytest.approx(level, abs=0.08)
    assert float(inside.std(dim=(1, 2)).min()) > 0.01


def test_thin_lines_of_large_photos_need_little_time_and_keep_their_shape() -> None:
    scratch = Scratch((0.0, 0.0), 45.0, 3000.0, 2.0, 1.0, 0.0, 1.0, WHITE, "hole", 1)
    mask = mask_of(scratch, 700, 900)
    assert int(mask.sum()) < 700 * 10
    assert mask.sum(dim=1).min() > 0


def structured(
    rng: np.random.Generator, size: int, textures: TextureSet | None, *, is_grey: bool
) -> tuple[StructuredStep, ...]:
    return sample_structured(
        rng, size, size, is_grey=is_grey, settings=DegradationSettings(), textures=textures
    )


def test_all_kinds_are_drawn(textures: TextureSet) -> None:
    rng = np.random.default_rng(0)
    drawn = {
        type(step) for _ in range(250) for step in structured(rng, 256, textures, is_grey=False)
    }
    assert drawn == {type(step) for step in STEPS}


def test_neutral_damage_is_neutral() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        steps = structured(rng, 64, None, is_grey=True)
        degraded = degrade(torch.zeros(3, 64, 64), Degradation(64, 64, steps))
        assert torch.equal(degraded.image[0], degraded.image[1])
        assert torch.equal(degraded.image[0], degraded.image[2])


def test_coverage_is_mostly_a_few_percent_and_seldom_large() -> None:
    rng = np.random.default_rng(0)
    settings = DegradationSettings(p_undamaged=0.0, p_structured=1.0)
    coverage = []
    for _ in range(70):
        degradation = sample_degradation(rng, 128, 128, settings=settings)
        steps = tuple(s for s in degradation.steps if isinstance(s, StructuredStep))
        degraded = degrade(torch.zeros(3, 128, 128), Degradation(128, 128, steps))
        coverage.append(float(degraded.mask.mean()))
    assert 0.01 < np.median(coverage) < 0.05
    assert np.quantile(coverage, 0.9) < 0.12
    assert max(coverage) < 0.4
