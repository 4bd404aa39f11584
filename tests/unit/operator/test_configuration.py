"""The issuer's configuration file: errors name each bad field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_operator import configuration
from tests.unit.operator.wanted import AUTHORITY, wanted


def test_a_file_may_be_yaml_or_json(tmp_path: Path) -> None:
    document = wanted().model_dump(mode="json")
    (tmp_path / "issuer.json").write_text(json.dumps(document))
    (tmp_path / "issuer.yaml").write_text("namespace: genai\ncontext_key: {private_secret: a, public_secrets: [b]}\n")
    assert configuration.load(tmp_path / "issuer.json") == wanted()
    assert configuration.load(tmp_path / "issuer.yaml").secrets == ("b", "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"namespace": "Genai"}, "namespace: "),
        ({"issued": [{"secret": "a", "identity": "factory-a", "names": ["a"]}]}, "issued.0.identity: "),
        ({"issued": [{"secret": "a", "identity": "spiffe://x/sa/a", "names": []}]}, "issued.0.names: "),
        ({"authority": None}, "issued needs an authority"),
        ({"authority": {"secret": "factory-gateway-tls"}}, "'factory-gateway-tls' is named twice"),
        ({"certificates": {"valid_days": 5, "renew_before_days": 5}}, "must be less than certificates.valid_days"),
        (
            {"authority": {"secret": AUTHORITY, "valid_days": 90, "renew_before_days": 90}},
            "must be less than authority.valid_days",
        ),
        (
            {"authority": {"secret": AUTHORITY, "renew_before_days": 30}},
            "must be more than certificates.renew_before_days",
        ),
        ({"propagation_second": 3}, "propagation_second: "),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "issuer.json"
    file.write_text(json.dumps({**wanted().model_dump(mode="json"), **changes}))
    with pytest.raises(InvalidArgument) as caught:
        configuration.load(file)
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["a: [", "just text", "\udcff"])
def test_a_file_without_a_yaml_mapping_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "issuer.yaml"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(InvalidArgument, match=r"issuer\.yaml"):
        configuration.load(file)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere cannot be read: No such file"):
        configuration.load(tmp_path / "nowhere")
