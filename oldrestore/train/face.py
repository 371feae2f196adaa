"""Stage "face": sharpen aligned faces that are already restored, without changing the person.

A portrait is aligned by its landmarks, shrunk as faces in photos are small, damaged, restored by
given weights, and enlarged again: what the face stage meets in use. The goal is the clean crop.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.degradation import degrade, sample_degradation
from oldrestore.face.align import corners, inverse, similarity, to_template, warp
from oldrestore.face.detect import FaceDetector, make_face_detector
from oldrestore.face.enhancer import FaceEnhancer
from oldrestore.perceptual import Backbone
from oldrestore.pipeline import Restorer
from oldrestore.train import losses
from oldrestore.train.config import FaceSettings
from oldrestore.train.data import TRIES, Batch, PhotoFolders
from oldrestore.train.loop import Player, Stage
from oldrestore.train.players import perceptual_backbone
from oldrestore.train.state import kind_of, read_source

# how exactly landmarks are found: the crop is turned, enlarged and moved by up to this
TURN_DEG, ENLARGE, MOVE = 6.0, 0.06, 0.02  # degrees, share, share of the side
FOUND_PX = 256  # longer side of the copies in which the portraits' faces are looked for
GRID_PX = 8  # damaged crops have sides of multiples of this
MASK_GROWS_PX = 1  # as the detector's mask is widened
# share of samples that show the damaged crop itself; how much of the restoration others take
PLAIN_SHARE, LEAST_DENOISE = 0.1, 0.6
CENTRE = 0.125  # of the crop's side at each border that the perceptual loss leaves out
# what the perceptual loss sees is shifted by up to this part of the side, and half of it may be
# halved; smaller crops would be too small for a judge then
SHIFT_SHARE, HALVED_FROM_PX = 16, 128
ORDERS = tuple(itertools.permutations(range(3)))  # of the colours

LOSSES = ("pixel", "perceptual", "distance")

Made = tuple[Tensor, Tensor, Tensor]  # degraded, restored, target: (3, S, S) uint8


@dataclass(frozen=True)
class AlignedFaces:
    """Aligned crops of portraits: damaged, restored, and as they should be.

    Every portrait is damaged in ``settings.variants`` ways, each of which is made once and kept, as
    the restoration costs more than a step of training.
    """

    clean: PhotoFolders
    settings: FaceSettings
    detector: FaceDetector
    restorer: Restorer
    _landmarks: dict[bytes, list[tuple[float, float]] | None] = field(default_factory=dict)
    _made: dict[tuple[bytes, int], Made] = field(default_factory=dict)

    def draw(self, rng: Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        for _ in range(TRIES):
            photo = self.clean.pick(rng)
            key = photo[::16, ::16].tobytes()
            landmarks = self._found(key, photo)
            if landmarks is not None:
                break
        else:
            raise ValueError(f"clean: no face found in {TRIES} photos drawn in a row")
        variant = int(rng.integers(self.settings.variants))
        side = self.settings.crop_px
        if (key, variant) not in self._made:
            own = np.random.default_rng([self.settings.seed, variant, *key[:32]])
            self._made[key, variant] = self._make(own, photo, landmarks, side)
        degraded, restored, target = (x.float() / 127.5 - 1 for x in self._made[key, variant])
        taken = 0.0 if rng.random() < PLAIN_SHARE else rng.uniform(LEAST_DENOISE, 1)
        image = degraded.lerp(restored, taken)
        if rng.random() < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        shifts, sizes = 1 + side // SHIFT_SHARE, 1 + (side >= HALVED_FROM_PX)
        view = rng.integers((8, len(ORDERS), shifts, shifts, sizes))
        return {
            "image": image.contiguous(),
            "target": target.contiguous(),
            "view": torch.from_numpy(view),
        }

    def _found(self, key: bytes, photo: np.ndarray) -> list[tuple[float, float]] | None:
        """The landmarks of a portrait's surest face; looked for once."""
        if key not in self._landmarks:
            small, scale = _small(_image(photo))
            faces = self.detector.detect(small)
            found = faces[0].moved(0, 0, scale).landmarks if faces else None
            self._landmarks[key] = None if found is None else list(found)
        return self._landmarks[key]

    def _make(
        self, rng: Generator, photo: np.ndarray, landmarks: list[tuple[float, float]], side: int
    ) -> Made:
        """One damaged crop, restored, and its goal."""
        matrix = to_template(landmarks, side)
        loose = similarity(_jittered(corners(side, inverse(matrix)), rng), corners(side, _IDENTITY))
        ends = np.log([self.settings.smallest_scale, self.settings.largest_scale])
        scale = float(np.exp(rng.uniform(*ends)))
        small = max(GRID_PX, round(side * scale / GRID_PX) * GRID_PX)
        fitted = loose * (small / side)
        clean = warp(_image(photo)[None], fitted, (small, small))[0]
        damage = sample_degradation(rng, small, small, settings=self.settings.degradation)
        pair = degrade(clean, damage)
        mask = F.max_pool2d(pair.mask[None], 2 * MASK_GROWS_PX + 1, 1, MASK_GROWS_PX)
        restored = self.restorer.restore_tensor(pair.image[None], mask)[0]
        # of a photo without fading and grey the goal is the portrait itself, in its full resolution
        sharp = warp(_image(photo)[None], loose, (side, side))[0]
        goal = _with_tone(sharp, clean, pair.target)
        up = np.diag([side / small, side / small, 1.0])[:2]
        large = [warp(x[None], up, (side, side))[0] for x in (pair.image, restored)]
        degraded, restored, target = (_bytes(x) for x in (*large, goal))
        return degraded, restored, target


_IDENTITY = np.eye(2, 3)


def _with_tone(sharp: Tensor, clean: Tensor, toned: Tensor) -> Tensor:
    """``sharp`` (3, S, S) with the tone that ``toned`` gives the small ``clean`` of it."""
    change = (toned - clean)[None]
    if not change.any():
        return sharp
    size = list(sharp.shape[1:])
    grown = sharp + F.interpolate(change, size, mode="bilinear", align_corners=False)[0]
    if (toned == toned[:1]).all():  # grey: the colours of its fine edges would be left
        grown = grown.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return grown.clamp(-1, 1)


def _small(image: Tensor) -> tuple[Tensor, float]:
    """A portrait no larger than a face has to be, to be found; how much larger the portrait is."""
    scale = max(1.0, max(image.shape[1:]) / FOUND_PX)
    if scale == 1:
        return image, 1.0
    size = [round(side / scale) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="area")[0], scale


def _image(photo: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1))).float() / 127.5 - 1


def _bytes(image: Tensor) -> Tensor:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _jittered(points: np.ndarray, rng: Generator) -> np.ndarray:
    """Corners (4, 2) of a crop, turned, enlarged and moved a little."""
    centre = points.mean(axis=0)
    side = float(np.linalg.norm(points[1] - points[0]))
    angle = np.deg2rad(rng.uniform(-TURN_DEG, TURN_DEG))
    size = np.exp(rng.uniform(-ENLARGE, ENLARGE))
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved: np.ndarray = (points - centre) @ turn.T + centre + rng.uniform(-MOVE, MOVE, 2) * side
    return moved


class FaceEnhancing(nn.Module):
    """The enhancer's side, the only one."""

    def __init__(
        self, enhancer: FaceEnhancer, settings: FaceSettings, judge: Backbone | None
    ) -> None:
        super().__init__()
        self.enhancer = enhancer
        self.settings = settings
        self._judges = (judge,)  # in a tuple: what only judges is no part of this player

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        enhanced, target = self.enhancer(batch["image"]), batch["target"]
        (judge,) = self._judges
        found = {}
        if self.settings.pixel:
            found["pixel"] = (enhanced - target).abs().mean()
        if judge is None:
            return found
        view = batch["view"][0]
        ours, theirs = (seen_as(centre(crops), view) for crops in (enhanced, target))
        if self.settings.perceptual:
            found["perceptual"] = judge.perceptual_loss(ours, theirs)
        if self.settings.distance:
            found["distance"] = judge.perceptual_distance(ours, theirs).mean()
        return found


def centre(crops: Tensor) -> Tensor:
    """The part of aligned crops (B, 3, S, S) that the face fills."""
    border = round(CENTRE * crops.shape[-1])
    return crops[..., border:-border, border:-border]


def seen_as(crops: Tensor, view: Tensor) -> Tensor:
    """Crops (B, 3, S, S) in one of many views, so that no judge's own taste is learnt.

    A judge is pleased by patterns that fit its own grid and orientation and nobody else's. Over
    random views these cancel (Kettunen et al., E-LPIPS, 2019).

    Args:
        view: (5,) whole numbers: which of 8 turns and mirrorings, which order of the colours, rows
            and columns cut off, 1 for half the side.
    """
    turn, order, down, right, is_half = (int(number) for number in view)
    crops = torch.rot90(crops[:, list(ORDERS[order]), down:, right:], turn % 4, (2, 3))
    if turn >= 4:
        crops = crops.flip(-1)
    return F.avg_pool2d(crops, 2) if is_half else crops


def make_stage(
    settings: FaceSettings,
    *,
    clean: Sequence[Path],
    weights: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
    detector: FaceDetector | None = None,
) -> Stage:
    """The stage.

    Args:
        clean: folders of portraits; the surest face of each is taken.
        weights: weights file that restores the damaged crops; None: the one shipped.
        backbone: weights of a perceptual backbone.
        init_from: run folder of another face network, or a weights file with one.
        detector: None: the one of the extra "faces".

    Raises:
        ValueError: a folder is missing or holds nothing readable, the network does not fit, or no
            detector is installed.
    """
    torch.manual_seed(settings.seed)
    enhancer = FaceEnhancer(settings.network)
    if settings.crop_px % enhancer.align_px or settings.late_crop_px not in (0, settings.crop_px):
        raise ValueError(
            f"crop_px: expected a multiple of {enhancer.align_px}, the same throughout, "
            f"got {settings.crop_px}, {settings.late_crop_px}"
        )
    if init_from is not None:
        source = read_source(init_from)
        source.fill(enhancer, source.name_of("face"), settings.network)
    judge = perceptual_backbone(backbone, settings.perceptual + settings.distance)
    finder = make_face_detector() if detector is None else detector
    restorer = Restorer.load(weights, "cpu", faces="off")

    def samples(held_out: bool) -> AlignedFaces:
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=settings.crop_px // 2)
        return AlignedFaces(photos, settings, finder, restorer)

    return Stage(
        name="face",
        config={
            "preset": kind_of(settings.network),
            "face": asdict(settings.network),
            "face_side_px": settings.crop_px,
        },
        networks=nn.ModuleDict({"face": enhancer}),
        players={
            "face": Player(
                FaceEnhancing(enhancer, settings, judge),
                {name: getattr(settings, name) for name in LOSSES},
                settings.lr,
            )
        },
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=functools.partial(_validate, judge),
        sheet=_sheet,
        columns=3,
        judges=[] if judge is None else [judge],
    )


def _enhanced(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    enhanced: Tensor = networks["face"](batch["image"])
    return enhanced.clamp(-1, 1)


def _validate(judge: Backbone | None, networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """PSNR, and the perceptual distance if there is a judge, before and after, inside the face."""
    target = centre(batch["target"])
    figures = {}
    for name, crops in (("before", batch["image"]), ("after", _enhanced(networks, batch))):
        figures[f"psnr_{name}"] = float(losses.psnr(centre(crops), target).mean())
        if judge is not None:
            distance = judge.perceptual_distance(centre(crops), target)
            figures[f"distance_{name}"] = float(distance.mean())
    return figures


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    columns = [batch["image"], _enhanced(networks, batch), batch["target"]]
    return torch.stack(columns, dim=1).flatten(0, 1)
