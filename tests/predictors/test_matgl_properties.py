"""Property models of matgl: real networks, small ones that have learnt the known crystals, and the published one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import RewardConfig
from cfx.errors import CheckpointError, DependencyError, NetworkError, UnsafeError, UsageError
from cfx.predictors.load import load_property
from cfx.predictors.matgl import MatglProperty
from cfx.predictors.matgl_files import find_files
from cfx.predictors.self_check import KNOWN_PROPERTIES, check_property
from cfx.rl.named_rewards import load_reward

from ..internet import COMMITS, Repo
from ..needs import needs

needs("matgl")
needs("torch")

PUBLISHED = Path(os.environ.get("CFX_WEIGHTS", ""))
CUTOFF = 3.8
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """What takes seconds to import, when the first test runs and not when tests are collected."""
    global matgl, torch, transformer
    import matgl
    import torch
    from matgl.data import transformer


def megnet(**options):
    """Of several fidelities, as the published model of the band gap."""
    from matgl.models import MEGNet

    sizes = {"dim_edge_embedding": 20, "nblocks": 1, "ntypes_state": 4, "dim_state_embedding": 4, "cutoff": CUTOFF}
    return MEGNet(**sizes | options)


def tensornet(**options):
    from matgl.models import TensorNet

    return TensorNet(units=16, num_rbf=12, nblocks=1, cutoff=CUTOFF, **options)


def graphs(network, structures):
    from matgl.ext.pymatgen import Structure2Graph

    convert = Structure2Graph(network.element_types, network.cutoff).get_graph
    for structure in structures:
        graph, cell, _ = convert(structure)
        graph.pos, graph.pbc_offshift = graph.frac_coords @ cell[0], graph.pbc_offset @ cell[0]
        yield graph


def save_taught(network, property: str, folder: Path) -> Path:
    """Teaches a network the known crystals, label 0, and saves it as matgl does."""
    import torch
    from matgl.data.transformer import Normalizer
    from matgl.models import TransformedTargetModel
    from torch_geometric.data import Batch

    known = KNOWN_PROPERTIES[property]
    batch = Batch.from_data_list(list(graphs(network, (crystal.structure() for crystal in known))))
    value = torch.tensor([crystal.value for crystal in known])
    scale = Normalizer(float(value.mean()), float(value.std()))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(500):
        found = network(g=batch, state_attr=torch.zeros(len(known), dtype=torch.long)).reshape(len(known), -1)[:, :3]
        loss = (found - scale.transform(value)[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 1e-3:
            break
    assert loss < 1e-2
    TransformedTargetModel(network, scale).save(folder)
    return folder


@pytest.fixture(scope="module")
def gap_directory(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return save_taught(megnet(), "band_gap", tmp_path_factory.mktemp("gap"))


@pytest.fixture(scope="module")
def tensor_directory(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return save_taught(tensornet(ntargets=6), "dielectric", tmp_path_factory.mktemp("tensor"))


@pytest.fixture(scope="module")
def gap(gap_directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_property("band_gap", f"matgl:{gap_directory}")


@pytest.fixture(scope="module")
def oxides() -> list[Structure]:
    """Distorted, of three to five atoms."""
    rng = np.random.default_rng(0)
    ideal = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    crystals = []
    for atoms in (3, 4, 5, 3, 4, 5, 3):
        lattice = Lattice.from_parameters(*rng.uniform(3.8, 4.4, 3), 88, 91, 93)
        coords = ideal[:atoms] + rng.normal(0, 0.02, (atoms, 3))
        crystals.append(Structure(lattice, ["Sr", "Ti", "O", "O", "O"][:atoms], coords))
    return crystals


def test_a_model_that_knows_what_is_known_is_loaded(gap, gap_directory):
    assert gap.name == f"matgl {matgl.__version__} ({gap_directory.name})"
    assert (gap.property, gap.unit) == ("band_gap", "eV")
    batch = gap.evaluate([crystal.structure() for crystal in KNOWN_PROPERTIES["band_gap"]])
    assert batch.ok.all() and batch.reasons == [""] * 6 and batch.value.dtype == np.float64
    np.testing.assert_allclose(batch.value, [crystal.value for crystal in KNOWN_PROPERTIES["band_gap"]], atol=0.5)
    assert np.isnan(batch.std).all() and not batch.outside.any()


def test_crystals_get_in_a_batch_what_they_get_from_matgl_one_by_one(gap, gap_directory, oxides):
    with torch.serialization.safe_globals([transformer.Normalizer]):
        network = matgl.load_model(gap_directory)
    expected = [float(network.predict_structure(one, state_attr=torch.tensor([0]))) for one in oxides]
    other = [float(network.predict_structure(one, state_attr=torch.tensor([2]))) for one in oxides]
    together = gap.evaluate(oxides).value
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([gap.evaluate([one]).value for one in oxides]), expected, atol=1e-4)
    assert np.abs(together - other).max() > 0.01  # another fidelity says something else
    assert gap._together and len(gap.evaluate([]).value) == 0


def test_a_tensor_gives_a_third_of_its_trace(tensor_directory, oxides):
    model = load_property("dielectric", f"matgl:{tensor_directory}")
    with torch.serialization.safe_globals([transformer.Normalizer]):
        network = matgl.load_model(tensor_directory)
    six = torch.stack([network.predict_structure(one) for one in oxides]).numpy()
    assert six.shape == (7, 6)
    np.testing.assert_allclose(model.evaluate(oxides).value, six[:, :3].mean(1), rtol=1e-4)
    assert (model.property, model.unit) == ("dielectric", "")
    with pytest.raises(CheckpointError, match="predicts 6 numbers, not a band_gap"):
        load_property("band_gap", f"matgl:{tensor_directory}")


def test_bad_crystals_have_reasons_and_leave_the_others_alone(gap, oxides):
    close = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.01]])
    partial = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    polonium = Structure(Lattice.cubic(3.3), ["Po"], [[0, 0, 0]])
    lonely = Structure(Lattice.cubic(5.8), ["Cs"], [[0, 0, 0]])  # no neighbour within the cutoff
    batch = gap.evaluate([oxides[0], None, close, partial, polonium, lonely, oxides[1]])
    assert batch.ok.tolist()[:5] == [True, False, False, False, False] and batch.ok[6]
    for i, words in {1: "no structure", 2: "apart", 3: "occupancy", 4: "does not know Po"}.items():
        assert words in batch.reasons[i]
    assert np.isnan(batch.value[1:5]).all()
    assert bool(batch.ok[5]) == np.isfinite(batch.value[5]) != bool(batch.reasons[5])
    np.testing.assert_allclose(batch.value[[0, 6]], gap.evaluate(oxides[:2]).value, atol=1e-4)


def test_a_network_that_breaks_on_batches_goes_one_by_one(gap_directory, oxides, gap):
    class Alone(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.model = network, network.model

        def forward(self, g, state_attr):
            if hasattr(g, "num_graphs") and g.num_graphs > 1:
                raise RuntimeError("made for one crystal")
            return self.network(g=g, state_attr=state_attr)

    model = MatglProperty(Alone(find_files(str(gap_directory)).network()), "alone", "band_gap", "cpu")
    assert not model._together
    np.testing.assert_allclose(model.evaluate(oxides).value, gap.evaluate(oxides).value, atol=1e-4)


def test_a_model_that_has_learnt_nothing_is_refused(tmp_path):
    torch.manual_seed(1)
    megnet().save(tmp_path / "random")
    with pytest.raises(
        CheckpointError, match=r"random\) predicts a band_gap of .* eV for .*, where .* ± .* is correct"
    ):
        load_property("band_gap", f"matgl:{tmp_path / 'random'}")


@pytest.mark.skipif(not PUBLISHED.name, reason="CFX_WEIGHTS names no directory with published models of matgl")
@pytest.mark.parametrize(
    ("name", "property"),
    [("MEGNet-MP-2019.4.1-BandGap-mfi", "band_gap"), ("MEGNet-MP-2018.6.1-Eform", "formation_energy")],
)
def test_published_models_that_matgl_4_gets_wrong_are_refused(name, property):
    """By the convention of matgl 4, that is; by their own they pass: see test_matgl_conventions.py."""
    model = MatglProperty(find_files(str(PUBLISHED / name)).network(), name, property, "cpu")
    with pytest.raises(CheckpointError, match=r"for MgO, where .* it mispredicts 3 of") as caught:
        check_property(model)
    assert "bundled" in caught.value.hint


def test_a_property_of_which_nothing_is_known_is_said_to_be_trusted(gap_directory):
    with pytest.warns(UserWarning, match="no crystals are known that would prove a model of hardness"):
        model = load_property("hardness", f"matgl:{gap_directory}")
    assert (model.property, model.unit) == ("hardness", "")


def test_rewards_from_directories(gap_directory, tensor_directory, oxides):
    def no_hull(potential):
        raise AssertionError("no reward here needs a hull")

    config = RewardConfig(
        reward="fom", gap_model=f"matgl:{gap_directory}", dielectric_model=f"matgl:{tensor_directory}"
    )
    merit = load_reward(config, no_hull).evaluate([*oxides, None])
    gap, dielectric = (merit.metrics[key][:-1] for key in ("band gap (eV)", "dielectric constant"))
    np.testing.assert_allclose(merit.value[:-1], np.maximum(gap, 0) * np.maximum(dielectric, 0))
    assert not merit.ok[-1] and merit.reasons[-1]

    with pytest.warns(UserWarning, match="hardness"):
        reward = load_reward(
            RewardConfig(reward=f"property:{gap_directory}", property_name="hardness", target=2.0), no_hull
        )
    np.testing.assert_allclose(reward.evaluate(oxides).value, -((gap - 2.0) ** 2), rtol=1e-4, atol=1e-5)


def test_what_is_no_property_model(tmp_path, monkeypatch):
    from matgl.apps.pes import Potential

    Potential(tensornet(is_intensive=False)).save(tmp_path / "potential")
    with pytest.raises(CheckpointError, match="is a potential and does not predict band_gap"):
        load_property("band_gap", f"matgl:{tmp_path / 'potential'}")
    with pytest.raises(CheckpointError, match=r"there is no model\.json in"):
        load_property("band_gap", f"matgl:{tmp_path / 'nothing'}")
    with pytest.raises(NetworkError, match=r"matgl cannot find MEGNet-9999: .* is not cached"):
        load_property("band_gap", "matgl:MEGNet-9999")
    with pytest.raises(UsageError, match="there is no device called tpu"):
        load_property("band_gap", f"matgl:{tmp_path / 'potential'}", "tpu")
    megnet(element_types=("Xe",)).save(tmp_path / "noble")
    with pytest.raises(CheckpointError, match="does not know the elements of any crystal"):
        load_property("band_gap", f"matgl:{tmp_path / 'noble'}")
    (tmp_path / "noble" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="matgl cannot load"):
        load_property("band_gap", f"matgl:{tmp_path / 'noble'}")
    monkeypatch.setitem(sys.modules, "matgl", None)  # as if it were not installed
    with pytest.raises(DependencyError) as caught:
        load_property("band_gap", f"matgl:{tmp_path / 'noble'}")
    assert caught.value.hint == "pip install 'cfx-crystal[matgl]'"


class TestFilesThatAskForMore:
    """matgl imports and calls whatever class a file names."""

    @pytest.fixture
    def directory(self, gap_directory, tmp_path) -> Path:
        for file in gap_directory.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def test_a_program_among_the_arguments(self, directory):
        told = ["touch", str(directory / "ran")]
        evil = {"@class": "Popen", "@module": "subprocess", "init_args": {"args": told}}
        torch.save({"model": evil, "target_transformer": None}, directory / "model.pt")
        with pytest.raises(UnsafeError, match=r"asks for subprocess\.Popen"):
            load_property("band_gap", f"matgl:{directory}")
        assert not (directory / "ran").exists()

    def test_a_pickle_that_calls(self, directory):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(directory / "ran"),)

        torch.save({"model": Evil()}, directory / "model.pt")
        with pytest.raises(UnsafeError, match=r"asks for posix\.mkdir"):
            load_property("band_gap", f"matgl:{directory}")
        assert not (directory / "ran").exists()

    @pytest.mark.parametrize(("module", "name"), [("this", "x"), ("matgl.models", "torch"), ("matgl.utils.io", "os")])
    def test_a_module_to_import(self, directory, module, name):
        content = json.loads((directory / "model.json").read_text()) | {"@module": module, "@class": name}
        (directory / "model.json").write_text(json.dumps(content))
        with pytest.raises(UnsafeError, match=f"asks for {module}.{name}"):
            load_property("band_gap", f"matgl:{directory}")
        assert "this" not in sys.modules

    def test_no_model_at_all(self, directory):
        for text in ("[]", "{}", "nonsense"):
            (directory / "model.json").write_text(text)
            with pytest.raises(CheckpointError, match=r"not a model of matgl|cannot load"):
                load_property("band_gap", f"matgl:{directory}")


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from cfx.predictors.load import load_property
for name in sys.argv[1:]:
    print(load_property("band_gap", name if name == "auto" else "matgl:" + name).name)
"""
NOW, FORMERLY = "MEGNet-BandGap-mfi-MP-2019.4.1", "MEGNet-MP-2019.4.1-BandGap-mfi"


@pytest.fixture
def load_gaps(internet, tmp_path):
    """load_gaps(*names, **variables): names of the models that a process loads, with caches of this test."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_ENDPOINT")}
    environment |= internet.environment() | {"HF_HOME": str(tmp_path / "hf"), "CFX_CACHE": str(tmp_path / "cfx")}

    def load(*names: str, **variables: str) -> list[str]:
        command = [sys.executable, "-c", SCRIPT, *names]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return load


def test_published_models_are_fetched_by_name(internet, gap_directory, load_gaps):
    files = {file.name: file.read_bytes() for file in gap_directory.iterdir()}
    internet.repos = {f"materialyze/{FORMERLY}": Repo({COMMITS[0]: files}), "friend/gaps": Repo({COMMITS[0]: files})}
    labels = [FORMERLY, FORMERLY, "friend/gaps"]
    loaded = load_gaps(FORMERLY, "megnet-bandgap", "friend/gaps")
    assert loaded == [f"matgl {matgl.__version__} ({label})" for label in labels]
    asked = len(internet.log)
    load_gaps("megnet-bandgap", HF_HUB_OFFLINE="1")
    assert len(internet.log) == asked


def test_a_name_of_the_past_means_what_it_is_called_now(internet, gap_directory, load_gaps):
    files = {file.name: file.read_bytes() for file in gap_directory.iterdir()}
    internet.repos = {f"materialyze/{name}": Repo({COMMITS[0]: files}) for name in (NOW, FORMERLY)}
    expected = f"matgl {matgl.__version__} ({NOW})"
    assert load_gaps("megnet-bandgap", FORMERLY, f"materialyze/{FORMERLY}", NOW) == [expected] * 4
    assert not internet.asked(FORMERLY)


def test_what_is_at_hand_is_used_unasked(internet, gap_directory, load_gaps):
    files = {file.name: file.read_bytes() for file in gap_directory.iterdir()}
    internet.repos = {f"materialyze/{NOW}": Repo({COMMITS[0]: files})}
    before, _, after = load_gaps("auto", "megnet-bandgap", "auto")
    assert before.startswith("cfx band_gap ") and after == f"matgl {matgl.__version__} ({NOW})"
