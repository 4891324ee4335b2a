"""Parts of the same objects for several models, whose inputs a function makes once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daskonic.ragged import Counts

__all__ = ["Part", "Whole"]


@dataclass(frozen=True, slots=True)
class Whole:
    """Objects that are scored in parts, and what functions have made of all of them."""

    objects: Any
    made: dict[Hashable, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the objects.

    Attributes
    ----------
    whole : Whole
    numbers : array of int64
        Which, counted along the first dimension.
    """

    whole: Whole
    numbers: Counts

    @property
    def objects(self) -> Any:
        """These alone."""
        return self.whole.objects[self.numbers]

    def made(self, key: Hashable, make: Callable[[Any], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What ``make`` gives for these objects; it is called once for all parts, where each of its arrays has them all."""
        if key not in self.whole.made:
            self.whole.made[key] = make(self.whole.objects)
        made, n_objects = self.whole.made[key], len(self.whole.objects)
        arrays = [a for value in made.values() for a in _listed(value)]
        if not all(hasattr(a, "__len__") and len(a) == n_objects for a in arrays):
            return make(self.objects)
        return {
            name: [a[self.numbers] for a in value] if isinstance(value, list | tuple) else value[self.numbers]
            for name, value in made.items()
        }


def _listed(value: Any) -> list[Any]:
    """An input is one array, or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]
