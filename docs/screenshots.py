"""`make screenshots`: pictures of reports, from real runs, into docs/screenshots. Needs Chromium; takes about four minutes on two cores."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent / "screenshots"
PROGRAM = Path(sysconfig.get_path("scripts")) / "robust-eval"
RUNS = {
    "kwta": "--model digits_kwta --attack pgd --attack autoattack --eps 0.05 --limit 60 --doubt",
    "pgd_at": "--model digits_pgd_at --attack fgsm --attack pgd --eps 0.05 --eps 0.1 --eps 0.15 --corruption cifar-c --limit 60",
    "efficientnet": "--model efficientnet_lite0 --attack fgsm --attack pgd --doubt",
}
PICTURES = {
    "refuted": ("kwta", 1280, 1500, False),
    "refuted-dark": ("kwta", 1280, 1500, True),
    "curves": ("pgd_at", 1280, 1500, False),
    "efficientnet": ("efficientnet", 1280, 1500, False),
    "narrow": ("kwta", 500, 1500, False),
}
"""Of which run, the window's width and height in pixels (Chromium has none narrower than 500), and whether in dark mode."""
COLOURS = 128  # of a palette: charts and text need no more, and a file stays under 150 kB


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("screenshots: Chromium is needed; install it, so that `chromium` or `google-chrome` is on the PATH")
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, words in RUNS.items():
            subprocess.run([PROGRAM, *words.split(), "--out", Path(folder, name)], check=True, stdout=subprocess.DEVNULL)
        for name, (run, width, height, dark) in PICTURES.items():
            _picture(chromium, Path(folder, run, "report.html"), HERE / f"{name}.png", width, height, dark)


def _picture(chromium: str, page: Path, path: Path, width: int, height: int, dark: bool) -> None:
    """The top of a page, with a palette instead of full colours."""
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={path}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([chromium, *options, page.as_uri()], check=True, stderr=subprocess.DEVNULL)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
