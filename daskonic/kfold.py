"""Models of several folds as one: an event is scored by the model that was not trained on it.

Which model that is follows from what is declared: what each was trained on, or what each held out. Nothing follows from
an order or from a version number, since "the even model" means one thing to who trained it and another to who applies it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.features import Part, Variations, Whole
from daskonic.model import Model, Pending
from daskonic.report import Report

__all__ = ["KFold", "PendingFolds"]

Indices = npt.NDArray[np.int64]
Folds = int | tuple[int, ...]
Declared = Mapping[Any, Model]  # of Folds; a Mapping's keys are invariant, and dict[int, Model] shall do


class KFold:
    """Models trained on different events of one sample, called as if they were one model.

    Parameters
    ----------
    fold : callable
        From events to the number of the fold that each is in, a whole number: the rule that the training had.
    trained_on : mapping of int, or tuple of int, to Model
        Each model by the folds whose events it has seen, in training or in the choice of its best epoch. Of every
        fold there must be exactly one model that has not seen it.
    held_out : mapping of int, or tuple of int, to Model
        Instead: each model by the folds that it has not seen, and therefore scores. Events of other folds are refused.

    Raises
    ------
    ConfigError
        An event could be scored by none, by several, or by a model that was trained on it; or two models
        cannot be told apart.

    Examples
    --------
    The usual halves; events that are odd go to the model that was trained on even ones:

    >>> even, odd = dk.Model("assign", version=1), dk.Model("assign", version=2)  # doctest: +SKIP
    >>> tagger = dk.KFold(lambda events: events.event % 2, trained_on={0: even, 1: odd})  # doctest: +SKIP
    >>> scores = tagger(jets, events)  # doctest: +SKIP

    Five folds, each model trained on the four others:

    >>> models = {k: dk.Model(f"tagger_{k}") for k in range(5)}  # doctest: +SKIP
    >>> tagger = dk.KFold(lambda events: events.event % 5, held_out=models)  # doctest: +SKIP
    """

    def __init__(
        self,
        fold: Callable[[Any], Any],
        *,
        trained_on: Declared | None = None,
        held_out: Declared | None = None,
    ) -> None:
        if (trained_on is None) == (held_out is None):
            raise ConfigError(
                "say by which events each model was made, in one of two ways: KFold(rule, trained_on={fold: model}) or "
                "KFold(rule, held_out={fold: model})"
            )
        declared = [(_folds(key), model) for key, model in (trained_on or held_out or {}).items()]
        self.fold = fold
        self.models = tuple(model for _, model in declared)
        _refuse_alike(self.models)
        keys = [folds for folds, _ in declared]
        self._scorer = _held_out(keys) if trained_on is None else _not_trained_on(keys)

    def __repr__(self) -> str:
        scored = [
            f"{model} scores fold {', '.join(str(f) for f, i in self._scorer.items() if i == which)}"
            for which, model in enumerate(self.models)
        ]
        return f"KFold({'; '.join(scored)})"

    def __call__(self, objects: Any, events: Any) -> Any:
        """Score every row by the model that has not seen its event, all models at once.

        Parameters
        ----------
        objects : ak.Array or numpy.ndarray, n_events * ..., or Variations of these
            What each model takes.
        events : ak.Array or numpy.ndarray, n_events * ...
            What ``fold`` takes, such as the events themselves or their numbers, entry by entry those of
            ``objects``. For ``Variations`` whose events differ, a mapping with the same names.

        Returns
        -------
        ak.Array or numpy.ndarray, or dict of these
            As one model would give it, in the order of ``objects``.

        Raises
        ------
        InputError
            An event is in a fold that no model may score; nothing was sent.
        SpecError
            ``objects`` and ``events`` are not as many; nothing was sent.
        """
        return self.submit(objects, events).result()

    def submit(self, objects: Any, events: Any) -> PendingFolds:
        """Start scoring and return at once; parameters as in :meth:`__call__`."""
        parts: list[Any]
        if isinstance(objects, Variations):
            shares = self._varied_shares(objects, events)
            wholes = {name: Whole(one) for name, one in objects.items()}
            parts = [
                Variations({name: Part(wholes[name], of[which]) for name, of in shares.items()})
                for which in range(len(self.models))
            ]
        else:
            share = self._shares(objects, events)
            whole = Whole(objects)
            parts = [Part(whole, numbers) for numbers in share]
        _refuse_different(self.models)
        pending = [model.submit(part) for model, part in zip(self.models, parts, strict=True)]
        if isinstance(objects, Variations):
            return PendingFolds(
                pending, lambda scores: {n: _restored([s[n] for s in scores], of) for n, of in shares.items()}
            )
        return PendingFolds(pending, lambda scores: _restored(scores, share))

    def _varied_shares(self, objects: Variations, events: Any) -> dict[str, list[Indices]]:
        """For each variation the events of each model."""
        if not isinstance(events, Mapping):
            events = dict.fromkeys(objects, events)
        if set(events) != set(objects):
            raise SpecError(f"there are events of {', '.join(events)}, and objects of {', '.join(objects)}")
        return {name: self._shares(one, events[name]) for name, one in objects.items()}

    def _shares(self, objects: Any, events: Any) -> list[Indices]:
        """Which events each model scores."""
        if not isinstance(objects, ak.Array | np.ndarray):
            raise SpecError(
                f"objects are {type(objects).__name__}; folds need one array whose first dimension is the events "
                "(make several inputs of it with dk.Features)"
            )
        folds = self._numbers(events)
        if len(folds) != len(objects):
            raise SpecError(
                f"objects are of {len(objects)} events, but {len(folds)} have a fold: select both alike"
            )
        known = np.array(sorted(self._scorer))
        wrong = np.flatnonzero(~np.isin(folds, known))
        if len(wrong):
            raise InputError(
                f"{len(wrong)} of {len(folds)} events are in a fold that no model has held out, the first of them event "
                f"{wrong[0]} in fold {folds[wrong[0]]}; there are models for {', '.join(map(str, known))}"
            )
        scorer = np.array([self._scorer[int(f)] for f in known])[np.searchsorted(known, folds)]
        return [np.flatnonzero(scorer == which) for which in range(len(self.models))]

    def _numbers(self, events: Any) -> npt.NDArray[Any]:
        """Fold of each event."""
        folds = self.fold(events)
        if isinstance(folds, ak.Array) and ak.any(ak.is_none(folds)):
            raise InputError("the fold of some events is None; select events before they are scored")
        numbers = np.asarray(folds)
        if numbers.ndim != 1 or numbers.dtype.kind not in "biu":
            raise InputError(
                f"folds are {numbers.dtype.name}{list(numbers.shape)}; one whole number for each event is needed, such "
                "as lambda events: events.event % 5"
            )
        return numbers


class PendingFolds:
    """Scores of several models on their way, to be put in the order of the events; used as a :class:`~daskonic.Pending`."""

    def __init__(self, parts: Sequence[Pending], join: Callable[[list[Any]], Any]) -> None:
        self._parts = parts
        self._join = join

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for all of them; Ctrl-C ends the requests of all."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self._join(
                [p.result(None if end is None else max(end - time.monotonic(), 0.0)) for p in self._parts]
            )
        except KeyboardInterrupt:
            for part in self._parts:
                part._claim.give_up()
            raise

    def done(self) -> bool:
        """Whether all are there."""
        return all(part.done() for part in self._parts)

    @property
    def report(self) -> Report:
        """Account of all calls together."""
        return Report.merge(part.report for part in self._parts)


def _folds(key: Folds) -> frozenset[int]:
    """The folds that a key of the declaration names."""
    folds: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
    wrong = [f for f in folds if not isinstance(f, int | np.integer)]
    if wrong or not folds:
        raise ConfigError(f"{key!r} is no fold; a whole number, or several in a tuple, is needed")
    return frozenset(map(int, folds))


def _held_out(keys: Sequence[frozenset[int]]) -> dict[int, int]:
    """The model for each fold: the one that held it out."""
    scorer: dict[int, int] = {}
    for which, folds in enumerate(keys):
        twice = sorted(folds & scorer.keys())
        if twice:
            raise ConfigError(f"fold {twice[0]} is held out by two models; only one can score it")
        scorer |= dict.fromkeys(sorted(folds), which)
    return scorer


def _not_trained_on(keys: Sequence[frozenset[int]]) -> dict[int, int]:
    """The model for each fold: the only one that was not trained on it."""
    scorer = {}
    for fold in sorted(frozenset().union(*keys)):
        unseen = [which for which, folds in enumerate(keys) if fold not in folds]
        if len(unseen) != 1:
            who = "every model was" if not unseen else f"{len(unseen)} models were not"
            what = (
                "none may score its events" if not unseen else "say which one scores it, with held_out={...}"
            )
            raise ConfigError(f"{who} trained on fold {fold}: {what}")
        scorer[fold] = unseen[0]
    return scorer


def _refuse_alike(models: Sequence[Model]) -> None:
    """Models of one name need versions that differ: otherwise both may be the one that saw the event."""
    if len({model.classes for model in models}) > 1 or len({model.outputs for model in models}) > 1:
        raise ConfigError("the models of the folds must have the same classes and outputs")
    for i, model in enumerate(models):
        for other in models[:i]:
            if model.name == other.name and (
                not model.version or not other.version or model.version == other.version
            ):
                raise ConfigError(
                    f"{other} and {model} may be the same model, which cannot score the events it was trained on; give "
                    "versions that differ, and where one model stands for several folds, name them together: {(0, 1): model}"
                )


def _refuse_different(models: Sequence[Model]) -> None:
    """SpecError unless all servers' models give the same outputs."""
    first, *others = models
    outputs = first.spec().outputs
    for other in others:
        if other.spec().outputs != outputs:
            raise SpecError(
                f"{first} gives {'; '.join(map(str, outputs))}, but {other} gives "
                f"{'; '.join(map(str, other.spec().outputs))}; these are not folds of one model"
            )


def _restored(parts: Sequence[Any], shares: Sequence[Indices]) -> Any:
    """Scores of all models in the order of the events."""
    order = np.argsort(np.concatenate(shares))
    together = np if all(isinstance(part, np.ndarray) for part in parts) else ak
    return together.concatenate(parts)[order]
