"""Generate boosted tops and QCD dijets with Pythia 8 and write them as PFNano-like ROOT files.

Nothing here is needed to use the shipped files in ``data/``. It wants
``pip install pythia8mc==8.317.2 fastjet==3.5.2.0 uproot awkward numpy``::

    python generate.py ttbar --events 3000 --seeds 9001 9002 --output data --stem ttbar

Each seed makes one file, and a file depends on nothing but its arguments: not on the number of
processes, not on the other seeds. Pythia's particles stand for particle-flow candidates (no detector,
no pile-up): momenta are the generated ones, tracks get impact parameters smeared by a simple resolution.
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

log = logging.getLogger("top_tagging.generate")

ENERGY_GEV = 13000.0
PT_HAT_MIN_GEV = 500.0
RADIUS = 0.8
JET_PT_MIN_GEV = 400.0
JET_ABS_ETA_MAX = 2.4
CANDIDATE_PT_MIN_GEV = 0.5  # below it CMS keeps no track parameters either
TRACKER_ABS_ETA_MAX = 3.0
NEUTRINOS = (12, 14, 16)
EVENTS_PER_BASKET = 1000

COMMON = [
    f"Beams:eCM = {ENERGY_GEV}",
    f"PhaseSpace:pTHatMin = {PT_HAT_MIN_GEV}",
    "ParticleDecays:limitTau0 = on",  # c tau above 10 mm is stable: K_S and Lambda reach the detector
    "ParticleDecays:tau0Max = 10.",
    "Random:setSeed = on",
    "Print:quiet = on",
]
PROCESSES = {
    "ttbar": ["Top:gg2ttbar = on", "Top:qqbar2ttbar = on", "24:onMode = off", "24:onIfAny = 1 2 3 4 5"],
    "qcd": ["HardQCD:all = on"],
}
RUNS = {"ttbar": 1, "qcd": 2}


def rounded(values: Any, bits: int) -> np.ndarray:
    """Return float32 with ``bits`` bits of mantissa, rounded to nearest, so that it compresses.

    Parameters
    ----------
    values : array_like, any shape
    bits : int
        Bits kept out of float32's 23.

    Returns
    -------
    numpy.ndarray, float32, same shape

    """
    drop = 23 - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    raw = (raw + (1 << (drop - 1))) >> drop << drop
    return raw.astype(np.uint32).view(np.float32)


def particle_flow_identity(pdg_id: np.ndarray, charge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the identity and the mass (GeV) that particle flow would assign.

    Electrons, muons and photons keep theirs, every other charged particle becomes a pion, every other
    neutral one a massless 130.
    """
    kind = np.abs(pdg_id)
    identity = np.where(charge != 0, 211 * charge, 130)
    keep = np.isin(kind, (11, 13, 22))
    identity = np.where(keep, pdg_id, identity).astype(np.int32)
    mass = np.select([kind == 11, kind == 13, charge != 0], [0.000511, 0.105658, 0.139570], 0.0)
    return identity, rounded(mass, 10)


def impact_parameters(
    vertex_mm: np.ndarray,
    pt: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    tracked: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return d0, dz and their errors in cm; -1 without a track, as PFNano has it.

    The resolution is a constant term plus multiple scattering, close in size to CMS's:
    15 um and 80 um GeV / (pt sqrt(sin theta)) transverse, 20 um and 90 um GeV / (pt sin^1.5 theta) along z.

    Parameters
    ----------
    vertex_mm : numpy.ndarray, float64, 3 * n
        Production vertices; the primary vertex is the origin.
    pt, eta, phi : numpy.ndarray, n
        GeV, 1, rad.
    tracked : numpy.ndarray, bool, n
    rng : numpy.random.Generator

    Returns
    -------
    dict of numpy.ndarray, float32, n
    """
    x, y, z = vertex_mm * 0.1
    sin_theta = 1.0 / np.cosh(eta)
    along = x * np.cos(phi) + y * np.sin(phi)
    true = {"d0": y * np.cos(phi) - x * np.sin(phi), "dz": z - along * np.sinh(eta)}
    error = {
        "d0": np.hypot(0.0015, 0.0080 / (pt * np.sqrt(sin_theta))),
        "dz": np.hypot(0.0020, 0.0090 / (pt * sin_theta**1.5)),
    }
    columns = {}
    for name in ("d0", "dz"):
        smeared = true[name] + error[name] * rng.standard_normal(len(pt))
        columns[name] = rounded(np.where(tracked, smeared, -1.0), 8)
        columns[name + "Err"] = rounded(np.where(tracked, error[name], -1.0), 6)
    return columns


def candidates(particles: ak.Array, charge_of: dict[int, int], rng: np.random.Generator) -> ak.Array:
    """Return the visible final particles as jagged PFNano candidates, in the order of Pythia's record.

    Momenta are rounded before anything is clustered, so a jet is the sum of what is written.
    """
    keep = (particles.status > 0) & (np.hypot(particles.p.px, particles.p.py) > CANDIDATE_PT_MIN_GEV)
    for neutrino in NEUTRINOS:
        keep = keep & (abs(particles.id) != neutrino)
    final = particles[keep]
    flat, counts = ak.flatten(final), ak.num(final)
    px, py, pz = (np.asarray(flat.p[name]) for name in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    eta, phi = np.arcsinh(pz / pt), np.arctan2(py, px)
    pdg_id = np.asarray(flat.id)
    kinds, which = np.unique(pdg_id, return_inverse=True)
    charge = np.array([charge_of[int(kind)] for kind in kinds], np.int32)[which]
    identity, mass = particle_flow_identity(pdg_id, charge)
    vertex = np.stack([np.asarray(ak.fill_none(flat.vProd[name], 0.0)) for name in ("px", "py", "pz")])
    tracked = (charge != 0) & (np.abs(eta) < TRACKER_ABS_ETA_MAX)
    columns = {
        "pt": rounded(pt, 10),
        "eta": rounded(eta, 10),
        "phi": rounded(phi, 11),
        "mass": mass,
        "charge": charge,
        "pdgId": identity,
        **impact_parameters(vertex, pt, eta, phi, tracked, rng),
        "puppiWeight": np.ones(len(pt), np.float32),
        "puppiWeightNoLep": np.ones(len(pt), np.float32),
        "trkQuality": np.where(tracked, 5, 0).astype(np.int32),
        "pvAssocQuality": np.full(len(pt), 7, np.int32),
    }
    return ak.unflatten(ak.zip(columns), counts)


def four_vectors(objects: ak.Array) -> ak.Array:
    """Return px, py, pz, E in GeV (float64) of objects with pt, eta, phi, mass."""
    pt, eta = ak.values_astype(objects.pt, np.float64), ak.values_astype(objects.eta, np.float64)
    px, py, pz = pt * np.cos(objects.phi), pt * np.sin(objects.phi), pt * np.sinh(eta)
    energy = np.sqrt(px**2 + py**2 + pz**2 + objects.mass**2)
    return ak.zip({"px": px, "py": py, "pz": pz, "E": energy}, with_name="Momentum4D")


def cluster(cands: ak.Array) -> tuple[ak.Array, ak.Array]:
    """Return the selected anti-kt jets, and the indices of their constituents, both by falling pt.

    Returns
    -------
    jets : ak.Array, n_events * var * {pt, eta, phi, mass}
    index : ak.Array, n_events * var * var * int
        Into the event's candidates.
    """
    import fastjet

    sequence = fastjet.ClusterSequence(
        four_vectors(cands), fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    )
    found = sequence.inclusive_jets(min_pt=JET_PT_MIN_GEV)
    index = sequence.constituent_index(min_pt=JET_PT_MIN_GEV)
    pt = np.hypot(found.px, found.py)
    jets = ak.zip(
        {
            "pt": pt,
            "eta": np.arcsinh(found.pz / pt),
            "phi": np.arctan2(found.py, found.px),
            "mass": np.sqrt(np.maximum(found.E**2 - pt**2 - found.pz**2, 0.0)),
        },
        depth_limit=2,
    )
    inside = abs(jets.eta) < JET_ABS_ETA_MAX
    jets, index = jets[inside], index[inside]
    order = ak.argsort(jets.pt, ascending=False)
    jets, index = jets[order], index[order]
    return jets, index[ak.argsort(constituents(cands, index).pt, ascending=False, axis=2)]


def constituents(cands: ak.Array, index: ak.Array) -> ak.Array:
    """Return ``cands`` grouped by jet: n_events * var * var * candidate."""
    return ak.unflatten(cands[ak.flatten(index, axis=2)], ak.flatten(ak.num(index, axis=2)), axis=1)


def soft_drop_mass(grouped: ak.Array) -> ak.Array:
    """Return the soft drop mass (z > 0.1, beta = 0) in GeV, n_events * var * float64."""
    import fastjet

    counts = ak.num(grouped, axis=1)
    flat = four_vectors(ak.flatten(grouped, axis=1))
    if len(flat) == 0:
        return ak.unflatten(np.zeros(0), counts)
    sequence = fastjet.ClusterSequence(flat, fastjet.JetDefinition(fastjet.cambridge_algorithm, 100.0))
    groomed = sequence.exclusive_jets_softdrop_grooming(njets=1, beta=0.0, symmetry_cut=0.1, R0=RADIUS)
    return ak.unflatten(np.asarray(ak.flatten(groomed.msoftdrop, axis=None)), counts)


def top_labels(particles: ak.Array, jets: ak.Array) -> ak.Array:
    """Return 1 for jets with a b and both quarks of one top within 0.8 of the axis, -1 for the others."""
    outgoing = abs(particles.status) == 23
    mother = particles.id[particles.mother1]
    matched = ak.zeros_like(jets.pt, dtype=bool)
    for sign in (1, -1):
        bottom = particles[outgoing & (mother == 6 * sign) & (abs(particles.id) != 24)]
        quarks = particles[outgoing & (mother == 24 * sign)]
        near = [
            ak.all(distance(jets, decay.p) < RADIUS, axis=2) & (ak.num(decay) > 0)
            for decay in (bottom, quarks)
        ]
        matched = matched | (near[0] & near[1])
    return ak.values_astype(ak.where(matched, 1, -1), np.int32)


def distance(jets: ak.Array, momenta: ak.Array) -> ak.Array:
    """Return delta R between all jets and momenta of an event, n_events * var * var * float64."""
    eta = np.arcsinh(momenta.pz / np.hypot(momenta.px, momenta.py))
    phi = np.arctan2(momenta.py, momenta.px)
    jet_eta, eta = ak.unzip(ak.cartesian([jets.eta, eta], nested=True))
    jet_phi, phi = ak.unzip(ak.cartesian([jets.phi, phi], nested=True))
    return np.hypot(jet_eta - eta, (jet_phi - phi + np.pi) % (2 * np.pi) - np.pi)


def only_used(cands: ak.Array, index: ak.Array) -> tuple[ak.Array, ak.Array]:
    """Drop candidates outside all jets; return the rest and, per event, their new flat indices."""
    flat = ak.flatten(index, axis=2)
    offsets = np.concatenate([[0], np.cumsum(ak.num(cands))])
    where = np.asarray(ak.flatten(flat + offsets[:-1]), np.int64)
    used = np.zeros(offsets[-1], bool)
    used[where] = True
    rank = np.concatenate([[0], np.cumsum(used)])
    kept = rank[offsets]
    new = rank[where] - np.repeat(kept[:-1], ak.num(flat))
    return cands[ak.unflatten(used, ak.num(cands))], ak.unflatten(new.astype(np.int32), ak.num(flat))


def columns(
    particles: ak.Array,
    charge_of: dict[int, int],
    process: str,
    seed: int,
    first: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the branches of a run of events, ready for uproot."""
    cands = candidates(particles, charge_of, rng)
    jets, index = cluster(cands)
    label = top_labels(particles, jets) if process == "ttbar" else ak.zeros_like(jets.pt, dtype=np.int32)
    groomed = soft_drop_mass(constituents(cands, index))
    size = ak.num(index, axis=2)
    cands, flat_index = only_used(cands, index)
    jet_index = ak.flatten(ak.broadcast_arrays(ak.local_index(jets.pt), index)[0], axis=2)
    counts = ak.num(jets)
    branch = {name: rounded(ak.flatten(jets[name]), 12) for name in ("pt", "eta", "phi", "mass")}
    branch["msoftdrop"] = rounded(ak.flatten(groomed), 12)
    branch["nConstituents"] = np.asarray(ak.flatten(size), np.int32)
    branch["genLabel"] = np.asarray(ak.flatten(label), np.int32)
    n = len(particles)
    return {
        "run": np.full(n, RUNS[process], np.uint32),
        "luminosityBlock": np.full(n, seed, np.uint32),
        "event": np.arange(first, first + n, dtype=np.uint64),
        "FatJet": ak.unflatten(ak.zip(branch), counts),
        "FatJetPFCands": ak.zip(
            {
                "pFCandsIdx": flat_index,
                "jetIdx": ak.values_astype(jet_index, np.int32),
            }
        ),
        "PFCands": cands,
    }


def charges(pythia: Any, particles: ak.Array) -> dict[int, int]:
    """Return the charge of every kind of particle that is present."""
    kinds = np.unique(np.asarray(ak.flatten(particles.id)))
    return {int(kind): round(pythia.particleData.charge(int(kind))) for kind in kinds}


def write_file(process: str, seed: int, n_events: int, path: Path) -> str:
    """Generate ``n_events`` events into ``path`` and return a line that says what is in it."""
    import pythia8mc
    import uproot

    start = time.perf_counter()
    pythia = pythia8mc.Pythia("", False)
    for line in [*COMMON, *PROCESSES[process], f"Random:seed = {seed}"]:
        pythia.readString(line)
    pythia.init()
    rng = np.random.default_rng(seed)
    labels: list[np.ndarray] = []
    done = 0
    with uproot.recreate(path, compression=uproot.LZMA(7)) as file:
        while done < n_events:
            particles = pythia.nextBatch(min(EVENTS_PER_BASKET, n_events - done)).prt
            branches = columns(particles, charges(pythia, particles), process, seed, done + 1, rng)
            if done == 0:
                file.mktree(
                    "Events",
                    {name: ak.Array(value).type.content for name, value in branches.items()},
                    counter_name=lambda counted: f"n{counted}",
                    field_name=lambda outer, inner: f"{outer}_{inner}" if outer else inner,
                )
            file["Events"].extend(branches)
            labels.append(np.asarray(ak.flatten(branches["FatJet"].genLabel)))
            done += len(particles)
    label = np.concatenate(labels)
    found = ", ".join(f"{np.sum(label == value)} x {value}" for value in np.unique(label))
    return (
        f"{path}: seed {seed}, {done} events, {len(label)} jets (label {found}), "
        f"{path.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - start:.0f} s"
    )


def main() -> None:
    """Read the command line and write one file per seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("process", choices=sorted(PROCESSES))
    parser.add_argument("--events", type=int, required=True, help="events per file")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one file per seed")
    parser.add_argument("--output", type=Path, required=True, help="directory, made if missing")
    parser.add_argument("--stem", help="files are STEM_1.root, ... (default: PROCESS_SEED.root)")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    names = [f"{args.stem}_{i}" if args.stem else f"{args.process}_{s}" for i, s in enumerate(args.seeds, 1)]
    with ProcessPoolExecutor(args.processes) as pool:
        futures = [
            pool.submit(write_file, args.process, seed, args.events, args.output / f"{name}.root")
            for seed, name in zip(args.seeds, names, strict=True)
        ]
        for future in futures:
            log.info("%s", future.result())


if __name__ == "__main__":
    main()
