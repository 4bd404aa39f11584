"""Messages that the gateway converts by their bytes are declared alike in both contracts."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.retriever.v1 import retriever_pb2
from genaifactory.safety.v1 import safety_pb2
from genaifactory_gateway.twins import twin

TWINS = (
    (gateway_pb2.RecordDriftReportRequest, monitor_pb2.RecordDriftReportRequest),
    (gateway_pb2.RecordDriftReportResponse, monitor_pb2.RecordDriftReportResponse),
    (gateway_pb2.GetDriftReportRequest, monitor_pb2.GetDriftReportRequest),
    (gateway_pb2.GetDriftReportResponse, monitor_pb2.GetDriftReportResponse),
    (gateway_pb2.GetReleaseStatsRequest, monitor_pb2.GetReleaseStatsRequest),
    (gateway_pb2.GetReleaseStatsResponse, monitor_pb2.GetReleaseStatsResponse),
    (gateway_pb2.CheckedText, safety_pb2.CheckTextResponse),
    (gateway_pb2.IngestRequest, retriever_pb2.IngestRequest),
    (gateway_pb2.IngestResponse, retriever_pb2.IngestResponse),
    (gateway_pb2.ListDocumentsRequest, retriever_pb2.ListDocumentsRequest),
    (gateway_pb2.GetDocumentRequest, retriever_pb2.GetDocumentRequest),
    (gateway_pb2.DeleteDocumentsRequest, retriever_pb2.DeleteDocumentsRequest),
    (gateway_pb2.DeleteDocumentsResponse, retriever_pb2.DeleteDocumentsResponse),
    (gateway_pb2.ListIndexesRequest, retriever_pb2.ListIndexesRequest),
    (gateway_pb2.ListIndexesResponse, retriever_pb2.ListIndexesResponse),
    (gateway_pb2.BuildIndexRequest, retriever_pb2.BuildIndexRequest),
    (gateway_pb2.BuildIndexResponse, retriever_pb2.BuildIndexResponse),
    (gateway_pb2.SwapIndexRequest, retriever_pb2.SwapIndexRequest),
    (gateway_pb2.SwapIndexResponse, retriever_pb2.SwapIndexResponse),
    (gateway_pb2.DropIndexRequest, retriever_pb2.DropIndexRequest),
    (gateway_pb2.DropIndexResponse, retriever_pb2.DropIndexResponse),
    (gateway_pb2.CountDocumentsResponse, retriever_pb2.CountDocumentsResponse),
    (gateway_pb2.LoadAdapterRequest, modelserver_pb2.LoadAdapterRequest),
    (gateway_pb2.UnloadAdapterRequest, modelserver_pb2.UnloadAdapterRequest),
    (gateway_pb2.CountConversationsResponse, orchestrator_pb2.CountConversationsResponse),
)


def declared(message: Descriptor) -> dict[str, object]:
    """The message's fields by name, without the package's name."""
    return {field.name: (field.number, field.type, field.is_repeated, _inner(field)) for field in message.fields}


def _inner(field: FieldDescriptor) -> object:
    if field.message_type is not None:
        of_both = field.message_type.full_name.startswith(("google.", "genaifactory.types."))
        return field.message_type.full_name if of_both else declared(field.message_type)
    return _values(field.enum_type) if field.enum_type is not None else None


def _values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


@pytest.mark.parametrize(("own", "inner"), TWINS, ids=[own.DESCRIPTOR.name for own, _ in TWINS])
def test_both_contracts_declare_the_same_fields(own: type, inner: type) -> None:
    assert declared(own.DESCRIPTOR) == declared(inner.DESCRIPTOR)  # type: ignore[attr-defined]  # of a generated class


def test_an_unknown_field_is_left_out() -> None:
    smuggled = gateway_pb2.IngestRequest.FromString(
        gateway_pb2.IngestRequest(document=gateway_pb2.DocumentHeader(document_id="a")).SerializeToString()
        + b"\xfa\x07\x04evil"  # field 127
    )
    copied = twin(smuggled, retriever_pb2.IngestRequest)
    assert (
        copied.SerializeToString()
        == retriever_pb2.IngestRequest(document=retriever_pb2.DocumentHeader(document_id="a")).SerializeToString()
    )
