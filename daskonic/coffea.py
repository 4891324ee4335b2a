"""coffea's ``triton_wrapper``, with daskonic behind it: analyses that have a subclass change one import.

Before: ``from coffea.ml_tools.triton_wrapper import triton_wrapper``. After: ``from daskonic.coffea import
triton_wrapper``. New code is shorter and gets more with :class:`daskonic.Model`.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import awkward as ak
import dask.config
import numpy as np
from coffea.ml_tools.helper import numpy_call_wrapper

from daskonic.errors import ConfigError, InferenceError, ResponseError, SpecError
from daskonic.features import Features
from daskonic.model import Model
from daskonic.pool import Pool
from daskonic.tensors import Array, ModelSpec, TensorSpec
from daskonic.tolerance import apart
from daskonic.transport.message import KSERVE_NAMES

__all__ = ["triton_wrapper"]

URL = re.compile(r"^(?:triton\+)?(?P<protocol>\w+)://(?P<address>.+)/(?P<model>[^/]+)/(?P<version>\d+)$")
FILES = {
    "root_certificates": "ca-file",
    "private_key": "key-file",
    "certificate_chain": "certificate-file",
}
"""Arguments of tritonclient, and the setting of ``daskonic.credentials`` that is the same."""

REPLACED = {
    "client": "there is none: connections belong to the process's pool; for the pool, wrapper.handle.pool()",
    "pmod": "there is none: daskonic speaks gRPC without tritonclient's classes",
    "run_infer": "what may pass is tried again by the pool, within daskonic.timeout",
    "_create_client": "connections are made by the pool; addresses and TLS are settings of daskonic",
}
"""Parts of coffea's class that have no counterpart, and why."""

GRAPHS = "if these are nodes, edges and indices of graphs: dk.Model with dk.Features(function, graph=dk.Graph(...))"

TOLERANCE = 1e-4
"""Between a row alone and among others, on whatever hardware the server has: this is an error in the middle of a run."""


class triton_wrapper(numpy_call_wrapper):  # type: ignore[misc]
    """coffea's wrapper of that name: the same constructor, hooks and results.

    A subclass overrides ``prepare_awkward``, and where it wants ``postprocess_awkward`` or
    ``validate_numpy_input``, as with coffea 2026.9 [1]_. What differs: requests are in flight together, the last batch
    is not filled up, connections are those of the process, only errors that may pass are tried again, and
    a server that hangs is given up after ``daskonic.timeout``.

    Parameters
    ----------
    model_url : str
        ``triton+grpc://HOST:PORT/MODEL/VERSION``.
    client_args : dict, optional
        ``ssl`` (True, as in coffea), and the files ``root_certificates``, ``private_key`` and ``certificate_chain``;
        ``verbose`` is accepted.
    batch_size : int
        Most rows in one request; below zero, what the model says, or ``batch_size_fallback`` where it does not.

    Raises
    ------
    ConfigError
        ``http``, or an argument of tritonclient that has no counterpart.
    SpecError
        Where coffea gives wrong numbers: inputs of different lengths, values that change when they are cast to
        the model's dtype, and a model whose answer to a row depends on the other rows of its request.
    ServerError
        Instead of tritonclient's ``InferenceServerException``.

    References
    ----------
    .. [1] https://github.com/scikit-hep/coffea, ``src/coffea/ml_tools/triton_wrapper.py`` and ``helper.py``.
    """

    batch_size_fallback = 256

    def __init__(
        self, model_url: str, client_args: dict[str, Any] | None = None, batch_size: int = -1
    ) -> None:
        found = URL.match(model_url)
        if found is None or found["protocol"] not in ("grpc", "http"):
            raise ConfigError(f"model_url is {model_url!r}; triton+grpc://HOST:PORT/MODEL/VERSION is needed")
        self.protocol, self.address, self.model, self.version = found.groups()
        if self.protocol == "http":
            raise ConfigError(
                f"{model_url}: daskonic speaks gRPC only, which the same Triton offers at another port, usually 8001: "
                f"triton+grpc://{self.address.partition(':')[0]}:8001/{self.model}/{self.version}"
            )
        self.client_args = {"verbose": False, "ssl": True} | (client_args or {})
        scheme = "grpcs" if self.client_args["ssl"] else "grpc"
        self.handle = Model(
            self.model,
            self.version,
            features=Features.plain(nan="keep"),
            servers=[f"{scheme}://{self.address}"],
            batch_size=None if batch_size < 0 else batch_size,
            trim="never",
            credentials=_credentials(self.client_args),
        )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in REPLACED.keys() & vars(cls).keys():
            raise ConfigError(
                f"{cls.__name__} overrides {name}, which daskonic does not call: {REPLACED[name]}"
            )

    def __getattr__(self, name: str) -> Any:
        why = f": {REPLACED[name]}" if name in REPLACED else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{why}")

    @property
    def batch_size(self) -> int:
        """Most rows in one request."""
        return self._handle_for(()).batch_size or self._served().max_batch_size

    @property
    def model_inputs(self) -> dict[str, dict[str, Any]]:
        """Shape, its batch dimension included, and Triton's datatype of each input."""
        return self._tensors(self._served().inputs)

    @property
    def model_outputs(self) -> dict[str, dict[str, Any]]:
        """The same of each output."""
        return self._tensors(self._served().outputs)

    @property
    def model_metadata(self) -> dict[str, Any]:
        """What the server says of the model."""
        spec = self._served()
        lists = {
            kind: [
                {"name": name} | {k: list(v) if k == "shape" else v for k, v in of.items()}
                for name, of in found.items()
            ]
            for kind, found in (("inputs", self.model_inputs), ("outputs", self.model_outputs))
        }
        return {"name": spec.name, "versions": [spec.version], "platform": spec.platform, **lists}

    def validate_numpy_input(self, output_list: Sequence[str], input_dict: Mapping[str, Array]) -> None:
        """Compare names, shapes and dtypes with the model's.

        Raises
        ------
        SpecError
            A ``ValueError`` as in coffea; says what the model takes.
        """
        handle, inputs = self._handle_for(output_list), self._cast(input_dict)
        spec = handle.spec()
        unknown = sorted(set(output_list) - {t.name for t in spec.outputs})
        if unknown:
            there = ", ".join(t.name for t in spec.outputs)
            raise SpecError(f"model {spec.name!r} has no output {', '.join(unknown)}; it has {there}")
        handle.features(inputs, spec).flatten()

    def numpy_call(self, output_list: Sequence[str], input_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Score all rows.

        Parameters
        ----------
        output_list : list of str
        input_dict : mapping of str to array, [n_rows, ...]

        Returns
        -------
        dict of str to array, [n_rows, ...]
            In the model's dtypes, also for no rows.
        """
        handle, inputs = self._handle_for(output_list), self._cast(input_dict)
        try:
            scores = _arrays(handle, inputs)
        except ResponseError as error:
            if self._served().max_batch_size:
                raise
            raise SpecError(f"{error}; {GRAPHS}") from error
        n_rows = len(next(iter(inputs.values())))
        if n_rows > 1:
            _refuse_neighbours(handle, inputs, scores)
        return {name: scores[name] for name in output_list}

    def _served(self) -> ModelSpec:
        """The servers' description of the model."""
        return self.handle.pool().spec(self.model, self.version)

    def _handle_for(self, outputs: Sequence[str]) -> Model:
        """The model with some of its outputs, the first dimension taken as the batch where no server says so."""
        handle = copy.copy(self.handle)
        handle.outputs = tuple(outputs)
        if handle.batch_size is None and not self._served().max_batch_size:
            handle.batch_size = self.batch_size_fallback
        return handle

    def _tensors(self, tensors: Sequence[TensorSpec]) -> dict[str, dict[str, Any]]:
        """Coffea's form of a description."""
        batch = (-1,) if self._served().max_batch_size else ()
        return {t.name: {"shape": (*batch, *t.shape), "datatype": KSERVE_NAMES[t.dtype]} for t in tensors}

    def _cast(self, input_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs in the model's dtypes where that changes no value by more than its last digits."""
        arrays = {name: np.asarray(values) for name, values in input_dict.items()}
        lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name}: {n}" for name, n in lengths.items())
            raise SpecError(
                f"inputs of model {self.model!r} have different numbers of rows ({told}); {GRAPHS}"
            )
        dtypes = {t.name: t.dtype for t in self._served().inputs}
        return {
            name: _as_dtype(values, dtypes.get(name, values.dtype), name) for name, values in arrays.items()
        }


def _credentials(client_args: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's credentials, with the files that tritonclient is told."""
    strange = sorted(set(client_args) - {"verbose", "ssl", *FILES})
    if strange:
        raise ConfigError(
            f"client_args has {', '.join(strange)}, which has no counterpart; there are ssl, {', '.join(FILES)}; all else is "
            "set by daskonic.* in the Dask configuration"
        )
    told = {FILES[key]: value for key, value in client_args.items() if key in FILES and value is not None}
    return dict(dask.config.get("daskonic.credentials")) | told


def _as_dtype(values: Array, dtype: np.dtype[Any], name: str) -> Array:
    """To the model's dtype; coffea casts whatever comes, and cuts off decimals."""
    if np.can_cast(values.dtype, dtype, "same_kind"):
        return values
    with np.errstate(invalid="ignore"):
        cast = values.astype(dtype)
    if not np.array_equal(cast, values):
        raise SpecError(
            f"input {name!r} is {values.dtype.name} with values that the model's {dtype.name} cannot hold; convert it "
            "yourself if that is meant"
        )
    return cast


def _arrays(handle: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Each output as an array."""
    scores = handle(inputs)
    names = [t.name for t in handle.spec().outputs if not handle.outputs or t.name in handle.outputs]
    if len(names) == 1:
        return {names[0]: scores}
    return {name: ak.to_numpy(scores[name]) for name in names}


_independent: WeakKeyDictionary[Pool, set[tuple[str, str, str]]] = WeakKeyDictionary()
_independent_lock = threading.Lock()


def _refuse_neighbours(handle: Model, inputs: Mapping[str, Array], scores: Mapping[str, Array]) -> None:
    """SpecError if the last row scores differently alone; tried once for each model and process."""
    pool, spec = handle.pool(), handle.spec()
    key = (spec.name, spec.version, spec.config_digest)
    with _independent_lock:
        if key in _independent.setdefault(pool, set()):
            return
    problem = f"model {spec.name!r} does not score a row by itself"
    hint = f"its numbers depend on how rows are put into requests, and in coffea on the padding; {GRAPHS}"
    try:
        alone = _arrays(handle, {name: values[-1:] for name, values in inputs.items()})
    except (InferenceError, ResponseError) as error:
        raise SpecError(f"{problem}: {error}; {hint}") from error
    for name, values in scores.items():
        if apart({name: values[-1:]}, alone) > TOLERANCE:
            raise SpecError(f"{problem}: output {name!r} changes with the other rows of a request; {hint}")
    with _independent_lock:
        _independent[pool].add(key)
