"""What happens to JAX before a command first uses it."""

from __future__ import annotations


def start_jax() -> None:
    """Keeps compiled programs on disk, so that the second run of a command starts at once."""
    import jax

    from cfx.io.cache import cache_directory

    jax.config.update("jax_compilation_cache_dir", str(cache_directory("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
