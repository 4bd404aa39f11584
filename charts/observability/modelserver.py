"""The dashboard of the model server: engines, queue, KV cache, tokens, adapters; vLLM's own metrics among them."""

from __future__ import annotations

from charts.observability.panels import Board, Choice, Panel, chosen, increase, most, quantiles, rate, total

OURS, VLLM = "genaifactory_modelserver_", "genaifactory_modelserver_vllm_"
_MODEL = 'model=~"$model"'


def _prefix_hits() -> str:
    found = rate(f"{VLLM}prefix_cache_hits_total", "model", _MODEL)
    return f"{found} / {rate(f'{VLLM}prefix_cache_queries_total', 'model', _MODEL)}"


BOARD = Board(
    "modelserver",
    "model server",
    choices=(Choice("model", "Model", f"{OURS}prompt_tokens_total", "model"),),
    rows={
        "Latency for callers": (
            Panel("Time to the first token", "s", quantiles(f"{OURS}time_to_first_token_seconds", "model", _MODEL)),
            Panel("Between tokens", "s", quantiles(f"{VLLM}inter_token_latency_seconds", "model", _MODEL)),
            Panel("Whole answers", "s", quantiles(f"{VLLM}e2e_request_latency_seconds", "model", _MODEL)),
        ),
        "Traffic": (
            Panel(
                "Requests",
                "reqps",
                {
                    "{{model}} {{finish_reason}}": rate(
                        f"{OURS}requests_finished_total", "model, finish_reason", _MODEL
                    ),
                    "{{model}} cancelled by {{cause}}": rate(f"{OURS}requests_cancelled_total", "model, cause", _MODEL),
                },
            ),
            Panel(
                "Tokens",
                "cps",
                {
                    "{{model}} read": rate(f"{OURS}prompt_tokens_total", "model", _MODEL),
                    "{{model}} written": rate(f"{OURS}completion_tokens_total", "model", _MODEL),
                },
            ),
            Panel(
                "Refused",
                "reqps",
                {"{{engine}} {{cause}}": rate(f"{OURS}requests_refused_total", "engine, cause")},
            ),
        ),
        "Load": (
            Panel(
                "Running and waiting",
                "short",
                {
                    "{{engine}} running": total(f"{OURS}requests_running", "engine"),
                    "{{engine}} queued": total(f"{OURS}requests_queued", "engine"),
                    "{{model}} running in vLLM": total(f"{VLLM}num_requests_running", "model", _MODEL),
                    "{{model}} waiting in vLLM": total(f"{VLLM}num_requests_waiting", "model", _MODEL),
                },
            ),
            Panel("Queued", "s", quantiles(f"{OURS}queue_seconds", "engine")),
            Panel("Waiting in vLLM", "s", quantiles(f"{VLLM}request_queue_time_seconds", "model", _MODEL)),
            Panel("KV cache in use", "percentunit", {"{{model}}": most(f"{VLLM}kv_cache_usage_perc", "model", _MODEL)}),
        ),
        "Caches and adapters": (
            Panel("Prompt tokens found in the prefix cache", "percentunit", {"{{model}}": _prefix_hits()}),
            Panel(
                "Preempted and computed again",
                "reqps",
                {"{{model}}": rate(f"{VLLM}num_preemptions_total", "model", _MODEL)},
            ),
            Panel(
                "Adapters",
                "short",
                {
                    "{{model}} in the engine": total(f"{OURS}adapters_loaded", "model", _MODEL),
                    "{{model}} {{outcome}} in 5 min": increase(f"{OURS}adapter_loads_total", "model, outcome", _MODEL),
                    "{{model}} evicted in 5 min": increase(f"{OURS}adapters_evicted_total", "model", _MODEL),
                },
            ),
        ),
        "Starting": (
            Panel(
                "Pods whose engine can answer",
                "short",
                {
                    "{{engine}} ready": total(f"{OURS}engine_ready", "engine"),
                    "{{engine}} in all": f"count by (engine) ({chosen(f'{OURS}engine_ready')})",
                },
            ),
            Panel(
                "Weights downloaded",
                "bytes",
                {"{{model}} {{part}}": most(f"{OURS}source_bytes", "model, part", _MODEL)},
            ),
            Panel("Loading an adapter", "s", quantiles(f"{OURS}adapter_load_seconds", "model", _MODEL)),
        ),
    },
)
