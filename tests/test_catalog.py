"""The catalog: facts that fit together."""

import pytest

from cfx.catalog import (
    ALIASES,
    AUTO,
    CATALOG,
    FALLBACK,
    KINDS,
    MODEL,
    DriveAddress,
    HubAddress,
    WebAddress,
    find,
    find_part,
    parse_address,
    place_of,
)
from cfx.config import ModelConfig
from cfx.config.training import MINI
from cfx.errors import UsageError

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("entry", CATALOG.values(), ids=lambda entry: entry.name)
def test_every_entry_is_whole(entry):
    assert entry.kind in KINDS and entry.licence and entry.summary
    assert entry.citation.startswith(("arXiv:", "doi:"))
    assert [bool(entry.files), entry.resource is not None, entry.library is not None].count(True) == 1
    for address in entry.files.values():
        assert str(parse_address(address)) == address
    if entry.kind == MODEL and entry.files:
        assert isinstance(entry.config, ModelConfig)


def test_names():
    assert find("alex20").name == "alex20"
    assert find("alex20-rl-fom").name == "alex20-rl-dielectric"
    assert find("alex-20", MODEL) is None and find("nothing") is None
    assert set(ALIASES.values()) <= set(CATALOG) and not set(ALIASES) & set(CATALOG)
    assert CATALOG[AUTO].files and CATALOG[FALLBACK].resource


def test_parts():
    entry, part = find_part("mp-20")
    assert (entry.name, part) == ("mp-20", "train")
    assert find_part("mp-20:test")[1] == "test"
    assert find_part("alex20")[1] == ""
    assert find_part("data:mp-20") is None
    with pytest.raises(UsageError, match="no part"):
        find_part("alex20:val")


def test_positions_of_the_published_models():
    positions = {name: entry.config.position for name, entry in CATALOG.items() if entry.config}
    rotary = dict.fromkeys(("alex20", "alex20-rl-ehull", "alex20-rl-dielectric"), "rotary")
    assert positions == rotary | {"mp20": "absolute"}


def test_addresses():
    hub = parse_address("hf:datasets/friend/crystals@v1.0/a/b.csv")
    assert hub == HubAddress("friend/crystals", "dataset", "a/b.csv", "v1.0")
    assert place_of(hub).as_posix() == "hf/datasets/friend/crystals@v1.0/a/b.csv"
    assert parse_address("hf:friend/model/x.pkl") == HubAddress("friend/model", "model", "x.pkl")
    assert isinstance(parse_address("https://host/x.csv"), WebAddress)
    assert place_of(parse_address("https://host:80/a/x.csv")).as_posix() == "web/host_80/a/x.csv"
    assert place_of(parse_address("drive:abc")) == place_of(DriveAddress("abc"))
    for text in ("x.csv", "ftp://host/x", "drive:../x", "models/x"):
        with pytest.raises(UsageError, match="not an address"):
            parse_address(text)


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:friend", "hf:friend/model", "hf:friend/model/", "hf:friend/model//x", "hf:friend/../x.pkl",
     "hf:friend/model/../x", "hf:friend/model/a/../x", "hf:friend/model/./x", "hf:../model/x.pkl", "hf:a/b/c\\d",
     "hf:a b/c/d.pkl", "hf:a--b/c/d.pkl", "hf:-a/b/c.pkl", "hf:a/b.git/c.pkl", "hf:a/b@../c.pkl"],
)  # fmt: skip
def test_addresses_that_lead_nowhere(text):
    with pytest.raises(UsageError, match="names no file"):
        parse_address(text)


@pytest.mark.parametrize("name", ["mini", "mini-rl-ehull", "mini-rl-fom"])
def test_bundled_models_are_there_with_their_cards(name):
    from cfx.io.files import resource_directory
    from cfx.model import load_model

    model, card = load_model(name), resource_directory(CATALOG[name]) / "README.md"
    assert name != "mini" or model.config == MINI
    assert f"Model card: {name}\n" in card.read_text()
    assert ("rl" in model.info) == ("-rl-" in name)
    crystals = model.sample(225, n=4, seed=0)
    assert len(crystals) == 4 and (crystals.space_group == 225).all()
