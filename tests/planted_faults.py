"""Faults to plant in photos, each as a function of a picture, for the tests of the doctor."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from scipy import ndimage

Fault = Callable[[Image.Image], Image.Image]


def encoded(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def gaussian(sigma: float) -> Fault:
    """Blur, in pixels of a photo of 640 px."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / 640))


def motion(length: float, degrees: float) -> Fault:
    def blurred(image: Image.Image) -> Image.Image:
        reach = round(length * min(image.size) / 640)
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
        for step in np.linspace(-reach / 2, reach / 2, 8 * reach + 1):
            y, x = reach + step * np.sin(np.radians(degrees)), reach + step * np.cos(np.radians(degrees))
            kernel[round(y), round(x)] += 1
        kernel /= kernel.sum()
        bands = [ndimage.convolve(np.asarray(band, np.float32), kernel) for band in image.split()]
        return Image.fromarray(np.stack(bands, -1).clip(0, 255).astype(np.uint8))

    return blurred


def small(side: int) -> Fault:
    return lambda image: image.resize((side, side), Image.Resampling.LANCZOS)


def letterbox(share: float, colour: tuple[int, int, int] = (0, 0, 0)) -> Fault:
    def edged(image: Image.Image) -> Image.Image:
        bar = round(share * image.height)
        whole = Image.new("RGB", (image.width, image.height + 2 * bar), colour)
        whole.paste(image, (0, bar))
        return whole

    return edged


def text_strip(image: Image.Image) -> Image.Image:
    """A light strip with words below the photo."""
    height = image.height // 10
    whole = Image.new("RGB", (image.width, image.height + height), (240, 240, 240))
    whole.paste(image, (0, 0))
    size = round(height * 0.6)
    ImageDraw.Draw(whole).text((20, image.height + height // 6), "STUDIO 2021", fill=(10, 10, 10), font_size=size)
    return whole


def watermark(opacity: int, size: int = 36, place: tuple[float, float] = (0.55, 0.88)) -> Fault:
    def marked(image: Image.Image) -> Image.Image:
        over = Image.new("RGBA", image.size)
        where = (round(place[0] * image.width), round(place[1] * image.height))
        ImageDraw.Draw(over).text(where, "© studio one", fill=(255, 255, 255, opacity), font_size=size)
        return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")

    return marked


def cropped(left: float, right: float) -> Fault:
    def inner(image: Image.Image) -> Image.Image:
        width, height = image.size
        box = (round(width * left), round(height * left), round(width * (1 - right)), round(height * (1 - right)))
        return image.crop(box).resize(image.size, Image.Resampling.LANCZOS)

    return inner


COPIES: dict[str, Fault] = {
    "re-encoded": lambda image: encoded(image, 60),
    "reduced": lambda image: image.resize((image.width * 2 // 5, image.height * 2 // 5), Image.Resampling.LANCZOS),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "shifted 6%": cropped(0.06, 0),
    "cropped 5% a side": cropped(0.05, 0.05),
    "turned 3°": lambda image: cropped(0.05, 0.05)(image.rotate(3, Image.Resampling.BICUBIC)),
    "cropped 10% a side": cropped(0.1, 0.1),
}


def before(image: Image.Image, background: Image.Image, seed: int) -> Image.Image:
    """The middle of a photo before another photo's background, seen from a slightly other place in other light."""
    draw = np.random.default_rng(seed)
    (left, up), (right, down) = draw.uniform(0, 0.12, 2), 1 - draw.uniform(0, 0.12, 2)
    width, height = background.size
    box = (round(left * width), round(up * height), round(right * width), round(down * height))
    behind = ImageEnhance.Brightness(background.crop(box).resize(image.size)).enhance(draw.uniform(0.92, 1.08))
    middle = Image.new("L", image.size, 0)
    width, height = image.size
    ImageDraw.Draw(middle).ellipse((width // 6, height // 6, width * 5 // 6, height), fill=255)
    behind.paste(image, (0, 0), middle)
    return behind
