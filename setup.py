"""Builds the Python package and one library of compiled operators, d2_deformable/_C.so.

The library does not know Python (no Python.h, no libtorch_python): torch.ops.load_library loads it,
and one binary serves every Python version. It does depend on the torch that it was built with.

Environment: FORCE_CUDA=0 or 1 overrides the choice of CUDA, MAX_JOBS limits the compilers that run
at a time, TORCH_CUDA_ARCH_LIST names the GPU architectures.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit(
        "d2_deformable compiles its operators against the torch that will run them: install torch "
        "first (pip install torch torchvision), then `pip install --no-build-isolation -e .`"
    )

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "d2_deformable" / "__init__.py"


def sources(suffix):
    """Paths under csrc/, relative to setup.py as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/**/*{suffix}"))


def choose_cuda():
    """Whether to compile the CUDA sources, and the one line that says why."""
    toolkit = cpp_extension.CUDA_HOME
    if toolkit is not None and not Path(toolkit, "bin", "nvcc").exists():
        toolkit = None
    force = os.environ.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        sys.exit(f"FORCE_CUDA={force} is neither 0 nor 1")
    if force == "1" and not (torch.version.cuda and toolkit):
        missing = (
            "a CUDA toolkit (set CUDA_HOME)" if torch.version.cuda else "a torch built for CUDA"
        )
        sys.exit(
            f"FORCE_CUDA=1 needs {missing}; install it, or unset FORCE_CUDA to build for the CPU"
        )
    if force == "1" and not sources(".cu"):
        sys.exit("FORCE_CUDA=1, but csrc/ holds no CUDA sources yet; unset FORCE_CUDA")
    if force == "0":
        return False, "operators for the CPU only: FORCE_CUDA=0"
    if not torch.version.cuda:
        return (
            False,
            f"operators for the CPU only: torch {torch.__version__} was built without CUDA",
        )
    if not toolkit:
        return False, "operators for the CPU only: no CUDA toolkit found (CUDA_HOME)"
    if not sources(".cu"):
        return False, "operators for the CPU only: csrc/ holds no CUDA sources"
    return True, f"operators for the CPU and CUDA {torch.version.cuda}: toolkit in {toolkit}"


def operator_library():
    with_cuda, _ = choose_cuda()
    # Without OpenMP at::parallel_for is serial.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    arguments = {
        "name": "d2_deformable._C",
        "sources": sources(".cpp"),
        "py_limited_api": True,  # does not link libtorch_python
        "extra_compile_args": {"cxx": ["-O3", "-g0", *openmp]},
        "extra_link_args": list(openmp),
    }
    if not with_cuda:
        return cpp_extension.CppExtension(**arguments)
    # Some toolkits hold the compiler alone. torch's own CUDA packages have the rest: the headers of
    # the CUDA libraries, and the runtime that torch loads anyway.
    cuda = Path(torch.__file__).parents[1] / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}"
    arguments["sources"] += sources(".cu")
    arguments["include_dirs"] = [str(path) for path in cuda.glob("include")]
    arguments["extra_compile_args"]["nvcc"] = ["-O3"]
    library = cpp_extension.CUDAExtension(**arguments)
    runtime = next(cuda.glob("lib/libcudart.so.*"), None)
    if runtime:
        library.libraries.remove("cudart")
        library.extra_link_args.append(str(runtime))
    return library


class BuildOperators(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
    def run(self):
        print("d2_deformable:", choose_cuda()[1])
        super().run()


setup(
    name="d2_deformable",
    version=re.search(r'__version__ = "(.+)"', PACKAGE.read_text())[1],
    description="Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["d2_deformable", "d2_deformable.*"]),
    package_data={
        "d2_deformable": ["_C.so"],
        "d2_deformable.model_zoo": ["index.json", "*.pth"],
    },
    # Detectron2 is not on PyPI: tools/install_detectron2.py installs it.
    install_requires=["torch>=2.11", "torchvision", "numpy", "fvcore", "pycocotools", "Pillow"],
    ext_modules=[operator_library()],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    zip_safe=False,
)
