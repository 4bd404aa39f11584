"""Passages in two languages, requests, and a served model server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs, testing
from genaifactory_common.engine_specs import AnyEngine, Fake
from genaifactory_common.engine_specs import Extractive as ExtractiveSpec
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver.app import create_app
from genaifactory_modelserver.engines.extractive.engine import Extractive
from genaifactory_modelserver.engines.fake import FakeEngine
from genaifactory_modelserver.engines.protocol import (
    Engine,
    Generation,
    GroundingPassage,
    Message,
    Role,
    Sampling,
    Step,
)
from genaifactory_modelserver.settings import Settings

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models: [{name: extractive, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [extractive]}]
policies: [{name: default}]
"""

WARRANTY_VI = GroundingPassage(
    """# Chính sách bảo hành

Thời gian bảo hành là 24 tháng kể từ ngày mua hàng. Sản phẩm phải còn nguyên tem và có hóa đơn. Pin và phụ kiện được
bảo hành 6 tháng.

Hồ sơ bảo hành gồm có:
- Hóa đơn mua hàng
- Phiếu bảo hành
- Giấy tờ tùy thân

Chúng tôi không bảo hành các hư hỏng do người dùng, ngập nước hoặc cháy nổ.""",
    title="Sổ tay khách hàng",
    language="vi",
)
REFUND_VI = GroundingPassage(
    """# Đổi trả và hoàn tiền

Bạn có thể đổi trả hàng trong vòng 7 ngày nếu sản phẩm bị lỗi. Tiền được hoàn vào tài khoản ngân hàng sau 3 đến 5 ngày
làm việc. Phí vận chuyển khi đổi trả do công ty chịu.""",
    title="Sổ tay khách hàng",
    language="vi",
)
LEAVE_VI = GroundingPassage(
    """## Nghỉ phép năm

Nhân viên chính thức có 12 ngày phép mỗi năm. Cứ 5 năm làm việc được cộng thêm 1 ngày.

Giờ làm việc từ 8 giờ đến 17 giờ 30, thứ Hai đến thứ Sáu. Đơn xin nghỉ phép gửi cho quản lý trực tiếp trước ít nhất 3
ngày.""",
    title="Sổ tay nhân viên",
    language="vi",
)
INSTALL_EN = GroundingPassage(
    """# System requirements

You need at least 512 MB of memory for a desktop installation on AMD64. On ARM, 256 MB of memory is enough. The disk
must have 10 GB of free space.

## Installing

1. Download the image from the mirror.
2. Write it to a USB stick.
3. Boot from the stick and follow the installer.

The installer asks for a root password. If you leave it empty, sudo is set up for the first user.""",
    title="Installation guide",
    language="en",
)
WARRANTY_EN = GroundingPassage(
    """# Warranty

The warranty period is 24 months from the date of purchase. Batteries are covered for 6 months only. How do I claim?
Send the product with the invoice to our service centre.

| Plan | Price |
|------|-------|
| Basic | $10 a month |
| Team | $25 a month |
""",
    title="Customer handbook",
    language="en",
)


@pytest.fixture
def vietnamese() -> tuple[GroundingPassage, ...]:
    """Warranty, refunds, leave."""
    return (WARRANTY_VI, REFUND_VI, LEAVE_VI)


@pytest.fixture
def english() -> tuple[GroundingPassage, ...]:
    """Installation, warranty."""
    return (INSTALL_EN, WARRANTY_EN)


Ask = Callable[..., Generation]
Answered = Callable[..., Awaitable[tuple[str, Step]]]


@pytest.fixture
def ask() -> Ask:
    """Makes a request: turns of user and assistant, documents, the answer begun so far, sampling."""

    def made(
        *turns: str,
        documents: tuple[GroundingPassage, ...] = (),
        begun: str | None = None,
        model: str = "fake",
        **sampling: Any,
    ) -> Generation:
        messages = [Message(Role.ASSISTANT if i % 2 else Role.USER, turn) for i, turn in enumerate(turns)]
        if begun is not None:
            messages.append(Message(Role.ASSISTANT, begun))
        return Generation(
            model,
            tuple(messages),
            documents=documents,
            continue_final_message=begun is not None,
            sampling=Sampling(**sampling),
        )

    return made


@pytest.fixture
def extractive(ask: Ask) -> Answered:
    """Asks the extractive engine; gives the answer and the last step."""
    engine = Extractive(ExtractiveSpec())

    async def answered(*turns: str, **rest: object) -> tuple[str, Step]:
        steps = [step async for step in engine.generate(ask(*turns, model="extractive", **rest))]
        return "".join(step.delta for step in steps), steps[-1]

    return answered


MakeApp = Callable[..., ServiceApp]
Serve = Callable[..., AbstractAsyncContextManager["modelserver_pb2_grpc.ModelServiceAsyncStub"]]
RequestFor = Callable[..., modelserver_pb2.GenerateRequest]


@pytest.fixture
def make_app(tmp_path: Path) -> MakeApp:
    """A wired model server: of engines' settings, or of one fake engine with its bounds."""

    def made(
        *engines: AnyEngine, fake: FakeEngine | None = None, telemetry: Telemetry | None = None, **rest: Any
    ) -> ServiceApp:
        settings = Settings(
            context_public_key=testing.SIGNER.public_key,
            data_dir=tmp_path,
            **rest,
        )
        given: list[Engine] | None = [fake] if fake is not None else None
        entries = engines or ((Fake(),) if fake is not None else (ExtractiveSpec(), Fake()))
        source = specs.Source(specs.parse(FACTORY).model_copy(update={"engines": entries}))
        return create_app(settings, source, telemetry or Telemetry("modelserver"), engines=given)

    testing.act_as()
    return made


@pytest.fixture
def serve(make_app: MakeApp) -> Serve:
    """Runs a real model server, made as `make_app` does; yields its stub."""

    @asynccontextmanager
    async def running(*engines: AnyEngine, **rest: object) -> AsyncIterator[modelserver_pb2_grpc.ModelServiceAsyncStub]:
        async with testing.served(make_app(*engines, **rest)) as channel:
            yield modelserver_pb2_grpc.ModelServiceStub(channel)

    return running


@pytest.fixture
def request_for() -> RequestFor:
    """A GenerateRequest with one user message."""

    def made(text: str = "hello world", model: str = "fake", **rest: Any) -> modelserver_pb2.GenerateRequest:
        conversation = modelserver_pb2.Conversation(
            messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=text)]
        )
        return modelserver_pb2.GenerateRequest(
            model=model,
            conversation=conversation,
            **rest,
        )

    return made
