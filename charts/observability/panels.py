"""Dashboards: graphs in rows, their queries, and the Grafana JSON.

Each graph answers one question of an operator. Every query uses the data source, namespaces and releases chosen in the
dashboard; "All" includes metrics without these labels, as outside Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableRefresh

RELEASE = "app_kubernetes_io_instance"
PART_OF = 'app_kubernetes_io_part_of="genai-factory"'
"""Selects our pods in metrics of any process: up, process_…"""

_CHOSEN = f'namespace=~"$namespace", {RELEASE}=~"$release"'
_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_WIDTH, _HEIGHT = 8, 8

Unit = Literal["s", "short", "percentunit", "reqps", "cps", "bytes"]


@dataclass(frozen=True)
class Panel:
    """One graph, or single numbers of the chosen time: title, unit, and queries by their legends."""

    title: str
    unit: Unit
    queries: dict[str, str]
    numbers: bool = False


@dataclass(frozen=True)
class Choice:
    """A variable of a dashboard: the values of a metric's label."""

    name: str
    label: str
    metric: str
    of: str


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    name: str
    """Of its file, and of its address in Grafana."""
    title: str
    rows: dict[str, tuple[Panel, ...]]
    choices: tuple[Choice, ...] = ()
    """Beside the namespace and the release."""

    def queries(self) -> Iterator[str]:
        """Every query."""
        for panels in self.rows.values():
            for panel in panels:
                yield from panel.queries.values()

    def build(self) -> str:
        """The dashboard as JSON."""
        made = (
            dashboard.Dashboard(f"GenAI Factory: {self.title}")
            .uid(f"genaifactory-{self.name}")
            .tags(["genaifactory"])
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .editable()
            .link(_to_the_others())
            .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        )
        metric = self.choices[0].metric if self.choices else "genaifactory_rpc_running"
        where = (
            Choice("namespace", "Namespace", metric, "namespace"),
            Choice("release", "Release", f'{metric}{{namespace=~"$namespace"}}', RELEASE),
        )
        for choice in (*where, *self.choices):
            made = made.with_variable(_variable(choice))
        for row, panels in self.rows.items():
            made = made.with_row(dashboard.Row(row))
            for panel in panels:
                made = made.with_panel(_graph(panel))
        return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def chosen(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen namespaces and releases."""
    return f"{metric}{{{', '.join((_CHOSEN, *matchers))}}}"


def rate(metric: str, by: str, *matchers: str) -> str:
    """A counter per second."""
    return f"sum by ({by}) (rate({chosen(metric, *matchers)}[$__rate_interval]))"


def increase(metric: str, by: str, *matchers: str, over: str = "5m") -> str:
    """A counter's increase in the time `over`."""
    return f"sum by ({by}) (increase({chosen(metric, *matchers)}[{over}]))"


def total(metric: str, by: str, *matchers: str) -> str:
    """A gauge, summed over pods."""
    return f"sum by ({by}) ({chosen(metric, *matchers)})"


def most(metric: str, by: str, *matchers: str) -> str:
    """A gauge's maximum over pods."""
    return f"max by ({by}) ({chosen(metric, *matchers)})"


def quantiles(metric: str, by: str, *matchers: str) -> dict[str, str]:
    """Lines for a histogram's p50, p95 and p99."""
    inner = f"sum by (le, {by}) (rate({chosen(f'{metric}_bucket', *matchers)}[$__rate_interval]))"
    return {f"p{round(100 * q)} {{{{{by}}}}}": f"histogram_quantile({q}, {inner})" for q in (0.5, 0.95, 0.99)}


def _to_the_others() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("GenAI Factory")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["genaifactory"])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )


def _variable(choice: Choice) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(choice.name)
        .label(choice.label)
        .datasource(_SOURCE)
        .query(f"label_values({choice.metric}, {choice.of})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _graph(panel: Panel) -> timeseries.Panel | stat.Panel:
    graph = stat.Panel() if panel.numbers else timeseries.Panel().min(0)
    graph = graph.title(panel.title).unit(panel.unit).datasource(_SOURCE).span(_WIDTH).height(_HEIGHT)
    for letter, (legend, query) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend).datasource(_SOURCE)
        graph = graph.with_target(target.instant() if panel.numbers else target)
    return graph
