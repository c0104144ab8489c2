"""Builds ``sjd2_kernels._C`` with CMake; everything else stands in pyproject.toml.

``SJD2_NATIVE``  auto (default): without a working compiler the package is installed without the module; 1: that is an error; 0: do not build it
``SJD2_CUDA``    auto (default): build the CUDA operations if nvcc is found; 1: or fail; 0: do not build them. Whether there is a GPU does not matter.
``CMAKE_CUDA_ARCHITECTURES`` or ``TORCH_CUDA_ARCH_LIST``: for which GPUs; default: 80 and 90, and PTX for later ones
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REASON = "_C_not_built.txt"  # beside where the module would be; read by sjd2_kernels/compiled


def choice(name: str) -> str:
    """``auto``, ``0`` or ``1`` from the environment."""
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name}: expected auto, 0 or 1, got {value!r}")
    return value


def find_nvcc() -> str | None:
    """The CUDA compiler, from CUDACXX, the path, CUDA_HOME or the usual place."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if home]
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc"), *(str(Path(home, "bin", "nvcc")) for home in homes)]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def cuda_architectures() -> str | None:
    """CMake's list of architectures, if the environment names any: ``8.0;9.0+PTX`` is ``80-real;90``."""
    if named := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
        return named
    found = re.findall(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    return ";".join(f"{major}{minor}{'' if ptx else '-real'}" for major, minor, ptx in found) or None


class BuildError(Exception):
    """CMake or a compiler failed; the message says which step, and with what."""


def run(step: str, command: list[str]) -> None:
    """Run a build step; its output is shown as it comes, and its last error is in the exception."""
    print(f"{step}: {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BuildError(f"{step}: {command[0]} cannot be run ({error.strerror})") from None
    print(done.stdout, flush=True)
    if done.returncode:
        errors = [line.strip() for line in done.stdout.splitlines() if "rror" in line]
        raise BuildError(f"{step} failed: {errors[0] if errors else 'exit status ' + str(done.returncode)}")


def program(name: str) -> str | None:
    """A build tool from the path (where an isolated build has it), or from beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def build(module: Path, folder: Path, nvcc: str | None) -> None:
    """Build ``module`` in ``folder``."""
    import pybind11

    shutil.rmtree(folder, ignore_errors=True)
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(module.parent),
        "Python_EXECUTABLE": sys.executable,
        "SJD2_PYTHON_MODULE": "ON",
        "SJD2_TESTS": "OFF",
        "SJD2_WITH_CUDA": "ON" if nvcc else "OFF",
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    if nvcc:
        options["CMAKE_CUDA_COMPILER"] = nvcc
        if architectures := cuda_architectures():
            options["CMAKE_CUDA_ARCHITECTURES"] = architectures
    cmake, ninja = program("cmake") or "cmake", program("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    run("configure", [cmake, "-S", str(ROOT), "-B", str(folder), *generator, *(f"-D{name}={value}" for name, value in options.items())])
    run("compile", [cmake, "--build", str(folder), "--parallel"])


class BuildNative(build_ext):
    """Builds the module, or leaves a note of why not."""

    def build_extension(self, extension: Extension) -> None:
        """Called once, for ``_C``."""
        module = Path(self.get_ext_fullpath(extension.name)).resolve()
        note = module.with_name(REASON)
        module.parent.mkdir(parents=True, exist_ok=True)
        for old in (note, module):
            old.unlink(missing_ok=True)
        wanted, cuda = choice("SJD2_NATIVE"), choice("SJD2_CUDA")
        nvcc = None if cuda == "0" else find_nvcc()
        if wanted == "0":
            reason = "SJD2_NATIVE=0 when the package was installed"
        elif cuda == "1" and nvcc is None:
            raise SystemExit("SJD2_CUDA=1: expected nvcc in CUDACXX, the path or CUDA_HOME, found none")
        else:
            reason = self._try(module, nvcc, cuda_required=cuda == "1", required=wanted == "1" or cuda == "1")
        if reason is not None:
            note.write_text(reason + "\n")
            print(f"sjd2-kernels: installed without its native module ({reason}); PyTorch does its work.", flush=True)

    def _try(self, module: Path, nvcc: str | None, *, cuda_required: bool, required: bool) -> str | None:
        """Why there is no module, ``None`` if there is one."""
        folder = Path(self.build_temp).resolve() / "native"
        for compiler in [nvcc] if nvcc is None or cuda_required else [nvcc, None]:
            try:
                build(module, folder, compiler)
            except BuildError as error:
                reason = str(error)
                if compiler is not None:
                    print(f"sjd2-kernels: no CUDA operations ({reason}).", flush=True)
            else:
                print(f"sjd2-kernels: native module built, {'with CUDA by ' + compiler if compiler else 'CPU only'}.", flush=True)
                return None
        if required:
            raise SystemExit(f"sjd2-kernels: the native module was asked for and could not be built: {reason}")
        return reason

    def copy_extensions_to_source(self) -> None:
        """An editable install has the module, or the note, among the sources."""
        build_py = self.get_finalized_command("build_py")
        for extension in self.extensions:
            place, built = map(Path, self._get_inplace_equivalent(build_py, extension))
            for old in (place, place.with_name(REASON)):
                old.unlink(missing_ok=True)
            built = built if built.exists() else built.with_name(REASON)
            shutil.copyfile(built, place.with_name(built.name))

    def get_outputs(self) -> list[str]:
        """The module if it was built, else the note."""
        modules = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        return [str(path if path.exists() else path.with_name(REASON)) for path in modules]


if __name__ == "__main__":
    setup(ext_modules=[Extension("sjd2_kernels._C", sources=[])], cmdclass={"build_ext": BuildNative})
