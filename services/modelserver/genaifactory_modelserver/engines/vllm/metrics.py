"""vLLM's own Prometheus metrics under the platform's names: vllm:x is genaifactory_modelserver_vllm_x."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

PREFIX = "genaifactory_modelserver_vllm_"
_THEIRS = "vllm:"
_LABELS = {"model_name": "model", "engine": "rank"}


class VllmMetrics(Collector):
    """What one engine has registered, renamed. A second engine would unregister what it finds under vLLM's names."""

    def __init__(self) -> None:
        """Takes over what is registered now."""
        names: dict[Any, Any] = dict(REGISTRY._collector_to_names)
        self._collectors = [each for each in names if getattr(each, "_name", "").startswith(_THEIRS)]
        for collector in self._collectors:
            REGISTRY.unregister(collector)
        REGISTRY.register(self)

    def close(self) -> None:
        """Shows them no more."""
        REGISTRY.unregister(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance; registering would otherwise collect everything once."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        for collector in self._collectors:
            for metric in collector.collect():
                renamed = Metric(_renamed(metric.name), metric.documentation, metric.type, metric.unit)
                renamed.samples = [
                    Sample(
                        _renamed(sample.name),
                        {_LABELS.get(label, label): value for label, value in sample.labels.items()},
                        sample.value,
                        sample.timestamp,
                        sample.exemplar,
                    )
                    for sample in metric.samples
                ]
                yield renamed


def _renamed(name: str) -> str:
    return PREFIX + name.removeprefix(_THEIRS)
