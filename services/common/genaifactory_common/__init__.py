"""What the services of GenAI Factory share."""

import os

# gRPC reads this when it is loaded, so it is set here, before any import of it. Its older I/O runs in the thread that
# waits for completions; the newer one wakes another thread for every message, a tenth of the platform's CPU.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# Services fork only to execute another program. gRPC's handlers of a fork wait in the child for threads it lacks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
