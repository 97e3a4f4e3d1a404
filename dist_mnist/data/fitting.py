"""Resizes a picture to the network's input."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dist_mnist.config.data_schema import Fit

# As torchvision resizes, over the whole area that shrinks to a pixel. For 8 bits Pillow's weights
# and sums are integers, made without sine or cosine: the same bits on every machine.
FILTER = Image.Resampling.BILINEAR


def fit_picture(picture: Image.Image, image_shape: Sequence[int], fit: Fit) -> NDArray[np.uint8]:
    """Return the pixels of a picture in the shape that a network takes.

    One channel is the luminance (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B), three are RGB. A
    picture that has the right size keeps its pixels.

    Args:
        picture: In RGB, as `read_picture` returns it.
        image_shape: Channels (1 or 3), height and width.
        fit: Another aspect gets black bars (pad), loses its edges (crop), or is stretched.

    Returns:
        uint8 of shape (channels, height, width).
    """
    channels, height, width = image_shape
    if channels == 1:
        picture = picture.convert("L")
    if fit is Fit.crop:
        resized = ImageOps.fit(picture, (width, height), FILTER)
    elif fit is Fit.stretch:
        resized = picture.resize((width, height), FILTER)
    else:  # ImageOps.pad could round a side to 0 pixels
        scale = min(width / picture.width, height / picture.height)
        across, down = (max(1, round(side * scale)) for side in picture.size)
        resized = Image.new(picture.mode, (width, height))
        corner = (width - across) // 2, (height - down) // 2
        resized.paste(picture.resize((across, down), FILTER), corner)
    pixels = np.asarray(resized).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
