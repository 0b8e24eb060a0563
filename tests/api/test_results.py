"""Evaluating, relaxing, scoring, training and fine-tuning in Python, on crystals that cost little."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.config import ModelConfig
from cfx.errors import UsageError
from cfx.runs.evaluate import as_result

pytestmark = pytest.mark.integration

TINY = ModelConfig(num_layers=1, num_heads=1, key_size=4, model_size=8, embed_size=4, first_hidden=8)


def salt(a: float = 5.69, cation: str = "Na") -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def model() -> cfx.Model:
    return cfx.Model.init(TINY)


def test_evaluate(tmp_path):
    pytest.importorskip("smact")
    crystals = [salt(), salt(5.7).to_ase_atoms(), salt(6.28, "K"), None]
    result = cfx.evaluate(crystals, reference=[salt(6.28, "K")], workers=1)
    assert result.table["name"].tolist() == ["NaCl_0", "NaCl_1", "KCl_2", "crystal_3"]
    assert result.table["novel"].tolist() == [True, True, False, False]
    assert result.table["duplicate_of"].tolist()[1] == "NaCl_0" and result.table["matched"].tolist()[2] == "KCl_0"
    assert result.summary.loc["frac_novel_structures", ["value", "count", "of"]].tolist() == [0.5, 2, 4]
    assert set(result.classes["charge-neutral"].index) <= set(result.summary.index) | {"frac_of_crystals"}
    assert repr(result) == "Evaluation(4 crystals, 75.0 % valid, 50.0 % unique, 50.0 % novel)"
    assert len(result.to_structures()) == len(result.to_ase()) == 3 and result.structures[3] is None
    assert "KCl" in result.report(tmp_path / "x.html").read_text()
    assert len(pandas.read_csv(result.write(tmp_path / "x.csv"))) == 4
    assert json.dumps(as_result([result.result])) and "<iframe" in result._repr_html_()
    again = cfx.evaluate(result, workers=1)
    assert again.summary.loc["frac_unique_structures", "value"] == pytest.approx(2 / 3)


def test_relax(tmp_path):
    pytest.importorskip("chgnet")
    result = cfx.relax([salt(5.9), None], steps=3, fix_symmetry=True)
    assert result.table["steps"].tolist() == [3, 0] and result.structures[1] is None
    assert repr(result).startswith("Relaxation(2 crystals by chgnet") and repr(result).endswith("1 without an energy)")
    assert len(result.to_structures()) == 1 and result.to_structures()[0].volume < salt(5.9).volume
    read = cfx.evaluate(result.write(tmp_path / "x.cif"), workers=1)
    assert read.to_structures()[0].matches(salt())
    line, failed = map(json.loads, result.write(tmp_path / "x.jsonl").read_text().splitlines())
    assert line["energy"] == result.table["energy"][0] and failed["energy"] is None
    with pytest.raises(UsageError, match=r"x\.xyz"):
        result.write(tmp_path / "x.xyz")


def test_score(model):
    batch = cfx.encode([salt(), salt(6.28, "K")]).batch
    whole = cfx.score(model, batch)
    assert whole.log_prob.tolist() == model.log_prob(batch).total.astype(float).tolist()
    mixed = cfx.score(model, [salt(), None, salt(6.28, "K")])
    assert mixed.log_prob.tolist() == pytest.approx([whole.log_prob[0], np.nan, whole.log_prob[1]], nan_ok=True)
    assert mixed.table["reason"].tolist() == ["", "there is none", ""]
    assert mixed.table["formula"].tolist()[2] == "KCl" and mixed.table["space_group"].tolist()[0] == 225
    other = cfx.score(cfx.Model.init(TINY, seed=1), [salt(), None, salt(6.28, "K")])
    gain, [first, _, last] = mixed.gain(other), (mixed.log_prob - other.log_prob)
    assert gain.crystals == 2 and gain.mean == pytest.approx((first + last) / 2)
    assert gain.low == pytest.approx(gain.mean - 12.7062 * abs(first - last) / 2, rel=1e-4)  # Student's t, 1 degree
    with pytest.raises(UsageError, match="2 and 3 crystals"):
        whole.gain(other)
    assert repr(mixed).endswith("nats on average, 1 without)")


@pytest.mark.slow  # the notebooks run both, too
def test_train_and_fine_tune(model, tmp_path, capsys):
    """From two salts to a model, and on towards small cells."""
    crystals = [salt(), salt(6.28, "K")]
    training = cfx.train(
        crystals, tmp_path / "run", validation=crystals[:1], start=model, epochs=2, batch_size=2, log_steps=1
    )
    assert repr(training).startswith("Training(2 epochs, 2 steps, validation ")
    assert training.history["validation.loss"].dropna().min() == training.validation_loss
    assert training.model.trained_on(225) == 2 and "<svg" in training._repr_html_()
    with pytest.raises(UsageError, match="is not empty"):
        cfx.train(crystals, tmp_path / "run", start=model)

    def dense(structure):
        """Atoms in a volume."""
        return len(structure) / structure.volume

    settings = {"space_group": 225, "steps": 1, "batch_size": 4, "max_failures": 1.0, "max_sites": 2}
    tuned = cfx.fine_tune(training.model, dense, tmp_path / "tuned", **settings)
    assert len(tuned.crystals) == 4 and (tuned.crystals["space_group"] == 225).all()
    rewards = tuned.crystals["reward"]
    assert len(tuned.best) and dense(tuned.best[0]) == pytest.approx(rewards.max(), rel=1e-3)
    assert repr(tuned).startswith("FineTuning(1 step, mean reward ")
    assert tuned.model.digest() != training.model.digest()
    again = cfx.fine_tune(training.model, dense, tmp_path / "tuned", resume=True, **settings)
    assert again.steps == 1 and again.first is None and again.model.digest() == tuned.model.digest()
    assert capsys.readouterr() == ("", "")
