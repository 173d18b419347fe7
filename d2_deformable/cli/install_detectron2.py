"""Install Detectron2, which PyPI does not carry under its own name.

It imports the standard library only: tools/install_detectron2.py also runs this file by path,
before the operators are compiled.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

EXAMPLE = """
A Detectron2 that can be imported is kept. Otherwise the environment variable D2_SOURCE decides:
  git   the official repository at a fixed commit of its main branch; compiles C++
  pypi  0.5 from PyPI's copy "detectron2-cdo", which lacks the C++ sources: repacked as a
        pure-Python wheel that works with current NumPy and Pillow; compiles nothing
  auto  (default) git if it can work here, else pypi

examples:
  d2-deformable install-detectron2
  D2_SOURCE=pypi d2-deformable install-detectron2
"""
PROVENANCE = Path(__file__).resolve().parents[1] / "utils" / "provenance.py"

GIT_URL = "https://github.com/facebookresearch/detectron2"
GIT_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
GIT_PROBE_SECONDS = 10

PYPI_PACKAGE = "detectron2-cdo==0.5"
PYPI_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
# The wheel has version 0.5+d2deformable, since it is not the official one; its summary explains.
PYPI_LABEL = "+d2deformable"
PYPI_SUMMARY = (
    f"Detectron2 0.5 from PyPI's {PYPI_PACKAGE} (sha256 {PYPI_SHA256[:12]}), "
    "repacked by d2_deformable without C++ operators"
)

# Replacements in its setup.py; each old text must occur exactly once.
SETUP_PATCHES = {
    'name="detectron2_cdo"': 'name="detectron2"',
    'description="Detectron2 is FAIR\'s next-generation research "\n'
    '    "platform for object detection and segmentation."': f'description="{PYPI_SUMMARY}"',
    'exclude=("configs", "tests*")': 'exclude=("configs", "tests*", "tools*")',
    # Its own list is empty unless it is built from a git checkout.
    "get_model_zoo_configs()}": '["configs/**/*.yaml", "configs/**/*.py"]}',
    "ext_modules=get_extensions()": "ext_modules=[]",
    '"iopath>=0.1.7,<0.1.10"': '"iopath>=0.1.7"',
    '"hydra-core>=1.1"': '"hydra-core"',
    '"black==21.4b2"': '"black"',
}

# Names that NumPy 1.24 and Pillow 10 removed; np.int64, np.bool_ and the like do not match.
ALIAS_PATCHES = [
    (re.compile(r"(?<![\w.])(?:np|numpy)\.(bool|int|float|str|object)\b"), r"\1"),
    (re.compile(r"(?<![\w.])Image\.LINEAR\b"), "Image.BILINEAR"),
]

# The file detectron2/_C.py, which replaces the compiled module of that name.
C_PLACEHOLDER = '''\
"""Stands in for Detectron2's compiled operators, which several modules import at their top."""


def __getattr__(name):
    if name.startswith("__"):  # asked for by the import system, which expects AttributeError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ImportError(
        f"detectron2._C.{name} is one of Detectron2's compiled operators, which this build lacks. "
        "Use d2_deformable's operators (and COCOEvaluator with use_fast_impl=False), or change to "
        "the official build: pip uninstall detectron2, then "
        "D2_SOURCE=git d2-deformable install-detectron2."
    )


# detectron2.utils.collect_env asks for these three at the start of every training.
def get_compiler_version():
    return "none (no C++ operators in this build)"


get_cuda_version = get_compiler_version


def has_cuda():
    return False
'''


class InstallError(OSError):
    """An error whose text is the one sentence shown to the user."""


def parser():
    parser = argparse.ArgumentParser(
        prog="d2-deformable install-detectron2",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--archive", type=Path, help="a downloaded detectron2-cdo-0.5.tar.gz")
    parser.add_argument(
        "--wheel-only", type=Path, metavar="DIR", help="only build the pypi wheel, into DIR"
    )
    return parser


def main(args):
    source = choose_source(os.environ.get("D2_SOURCE") or "auto", args)
    if args.wheel_only:
        print(f"Detectron2: built {build_wheel(args.archive, args.wheel_only)}")
        return
    if found := installed_source():
        print(f"Detectron2: kept: {found} (to change it: pip uninstall detectron2)")
        return
    if source != "pypi" and (obstacle := git_obstacle()):
        if source == "git":
            raise InstallError(f"D2_SOURCE=git cannot work here: {obstacle}.")
        print(f"Detectron2: from PyPI, since GitHub cannot be used ({obstacle})", flush=True)
        source = "pypi"
    install_from_git() if source != "pypi" else install_from_pypi(args.archive)
    print(f"Detectron2: installed: {installed_source()}")


def choose_source(source, args):
    if source not in ("auto", "git", "pypi"):
        raise InstallError(f"D2_SOURCE={source} is unknown: use auto, git or pypi.")
    if args.archive or args.wheel_only:
        if source == "git":
            raise InstallError("--archive and --wheel-only are for D2_SOURCE=pypi, not for git.")
        return "pypi"
    return source


def installed_source():
    """Describe the Detectron2 that this Python imports; None if there is none."""
    importlib.invalidate_caches()
    if importlib.util.find_spec("detectron2") is None:
        return None
    provenance = runpy.run_path(str(PROVENANCE))
    try:
        return provenance["detectron2_source"]()
    except Exception as error:
        raise InstallError(
            f"the installed Detectron2 cannot be imported ({type(error).__name__}: {error}): "
            "repair it, or remove it with pip uninstall detectron2."
        ) from error


def git_obstacle():
    """Return the reason why the official repository cannot be built here; None if it can."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h is missing, on Debian and Ubuntu: apt install python3-dev"
    # Ask with git itself, so that its proxy settings apply and the time limit covers DNS.
    command = ["git", "ls-remote", GIT_URL, "HEAD"]
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, timeout=GIT_PROBE_SECONDS, env=env, check=True, capture_output=True)
    except FileNotFoundError:
        return "git is not installed"
    except subprocess.TimeoutExpired:
        return f"no answer within {GIT_PROBE_SECONDS} s"
    except subprocess.CalledProcessError:
        return "it cannot be reached"
    return None


def install_from_git():
    require_build_tools()
    print("Detectron2: building the official repository (takes minutes)", flush=True)
    run_pip(
        ["install", "--no-build-isolation", f"git+{GIT_URL}@{GIT_COMMIT}"],
        "the official Detectron2 did not build; D2_SOURCE=pypi needs no compiler.",
    )


def install_from_pypi(archive):
    with tempfile.TemporaryDirectory() as tmp:
        wheel = build_wheel(archive, Path(tmp))
        run_pip(["install", str(wheel)], "the repacked Detectron2 did not install.")


def build_wheel(archive, out_dir):
    """Build a pure-Python wheel in out_dir from PyPI's archive (downloaded if None)."""
    require_build_tools()
    with tempfile.TemporaryDirectory() as tmp:
        archive = archive or download_archive(Path(tmp))
        check_archive(archive)
        root = unpack(archive, Path(tmp) / "source")
        patch_tree(root)
        os.environ["D2_VERSION_SUFFIX"] = PYPI_LABEL  # read by its setup.py
        run_pip(
            ["wheel", "--no-deps", "--no-build-isolation", "-w", f"{tmp}/wheel", str(root)],
            "the wheel of Detectron2 0.5 did not build.",
        )
        (wheel,) = Path(tmp, "wheel").glob("detectron2-*.whl")
        out_dir.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, out_dir))


def require_build_tools():
    # Detectron2's setup.py imports torch, and its model zoo imports pkg_resources.
    needed = ("torch", "wheel", "pkg_resources")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise InstallError(
            f"Detectron2 needs {' and '.join(missing)} to be installed first: "
            "pip install torch wheel 'setuptools<81'."
        )


def download_archive(folder):
    # With a hash in a requirements file, pip checks the archive before it runs its setup.py.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PYPI_PACKAGE} --hash=sha256:{PYPI_SHA256}\n")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", str(folder)]
    run_pip(
        ["download", *options, "-r", str(requirements)],
        f"{PYPI_PACKAGE} could not be downloaded from PyPI (needs pip below 26.3, which rejects a "
        "URL in one of its extras); use --archive FILE for an archive downloaded elsewhere.",
    )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def check_archive(archive):
    if not archive.is_file():
        raise InstallError(f"{archive} is not a file.")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != PYPI_SHA256:
        raise InstallError(f"{archive} has sha256 {digest}, {PYPI_PACKAGE} has {PYPI_SHA256}.")


def unpack(archive, folder):
    # Python before 3.11.4 has no filter; the checksum has verified the archive already.
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **options)
    (root,) = folder.iterdir()
    return root


def patch_tree(root):
    for path in root.glob("**/*.py"):
        text = path.read_text(encoding="utf-8")
        patched = patch_setup(text) if path == root / "setup.py" else patch_aliases(text)
        if patched != text:
            path.write_text(patched, encoding="utf-8")
    (root / "detectron2" / "_C.py").write_text(C_PLACEHOLDER, encoding="utf-8")


def patch_setup(text):
    for old, new in SETUP_PATCHES.items():
        if text.count(old) != 1:
            raise InstallError(f"Detectron2's setup.py does not hold this text exactly once: {old}")
        text = text.replace(old, new)
    return text


def patch_aliases(text):
    for pattern, replacement in ALIAS_PATCHES:
        text = pattern.sub(replacement, text)
    return text


def run_pip(args, failure):
    """Run pip silently; if it fails, show its whole output, then raise `failure`."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode:
        print(result.stdout.decode(errors="replace"), file=sys.stderr, flush=True)
        raise InstallError(f"pip failed (its output is above): {failure}")


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except InstallError as error:
        sys.exit(f"install_detectron2: {error}")
