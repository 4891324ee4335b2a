"""The t t̄ analysis of the Analysis Grand Challenge in small: jets to partons by a network, with systematics.

A coffea processor to copy from. One lepton, four jets, and two regions by their b tags. Where there are two tags, each
assignment of up to six jets to the four quarks is scored by a network that was trained on the other half of the events,
for the nominal jets and five variations of them, in one call; the mass of the hadronic top comes from the best one.
``run.py`` beside this file runs it.
"""

from __future__ import annotations

import itertools
from typing import Any

import awkward as ak
import hist
import numpy as np
from coffea.nanoevents import NanoAODSchema
from coffea.nanoevents.methods import vector
from coffea.processor import ProcessorABC

import daskonic as dk

NanoAODSchema.warn_missing_crossrefs = (
    False  # the files have jets and leptons, and nothing that points to them
)

B_TAG = 0.5
MOST_JETS = 6
REGIONS = ("4j1b", "4j2b")

# Jets to the quarks of the hadronic W, the b of its top, and the other b, by the number of jets; the two of the W are alike.
ASSIGNMENTS = ak.Array(
    [[list(p) for p in itertools.permutations(range(n), 4) if p[0] < p[1]] for n in range(MOST_JETS + 1)]
)

VARIATIONS = {
    "nominal": lambda _: 1.0,
    "jes_up": lambda _: 1.03,
    "jes_down": lambda _: 0.97,
    "jes_endcap_up": lambda jets: ak.where(abs(jets.eta) > 1.3, 1.03, 1.0),
    "jes_endcap_down": lambda jets: ak.where(abs(jets.eta) > 1.3, 0.97, 1.0),
    "jer_up": lambda jets: 1 + 0.05 * normal(jets),
}


def normal(jets: ak.Array) -> ak.Array:
    """Return numbers that look normally distributed, and are always the same for the same jet."""
    flat = ak.to_numpy(ak.flatten(jets.phi)).astype(np.float64)
    bits = (flat * 1e6).astype(np.int64) * 2654435761 % 2**32
    uniform = np.stack([bits % 65536, bits // 65536]) / 65536 + 2**-17
    return ak.unflatten(np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1]), ak.num(jets))


def varied(jets: ak.Array, factor: Any) -> ak.Array:
    """Return jets with pt and mass scaled, float32 as they were."""
    for name in ("pt", "mass"):
        jets = ak.with_field(jets, ak.values_astype(jets[name] * factor, np.float32), name)
    return ak.with_name(jets, "PtEtaPhiMLorentzVector", behavior=vector.behavior)


def select(events: ak.Array, factor: Any) -> dict[str, ak.Array]:
    """Return the events of each region: their number, jets, and the lepton."""
    lepton = ak.zip(
        {
            name: ak.concatenate([events.Electron[name], events.Muon[name]], axis=1)
            for name in ("pt", "eta", "phi", "mass")
        },
        with_name="PtEtaPhiMLorentzVector",
        behavior=vector.behavior,
    )
    lepton = lepton[(lepton.pt > 30) & (abs(lepton.eta) < 2.1)]
    jets = varied(events.Jet, factor)
    jets = jets[(jets.pt > 30) & (abs(jets.eta) < 2.4)]
    n_tags = ak.sum(jets.btag > B_TAG, axis=1)
    basic = (ak.num(lepton) == 1) & (ak.num(jets) >= 4)
    chosen = {"4j1b": basic & (n_tags == 1), "4j2b": basic & (n_tags >= 2)}
    return {
        region: ak.zip({"number": events.event[c], "jets": jets[c], "lepton": lepton[c][:, 0]}, depth_limit=1)
        for region, c in chosen.items()
    }


def candidates(events: ak.Array) -> ak.Array:
    """Return all assignments, n_events * var * {w1, w2, b_had, b_lep, lepton}."""
    jets = events.jets[ak.argsort(events.jets.pt, ascending=False)][:, :MOST_JETS]
    which = ASSIGNMENTS[ak.num(jets)]
    quarks = {name: jets[which[..., i]] for i, name in enumerate(("w1", "w2", "b_had", "b_lep"))}
    return ak.zip({**quarks, "lepton": events.lepton}, depth_limit=2)


def features(c: ak.Array) -> list[ak.Array]:
    """Return the sixteen inputs of the network for each assignment: angles, masses, momenta and tags."""
    w, leptonic = c.w1 + c.w2, c.lepton + c.b_lep
    top = w + c.b_had
    quarks = (c.w1, c.w2, c.b_had, c.b_lep)
    return [
        c.lepton.delta_r(c.b_lep),
        c.w1.delta_r(c.w2),
        c.w1.delta_r(c.b_had),
        c.w2.delta_r(c.b_had),
        leptonic.mass,
        w.mass,
        top.mass,
        top.pt,
        *(q.pt for q in quarks),
        *(q.btag for q in quarks),
    ]


def assigner(**options: Any) -> dk.KFold:
    """Return both networks as one; ``options`` are those of a Model, such as ``servers``."""
    made = dk.Features(features)
    even, odd = (
        dk.Model("jet_assignment", version=v, features=made, classes=["right"], **options) for v in (1, 2)
    )
    return dk.KFold(lambda number: number % 2, trained_on={0: even, 1: odd})


class TtbarAnalysis(ProcessorABC):
    """Histograms of the t t̄ analysis.

    Parameters
    ----------
    score : callable
        From the candidates of each variation, and the numbers of their events, to the scores of each: what
        :func:`assigner` gives.
    """

    def __init__(self, score: Any) -> None:
        self.score = score

    def process(self, events: Any) -> dict[str, Any]:
        """One chunk."""
        process, jets = events.metadata["process"], events.Jet
        selected = {name: select(events, factor(jets)) for name, factor in VARIATIONS.items()}
        found = {name: candidates(regions["4j2b"]) for name, regions in selected.items()}
        numbers = {name: regions["4j2b"].number for name, regions in selected.items()}
        scores = self.score(dk.Variations(found), numbers)
        observables, quality = self.observables(), self.quality()
        for name, regions in selected.items():
            best = ak.argmax(scores[name].right, axis=1, keepdims=True)
            c = ak.flatten(found[name][best])
            mass = (c.w1 + c.w2 + c.b_had).mass
            values = {"4j1b": ak.sum(regions["4j1b"].jets.pt, axis=1), "4j2b": mass}
            for region, value in values.items():
                observables.fill(process=process, region=region, variation=name, observable=value)
            quality.fill(process=process, variation=name, score=ak.flatten(scores[name].right[best]))
            if name == "nominal":  # weights change no input: nothing is scored again
                for region, value in values.items():
                    shift = tag_weight(regions[region].jets)
                    for label, weight in (("btag_up", 1 + shift), ("btag_down", 1 - shift)):
                        observables.fill(
                            process=process, region=region, variation=label, observable=value, weight=weight
                        )
        return {"observable": observables, "score": quality, "events": {process: len(events)}}

    def postprocess(self, accumulator: Any) -> Any:
        """Nothing is left to do."""
        return accumulator

    @staticmethod
    def observables() -> hist.Hist:
        """Return an empty histogram: sum of the jets' pt in 4j1b, mass of the hadronic top in 4j2b."""
        return (
            hist.Hist.new.StrCat([], name="process", growth=True)
            .StrCat(REGIONS, name="region")
            .StrCat([], name="variation", growth=True)
            .Reg(25, 50, 550, name="observable", label="observable [GeV]")
            .Weight()
        )

    @staticmethod
    def quality() -> hist.Hist:
        """Return an empty histogram of the best score."""
        axes = hist.Hist.new.StrCat([], name="process", growth=True).StrCat([], name="variation", growth=True)
        return axes.Reg(25, 0, 1, name="score").Weight()


def tag_weight(jets: ak.Array) -> Any:
    """Return the relative uncertainty of the b tags, in steps of 1/1024, whose sums are exact in any order."""
    return np.round(1024 * 0.075 * ak.to_numpy(jets.pt[:, 0]) / 50) / 1024
