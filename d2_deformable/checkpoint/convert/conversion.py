"""The table that each converter fills in: what happens to every tensor of a file."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from ...utils.text import one_line


class ConversionError(ValueError):
    """A file cannot be converted into the weights of a model; the message says why."""


class _Source(dict):
    """Tensors of a file; a missing one raises ConversionError, since the file is at fault."""

    def __missing__(self, name):
        raise ConversionError(
            f"the file has no {name!r}; it is from another network than the config's, or from one "
            "of another depth or width (MODEL.RESNETS)"
        )


class Conversion:
    """Maps the tensors of a file to those of a model, and accounts for all of them.

    A converter is a function of a Conversion and a config. It goes through the network once. For
    each tensor of the model it states where it comes from (`put`) or that the file has nothing for
    it (`initial`); for the rest of the file it states why it is not needed (`unused`). `check` then
    rejects tensors of either side that were left out.

    Args:
        source: named tensors of the file.
        model: named tensors of the model (its `state_dict()`); only shapes and types matter.
        keep: prefixes of the model's tensors that keep their initial values, whatever the file has
            for them, e.g. "roi_heads.box_predictor" for other classes.
        metadata: what the file holds besides tensors, e.g. the "meta" of mmdetection.

    Attributes:
        weights: tensors of the model that were converted so far.
        settings: {config key: value} that the model needs to compute the same as the source.
        assumptions: sentences on what the file does not state and was assumed.
        file: the file that `source` was read from, if any.
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
        """Run a converter on this conversion, then `check`.

        Raises:
            ConversionError: anything is wrong with the file.
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
                "its tensors have other shapes than expected from a file of this kind "
                f"({type(error).__name__}: {one_line(error)})"
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
            using: a function that maps those tensors to the model's; None copies the only one.
                Without sources it returns a constant, e.g. zeros.
            note: a description of `using` for the table.

        Raises:
            ConversionError: the file or the model has no such tensor, the shapes differ, or the
                model's tensor is filled already.
        """
        if self.keep and name.startswith(self.keep) and name in self.model:
            self.initial([name], "as requested")
            self.unused(sources, f"{name} keeps its initial value, as requested")
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
                f"{[tuple(tensor.shape) for tensor in tensors]}: {one_line(error)}"
            ) from error
        expected = self.model[name]
        if expected.is_floating_point() and not value.is_floating_point():
            raise ConversionError(f"{name!r} would be made of {value.dtype}: is it quantised?")
        if value.shape != expected.shape:
            raise ConversionError(
                f"{name!r} would be {tuple(value.shape)}, from {' and '.join(sources)} "
                f"{[tuple(tensor.shape) for tensor in tensors]}, but in the model of the config it "
                f"is {tuple(expected.shape)}; use a config with the source's depth, width "
                "(MODEL.RESNETS) and classes, or keep its initial values (keep, --keep)"
            )
        self.weights[name] = value.to(expected.dtype).contiguous()
        self._origins[name] = (", ".join(sources), note)
        self._taken.update(sources)

    def unused(self, names: Iterable[str], why: str) -> None:
        """State that the model does not need these tensors of the file, and why.

        Names that were used already, or that the file does not have, are ignored.
        """
        for name in names:
            if name in self.source and name not in self._taken:
                self._unused[name] = why

    def initial(self, names: Iterable[str], why: str) -> None:
        """State that these tensors of the model keep their initial values, and why.

        They are left out of the converted file. Names that were filled already are ignored.
        """
        for name in names:
            if name in self.model and name not in self.weights:
                self._initial[name] = why

    def setting(self, key: str, value) -> None:
        """State that the model needs this value of a key to compute the same as the source."""
        self.settings[key] = value

    def check(self) -> None:
        """Check that every tensor of the file and of the model is accounted for.

        Raises:
            ConversionError: a tensor of either side is not, or is not finite; or an entry of `keep`
                matches no tensor of the model.
        """
        left = [name for name in self.source if name not in self._taken | self._unused.keys()]
        empty = [name for name in self.model if name not in self.weights | self._initial]
        broken = [name for name, value in self.weights.items() if not torch.isfinite(value).all()]
        unmatched = [
            prefix for prefix in self.keep if not any(n.startswith(prefix) for n in self.model)
        ]
        problems = {
            "names to keep match none in the model": unmatched,
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
        """Table of where tensors went, one line for each tensor of the model and of the file."""
        rows = [
            (name, "x".join(map(str, self.weights[name].shape)) or "scalar", *self._origins[name])
            for name in self.weights
        ]
        rows += [(name, "", "initial values", why) for name, why in self._initial.items()]
        rows += [("not used", "", name, why) for name, why in self._unused.items()]
        return tabulate(rows, headers=("model", "shape", "file", "note"), disable_numparse=True)
