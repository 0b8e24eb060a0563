"""The report of an evaluation, and a viewer of crystals, each as one HTML file that needs nothing else."""

from cfx.report.page import render_report, render_viewer

__all__ = ["render_report", "render_viewer"]
