"""Compiles kernels/csrc into one shared library, once for each content of the sources.

Three targets: `cuda`, the .cu files for GPUs (nvcc); `cpu`, the .cpp files for this processor (g++); and
`host`, the .cu files again, whose kernels then run on the CPU as fibres (kernels/csrc/host.h), for tests on machines
without a GPU. None includes a header of torch, so one library serves every torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal, get_args

from mmmoe.log import console, logger
from mmmoe.paths import project_root

Target = Literal["cuda", "cpu", "host"]

NVCC_FLAGS = (
    "-O3", "-std=c++17", "-cudart", "static", "-Xcompiler", "-fPIC", "-shared", "-Xfatbin=-compress-all",
    "-gencode", "arch=compute_80,code=sm_80",
    "-gencode", "arch=compute_90,code=sm_90",
    "-gencode", "arch=compute_90,code=compute_90",
)  # fmt: skip
CPU_FLAGS = (
    "-O3", "-std=c++17", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC",
)  # fmt: skip
HOST_FLAGS = ("-O2", "-std=c++17", "-x", "c++", "-shared", "-fPIC", "-w")
CUDA_FOLDERS = ("/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda")


def source_folder() -> Path:
    """Returns the folder of the kernel sources."""
    return project_root() / "kernels" / "csrc"


def cache_folder() -> Path:
    """Returns where libraries are kept: beside the user's other caches, or in the temporary folder."""
    wanted = Path.home() / ".cache" / "mmmoe" / "kernels"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / f"mmmoe-kernels-{os.getuid()}"
    return wanted if os.access(wanted, os.W_OK) else Path(tempfile.gettempdir()) / f"mmmoe-kernels-{os.getuid()}"


def build(target: Target, sources: Path | None = None) -> Path:
    """Returns the library of a target, compiled now unless the same sources were compiled before.

    Args:
        target: What for.
        sources: Folder of other sources (tests take barriers out of a copy).

    Raises:
        RuntimeError: There is no compiler, or it refuses the sources; the text ends with what it said.
    """
    folder = sources or source_folder()
    command = _command(target, folder)
    digest = hashlib.sha256(" ".join(command[1:]).encode())
    if target == "cpu":  # a home folder may be shared by machines whose processors differ
        digest.update(_processor().encode())
    for path in sorted(folder.glob("*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    library = cache_folder() / f"mmmoe_{target}-{digest.hexdigest()[:16]}.so"
    if not library.is_file():
        logger().info("compiling the %s kernels with %s, once for these sources", target, Path(command[0]).name)
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_name(f".{library.name}.{os.getpid()}")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} could not compile {folder}:\n{(done.stderr or done.stdout)[-2000:]}")
        partial.replace(library)
    return library


def main() -> None:
    """Builds every library that this machine can build, and says what came of it."""
    for target in get_args(Target):
        started = time.perf_counter()
        try:
            path = build(target)
        except RuntimeError as error:
            console.print(f"{target}: not built, the ops run in torch there: {str(error).splitlines()[0]}")
            continue
        size, seconds = path.stat().st_size / 1e6, time.perf_counter() - started
        console.print(f"{target}: {path} ({size:.1f} MB, {seconds:.0f} s)", soft_wrap=True)


def toolkit() -> Path | None:
    """Returns the folder of the CUDA toolkit, if there is one."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent.parent] if nvcc else []
    for folder in (*folders, *map(Path, CUDA_FOLDERS)):
        if (folder / "include" / "cuda_runtime.h").is_file():
            return folder
    return None


def _command(target: Target, folder: Path) -> list[str]:
    if target == "cpu":
        return [_compiler(), *CPU_FLAGS, *map(str, sorted(folder.glob("*.cpp")))]
    sources = [str(path) for path in sorted(folder.glob("*.cu"))]
    found = toolkit()
    if found is None:
        raise RuntimeError("the CUDA toolkit (nvcc and its headers) is not installed")
    if target == "cuda":
        nvcc = shutil.which("nvcc") or str(found / "bin" / "nvcc")
        return [nvcc, *NVCC_FLAGS, *sources]
    return [_compiler(), *HOST_FLAGS, f"-I{found / 'include'}", *sources]


def _compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (g++)")
    return compiler


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


if __name__ == "__main__":
    main()
