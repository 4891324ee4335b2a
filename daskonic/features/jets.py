"""Names of jets and their constituents, as the field's data configurations use them.

``jet_pt`` is the field ``pt`` of a jet, ``part_pt`` that of its constituents (field
``constituents``, or ``constituents.pf`` as coffea nests them). What files do not hold but configurations ask
for follows from what they hold by :data:`DEFINITIONS`, which are the variables of the JetClass data set [1]_.

References
----------
.. [1] H. Qu, C. Li, S. Qian, Particle Transformer for Jet Tagging, arXiv:2202.03772, and the
   variables in the data set's own configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from daskonic.constituents import CONSTITUENTS
from daskonic.errors import SpecError
from daskonic.features.formula import Formula, parse

__all__ = ["Location", "Names", "Program", "order"]

SHOWN = 16

_OTHER_NAMES = {
    "d0val": ("d0",),
    "d0err": ("d0Err", "d0err"),
    "dzval": ("dz",),
    "dzerr": ("dzErr", "dzerr"),
    "energy": ("energy", "E", "e"),
    "sdmass": ("msoftdrop", "sdmass"),
    "nparticles": ("nConstituents",),
    "pid": ("pdgId",),
}
"""Fields of NanoAOD and PFNano for names of JetClass."""

_LINES = """
px = {0}_pt * np.cos({0}_phi)
py = {0}_pt * np.sin({0}_phi)
pz = {0}_pt * np.sinh({0}_eta)
pt = np.hypot({0}_px, {0}_py)
eta = np.arcsinh({0}_pz / {0}_pt)
phi = np.arctan2({0}_py, {0}_px)
energy = np.hypot({0}_pt * np.cosh({0}_eta), {0}_mass)
"""

# The sign makes deta grow away from the beam's middle on both sides; rint keeps a small dphi exact in float32.
_PART_LINES = """
deta = np.where(jet_eta > 0, part_eta - jet_eta, jet_eta - part_eta)
dphi = part_phi - jet_phi - 2 * np.pi * np.rint((part_phi - jet_phi) / (2 * np.pi))
isElectron = np.abs(part_pdgId) == 11
isMuon = np.abs(part_pdgId) == 13
isPhoton = part_pdgId == 22
isChargedHadron = (part_charge != 0) & (np.abs(part_pdgId) != 11) & (np.abs(part_pdgId) != 13)
isNeutralHadron = (part_charge == 0) & (part_pdgId != 22)
"""


def _definitions(prefix: str, lines: str) -> dict[str, Formula]:
    """Formulas of one collection."""
    pairs = (line.split(" = ", 1) for line in lines.strip().splitlines())
    return {f"{prefix}_{name}": parse(f"{prefix}_{name}", text.format(prefix)) for name, text in pairs}


DEFINITIONS = {
    **_definitions("jet", _LINES),
    **_definitions("part", _LINES),
    **_definitions("part", _PART_LINES),
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a variable lies.

    Attributes
    ----------
    collection : {"jet", "constituents"}
    field : str
    """

    collection: str
    field: str


class Names:
    """The fields that jets and constituents have.

    Parameters
    ----------
    jet, constituents : collection of str
    """

    def __init__(self, jet: Collection[str], constituents: Collection[str]) -> None:
        self.jet = frozenset(jet)
        self.constituents = frozenset(constituents)

    def locate(self, name: str) -> Location | None:
        """The field that holds a variable; a jet's own field of exactly that name comes first."""
        if name in self.jet:
            return Location("jet", name)
        for prefix, collection, fields in (
            ("jet_", "jet", self.jet),
            ("part_", CONSTITUENTS, self.constituents),
        ):
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                for field in (rest, *_OTHER_NAMES.get(rest, ())):
                    if field in fields:
                        return Location(collection, field)
        return None

    def __str__(self) -> str:
        hint = (
            ""
            if self.constituents
            else " (of coffea's events, first jets = dk.link_constituents(events, NAME))"
        )
        return f"jets have {_some(self.jet - {CONSTITUENTS})}; their constituents have {_some(self.constituents)}{hint}"


def _some(fields: Collection[str]) -> str:
    """Names for a message: short ones first, since a file of NanoAOD has hundreds."""
    shown = sorted(sorted(fields, key=len)[:SHOWN])
    more = f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
    return (", ".join(shown) or "no fields") + more


@dataclass(frozen=True, slots=True)
class Program:
    """How to make some variables.

    Attributes
    ----------
    fields : dict of str to Location
        Variables that are read.
    steps : tuple of Formula
        Those that are computed, each after what it needs.
    """

    fields: dict[str, Location]
    steps: tuple[Formula, ...]


def order(wanted: Iterable[str], formulas: dict[str, Formula], names: Names) -> Program:
    """Find every variable: in a field, else by a formula of the user, else by a definition.

    Raises
    ------
    SpecError
        A variable that cannot be made.
    """
    fields: dict[str, Location] = {}
    steps: dict[str, Formula] = {}
    for name in wanted:
        missing = _resolve(name, formulas, names, fields, steps, ())
        if missing is not None:
            via = f" (needed for {name})" if missing != name else ""
            raise SpecError(f"no variable {missing}{via}: neither a field nor a formula; {names}")
    return Program(fields, tuple(steps.values()))


def _resolve(
    name: str,
    formulas: dict[str, Formula],
    names: Names,
    fields: dict[str, Location],
    steps: dict[str, Formula],
    above: tuple[str, ...],
) -> str | None:
    """Add a variable and what it needs; the name that could not be found, else None."""
    if name in fields or name in steps:
        return None
    location = names.locate(name)
    if location is not None:
        fields[name] = location
        return None
    missing = name
    for formula in (formulas.get(name), DEFINITIONS.get(name)):
        if formula is None or name in above:  # px from pt and pt from px lead nowhere
            continue
        found = [_resolve(n, formulas, names, fields, steps, (*above, name)) for n in formula.arguments]
        lacking = [n for n in found if n is not None]
        if not lacking:
            steps[name] = formula
            return None
        missing = lacking[0]
    return missing
