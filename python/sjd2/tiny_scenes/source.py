"""Where the photos come from: Fashion-MNIST, found on this machine or fetched as Debian's package, checked by SHA-256.

Only training needs them. ``python -m sjd2.tiny_scenes.source`` finds or fetches them and prints the folder.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

__all__ = ["find_photos", "load_photos"]

#: SHA-256 of the four files of the original release, as Debian's package ships them.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_VERSION = "0.0~git20200523.55506a9-1"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_FOLDER = Path.home() / ".cache" / "sjd2" / "fashion-mnist"


def _verify(folder: Path) -> None:
    for name, expected in CHECKSUMS.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"photos: expected {name} in {folder}, found none")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"photos: {path}: expected SHA-256 {expected}, got {found}")


def _fetch_debian_package(folder: Path) -> None:
    """Unpack Debian's package into ``folder`` without installing it: no root needed, only ``apt-get`` and ``dpkg-deb``."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError(
            f"photos: not in {SYSTEM_FOLDER} or {CACHE_FOLDER}, and this machine has no apt-get to fetch "
            f"{DEBIAN_PACKAGE}: put the four Fashion-MNIST .gz files in a folder and name it with --photos"
        )
    with tempfile.TemporaryDirectory() as scratch:
        command = ["apt-get", "download", f"{DEBIAN_PACKAGE}={DEBIAN_VERSION}"]
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"photos: {' '.join(command)} failed (try `apt-get update` first): {result.stderr.strip()}")
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), scratch], check=True)
        unpacked = Path(scratch) / SYSTEM_FOLDER.relative_to("/")
        _verify(unpacked)
        # Copied beside its place and moved there whole: an interrupted copy is not taken for the photos.
        folder.parent.mkdir(parents=True, exist_ok=True)
        arriving = Path(tempfile.mkdtemp(dir=folder.parent))
        shutil.copytree(unpacked, arriving, dirs_exist_ok=True)
        arriving.rename(folder)


def find_photos(folder: str | Path | None = None) -> Path:
    """The folder of the four checked ``.gz`` files: ``folder`` if given, else the system's, else the cache, else fetched.

    Raises:
        FileNotFoundError: a file is missing and cannot be fetched.
        ValueError: a file does not have the expected SHA-256.
    """
    if folder is not None:
        found = Path(folder)
    else:
        found = SYSTEM_FOLDER if SYSTEM_FOLDER.is_dir() else CACHE_FOLDER
        if not found.is_dir():
            _fetch_debian_package(found)
    _verify(found)
    return found


def load_photos(split: str, folder: str | Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos ``uint8 [N, 28, 28]`` and labels ``int64 [N]`` of ``split``: ``"train"`` (60,000) or ``"test"`` (10,000)."""
    prefix = {"train": "train", "test": "t10k"}[split]
    found = find_photos(folder)

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((found / name).read_bytes()), dtype=np.uint8, offset=header)

    images = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read(f"{prefix}-labels-idx1-ubyte.gz", 8)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", metavar="DIR", help="a folder that already holds the four .gz files")
    try:
        print(find_photos(parser.parse_args().photos))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
