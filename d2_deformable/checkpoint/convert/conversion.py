"""What becomes of every tensor of a file: the table that each converter fills in."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor


class ConversionError(ValueError):
    """A file that does not become the weights of a model, and why."""


class _Source(dict):
    """Tensors of a file; asking for one that it does not have is an error of the file."""

    def __missing__(self, name):
        raise ConversionError(
            f"the file has no {name!r}; it is a checkpoint of another network than the config's, "
            "or of another depth or width (MODEL.RESNETS)"
        )


class Conversion:
    """From the tensors of a file to those of a model, with an account of both sides.

    A converter is a function of a Conversion and a config. It goes through the network once and
    says for each tensor of the model where it comes from (`put`) or that the file has nothing for
    it (`initial`), and for the rest of the file why it is not needed (`unused`). `check` then
    refuses whatever was left out on either side.

    Args:
        source: tensors of the file by their names.
        model: tensors of the model by their names (its `state_dict()`); of these only the shapes
            and types matter.
        keep: beginnings of names of the model that are to keep their initial values, whatever the
            file has for them, e.g. "roi_heads.box_predictor" for other classes.
        metadata: what the file says of itself beside its tensors, e.g. the "meta" of mmdetection's.

    Attributes:
        weights: tensors of the model, converted so far.
        settings: {config key: value} that the model needs so as to compute what the source did.
        assumptions: what the file does not tell and was taken for granted, in sentences.
        file: that `source` was read from, if it was.
        written: files that `convert_checkpoint` wrote.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        keep: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
    ):
        self.source: Mapping[str, Tensor] = _Source(source)
        self.model = model
        self.keep = (keep,) if isinstance(keep, str) else tuple(keep)
        self.metadata = metadata or {}
        self.file: Path | None = None
        self.written: list[Path] = []
        self.weights: dict[str, Tensor] = {}
        self.settings: dict[str, object] = {}
        self.assumptions: list[str] = []
        self._origins: dict[str, tuple[str, str]] = {}  # name in the model: (sources, note)
        self._taken: set[str] = set()
        self._unused: dict[str, str] = {}
        self._initial: dict[str, str] = {}

    def run(self, converter: Callable, cfg) -> None:
        """Let a converter go through the network, then `check`.

        Raises:
            ConversionError: whatever is wrong with the file.
        """
        try:
            converter(self, cfg)
        except ConversionError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ConversionError(
                "its tensors have other shapes than in a file of its kind "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        self.check()

    def put(
        self,
        name: str,
        *sources: str,
        using: Callable[..., Tensor] | None = None,
        note: str = "",
    ) -> None:
        """Fill the model's tensor `name` from the file's tensors `sources`.

        Args:
            using: a function of those tensors that gives the model's; None takes the only one as
                it is. Without sources it gives a constant, e.g. zeros.
            note: what it does, in words, for the table.

        Raises:
            ConversionError: the file or the model has no such tensor, the shape is another, or the
                model's tensor is filled already.
        """
        if self.keep and name.startswith(self.keep) and name in self.model:
            self.initial([name], "as asked for")
            self.unused(sources, f"{name} keeps its initial value, as asked for")
            return
        tensors = [self.source[source] for source in sources]
        if name not in self.model or name in self.weights:
            state = "filled twice" if name in self.weights else "not in the model of the config"
            raise ConversionError(
                f"{name!r}, from {' and '.join(sources) or 'nothing'}, is {state}"
            )
        try:
            value = using(*tensors) if using else tensors[0]
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ConversionError(
                f"{name!r} cannot be made from {' and '.join(sources)} "
                f"{[tuple(tensor.shape) for tensor in tensors]}: {' '.join(str(error).split())}"
            ) from error
        expected = self.model[name]
        if expected.is_floating_point() and not value.is_floating_point():
            raise ConversionError(f"{name!r} would be made of {value.dtype}: is it quantised?")
        if value.shape != expected.shape:
            raise ConversionError(
                f"{name!r} would be {tuple(value.shape)}, from {' and '.join(sources)} "
                f"{[tuple(tensor.shape) for tensor in tensors]}, but in the model of the config it "
                f"is {tuple(expected.shape)}; take a config of the source's depth, width "
                "(MODEL.RESNETS) and classes, or let it keep its initial values (keep, --keep)"
            )
        self.weights[name] = value.to(expected.dtype).contiguous()
        self._origins[name] = (", ".join(sources), note)
        self._taken.update(sources)

    def unused(self, names: Iterable[str], why: str) -> None:
        """Say of tensors of the file that the model has no place for them, and why that is right.

        Names that were put somewhere, or that are not there, are passed over.
        """
        for name in names:
            if name in self.source and name not in self._taken:
                self._unused[name] = why

    def initial(self, names: Iterable[str], why: str) -> None:
        """Say of tensors of the model that they keep their initial values, and why that is right.

        They are left out of the converted file. Names that were filled are passed over.
        """
        for name in names:
            if name in self.model and name not in self.weights:
                self._initial[name] = why

    def setting(self, key: str, value) -> None:
        """Say that the model computes what the source did only with this value of a config key."""
        self.settings[key] = value

    def check(self) -> None:
        """Compare the account with the file and the model.

        Raises:
            ConversionError: tensors of either side that nothing was said of, or that are not
                finite; or `keep` names none of the model.
        """
        left = [name for name in self.source if name not in self._taken | self._unused.keys()]
        empty = [name for name in self.model if name not in self.weights | self._initial]
        broken = [name for name, value in self.weights.items() if not torch.isfinite(value).all()]
        astray = [begin for begin in self.keep if not any(n.startswith(begin) for n in self.model)]
        problems = {
            "names to keep are the beginning of none in the model": astray,
            "tensors of the file have no place in the model of the config": left,
            "tensors of the model are not in the file": empty,
            "converted tensors are not finite": broken,
        }
        found = [
            f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for what, names in problems.items()
            if names
        ]
        if found:
            raise ConversionError("; ".join(found))

    def table(self) -> str:
        """What landed where, one line for each tensor of the model and of the file."""
        rows = [
            (name, "x".join(map(str, self.weights[name].shape)) or "scalar", *self._origins[name])
            for name in self.weights
        ]
        rows += [(name, "", "initial values", why) for name, why in self._initial.items()]
        rows += [("not used", "", name, why) for name, why in self._unused.items()]
        return tabulate(rows, headers=("model", "shape", "file", "note"), disable_numparse=True)
