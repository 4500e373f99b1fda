"""Render images that resemble Fruits-360, so that nothing must be downloaded: fruit on white, JPEG, 100x100 pixels."""

import colorsys
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE_PX = 100
# Images are drawn four times as large and then scaled down, for smooth edges.
SCALE = 4
JPEG_QUALITY = 90

# Images per class.
PER_CLASS = 25
# Per class: hue (0 to 1), ratio of height to width, radius as a fraction of the image, and whether the fruit has spots.
CLASSES: dict[str, tuple[float, float, float, bool]] = {
    "Apple Green": (0.27, 0.95, 0.42, True),
    "Apple Red": (0.99, 0.95, 0.42, False),
    "Apricot": (0.09, 1.00, 0.34, False),
    "Blueberry": (0.65, 1.00, 0.26, False),
    "Grape Green": (0.22, 1.20, 0.28, False),
    "Kiwi": (0.11, 0.80, 0.40, True),
    "Lemon": (0.15, 0.72, 0.44, False),
    "Lime": (0.30, 0.78, 0.40, True),
    "Orange": (0.07, 1.00, 0.44, True),
    "Pear": (0.18, 1.45, 0.30, False),
    "Plum": (0.80, 1.15, 0.34, False),
    "Strawberry": (0.97, 1.25, 0.34, True),
}


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1))
    return int(red * 255), int(green * 255), int(blue * 255)


def render(label: str, rng: random.Random) -> Image.Image:
    """Render one image of a class. `rng` determines how it differs from the other images of the class."""
    hue, ratio, radius, spotted = CLASSES[label]
    hue += rng.uniform(-0.015, 0.015)
    side = SIZE_PX * SCALE
    width = side * radius * rng.uniform(0.93, 1.07)
    height = width * ratio
    fruit = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    draw = ImageDraw.Draw(fruit)
    light_x, light_y = rng.uniform(-0.4, 0.4), rng.uniform(-0.5, -0.1)
    rings = 40
    for ring in range(rings):  # from the dark rim to the highlight
        share = 1 - ring / rings
        x = side / 2 + light_x * width * (1 - share)
        y = side / 2 + light_y * height * (1 - share)
        colour = _rgb(hue, 0.95 - 0.35 * (1 - share), 0.55 + 0.45 * (1 - share))
        draw.ellipse((x - width * share, y - height * share, x + width * share, y + height * share), fill=colour)
    if spotted:
        for _ in range(40):
            angle, distance = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random()) * 0.85
            x, y = side / 2 + math.cos(angle) * width * distance, side / 2 + math.sin(angle) * height * distance
            size = rng.uniform(1.5, 4)
            draw.ellipse((x - size, y - size, x + size, y + size), fill=_rgb(hue + 0.05, 0.5, 0.85))
    stem = (side / 2, side / 2 - height * 0.95, side / 2 + rng.uniform(-20, 20), side / 2 - height * 1.15)
    draw.line(stem, fill=(90, 60, 30), width=3 * SCALE)
    fruit = fruit.rotate(rng.uniform(0, 360), resample=Image.Resampling.BICUBIC)
    image = Image.new("RGB", fruit.size, "white")
    image.paste(fruit, mask=fruit.getchannel("A").filter(ImageFilter.GaussianBlur(SCALE)))
    return image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


def write_dataset(folder: Path, per_class: int = PER_CLASS, seed: int = 360) -> int:
    """Write images of all classes, one folder per class, and return their number. Equal seeds give equal images."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            rng = random.Random(f"{seed} {label} {number}")  # noqa: S311  # not for security
            render(label, rng).save(folder / label / f"{number}_100.jpg", quality=JPEG_QUALITY)
    return per_class * len(CLASSES)
