"""Curves of a run and similarity of elements: the numbers behind the figures, and the figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import cfx
from cfx.config import DataConfig, ModelConfig, TrainConfig
from cfx.config.training import TrainRun
from cfx.core.elements import FAMILIES, SYMBOLS, group_number
from cfx.data.dataset import load_dataset
from cfx.errors import DataError, OutputError, UsageError
from cfx.io.files import check_file
from cfx.model import Model, load_model
from cfx.reporter import Silent
from cfx.runs.curves import NAMES, SUFFIXES, read_run
from cfx.runs.figures import draw_curves, draw_similarity, learned_elements, save_figure, species_similarity
from cfx.training.train import train

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[1] / "golden"
MINI = Path(cfx.__file__).parent / "resources" / "models" / "mini"


def metrics(step: int, epoch: float, loss: float, validation: float | None = None, **more: float) -> dict:
    """A line of metrics.jsonl whose parts are simple multiples of the loss."""
    parts = {part: loss * share for part, share in zip(NAMES, (0.2, 0.5, 0.2, 0.1), strict=True)}
    line = {"step": step, "epoch": epoch, "train": {"loss": loss, **parts, "grad_norm": 1 / step, **more}}
    if validation is not None:
        line["validation"] = {"loss": validation, **{part: validation * 0.25 for part in parts}}
    return line


LINES = [
    metrics(10, 0.5, 40.0, learning_rate=1e-3),
    metrics(20, 1.0, 30.0, 35.0, learning_rate=9e-4),
    metrics(30, 1.5, 25.0, learning_rate=7e-4),
    metrics(40, 2.0, 22.0, 31.5, learning_rate=4e-4),
    metrics(50, 2.5, 21.0, learning_rate=2e-4),
    metrics(60, 3.0, 20.0, 32.0, learning_rate=0.0),
]


@pytest.fixture
def write(tmp_path: Path):
    """Writes lines, and text after them, as the metrics of a run."""

    def write(lines: list[dict], rest: str = "") -> Path:
        run = tmp_path / "the-run"
        run.mkdir(exist_ok=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
        return run

    return write


def panels(run: Path) -> dict:
    return {panel.title: panel for panel in read_run(run).panels}


def test_curves_are_the_lines_of_the_run(write):
    run = write(LINES)
    curves, found = read_run(run), panels(run)
    assert curves.name == "the-run" and curves.x_label == "epoch"
    training, validation = found["Loss"].series
    assert training.x == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0] and training.y == [40, 30, 25, 22, 21, 20]
    assert validation.x == [1.0, 2.0, 3.0] and validation.y == [35.0, 31.5, 32.0]
    assert found["Loss"].best == ("best: 31.50, epoch 2", 2.0, 31.5) and "31.50" in curves.headline
    parts = found["Validation loss by part"].series
    assert [series.label for series in parts] == ["letters", "species", "coordinates", "lattice"]
    assert all(series.y == [8.75, 7.875, 8.0] for series in parts)
    assert found["Learning rate"].series[0].y[-1] == 0.0 and not found["Learning rate"].log
    assert found["Norm of the gradient"].series[0].y[0] == 0.1 and found["Norm of the gradient"].log
    assert read_run(run / "metrics.jsonl") == curves


def test_what_a_run_does_not_hold_is_not_drawn(write):
    """No validation and no learning rate, less than an epoch: training alone, by steps."""
    run = write([metrics(10, 0.25, 40.0), metrics(20, 0.5, 30.0)])
    curves, found = read_run(run), panels(run)
    assert curves.x_label == "step" and list(found) == ["Loss", "Training loss by part", "Norm of the gradient"]
    assert [series.label for series in found["Loss"].series] == ["training"] and found["Loss"].best is None
    assert found["Loss"].series[0].x == [10, 20]
    assert found["Training loss by part"].series[1].y == [20.0, 15.0]


def test_half_a_line_at_the_end_is_ignored_and_only_there(write):
    whole, half = read_run(write(LINES)), json.dumps(LINES[0])
    for length in (1, len(half) // 2, len(half) - 1):
        assert read_run(write(LINES, half[:length])) == whole
    assert read_run(write(LINES[:-1], json.dumps(LINES[-1]))) == whole
    with pytest.raises(DataError, match=r"line 7 of .*metrics\.jsonl"):
        read_run(write(LINES, half[:30] + "\n" + half + "\n"))


def test_runs_without_metrics_are_refused(write, tmp_path):
    with pytest.raises(DataError, match="there is no run"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "empty", write([]), write([], '{"step": 1')):
        with pytest.raises(DataError, match="no metrics in"):
            read_run(run)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="cannot read"):
        read_run(tmp_path / "binary")


def test_a_real_run_is_drawn(tmp_path):
    """What cfx train writes is what cfx plot reads."""
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    (tmp_path / "data").mkdir()
    for i in np.flatnonzero(num_sites == 1)[:6]:
        (tmp_path / "data" / f"{i}.cif").write_text(entries[i]["cif"])
    data = load_dataset(tmp_path / "data", num_workers=1)
    tiny = ModelConfig(num_layers=1, num_heads=1, key_size=4, model_size=8, embed_size=4, first_hidden=8)
    config = TrainRun(model=tiny, train=TrainConfig(epochs=2, batch_size=4), data=DataConfig())
    result = train(tmp_path / "run", config, data, data, Silent())
    found = panels(tmp_path / "run")
    training, validation = found["Loss"].series
    assert training.x[-1] == 2 and validation.x == [1, 2] and validation.y[-1] == result.validation_loss
    assert found["Loss"].best[2] == result.best_loss
    assert "Validation loss by part" in found and "Norm of the gradient" in found


def test_the_figure_of_a_run(write, tmp_path):
    from matplotlib.image import imread

    curves = read_run(write(LINES))
    axes = draw_curves(curves).axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == [panel.title for panel in curves.panels]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()][-1] == "best: 31.50, epoch 2"
    assert {ax.get_xlabel() for ax in axes} == {"epoch"} and axes[0].get_ylabel() == "nats per crystal"
    np.testing.assert_array_equal(axes[0].lines[1].get_xydata(), [[1, 35], [2, 31.5], [3, 32]])
    for name in ("run.png", "run.svg", "run.pdf"):
        save_figure(curves, tmp_path / name)
    picture = imread(tmp_path / "run.png")
    assert picture.shape[1] == 1600 and picture.shape[0] > 1200
    blue, vermilion = (
        np.abs(picture[..., :3] - colour).max(-1) < 0.02 for colour in ([0, 0.447, 0.698], [0.835, 0.369, 0])
    )
    assert blue.sum() > 1000 and vermilion.sum() > 1000, "both curves are there"
    assert "the-run" in (tmp_path / "run.svg").read_text()
    assert (tmp_path / "run.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.pdf", "run.png", "run.svg", "the-run"]


def test_a_figure_that_cannot_be_written_leaves_nothing(write, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    target = tmp_path / "run.png"
    target.write_bytes(b"older")
    with pytest.raises(OutputError, match=r"cannot write .*run\.png: No space"):
        save_figure(read_run(write(LINES)), target)
    assert target.read_bytes() == b"older" and sorted(p.name for p in tmp_path.iterdir()) == ["run.png", "the-run"]


def test_targets_are_checked_before_the_work(tmp_path):
    (tmp_path / "old.png").write_bytes(b"older")
    with pytest.raises(OutputError, match="exists"):
        check_file(tmp_path / "old.png", SUFFIXES, force=False)
    check_file(tmp_path / "old.png", SUFFIXES, force=True)
    for name in ("run.jpg", "run", ".png"):
        with pytest.raises(UsageError, match="suffix"):
            check_file(tmp_path / name, SUFFIXES, force=False)
    with pytest.raises(OutputError, match="no directory"):
        check_file(tmp_path / "no" / "run.png", SUFFIXES, force=False)


def test_groups_are_those_of_the_periodic_table():
    from pymatgen.core import Element

    for number in range(1, 119):
        element = Element.from_Z(number)
        expected = 0 if element.is_lanthanoid or element.is_actinoid else element.group
        assert group_number(number) == expected, element
    symbols = {name: [SYMBOLS[z] for z in members if z <= 94] for name, members in FAMILIES.items()}
    assert symbols["alkali metals"] == ["Li", "Na", "K", "Rb", "Cs", "Fr"]
    assert symbols["chalcogens"] == ["O", "S", "Se", "Te", "Po"] and symbols["noble gases"][0] == "He"
    assert symbols["3d metals"] == ["Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"]


@pytest.fixture(scope="module")
def mini():
    return species_similarity(load_model("mini"))


def cosine(one: str, other: str) -> float:
    """From the file itself."""
    table = load_file(MINI / "params.safetensors")["~/species"].astype(float)
    a, b = table[SYMBOLS.index(one)], table[SYMBOLS.index(other)]
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_similarities_are_cosines_of_the_stored_rows(mini):
    at = {symbol: row for row, symbol in enumerate(mini.symbols)}
    for one, other in [("K", "Rb"), ("H", "Pu"), ("Eu", "Sr"), ("O", "O"), ("La", "Fe")]:
        assert mini.matrix[at[one], at[other]] == pytest.approx(cosine(one, other), abs=1e-6)
    halogens, others = ["F", "Cl", "Br", "I"], [s for s in mini.symbols if s not in ("F", "Cl", "Br", "I")]
    [row] = [row for row in mini.families() if row["family"] == "halogens"]
    assert row["elements"] == 4
    within = [cosine(a, b) for a in halogens for b in halogens if a < b]
    assert row["within"] == pytest.approx(np.mean(within), abs=1e-6)
    outside = [cosine(a, b) for a in halogens for b in others]
    assert row["outside"] == pytest.approx(np.mean(outside), abs=1e-6)
    ranked = sorted((s for s in mini.symbols if s != "K"), key=lambda s: -cosine("K", s))
    assert [symbol for symbol, _ in mini.nearest(5)["K"]] == ranked[:5]
    content = mini.as_json()
    np.testing.assert_allclose(content["matrix"], mini.matrix, atol=1e-6)
    assert content["elements"] == mini.symbols and content["nearest"]["K"][0]["element"] == ranked[0]


def test_elements_are_ordered_by_group_then_period(mini):
    assert mini.symbols[:8] == ["H", "Li", "Na", "K", "Rb", "Cs", "Be", "Mg"]
    assert mini.symbols[-6:] == ["Ac", "Th", "Pa", "U", "Np", "Pu"] and mini.symbols[-21:-6] == SYMBOLS[57:72]
    blocks = mini.blocks()
    names = [name for name, _, _ in blocks]
    assert names[:4] == ["hydrogen", "alkali metals", "alkaline earths", "group 3"]
    assert names[-5:] == ["chalcogens", "halogens", "noble gases", "lanthanides", "actinides"]
    assert blocks[0][1] == 0 and blocks[-1][2] == len(mini.symbols)
    assert all(before[2] == after[1] for before, after in itertools.pairwise(blocks))
    found = {name: mini.symbols[start:stop] for name, start, stop in blocks}
    assert found["group 3"] == ["Sc", "Y"] and found["chalcogens"] == ["O", "S", "Se", "Te"]
    assert found["group 11"] == ["Cu", "Ag", "Au"]


def test_elements_that_were_never_trained_are_left_out(mini):
    """The data of mini have no Po, At, Rn, Fr and Ra; their rows are as short as those of the transuranics."""
    assert mini.left_out == ["Po", "At", "Rn", "Fr", "Ra"] and len(mini.symbols) == 89
    table = np.random.default_rng(0).normal(0, 0.02, (119, 32))
    table[[8, 26]] *= 5
    assert learned_elements(table) == [8, 26]
    assert learned_elements(table, {"Na": 3, "Cl": 3, "O": 0}) == [11, 17]
    config = ModelConfig(num_layers=1, num_heads=1, key_size=4, model_size=8, embed_size=8, first_hidden=8)
    with pytest.raises(DataError, match="as initialised"):
        species_similarity(Model.init(config))


def test_the_heat_map(mini, tmp_path):
    from matplotlib.image import imread

    axes = draw_similarity(mini).axes[0]
    [image] = axes.images
    np.testing.assert_array_equal(image.get_array(), mini.matrix)
    low, high = image.get_clim()
    assert low == -high and 0 < high <= 1
    assert {text.get_text() for text in axes.texts} == {name for name, _, _ in mini.blocks()}
    # With the sign changed above the diagonal, so that both colours occur whatever the model has learned.
    n = len(mini.symbols)
    signed = dataclasses.replace(mini, matrix=np.where(np.triu(np.ones((n, n), bool), 1), -mini.matrix, mini.matrix))
    save_figure(signed, tmp_path / "map.png")
    picture = imread(tmp_path / "map.png")[..., :3]
    assert picture.shape == (1960, 2000, 3)
    red, blue = picture[..., 0] > picture[..., 2] + 0.2, picture[..., 2] > picture[..., 0] + 0.2
    assert red.mean() > 0.05 and blue.mean() > 0.05
    save_figure(mini, tmp_path / "map.svg")
    words = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "map.svg").read_text())
    assert all(words.count(symbol) == 2 for symbol in mini.symbols)
    assert "Similarity of elements in mini" in words
