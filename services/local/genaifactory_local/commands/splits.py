"""`genaifactory splits`: the splits of factory.yaml, and what their arms did."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from genaifactory_common import specs
from genaifactory_common.errors import NotFound
from genaifactory_local import arms, endpoints, monitoring, state
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, print_json, table
from genaifactory_pipelines import windows

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Show the splits of factory.yaml, and compare their arms."
)

_NONE = "There are no splits in factory.yaml. docs/splits.md shows how to add one."
_CAREFUL = (
    "The intervals hold for one look at a moment that was chosen before. Who looks again and again, and stops at the "
    "first difference, finds one by chance far more often than 5 % of the time."
)


@app.command("list")
def list_splits(as_json: JsonOption = False, state_folder: StateOption = state.DEFAULT_FOLDER) -> None:
    """List the splits of factory.yaml, with the shares of their arms.

    Example: `genaifactory splits list`
    """
    found = endpoints.find(state_folder).factory().splits
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    if not found:
        print(_NONE)
        return
    shown = table("Split", "Route", "Unit", "Arms")
    for split in found:
        shares = [f"{name} {share:.3g} %" for name, share in _percent(split).items()]
        shown.add_row(split.name, split.route, split.unit, ", ".join(shares))
    Console().print(shown)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A split of factory.yaml.")],
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "7d",
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Compare the arms of a split: errors and times, each with the 95 % interval of its difference.

    The period is whole hours. The key needs the permission 'usage' or 'evaluate', and counts its own tenant.

    Example: `genaifactory splits show more-passages --since 24h`
    """
    start = windows.moment(since, datetime.now(UTC), "--since")
    platform = endpoints.find(state_folder)
    split = _named(platform.factory(), name)
    found = asyncio.run(monitoring.release_stats(platform, key, split, start))
    compared = arms.of_split(found.rows, split.names)
    if as_json:
        print_json(
            {
                "split": split.name,
                "route": split.route,
                "since": found.start_time.ToDatetime(UTC).isoformat(),
                "until": found.end_time.ToDatetime(UTC).isoformat(),
                "arms": [_plain(arm, arms.baseline(compared)) for arm in compared],
            }
        )
        return
    first, last = (f"{at.ToDatetime():%Y-%m-%d %H:%M}" for at in (found.start_time, found.end_time))
    print(f"{split.route}, {first} to {last} UTC")
    than = arms.baseline(compared)
    if than is None:
        print("No request of this split is on record in this time.")
        return
    _print(compared, than)


def _print(compared: list[arms.Arm], than: arms.Arm) -> None:
    total = sum(arm.requests for arm in compared)
    shown = table(
        "Arm",
        "Requests",
        "Failed",
        f"less {than.name}",
        "First text",
        f"less {than.name}",
        "Blocked",
        "Refused",
        "Rated",
    )
    for arm in compared:
        failed, first = _differences(arm, than)
        shown.add_row(
            arm.name,
            f"{arm.requests:,} ({arm.requests / total:.1%})",
            f"{arm.failed_share:.2%}",
            "" if arm is than else _written(failed, 100),
            f"{arm.first_token.mean_seconds:.3f} s" if arm.first_token.number else "-",
            "" if arm is than else _written(first, 1),
            f"{arm.blocked / arm.requests:.2%}",
            f"{arm.refused / arm.requests:.2%}",
            f"+{arm.rated_up:,} -{arm.rated_down:,}",
        )
    Console().print(shown)
    print(_CAREFUL)


def _named(factory: specs.Factory, name: str) -> specs.Split:
    found = next((each for each in factory.splits if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in factory.splits) or "none"
        raise NotFound(f"There is no split '{name}' in factory.yaml; there are: {names}.", field="NAME")
    return found


def _percent(split: specs.Split) -> dict[str, float]:
    """The share of each arm, in percent, the stable one first."""
    shares = {arm.name: arm.share * 100 for arm in split.arms}
    return {specs.STABLE: max(100 - sum(shares.values()), 0.0), **shares}


def _differences(arm: arms.Arm, than: arms.Arm) -> tuple[arms.Difference, arms.Difference | None]:
    return (
        arms.of_shares(arm.failed, arm.requests, than.failed, than.requests),
        arms.of_means(arm.first_token, than.first_token),
    )


def _written(difference: arms.Difference | None, scale: float) -> str:
    """The difference with its interval, in the unit of the column before it."""
    if difference is None:
        return "too few"
    estimate, low, high = (value * scale for value in (difference.estimate, difference.low, difference.high))
    return f"{estimate:+.2f} ({low:+.2f} to {high:+.2f})"


def _plain(arm: arms.Arm, than: arms.Arm | None) -> dict[str, Any]:
    plain = asdict(arm) | {"failed_share": arm.failed_share}
    if than is None or arm is than:
        return plain
    failed, first = _differences(arm, than)
    duration = arms.of_means(arm.duration, than.duration)
    return plain | {
        "compared_with": than.name,
        "failed_share_difference": asdict(failed),
        "first_token_seconds_difference": None if first is None else asdict(first),
        "duration_seconds_difference": None if duration is None else asdict(duration),
    }
