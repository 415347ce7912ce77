"""Images per second from disk, beside torchvision and lightly; and the memory of a data set in tar files.

    python benchmarks/loading.py [--photos FOLDER] [--rounds 5] [--workers 2] [--add]
    python benchmarks/loading.py --memory 2000 200000

The first command decodes photographs of 12 megapixels, 4000 x 3000 JPEGs of about 4 MB, to 224 x 224 pixels, with the
same number of worker processes in every row. It makes them unless FOLDER has some. "square" resizes the shorter side
and keeps the centre; "two views" applies SimCLR's augmentations. The loaders take turns, round after round. A row is
the median of the images per second of processor time, workers included, and by the clock. Needs `pip install lightly`
for its rows. --add keeps rows of results/loading.json that this run does not measure.

The second command writes so many samples to tar files, reads an epoch of each set in a process of its own and prints
the largest memory of that process and of its workers. Linux only.
"""

import argparse
import io
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sized
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm
from views import installed, processor

from contrast.data.images.folder import folder
from contrast.data.images.image_set import ImageFiles
from contrast.data.images.shards import webdataset
from contrast.data.loader import Batches
from contrast.views import SimCLRViews

SIZE, BATCH = 224, 8
OURS, OURS_VIEWS = "ours, square", "ours, two views"
RESULTS = Path(__file__).parent / "results" / "loading.json"


def photograph(seed: int, width: int = 4000, height: int = 3000) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as that of photographs does, and rectangles with hard edges."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / width) ** 1.2

    def noise() -> np.ndarray:
        values = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), s=(height, width))
        return values / values.std()

    grey = noise()
    pixels = np.stack([120 + 50 * grey + 15 * noise() for _ in range(3)], axis=2)
    for _ in range(60):
        top, left, high, wide = rng.integers(0, height), rng.integers(0, width), *rng.integers(20, 400, 2)
        pixels[top : top + high, left : left + wide] += rng.integers(-60, 60, 3)
    pixels += rng.normal(0, 2, pixels.shape)  # of the sensor
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ours(images: ImageFiles, workers: int, views: bool) -> Iterable[Sized]:
    make, generator = SimCLRViews(SIZE), torch.Generator().manual_seed(0)
    for batch in Batches(images, BATCH, seed=0, shuffle=False, workers=workers):
        yield make(batch.pixels, make.draw(len(batch.pixels), generator))[0] if views else batch.pixels


def theirs(dataset: object, workers: int) -> Iterable[Sized]:
    for batch in DataLoader(dataset, BATCH, num_workers=workers):  # type: ignore[arg-type]
        yield batch[1]  # labels


def loaders(root: Path, workers: int) -> dict[str, Callable[[], Iterable[Sized]]]:
    square = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()])
    crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.ToTensor()])
    sets = [
        folder(root, image_size=SIZE, memory_limit_gb=0.0, test_fraction=0.0, fast_jpeg=fast).train
        for fast in (True, False)
    ]
    assert isinstance(sets[0], ImageFiles)
    assert isinstance(sets[1], ImageFiles)
    found: dict[str, Callable[[], Iterable[Sized]]] = {
        OURS: partial(ours, sets[0], workers, False),
        "ours, square, fast_jpeg=false": partial(ours, sets[1], workers, False),
        OURS_VIEWS: partial(ours, sets[0], workers, True),
        "torchvision ImageFolder, square": partial(theirs, ImageFolder(root, square), workers),
        "torchvision ImageFolder, random crop": partial(theirs, ImageFolder(root, crop), workers),
    }
    try:
        from lightly.data import LightlyDataset
        from lightly.transforms import SimCLRTransform

        found["lightly LightlyDataset, square"] = partial(theirs, LightlyDataset(str(root), square), workers)
        simclr = LightlyDataset(str(root), SimCLRTransform(input_size=SIZE))
        found["lightly LightlyDataset, two views"] = partial(theirs, simclr, workers)
    except ImportError:
        print("lightly is not installed: skipped")
    return found


def processor_seconds() -> float:
    """Of this process and of all processes that it started and that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def speed(root: Path, rounds: int, workers: int) -> dict[str, dict[str, float]]:
    rates: dict[str, list[tuple[float, float]]] = {}
    for turn in tqdm(range(rounds + 1), desc="rounds", leave=False):
        for name, make in loaders(root, workers).items():
            cpu, clock = processor_seconds(), time.perf_counter()
            count = sum(map(len, make()))  # its workers have ended when the generator has
            if turn:  # the first round warms up, and reads the files into memory
                spent = processor_seconds() - cpu, time.perf_counter() - clock
                rates.setdefault(name, []).append((count / spent[0], count / spent[1]))
    return {
        name: dict(
            zip(("per_processor_second", "per_second"), map(statistics.median, zip(*rows, strict=True)), strict=True)
        )
        for name, rows in rates.items()
    }


def write_shards(root: Path, samples: int, each: int = 2000) -> None:
    """Tars of `each` JPEGs of 32 x 32 pixels with classes, of which 256 differ."""
    rng, images = np.random.default_rng(0), []
    for _ in range(256):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    for first in tqdm(range(0, samples, each), desc="writing", unit="tar"):
        with tarfile.open(root / f"{first // each:03d}.tar", "w") as tar:
            for number in range(first, min(first + each, samples)):
                for suffix, content in (("jpg", images[number % 256]), ("cls", b"%d" % (number % 100))):
                    info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def read_shards(root: Path, workers: int) -> None:
    """Reads an epoch and prints the largest memory."""
    options = {"image_size": 32, "memory_limit_gb": 0.0, "test_fraction": 0.0, "cache": root / "cache"}
    start = time.perf_counter()
    images = webdataset(f"{root}/*.tar", **options).train
    indexed = time.perf_counter()
    largest = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    batches = Batches(images, 256, seed=0, workers=workers)
    rows = torch.cat([batch.index for batch in batches])
    read = time.perf_counter()
    assert len(rows.unique()) == len(rows) == len(images) // 256 * 256
    del batches  # the workers end
    largest += [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        f"{len(images):,} samples: {largest[0] / 1e3:.0f} MB after the index ({indexed - start:.0f} s), "
        f"{largest[1] / 1e3:.0f} MB after an epoch ({read - indexed:.0f} s), a worker {largest[2] / 1e3:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of classes of JPEGs, which is filled if it is empty")
    parser.add_argument("--count", type=int, default=16, help="photographs to make")
    parser.add_argument("--copies", type=int, default=3, help="of each photograph")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SAMPLES")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.read:
        read_shards(args.read, args.workers)
        return
    with tempfile.TemporaryDirectory() as temporary:
        if args.memory:
            for samples in args.memory:
                root = Path(temporary) / str(samples)
                root.mkdir()
                write_shards(root, samples)
                command = [sys.executable, __file__, "--read", str(root), "--workers", str(args.workers)]
                subprocess.run(command, check=True)
            return
        root = args.photos or Path(temporary)
        if not any(root.rglob("*.jpg")):
            for number in tqdm(range(args.count), desc="making photographs"):
                (root / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
                file = root / f"class{number % 2}" / f"{number:03d}.jpg"
                photograph(number).save(file, quality=88)
                for copy in range(1, args.copies):
                    shutil.copy(file, file.with_name(f"{number:03d}-{copy}.jpg"))
        files = list(root.rglob("*.jpg"))
        rows = speed(root, args.rounds, args.workers)
    results = json.loads(RESULTS.read_text()) if args.add and RESULTS.exists() else {"rows": {}}
    results |= {
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "torchvision", "pillow")},
        "workers": args.workers,
        "rounds": args.rounds,
    }
    results["rows"] |= rows
    results["versions"]["lightly"] = installed("lightly") or results["versions"].get("lightly")
    print(f"{len(files)} photographs, {args.workers} workers\n{'':40}{'per CPU s':>10}{'per s':>8}{'ours is':>10}")
    for name, row in rows.items():
        best = rows[OURS_VIEWS if "two views" in name else OURS]
        ratio = best["per_processor_second"] / row["per_processor_second"]
        print(f"{name:40}{row['per_processor_second']:10.1f}{row['per_second']:8.1f}{ratio:8.1f} x")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
