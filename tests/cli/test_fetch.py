"""cfx fetch as a user runs it: real processes and the real clients, against a stand-in for the internet."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from .. import processes
from ..conftest import published_pickle, published_shapes
from ..internet import COMMITS, TOKEN, Fault, Repo
from .conftest import COMMAND

DATA = "hf:datasets/friend/crystals/train.csv"
MODEL = "hf:friend/model/epoch_000001.pkl"
LARGE = np.random.default_rng(0).bytes(26_000_000)
"""More than two of the pieces of 10 MiB in which a download is written."""

SMALL = b"id,cif\n1,nothing\n"


class Machine:
    """A user's machine: a working directory, caches of its own, and a way to the internet."""

    def __init__(self, directory: Path, net):
        self.directory, self.net = directory, net
        self.cache, self.hub = directory / "cfx", directory / "hf"
        kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_ENDPOINT")}
        self.environment = kept | net.environment()
        self.environment |= {"CFX_CACHE": str(self.cache), "HF_HOME": str(self.hub), "HF_HUB_DOWNLOAD_TIMEOUT": "60"}

    def run(self, *arguments: object, limit: int | None = None, **environment: str):
        """Runs cfx; no file can grow beyond `limit` bytes."""
        env = self.environment | environment
        if limit is None:
            return processes.run(["cfx", *map(str, arguments)], self.directory, env)

        def prepare():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        command, pipe = [*COMMAND, *map(str, arguments)], subprocess.PIPE
        return subprocess.run(
            command, cwd=self.directory, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare
        )

    def start(self, *arguments: object):
        """Starts cfx and does not wait for it."""
        return processes.start(["cfx", *map(str, arguments)], self.directory, self.environment)

    def fetch(self, *arguments: object, **options):
        """Runs cfx fetch, which must succeed; returns the path it prints."""
        result = self.run("fetch", *arguments, **options)
        assert result.returncode == 0, result.stderr
        return Path(result.stdout.splitlines()[-1])

    def fail(self, *arguments: object, code: int, **options) -> list[str]:
        """Runs cfx, which must end with an exit code, one line and perhaps a hint; returns the lines."""
        result = self.run(*arguments, **options)
        lines = result.stderr.splitlines()
        assert (result.returncode, result.stdout) == (code, ""), result
        assert [line.split(":")[0] for line in lines] in (["error"], ["error", "hint"]), result.stderr
        return lines

    def contents(self) -> list[bytes]:
        """Of all files that a cache holds under a final name."""
        files = [file for base in (self.cache, self.hub) for file in base.rglob("*") if file.is_file()]
        return [file.read_bytes() for file in files if not file.is_symlink() and ".incomplete" not in file.name]

    def lock(self) -> dict:
        """What is recorded in fetched.json."""
        return json.loads((self.cache / "fetched.json").read_text())["records"]


@pytest.fixture
def machine(tmp_path, internet) -> Machine:
    internet.repos["datasets/friend/crystals"] = Repo({COMMITS[0]: {"train.csv": SMALL, "large.csv": LARGE}})
    return Machine(tmp_path, internet)


# What goes well.


def test_a_fresh_download_is_checked_and_recorded(machine):
    path = machine.fetch(DATA)
    assert path.read_bytes() == SMALL
    assert machine.hub in path.parents and COMMITS[0] in path.parts  # the hub's own cache, its own layout
    [locked] = machine.lock().values()
    import hashlib

    digest = hashlib.sha256(SMALL).hexdigest()
    assert locked["files"] == {"train.csv": {"sha256": digest, "size": len(SMALL)}}
    assert locked["commit"] == COMMITS[0]
    machine.net.log.clear()
    assert machine.fetch(DATA) == path
    assert machine.net.log == []  # what is here needs no network


def test_small_files_are_checked_by_their_git_digest(machine):
    machine.net.repos["datasets/friend/crystals"].lfs = False
    assert machine.fetch(DATA).read_bytes() == SMALL
    machine.net.faults.append(Fault("corrupt", "GET .*train.csv"))
    lines = machine.fail("fetch", DATA, "--force", code=5)
    assert "arrived corrupted" in lines[0]


def test_hf_endpoint_is_honoured(machine):
    path = machine.fetch(DATA, HF_ENDPOINT=machine.net.url, HTTPS_PROXY="", https_proxy="")
    assert path.read_bytes() == SMALL
    assert not machine.net.asked("huggingface.co")


def test_what_another_program_has_put_into_the_hub_s_cache_is_used(machine):
    """With the network, content is not fetched again; without it, it is enough."""
    code = "from huggingface_hub import hf_hub_download as f; f('friend/crystals', 'train.csv', repo_type='dataset')"
    command = [COMMAND[0], "-c", code]
    subprocess.run(command, env=machine.environment, check=True, capture_output=True)
    machine.net.log.clear()
    assert machine.fetch(DATA, HF_HUB_OFFLINE="1").read_bytes() == SMALL
    assert machine.net.log == []
    shutil.rmtree(machine.cache)
    assert machine.fetch(DATA).read_bytes() == SMALL
    assert not machine.net.asked("GET")


def test_other_programs_find_what_cfx_has_fetched(machine):
    path = machine.fetch(DATA)
    code = "from huggingface_hub import hf_hub_download as f"
    code += "; print(f('friend/crystals', 'train.csv', repo_type='dataset'))"
    offline = machine.environment | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run([COMMAND[0], "-c", code], env=offline, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(path)
    shutil.rmtree(machine.cache)
    assert machine.fetch(DATA, HF_HUB_OFFLINE="1") == path


@pytest.mark.parametrize(
    "headers",
    [{"X-Linked-Etag": '"{victim}"'}, {"X-Repo-Commit": "../../../../victim"}, {"X-Linked-Etag": '"' + "5" * 32 + '"'}],
)
def test_a_hub_that_names_no_digest_or_commit(machine, headers):
    """It is a mirror that is none, or it wants to lead us elsewhere."""
    victim = machine.directory / "victim"
    victim.write_text("mine")
    headers = {name: value.replace("{victim}", str(victim)) for name, value in headers.items()}
    machine.net.faults.append(Fault("headers", "HEAD", 100, headers=headers))
    lines = machine.fail("fetch", DATA, code=5)
    assert "not a Hugging Face hub" in lines[0] and "HF_ENDPOINT" in lines[1]
    assert victim.read_text() == "mine" and not machine.net.asked("GET")


def test_an_offline_revision_is_not_another_one(machine):
    machine.fetch(DATA)
    machine.net.repos["datasets/friend/crystals"].commits[COMMITS[1]] = {"train.csv": b"new"}
    assert machine.fetch(DATA, "--revision", "main").read_bytes() == b"new"
    assert machine.fetch(DATA, "--revision", COMMITS[0], HF_HUB_OFFLINE="1").read_bytes() == SMALL
    machine.fail("fetch", DATA, "--revision", COMMITS[2], code=5, HF_HUB_OFFLINE="1")
    assert machine.lock()[DATA]["commit"] == COMMITS[0]


def test_without_its_blob_name_a_cached_file_is_not_trusted_offline(machine):
    path = machine.fetch(DATA)
    path.resolve().write_bytes(b"something else")
    shutil.rmtree(machine.cache)
    (path.parents[2] / "refs").mkdir(exist_ok=True)
    (path.parents[2] / "refs" / "main").write_text(COMMITS[0])
    lines = machine.fail("fetch", DATA, code=5, HF_HUB_OFFLINE="1")
    assert "not cached" in lines[0]
    assert machine.fetch(DATA).read_bytes() == SMALL  # with a network it is mended


# Cut connections, trouble at the server.


def test_a_cut_connection_is_resumed(machine):
    machine.net.faults.append(Fault("cut", "GET .*/cdn/", amount=15_000_000))
    path = machine.fetch("hf:datasets/friend/crystals/large.csv")
    assert path.read_bytes() == LARGE
    ranges = [headers.get("range") for _, _, headers in machine.net.asked("GET .*/cdn/")]
    assert ranges == [None, "bytes=10485760-"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_an_interrupted_fetch_is_continued_by_the_next(machine, signum):
    machine.net.faults.append(Fault("stall", "GET .*/cdn/", amount=15_000_000))
    process = machine.start("fetch", "hf:datasets/friend/crystals/large.csv")
    wait_for(lambda: any(file.stat().st_size > 10_000_000 for file in machine.hub.rglob("*.incomplete")))
    process.send_signal(signum)
    _, stderr = process.communicate()
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum
        assert stderr.count("\n") == 1 and stderr.startswith("error: stopped fetching"), stderr
    assert LARGE not in machine.contents()
    machine.net.log.clear()
    assert machine.fetch("hf:datasets/friend/crystals/large.csv").read_bytes() == LARGE
    [(_, _, headers)] = machine.net.asked("GET .*/cdn/")
    assert headers["range"] == "bytes=10485760-"
    assert not list(machine.hub.rglob("*.incomplete"))


def wait_for(condition, seconds: float = processes.PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_busy_server_is_asked_again(machine):
    faults = [
        Fault("status", f"{method} .*train.csv", 1, status, {"Retry-After": "0"})
        for method in ("HEAD", "GET")
        for status in (429, 500, 503)
    ]
    machine.net.faults += faults
    assert machine.fetch(DATA).read_bytes() == SMALL
    assert not any(fault.times for fault in faults)  # each befell it


@pytest.mark.parametrize(("status", "trouble"), [(429, "too many requests"), (503, "reports an error (503)")])
def test_a_server_that_stays_busy(machine, status, trouble):
    machine.net.faults.append(Fault("status", "HEAD", 100, status, {"Retry-After": "0"}))
    lines = machine.fail("fetch", DATA, code=5)
    assert trouble in lines[0] and "later" in lines[1]
    assert SMALL not in machine.contents()
    machine.net.faults.clear()
    assert machine.fetch(DATA).read_bytes() == SMALL


def test_a_server_that_wants_us_to_wait_too_long(machine):
    machine.net.faults.append(Fault("status", "HEAD", 100, 429, {"Retry-After": "3600"}))
    machine.fail("fetch", DATA, code=5)
    assert len(machine.net.log) == 1


@pytest.mark.slow
def test_a_slow_server(machine):
    machine.net.faults.append(Fault("slow", "GET .*/cdn/", amount=0.3))
    assert machine.fetch("hf:datasets/friend/crystals/large.csv").read_bytes() == LARGE


@pytest.mark.slow
def test_a_server_that_falls_silent(machine):
    """Once: the client asks again. Always: it gives up."""
    machine.net.faults.append(Fault("stall", "GET .*/cdn/", amount=3))
    assert machine.fetch(DATA, HF_HUB_DOWNLOAD_TIMEOUT="1").read_bytes() == SMALL
    machine.net.faults.append(Fault("stall", "HEAD", 100, amount=3))
    lines = machine.fail("fetch", DATA, "--force", code=5, HF_HUB_ETAG_TIMEOUT="1")
    assert "does not respond" in lines[0]


def test_a_server_that_sends_a_byte_at_a_time(machine):
    """As good as silent: asked again."""
    machine.net.faults.append(Fault("drip", "GET .*/cdn/", amount=0.2))
    assert machine.fetch("hf:datasets/friend/crystals/large.csv", HF_HUB_DOWNLOAD_TIMEOUT="1").read_bytes() == LARGE
    assert len(machine.net.asked("GET .*/cdn/")) == 2


# Refusals.


def test_what_is_not_there(machine):
    lines = machine.fail("fetch", "hf:datasets/friend/crystals/nothing.csv", code=5)
    assert "no such file" in lines[0] and "nothing.csv" in lines[0]
    lines = machine.fail("fetch", DATA, "--revision", "v9", code=5)
    assert "no such revision" in lines[0] and "--revision" in lines[1]
    lines = machine.fail("fetch", "hf:nobody/nothing/x.csv", code=5)
    assert "nobody/nothing" in lines[0] and "--token" in lines[1]


@pytest.mark.parametrize("access", ["private", "gated"])
def test_tokens(machine, access):
    machine.net.repos["datasets/friend/crystals"].access = access
    lines = machine.fail("fetch", DATA, code=5)
    assert "--token" in lines[1]
    lines = machine.fail("fetch", DATA, "--token", "hf_wrong", code=5)
    assert "token" in lines[0] and "hf_wrong" not in "".join(lines)
    assert machine.fetch(DATA, "--token", TOKEN).read_bytes() == SMALL
    lines = machine.fail("fetch", DATA, "--force", "--token", "hf_s\u00e9cret", code=2)
    assert "cret" not in "".join(lines)
    assert machine.fetch(DATA, "--force", "--token", f" {TOKEN}\n").read_bytes() == SMALL
    sent = {host: headers.get("authorization") for _, host, headers in machine.net.log}
    assert all(token is None for host, token in sent.items() if "/cdn/" in host)  # the CDN is somebody else
    assert not any(TOKEN.encode() in content for content in machine.contents())
    assert machine.fetch(DATA, "--force", HF_TOKEN=TOKEN).read_bytes() == SMALL


def test_wrong_size(machine):
    machine.net.faults.append(Fault("short", "HEAD .*train.csv"))
    lines = machine.fail("fetch", DATA, code=5)
    assert "a different number of bytes" in lines[0]
    assert SMALL not in machine.contents() and not list(machine.hub.rglob("*.incomplete"))
    assert machine.fetch(DATA).read_bytes() == SMALL


def test_more_bytes_than_announced(machine):
    endless = Fault("long", "GET .*/cdn/")
    machine.net.faults.append(endless)
    lines = machine.fail("fetch", DATA, code=5)
    assert "a different number of bytes" in lines[0]
    assert endless.hung_up.wait(60)  # nobody waited for the rest
    assert SMALL not in machine.contents()
    assert not list(machine.hub.rglob("*.incomplete"))


def test_wrong_digest(machine):
    machine.net.faults.append(Fault("corrupt", "GET .*/cdn/"))
    lines = machine.fail("fetch", DATA, code=5)
    assert "arrived corrupted" in lines[0]
    assert not any(content.endswith(SMALL[1:]) for content in machine.contents())
    assert machine.fetch(DATA).read_bytes() == SMALL


def closed_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_no_network(machine):
    nowhere = f"http://127.0.0.1:{closed_port()}"
    for proxy in ({"HF_ENDPOINT": nowhere}, {"HTTPS_PROXY": nowhere, "https_proxy": nowhere}):
        lines = machine.fail("fetch", DATA, code=5, **proxy)
        assert "cannot reach" in lines[0] and "--export" in lines[1]


@pytest.mark.parametrize(
    ("environment", "word"),
    [({"HTTPS_PROXY": "socks5://127.0.0.1:1", "https_proxy": "socks5://127.0.0.1:1"}, "HTTPS_PROXY"),
     ({"SSL_CERT_FILE": "/nowhere.pem"}, "SSL_CERT_FILE"), ({"SSL_CERT_FILE": ""}, "SSL_CERT_FILE"),
     ({"HF_ENDPOINT": "huggingface.co"}, "HF_ENDPOINT"), ({"HF_ENDPOINT": "https://[bad"}, "HF_ENDPOINT")],
)  # fmt: skip
def test_settings_that_cannot_be_meant(machine, environment, word):
    lines = machine.fail("fetch", DATA, code=5, **environment)
    assert word in lines[1]
    assert embeddings_of_auto(machine, **environment)[0] == "mini"


def test_offline(machine):
    lines = machine.fail("fetch", DATA, code=5, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in lines[0] and "--import" in lines[1]
    lines = machine.fail("fetch", "mp-20:val", code=5, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in lines[0]
    assert machine.net.log == []


def test_a_full_disk(machine):
    lines = machine.fail("fetch", "hf:datasets/friend/crystals/large.csv", code=8, limit=12_000_000)
    assert "cannot write" in lines[0] and "HF_HOME" in lines[1]
    assert not list(machine.hub.rglob("*.incomplete"))  # it does not stay full of our remains
    assert machine.fetch("hf:datasets/friend/crystals/large.csv").read_bytes() == LARGE


# The lock.


def test_the_recorded_commit_is_fetched_again(machine):
    machine.fetch(DATA)
    machine.net.repos["datasets/friend/crystals"].commits[COMMITS[1]] = {"train.csv": b"new"}
    shutil.rmtree(machine.hub)
    assert machine.fetch(DATA).read_bytes() == SMALL
    assert machine.fetch(DATA, "--force").read_bytes() == SMALL
    assert machine.fetch(DATA, "--revision", "main").read_bytes() == b"new"
    assert machine.fetch(DATA).read_bytes() == b"new"
    assert machine.lock()[DATA]["commit"] == COMMITS[1]


def test_a_commit_that_changes_is_refused(machine):
    machine.fetch(DATA)
    machine.net.repos["datasets/friend/crystals"].commits[COMMITS[0]]["train.csv"] = b"forged"
    for force in (True, False):
        lines = machine.fail("fetch", DATA, *["--force"] * force, code=5)
        assert "differs from what was first fetched" in lines[0] and "--accept" in lines[1]
        assert b"forged" not in machine.contents()
        shutil.rmtree(machine.hub)
    assert machine.fetch(DATA, "--accept").read_bytes() == b"forged"
    machine.net.repos["datasets/friend/crystals"].commits[COMMITS[0]]["train.csv"] = SMALL
    assert machine.fetch(DATA, "--revision", "main").read_bytes() == SMALL  # the same commit, the link follows
    assert machine.run("fetch", "--verify").returncode == 0


# Models.


def test_a_published_model_is_sampled_from_with_no_other_set_up(machine):
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: {"alex20/PBE/epoch_005500.pkl": published_pickle()}})
    result = machine.run("sample", "--model", "alex20", "--sg", "194", "--n", "5", "--keep-invalid", "-o", "x.csv")
    assert result.returncode == 0, result.stderr
    assert len((machine.directory / "x.csv").read_text().splitlines()) == 6
    [source] = [locked for key, locked in machine.lock().items() if key.startswith("hf:")]
    [converted] = machine.cache.glob("models/alex20-*/checkpoint.json")
    facts = json.loads(converted.read_text())["source"]
    assert facts["address"] == "hf:zdcao/CrystalFormer/alex20/PBE/epoch_005500.pkl"
    assert (facts["commit"], facts["name"]) == (COMMITS[0], "alex20")
    assert facts["sha256"] == source["files"]["epoch_005500.pkl"]["sha256"]
    machine.net.log.clear()
    shutil.rmtree(machine.hub)  # converted once is enough
    assert machine.fetch("alex20") == converted.parent
    assert machine.net.log == []


def test_both_generations_side_by_side(machine):
    files = {"alex20/RL-dielectric/epoch_000100.pkl": published_pickle()}
    files["mp20/epoch_003800.pkl"] = published_pickle("absolute")
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: files})
    result = machine.run("fetch", "alex20-rl-fom", "mp20")
    assert result.returncode == 0, result.stderr
    rotary, absolute = (json.loads((Path(p) / "checkpoint.json").read_text()) for p in result.stdout.split())
    assert (rotary["model"]["position"], absolute["model"]["position"]) == ("rotary", "absolute")
    assert rotary["source"]["name"] == "alex20-rl-dielectric"
    again = machine.run("fetch", "alex20-rl-dielectric", HF_HUB_OFFLINE="1")
    assert again.stdout.split() == result.stdout.split()[:1]


def test_another_architecture_than_stated_is_said(machine):
    files = {"mp20/epoch_003800.pkl": published_pickle("absolute", layers=2)}
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: files})
    result = machine.run("fetch", "mp20")
    assert result.returncode == 0
    assert "num_layers 2 instead of 16" in result.stderr


@pytest.fixture
def with_model(machine):
    """A small model in friend/model."""
    machine.net.repos["friend/model"] = Repo({COMMITS[0]: {"epoch_000001.pkl": published_pickle(layers=1)}})
    return machine


def test_a_file_named_by_hand(with_model):
    result = with_model.run("plot", "embeddings", MODEL, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model"] == MODEL
    path = with_model.fetch(MODEL)
    assert path.name.startswith("epoch_000001-") and (path / "params.safetensors").exists()
    for wrong in ("hf:friend", "hf:friend/model", "hf:friend/model/../x.pkl"):
        lines = with_model.fail("plot", "embeddings", wrong, code=2)
        assert "hf:owner/repo/path" in lines[1]


@pytest.mark.slow
def test_two_processes_at_once(with_model):
    with_model.net.faults.append(Fault("slow", "GET .*/cdn/", amount=0.2))
    processes = [with_model.start("fetch", MODEL) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and Path(outputs[0][0].strip()).is_dir()
    assert len(with_model.net.asked("GET .*/cdn/")) == 1
    assert sum("waiting for it" in stderr for _, stderr in outputs) == 1


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_is_refused_deleted_and_named(machine, tmp_path):
    content = pickle.dumps({"params": Hostile(tmp_path / "marker")})
    machine.net.repos["friend/model"] = Repo({COMMITS[0]: {"epoch_000001.pkl": content}})
    for command in (["fetch", MODEL], ["score", "nothing.csv", "--model", MODEL]):
        lines = machine.fail(*command, code=4)
        assert f"{MODEL}: refused a pickle that asks for posix.system; nothing in it was run" in lines[0]
        assert "deleted" in lines[0]
    assert not (tmp_path / "marker").exists()
    assert content not in machine.contents()
    assert not any(path.is_symlink() for path in machine.hub.rglob("*"))
    assert machine.lock() == {}


def test_another_family_is_refused(machine):
    params = published_shapes(layers=1)
    params["~"]["g_embedding_table"] = np.zeros((230, 32), np.float32)
    content = pickle.dumps({"params": params})
    machine.net.repos["friend/model"] = Repo({COMMITS[0]: {"epoch_000001.pkl": content}})
    lines = machine.fail("fetch", MODEL, code=4)
    assert "not CrystalFormer parameters" in lines[0]


def test_a_model_is_converted_anew_when_its_file_changes(with_model):
    before = with_model.fetch(MODEL)
    assert with_model.fetch(MODEL, "--force") == before
    changed = published_pickle("absolute", layers=1)
    with_model.net.repos["friend/model"].commits[COMMITS[1]] = {"epoch_000001.pkl": changed}
    after = with_model.fetch(MODEL, "--revision", "main")
    assert json.loads((after / "checkpoint.json").read_text())["model"]["position"] == "absolute"
    assert with_model.fetch(MODEL) == after


def test_a_pickle_that_changed_on_this_disk_is_not_converted(with_model):
    address = "hf:friend/model/epoch_000001.pkl"
    with_model.fetch(address)
    shutil.rmtree(with_model.cache / "models")
    [blob] = [path for path in with_model.hub.rglob("blobs/*") if path.is_file()]
    blob.write_bytes(published_pickle("absolute", layers=1))
    lines = with_model.fail("fetch", address, code=4)
    assert "changed after it was fetched" in lines[0] and "again" in lines[1]
    path = with_model.fetch(address)
    assert json.loads((path / "checkpoint.json").read_text())["model"]["position"] == "rotary"


def test_a_conversion_of_an_earlier_file_is_not_used(with_model):
    """As if a process had been killed between the download of a new file and its conversion."""
    before = with_model.fetch(MODEL)
    conversion = {key: value for key, value in with_model.lock().items() if key.startswith("models/")}
    changed = published_pickle("absolute", layers=1)
    with_model.net.repos["friend/model"].commits[COMMITS[1]] = {"epoch_000001.pkl": changed}
    saved = before.with_name("saved")
    shutil.copytree(before, saved)
    with_model.fetch(MODEL, "--revision", "main")
    assert not before.exists()  # what is not used any more is gone
    shutil.rmtree(with_model.cache / "models" / json.loads(json.dumps(with_model.lock().popitem()))[0].split("/")[1])
    saved.rename(before)
    records = {key: value for key, value in with_model.lock().items() if key.startswith("hf:")} | conversion
    (with_model.cache / "fetched.json").write_text(json.dumps({"format": 1, "records": records}))
    after = with_model.fetch(MODEL)
    assert json.loads((after / "checkpoint.json").read_text())["model"]["position"] == "absolute"


# auto.


def embeddings_of_auto(machine, **environment: str) -> tuple[str, str]:
    """The model that auto means, and what is said about it."""
    result = machine.run("plot", "embeddings", "--json", **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["model"], result.stderr


def test_auto_fetches_the_published_model(machine):
    files = {"alex20/PBE/epoch_005500.pkl": published_pickle()}
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: files})
    assert embeddings_of_auto(machine)[0] == "alex20"
    assert embeddings_of_auto(machine, HF_HUB_OFFLINE="1") == ("alex20", "")


def test_auto_without_a_network_is_the_bundled_model_and_says_so(machine):
    name, said = embeddings_of_auto(machine, HF_HUB_OFFLINE="1")
    assert name == "mini"
    assert said.startswith(
        "warning: using the bundled model mini, since alex20 is not on this machine and HF_HUB_OFFLINE"
    )


def test_a_dead_network_is_tried_by_auto_once(machine):
    """A server that takes connections and says nothing."""
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        silent.setblocking(False)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for tried in (True, False):
            name, said = embeddings_of_auto(machine, HF_ENDPOINT=endpoint)
            assert name == "mini" and "alex20" in said and "does not respond" in said
            assert connections(silent) == tried


def connections(listener: socket.socket) -> int:
    """How many wait to be accepted; none does afterwards."""
    for count in range(100):
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError("too many")


def test_a_download_that_breaks_off_does_not_stop_auto(machine):
    files = {"alex20/PBE/epoch_005500.pkl": published_pickle()}
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: files})
    machine.net.faults.append(Fault("corrupt", "GET .*/cdn/"))
    name, said = embeddings_of_auto(machine)
    assert name == "mini" and "arrived corrupted" in said
    assert embeddings_of_auto(machine)[0] == "alex20"


def test_auto_does_not_need_a_cache(machine, tmp_path):
    """A disk that is full, or a place where nothing can be made."""
    files = {"alex20/PBE/epoch_005500.pkl": published_pickle(layers=1)}
    machine.net.repos["zdcao/CrystalFormer"] = Repo({COMMITS[0]: files})
    (tmp_path / "file").write_text("")
    for broken in ({"CFX_CACHE": str(tmp_path / "file" / "x")}, {"HF_HOME": str(tmp_path / "file" / "x")}):
        name, said = embeddings_of_auto(machine, **broken)
        assert name == "mini" and "cannot" in said and "Traceback" not in said


def test_a_model_named_explicitly_is_never_replaced(machine):
    lines = machine.fail("plot", "embeddings", "alex20", code=5, HF_HUB_OFFLINE="1")
    assert "alex20" in lines[0]
    lines = machine.fail("plot", "embeddings", "alex-20", code=4)
    assert "not a model" in lines[0] and "mini" in lines[1]


# Data sets, the web, Google Drive.

MP20 = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20"


def crystals(*symbols: str) -> bytes:
    rows = []
    for symbol in symbols:
        cell = Lattice.cubic(3 + len(rows) / 10)
        cif = Structure(cell, [symbol, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(fmt="cif")
        rows.append(f'mp-{len(rows)},"{cif}"\n'.replace('""', '"'))
    return ("material_id,cif\n" + "".join(rows)).encode()


@pytest.fixture
def with_mp20(machine):
    for part, symbols in {"train": ["Cs", "Rb", "Tl", "K"], "val": ["Na", "Li"], "test": ["Cs"]}.items():
        machine.net.pages[f"{MP20}/{part}.csv"] = crystals(*symbols)
    return machine


def test_a_data_set_by_name(with_mp20, tmp_path):
    result = with_mp20.run("data", "mp-20:val", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["source"], summary["crystals"]) == ("mp-20:val", 2)
    config = tmp_path / "small.toml"
    config.write_text("[model]\nnum_layers = 1\nnum_heads = 1\nkey_size = 8\nmodel_size = 8\nfirst_hidden = 8\n")
    arguments = ["--epochs", "1", "--batch-size", "2", "--config", config]
    result = with_mp20.run("train", "mp-20", "--validation", "mp-20:val", "-o", "run", *arguments)
    assert result.returncode == 0, result.stderr
    assert "mp-20: 4 crystals" in result.stderr
    assert 'train = "mp-20"' in (tmp_path / "run" / "config.toml").read_text()
    best = json.loads((tmp_path / "run" / "best" / "checkpoint.json").read_text())
    assert best["run"]["data"]["source"] == "mp-20"
    result = with_mp20.run("train", "-o", "run", "--resume", HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr


def test_alex_20_as_published(machine):
    """A column of printed dictionaries, in a data set of the hub."""
    structure = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    content = f'mat_id,structure\nagm1,"{structure.as_dict()}"\n'.encode()
    machine.net.repos["datasets/zdcao/alex-20"] = Repo({COMMITS[0]: {"alex20/test.csv": content}})
    result = machine.run("data", "alex-20:test", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["space_groups"] == {"221": 1}


def test_parts_of_a_data_set(with_mp20):
    result = with_mp20.run("fetch", "mp-20")
    assert [Path(line).name for line in result.stdout.split()] == ["train.csv", "val.csv", "test.csv"]
    lines = with_mp20.fail("fetch", "mp-20:dev", code=2)
    assert "mp-20:val" in lines[1]
    for other in ("mp20", "alexandria-pbe", "dielectric-total", "chgnet"):
        lines = with_mp20.fail("data", other, code=3)
        assert "not a data set" in lines[0]
    (with_mp20.directory / "mp-20:dev").write_bytes(b"")
    assert "unknown format" in with_mp20.fail("data", "mp-20:dev", code=3)[0]  # a file of that name wins


def test_a_page_that_changes_is_refused(with_mp20):
    path = with_mp20.fetch("mp-20:val")
    original = path.read_bytes()
    with_mp20.net.pages[f"{MP20}/val.csv"] = b"forged"
    lines = with_mp20.fail("fetch", "mp-20:val", "--force", code=5)
    assert "differs from what was first fetched" in lines[0]
    assert path.read_bytes() == original and b"forged" not in with_mp20.contents()
    path.unlink()
    lines = with_mp20.fail("fetch", "mp-20:val", code=5)
    assert not path.exists() and "--accept" in lines[1]
    assert with_mp20.fetch("mp-20:val", "--accept").read_bytes() == b"forged"


def kill_in_the_middle(machine) -> None:
    """Leaves a partial file of mp-20:train."""
    machine.net.faults.append(Fault("stall", "GET .*mp_20", amount=15_000_000))
    process = machine.start("fetch", "mp-20:train")
    wait_for(lambda: any(file.stat().st_size > 10_000_000 for file in machine.cache.rglob("*.incomplete")))
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_page_is_resumed_but_never_mixed(machine):
    address = f"{MP20}/train.csv"
    machine.net.pages[address] = LARGE
    kill_in_the_middle(machine)
    machine.net.pages[address] = LARGE[::-1]
    assert machine.fetch("mp-20:train").read_bytes() == LARGE[::-1]
    assert not list(machine.cache.rglob("*.incomplete"))


def test_servers_with_little_to_say(with_mp20):
    """HEAD is not allowed; then nothing tells whether the rest of a file belongs to its beginning."""
    address = f"{MP20}/train.csv"
    with_mp20.net.pages[address] = LARGE
    with_mp20.net.faults.append(Fault("status", "HEAD .*mp_20", 100, 405))
    kill_in_the_middle(with_mp20)
    assert with_mp20.fetch("mp-20:train").read_bytes() == LARGE
    assert with_mp20.net.asked("GET .*mp_20")[-1][2].get("range") is None


def test_a_partial_file_that_is_whole_already(with_mp20):
    address = f"{MP20}/train.csv"
    with_mp20.net.pages[address] = LARGE
    kill_in_the_middle(with_mp20)
    [partial] = with_mp20.cache.rglob("*.incomplete")
    partial.write_bytes(LARGE[::-1])  # as long, and wrong
    with_mp20.net.faults.append(Fault("status", "GET .*mp_20", 1, 416))
    assert with_mp20.fetch("mp-20:train").stat().st_size == len(LARGE)


def test_a_page_that_is_not_there(machine):
    lines = machine.fail("fetch", "mp-20:val", code=5)
    assert f"no such file: {MP20}/val.csv" in lines[0]
    lines = machine.fail("fetch", "mp-20:val", "--revision", "main", code=2)
    assert "no revisions" in lines[0]


def test_a_folder_of_google_drive(machine):
    folder = "1hQJD5R0dMJVC3nA1YkSHkCG9s-IAVNnA"
    machine.net.folders[folder] = {"model.pt": b"weights", "model.json": b"{}"}
    path = machine.fetch("dielectric-total")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == machine.net.folders[folder]
    machine.net.log.clear()
    assert machine.fetch("dielectric-total") == path and machine.net.log == []
    for forged in ({"model.pt": b"forged!", "model.json": b"{}"}, {"model.pt": b"weights"},
                   {"model.pt": b"weights", "model.json": b"{}", "evil.pt": b""}):  # fmt: skip
        machine.net.folders[folder] = forged
        lines = machine.fail("fetch", "dielectric-total", "--force", code=5)
        assert "differs from what was first fetched" in lines[0] and not path.exists()
    assert machine.fetch("dielectric-total", "--accept") == path and (path / "evil.pt").exists()
    shutil.rmtree(path)
    del machine.net.folders[folder]
    lines = machine.fail("fetch", "dielectric-total", code=5)
    assert "Google Drive" in lines[0]


def test_what_was_renamed_is_fetched_by_its_former_name(machine, tmp_path):
    """By its present one where that is there; what is here under the former one needs no network."""
    now, formerly = (f"materialyze/MEGNet-{name}" for name in ("BandGap-mfi-MP-2019.4.1", "MP-2019.4.1-BandGap-mfi"))
    files = {name: name.encode() for name in ("model.json", "model.pt", "state.pt")}
    lines = machine.fail("fetch", "megnet-bandgap", code=5)
    assert now in lines[0]  # of two names that are not there, the present one is told
    machine.net.repos[formerly] = Repo({COMMITS[0]: files})
    path = machine.fetch("megnet-bandgap")
    assert path.read_bytes() == b"state.pt" and set(machine.lock()) == {f"hf:{formerly}/{name}" for name in files}
    listed = json.loads(machine.run("fetch", "--list", "--json").stdout)
    assert next(entry for entry in listed if entry["name"] == "megnet-bandgap")["cached"] == "yes"
    machine.net.repos[now] = Repo({COMMITS[0]: files})
    machine.net.log.clear()
    assert machine.fetch("megnet-bandgap") == path and machine.net.log == []
    assert machine.fetch("megnet-bandgap", "--force") != path and not machine.net.asked(formerly)


def test_a_present_name_that_cannot_be_reached_is_not_replaced(machine):
    """A server in trouble says nothing of where a model is."""
    formerly = "materialyze/MEGNet-MP-2019.4.1-BandGap-mfi"
    machine.net.repos[formerly] = Repo({COMMITS[0]: {"model.json": b"", "model.pt": b"", "state.pt": b""}})
    machine.net.faults.append(Fault("status", "HEAD .*BandGap-mfi-MP", times=9, amount=418))
    machine.fail("fetch", "megnet-bandgap", code=5)
    assert not machine.net.asked(formerly)


# Machines without a network.


def test_export_and_import(with_model, with_mp20, tmp_path):
    with_model.fetch(MODEL)
    with_model.fetch("mp-20:val")
    result = with_model.run("fetch", DATA, MODEL, "mp-20:val", "--export", "stick")
    assert result.returncode == 0, result.stderr
    stick = tmp_path / "stick"
    assert not list(stick.rglob("*.pkl"))  # what was converted needs no pickle
    there = {"CFX_CACHE": str(tmp_path / "node"), "HF_HOME": str(tmp_path / "node-hf"), "HF_HUB_OFFLINE": "1"}
    result = with_model.run("fetch", "--import", "stick", **there)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(stick)
    assert with_model.fetch(DATA, **there).read_bytes() == SMALL
    assert json.loads(with_model.run("data", "mp-20:val", "--json", **there).stdout)["crystals"] == 2
    result = with_model.run("plot", "embeddings", MODEL, "--json", **there)
    assert result.returncode == 0, result.stderr
    assert with_model.run("fetch", "--verify", **there).returncode == 0


def test_a_damaged_export_is_not_taken_over(with_mp20, tmp_path):
    result = with_mp20.run("fetch", "mp-20", "--export", "stick")
    assert result.returncode == 0, result.stderr
    [path] = (tmp_path / "stick").rglob("val.csv")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    there = {"CFX_CACHE": str(tmp_path / "node"), "HF_HUB_OFFLINE": "1"}
    lines = with_mp20.fail("fetch", "--import", "stick", code=3, **there)
    assert "val.csv" in lines[0]
    assert not list((tmp_path / "node").rglob("*.csv"))
    lines = with_mp20.fail("fetch", "--import", "nowhere", code=3, **there)
    assert "--export" in lines[1]


def test_an_export_cannot_write_elsewhere(machine, tmp_path):
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "x").write_text("evil")
    for name, directory, word in (
        ("../../x", "files", "is outside"),
        ("x", "../elsewhere", "is outside"),
        ("x", "/tmp/elsewhere", "is outside"),
        ("x", "compiled", "is outside the directory"),
        ("x", None, "is outside the directory"),
    ):
        record = {"files": {name: {"sha256": "0" * 64, "size": 4}}, "directory": directory}
        (tmp_path / "stick" / "fetched.json").write_text(json.dumps({"format": 1, "records": {"hf:a/b/x": record}}))
        lines = machine.fail("fetch", "--import", "stick", code=3)
        assert word in lines[0]


def test_an_import_does_not_replace_another_version(with_model, tmp_path):
    with_model.fetch(MODEL)
    assert with_model.run("fetch", "--export", "stick").returncode == 0
    changed = published_pickle("absolute", layers=1)
    with_model.net.repos["friend/model"].commits[COMMITS[1]] = {"epoch_000001.pkl": changed}
    path = with_model.fetch(MODEL, "--revision", "main")
    lines = with_model.fail("fetch", "--import", "stick", code=3)
    assert "was made from a different" in lines[0]
    assert with_model.fetch(MODEL) == path


def test_verify_removes_what_is_damaged(with_model):
    directory = with_model.fetch(MODEL)
    data = with_model.fetch(DATA)
    result = with_model.run("fetch", "--verify")
    assert result.returncode == 0 and result.stdout.count("ok ") == 4
    (directory / "checkpoint.json").write_text("{}")
    data.resolve().write_bytes(SMALL[::-1])
    result = with_model.run("fetch", "--verify", "--json")
    assert result.returncode == 4 and "2 files were damaged and removed" in result.stderr
    assert sorted(one["state"] for one in json.loads(result.stdout)).count("damaged") == 2
    assert not (directory / "checkpoint.json").exists() and not data.exists()
    assert len(json.loads(result.stdout)) == 4
    assert with_model.fetch(DATA) == data and data.read_bytes() == SMALL
    assert with_model.fetch(MODEL) == directory
    assert with_model.run("fetch", "--verify").returncode == 0


# The list, and the command line.


def test_the_list(with_mp20):
    result = with_mp20.run("fetch", "--list")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert " no " in rows["mp-20"] and "with cfx" in rows["mini"] and "by chgnet" in rows["chgnet"]
    with_mp20.fetch("mp-20:val")
    facts = {entry["name"]: entry for entry in json.loads(with_mp20.run("fetch", "--list", "--json").stdout)}
    assert facts["mp-20"]["cached"] == "partly"
    assert facts["alex20"]["architecture"]["position"] == "rotary"
    assert all(entry["licence"] and entry["citation"] for entry in facts.values())
    with_mp20.fetch("mp-20")
    assert " yes " in next(x for x in with_mp20.run("fetch", "--list").stdout.splitlines() if x.startswith("mp-20"))


def test_what_needs_no_fetching(machine):
    result = machine.run("fetch", "mini", "chgnet")
    assert (result.returncode, result.stdout) == (0, "")
    assert "mini comes with cfx" in result.stderr and "comes with chgnet" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["mp-20", "--list"], ["--all", "mp-20"], ["--force"], ["--list", "--verify"]]
)
def test_usage(machine, arguments):
    machine.fail("fetch", *arguments, code=2)


def test_a_damaged_lock_file_is_named(machine):
    machine.fetch(DATA)
    (machine.cache / "fetched.json").write_text('{"format": 1, "records": {"hf:a/b/c": {}}}')
    lines = machine.fail("fetch", DATA, code=3)
    assert "fetched.json is damaged" in lines[0] and "remove" in lines[1]
