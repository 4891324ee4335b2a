"""Names of jets and their constituents, as the field's data configurations use them.

``jet_pt`` is the field ``pt`` of a jet, ``part_pt`` that of its constituents (field
``constituents``, or ``constituents.pf`` as coffea nests them), ``sv_pt`` that of its secondary vertices (field
``svs``). What files do not hold but configurations ask for follows from what they hold by :data:`DEFINITIONS`:
the variables of the JetClass data set [1]_, and those of CMSSW's taggers [2]_, ``pfcand_*`` and ``sv_*``,
as far as the columns of PFNano [3]_ and NanoAOD [4]_ give them.

References
----------
.. [1] H. Qu, C. Li, S. Qian, Particle Transformer for Jet Tagging, arXiv:2202.03772, and the
   variables in the data set's own configuration.
.. [2] https://github.com/cms-sw/cmssw, ``RecoBTag/FeatureTools/plugins/DeepBoostedJetTagInfoProducer.cc``.
.. [3] https://github.com/cms-jet/PFNano, ``python/addPFCands_cff.py`` and ``plugins/JetConstituentTableProducer.cc``:
   a candidate without track details has -1 for its impact parameters, their errors and its chi2.
.. [4] https://github.com/cms-sw/cmssw, ``PhysicsTools/NanoAOD/plugins/VertexTableProducer.cc``: ``pAngle`` is measured
   from the direction to the primary vertex.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from daskonic.constituents import CONSTITUENTS
from daskonic.errors import SpecError
from daskonic.features.formula import Formula, parse

__all__ = ["Location", "Names", "Program", "order"]

SVS = "svs"
"""The field in which jets hold their secondary vertices."""

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
    "VTX_ass": ("pvAssocQuality",),
    "quality": ("trkQuality",),
    "normchi2": ("chi2",),
    "dxysig": ("dxySig",),
    "d3d": ("dlen",),
    "d3dsig": ("dlenSig",),
}
"""Fields of NanoAOD and PFNano for names of JetClass and CMSSW."""

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

# Where there is no track, CMSSW has 0, and 999 for the chi2, whatever stands in the file.
_PFCAND_LINES = """
mask = np.ones_like(part_pt)
etarel = 1 * part_deta
phirel = 1 * part_dphi
deltaR = np.hypot(part_deta, part_dphi)
abseta = np.abs(part_eta)
pt_log_nopuppi = np.log(part_pt)
e_log_nopuppi = np.log(part_energy)
isEl = np.abs(part_pdgId) == 11
isMu = np.abs(part_pdgId) == 13
isGamma = np.abs(part_pdgId) == 22
isChargedHad = np.abs(part_pdgId) == 211
isNeutralHad = np.abs(part_pdgId) == 130
normchi2 = np.where(part_trkChi2 < 0, 999, np.floor(part_trkChi2))
dxy = np.where(part_d0err > 0, part_d0val, 0)
dz = np.where(part_dzerr > 0, part_dzval, 0)
dxysig = np.where(part_d0err > 0, part_d0val / part_d0err, 0)
dzsig = np.where(part_dzerr > 0, part_dzval / part_dzerr, 0)
"""

_SV_LINES = """
mask = np.ones_like(sv_pt)
etarel = np.where(jet_eta > 0, sv_eta - jet_eta, jet_eta - sv_eta)
phirel = sv_phi - jet_phi - 2 * np.pi * np.rint((sv_phi - jet_phi) / (2 * np.pi))
deltaR = np.hypot(sv_etarel, sv_phirel)
abseta = np.abs(sv_eta)
pt_log = np.log(sv_pt)
costhetasvpv = -np.cos(sv_pAngle)
"""


def _definitions(prefix: str, lines: str) -> dict[str, Formula]:
    """Formulas of one collection."""
    pairs = (line.split(" = ", 1) for line in lines.strip().splitlines())
    return {f"{prefix}_{name}": parse(f"{prefix}_{name}", text.format(prefix)) for name, text in pairs}


DEFINITIONS = {
    **_definitions("jet", _LINES),
    **_definitions("part", _LINES),
    **_definitions("part", _PART_LINES),
    **_definitions("pfcand", _PFCAND_LINES),
    **_definitions("sv", _LINES),
    **_definitions("sv", _SV_LINES),
}

_COLLECTIONS = {"jet_": "jet", "part_": CONSTITUENTS, "pfcand_": CONSTITUENTS, "sv_": SVS}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a variable lies.

    Attributes
    ----------
    collection : {"jet", "constituents", "svs"}
    field : str
    """

    collection: str
    field: str


class Names:
    """The fields that jets, their constituents and their secondary vertices have.

    Parameters
    ----------
    jet, constituents, svs : collection of str
    """

    def __init__(
        self, jet: Collection[str], constituents: Collection[str], svs: Collection[str] = ()
    ) -> None:
        own = frozenset(jet) - {CONSTITUENTS, SVS}
        self._fields = {"jet": own, CONSTITUENTS: frozenset(constituents), SVS: frozenset(svs)}

    def exact(self, name: str) -> Location | None:
        """The field with exactly the name of a variable."""
        return next((Location(c, name) for c, fields in self._fields.items() if name in fields), None)

    def by_prefix(self, name: str) -> Location | None:
        """The field with the name that a variable has behind its prefix."""
        prefix = next((p for p in _COLLECTIONS if name.startswith(p)), None)
        if prefix is None or (prefix == "pfcand_" and name in DEFINITIONS):  # dz of CMSSW is not the field dz
            return None
        rest, collection = name.removeprefix(prefix), _COLLECTIONS[prefix]
        names = (rest, *_OTHER_NAMES.get(rest, ()))
        found = next((field for field in names if field in self._fields[collection]), None)
        return None if found is None else Location(collection, found)

    def __str__(self) -> str:
        jet, constituents, svs = self._fields.values()
        hint = (
            "" if constituents else " (of coffea's events, first jets = dk.link_constituents(events, NAME))"
        )
        vertices = f"; their {SVS} have {_some(svs)}" if svs else ""
        return f"jets have {_some(jet)}; their constituents have {_some(constituents)}{hint}{vertices}"


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
    """Find every variable: in a field of its name, by a formula of the user, in a field without prefix, by a definition.

    A formula of the user says what a name means: with ``part_d0: np.tanh(part_d0val)``, the field ``d0`` is not it.

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
    own, known = formulas.get(name), DEFINITIONS.get(name)
    if own is not None and known is not None and own.code == known.code:
        own = None  # a field of that meaning will do
    location = names.exact(name)
    if location is None and (own is None or name in above):
        location = names.by_prefix(name)
    if location is not None:
        fields[name] = location
        return None
    formula = known if own is None else own
    if formula is None or name in above:  # px from pt and pt from px lead nowhere
        return name
    for argument in formula.arguments:
        missing = _resolve(argument, formulas, names, fields, steps, (*above, name))
        if missing is not None:
            return missing
    steps[name] = formula
    return None
