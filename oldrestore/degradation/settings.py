"""How often each kind of damage is drawn, and how strong it may be."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

Range = tuple[float, float]


@dataclass(frozen=True)
class DegradationSettings:
    """Probabilities and ranges of `sample_degradation`; change them with `dataclasses.replace`.

    A photo has one severity, drawn with mild values frequent; the strength of each unstructured
    step is drawn around it, so that one photo is mild or bad as a whole.

    p_undamaged: nothing at all is done.
    p_grey: the photo is made grey.
    p_fading: its tone is changed.
    p_structured: scratches, holes and their like are laid over it.
    p_blur, p_noise, p_grain, p_resampling, p_jpeg: the unstructured step of this name is taken.
    p_impulses: noise is lost pixels, salt and pepper.
    p_texture: real textures join the drawn damage, where a `TextureSet` is given.
    severity: range of the photo's severity, within [0, 1].
    blur_sigma_px: of the psf, at strength 0 and 1.
    noise_sigma_255: standard deviation of noise and grain in levels of 8 bits, likewise.
    resampling_factor: pixels lost a side, likewise.
    jpeg_quality: from strength 1 to strength 0.
    coverage: least and greatest share of pixels that structured damage is drawn to cover.
    coverage_median: median of that share, before it is cut to the range.
    p_film: the structured damage is that of a film: thin, small and little.
    film_coverage: least and greatest share of pixels that it covers.
    p_large: the structured damage, if not a film's, has a large hole, crack or tear in it.
    large_width_px: least and greatest width of that.
    p_blotches: the structured damage, if not a film's, has round, mostly black blotches in it.
    blotch_width_px: least and greatest width of those.
    photo_px: the picture is a part of a photo whose shorter side is drawn from this range; sizes of
        structured damage grow with it. 0: it is the whole photo.
    """

    p_undamaged: float = 0.12
    p_grey: float = 0.3
    p_fading: float = 0.45
    p_structured: float = 0.7
    p_blur: float = 0.45
    p_noise: float = 0.5
    p_grain: float = 0.4
    p_resampling: float = 0.35
    p_jpeg: float = 0.55
    p_impulses: float = 0.15
    p_texture: float = 0.4
    severity: Range = (0.0, 1.0)
    blur_sigma_px: Range = (0.5, 2.5)
    noise_sigma_255: Range = (3.0, 35.0)
    resampling_factor: Range = (1.1, 2.5)
    jpeg_quality: Range = (30.0, 95.0)
    coverage: Range = (0.002, 0.2)
    coverage_median: float = 0.02
    p_film: float = 0.0
    film_coverage: Range = (0.001, 0.01)
    p_large: float = 0.0
    large_width_px: Range = (10.0, 60.0)
    p_blotches: float = 0.0
    blotch_width_px: Range = (4.0, 40.0)
    photo_px: Range = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name.startswith("p_") and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
            if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
                raise ValueError(f"{name}: expected 0 <= least <= greatest, got {value}")
        for name in ("severity", "coverage", "film_coverage"):
            if getattr(self, name)[1] > 1:
                raise ValueError(
                    f"{name}: expected a range within [0, 1], got {getattr(self, name)}"
                )

        if self.photo_px[1] > 0 and not self.photo_px[0] > 0:
            raise ValueError(f"photo_px: expected both above 0, or both 0, got {self.photo_px}")
        for name in ("film_coverage", "large_width_px", "blotch_width_px"):
            if not getattr(self, name)[0] > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def without_fading(self) -> DegradationSettings:
        """The same, but the tone is kept (a photo may still be made grey)."""
        return replace(self, p_fading=0.0)

    def without_structured(self) -> DegradationSettings:
        """The same, but with no scratches, holes and their like: the mask stays empty."""
        return replace(self, p_structured=0.0)
