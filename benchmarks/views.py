"""Views per second on one CPU thread: ours beside the alternatives, for the same SimCLR recipe.

    python benchmarks/views.py [--images FOLDER] [--rounds 7] [--add]

Needs `pip install lightly kornia albumentations` for their rows; a peer that is not installed is skipped with a line.
All implementations take turns, round after round, so that whatever else the machine does falls on all of them; a row's
figure is its median round, by processor time. FOLDER holds images to use (searched for *.png), else noise is used.
--add keeps the results and adds the ratios of this run, of packages that were not installed when they were measured.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from contrast.views import SimCLRViews
from contrast.views.blur import blur_radius

OURS = "contrast"
SHARED = "torchvision v2, whole batch (*)"


def recipe(t: object, kernel: int, size: int) -> list[object]:
    """SimCLR's transforms from a torchvision namespace, strength 1."""
    jitter = t.ColorJitter(0.8, 0.8, 0.8, 0.2)  # type: ignore[attr-defined]
    return [
        t.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),  # type: ignore[attr-defined]
        t.RandomHorizontalFlip(0.5),  # type: ignore[attr-defined]
        t.RandomApply([jitter], 0.8),  # type: ignore[attr-defined]
        t.RandomGrayscale(0.2),  # type: ignore[attr-defined]
        t.RandomApply([t.GaussianBlur(kernel, (0.1, 2.0))], 0.5),  # type: ignore[attr-defined]
    ]


def candidates(pixels: Tensor, size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (number of images, a call that makes two views of each)."""
    batch, few = len(pixels), max(1, len(pixels) // 8)  # the slow ones get an eighth of the batch
    kernel = 2 * blur_radius(size) + 1
    pictures: list[Image.Image] = [to_pil_image(image) for image in pixels[:few]]
    views = SimCLRViews(size)
    generator = torch.Generator().manual_seed(0)
    pil = v1.Compose([*recipe(v1, kernel, size), v1.ToTensor()])
    tensor = v2.Compose([*recipe(v2, kernel, size), v2.ToDtype(torch.float32, scale=True)])

    def each(transform: Callable[[object], Tensor], inputs: Sequence[object]) -> list[Tensor]:
        return [torch.stack([transform(image) for image in inputs]) for _ in range(2)]

    found: dict[str, tuple[int, Callable[[], object]]] = {
        OURS: (batch, lambda: views(pixels, views.draw(batch, generator))),
        "torchvision v1, PIL, per image": (few, lambda: each(pil, pictures)),
        "torchvision v2, tensor, per image": (few, lambda: each(tensor, pixels[:few].unbind())),
        SHARED: (batch, lambda: [tensor(pixels) for _ in range(2)]),
    }
    try:
        from lightly.transforms import SimCLRTransform

        light = SimCLRTransform(input_size=size)  # its own defaults are SimCLR's at strength 1; it also normalises
        found["lightly SimCLRTransform, PIL, per image"] = (few, lambda: [light(p) for p in pictures])
    except ImportError:
        print("lightly is not installed: skipped")
    try:
        import kornia.augmentation as K

        korn = torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0), same_on_batch=False),
            K.RandomHorizontalFlip(p=0.5, same_on_batch=False),
            K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8, same_on_batch=False),
            K.RandomGrayscale(p=0.2, same_on_batch=False),
            K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5, same_on_batch=False),
        )
        found["kornia, batch, per-image parameters"] = (batch, lambda: [korn(pixels / 255) for _ in range(2)])
    except ImportError:
        print("kornia is not installed: skipped")
    try:
        import albumentations as A
        import cv2

        cv2.setNumThreads(1)
        album = A.Compose(
            [
                A.RandomResizedCrop(size=(size, size), scale=(0.08, 1.0)),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter(
                    brightness=(0.2, 1.8), contrast=(0.2, 1.8), saturation=(0.2, 1.8), hue=(-0.2, 0.2), p=0.8
                ),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=(kernel, kernel), sigma_limit=(0.1, 2.0), p=0.5),
            ]
        )
        arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in pixels]

        def albumentations() -> list[Tensor]:
            made = [[torch.from_numpy(album(image=image)["image"]) for image in arrays] for _ in range(2)]
            return [torch.stack(each).permute(0, 3, 1, 2) / 255 for each in made]

        found["albumentations, per image"] = (batch, albumentations)
    except ImportError:
        print("albumentations is not installed: skipped")
    return found


def measure(size: int, batch: int, rounds: int, folder: Path | None) -> dict[str, float]:
    """Median views per second of each candidate at size x size."""
    files = sorted(folder.rglob("*.png")) if folder else []
    if files:
        chosen = [decode_image(str(file), ImageReadMode.RGB) for file in files[:: max(1, len(files) // batch)][:batch]]
        pixels = torch.stack([v1.functional.resize(image, [size, size], antialias=True) for image in chosen])
    else:
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    torch.manual_seed(0)
    calls = candidates(pixels, size)
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in tqdm(range(rounds + 1), desc=f"{size} x {size}", leave=False):
        for name, (images, call) in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first round warms up
                speeds[name].append(2 * images / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of PNG files to use instead of noise")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--add", action="store_true", help="keep the results and add the ratios of this run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "views.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packages = ("torch", "torchvision", "lightly", "kornia", "albumentations", "pillow")
    results: dict[str, Any] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in packages},
        "pixels": "images" if args.images else "noise",
        "rounds": args.rounds,
    }
    added: dict[str, object] = dict(results)
    for size, batch in ((32, 256), (224, 16)):
        speeds = measure(size, batch, args.rounds, args.images)
        results[f"{size}x{size}"] = {"batch": batch, "views_per_second": speeds}
        added[f"{size}x{size}"] = {name: speeds[OURS] / speed for name, speed in speeds.items()}
        print(f"\n{size} x {size}, batch {batch}, one thread\n{'':42}{'views/s':>10}{'ours is':>12}")
        for name, speed in sorted(speeds.items(), key=lambda item: -item[1]):
            print(f"{name:42}{speed:10.0f}{speeds[OURS] / speed:10.1f} x")
    print("\n(*) one set of parameters for the whole batch: not the same augmentation, shown for its speed only")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.add:
        results = json.loads(args.out.read_text())
        results.setdefault("ratios_of_other_runs", []).append(added)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
