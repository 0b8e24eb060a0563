"""cfx doctor: what is here, what is missing, and how to install it."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead.")] = False) -> None:
    """Check the installation: versions, devices, cache, models.

    Says what is missing for which command, and how to install it. Nothing is downloaded. Exit code 6 if cfx cannot
    work as it is.
    """
    from cfx.runs.doctor import examine

    found = examine()
    if as_json:
        import json

        print(json.dumps(found, indent=1))
    else:
        _print(found)
    if not found["healthy"]:
        raise typer.Exit(6)


def _print(found: dict[str, Any]) -> None:
    from cfx.cli.console import print_table, size

    print(f"cfx {found['cfx']}, Python {found['python']}\n{found['platform']}")
    print_table(
        [
            {"library": one["package"], "version": one["version"] or "missing", "for": one["purpose"]}
            for one in found["libraries"]
        ]
    )
    for library, devices in found["devices"].items():
        print(f"devices of {library}: {', '.join(devices) or 'none'}")
    cache = found["cache"]
    print(f"cache: {cache['directory'] or cache['problem']}, {size(cache['bytes'])}")
    print(f"models: {', '.join(found['models'])}" + (" (HF_HUB_OFFLINE is set)" if found["offline"] else ""))
    for line in found["advice"]:
        print(f"- {line}")
    if not found["advice"]:
        print("Nothing is missing.")
