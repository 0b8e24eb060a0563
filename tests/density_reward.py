"""A reward of a user's own that costs nothing, as the text of its module: tests and benchmarks put it in files."""

DENSITY = """
import numpy as np
from cfx.rl.rewards import make_batch

class Density:
    name, about, unit, kl_coef, failure = "density", "mass over volume", "g/cm3", 0.5, 0.0
    def evaluate(self, structures):
        value = [np.nan if one is None else float(one.density) for one in structures]
        return make_batch(np.array(value), ["" if one is not None else "no cell" for one in structures])
"""
