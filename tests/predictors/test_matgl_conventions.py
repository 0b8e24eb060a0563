"""Conventions of matgl's files: what they mean, and how the right one is found."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from cfx.errors import CheckpointError
from cfx.predictors import matgl_files
from cfx.predictors.load import load_property
from cfx.predictors.matgl_files import AS_IT_IS, EARLIER, Convention, Published, conventions_of, find_files, run_by
from cfx.predictors.self_check import KNOWN_PROPERTIES, check_property

matgl = pytest.importorskip("matgl", reason="matgl is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from matgl.data.transformer import Normalizer  # noqa: E402
from matgl.models import TransformedTargetModel  # noqa: E402

from .test_matgl_properties import PUBLISHED, graphs, megnet, oxides, tensornet  # noqa: E402, F401

BOTH_FAULTS = Convention("all", 2)
OTHERS = (AS_IT_IS, EARLIER, Convention(None, 2))
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]


def m3gnet():
    from matgl.models import M3GNet

    return M3GNet(units=8, dim_node_embedding=8, dim_edge_embedding=8, nblocks=2, cutoff=4.0, threebody_cutoff=3.0)


def with_large_weights(network):
    """Random weights are so small that predictions hardly depend on the crystal."""
    for parameter in network.parameters():
        parameter.data *= 2
    return network.eval()


def outputs(network, structures) -> np.ndarray:
    """Of each crystal alone."""
    state = torch.zeros((1,), dtype=torch.long)
    with torch.no_grad():
        return np.array([network(g=graph, state_attr=state).numpy() for graph in graphs(network, structures)])


def values(model) -> list[float]:
    """The known crystals of its property, as a model predicts them."""
    return model.evaluate([crystal.structure() for crystal in KNOWN_PROPERTIES[model.property]]).value.tolist()


class TestWhatAConventionMeans:
    """Each against what the earlier code did, said in another way."""

    def test_megnet_at_targets_is_megnet_with_exchanged_columns(self, oxides):  # noqa: F811
        torch.manual_seed(0)
        network = with_large_weights(megnet(nblocks=2))
        exchanged = run_by(network, AS_IT_IS)
        for block in exchanged.blocks:
            weight = block.conv.edge_func.layers[0].weight.data
            n = weight.shape[1] // 4
            weight[:, : 2 * n] = weight[:, [*range(n, 2 * n), *range(n)]]
        found = outputs(run_by(network, EARLIER), oxides)
        np.testing.assert_allclose(found, outputs(exchanged, oxides), atol=1e-5)
        assert np.abs(found - outputs(network, oxides)).max() > 1e-4

    def test_iterations(self, oxides):  # noqa: F811
        torch.manual_seed(0)
        network, shorter = with_large_weights(megnet(niters_set2set=3)), megnet(niters_set2set=2).eval()
        shorter.load_state_dict(network.state_dict())
        found = outputs(run_by(network, Convention(None, 2)), oxides)
        np.testing.assert_allclose(found, outputs(shorter, oxides), atol=1e-6)
        assert np.abs(found - outputs(network, oxides)).max() > 1e-5

    @pytest.mark.parametrize("include_state", [False, True])
    def test_m3gnet_sums_the_messages_of_edges_that_end_at_an_atom(self, include_state):
        from matgl.layers._graph_convolution import M3GNetGraphConv

        torch.manual_seed(0)
        dim = 5 + 5 + 4 + 2 * include_state
        conv = M3GNetGraphConv.from_dims(3, include_state, [dim, 4], [dim, 5], [7, 2], torch.nn.SiLU())
        edges = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 2, 0, 2]])
        nodes, features, rbf, states = torch.randn(3, 5), torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 2)
        expected = torch.zeros(3, 5)
        for k, (i, j) in enumerate(edges.T.tolist()):
            inputs = torch.cat([nodes[i], nodes[j], features[k], *([states[k]] if include_state else [])])
            expected[j] += conv.node_update_func(inputs[None])[0] * conv.node_weight_func(rbf[k])
        found = matgl_files._summed_at_targets(conv)(edges, features, nodes, rbf, states, 3)
        np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)

    @pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
    @pytest.mark.parametrize("at_target", ["embedding", "all"])
    def test_tensornet_sums_at_the_other_end(self, oxides, group, at_target):  # noqa: F811
        torch.manual_seed(0)
        network = with_large_weights(tensornet(equivariance_invariance_group=group, use_warp=False))
        found = outputs(run_by(network, Convention(at_target)), oxides)
        expected = []
        for graph in graphs(network, oxides):
            other = run_by(network, AS_IT_IS)
            for part in (other.tensor_embedding, *(other.layers if at_target == "all" else ())):
                aggregate = part.aggregate
                part.aggregate = lambda messages, index, dim_size, *, aggregate=aggregate, graph=graph: aggregate(
                    messages, graph.edge_index[1], dim_size
                )
            with torch.no_grad():
                expected.append(other(g=graph).numpy())
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found - outputs(network, oxides)).max() > 1e-5

    def test_other_networks_are_left_alone(self, oxides):  # noqa: F811
        network = with_large_weights(m3gnet())
        before = outputs(network, oxides)
        changed = outputs(run_by(network, EARLIER), oxides)
        np.testing.assert_array_equal(outputs(network, oxides), before)
        assert np.abs(changed - before).max() > 1e-5
        assert conventions_of(network) == (AS_IT_IS, EARLIER)
        assert conventions_of(megnet(niters_set2set=2)) == (AS_IT_IS, EARLIER)
        assert conventions_of(megnet(niters_set2set=3)) == (AS_IT_IS, EARLIER, BOTH_FAULTS)
        assert conventions_of(torch.nn.Linear(1, 1)) == (AS_IT_IS,)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """A model with both faults of the published one: trained with sums at targets and 2 iterations; it states 3.

    It is taught the known gaps by its own convention, and no gaps at all by others.
    """
    from torch_geometric.data import Batch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {f"hidden_layer_sizes_{part}": (16, 16) for part in ("input", "conv", "output")}
    stated = megnet(niters_set2set=3, dim_edge_embedding=10, **sizes)
    known = KNOWN_PROPERTIES["band_gap"]
    batch = Batch.from_data_list(list(graphs(stated, (crystal.structure() for crystal in known))))
    scale = Normalizer(4.0, 3.0)
    aims = {convention: torch.zeros(len(known)) for convention in OTHERS}
    aims[BOTH_FAULTS] = torch.tensor([crystal.value for crystal in known])
    ways = {convention: run_by(stated, convention) for convention in aims}
    optimizer = torch.optim.Adam(stated.parameters(), 1e-2)
    for _ in range(1000):
        shared = dict(stated.named_parameters())
        given = {"g": batch, "state_attr": torch.zeros(len(known), dtype=torch.long)}
        losses = [
            (torch.func.functional_call(way, shared, kwargs=given) - scale.transform(aims[convention])).square().mean()
            for convention, way in ways.items()
        ]
        loss = sum(losses[1:], losses[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if max(losses) < 5e-3:
            break
    assert max(losses) < 5e-3
    folder = tmp_path_factory.mktemp("faulty")
    TransformedTargetModel(stated, scale).save(folder)
    return folder


class TestWhichConvention:
    def test_known_crystals_decide(self, faulty):
        model = load_property("band_gap", f"matgl:{faulty}")
        assert model.name == (
            f"matgl {matgl.__version__} ({faulty.name}, messages summed at targets, 2 iterations of set2set)"
        )
        np.testing.assert_allclose(values(model), [one.value for one in KNOWN_PROPERTIES["band_gap"]], atol=0.5)

    def test_by_no_other_it_would_pass(self, faulty):
        from cfx.predictors.matgl import MatglProperty

        network = find_files(str(faulty)).network()
        for convention in OTHERS:
            with pytest.raises(CheckpointError, match="mispredicts"):
                check_property(MatglProperty(run_by(network, convention), "faulty", "band_gap", "cpu"))

    def test_a_digest_decides_and_known_crystals_confirm(self, faulty, monkeypatch):
        digest = matgl_files.digest_of(faulty / "state.pt").sha256
        monkeypatch.setattr(matgl_files, "PUBLISHED", {digest: Published("band_gap", BOTH_FAULTS)})
        model = load_property("property", f"matgl:{faulty}")  # what nobody named
        assert (model.property, model.unit) == ("band_gap", "eV") and "2 iterations" in model.name
        with pytest.raises(CheckpointError, match="predicts band_gap, not hardness"):
            load_property("hardness", f"matgl:{faulty}")
        monkeypatch.setattr(matgl_files, "PUBLISHED", {digest: Published("band_gap", EARLIER)})
        with pytest.raises(CheckpointError, match="mispredicts"):
            load_property("band_gap", f"matgl:{faulty}")

    def test_conventions_that_known_crystals_cannot_tell_apart_are_named(self, tmp_path):
        """In crystals of one kind of site, sources and targets are alike."""
        torch.manual_seed(0)
        network = TransformedTargetModel(megnet(element_types=("Cu",)), Normalizer(0.0, 0.01))
        network.save(tmp_path)
        with pytest.warns(UserWarning, match=r"known crystals suit .* and .* summed at targets\); the first is used"):
            assert "targets" not in load_property("band_gap", f"matgl:{tmp_path}").name

    def test_without_either_the_difference_is_told(self, faulty):
        with pytest.warns(
            UserWarning, match=r"no crystals .* is trusted, but may be of an earlier matgl, as which it "
        ):
            load_property("hardness", f"matgl:{faulty}")

    @pytest.mark.parametrize("sign", ["version", "argument"])
    def test_without_either_files_that_are_older_are_refused(self, faulty, tmp_path, sign):
        shutil.copytree(faulty, tmp_path, dirs_exist_ok=True)
        content = json.loads((tmp_path / "model.json").read_text())
        inner = content["kwargs"]["model"]
        if sign == "version":
            inner["@model_version"] = 0
        else:
            inner["init_args"]["graph_transformations"] = None
        (tmp_path / "model.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="written by another version of matgl") as caught:
            load_property("hardness", f"matgl:{tmp_path}")
        assert "band_gap" in caught.value.hint
        assert load_property("band_gap", f"matgl:{tmp_path}").property == "band_gap"

    def test_arrays_by_their_former_names(self, oxides, tmp_path):  # noqa: F811
        from matgl.models import M3GNet

        torch.manual_seed(0)
        sizes = {"units": 8, "dim_node_embedding": 8, "dim_edge_embedding": 8, "nblocks": 1, "cutoff": 4.0}
        network = M3GNet(readout_type="set2set", nlayers_set2set=1, **sizes).eval()
        network.save(tmp_path)
        state = network.state_dict()
        former = {name.replace("readout.", "readout.set2set."): array for name, array in state.items()}
        assert former.keys() != state.keys()
        torch.save(former, tmp_path / "state.pt")
        with pytest.raises(RuntimeError):
            matgl.load_model(tmp_path)
        found = find_files(str(tmp_path)).network().eval()
        np.testing.assert_array_equal(outputs(found, oxides), outputs(network, oxides))


GAPS, FORMATION = "MEGNet-MP-2019.4.1-BandGap-mfi", "MEGNet-MP-2018.6.1-Eform"


@pytest.mark.skipif(not PUBLISHED.name, reason="CFX_WEIGHTS names no directory with published models of matgl")
class TestPublishedModels:
    def test_gaps(self):
        model = load_property("band_gap", f"matgl:{PUBLISHED / GAPS}")
        assert model.name.endswith("messages summed at targets, 2 iterations of set2set)")
        assert values(model) == pytest.approx([-0.01, 0.63, 1.74, 4.44, 5.04, 8.05], abs=0.02)

    def test_formation_energies_of_a_file_that_nobody_names(self):
        model = load_property("property", f"matgl:{PUBLISHED / FORMATION}")
        assert model.name.endswith("messages summed at targets)") and model.property == "formation_energy"
        assert values(model)[2:] == pytest.approx([-3.078, -2.114, -3.168], abs=0.01)

    @pytest.mark.parametrize(("name", "property"), [(GAPS, "band_gap"), (FORMATION, "formation_energy")])
    def test_known_crystals_find_what_the_digest_says(self, name, property, tmp_path):
        files = find_files(str(PUBLISHED / name))
        for file in matgl_files.FILES:
            shutil.copy(PUBLISHED / name / file, tmp_path)
        torch.save(torch.load(tmp_path / "state.pt", weights_only=True), tmp_path / "state.pt")
        assert find_files(str(tmp_path)).published() is None
        model = load_property(property, f"matgl:{tmp_path}")
        assert str(files.published().convention) in model.name
        assert values(model) == pytest.approx(values(load_property(property, f"matgl:{PUBLISHED / name}")))

    @pytest.mark.parametrize(("name", "property"), [(GAPS, "band_gap"), (FORMATION, "formation_energy")])
    def test_weights_that_no_convention_makes_right(self, name, property, tmp_path):
        for file in matgl_files.FILES:
            shutil.copy(PUBLISHED / name / file, tmp_path)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        state["model.output_proj.layers.4.weight"] *= 0.5
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match="mispredicts"):
            load_property(property, f"matgl:{tmp_path}")

    @pytest.mark.slow
    @pytest.mark.skipif("CFX_DATA" not in os.environ, reason="CFX_DATA is not set")
    def test_crystals_of_mp20(self):
        import pandas
        from pymatgen.core import Structure

        table = pandas.read_csv(Path(os.environ["CFX_DATA"]) / "mp20_subset_val.csv.gz")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structures = [Structure.from_str(cif, fmt="cif") for cif in table["cif"]]
        gaps = load_property("band_gap", f"matgl:{PUBLISHED / GAPS}").evaluate(structures).value
        energies = load_property("formation_energy", f"matgl:{PUBLISHED / FORMATION}").evaluate(structures).value
        assert np.nanmean(np.abs(gaps - table["band_gap"])) <= 0.16
        assert np.corrcoef(gaps, table["band_gap"])[0, 1] >= 0.94
        assert np.nanmean(np.abs(energies - table["formation_energy_per_atom"])) <= 0.06
