"""The dashboard of traffic: what clients see, what each service does, the record behind it, how full everything is."""

from __future__ import annotations

from charts.observability.panels import PART_OF, Board, Choice, Panel, chosen, increase, most, quantiles, rate, total

_SERVICE = 'service=~"$service"'
_COMPONENT = "app_kubernetes_io_component"
# Probes and Prometheus itself are no traffic.
_CLIENTS = 'route=~"/v1/.+"'


def _process(metric: str) -> str:
    return chosen(metric, PART_OF)


BOARD = Board(
    "traffic",
    "traffic",
    choices=(Choice("service", "Service", "genaifactory_rpc_running", "service"),),
    rows={
        "What clients see": (
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
                "Errors, after the first bytes too",
                "reqps",
                {"{{route}} {{reason}}": rate("genaifactory_http_errors_total", "route, reason", _CLIENTS)},
            ),
            Panel("Time to the first text", "s", quantiles("genaifactory_first_text_seconds", "route")),
            Panel("Whole answers", "s", quantiles("genaifactory_http_duration_seconds", "route", _CLIENTS)),
            Panel(
                "Answers by how they ended",
                "reqps",
                {"{{route}} {{outcome}}": rate("genaifactory_answers_total", "route, outcome")},
            ),
            Panel(
                "Clients that left",
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
                "Calls that failed",
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
        "Models as the orchestrator sees them": (
            Panel(
                "Tries",
                "reqps",
                {"{{model}} {{outcome}}": rate("genaifactory_model_attempts_total", "model, outcome")},
            ),
            Panel("A try's first token", "s", quantiles("genaifactory_model_first_token_seconds", "model")),
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
            Panel("Size of what waits", "bytes", {"{{pod}}": most("genaifactory_outbox_bytes", "pod")}),
            Panel(
                "What went wrong, in 5 min",
                "short",
                {
                    "not taken: {{reason}}": increase("genaifactory_outbox_send_failures_total", "reason"),
                    "refused for want of room": increase("genaifactory_outbox_refused_total", "namespace"),
                    "moved aside": increase("genaifactory_outbox_poison_total", "namespace"),
                },
            ),
        ),
        "How full it is": (
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
                "Free on the disks of data",
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
