"""What Prometheus sees of engines: whether they can answer."""

from __future__ import annotations

from genaifactory_common import testing
from genaifactory_modelserver import metrics
from genaifactory_modelserver.engines.fake import FakeEngine
from tests.unit.modelserver.conftest import MakeApp


def ready(engine: str) -> float:
    (family,) = metrics.ENGINE_READY.labels(engine).collect()
    return family.samples[0].value


async def test_an_engine_is_ready_from_its_opening_until_it_dies(make_app: MakeApp) -> None:
    engine = FakeEngine(models=("fake",))
    async with testing.served(make_app(fake=engine)):
        assert ready(engine.name) == 1
        await engine.close()
        assert ready(engine.name) == 0
