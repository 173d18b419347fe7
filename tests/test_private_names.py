"""Private names of other libraries are declared where they can be checked.

A private name (one leading underscore) of torch or Detectron2 may change in any version. The
package uses one only if some module passes it to `compat.require_private`, `hasattr` or `getattr`,
or in DOORS, modules whose purpose is such a check.
"""

import ast
import inspect
import re
from pathlib import Path
from pydoc import locate

import pytest

from d2_deformable.compat import require_private

ROOT = Path(__file__).parents[1]
PACKAGE = "d2_deformable"
FOREIGN = ("detectron2", "fvcore", "iopath", "torch", "torchvision")
DOORS = {f"{PACKAGE}.compat", f"{PACKAGE}.ops._autograd"}
CHECKS = {"require_private", "hasattr", "getattr"}
# Names of file formats: of pickled functions, and of the attribute of a pickled state_dict.
FORMATS = {"_metadata", "_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2", "_utils"}
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob(f"{PACKAGE}/**/*.py"), *ROOT.glob("tools/*.py")])
}


def is_foreign(name):
    return name.split(".")[0] in FOREIGN


def private_parts(name):
    return {part for part in name.split(".") if PRIVATE.fullmatch(part)}


def aliases(tree, module):
    """{name in the module: absolute name} of all that a module imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name: a.name for a in node.names}
            found |= {
                a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname
            }
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            found |= {a.asname or a.name: f"{base}.{a.name}" for a in node.names}
    return found


def defined(tree):
    """Private names of functions, classes, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


OURS = {name for source in SOURCES.values() for name in defined(ast.parse(source))}
OURS |= {"_replace"}  # of our NamedTuples


def of_bases(node, names, module):
    """Private names that the foreign classes above a class use of themselves."""
    for base in node.bases:
        name, *rest = ast.unparse(base).split(".")
        cls = locate(".".join([names.get(name, f"{module}.{name}"), *rest]))
        for above in inspect.getmro(cls) if isinstance(cls, type) else ():
            if is_foreign(above.__module__) and above.__module__ != "torch._C":
                source = inspect.getsource(above)
                yield from re.findall(r"(?:self\.|cls\.|def )(_[a-zA-Z]\w*)", source)


def used(source, module):
    """Private names of FOREIGN that a module imports, calls, reads, overrides or replaces."""
    tree = ast.parse(source)
    names = aliases(tree, module)
    for name in names.values():
        if is_foreign(name):
            yield from private_parts(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = ast.unparse(node).split(".")[0]
            foreign = root == "super()" or is_foreign(names.get(root, ""))
            if foreign or (root not in names and node.attr not in OURS):
                yield from private_parts(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(rf"({'|'.join(FOREIGN)})?(\.\w+)+", node.value):  # for mock.patch
                yield from private_parts(node.value)
        elif isinstance(node, ast.ClassDef):
            inside = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            inside |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            yield from inside & set(of_bases(node, names, module))


def declared(source):
    """Names that a module passes to `require_private`, `hasattr` or `getattr`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CHECKS:
            yield from (a.value for a in node.args[1:] if isinstance(a, ast.Constant))


DECLARED = {name for source in SOURCES.values() for name in declared(source)} | FORMATS


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - DOORS))
def test_private_names_are_declared(module):
    assert not set(used(SOURCES[module], module)) - DECLARED


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ("import torch._planted", "_planted"),
        ("from torch._planted import x", "_planted"),
        ("from detectron2.modeling.poolers import _planted", "_planted"),
        (
            "def f():\n    from detectron2.modeling import poolers as p\n    p._planted()",
            "_planted",
        ),
        ("import torch\ntorch._C.f()", "_C"),
        ("def f(heads):\n    return heads._planted()", "_planted"),
        ("def patch(root):\n    mock.patch(f'{root}.poolers._planted', None)", "_planted"),
        (
            "from detectron2.modeling import StandardROIHeads\n"
            "class Heads(StandardROIHeads):\n    def _init_mask_head(self):\n        pass",
            "_init_mask_head",
        ),
        (
            "from .roi_heads import RFCNHeads\n"
            "class Heads(RFCNHeads):\n    def f(self):\n        return self._forward_mask(1)",
            "_forward_mask",
        ),
        (
            "from torch import nn\nclass Layer(nn.Module):\n    def f(self):\n"
            "        self._forward_hooks = {}",
            "_forward_hooks",
        ),
        ("class Mixin:\n    def f(self):\n        super()._predict()", "_predict"),
    ],
)
def test_a_planted_private_name_is_found(planted, name):
    assert name in set(used(planted, "d2_deformable.modeling.planted")) - DECLARED


def test_own_private_names_are_not():
    source = SOURCES["d2_deformable.modeling.tta"]
    assert "._detect(" in source and "def _detect" in source
    assert not set(used(source, "d2_deformable.modeling.tta"))


def test_a_missing_private_name_is_reported():
    class Heads:
        _kept = None

    require_private(Heads, "_kept")
    with pytest.raises(ImportError, match="Heads has no _renamed, .* Detectron2 0.5 and main"):
        require_private(Heads, "_kept", "_renamed")
    with pytest.raises(ImportError, match="Heads has no _renamed"):
        require_private(Heads(), "_renamed")
