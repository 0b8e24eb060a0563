"""What happens to JAX before a command first uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfx.reporter import Reporter

if TYPE_CHECKING:
    from cfx.model import Model


def start_jax(reporter: Reporter) -> None:
    """Makes matrix products float32 on every device, and keeps compiled programs on disk for the next command."""
    import jax

    from cfx.errors import OutputError
    from cfx.io.cache import cache_directory

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
    from cfx.runs.signals import interrupted_by_signals

    with interrupted_by_signals(f"stopped loading {name}; run the same command again to go on where it was"):
        return load_model(name, reporter=reporter)
