"""The names of vLLM's engine arguments that factory.yaml is checked by are those of the vLLM that is installed."""

from __future__ import annotations

import dataclasses

from vllm.engine.arg_utils import AsyncEngineArgs

from genaifactory_common.vllm_arguments import NAMES


def test_the_arguments_that_factory_yaml_may_name_are_the_engines() -> None:
    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs) if field.init}
    assert {name for name in fields if not name.startswith("_")} == NAMES
