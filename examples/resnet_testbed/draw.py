"""Draw five pictures of 640 x 480: something to send that is nobody's photograph."""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (640, 480)
SCENES = {
    "sun": ("skyblue", "gold", (240, 60, 400, 220)),
    "hill": ("lightblue", "seagreen", (-200, 240, 840, 900)),
    "moon": ("midnightblue", "lightyellow", (420, 80, 520, 180)),
    "balloon": ("azure", "crimson", (220, 60, 420, 320)),
    "orange": ("tan", "darkorange", (160, 120, 480, 440)),
}


def draw(folder: Path) -> list[Path]:
    """Write the five JPEGs into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (background, colour, box) in SCENES.items():
        picture = Image.new("RGB", SIZE, background)
        ImageDraw.Draw(picture).ellipse(box, fill=colour)
        paths.append(folder / f"{name}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def main() -> None:
    """Draw into the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for path in draw(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
