"""What is drawn, and how often."""

import math
from dataclasses import replace

import numpy as np
import pytest

from oldrestore.degradation import Degradation, DegradationSettings, sample_degradation
from oldrestore.degradation import fading as f
from oldrestore.degradation import unstructured as u
from oldrestore.degradation.chain import ToneStep
from oldrestore.degradation.scratches import Scratch
from oldrestore.degradation.structured import StructuredStep

COUNT = 600


@pytest.fixture(scope="module")
def drawn() -> list[Degradation]:
    rng = np.random.default_rng(0)
    return [sample_degradation(rng, 64, 64) for _ in range(COUNT)]


def assert_share(found: int, of: int, probability: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(found / of - probability) <= 4 * math.sqrt(probability * (1 - probability) / of)


def test_probabilities_are_kept(drawn: list[Degradation]) -> None:
    settings = DegradationSettings()
    damaged = [d for d in drawn if d.steps]
    # a few more than p_undamaged come out empty because no step happened to be drawn
    none_else = (1 - settings.p_grey) * (1 - settings.p_fading) * (1 - settings.p_structured)
    for name in ("blur", "noise", "grain", "resampling", "jpeg"):
        none_else *= 1 - getattr(settings, f"p_{name}")
    empty = settings.p_undamaged + (1 - settings.p_undamaged) * none_else
    assert_share(len(drawn) - len(damaged), COUNT, empty)
    for kind, probability in (
        (f.Grey, settings.p_grey),
        (u.Blur, settings.p_blur),
        (u.FilmGrain, settings.p_grain),
        (u.Resampling, settings.p_resampling),
        (u.Jpeg, settings.p_jpeg),
        ((u.GaussianNoise, u.SpeckleNoise, u.SaltAndPepper), settings.p_noise),
        (StructuredStep, settings.p_structured),
    ):
        found = sum(any(isinstance(step, kind) for step in d.steps) for d in damaged)
        assert_share(found, len(damaged), probability / (1 - none_else))
    faded = sum(
        any(isinstance(s, ToneStep) and not isinstance(s, f.Grey) for s in d.steps) for d in damaged
    )
    assert_share(faded, len(damaged), settings.p_fading / (1 - none_else))


def test_strengths_stay_in_their_ranges_and_are_mostly_mild(drawn: list[Degradation]) -> None:
    settings = DegradationSettings()
    steps = [step for d in drawn for step in d.steps]
    sigmas = [step.sigma_px for step in steps if isinstance(step, u.Blur)]
    noises = [step.sigma * 127.5 for step in steps if isinstance(step, u.GaussianNoise)]
    factors = [step.factor for step in steps if isinstance(step, u.Resampling)]
    qualities = [step.quality for step in steps if isinstance(step, u.Jpeg)]
    for values, ends in (
        (sigmas, settings.blur_sigma_px),
        (noises, settings.noise_sigma_255),
        (factors, settings.resampling_factor),
        (qualities, settings.jpeg_quality),
    ):
        assert min(values) >= ends[0]
        assert max(values) <= ends[1]
    assert np.median(sigmas) < 1.3
    assert np.median(noises) < 15
    assert np.median(qualities) > 65


@pytest.mark.parametrize("p_impulses", [0.0, 0.5, 1.0])
def test_share_of_noise_that_is_impulses(p_impulses: float) -> None:
    rng = np.random.default_rng(0)
    settings = DegradationSettings(p_noise=1.0, p_undamaged=0.0, p_impulses=p_impulses)
    drawn = [sample_degradation(rng, 64, 64, settings=settings) for _ in range(100)]
    kinds = [type(step) for d in drawn for step in d.steps]
    assert_share(kinds.count(u.SaltAndPepper), 100, p_impulses)
    assert (kinds.count(u.SpeckleNoise) > 0) == (p_impulses < 1)


def test_damage_comes_at_any_point_of_the_chain(drawn: list[Degradation]) -> None:
    places = set()
    for d in drawn:
        chain = [isinstance(s, StructuredStep) for s in d.steps if not isinstance(s, ToneStep)]
        if True in chain:
            places.add((chain[0], chain[-1]))
    assert places == {(True, True), (True, False), (False, True), (False, False)}


def test_same_generator_same_degradation() -> None:
    first, second = (
        [sample_degradation(rng, 50, 60) for _ in range(10)]
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    )
    assert first == second
    assert len(set(first)) > 5


def test_without_fading_the_tone_is_kept_and_without_structured_nothing_is_laid_over() -> None:
    rng = np.random.default_rng(0)
    settings = DegradationSettings(p_undamaged=0.0).without_fading().without_structured()
    for _ in range(60):
        for step in sample_degradation(rng, 64, 64, settings=settings).steps:
            assert not isinstance(step, StructuredStep)
            assert not isinstance(step, ToneStep) or isinstance(step, f.Grey)


def test_severity_sets_the_strength() -> None:
    settings = DegradationSettings(p_undamaged=0.0, p_blur=1.0, p_noise=0.0)
    mild, bad = (
        [
            step.sigma_px
            for _ in range(60)
            for step in sample_degradation(
                rng, 64, 64, settings=replace(settings, severity=ends)
            ).steps
            if isinstance(step, u.Blur)
        ]
        for rng, ends in (
            (np.random.default_rng(0), (0.0, 0.1)),
            (np.random.default_rng(0), (0.9, 1.0)),
        )
    )
    assert len(mild) == len(bad) == 60
    assert max(mild) < 0.8
    assert np.mean(bad) > 1.8


def test_damage_of_a_part_is_as_large_as_that_of_its_photo() -> None:
    damage = DegradationSettings(p_undamaged=0.0, p_structured=1.0)

    def widths(settings: DegradationSettings, side: int) -> list[float]:
        rng = np.random.default_rng(0)
        drawn = [sample_degradation(rng, side, side, settings=settings) for _ in range(300)]
        return [step.width_px for d in drawn for step in d.steps if isinstance(step, Scratch)]

    part, photo = widths(replace(damage, photo_px=(1024.0, 1024.0)), 128), widths(damage, 1024)
    assert np.median(part) == pytest.approx(np.median(photo), rel=0.1)
    assert np.median(part) > 1.7 * np.median(widths(damage, 128))


@pytest.mark.parametrize("size", [(7, 64), (64, 0)])
def test_too_small_a_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        sample_degradation(np.random.default_rng(0), *size)


@pytest.mark.parametrize(
    "change",
    [
        {"p_grey": 1.1},
        {"p_jpeg": -0.1},
        {"blur_sigma_px": (2.0, 1.0)},
        {"severity": (0.0, 1.5)},
        {"coverage": (0.1, 2.0)},
        {"photo_px": (0.0, 512.0)},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        DegradationSettings(**change)  # type: ignore[arg-type]
