"""The dashboard of traffic: requests of clients, calls of services, models, the outbox, and resources."""

from __future__ import annotations

from charts.observability.panels import PART_OF, Board, Choice, Panel, chosen, increase, most, quantiles, rate, total

_SERVICE = 'service=~"$service"'
_COMPONENT = "app_kubernetes_io_component"
# Without probes and Prometheus' own requests.
_CLIENTS = 'route=~"/v1/.+"'


def _process(metric: str) -> str:
    return chosen(metric, PART_OF)


BOARD = Board(
    "traffic",
    "traffic",
    choices=(Choice("service", "Service", "genaifactory_rpc_running", "service"),),
    rows={
        "Requests of clients": (
            Panel(
                "Requests",
                "reqps",
                {
                    "{{route}} {{status}}": rate("genaifactory_http_requests_total", "route, status", _CLIENTS),
                    "gRPC {{method}} {{code}}": rate(
                        "genaifactory_rpc_requests_total", "method, code", 'service="gateway"'
                    ),
                },
            ),
            Panel(
                "Errors, also after the first bytes",
                "reqps",
                {"{{route}} {{reason}}": rate("genaifactory_http_errors_total", "route, reason", _CLIENTS)},
            ),
            Panel("Time to the first text", "s", quantiles("genaifactory_first_text_seconds", "route")),
            Panel("Whole answers", "s", quantiles("genaifactory_http_duration_seconds", "route", _CLIENTS)),
            Panel(
                "Answers by outcome",
                "reqps",
                {"{{route}} {{outcome}}": rate("genaifactory_answers_total", "route, outcome")},
            ),
            Panel(
                "Clients that disconnected",
                "reqps",
                {"{{route}}": rate("genaifactory_http_hangups_total", "route", _CLIENTS)},
            ),
        ),
        "Services": (
            Panel(
                "Calls",
                "reqps",
                {"{{service}} {{method}}": rate("genaifactory_rpc_requests_total", "service, method", _SERVICE)},
            ),
            Panel(
                "Failed calls",
                "reqps",
                {
                    "{{service}} {{method}} {{code}}": rate(
                        "genaifactory_rpc_requests_total", "service, method, code", _SERVICE, 'code!="OK"'
                    )
                },
            ),
            Panel(
                "Duration of calls, by service",
                "s",
                quantiles("genaifactory_rpc_duration_seconds", "service", _SERVICE),
            ),
            Panel(
                "Duration of calls, by method", "s", quantiles("genaifactory_rpc_duration_seconds", "method", _SERVICE)
            ),
            Panel(
                "In flight",
                "short",
                {
                    "{{service}}": total("genaifactory_rpc_running", "service", _SERVICE),
                    "HTTP": total("genaifactory_http_running", "namespace"),
                },
            ),
        ),
        "Models, measured by the orchestrator": (
            Panel(
                "Attempts",
                "reqps",
                {"{{model}} {{outcome}}": rate("genaifactory_model_attempts_total", "model, outcome")},
            ),
            Panel("First token of an attempt", "s", quantiles("genaifactory_model_first_token_seconds", "model")),
            Panel(
                "Circuits (2: open) and retries denied",
                "short",
                {
                    "{{model}}": most("genaifactory_model_circuit_state", "model"),
                    "{{model}} denied in 5 min": increase("genaifactory_model_retries_denied_total", "model"),
                },
            ),
        ),
        "The record of answers": (
            Panel("Waiting for monitor", "short", {"{{pod}}": most("genaifactory_outbox_records", "pod")}),
            Panel("Size of waiting records", "bytes", {"{{pod}}": most("genaifactory_outbox_bytes", "pod")}),
            Panel(
                "Failures, in 5 min",
                "short",
                {
                    "not sent: {{reason}}": increase("genaifactory_outbox_send_failures_total", "reason"),
                    "refused, outbox full": increase("genaifactory_outbox_refused_total", "namespace"),
                    "moved aside": increase("genaifactory_outbox_poison_total", "namespace"),
                },
            ),
        ),
        "Resources": (
            Panel(
                "Processors",
                "short",
                {
                    f"{{{{{_COMPONENT}}}}} {{{{pod}}}}": (
                        f"sum by ({_COMPONENT}, pod) (rate({_process('process_cpu_seconds_total')}[$__rate_interval]))"
                    )
                },
            ),
            Panel(
                "Memory",
                "bytes",
                {
                    f"{{{{{_COMPONENT}}}}} {{{{pod}}}}": (
                        f"sum by ({_COMPONENT}, pod) ({_process('process_resident_memory_bytes')})"
                    )
                },
            ),
            Panel(
                "Open files, of those allowed",
                "percentunit",
                {
                    f"{{{{{_COMPONENT}}}}} {{{{pod}}}}": (
                        f"max by ({_COMPONENT}, pod) ({_process('process_open_fds')} / {_process('process_max_fds')})"
                    )
                },
            ),
            Panel(
                "Free space on the data disks",
                "bytes",
                {"{{service}} {{pod}}": f"min by (service, pod) ({chosen('genaifactory_data_free_bytes')})"},
            ),
            Panel(
                "Refused because a disk is full, in 5 min",
                "short",
                {"{{service}}": increase("genaifactory_out_of_space_total", "service")},
            ),
            Panel(
                "Until certificates expire",
                "s",
                {"{{pod}}": (f"min by (pod) ({chosen('genaifactory_certificate_expiry_timestamp_seconds')}) - time()")},
            ),
        ),
    },
)
