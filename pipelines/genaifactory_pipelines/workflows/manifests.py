"""The workflows as Argo's objects, written with Hera for the chart, which adds what an installation has of its own.

The image of a container is a name here ("tools"). Names of objects, images, volumes, environment and resources come
from Helm: charts/genai-factory/templates/workflows.yaml. Written by `make charts`; of Argo 3.6 and later.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from hera.workflows import (
    DAG,
    Artifact,
    Container,
    CronWorkflow,
    NoneArchiveStrategy,
    Parameter,
    RetryStrategy,
    Suspend,
    WorkflowTemplate,
)
from hera.workflows import Task as DagTask
from hera.workflows.models import (
    Backoff,
    ConfigMapKeySelector,
    Mutex,
    PodGC,
    SemaphoreRef,
    SuppliedValueFrom,
    Synchronization,
    TTLStrategy,
    ValueFrom,
    WorkflowTemplateRef,
)
from pydantic.fields import FieldInfo

from genaifactory_pipelines import exits
from genaifactory_pipelines.workflows.protocol import NOBODY, Approval, Decision, Task, Workflow, text
from genaifactory_pipelines.workflows.registry import WORKFLOWS

VOLUME = "/pipelines"
"""Where the volume of the workflows is mounted."""
OUTPUTS = "/tmp/outputs"  # noqa: S108  # in the pod
GPUS = "gpus"
"""The key of the ConfigMap that says how many GPUs there are."""
NEEDS = "genaifactory.io/needs"
"""Annotation of a template that Helm leaves out where an installation has no MLflow."""
_ENTRYPOINT = "main"
_FINISH = "finish"
_WEEK_SECONDS = 7 * 24 * 3600
_RETRIES = 5
# Lost pods (evicted, deleted, their node gone) are errors. 137 is SIGKILL, as when memory ran out, 143 is SIGTERM.
_AGAIN = (
    f"lastRetry.status == 'Error' || lastRetry.message matches 'OOMKilled|[Ee]victed|pod deleted' "
    f"|| asInt(lastRetry.exitCode) in [{exits.TRANSIENT}, 137, 143]"
)
_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_TOKEN = {"name": "executor-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
# Argo's own containers, which report results, get the account's token; the step's code does not.
_POD = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "terminationGracePeriodSeconds": 10,
    "initContainers": [{"name": "init", "securityContext": _SECURITY, "volumeMounts": [_TOKEN]}],
    "containers": [
        {"name": "wait", "securityContext": _SECURITY, "volumeMounts": [_TOKEN]},
        {"name": "main", "securityContext": _SECURITY},
    ],
    "volumes": [
        {
            "name": _TOKEN["name"],
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {
                        "downwardAPI": {
                            "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                        }
                    },
                ],
            },
        }
    ],
}


def files() -> dict[str, str]:
    """Name -> YAML of every object, for the chart's folder `workflows`."""
    texts = {}
    for workflow in WORKFLOWS.values():
        texts[f"{workflow.name}.yaml"] = _template(workflow).to_yaml()
        if workflow.schedule:
            texts[f"{workflow.name}-schedule.yaml"] = _schedule(workflow).to_yaml()
    return {name: f"# Written by `make charts`.\n{written}" for name, written in texts.items()}


def _template(workflow: Workflow[Any]) -> WorkflowTemplate:
    with WorkflowTemplate(
        name=workflow.name,
        annotations=_about(workflow),
        entrypoint=_ENTRYPOINT,
        on_exit=_FINISH if workflow.finish else None,
        arguments=[_parameter(name, each) for name, each in workflow.parameters.model_fields.items()],
        active_deadline_seconds=workflow.deadline_seconds,
        parallelism=4,
        pod_gc=PodGC(strategy="OnWorkflowSuccess"),
        ttl_strategy=TTLStrategy(seconds_after_completion=_WEEK_SECONDS),
        pod_spec_patch=json.dumps(_POD, separators=(",", ":")),
        synchronization=_alone(workflow),
    ) as template:
        with DAG(name=_ENTRYPOINT):
            for each in workflow.tasks:
                DagTask(
                    name=each.name,
                    template=each.name,
                    depends=" && ".join(each.needs) or None,
                    arguments=_decided(each),
                )
        for each in workflow.tasks:
            if isinstance(each, Approval):
                _approval(each)
            else:
                _container(each.name, workflow, each)
        if workflow.finish:
            _container(_FINISH, workflow, workflow.finish)
    return template


def _decided(task: Task[Any] | Approval) -> list[Parameter] | None:
    if isinstance(task, Approval) or not task.approval:
        return None
    return [
        Parameter(name=f"{task.approval}-{name}", value=f"{{{{tasks.{task.approval}.outputs.parameters.{name}}}}}")
        for name in Decision.model_fields
    ]


def _about(workflow: Workflow[Any]) -> dict[str, str]:
    return {
        "workflows.argoproj.io/title": workflow.title,
        "workflows.argoproj.io/description": workflow.about,
    }


def _parameter(name: str, field: FieldInfo) -> Parameter:
    given: dict[str, Any] = {} if field.is_required() else {"value": text(field.default)}
    kind = field.annotation
    values = [text(each) for each in get_args(kind)] if get_origin(kind) is Literal else None
    return Parameter(
        name=name, description=field.description, enum=["true", "false"] if kind is bool else values, **given
    )


def _alone(workflow: Workflow[Any]) -> Synchronization | None:
    if workflow.alone_by is None:
        return None
    values = [f"{{{{workflow.parameters.{name}}}}}" for name in workflow.alone_by]
    return Synchronization(mutexes=[Mutex(name="-".join([workflow.name, *values]))])


def _container(name: str, workflow: Workflow[Any], task: Task[Any]) -> Container:
    outputs: list[Parameter | Artifact] = [
        Parameter(name=each, global_name=each, value_from=ValueFrom(path=f"{OUTPUTS}/{each}", default=""))
        for each in task.outputs
    ]
    if task.report:
        path = f"{VOLUME}/runs/{{{{workflow.name}}}}/{task.report}"
        outputs.append(Artifact(name="report", path=path, archive=NoneArchiveStrategy(), optional=True))
    return Container(
        name=name,
        annotations={"workflows.argoproj.io/description": task.about, **({NEEDS: "mlflow"} if task.mlflow else {})},
        image=task.image,
        command=["python", "-m", "genaifactory_pipelines.workflows"],
        args=[
            workflow.name,
            task.name,
            *("--name", "{{workflow.name}}"),
            *("--created", "{{workflow.creationTimestamp}}"),
            *("--volume", VOLUME),
            *("--parameters", "{{workflow.parameters}}"),
            *_decision(task.approval),
            *(("--status", "{{workflow.status}}") if task is workflow.finish else ()),
            *("--outputs", OUTPUTS),
            *("--message", "/dev/termination-log"),
        ],
        inputs=[Parameter(name=f"{task.approval}-{each}") for each in Decision.model_fields] if task.approval else None,
        outputs=outputs or None,
        active_deadline_seconds=str(task.deadline_seconds),
        retry_strategy=RetryStrategy(
            limit=_RETRIES,
            retry_policy="Always",
            expression=_AGAIN,
            backoff=Backoff(duration="2s", factor=4, cap="5m"),
        ),
        synchronization=_gpus() if task.gpu else None,
    )


def _decision(approval: str) -> list[str]:
    if not approval:
        return []
    outputs = f"{{{{inputs.parameters.{approval}-%s}}}}"
    # In one word each: what a person writes may begin with "-".
    return [f"--{name}={outputs % name}" for name in Decision.model_fields]


def _gpus() -> Synchronization:
    # Helm writes the name of the ConfigMap.
    return Synchronization(semaphores=[SemaphoreRef(config_map_key_ref=ConfigMapKeySelector(name="", key=GPUS))])


def _approval(approval: Approval) -> Suspend:
    supplied = ValueFrom(supplied=SuppliedValueFrom())
    return Suspend(
        name=approval.name,
        annotations={"workflows.argoproj.io/description": approval.about},
        # One that is not required ends at once, with the answer that nobody gave.
        duration=(
            f"{{{{=workflow.parameters.{approval.required_by} == 'required' ? "
            f"workflow.parameters.{approval.seconds_parameter} : '0'}}}}"
        ),
        inputs=[
            Parameter(name="decision", enum=["approve", "refuse"], default="refuse"),
            Parameter(name="reason", default=""),
        ],
        outputs=[
            Parameter(name="decision", value_from=supplied.model_copy(update={"default": NOBODY.decision})),
            Parameter(name="reason", value_from=supplied.model_copy(update={"default": ""})),
        ],
    )


def _schedule(workflow: Workflow[Any]) -> CronWorkflow:
    return CronWorkflow(
        name=workflow.name,
        annotations=_about(workflow),
        schedules=[workflow.schedule],
        cron_suspend=workflow.suspended,
        concurrency_policy="Forbid",
        starting_deadline_seconds=3600,
        successful_jobs_history_limit=5,
        failed_jobs_history_limit=5,
        workflow_template_ref=WorkflowTemplateRef(name=workflow.name),
        # What has no default is for the installation to say: the first step refuses "".
        arguments=[
            Parameter(name=name, value="")
            for name, field in workflow.parameters.model_fields.items()
            if field.is_required()
        ],
    )
