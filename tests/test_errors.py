"""Every error survives Dask's pickling and has its place in the tree."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from daskonic import errors

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_survives_pickling(kind, pickler):
    """Class, message, retryable and exit code are the same after a round trip."""
    error = pickle.loads(pickler.dumps(kind("what was asked; what exists")))
    assert type(error) is kind
    assert str(error) == "what was asked; what exists"
    assert (error.retryable, error.exit_code) == (kind.retryable, kind.exit_code)


@pytest.mark.parametrize("kind", ALL)
def test_stands_in_the_docstring_with_its_exit_code(kind):
    """The tree in the module's docstring names every class and its exit code."""
    line = next(line for line in errors.__doc__.splitlines() if f" {kind.__name__} " in f" {line} ")
    assert line.split(kind.__name__)[1].split()[0] == str(kind.exit_code)


def test_only_passing_troubles_are_retryable():
    """Away and overloaded may be tried again, nothing else."""
    assert {e for e in ALL if e.retryable} == {
        errors.NotReadyError,
        errors.UnavailableError,
        errors.OverloadedError,
    }
