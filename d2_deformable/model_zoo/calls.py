"""What a function of cfg builds, as the tree of LazyCalls that builds the same.

The function runs once, on the meta device, while the constructors that matter note how they were
called; those that `@configurable` calls with a cfg note what their `from_config` made of it. The
tree follows from the arguments of the outermost call: nothing is written twice.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

import torch
from detectron2.config import CfgNode, LazyCall
from detectron2.config import config as configurable_module
from detectron2.data import DatasetMapper
from detectron2.data.transforms import Augmentation
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, ListConfig
from torch import nn

# Constructors of these and their subclasses are noted; so is what a function returns that
# makes lists of them.
CLASSES = (nn.Module, Matcher, Box2BoxTransform, ParamScheduler, Augmentation, DatasetMapper)
FUNCTIONS = ((ResNet, "make_stage"),)
POSITIONAL = "*args"  # key of what has no name


@dataclass
class Call:
    """One call: of what, with which keyword arguments; `result` is what came of it."""

    target: object
    arguments: dict
    result: object


def lazy_tree(build, *args):
    """What `build(*args)` returns, as a tree of LazyCalls.

    Args:
        build: returns an instance of one of CLASSES. Tensors that it makes hold no numbers.

    Raises:
        ValueError: an argument that no LazyCall can express.
    """
    with _noted() as calls, torch.device("meta"):
        result = build(*args)
    tree = _tree(result, calls, type(result).__name__, set())
    _follow(tree)
    return tree


def _follow(node, outer=None, levels=1) -> None:
    """Let `num_classes` of an inner call be that of the call it is given to, as the heads need."""
    if isinstance(node, DictConfig) and isinstance(own := node.get("num_classes"), int):
        if own == outer:
            node["num_classes"] = f"${{{'.' * levels}num_classes}}"
        outer, levels = own, 1
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if isinstance(node[key], DictConfig | ListConfig):
            _follow(node[key], outer, levels + 1)


def _tree(value, calls, where, seen):
    call = calls.get(id(value))
    if call is not None:
        if isinstance(value, nn.Module) and id(value) in seen:
            raise ValueError(f"{where} is a module that stands elsewhere in the tree too")
        seen.add(id(value))
        given = dict(call.arguments)
        if type(value) is nn.ModuleList and given:  # of an iterator that is spent by now
            given = {"modules": list(value)}
        if POSITIONAL in given:
            raise ValueError(f"{where} takes positional arguments, which a LazyCall cannot express")
        if not given.get("use_fed_loss"):  # Detectron2 main has a lambda for it even then
            given.pop("get_fed_loss_cls_weights", None)
        return LazyCall(call.target)(
            **{name: _tree(item, calls, f"{where}.{name}", seen) for name, item in given.items()}
        )
    if isinstance(value, ShapeSpec):
        fields = {name: getattr(value, name) for name in ("channels", "height", "width", "stride")}
        return LazyCall(ShapeSpec)(**{k: v for k, v in fields.items() if v is not None})
    if isinstance(value, list | tuple):
        return [_tree(item, calls, f"{where}.{i}", seen) for i, item in enumerate(value)]
    if isinstance(value, dict) and not isinstance(value, CfgNode):
        # `instantiate` leaves a plain dict, and what is in it, as it is; omegaconf takes no `dict`.
        return LazyCall("builtins.dict")(
            **{name: _tree(item, calls, f"{where}.{name}", seen) for name, item in value.items()}
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if inspect.isroutine(value) or inspect.isclass(value):
        if "<" not in value.__qualname__:  # no lambda or local function, which nobody could save
            return value
        raise ValueError(f"{where} is {value.__qualname__}, a function that has no name to find it")
    raise ValueError(
        f"{where} is of type {type(value).__name__}, which a LazyCall cannot express: it is no "
        f"{', '.join(cls.__name__ for cls in CLASSES)}"
    )


@contextmanager
def _noted():
    """For the block, {id(object): Call} of what is built in it. The calls keep the objects."""
    calls, running, undo = {}, [], []

    def replace(owner, name, function):
        undo.append((owner, name, inspect.getattr_static(owner, name)))
        setattr(owner, name, function)

    def note_init(cls):
        original = cls.__init__

        @wraps(original)
        def init(self, *args, **kwargs):
            outermost = id(self) not in calls
            if outermost:
                calls[id(self)] = Call(type(self), _bind(original, self, args, kwargs), self)
            running.append(self if outermost else None)
            try:
                original(self, *args, **kwargs)
            finally:
                running.pop()

        replace(cls, "__init__", init)

    def note_function(owner, name):
        original = getattr(owner, name)

        @wraps(original)
        def function(*args, **kwargs):
            result = original(*args, **kwargs)
            arguments = inspect.signature(original).bind(*args, **kwargs)
            calls[id(result)] = Call(original, _flat(arguments), result)
            return result

        replace(owner, name, staticmethod(function))

    explicit = configurable_module._get_args_from_config

    def note_explicit(from_config, *args, **kwargs):
        self = running[-1] if running else None
        found = explicit(from_config, *args, **kwargs)
        if self is not None and getattr(from_config, "__self__", None) is type(self):
            calls[id(self)].arguments = dict(found)
        return found

    try:
        for cls in _with_subclasses(CLASSES):
            if "__init__" in vars(cls):
                note_init(cls)
        for owner, name in FUNCTIONS:
            note_function(owner, name)
        replace(configurable_module, "_get_args_from_config", note_explicit)
        yield calls
    finally:
        for owner, name, original in undo:
            setattr(owner, name, original)


def _with_subclasses(classes) -> set[type]:
    found, todo = set(), list(classes)
    while todo:
        cls = todo.pop()
        if cls not in found:
            found.add(cls)
            todo += cls.__subclasses__()
    return found


def _bind(init, self, args, kwargs) -> dict:
    """The arguments by name; of a call with a cfg none but that, until from_config explains it."""
    for value in [*args[:1], kwargs.get("cfg")]:
        if isinstance(value, CfgNode):
            return {"cfg": value}
    return _flat(inspect.signature(init).bind(self, *args, **kwargs), skip=1)


def _flat(bound: inspect.BoundArguments, skip: int = 0) -> dict:
    arguments = {}
    for name, value in list(bound.arguments.items())[skip:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            arguments[POSITIONAL] = value
        else:
            arguments[name] = value
    return arguments
