"""Makes src/cfx/resources/properties/{band_gap,dielectric}.npz, the bundled models of band gap and dielectric constant.

    python tools/make_property_models.py --train T.csv.gz --validation V.csv.gz --dielectric D.csv.gz
    python tools/make_property_models.py --check --validation V.csv.gz

T and V have the columns `cif` and `band_gap` (MP-20 has); D is the table of Petousis et al. as matminer gives it, with
`e_total`, `band_gap` and `meta`. --features-cache keeps CHGNet's features in a directory. Figures are printed as JSON.
--check makes nothing, and prints the figures of the models as they are; of the validation set alone unless it is given
the other files too.

All crystals of one formula are in one of five folds, the same fold in both data sets. Member k of an ensemble has not
seen fold k. So for each crystal, of both sets, a member of each ensemble has never seen its formula: the figures out of
fold. The networks of the dielectric constant begin as those of the gap. Lengths and rates of training were chosen on
folds of the training data; the validation set is for the final figure alone.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import json
import sys
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cfx.predictors.bundled import LAYERS, WIDEST, Head, Inputs, load_head, raw_inputs, summary
from cfx.predictors.chgnet import CrystalFeatures, FeatureExtractor

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources" / "properties"
FOLDS, HIDDEN, ATTENTION = 5, 128, 4
AXES, LANDMARKS, FAMILIAR = 24, 4000, 0.99
DROPOUT, DECAY = 0.1, 0.01


@dataclass(frozen=True)
class Data:
    """n crystals with known answers: features, reduced formulas [n], band gaps (eV) [n], dielectric constants [n]."""

    features: list[CrystalFeatures]
    formula: np.ndarray
    gap: np.ndarray
    dielectric: np.ndarray

    @property
    def fold(self) -> np.ndarray:
        """The fold of each crystal, by its formula."""
        return np.array([zlib.crc32(formula.encode()) % FOLDS for formula in self.formula])


@dataclass(frozen=True)
class Schedule:
    """Epochs, batch size, learning rate, steps of its warm-up, weight of the widths in the loss."""

    epochs: int
    batch: int
    rate: float
    warmup: int
    width: float


GAP = Schedule(epochs=40, batch=128, rate=2e-3, warmup=200, width=0.3)
DIELECTRIC = Schedule(epochs=40, batch=64, rate=1e-3, warmup=50, width=0.1)


# Data


def read(path: Path, cache: Path | None) -> Data:
    """A table, with features of its crystals; those without are counted on stderr and left out."""
    from pymatgen.core import Structure

    csv.field_size_limit(sys.maxsize)
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(line for i, line in enumerate(file) if i or not line.startswith("#")))
    structures, dielectric = [], []
    for row in rows:
        if "meta" in row:
            structures.append(Structure.from_str(ast.literal_eval(row["meta"])["poscar"], fmt="poscar"))
            dielectric.append(np.trace(np.array(ast.literal_eval(row["e_total"]))) / 3)
        else:
            structures.append(Structure.from_str(row["cif"], fmt="cif"))
            dielectric.append(np.nan)
    found = extract(structures, cache and cache / f"{path.name.partition('.')[0]}.npz")
    kept = [i for i, one in enumerate(found) if not isinstance(one, str)]
    for i, one in enumerate(found):
        if isinstance(one, str):
            print(f"{path.name}, crystal {i}: {one}", file=sys.stderr)
    formula = np.array([structure.composition.reduced_formula for structure in structures])
    gap = np.array([float(row["band_gap"]) for row in rows])
    return Data([found[i] for i in kept], formula[kept], gap[kept], np.array(dielectric)[kept])


def extract(structures: list, cache: Path | None) -> list[CrystalFeatures | str]:
    """Features of crystals or reasons, from a file that is written where it is missing."""
    if cache is None or not cache.exists():
        torch.set_num_threads(1)
        found = FeatureExtractor().evaluate(structures)
        if cache is None:
            return found
        good = [one for one in found if not isinstance(one, str)]
        np.savez(
            cache,
            atoms=np.concatenate([one.atoms for one in good]),
            numbers=np.concatenate([one.numbers for one in good]),
            sizes=[0 if isinstance(one, str) else len(one.numbers) for one in found],
            scalars=[[one.volume, one.energy] for one in good],
            reasons=[one if isinstance(one, str) else "" for one in found],
        )
    stored = dict(np.load(cache, allow_pickle=False))
    if len(stored["sizes"]) != len(structures):
        raise SystemExit(f"{cache} holds features of {len(stored['sizes'])} crystals, not {len(structures)}: remove it")
    cuts, scalars = np.cumsum(stored["sizes"])[:-1], iter(stored["scalars"].tolist())
    parts = zip(np.split(stored["atoms"], cuts), np.split(stored["numbers"], cuts), stored["reasons"], strict=True)
    return [
        str(reason) if reason else CrystalFeatures(atoms, numbers, *next(scalars)) for atoms, numbers, reason in parts
    ]


def element_table() -> np.ndarray:
    """Descriptors of the elements that CHGNet has, [119, 11]: what chemists look at; zero where there is none."""
    from pymatgen.core import Element

    def number(value: object) -> float:
        return float(value) if value is not None and np.isfinite(float(value)) else 0.0

    table = np.zeros((119, 11))
    for z in range(1, 95):
        element = Element.from_Z(z)
        core = max((gas for gas in (2, 10, 18, 36, 54, 86) if gas < z), default=0)
        inner = {shell[:2] for shell in Element.from_Z(core).full_electronic_structure} if core else set()
        valence = dict.fromkeys("spdf", 0)
        for n, letter, electrons in element.full_electronic_structure:
            valence[letter] += electrons if (n, letter) not in inner else 0
        sizes = (element.atomic_radius, element.ionization_energy, element.electron_affinity)
        table[z] = [
            number(element.X), element.group, element.row, *map(number, sizes), *valence.values(),
            number(element.mendeleev_no),
        ]  # fmt: skip
    return table.astype(np.float32)


# Networks


class Network(torch.nn.Module):
    """What `heads.Head` computes, for training; the layers have the same names."""

    def __init__(self, atom_inputs: int, crystal_inputs: int):
        super().__init__()
        shapes = {
            "atom1": (atom_inputs, HIDDEN),
            "atom2": (HIDDEN, HIDDEN),
            "attention": (HIDDEN, ATTENTION),
            "value": (HIDDEN, HIDDEN),
            "crystal1": (2 * HIDDEN + crystal_inputs, HIDDEN),
            "crystal2": (HIDDEN, HIDDEN // 2),
            "output": (HIDDEN // 2, 2),
        }
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(*shape) for name, shape in shapes.items()})
        self.drop = torch.nn.Dropout(DROPOUT)

    def forward(self, atoms, crystals, owner):
        """Targets and logarithms of widths, [n] each; `owner` is the crystal of each atom."""
        layers, count = self.layers, len(crystals)

        def total(x):
            return torch.zeros(count, *x.shape[1:]).index_add_(0, owner, x)

        atoms = functional.silu(layers["atom2"](self.drop(functional.silu(layers["atom1"](atoms)))))
        weights = layers["attention"](atoms).clamp(-WIDEST, WIDEST).exp()
        values = layers["value"](atoms).view(len(atoms), ATTENTION, -1) * weights[:, :, None]
        attended = (total(values) / total(weights)[:, :, None]).flatten(1)
        mean = total(atoms) / total(torch.ones(len(atoms), 1))
        crystals = self.drop(torch.cat([attended, mean, crystals], 1))
        hidden = self.drop(functional.silu(layers["crystal1"](crystals)))
        return layers["output"](functional.silu(layers["crystal2"](hidden))).T


def train(
    network: Network, inputs: Inputs, target: np.ndarray, rows: np.ndarray, schedule: Schedule, seed: int, clip: bool
):
    """Trains on some crystals: absolute errors, and a width for each. With `clip`, below zero is as good as zero."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    atoms, crystals, wanted = (torch.from_numpy(np.asarray(part, np.float32)) for part in (*inputs[:2], target))
    starts = np.cumsum(inputs.sizes) - inputs.sizes
    steps = schedule.epochs * -(-len(rows) // schedule.batch)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=DECAY)
    network.train()
    for step in range(steps):
        place = step * schedule.batch % (schedule.batch * (steps // schedule.epochs))
        if place == 0:
            order = rng.permutation(rows)
        chosen = order[place : place + schedule.batch]
        sizes = inputs.sizes[chosen]
        owner = np.repeat(np.arange(len(chosen)), sizes)
        picked = np.repeat(starts[chosen] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        found, log_width = network(atoms[picked], crystals[chosen], torch.from_numpy(owner))
        truth, log_width = wanted[chosen], log_width.clamp(-6, 3)
        error = (found - truth).abs()
        if clip:
            error = torch.where(truth > 0, error, found.relu())
        loss = error.mean() + schedule.width * (error.detach() * (-log_width).exp() + log_width).mean()
        rate = schedule.rate * min(1, (step + 1) / schedule.warmup) * (0.5 + 0.5 * np.cos(np.pi * step / steps) + 1e-3)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network


def stacked(networks: list[Network]) -> dict[str, np.ndarray]:
    """Weights of an ensemble as `heads` has them, in half precision."""
    arrays = {}
    for name in LAYERS:
        layers = [network.layers[name] for network in networks]
        arrays[f"{name}/w"] = np.stack([layer.weight.detach().numpy().T for layer in layers]).astype(np.float16)
        arrays[f"{name}/b"] = np.stack([layer.bias.detach().numpy() for layer in layers]).astype(np.float16)
    return arrays


def start_from(head: Head, member: int, level: float, seed: int) -> Network:
    """A member of another ensemble, with a fresh last layer whose targets are about `level`."""
    network = Network(head.arrays["atom1/w"].shape[1], len(head.arrays["crystal_mean"]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name in LAYERS:
            layer = network.layers[name]
            layer.weight.copy_(torch.from_numpy(head.arrays[f"{name}/w"][member].astype(np.float32).T))
            layer.bias.copy_(torch.from_numpy(head.arrays[f"{name}/b"][member].astype(np.float32)))
        torch.nn.init.normal_(network.layers["output"].weight, std=0.02)
        network.layers["output"].bias.copy_(torch.tensor([level, -2.0]))
    return network


# What is familiar, and how wide


def familiarity(inputs: Inputs, data: Data) -> dict[str, np.ndarray]:
    """Principal axes of crystals, some of the crystals, the distance within which one of another formula nearly always
    is; how many crystals have each element."""
    places = summary(inputs).astype(float)
    values, vectors = np.linalg.eigh(np.cov(places.T))
    axes = (vectors[:, ::-1][:, :AXES] / np.sqrt(values[::-1][:AXES])).astype(np.float32)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(places))[:LANDMARKS])
    others = np.sort(rng.permutation(len(places))[:LANDMARKS])
    where = (places @ axes).astype(np.float32)
    nearest = []
    for i in others:
        distance = np.linalg.norm(where[chosen] - where[i], axis=1)
        nearest.append(distance[data.formula[chosen] != data.formula[i]].min())
    seen = np.zeros(119, np.int32)
    for one in data.features:
        seen[np.unique(one.numbers)] += 1
    landmarks = where[chosen].astype(np.float16)
    return {"axes": axes, "landmarks": landmarks, "radius": np.quantile(nearest, FAMILIAR), "seen": seen}


def out_of_fold(head: Head, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Target and standard deviation, from the member that never saw the formula."""
    mean, width = np.concatenate(
        [np.stack(head.members(head.inputs(data.features[i : i + 2000]))) for i in range(0, len(data.fold), 2000)], 2
    )
    rows = data.fold, np.arange(len(data.fold))
    return mean[rows], float(head.arrays["spread"]) * np.sqrt(2) * width[rows]


def calibrated(head: Head, data: Data, truth: np.ndarray) -> Head:
    """The head with that spread for which 68.3 % of errors out of fold are within one standard deviation.

    Metals that are predicted to be metals, with errors of zero, do not count.
    """
    target, std = out_of_fold(head, data)
    counts = target > 0.1 if head.transform == "identity" else np.full(len(target), True)
    spread = np.quantile((np.abs(target - truth) / std)[counts], 0.683)
    return replace(head, arrays=head.arrays | {"spread": np.float32(spread)})


def far_from_other_formulas(head: Head, data: Data) -> np.ndarray:
    """Which crystals would be outside if those of their own formula were not among the training data, bool [n]."""
    places = summary(head.inputs(data.features)).astype(float) @ head.arrays["axes"]
    nearest = [
        np.linalg.norm(places[data.formula != formula] - place, axis=1).min()
        for place, formula in zip(places, data.formula, strict=True)
    ]
    return np.array(nearest) > head.arrays["radius"]


# The two models


def make_band_gap(data: Data) -> Head:
    """Networks from random weights, one without each fold."""
    elements = element_table()
    raw = raw_inputs(data.features, elements)
    bounds = np.array([0, data.gap.max()])
    arrays: dict = {"bounds": bounds, "elements": elements, "transform": np.array("identity"), "spread": np.float32(1)}
    for name, values in (("atom", raw.atoms), ("crystal", raw.crystals)):
        arrays |= {f"{name}_mean": values.mean(0, dtype=float), f"{name}_scale": values.std(0, dtype=float) + 1e-6}
    arrays = {name: value.astype(np.float32) if value.dtype == float else value for name, value in arrays.items()}
    inputs = Head(arrays, "identity").inputs(data.features)
    networks = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        network = Network(inputs.atoms.shape[1], inputs.crystals.shape[1])
        networks.append(train(network, inputs, data.gap, np.flatnonzero(data.fold != fold), GAP, fold, True))
        print(f"band gap: {fold + 1} of {FOLDS} networks", file=sys.stderr, flush=True)
    return calibrated(Head(arrays | stacked(networks) | familiarity(inputs, data), "identity"), data, data.gap)


def make_dielectric(gap: Head, data: Data, seed: int = 0, fold: np.ndarray | None = None) -> Head:
    """Networks from those of the band gap, one without each fold (by formula unless given)."""
    fold, truth = data.fold if fold is None else fold, np.log10(data.dielectric)
    inputs = gap.inputs(data.features)
    networks = []
    for k in range(FOLDS):
        rows = np.flatnonzero(fold != k)
        network = start_from(gap, k, truth[rows].mean(), seed + k)
        networks.append(train(network, inputs, truth, rows, DIELECTRIC, seed + k, False))
        print(f"dielectric constant: {k + 1} of {FOLDS} networks", file=sys.stderr, flush=True)
    arrays = gap.arrays | stacked(networks) | familiarity(inputs, data)
    arrays |= {"transform": np.array("log10"), "spread": np.float32(1), "bounds": np.array([truth.min(), truth.max()])}
    return calibrated(Head(arrays, "log10"), data, truth)


# Figures


def errors(error: np.ndarray) -> dict:
    """Mean absolute error, with a 95 % interval (bootstrap over crystals)."""
    error, rng = np.abs(error), np.random.default_rng(0)
    means = [error[rng.integers(len(error), size=len(error))].mean() for _ in range(2000)]
    return {
        "mae": tidy(error.mean()),
        "interval": [tidy(edge) for edge in np.quantile(means, [0.025, 0.975])],
        "n": len(error),
    }


def tidy(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def trust(error: np.ndarray, std: np.ndarray, outside: np.ndarray) -> dict:
    """How the standard deviation and the flag relate to the errors."""
    from scipy.stats import spearmanr

    error = np.abs(error)
    quarters = np.array_split(np.argsort(std), 4)
    return {
        "within_1_std": tidy((error < std).mean()),
        "within_2_std": tidy((error < 2 * std).mean()),
        "spearman_error_std": tidy(spearmanr(error, std).statistic),
        "mae_by_quarter_of_std": [tidy(error[rows].mean()) for rows in quarters],
        "outside": {"share": tidy(outside.mean())} | (errors(error[outside]) if outside.sum() > 4 else {}),
        "inside": errors(error[~outside]),
    }


def gap_figures(gap: Head, data: Data) -> dict:
    """Of the ensemble, on crystals none of whose members was trained with."""
    value, std, outside = gap.predict(data.features)
    error, metal, seems = value - data.gap, data.gap == 0, value < 0.05
    open_ = ~metal | ~seems
    return errors(error) | {
        "metals": errors(error[metal]),
        "insulators": errors(error[~metal]),
        "metal_accuracy": tidy((metal == seems).mean()),
        "trust_where_a_gap": trust(error[open_], std[open_], outside[open_]),
    }


def dielectric_figures(gap: Head, head: Head, data: Data) -> dict:
    """Out of fold: of the logarithm, and of the figure of merit gap * dielectric constant."""
    from scipy.stats import spearmanr

    truth, (target, std) = np.log10(data.dielectric), out_of_fold(head, data)
    outside = far_from_other_formulas(head, data)
    own, known = out_of_fold(gap, data)[0], data.gap
    merit, real = own * 10**target, known * data.dielectric
    best = set(np.argsort(-real)[: len(real) // 10].tolist())
    top = np.argsort(-merit)[: len(real) // 10].tolist()
    return {
        "log10": errors(target - truth) | {"trust": trust(target - truth, std, outside)},
        "log10_by_fold": [tidy(np.abs(target - truth)[data.fold == k].mean()) for k in range(FOLDS)],
        "relative_median": tidy(np.median(np.abs(10 ** (target - truth) - 1))),
        "spearman": tidy(spearmanr(target, truth).statistic),
        "baseline_log10_mae": tidy(np.abs(truth - np.median(truth)).mean()),
        "gap": errors(own - known),
        "figure_of_merit": errors(merit - real)
        | {
            "mean": tidy(real.mean()),
            "median_relative": tidy(np.median(np.abs(merit - real) / real)),
            "spearman": tidy(spearmanr(merit, real).statistic),
            "best_tenth_in_predicted_best_tenth": tidy(len(best.intersection(top)) / len(best)),
            "mean_of_predicted_best_tenth": tidy(real[top].mean()),
            "mean_of_best_tenth": tidy(real[list(best)].mean()),
        },
    }


def repeats(gap: Head, data: Data, count: int) -> dict:
    """The error of the logarithm with other seeds; with folds that tear formulas apart."""
    truth, rng = np.log10(data.dielectric), np.random.default_rng(0)
    again, torn = [], None
    for i in range(1, count + 1):
        again.append(out_of_fold(make_dielectric(gap, data, 100 * i), data)[0] - truth)
    if count:
        fold = rng.permutation(len(truth)) % FOLDS
        head = make_dielectric(gap, data, 0, fold)
        means = head.members(head.inputs(data.features))[0]
        torn = tidy(np.abs(means[fold, np.arange(len(truth))] - truth).mean())
    maes = [np.abs(error).mean() for error in again]
    return {
        "other_seeds": [tidy(mae) for mae in maes],
        "their_mean": tidy(np.abs(np.mean(again, 0)).mean()) if again else None,
        "plain_folds": torn,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--dielectric", type=Path)
    parser.add_argument("--features-cache", type=Path)
    parser.add_argument("--repeats", type=int, default=2, help="of the cross-validation of the dielectric constant")
    parser.add_argument("--check", action="store_true", help="make nothing, measure what is there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not options.check:
        if not (options.train and options.dielectric):
            parser.error("--train and --dielectric, or --check")
        OUTPUT.mkdir(exist_ok=True)
        gap = make_band_gap(read(options.train, options.features_cache))
        np.savez_compressed(OUTPUT / "band_gap.npz", **gap.arrays)
        dielectric = make_dielectric(gap, read(options.dielectric, options.features_cache))
        np.savez_compressed(OUTPUT / "dielectric.npz", **dielectric.arrays)
    print(json.dumps(figures(options), indent=1))


def figures(options: argparse.Namespace) -> dict:
    """Of the models as they are in their files."""
    gap, dielectric = (load_head(OUTPUT / f"{name}.npz") for name in ("band_gap", "dielectric"))
    found: dict = {"band_gap": {"validation": gap_figures(gap, read(options.validation, options.features_cache))}}
    if options.train:
        data = read(options.train, options.features_cache)
        found["band_gap"]["out_of_fold"] = errors(out_of_fold(gap, data)[0] - data.gap)
        validation = read(options.validation, options.features_cache)
        error = gap.predict(validation.features).value - validation.gap
        found["band_gap"]["validation_new_formulas"] = errors(error[~np.isin(validation.formula, data.formula)])
    if options.dielectric:
        data = read(options.dielectric, options.features_cache)
        found["dielectric"] = dielectric_figures(gap, dielectric, data)
        if not options.check:
            found["dielectric"]["repeated"] = repeats(gap, data, options.repeats)
    return found


if __name__ == "__main__":
    main()
