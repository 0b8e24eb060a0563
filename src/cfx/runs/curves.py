"""The metrics of a run as curves: what there is to draw, not how."""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfx.errors import DataError
from cfx.io.files import parse_json

NATS = "nats per crystal"

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Blue, vermilion, green and purple of Okabe and Ito, which colour-blind people can tell apart."""

KINDS = ("train", "validation", "rl", "dpo", "selftrain")
"""What a line of metrics holds at least one of."""

NAMES = {"wyckoff": "letters", "species": "species", "coords": "coordinates", "lattice": "lattice"}
"""The parts of a loss, as a person reads them."""


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Panel:
    """Series with axes of their own.

    Attributes:
        title: what is shown.
        unit: of y, "" for none.
        series: at least one.
        wide: whether it gets a row for itself.
        log: whether y is logarithmic.
        best: the label and the point (x, y) to mark.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    wide: bool = False
    log: bool = False
    best: tuple[str, float, float] | None = None


@dataclass(frozen=True)
class Curves:
    """Everything to draw of a run.

    Attributes:
        name: of the run.
        x_label: of all panels.
        panels: the most important first.
        headline: one line that says where the run stands.
    """

    name: str
    x_label: str
    panels: tuple[Panel, ...]
    headline: str


def read_run(path: Path) -> Curves:
    """The curves of a run directory, or of its metrics.jsonl.

    Raises:
        DataError: if there is no such run, or it has no metrics.
    """
    if not path.exists():
        raise DataError(f"there is no run {path}", "name the directory given with -o, or: embeddings")
    file = path / "metrics.jsonl" if path.is_dir() else path
    name, lines = file.absolute().parent.name, read_lines(file)
    if "selftrain" in lines[0]:
        return round_curves(name, lines)
    return training_curves(name, lines) if lines[0].keys() & {"train", "validation"} else reward_curves(name, lines)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; half a line at the end, of a run that is being written, is left out.

    Raises:
        DataError: if there is none, or a line is damaged.
    """
    try:
        texts = file.read_text().split("\n") if file.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}", "name the directory of a run, or its metrics.jsonl") from error
    parsed = [_parse(text) for text in texts]
    if parsed and parsed[-1] is None:
        parsed.pop()
    lines = [line for line in parsed if line is not None]
    if len(lines) < len(parsed):
        number = parsed.index(None) + 1
        raise DataError(f"line {number} of {file} is not a line of metrics", "name the metrics.jsonl of a run")
    if not lines:
        raise DataError(f"there are no metrics in {file} yet", "they appear with the first epoch or step")
    return lines


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int)
    holds_metrics = whole and any(isinstance(line.get(kind), dict) for kind in KINDS)
    return line if holds_metrics else None


def training_curves(name: str, lines: list[dict[str, Any]]) -> Curves:
    """The curves of a `cfx train`: loss, its parts, learning rate, norm of the gradient.

    Raises:
        DataError: if no line has a loss.
    """
    axis = "epoch" if lines[-1].get("epoch", 0) >= 1 else "step"

    series = functools.partial(_series, lines, axis)
    train, validation = series("training", "train", "loss"), series("validation", "validation", "loss")
    if not train.x:
        raise DataError(f"the metrics of {name} hold no training loss", "cfx plot draws the runs of cfx train")
    source = validation if validation.x else train
    part = "validation" if validation.x else "train"
    x, best = min(zip(source.x, source.y, strict=True), key=lambda point: point[1])
    mark = (f"best: {best:.2f}, {axis} {x:g}", x, best) if validation.x else None
    panels = [
        Panel("Loss", NATS, (train, validation), wide=True, best=mark),
        Panel(f"{source.label.title()} loss by part", NATS, tuple(series(NAMES[k], part, k) for k in NAMES), wide=True),
        Panel("Learning rate", "", (series("learning rate", "train", "learning_rate"),)),
        Panel("Norm of the gradient", NATS, (series("norm", "train", "grad_norm"),), log=True),
    ]
    headline = f"lowest {source.label} loss {best:.2f} at {axis} {x:g}; metrics up to step {lines[-1]['step']}"
    return Curves(name, axis, _with_points(panels), headline)


def reward_curves(name: str, lines: list[dict[str, Any]]) -> Curves:
    """The curves of a `cfx rl`: reward and its parts, KL, what becomes of the crystals, entropy, seconds.

    Raises:
        DataError: if the metrics are of something else.
    """
    kind = "rl" if "rl" in lines[0] else "dpo"

    def series(label: str, *keys: str, factor: float = 1.0) -> Series:
        return _series(lines, "step", label, kind, *keys, factor=factor)

    if kind == "dpo":
        panels = [
            Panel("Loss", "", (series("loss", "loss"),), wide=True),
            Panel(
                "Pairs that moved towards the better crystal", "%", (series("pairs", "right", factor=100),), wide=True
            ),
            Panel("Margin", "nats", (series("margin", "margin"),), wide=True),
        ]
        return Curves(name, "step", _with_points(panels), f"{lines[-1]['step']} updates")
    last = lines[-1]["rl"]
    parts = [part for part in last["parts"] if not part.endswith(", std")]
    quantiles = [series(f"{q} % of the crystals below", f"reward_q{q}") for q in (10, 50, 90)]
    panels = [
        Panel("Reward", "", (series("mean, failures included", "reward"), *quantiles), wide=True),
        *(Panel(f"Mean {part}", "", (series(part, "parts", part),), wide=True) for part in parts[:3]),
        Panel("KL from the reference", NATS, (series("KL(policy || reference)", "kl_reference"),), wide=True),
        Panel(
            "Classes of the compositions",
            "%",
            tuple(series(kind, "classes", kind, factor=100) for kind in last.get("classes", {})),
            wide=True,
        ),
        Panel(
            "Crystals of a rollout",
            "%",
            tuple(
                series(label, key, factor=100)
                for label, key in (("valid", "valid"), ("unique", "unique"), ("novel", "novel"), ("failed", "failures"))
            ),
            wide=True,
        ),
        Panel(
            "Different compositions among the crystals of the last steps",
            "%",
            (series("different compositions", "compositions", factor=100),),
            wide=True,
        ),
        Panel("Compositions in effect", "", (series("Vendi score", "vendi_compositions"),), wide=True),
        Panel("Entropy of the draws", NATS, tuple(series(NAMES[k], "entropy", k) for k in NAMES), wide=True),
        Panel("Seconds", "", tuple(series(k, f"seconds_{k}") for k in ("sampling", "rewarding", "updating")), log=True),
        Panel("Norm of the gradient", "", (series("norm", "grad_norm"),), log=True),
    ]
    first = lines[0]["rl"]["reward"]
    headline = f"mean reward {first:.3f} at step {lines[0]['step']}, {last['reward']:.3f} at step {lines[-1]['step']}"
    return Curves(name, "step", _with_points(panels), headline)


def round_curves(name: str, lines: list[dict[str, Any]]) -> Curves:
    """The curves of a `cfx selftrain`: what its models draw, round by round."""

    def series(label: str, key: str, factor: float = 1.0) -> Series:
        return _series(lines, "step", label, "selftrain", key, factor=factor)

    shares = {
        "valid": "valid",
        "charge-neutral": "neutral",
        "metastable": "metastable",
        "S.U.N.": "sun",
        "S.U.N., learned before": "sun_learned",
    }
    panels = [
        Panel("Draws", "%", tuple(series(label, key, 100) for label, key in shares.items()), wide=True),
        Panel("Metastable and charge-neutral draws", "%", (series("both", "neutral_metastable", 100),), wide=True),
        Panel("Crystals kept", "", (series("kept", "kept"),)),
        Panel("Validation loss after a round", NATS, (series("validation", "validation"),)),
    ]
    first, last = (100 * line["selftrain"]["metastable"] for line in (lines[0], lines[-1]))
    headline = f"metastable draws: {first:.1f} % in round 1, {last:.1f} % in round {lines[-1]['step']}"
    return Curves(name, "round", _with_points(panels), headline)


def _series(lines: list[dict[str, Any]], axis: str, label: str, *keys: str, factor: float = 1.0) -> Series:
    """What stands under some keys in each line that has it."""
    points = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            points.append((line.get(axis, 0), factor * value))
    return Series(label, [x for x, _ in points], [y for _, y in points])


def _with_points(panels: list[Panel]) -> tuple[Panel, ...]:
    """Panels without the series that have no points, and without the panels that have no others."""
    found = []
    for panel in panels:
        if kept := tuple(series for series in panel.series if series.x):
            log = panel.log and all(y > 0 for series in kept for y in series.y)
            found.append(replace(panel, series=kept, log=log))
    return tuple(found)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, equally far apart (1, 2 or 5 times a power of ten), from `low` or below to `high` or above.

    There are `most` steps between them at most, and one at least.
    """
    exponent = math.floor(math.log10((high - low) or abs(high) or 1.0)) - 1
    while True:
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            first, last = math.floor(low / step), math.ceil(high / step)
            if last - first <= most:
                return [float(f"{step * number:.12g}") for number in range(first, max(last, first + 1) + 1)]
        exponent += 1


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` or below to `high` or above; both are positive."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + 1)]
