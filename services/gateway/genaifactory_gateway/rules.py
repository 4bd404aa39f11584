"""Bounds of requests that only the gateway checks; shared ones are in genaifactory_common."""

MAX_PARTS = 1024
MAX_NAME_CHARACTERS = 128
MAX_IDEMPOTENCY_KEY_CHARACTERS = 256
REQUEST_ID = r"^(req|chatcmpl)-[0-9a-f]{32}$"
