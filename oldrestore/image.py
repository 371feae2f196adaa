"""Photos in, photos out: files, PIL images, arrays and tensors <-> (B, 3, H, W) in [-1, 1].

The first and the last step of the data's way. ``decode`` remembers what came in, and ``encode``
gives the same kind back: same size, type, depth, channels and alpha.
"""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oldrestore.photo_file import (
    PhotoError,
    array_of,
    check_size,
    info_of,
    name_of,
    open_photo,
    upright,
)

PhotoLike: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | Image.Image
    | np.ndarray[Any, Any]
    | Tensor  # what decode takes
)

ARRAY_TYPES = (np.uint8, np.uint16, np.float16, np.float32, np.float64)
CHANNELS = (1, 2, 3, 4)  # grey; grey, alpha; RGB; RGB, alpha
# a mask's values go up to the first of these that holds them all
MASK_SCALES = (1, 255, 65535)
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # of integers; floats go to 1


@dataclass(frozen=True)
class Photo:
    """A decoded photo, or a batch of them of one size.

    original: what came in; a file as PIL image, or as array if it holds colours of 16 bits, which
        PIL images do not; a PIL image upright.
    pixels: (B, C, H, W), its values as they are; C is 1 (grey), 2 (grey, alpha), 3 or 4.
    """

    original: Any
    pixels: Tensor

    @property
    def image(self) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""
        return image_of(self.pixels)

    @property
    def is_grey(self) -> Tensor:
        """Whether each photo of the batch has no colour at all, (B, 1, 1, 1)."""
        return are_grey(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @property
    def batch(self) -> int:
        """Number of photos; 1 but for tensors."""
        return len(self.pixels)


def _colours(pixels: Tensor) -> Tensor:
    """Without alpha."""
    return pixels[:, : 1 if pixels.shape[1] <= 2 else 3]


def image_of(pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W) as a photo's are -> (B, 3, H, W) float32 in [-1, 1]."""
    image = _colours(pixels).to(torch.float32) * (2 / FULL_SCALE.get(pixels.dtype, 1.0)) - 1
    return image.expand(-1, 3, -1, -1)


def are_grey(pixels: Tensor) -> Tensor:
    """Whether pixels (B, C, H, W), or a part of a photo's, have no colour at all, (B, 1, 1, 1)."""
    colour = _colours(pixels).to(torch.float32)
    return (colour == colour[:, :1]).flatten(1).all(dim=1)[:, None, None, None]


def decode(photo: "PhotoLike | Photo") -> Photo:
    """Read a photo of any kind.

    Args:
        photo: path of a file; its bytes; PIL image; array (H, W[, C]) uint8, uint16 or float in
            [0, 1]; tensor ([B,] C, H, W) uint8 or float in [0, 1]. C is 1 (grey), 2 (grey, alpha),
            3 (RGB) or 4 (RGB, alpha). Files and PIL images are turned upright by their EXIF tag.
            PIL modes 1, P, PA and YCbCr are read as L and RGB(A); CMYK, LAB, HSV and F are
            refused: they need a colour profile or a scale. Of a file with several pages the first
            is read, with a warning; ``photo_file.open_photo`` has them all, and by windows.

    Raises:
        PhotoError: it cannot be read, is smaller than 8 px or larger than 50,000 px a side, claims
            more than its bytes can hold, has more than 1 GiB of pixels (a file that is no TIFF),
            or values outside its range.
        TypeError: it is nothing of the above.

    A ``Photo`` is given back as it is, so that reading can be done apart.
    """
    if isinstance(photo, Photo):
        return photo
    if isinstance(photo, (str, os.PathLike, bytes)):
        return _decode_file(photo)
    if isinstance(photo, Image.Image):
        return _decode_picture(photo)
    if isinstance(photo, np.ndarray):
        if photo.dtype.newbyteorder("=") not in ARRAY_TYPES:
            raise PhotoError(f"photo: expected uint8, uint16 or float array, got {photo.dtype}")
        if photo.ndim not in (2, 3) or (photo.ndim == 3 and photo.shape[2] not in (1, 2, 3, 4)):
            raise PhotoError(f"photo: expected array (H, W) or (H, W, 1 to 4), got {photo.shape}")
        pixels = _tensor(photo[:, :, None] if photo.ndim == 2 else photo).permute(2, 0, 1)[None]
    elif isinstance(photo, Tensor):
        if photo.dtype != torch.uint8 and not photo.is_floating_point():
            raise PhotoError(f"photo: expected uint8 or floating tensor, got {photo.dtype}")
        if photo.ndim not in (3, 4) or len(photo) == 0 or photo.shape[-3] not in CHANNELS:
            shape = tuple(photo.shape)
            raise PhotoError(f"photo: expected tensor (C, H, W) or (B, C, H, W), got {shape}")
        pixels = photo.detach() if photo.ndim == 4 else photo.detach()[None]
    else:
        expected = "a path, bytes, PIL image, array or tensor"
        raise TypeError(f"photo: expected {expected}, got {type(photo).__name__}")
    check_size(pixels.shape[3], pixels.shape[2], "photo")
    if pixels.is_floating_point() and not ((pixels >= 0) & (pixels <= 1)).all():  # NaN is neither
        raise PhotoError("photo: expected floating values in [0, 1], got others, or NaN")
    return Photo(photo, pixels)


def encode(photo: Photo, image: Tensor, changed: Tensor | None = None) -> Any:
    """Give ``image`` back as the kind of photo that came in, with its alpha; grey stays grey.

    Args:
        photo: what ``decode`` gave.
        image: (B, 3, H, W) floating point; clamped to [-1, 1].
        changed: (B, 1, H, W); where it is 0, the photo's own values are given, to the bit.
    """
    return encode_pixels(photo, new_pixels(photo.pixels, image, photo.is_grey, changed))


def new_pixels(
    pixels: Tensor, image: Tensor, is_grey: Tensor, changed: Tensor | None = None
) -> Tensor:
    """``pixels`` (B, C, H, W), all of a photo's or some, with the colours of ``image``.

    Args:
        pixels: of the photo that came in.
        image, changed: see ``encode``.
        is_grey: (B, 1, 1, 1), whether the photos have no colour at all.
    """
    value = ((image.float() + 1) / 2).clamp(0, 1)
    channels = pixels.shape[1]
    grey = value.mean(dim=1, keepdim=True)
    value = torch.where(is_grey.to(value.device), grey, value)
    value = grey if channels <= 2 else value
    scale = FULL_SCALE.get(pixels.dtype)
    value = (value * scale).round() if scale else value
    new = value.to(pixels.dtype)
    if changed is not None:
        own = pixels[:, : new.shape[1]].to(new.device)
        new = torch.where(changed.to(new.device) > 0, new, own)
    if channels in (2, 4):
        new = torch.cat([new, pixels[:, -1:].to(new.device)], dim=1)
    return new


def encode_pixels(photo: Photo, pixels: Tensor) -> Any:
    """Give new pixels (B, C, H, W), all of the photo's, back as the kind of photo that came in."""
    return _like(photo.original, pixels)


def unchanged(photo: Photo) -> Any:
    """A copy of the photo that came in, upright, its values to the bit."""
    original = photo.original
    return original.detach().clone() if isinstance(original, Tensor) else original.copy()


def decode_mask(mask: PhotoLike, photo: Photo, name: str = "mask") -> Tensor:
    """Read a mask and check it against its photo.

    Args:
        mask: any kind of photo, of one channel (or of equal ones); 0..1, 0..255 or 16 bits; 1 (or
            the most) = damaged; what lies between is rounded. A tensor may be (H, W) or a batch.
        photo: the photo it belongs to.
        name: what messages call it; a file's is its path.

    Returns:
        (B, 1, H, W) float32 of 0 and 1.

    Raises:
        PhotoError: it cannot be read, or its size, channels or values are others.
        TypeError: it is nothing of the above.
    """
    if isinstance(mask, (str, os.PathLike, bytes)):
        name = name_of(mask)
        with open_photo(mask) as file:
            mask = file.page(0).read_all()
    if isinstance(mask, Image.Image):
        mask = np.asarray(upright(mask, name))
    if isinstance(mask, np.ndarray) and mask.ndim in (2, 3):
        values = _tensor(mask if mask.ndim == 3 else mask[:, :, None]).permute(2, 0, 1)[None]
    elif isinstance(mask, Tensor) and mask.ndim in (2, 3, 4):
        values = mask.detach()[(None,) * (4 - mask.ndim)]
    else:
        got = tuple(mask.shape) if isinstance(mask, (np.ndarray, Tensor)) else type(mask).__name__
        raise TypeError(f"{name}: expected 'auto', None or a photo of one channel, got {got}")
    if values.shape[2:] != photo.size or len(values) not in (1, photo.batch):
        got = tuple(values.shape[2:]) if len(values) in (1, photo.batch) else tuple(values.shape)
        raise PhotoError(f"{name}: expected {photo.size} to match photo, got {got}")
    values = mask_values(values, name)
    damaged = values >= mask_scale(float(values.max()), name) / 2
    return damaged.to(torch.float32).expand(photo.batch, -1, -1, -1)


def mask_values(pixels: Tensor, name: str) -> Tensor:
    """Pixels (B, C, H, W) of a mask, all or some, as one channel (B, 1, H, W) of float32.

    Raises:
        PhotoError: they have colours, or are no numbers from 0 on.
    """
    if pixels.shape[1] in (2, 4):  # a paint program's alpha says nothing of damage
        pixels = pixels[:, :-1]
    values = pixels.to(torch.float32)
    if not (values >= 0).all():
        mask_scale(math.nan, name)
    if not (values == values[:, :1]).all():
        raise PhotoError(f"{name}: expected one channel or equal ones, got colours")
    return values[:, :1]


def mask_scale(largest: float, name: str) -> int:
    """What stands for 1 in a mask, by its largest value; from half of it on, all is damaged.

    Raises:
        PhotoError: no mask goes that far.
    """
    for scale in MASK_SCALES:
        if largest <= scale:
            return scale
    raise PhotoError(f"{name}: expected values in 0..1 or 0..255, 1 or 255 = damaged")


def encode_mask(photo: Photo, mask: Tensor) -> Any:
    """Give a mask (B, 1, H, W) of 0 and 1 back in the kind of its photo, with one channel.

    A PIL image of mode L with 0 and 255; an array (H, W), uint8 with 0 and 255 or floating with 0
    and 1 as the photo's; a tensor ([B,] 1, H, W) of the photo's type, likewise.
    """
    is_float = photo.pixels.is_floating_point()
    if isinstance(photo.original, Tensor):
        tensor = (mask if is_float else mask * 255).to(photo.pixels)
        return tensor if photo.original.ndim == 4 else tensor[0]
    array = mask[0, 0].cpu().numpy()
    if isinstance(photo.original, Image.Image):
        return Image.fromarray((array * 255).astype(np.uint8))
    return array.astype(photo.original.dtype) if is_float else (array * 255).astype(np.uint8)


def _decode_file(photo: str | os.PathLike[str] | bytes) -> Photo:
    """The first page of a file."""
    with open_photo(photo) as file:
        if file.page_count > 1:
            warnings.warn(
                f"{file.name}: of {file.page_count} pages the first is read", stacklevel=4
            )
        page = file.page(0)
        page.tell_notes()
        check_size(page.size[1], page.size[0], file.name)
        array = page.read_all()
    original: Any = array
    if array.dtype == np.uint8 or array.shape[2] == 1:
        original = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        original.info = info_of(page.metadata)
    return Photo(original, _tensor(array).permute(2, 0, 1)[None])


def _decode_picture(picture: Image.Image) -> Photo:
    original = upright(picture, "photo")
    return Photo(original, _tensor(array_of(original, "photo")).permute(2, 0, 1)[None])


def _like(original: Any, pixels: Tensor) -> Any:
    """``pixels`` (B, C, H, W) in the kind of ``original``."""
    if isinstance(original, Tensor):
        pixels = pixels.to(original.device)
        return pixels if original.ndim == 4 else pixels[0]
    array = pixels[0].permute(1, 2, 0).cpu().contiguous().numpy()
    if isinstance(original, np.ndarray):
        return array.reshape(original.shape).astype(original.dtype, copy=False)
    array = array[:, :, 0] if array.shape[2] == 1 else array
    picture = Image.fromarray(array.astype(np.int32) if original.mode == "I" else array)
    picture.info = dict(original.info)
    return picture


def _tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    """In native byte order: the array's own memory where that serves, else a copy."""
    if array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable:
        return torch.from_numpy(array)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
