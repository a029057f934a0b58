"""Images of any kind as 8-bit RGB, the right way up."""

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

# EXIF orientation to what sets the image upright.
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))
"""What HEIC files, the photographs of many telephones, have behind their first four bytes."""


def register_heic() -> None:
    """Teach Pillow to read HEIC.

    Raises:
        ValueError: the plug-in is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError(
            "the image is HEIC, which needs a plug-in: pip install 'onepeace-lightning[heif]'; or save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def upright(image: Pillow.Image) -> Pillow.Image:
    """Apply the EXIF orientation; metadata that cannot be read say nothing, as in every viewer."""
    image.load()  # what is wrong with the pixels is an error, outside of what follows
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # on broken metadata Pillow raises SyntaxError, struct.error, ValueError and others
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """Any mode to 8-bit RGB, transparency over white.

    Grey of 16 bits is scaled by 1/257. Grey of 32 bits does not say what white is: integers are taken as 8 bits where
    all are up to 255 and as 16 bits where all are up to 65 535, floating-point values as fractions where all are in
    [0, 1] and as 8 bits where all are in [0, 255].

    Raises:
        ValueError: for grey of 32 bits in any other range.
    """
    if image.mode.startswith("I") or image.mode == "F":  # Pillow clips these at 255 instead of scaling them
        return Pillow.fromarray(_grey(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of more than 8 bits as uint8."""
    low, high = values.min(), values.max()
    if mode.startswith("I;16"):
        white = 65535.0
    elif mode == "F":
        white = 1.0 if high <= 1 else 255.0
    else:
        white = 255.0 if high <= 255 else 65535.0
    if not (low >= 0 and high <= white):  # undefined values too
        raise ValueError(
            f"a grey image of mode {mode!r} with values in [{low:g}, {high:g}]; accepted are [0, 255], and "
            f"{'[0, 1]' if mode == 'F' else '[0, 65535]'}: scale it, or store it with 8 or 16 bits"
        )
    return np.round(values * (255.0 / white)).astype(np.uint8)


def rgb_pixels(image: Tensor) -> Tensor:
    """(3, H, W) uint8 from a tensor of pixels."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(f"a tensor of shape {tuple(image.shape)}; an image tensor is (3, height, width)")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"a tensor of {image.dtype}; an image tensor is uint8, or floating-point in [0, 1]")
    image = image.detach().float()
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # undefined values too
        raise ValueError(
            f"a floating-point image tensor in [{low:g}, {high:g}], not [0, 1]; give it before any normalisation"
        )
    return (image * 255).round().to(torch.uint8)
