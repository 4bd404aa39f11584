"""Bounds of the gateway's requests beside those of a conversation, which stand in genaifactory_common.conversation."""

MAX_PARTS = 1024
MAX_NAME_CHARACTERS = 128
MAX_CORRECTION_CHARACTERS = 100_000
MAX_COMMENT_CHARACTERS = 10_000
MAX_IDEMPOTENCY_KEY_CHARACTERS = 256
REQUEST_ID = r"^(req|chatcmpl)-[0-9a-f]{32}$"
