"""Inputs made of named variables, as a data configuration of weaver or CMSSW lists them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np

from daskonic.constituents import CONSTITUENTS, constituent_fields, particles_of, with_own_constituents
from daskonic.errors import SpecError
from daskonic.features.data_config import ConfigInput, DataConfig
from daskonic.features.formula import Formula, evaluate_whole
from daskonic.features.jets import SVS, Location, Names, Program, order
from daskonic.features.plan import Column, Pad, Plan, shared
from daskonic.features.rows import Inputs, Rows, evaluate
from daskonic.ragged import Counts, content, depth_of, flatten
from daskonic.tensors import ANY, ModelSpec, TensorSpec

__all__ = ["VariableFeatures"]


@dataclass(frozen=True, slots=True)
class VariableFeatures:
    """A data configuration, and which of its inputs the model's are."""

    config: DataConfig
    aliases: dict[str, str]
    nan: str

    def __str__(self) -> str:
        return self.config.path

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides on the numbers; with NaN there are either zeros or none, if it is not kept."""
        kept = [self.nan] if self.nan == "keep" else []
        options = json.dumps([self.config.digest, sorted(self.aliases.items()), *kept])
        return hashlib.sha256(options.encode()).hexdigest()

    def inputs(self, objects: Any, spec: ModelSpec) -> Inputs:
        """Find every variable of the model's inputs in the objects."""
        if not isinstance(objects, ak.Array) or not (objects.fields or _unknown(objects)):
            kind = objects.type if isinstance(objects, ak.Array) else type(objects).__name__
            raise SpecError(
                f"features {self.config.path} need an awkward array of jets with fields such as pt, and with their "
                f"constituents in a field of that name; not {kind}"
            )
        plans = [self._plan(tensor, spec) for tensor in spec.inputs]
        wanted = {v.name: None for plan in plans for v in plan.variables}
        if not objects.fields:
            return _VariableInputs(objects, Program({}, ()), tuple(plans), tuple(wanted), self.nan)
        svs = objects[SVS].fields if SVS in objects.fields else ()
        names = Names(objects.fields, constituent_fields(objects), svs)
        program = self._program(wanted, names)
        return _VariableInputs(objects, program, tuple(plans), (), self.nan)

    def fields(
        self, jet: Collection[str], constituents: Collection[str], spec: ModelSpec | None
    ) -> tuple[frozenset[str], frozenset[str]]:
        """The fields that are needed of those there are."""
        inputs = self.config.inputs if spec is None else [self._input(t, spec) for t in spec.inputs]
        program = self._program({v.name: None for i in inputs for v in i.variables}, Names(jet, constituents))
        of = {
            c: frozenset(w.field for w in program.fields.values() if w.collection == c)
            for c in ("jet", CONSTITUENTS)
        }
        return of["jet"], of[CONSTITUENTS]

    def _program(self, wanted: Mapping[str, None], names: Names) -> Program:
        """How to make the variables; an error tells the file."""
        try:
            return order(wanted, self.config.formulas, names)
        except SpecError as error:
            raise SpecError(f"features {self.config.path}: {error}") from error

    def _input(self, tensor: TensorSpec, spec: ModelSpec) -> ConfigInput:
        """The configuration's input for one of the model's."""
        inputs = {i.name: i for i in self.config.inputs}
        bare = re.sub(r"__\d+$", "", tensor.name)  # Triton's PyTorch backend numbers its inputs so
        for name in (
            self.aliases.get(tensor.name, tensor.name),
            *(form for own in (tensor.name, bare) for form in (own, f"pf_{own}", own.removeprefix("pf_"))),
        ):
            if name in inputs:
                return inputs[name]
        if len(inputs) == len(spec.inputs) == 1 and not self.aliases:  # no other can be meant
            return self.config.inputs[0]
        raise SpecError(
            f"features {self.config.path}: no input for {tensor.name!r} of model {spec.name!r}; there are "
            f"{', '.join(inputs)}; if one of them is meant, say so: {self.config.tool}(..., inputs={{{tensor.name!r}: NAME}})"
        )

    def _plan(self, tensor: TensorSpec, spec: ModelSpec) -> Plan:
        """How one of the model's inputs is made."""
        source = self._input(tensor, spec)
        n = len(source.variables)
        shape: tuple[int, ...] = (n,) if source.length is None else (n, source.length)
        stacked = True
        if source.length is None and n == 1 and tensor.shape == ():  # weaver adds no dimension for one value
            shape, stacked = (), False
        if (
            source.min_length is not None
            and tensor.shape
            and source.min_length <= tensor.shape[-1] < shape[-1]
        ):
            shape = (n, tensor.shape[-1])
        if not tensor.accepts(shape):
            raise SpecError(
                f"features {self.config.path}: input {source.name!r} has rows of shape {list(shape)} ({n} variables"
                + (f", length {source.length}" if source.length else "")
                + f"); model {spec.name!r} takes {tensor}"
            )
        if tensor.dtype.kind != "f":
            raise SpecError(
                f"features {self.config.path}: variables are float32; model {spec.name!r} takes {tensor}"
            )
        pad = (
            None
            if source.length is None
            else Pad(shape[-1], source.pad_mode, min_length=source.min_length or 1)
        )
        any_length = pad is not None and tensor.shape[1] == ANY
        return Plan(tensor.name, tensor.dtype, shape, source.variables, pad, stacked, any_length)


@dataclass(frozen=True, slots=True)
class _VariableInputs:
    """Jets, and how to make the inputs from them."""

    objects: Any
    program: Program
    plans: tuple[Plan, ...]
    empty: tuple[str, ...]
    nan: str

    def flatten(self) -> Rows:
        """Columns of all fields; formulas that look at whole lists are evaluated here, the others per batch."""
        locations = self.program.fields.values()
        nested = any(location.collection == CONSTITUENTS for location in locations)
        objects = with_own_constituents(self.objects) if nested else self.objects
        rows, layout = flatten(objects, depth_of(objects))
        columns = _columns(rows, self.program.fields)
        columns |= {name: Column(np.empty(0, np.float32)) for name in self.empty}
        now = _before_batches(self.program.steps)
        for formula in self.program.steps:
            if formula.name in now:
                columns[formula.name] = (
                    evaluate(formula, columns) if formula.itemwise else _evaluate_whole(formula, columns)
                )
        later = tuple(f for f in self.program.steps if f.name not in now)
        self._refuse_lists(columns, later)
        needed = {n for f in later for n in f.arguments} | {v.name for p in self.plans for v in p.variables}
        columns = {name: column for name, column in columns.items() if name in needed}
        return Rows(layout, columns, later, self.plans, self.nan)

    def _refuse_lists(self, columns: Mapping[str, Column], later: tuple[Formula, ...]) -> None:
        """SpecError for several values of a jet where the input takes one."""
        lists = {name for name, c in columns.items() if c.counts is not None or c.values.ndim > 1}
        for formula in later:
            lists |= {formula.name} if lists & set(formula.arguments) else set()
        for plan in self.plans:
            found = [v.name for v in plan.variables if v.name in lists]
            if plan.pad is None and found:
                raise SpecError(
                    f"variable {found[0]!r} has several values in each jet, and input {plan.name!r} takes one (its length is null)"
                )


def _columns(jets: Any, fields: Mapping[str, Location]) -> dict[str, Column]:
    """Flat values of all fields; those of one collection share the array of their counts."""
    columns: dict[str, Column] = {}
    known: list[Counts] = []
    nested: dict[str, tuple[Any, Counts]] = {}
    for collection in {location.collection for location in fields.values()} - {"jet"}:
        items = particles_of(jets) if collection == CONSTITUENTS else jets[collection]
        if ak.any(ak.is_none(items, axis=0)):
            raise SpecError(
                f"jets have None for their {collection}; give these an empty list, or drop the jets"
            )
        known.append(np.asarray(ak.num(items, axis=1), dtype=np.int64))
        nested[collection] = ak.flatten(items, axis=1), known[-1]
    for name, location in fields.items():
        if location.collection == "jet":
            values, own = content(jets[location.field], location.field)
            columns[name] = Column(values, None if own is None else shared(own, known))
            continue
        flat, counts = nested[location.collection]
        what = f"{location.collection}.{location.field}"
        columns[name] = Column(content(flat[location.field], what)[0], counts)
    return columns


def _before_batches(steps: tuple[Formula, ...]) -> set[str]:
    """Formulas that look at whole lists, and all that these need."""
    now: set[str] = set()
    for formula in reversed(steps):
        if not formula.itemwise or formula.name in now:
            now |= {formula.name, *formula.arguments}
    return now & {f.name for f in steps}


def _evaluate_whole(formula: Formula, columns: Mapping[str, Column]) -> Column:
    """A formula on the nested arrays of all rows."""
    arguments = {}
    for name in formula.arguments:
        column = columns[name]
        arguments[name] = (
            ak.from_numpy(column.values, regulararray=True)
            if column.counts is None
            else ak.unflatten(ak.from_numpy(column.values, regulararray=True), column.counts)
        )
    try:
        value = evaluate_whole(formula, arguments)
    except (TypeError, ValueError, IndexError) as error:
        raise SpecError(
            f"variable {formula.name!r} = {formula.text!r}: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(value, ak.Array | np.ndarray):
        raise SpecError(
            f"variable {formula.name!r} = {formula.text!r}: gives {type(value).__name__}, not an array"
        )
    values, counts = content(value, f"variable {formula.name!r}")
    if {len(c.values if c.counts is None else c.counts) for c in columns.values()} != {len(value)}:
        raise SpecError(f"variable {formula.name!r} = {formula.text!r}: has other jets than its arguments")
    return Column(
        values,
        None
        if counts is None
        else shared(counts, [c.counts for c in columns.values() if c.counts is not None]),
    )


def _unknown(array: Any) -> bool:
    """Whether an empty array has no type that could tell its fields."""
    kind = array.type
    while hasattr(kind, "content"):
        kind = kind.content
    return isinstance(kind, ak.types.UnknownType)
