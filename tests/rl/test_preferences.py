"""Fine-tuning on pairs: the better crystal becomes the likelier one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.config import DPOConfig, ModelConfig
from cfx.config.finetuning import PairsRun
from cfx.errors import DataError
from cfx.model import Model, load_model
from cfx.reporter import Mute
from cfx.rl.preferences import learn_preferences, read_pairs

pytestmark = pytest.mark.integration

TINY = ModelConfig(
    n_max=3, num_layers=1, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=2
)


def rock_salt(cation: str, anion: str) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.5), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def write(path, pairs) -> None:
    rows = [{"chosen": one.to(fmt="cif"), "rejected": other.as_dict()} for one, other in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_better_crystals_become_likelier(tmp_path):
    pairs = [(rock_salt("Na", anion), rock_salt("K", anion)) for anion in ("F", "Cl", "Br", "I")]
    write(tmp_path / "pairs.jsonl", pairs)
    model = Model.init(TINY, seed=1)
    config = PairsRun(
        model="tiny", pairs=str(tmp_path / "pairs.jsonl"), dpo=DPOConfig(epochs=15, batch_size=4, learning_rate=3e-3)
    )
    result = learn_preferences(tmp_path / "run", config, model, Mute())
    assert (result.pairs, result.right) == (4, 1.0)
    tuned = load_model(tmp_path / "run" / "final")
    better, worse = (cfx.encode(list(side), n_max=3).batch for side in zip(*pairs, strict=True))
    margin = [each.log_prob(better).total - each.log_prob(worse).total for each in (model, tuned)]
    assert (margin[1] > margin[0] + 0.1).all()
    losses = [json.loads(line)["dpo"]["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert losses[-1] < losses[0]


def test_rows_that_hold_no_crystal_are_left_out(tmp_path):
    write(tmp_path / "pairs.jsonl", [(rock_salt("Na", "Cl"), rock_salt("K", "Cl"))])
    with open(tmp_path / "pairs.jsonl", "a") as file:
        file.write(json.dumps({"chosen": "no cif", "rejected": "none either"}) + "\n")
    pairs = read_pairs(tmp_path / "pairs.jsonl", 3)
    assert len(pairs.chosen) == len(pairs.rejected) == 1
    assert {row for row, _ in pairs.failures} == {2}
    (tmp_path / "bad.csv").write_text("chosen,other\na,b\n")
    with pytest.raises(DataError, match=r"row 1 of .* has no chosen and rejected crystal"):
        read_pairs(tmp_path / "bad.csv", 3)
