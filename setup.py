"""Build the Python package and one library of compiled operators, d2_deformable/_C.so.

The library is independent of Python (no Python.h, no libtorch_python): torch.ops.load_library loads
it, and one binary works with every Python version. It does depend on the torch it was built with.

Environment: FORCE_CUDA=0 or 1 overrides the choice of CUDA, MAX_JOBS limits the number of parallel
compilers, TORCH_CUDA_ARCH_LIST names the GPU architectures. SANITIZE=address,undefined compiles
the CPU code with these sanitizers, for `make sanitize`.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit(
        "d2_deformable compiles its operators against the torch that will run them: install torch "
        "first (pip install torch torchvision), then `pip install --no-build-isolation -e .`"
    )

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "d2_deformable" / "__init__.py"
TORCH = ".".join(torch.__version__.split(".")[:2])  # the library works with this minor version only
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"  # the default if no GPU is visible
# Instruction sets that csrc/cpu/kernels/ is compiled for; csrc/cpu/cpu_kernels.cpp chooses one.
CPU_TARGETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    CPU_TARGETS["avx2"] = ["-mavx2", "-mfma"]
    CPU_TARGETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    CPU_TARGETS["avx512"] += ["-mprefer-vector-width=512"]
# Without the first two, GCC compiles conditional expressions in loops (sampling.h) as branches and
# cannot vectorise the loops. Exceptions would refer to functions shared by all targets.
CPU_FLAGS = ["-fno-trapping-math", "-fno-thread-jumps", "-fno-exceptions"]
SANITIZE = os.environ.get("SANITIZE", "")
SANITIZERS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
OPTIMISATION = ["-O3", "-g0"]
if SANITIZE:  # Python's -fwrapv would define, and so hide, the overflow of integers
    OPTIMISATION = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"]
# torch's own CUDA packages: headers of the CUDA libraries, and the libraries that torch loads.
TORCH_CUDA = (
    Path(torch.__file__).parents[1] / "nvidia" / f"cu{(torch.version.cuda or '').split('.')[0]}"
)


def toolkits():
    """Yield (folder, CUDA version) of each bin/nvcc found.

    Searches CUDA_HOME, the PATH, torch's CUDA packages and /usr/local/cuda, in this order.
    """
    homes = [os.environ.get("CUDA_HOME"), nvcc_home(shutil.which("nvcc")), TORCH_CUDA]
    for home in [*homes, "/usr/local/cuda"]:
        nvcc = Path(home or ".", "bin", "nvcc")
        if home and nvcc.exists():
            output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            version = re.search(r"release ([\d.]+)", output)
            yield Path(home), version[1] if version else "of unknown version"


def find_toolkit():
    """Find the folder of the first toolkit with torch's major CUDA version, or None."""
    major = str(torch.version.cuda).split(".")[0]
    return next((home for home, version in toolkits() if version.split(".")[0] == major), None)


def nvcc_home(nvcc):
    """Ask nvcc for its toolkit folder, since the nvcc on the PATH may be a link or a script."""
    if not nvcc:
        return None
    plan = subprocess.run([nvcc, "--dryrun", __file__], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


FORCE_CUDA = os.environ.get("FORCE_CUDA", "")
TOOLKIT = None if FORCE_CUDA == "0" else find_toolkit()
if TOOLKIT:
    os.environ["CUDA_HOME"] = str(TOOLKIT)  # cpp_extension reads it once, when it is imported
    if torch.cuda.device_count() == 0:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
from torch.utils import cpp_extension  # noqa: E402


def sources(with_cuda):
    """Files to compile under csrc/, relative to setup.py as setuptools requires."""
    paths = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    if with_cuda:
        paths += [*ROOT.glob("csrc/cuda/*.cpp"), *ROOT.glob("csrc/cuda/*.cu")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def choose_cuda():
    """Decide whether to compile the CUDA sources; return this and a line that says why."""
    if FORCE_CUDA not in ("", "0", "1"):
        sys.exit(f"FORCE_CUDA={FORCE_CUDA} is neither 0 nor 1")
    if FORCE_CUDA == "0":
        return False, "operators for the CPU only: FORCE_CUDA=0"
    if torch.version.cuda and TOOLKIT:
        return True, f"operators for the CPU and CUDA {torch.version.cuda}: toolkit in {TOOLKIT}"
    if not torch.version.cuda:
        missing = f"a torch built for CUDA (this is {torch.__version__})"
    else:
        others = "".join(f"; {home} is {version}" for home, version in toolkits())
        major = torch.version.cuda.split(".")[0]
        missing = f"a toolkit of CUDA {major} (CUDA_HOME, or nvcc on the PATH{others})"
    if FORCE_CUDA == "1":
        sys.exit(
            f"FORCE_CUDA=1 needs {missing}; install it, or unset FORCE_CUDA to build for the CPU"
        )
    return False, f"operators for the CPU only: no {missing.removeprefix('a ')}"


def operator_library():
    with_cuda, _ = choose_cuda()
    # Without OpenMP, at::parallel_for is serial.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    arguments = {
        "name": "d2_deformable._C",
        "sources": sources(with_cuda),
        "py_limited_api": True,  # does not link libtorch_python
        "extra_compile_args": {"cxx": [*OPTIMISATION, *SANITIZERS, *openmp]},
        "extra_link_args": [*SANITIZERS, *openmp],
    }
    if not with_cuda:
        return cpp_extension.CppExtension(**arguments)
    # A toolkit may hold only the compiler and its headers; torch's packages have the rest.
    arguments["include_dirs"] = [str(TOOLKIT / "include"), str(TORCH_CUDA / "include")]
    arguments["extra_compile_args"]["nvcc"] = ["-O3", "-UNDEBUG"]  # kernels assert image indices
    library = cpp_extension.CUDAExtension(**arguments)
    library.libraries.append("cublas")
    for name in ("cudart", "cublas"):
        shared = next(TORCH_CUDA.glob(f"lib/lib{name}.so.*"), None)
        if shared:
            library.libraries.remove(name)
            library.extra_link_args.append(str(shared))
    return library


def version():
    """Version of the distribution: a wheel's names its torch, as in 0.1.0+torch2.14.cpu.

    So wheels for several torch versions can share a folder or an index, and pip selects the one
    whose requirement fits. An sdist fits them all; by PEP 643, what is built from it keeps its
    version.
    """
    public = re.search(r'__version__ = "(.+)"', PACKAGE.read_text())[1]
    if "sdist" in sys.argv or (ROOT / "PKG-INFO").exists():
        return public
    device = f"cu{torch.version.cuda.replace('.', '')}" if choose_cuda()[0] else "cpu"
    return f"{public}+torch{TORCH}.{device}"


class BuildPackage(build_py):
    """Copies configs/ to its place in a wheel, d2_deformable/model_zoo/configs.

    In a checkout, and in an editable install of it, the model zoo reads configs/ directly.
    """

    def get_output_mapping(self):
        return {**super().get_output_mapping(), **self.configs()}

    def configs(self):
        """Map target paths to config files, relative to setup.py."""
        target = Path(self.build_lib, "d2_deformable", "model_zoo")
        files = sorted(ROOT.glob("configs/**/*.yaml")) + sorted(ROOT.glob("configs/**/*.py"))
        files = [file.relative_to(ROOT) for file in files]
        return {str(target / file): str(file) for file in files}

    def run(self):
        super().run()
        if self.editable_mode:
            return
        # build/ is kept between builds; files that were renamed since must not be packaged.
        shutil.rmtree(Path(self.build_lib, "d2_deformable", "model_zoo", "configs"), True)
        for target, file in self.configs().items():
            self.mkpath(os.path.dirname(target))
            self.copy_file(file, target)


class BuildOperators(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
    def run(self):
        print("d2_deformable:", choose_cuda()[1])
        super().run()

    def build_extension(self, extension):
        for target, flags in CPU_TARGETS.items():
            extension.extra_objects += self.compiler.compile(
                ["csrc/cpu/kernels/cpu_kernel_table.cpp"],
                output_dir=os.path.join(self.build_temp, target),
                extra_postargs={
                    "cxx": [*OPTIMISATION, *SANITIZERS, *CPU_FLAGS, f"-DD2_CPU_TARGET={target}"]
                    + flags
                },
                depends=[str(path) for path in ROOT.glob("csrc/**/*.h")],
            )
        super().build_extension(extension)


if __name__ == "__main__":
    setup(
        name="d2_deformable",
        version=version(),
        description="Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        author="the d2_deformable authors",
        license="Apache-2.0",
        project_urls={
            "Paper": "https://arxiv.org/abs/1703.06211",
            "Detectron2": "https://github.com/facebookresearch/detectron2",
        },
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Developers",
            "Intended Audience :: Science/Research",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: C++",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Topic :: Scientific/Engineering :: Image Recognition",
        ],
        python_requires=">=3.11",
        packages=find_packages(include=["d2_deformable", "d2_deformable.*"]),
        package_data={
            "d2_deformable": ["_C.so", "py.typed"],
            "d2_deformable.app": ["page.html"],
            "d2_deformable.model_zoo": ["index.json", "*.pth"],
        },
        # Detectron2 is not on PyPI: `d2-deformable install-detectron2` installs it.
        install_requires=[
            f"torch=={TORCH}.*",
            *("torchvision", "numpy", "fvcore", "pycocotools", "Pillow"),
        ],
        extras_require={
            "convert": ["safetensors"],  # .safetensors files
            "export": ["onnx", "onnxscript"],  # d2-deformable export --format onnx
        },
        entry_points={"console_scripts": ["d2-deformable = d2_deformable.cli.main:main"]},
        ext_modules=[operator_library()],
        cmdclass={"build_ext": BuildOperators, "build_py": BuildPackage},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
        zip_safe=False,
    )
