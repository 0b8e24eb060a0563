"""Makes the pictures of the documentation with cfx itself: docs/images/*.png.

    python tools/make_doc_pictures.py DIRECTORY

DIRECTORY is where the commands of docs/tutorial.md were run: first.html, report.html and the run tuned/ are there.
Pages are photographed by a Chromium on the PATH, without a window; the figures are cfx plot's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PAGES = {"view": ("first.html", 0, 705), "report": ("report.html", 530, 1630)}
"""Picture -> page, and which rows of it."""
WIDTH, COLOURS = 1000, 96
"""Of every picture; a palette makes it small."""


def shrink(image: Image.Image, picture: Path) -> None:
    """Saves a picture of the common width in few colours."""
    height = round(image.height * WIDTH / image.width)
    image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(COLOURS).save(
        picture, optimize=True
    )


def photograph(page: Path, top: int, bottom: int, picture: Path) -> None:
    """A picture of some rows of a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=15000"]
        flags += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{bottom}", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=180)
        shrink(Image.open(shot).crop((0, top, WIDTH, bottom)), picture)


def main(directory: Path) -> None:
    """Makes all of them."""
    for name, (page, top, bottom) in PAGES.items():
        photograph(directory / page, top, bottom, IMAGES / f"{name}.png")
    cfx = [sys.executable, "-c", "from cfx.cli import main; main()", "plot"]
    for words, name in ((["embeddings", "mini"], "elements"), ([directory / "tuned"], "training")):
        subprocess.run([*cfx, *words, "-o", IMAGES / f"{name}.png", "--force"], check=True)
        shrink(Image.open(IMAGES / f"{name}.png"), IMAGES / f"{name}.png")
    for picture in sorted(IMAGES.glob("*.png")):
        print(f"{picture.name}: {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
