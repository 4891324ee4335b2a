"""Generate t t̄ → lepton + jets and W + jets with Pythia 8, as small NanoAOD-like ROOT files.

Nothing here is needed to use the shipped files in ``data/``. It wants
``pip install pythia8mc==8.317.2 fastjet==3.5.2.0 uproot awkward numpy``::

    python generate.py ttbar --events 4000 --seeds 11 12 --output data
    python generate.py wjets --events 2000 --seeds 21 --output data

Each seed makes one file, and a file depends on nothing but its arguments. There is no detector: anti-kt jets of
visible particles get the energy resolution of a calorimeter, and b tags are drawn by the flavour of the jet.
"""

from __future__ import annotations

import argparse
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

log = logging.getLogger("analysis.generate")

RADIUS = 0.4
JET_PT_MIN_GEV = 20.0
LEPTON_PT_MIN_GEV = 20.0
ABS_ETA_MAX = 2.5
FEWEST_JETS = 4
BATCH = 1000

COMMON = [
    "Beams:eCM = 13000.",
    "PartonLevel:MPI = off",  # four times faster; nothing here looks at soft particles
    "Random:setSeed = on",
    "Print:quiet = on",
]
TOP = ["Top:gg2ttbar = on", "Top:qqbar2ttbar = on", "24:onMode = off"]
PROCESSES = {
    "ttbar": TOP,
    "wjets": [
        "WeakBosonAndParton:qqbar2Wg = on",
        "WeakBosonAndParton:qg2Wq = on",
        "PhaseSpace:pTHatMin = 80.",
        "24:onMode = off",
        "24:onIfAny = 11 13",
    ],
}
# Which W goes to a lepton alternates with the seed, so that no event is thrown away.
LEPTON_SIGN = (
    ["24:onPosIfAny = 11 13", "24:onNegIfAny = 1 2 3 4 5"],
    ["24:onNegIfAny = 11 13", "24:onPosIfAny = 1 2 3 4 5"],
)
# Beta distributions of the b tag for light, c and b jets.
BTAG = {0: (0.6, 6.0), 4: (1.3, 2.5), 5: (5.0, 1.3)}


def rounded(values: Any, bits: int) -> np.ndarray:
    """Return float32 with ``bits`` bits of mantissa, rounded to nearest, so that it compresses."""
    drop = 23 - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    raw = (raw + (1 << (drop - 1))) >> drop << drop
    return raw.astype(np.uint32).view(np.float32)


def polar(momenta: ak.Array) -> ak.Array:
    """Return pt, eta, phi, mass of four-momenta, GeV and rad, same nesting."""
    pt = np.hypot(momenta.px, momenta.py)
    square = momenta.e**2 - pt**2 - momenta.pz**2
    return ak.zip(
        {
            "pt": pt,
            "eta": np.arcsinh(momenta.pz / pt),
            "phi": np.arctan2(momenta.py, momenta.px),
            "mass": np.sqrt(np.maximum(square, 0.0)),
        }
    )


def nearest(ones: ak.Array, others: ak.Array, within: float) -> ak.Array:
    """Return whether each of ``ones`` has one of ``others`` within a distance in eta and phi."""
    eta, other_eta = ak.unzip(ak.cartesian([ones.eta, others.eta], nested=True))
    phi, other_phi = ak.unzip(ak.cartesian([ones.phi, others.phi], nested=True))
    distance = np.hypot(eta - other_eta, (phi - other_phi + np.pi) % (2 * np.pi) - np.pi)
    return ak.any(distance < within, axis=2)


def jets_of(particles: ak.Array) -> ak.Array:
    """Return anti-kt jets of the visible particles, without those of the hard leptons."""
    import fastjet

    kind = abs(particles.id)
    hard = hard_leptons(particles)
    visible = (particles.status > 0) & (kind != 12) & (kind != 14) & (kind != 16) & ~hard
    p = particles[visible].p
    inputs = ak.zip({"px": p.px, "py": p.py, "pz": p.pz, "E": p.e}, with_name="Momentum4D")
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    found = fastjet.ClusterSequence(inputs, definition).inclusive_jets(min_pt=JET_PT_MIN_GEV)
    return polar(ak.zip({"px": found.px, "py": found.py, "pz": found.pz, "e": found.E}))


def hard_leptons(particles: ak.Array) -> ak.Array:
    """Return which particles are final electrons and muons of a W, by their momentum and mother chain."""
    kind = abs(particles.id)
    lepton = (particles.status > 0) & ((kind == 11) | (kind == 13))
    mother = particles.mother1
    # Radiation copies a lepton: follow the copies up, a few generations at most.
    for _ in range(6):
        same = lepton & (particles.id[mother] == particles.id)
        mother = ak.where(same, particles.mother1[mother], mother)
    return lepton & (abs(particles.id[mother]) == 24)


def flavour(particles: ak.Array, jets: ak.Array) -> ak.Array:
    """Return 5 for jets near a b hadron, else 4 near a c hadron, else 0."""
    kind = abs(particles.id)
    heavy = {q: (kind // 100 % 10 == q) | (kind // 1000 % 10 == q) for q in (4, 5)}
    hadron = (kind > 100) & (np.hypot(particles.p.px, particles.p.py) > 5.0)
    near = {q: nearest(jets, polar(particles[heavy[q] & hadron].p), 0.3) for q in (4, 5)}
    return ak.values_astype(ak.where(near[5], 5, ak.where(near[4], 4, 0)), np.int32)


def assignment(particles: ak.Array, jets: ak.Array) -> ak.Array:
    """Return where a jet comes from: 24 the W, 6 and -6 the b of the hadronic and leptonic top, 0 none of these."""
    outgoing = abs(particles.status) == 23
    parent = particles.id[particles.mother1]
    kind = abs(particles.id)
    quarks = particles[outgoing & (abs(parent) == 24) & (kind < 6)]
    sign = np.sign(
        ak.fill_none(ak.firsts(particles.id[quarks.mother1]), 0)
    )  # of the hadronic W, as its top's
    bottom = outgoing & (abs(parent) == 6) & (kind != 24)
    hadronic = particles[bottom & (np.sign(parent) == sign)]
    leptonic = particles[bottom & (np.sign(parent) == -sign)]
    label = ak.zeros_like(jets.pt, dtype=np.int32)
    for code, partons in ((24, quarks), (6, hadronic), (-6, leptonic)):
        label = ak.where((label == 0) & nearest(jets, polar(partons.p), RADIUS), code, label)
    return ak.values_astype(label, np.int32)


def smeared(jets: ak.Array, rng: np.random.Generator) -> ak.Array:
    """Return the jets with a resolution of 80 % / sqrt(pt) and a constant of 5 %, by falling pt."""
    flat, counts = ak.flatten(jets), ak.num(jets)
    pt = np.asarray(flat.pt)
    factor = np.maximum(1 + np.hypot(0.8 / np.sqrt(pt), 0.05) * rng.standard_normal(len(pt)), 0.1)
    tag = np.empty(len(pt))
    for code, (a, b) in BTAG.items():
        which = np.asarray(flat.hadronFlavour) == code
        tag[which] = rng.beta(a, b, which.sum())
    columns = {
        "pt": rounded(pt * factor, 10),
        "eta": rounded(flat.eta, 10),
        "phi": rounded(flat.phi, 10),
        "mass": rounded(flat.mass * factor, 10),
        "btag": rounded(tag, 8),
        "hadronFlavour": np.asarray(flat.hadronFlavour, np.int32),
        "genAssignment": np.asarray(flat.genAssignment, np.int32),
    }
    made = ak.unflatten(ak.zip(columns), counts)
    made = made[(made.pt > JET_PT_MIN_GEV) & (abs(made.eta) < ABS_ETA_MAX)]
    return made[ak.argsort(made.pt, ascending=False)]


def columns(particles: ak.Array, process: str, seed: int, first: int, rng: np.random.Generator) -> ak.Array:
    """Return the branches of those of some events that an analysis of one lepton and four jets may want."""
    jets = jets_of(particles)
    jets["hadronFlavour"] = flavour(particles, jets)
    jets["genAssignment"] = (
        assignment(particles, jets) if process == "ttbar" else ak.zeros_like(jets.pt, dtype=np.int32)
    )
    jets = smeared(jets, rng)
    leptons = particles[hard_leptons(particles)]
    p4 = polar(leptons.p)
    lepton = ak.zip(
        {
            **{name: ak.values_astype(p4[name], np.float32) for name in p4.fields},
            "charge": ak.values_astype(-np.sign(leptons.id), np.int32),
            "kind": abs(leptons.id),
        }
    )
    lepton = lepton[(lepton.pt > LEPTON_PT_MIN_GEV) & (abs(lepton.eta) < ABS_ETA_MAX)]
    neutrinos = particles[(particles.status > 0) & (abs(particles.id) // 2 * 2 == abs(particles.id))]
    neutrinos = neutrinos[(abs(neutrinos.id) >= 12) & (abs(neutrinos.id) <= 16)]
    px, py = ak.sum(neutrinos.p.px, axis=1), ak.sum(neutrinos.p.py, axis=1)
    keep = (ak.num(lepton) == 1) & (ak.num(jets) >= FEWEST_JETS)
    n = len(particles)

    def chosen(kind: int) -> ak.Array:
        """Return leptons of one kind, rounded."""
        some = lepton[keep][lepton[keep].kind == kind]
        flat = ak.flatten(some)
        fields = {name: rounded(flat[name], 10) for name in ("pt", "eta", "phi", "mass")}
        return ak.unflatten(ak.zip({**fields, "charge": flat.charge}), ak.num(some))

    return {
        "run": np.full(n, list(PROCESSES).index(process) + 1, np.uint32)[keep],
        "luminosityBlock": np.full(n, seed, np.uint32)[keep],
        "event": np.arange(first, first + n, dtype=np.uint64)[keep],
        "MET_pt": rounded(np.hypot(px, py)[keep], 8),
        "MET_phi": rounded(np.arctan2(py, px)[keep], 8),
        "Electron": chosen(11),
        "Muon": chosen(13),
        "Jet": jets[keep],
    }


def write_file(process: str, seed: int, n_events: int, path: Path) -> str:
    """Write ``n_events`` selected events, and return a line that says what is in it."""
    import pythia8mc
    import uproot

    start = time.perf_counter()
    pythia = pythia8mc.Pythia("", False)
    decays = LEPTON_SIGN[seed % 2] if process == "ttbar" else []
    for line in [*COMMON, *PROCESSES[process], *decays, f"Random:seed = {seed}"]:
        pythia.readString(line)
    pythia.init()
    rng = np.random.default_rng(seed)
    tried, parts = 0, []
    while sum(len(part["event"]) for part in parts) < n_events:
        parts.append(columns(pythia.nextBatch(BATCH).prt, process, seed, tried + 1, rng))
        tried += BATCH
    whole = {
        name: (ak if isinstance(parts[0][name], ak.Array) else np).concatenate([p[name] for p in parts])[
            :n_events
        ]
        for name in parts[0]
    }
    with uproot.recreate(path, compression=uproot.LZMA(7)) as file:
        file.mktree(
            "Events",
            {name: ak.Array(value).type.content for name, value in whole.items()},
            counter_name=lambda counted: f"n{counted}",
            field_name=lambda outer, inner: f"{outer}_{inner}" if outer else inner,
        )
        file["Events"].extend(whole)
    label = np.asarray(ak.flatten(whole["Jet"].genAssignment))
    found = ", ".join(f"{np.sum(label == value)} x {value}" for value in np.unique(label))
    return (
        f"{path}: seed {seed}, {n_events} of about {tried} events, {len(label)} jets (from {found}), "
        f"{path.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - start:.0f} s"
    )


def main() -> None:
    """Read the command line and write one file per seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("process", choices=sorted(PROCESSES))
    parser.add_argument("--events", type=int, required=True, help="selected events in a file")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one file per seed")
    parser.add_argument("--output", type=Path, required=True, help="directory, made if missing")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes) as pool:
        futures = [
            pool.submit(
                write_file, args.process, seed, args.events, args.output / f"{args.process}_{seed}.root"
            )
            for seed in args.seeds
        ]
        for future in futures:
            log.info("%s", future.result())


if __name__ == "__main__":
    main()
