"""What every service of GenAI Factory needs and none of them owns."""

import os

# gRPC reads this when it is loaded, so it stands here, before any import of it. Its older I/O runs in the thread that
# waits for completions, where the newer one wakes another for every message: a tenth of the platform's CPU.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# What a service forks it also executes. gRPC's own handlers of a fork wait in the child for threads that it has not.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
