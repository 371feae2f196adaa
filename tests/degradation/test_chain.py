"""The degradation as a value and the way it is applied."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.degradation import (
    Degradation,
    DegradationSettings,
    Degraded,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.degradation import fading as f
from oldrestore.degradation import unstructured as u
from oldrestore.degradation.blending import SEEN
from oldrestore.degradation.chain import Step
from oldrestore.degradation.holes import Hole, Spot
from oldrestore.degradation.scratches import Scratch
from oldrestore.degradation.structured import StructuredStep

GREY = f.Grey((0.3, 0.6, 0.1))
FADING = (f.ContrastLoss(0.1, 0.9, 1.1), f.Yellowing((1.0, 0.9, 0.7)))
HOLE = Hole((48.0, 64.0), 12.0, 0.3, 2.0, 1.0, (0.95, 0.9, 0.85), 5)
SCRATCH = Scratch((5.0, 60.0), 90.0, 80.0, 2.0, 2.0, 0.0, 0.9, (1.0, 1.0, 1.0), "screen", 1)
NOISE = u.GaussianNoise(0.05, False, 7)
BLUR = u.Blur("gaussian", 1.5)


def apply(photo: Tensor, *steps: Step) -> Degraded:
    return degrade(photo, Degradation(photo.shape[1], photo.shape[2], steps))


def fields_of(degraded: Degraded) -> dict[str, Tensor]:
    return dict(vars(degraded))


def test_no_step_changes_nothing(photo: Tensor) -> None:
    degraded = apply(photo)
    for image in (degraded.image, degraded.target, degraded.clean):
        assert torch.equal(image, photo)
    assert not degraded.mask.any()
    assert not degraded.labelled.any()


def test_input_is_not_written_to(photo: Tensor) -> None:
    before = photo.clone()
    degraded = apply(photo, HOLE, NOISE)
    degraded.clean.zero_()
    degraded.target.zero_()
    assert torch.equal(photo, before)


def test_target_is_the_tone_and_clean_is_the_grey_photo(photo: Tensor) -> None:
    degraded = apply(photo, GREY, *FADING, BLUR, HOLE, NOISE)
    tone = apply(photo, GREY, *FADING)
    grey = apply(photo, GREY)
    assert torch.equal(degraded.target, tone.image)
    assert torch.equal(degraded.clean, grey.image)
    assert not torch.equal(degraded.target, degraded.clean)
    assert torch.equal(degraded.clean[0], degraded.clean[2])


def test_the_tone_a_print_was_made_in_is_no_fading(photo: Tensor) -> None:
    sepia = f.Toning((0.8, 1.0, 1.3))
    degraded = apply(photo, GREY, sepia, *FADING)
    assert torch.equal(degraded.clean, apply(photo, GREY, sepia).image)
    assert not torch.equal(degraded.clean[0], degraded.clean[2])


def test_mask_and_labels_are_binary_and_labels_lie_in_the_mask(photo: Tensor) -> None:
    degraded = apply(photo, SCRATCH, HOLE, BLUR, NOISE)
    for mask in (degraded.mask, degraded.labelled):
        assert mask.shape == (1, 96, 128)
        assert mask.dtype == torch.float32
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (degraded.labelled <= degraded.mask).all()


@pytest.mark.parametrize("spreading", [BLUR, u.Resampling(2.2, "bicubic", "bilinear")])
def test_mask_covers_what_later_steps_smear(photo: Tensor, spreading: Step) -> None:
    degraded = apply(photo, SCRATCH, HOLE, spreading)
    undamaged = apply(photo, spreading)
    outside = degraded.mask[0] == 0
    smeared = (degraded.image - undamaged.image).abs().amax(dim=0)
    assert smeared[outside].max() <= SEEN
    assert degraded.mask.sum() > apply(photo, SCRATCH, HOLE).mask.sum()


def test_steps_before_the_damage_do_not_widen_the_mask(photo: Tensor) -> None:
    degraded, blurred = apply(photo, BLUR, HOLE), apply(photo, BLUR)
    outside = degraded.mask[0] == 0
    assert torch.equal(degraded.image[:, outside], blurred.image[:, outside])


def test_damage_that_cannot_be_seen_is_not_labelled() -> None:
    white = torch.full((3, 64, 64), 0.99)
    # on white, 4 % are 10 levels of 8 bits: above what touches a pixel, below what shows by itself
    faint = Spot((20.0, 20.0), 8.0, 0.1, 1.0, 1.0, (0.96, 0.96, 0.96), "multiply", 1)
    plain = Spot((45.0, 45.0), 8.0, 0.1, 1.0, 1.0, (0.2, 0.2, 0.2), "multiply", 2)
    degraded = apply(white, faint, plain)
    for row, is_seen in ((20, 0), (45, 1)):
        assert degraded.mask[0, row, row] == 1
        assert degraded.labelled[0, row, row] == is_seen
    seen = replace(faint, color=(0.95, 0.95, 0.95))  # 13 levels
    assert apply(white, seen).labelled[0, 20, 20] == 1


def test_noise_does_not_label(photo: Tensor) -> None:
    heavy = u.GaussianNoise(0.3, False, 7)
    assert torch.equal(apply(photo, HOLE, heavy).mask, apply(photo, HOLE).mask)


def draws(count: int, textures: TextureSet | None, size: tuple[int, int]) -> list[Degradation]:
    rng = np.random.default_rng(11)
    settings = DegradationSettings(p_undamaged=0.05, p_structured=0.9)
    return [
        sample_degradation(rng, *size, settings=settings, textures=textures) for _ in range(count)
    ]


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (63, 100), (128, 128)])
def test_replay_through_json_gives_the_same_bits(
    size: tuple[int, int], textures: TextureSet
) -> None:
    photo = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for degradation in draws(15, textures, size):
        copy = Degradation.from_dict(json.loads(json.dumps(degradation.to_dict())))
        assert copy == degradation
        first, second = degrade(photo, degradation, textures), degrade(photo, copy, textures)
        for name, values in fields_of(first).items():
            assert torch.equal(values, fields_of(second)[name]), name
            assert values.dtype == torch.float32
            assert values.min() >= -1
            assert values.max() <= 1


def test_threads_do_not_change_a_bit(photo: Tensor, textures: TextureSet) -> None:
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append([degrade(photo, d, textures) for d in draws(16, textures, (96, 128))])
    torch.set_num_threads(1)
    for one, three in zip(*results, strict=True):
        for name, values in fields_of(one).items():
            assert torch.equal(values, fields_of(three)[name]), name


def test_purely_structured_damage_leaves_the_rest_alone(
    photo: Tensor, textures: TextureSet
) -> None:
    for degradation in draws(25, textures, (96, 128)):
        steps = tuple(step for step in degradation.steps if isinstance(step, StructuredStep))
        degraded = degrade(photo, Degradation(96, 128, steps), textures)
        outside = degraded.mask[0] == 0
        assert torch.equal(degraded.image[:, outside], photo[:, outside])


def test_grey_photos_stay_grey_unless_toned(photo: Tensor, textures: TextureSet) -> None:
    settings = DegradationSettings(p_undamaged=0, p_grey=1, p_structured=1, p_texture=0.5)
    rng = np.random.default_rng(0)
    for _ in range(25):
        degradation = sample_degradation(rng, 96, 128, settings=settings, textures=textures)
        if any(isinstance(step, (f.Toning, f.Yellowing)) for step in degradation.steps):
            continue
        degraded = degrade(photo, degradation, textures)
        for image in (degraded.image, degraded.target, degraded.clean):
            assert torch.equal(image[0], image[1])
            assert torch.equal(image[0], image[2])


def test_strided_photo_gives_the_same(photo: Tensor) -> None:
    channels_last = photo.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    degraded = apply(channels_last, *FADING, BLUR, HOLE)
    assert torch.equal(degraded.image, apply(photo, *FADING, BLUR, HOLE).image)


@pytest.mark.parametrize(
    ("clean", "error", "match"),
    [
        (torch.zeros(3, 96, 127), ValueError, r"\(3, 96, 128\).*\(3, 96, 127\)"),
        (torch.zeros(1, 96, 128), ValueError, "clean"),
        (torch.zeros(1, 3, 96, 128), ValueError, "clean"),
        (torch.zeros(3, 96, 128, dtype=torch.float64), ValueError, "float64"),
        (torch.zeros(3, 96, 128, dtype=torch.uint8), ValueError, "uint8"),
        (torch.full((3, 96, 128), math.nan), ValueError, "nan"),
        (torch.full((3, 96, 128), 1.01), ValueError, r"\[-1, 1\]"),
        (np.zeros((3, 96, 128), np.float32), TypeError, "ndarray"),
    ],
)
def test_other_input_is_refused(clean: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        degrade(clean, Degradation(96, 128, (HOLE,)))


def test_tone_after_damage_is_refused() -> None:
    with pytest.raises(ValueError, match="tone"):
        Degradation(96, 128, (HOLE, GREY))
    with pytest.raises(ValueError, match="Grey"):
        Degradation(96, 128, (*FADING, GREY))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "Explosion"}, "Explosion"),
        ({"kind": None}, "None"),
        ({"sigma": 1.0, "kind": "Blur"}, "Blur"),
        ({"extra": 1}, "extra"),
    ],
)
def test_other_data_is_refused(change: dict[str, object], match: str) -> None:
    data = Degradation(96, 128, (NOISE,)).to_dict()
    data["steps"][0].update(change)
    with pytest.raises(ValueError, match=match):
        Degradation.from_dict(data)


def test_data_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="height"):
        Degradation.from_dict({"steps": []})


def test_description_counts_the_kinds() -> None:
    degradation = Degradation(96, 128, (GREY, HOLE, SCRATCH, HOLE))
    assert degradation.describe() == "Grey, Hole x2, Scratch"
    assert Degradation(96, 128, ()).describe() == "undamaged"
