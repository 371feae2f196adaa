"""A degradation as a value, and its application to a photo.

The chain is the life of a photo: tone steps first (they define the target of restoration), then
unstructured damage in any order, with the structured damage at some point of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from oldrestore.degradation import fading, unstructured
from oldrestore.degradation.blending import SEEN, Bools, dilate, lay_over
from oldrestore.degradation.fields import GAUSSIAN_REACH, Array
from oldrestore.degradation.structured import StructuredStep, render
from oldrestore.degradation.textures import TextureSet
from oldrestore.degradation.visibility import visible

ToneStep = (
    fading.Grey
    | fading.ContrastLoss
    | fading.ColorCast
    | fading.Toning
    | fading.Yellowing
    | fading.UnevenLight
    | fading.Vignette
)
UnstructuredStep = (
    unstructured.Blur
    | unstructured.GaussianNoise
    | unstructured.SpeckleNoise
    | unstructured.SaltAndPepper
    | unstructured.FilmGrain
    | unstructured.Resampling
    | unstructured.Jpeg
)
Step = ToneStep | UnstructuredStep | StructuredStep

_TONE: dict[type, Callable[..., Array]] = {
    fading.Grey: fading.make_grey,
    fading.ContrastLoss: fading.lose_contrast,
    fading.ColorCast: fading.cast_color,
    fading.Toning: fading.tone,
    fading.Yellowing: fading.yellow,
    fading.UnevenLight: fading.light_unevenly,
    fading.Vignette: fading.vignette,
}
# a grey photo was never a colour one, and sepia is how the print was made: no damage, no fading
_OWN_TONE = (fading.Grey, fading.Toning)
_UNSTRUCTURED: dict[type, Callable[..., Array]] = {
    unstructured.Blur: unstructured.add_blur,
    unstructured.GaussianNoise: unstructured.add_gaussian_noise,
    unstructured.SpeckleNoise: unstructured.add_speckle_noise,
    unstructured.SaltAndPepper: unstructured.add_salt_and_pepper,
    unstructured.FilmGrain: unstructured.add_film_grain,
    unstructured.Resampling: unstructured.resample,
    unstructured.Jpeg: unstructured.compress_jpeg,
}
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (*_TONE, *_UNSTRUCTURED, *get_args(StructuredStep))
}


@dataclass(frozen=True)
class Degradation:
    """What happened to one photo: a value that can be logged, stored and replayed.

    height, width: of the photo it was drawn for; sizes and places inside are pixels of it.
    steps: in the order in which they are applied; tone steps come first.
    """

    height: int
    width: int
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        is_tone = [type(step) in _TONE for step in self.steps]
        if sorted(is_tone, reverse=True) != is_tone:
            raise ValueError("steps: expected the steps that change the tone before all others")
        if any(isinstance(step, fading.Grey) for step in self.steps[1:]):
            raise ValueError("steps: expected Grey as the first step or not at all")

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, so that ``json.dumps`` takes it."""
        steps = [{"kind": type(step).__name__, **_listed(asdict(step))} for step in self.steps]
        return {"height": self.height, "width": self.width, "steps": steps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Degradation:
        """The value that `to_dict` wrote, through JSON or not.

        Raises:
            ValueError: a key is missing or unknown, or a step is of no known kind.
        """
        if set(data) != {"height", "width", "steps"}:
            raise ValueError(f"data: expected height, width and steps, got {sorted(data)}")
        steps = []
        for entry in data["steps"]:
            name = entry.get("kind") if isinstance(entry, Mapping) else None
            if name not in _KINDS:
                raise ValueError(f"data: no step is of kind {name!r}")
            kind = _KINDS[name]
            values = {key: _tupled(value) for key, value in entry.items() if key != "kind"}
            expected = {field.name for field in fields(kind)}
            if set(values) != expected:
                raise ValueError(
                    f"data: {kind.__name__} has {sorted(expected)}, got {sorted(values)}"
                )
            steps.append(kind(**values))
        return cls(int(data["height"]), int(data["width"]), tuple(steps))

    def describe(self) -> str:
        """The kinds of steps in a line, with how often each occurs if more than once."""
        counts = Counter(type(step).__name__ for step in self.steps)
        words = (name if count == 1 else f"{name} x{count}" for name, count in counts.items())
        return ", ".join(words) or "undamaged"


def _listed(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Degraded:
    """A damaged photo and all that training wants to know about it; float32.

    image: (3, H, W) in [-1, 1], damaged.
    mask: (1, H, W) of 0 and 1: where structured damage changed the picture.
    labelled: (1, H, W) of 0 and 1: the part of ``mask`` that shows at the end, against the same
        photo without the structured steps; see ``visibility.visible``.
    target: (3, H, W) in [-1, 1]: ``clean`` with the tone steps alone; what restoration is to give.
    clean: (3, H, W) in [-1, 1]: the photo given, grey or toned if the degradation makes it so.
    """

    image: Tensor
    mask: Tensor
    labelled: Tensor
    target: Tensor
    clean: Tensor


def degrade(
    clean: Tensor, degradation: Degradation, textures: TextureSet | None = None
) -> Degraded:
    """Apply a degradation to a photo, without chance: the same value gives the same pixels.

    Args:
        clean: (3, H, W) float32 in [-1, 1] on the CPU, of the size the degradation was drawn for.
        degradation: what to do.
        textures: the set that the degradation was drawn with, if it was drawn with one.

    Raises:
        TypeError: ``clean`` is no tensor.
        ValueError: shape, dtype, device or values of ``clean`` are not as stated, or a texture
            that the degradation names is missing.
    """
    _check_clean(clean, degradation)
    picture: Array = np.array(clean.detach().numpy()[None], dtype=np.float32, order="C")
    own = picture
    is_own = True
    for step in degradation.steps:
        if type(step) not in _TONE:
            break
        picture = _TONE[type(step)](picture, step)
        is_own &= isinstance(step, _OWN_TONE)
        if is_own:
            own = picture
    target = picture[0]
    damaged, mask, labelled = _damage(picture, degradation, textures)
    return Degraded(
        image=_tensor(damaged),
        mask=_tensor(mask[None]),
        labelled=_tensor(labelled[None]),
        target=_tensor(target),
        clean=_tensor(own[0]),
    )


def _damage(
    target: Array, degradation: Degradation, textures: TextureSet | None
) -> tuple[Array, Bools, Bools]:
    """The damaged picture (3, H, W), its mask and its labelled part (H, W).

    After the first structured step two pictures go through the chain, with and without structured
    damage; their difference shows how far blur and resampling spread it.
    """
    height, width = degradation.height, degradation.width
    mask = np.zeros((height, width), dtype=np.bool_)
    pictures = target
    for step in degradation.steps:
        if type(step) in _TONE:
            continue
        if isinstance(step, StructuredStep):
            if len(pictures) == 1:
                pictures = np.repeat(pictures, 2, axis=0)
            for layer in render(step, (height, width), textures):
                lay_over(pictures[0], layer, mask)
            continue
        pictures = _UNSTRUCTURED[type(step)](pictures, step)
        radius_px = _spread_px(step)
        if radius_px and len(pictures) == 2:
            mask |= dilate(mask, radius_px) & (_change(pictures) > SEEN)
    labelled = visible(pictures[0], pictures[1], mask) if len(pictures) == 2 else mask
    return pictures[0], mask, labelled


def _spread_px(step: Step) -> int:
    """How far a step carries the value of a pixel; 0 if it stays."""
    if isinstance(step, unstructured.Blur):
        return int(np.ceil(GAUSSIAN_REACH * step.sigma_px))
    if isinstance(step, unstructured.Resampling):
        # both filters together reach two pixels of the smaller picture to each side
        return int(np.ceil(2 * step.factor))
    return 0


def _change(pictures: Array) -> Array:
    """(H, W): how far apart two pictures are, in the channel where they are farthest."""
    change: Array = np.abs(pictures[0] - pictures[1]).max(axis=0)
    return change


def _tensor(array: Array | Bools) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _check_clean(clean: Tensor, degradation: Degradation) -> None:
    if not isinstance(clean, Tensor):
        raise TypeError(f"clean: expected a tensor, got {type(clean).__name__}")
    expected = (3, degradation.height, degradation.width)
    if tuple(clean.shape) != expected:
        raise ValueError(
            f"clean: expected {expected}, the size the degradation was drawn for, "
            f"got {tuple(clean.shape)}"
        )
    if clean.dtype != torch.float32 or clean.device.type != "cpu":
        raise ValueError(f"clean: expected float32 on the CPU, got {clean.dtype} on {clean.device}")
    low, high = float(clean.min()), float(clean.max())
    if not (low >= -1 and high <= 1):  # also false for NaN
        raise ValueError(f"clean: expected values in [-1, 1], got {low} to {high}")
