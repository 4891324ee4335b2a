"""How objects become inputs: by a function, by a data configuration of weaver or CMSSW, or by one that is ready."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from daskonic.errors import ConfigError
from daskonic.features import cmssw, weaver
from daskonic.features.function import FunctionFeatures
from daskonic.features.graph import Graph
from daskonic.features.graph_features import GraphFeatures
from daskonic.features.parts import Part
from daskonic.features.plan import NAN, Pad
from daskonic.features.rows import Inputs
from daskonic.features.variables import VariableFeatures
from daskonic.features.variations import Variations, VariedInputs
from daskonic.tensors import ModelSpec

__all__ = ["Features"]

READY = Path(__file__).with_name("ready")
"""Folder of the features that are ready."""


class Features:
    """Turns physics objects into the named input tensors of a model.

    Parameters
    ----------
    function : callable
        Takes the objects, gives a mapping from input names to arrays (or one array for a model
        with one input). An array nests like the objects, then come the dimensions of one row
        in the model: ``n_events * var * 16 * float32`` for a model that takes ``[16]``. Where a row is
        jagged, say with ``pad`` how it becomes a rectangle. A list of arrays becomes channels:
        ``{"x": [deta, dphi]}`` for a model that takes ``[2, length]``.
    pad : mapping of str to Pad, optional
        For the inputs that are jagged within a row.
    nan : {"error", "keep"}
        What becomes of NaN in an input: an error, or NaN, for a model to which it is a missing value, as to trees.
    graph : Graph, optional
        For a model without a batch dimension: which tensor has one entry for each node, edge or graph.
        Each row is then a graph, and ``n_events * var * nodes * 5 * float32`` is right for a model that takes
        ``[any, 5]``.

    Notes
    -----
    Values travel in the dtype that the model declares. A model with FP16 inputs gets them in half the bytes, cast
    here, and a value that FP16 cannot hold is an error. A model with FP32 inputs takes nothing else over
    KServe v2, so half the bytes for it are had by exporting it with FP16 inputs and a cast inside.

    Examples
    --------
    >>> features = dk.Features(  # doctest: +SKIP
    ...     lambda jets: {"x": [jets.constituents.pt, jets.constituents.eta]}, pad={"x": dk.Pad(64)}
    ... )
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        pad: Mapping[str, Pad] | None = None,
        graph: Graph | None = None,
        *,
        nan: Literal["error", "keep"] = "error",
    ) -> None:
        if not callable(function):
            raise ConfigError(
                f"features need a function, not {function!r}; for a YAML, Features.from_weaver(path)"
            )
        if pad and graph is not None:
            raise ConfigError(
                "pad= is for rectangles and graph= for graphs, which are not padded; give one of them"
            )
        if nan not in ("error", "keep"):
            raise ConfigError(f"nan is {nan!r}; there are 'error' and 'keep'")
        if nan == "keep" and graph is not None:
            raise ConfigError("nan='keep' is for rows; graphs with NaN are an error")
        self._maker: FunctionFeatures | GraphFeatures | VariableFeatures = (
            FunctionFeatures(function, dict(pad or {}), nan)
            if graph is None
            else GraphFeatures(function, graph)
        )

    @classmethod
    def from_weaver(
        cls,
        path: str | os.PathLike[str],
        inputs: Mapping[str, str] | None = None,
        *,
        nan: Literal["error", "zero", "keep"] = "error",
    ) -> Features:
        """Features of weaver's data configuration, object by object equal to weaver's own.

        Parameters
        ----------
        path : str or path
            The YAML of the training. With automatic standardisation, the ``.auto.yaml`` that weaver wrote, which is
            found by itself if it lies beside.
        inputs : mapping of str to str, optional
            Model's input name to the configuration's, where they differ by more than the prefix
            ``pf_``.
        nan : {"error", "zero", "keep"}
            Weaver fills 0 for NaN in silence; here that must be asked for.

        Raises
        ------
        SpecError
            Not a data configuration, a formula with an unknown function, or a key that is not supported; names it.
        """
        if nan not in NAN:
            raise ConfigError(f"nan is {nan!r}; there are {', '.join(NAN)}")
        return cls._of(VariableFeatures(weaver.load(path), dict(inputs or {}), nan))

    @classmethod
    def from_cmssw(cls, path: str | os.PathLike[str], inputs: Mapping[str, str] | None = None) -> Features:
        """Features of CMSSW's ``preprocess.json``, value by value equal to CMSSW's from the same variables.

        Variables ``pfcand_*`` and ``sv_*`` follow from the columns of PFNano where these tell them; otherwise give the jets
        or their constituents a field of that name. Constituents are taken in the order they have.

        Parameters
        ----------
        path : str or path
            The file beside the network, such as ``RecoBTag/Combined/data/ParticleNetAK8/General/V01/preprocess.json``.
        inputs : mapping of str to str, optional
            Model's input name to the file's, where they differ by more than the prefix ``pf_``.

        Raises
        ------
        SpecError
            Not such a file, or a key that is missing or has no meaning; names it.
        """
        return cls._of(VariableFeatures(cmssw.load(path), dict(inputs or {}), "error"))

    @classmethod
    def ready(cls, name: str, inputs: Mapping[str, str] | None = None) -> Features:
        """Features that many analyses use, from the columns of NanoAOD and PFNano.

        Parameters
        ----------
        name : str
            ``"nanoaod-ak4"`` or ``"nanoaod-ak8"``: ten or seven numbers of each jet. ``"jetclass-kin"``, ``"jetclass-kinpid"`` or
            ``"jetclass-full"``: constituents in the inputs of the networks published with the JetClass data set, in
            the model's length where it has one up to 128. Each is a data configuration of weaver, in the folder
            ``daskonic/features/ready``, with its sources.
        inputs : mapping of str to str, optional
            As in :meth:`from_weaver`.

        Raises
        ------
        ConfigError
            No such features; says which there are.
        """
        there = {path.stem: path for path in sorted(READY.glob("*.yaml"))}
        if name not in there:
            raise ConfigError(f"no features {name!r} are ready; there are {', '.join(there)}")
        config = weaver.load(there[name])
        some = tuple(dataclasses.replace(i, min_length=i.length and 1) for i in config.inputs)
        config = dataclasses.replace(config, tool="ready", path=name, inputs=some)
        return cls._of(VariableFeatures(config, dict(inputs or {}), "error"))

    @classmethod
    def _of(cls, maker: VariableFeatures) -> Features:
        """Features of a data configuration."""
        features = cls.__new__(cls)
        features._maker = maker
        return features

    @classmethod
    def plain(cls, *, nan: Literal["error", "keep"] = "error") -> Features:
        """No features: the objects are the model's inputs already."""
        return cls(_as_they_are, nan=nan)

    def __call__(self, objects: Any, spec: ModelSpec) -> Inputs:
        """Inputs for one call, checked against the model.

        Raises
        ------
        SpecError
            Names, ranks or dtypes disagree with the model's.
        """
        if isinstance(objects, Variations):
            return VariedInputs({name: self._inputs(one, spec) for name, one in objects.items()})
        return self._inputs(objects, spec)

    def _inputs(self, objects: Any, spec: ModelSpec) -> Inputs:
        """Of one array of objects, or of a part of one, for which only functions have to be called beforehand."""
        if isinstance(objects, Part) and not isinstance(self._maker, FunctionFeatures):
            objects = objects.objects
        return self._maker.inputs(objects, spec)

    def __repr__(self) -> str:
        return f"Features({self._maker})"

    def __str__(self) -> str:
        return os.path.basename(str(self._maker))

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of a data configuration; empty if it has none."""
        return self._maker.config.labels if isinstance(self._maker, VariableFeatures) else ()

    @property
    def digest(self) -> str:
        """SHA-256 of the data configuration and of the options; empty for a function."""
        return self._maker.digest if isinstance(self._maker, VariableFeatures) else ""

    @property
    def is_graph(self) -> bool:
        """Whether rows are graphs, for a model without a batch dimension."""
        return isinstance(self._maker, GraphFeatures)

    @property
    def identity(self) -> str:
        """Tells features apart within one process: the digest, or for a function its code."""
        return self._maker.digest if isinstance(self._maker, VariableFeatures) else self._maker.identity

    def fields(
        self, jet: Collection[str], constituents: Collection[str], spec: ModelSpec | None = None
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Of the fields that jets and their constituents have, those that are needed.

        Parameters
        ----------
        jet, constituents : collection of str
            Fields that could be read, without prefix: ``pt``.
        spec : ModelSpec, optional
            Only for the inputs of this model.

        Returns
        -------
        jet, constituents : frozenset of str
            All of them for a function, which does not say.

        Raises
        ------
        SpecError
            A variable can be made from none of them.
        """
        if isinstance(self._maker, VariableFeatures):
            return self._maker.fields(jet, constituents, spec)
        return frozenset(jet), frozenset(constituents)


def _as_they_are(objects: Any) -> Any:
    """No features; a function of the module, so that it can be pickled."""
    return objects
