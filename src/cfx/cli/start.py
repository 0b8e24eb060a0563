"""What commands do before their own work: look at outputs, make JAX ready, load a model, find space groups to draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cfx.reporter import Reporter

if TYPE_CHECKING:
    from cfx.model import Model


def check_table(path: Path | None, force: bool) -> None:
    """Makes sure that a table can be written; None is no file, and fine.

    Raises:
        UsageError: for another ending than .csv and .parquet.
        OutputError: if it is there and must not be overwritten, or its directory cannot be written.
        DependencyError: for Parquet without pyarrow.
    """
    from importlib.util import find_spec

    from cfx.errors import DependencyError
    from cfx.io.files import check_file

    check_file(path, (".csv", ".parquet"), force)
    if path is not None and path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DependencyError("writing Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'")


def start_jax(reporter: Reporter) -> None:
    """Makes matrix products float32 on every device, and keeps compiled programs on disk for the next command."""
    import jax

    from cfx.errors import OutputError
    from cfx.io.files import cache_directory

    jax.config.update("jax_default_matmul_precision", "float32")

    try:
        directory = cache_directory("compiled")
    except OutputError as error:
        reporter.warning(f"{error.message}; every run will compile anew ({error.hint})")
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def load(name: str, reporter: Reporter) -> Model:
    """Loads a model, which may have to be fetched first; a signal ends that with one line."""
    from cfx.model import load_model
    from cfx.signals import interrupted_by_signals

    with interrupted_by_signals(f"stopped loading {name}; run the same command again to go on where it was"):
        return load_model(name, reporter=reporter)


def space_groups(text: str, model: Model, reporter: Reporter) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Space groups and weights of a --sg that was checked; of data:NAME, as often as they are in a data set.

    Raises:
        UsageError: for data:model, if the model does not say.
        DataError: if the data set cannot be read.
    """
    from cfx.cli import options
    from cfx.runs.score import space_group_counts

    if not text.startswith("data:"):
        return options.space_groups(text)
    counts = space_group_counts(model, text.removeprefix("data:"), reporter)
    found = {group: count for group, count in sorted(counts.items()) if count}
    return tuple(found), tuple(float(count) for count in found.values())
