"""Lines whose loss would cost security or stored data, each with what breaks it and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of one file."""

    why: str
    """What goes wrong with it."""
    file: str
    """Relative to the project's root."""
    text: str
    """Stands exactly once in the file."""
    replacement: str
    tests: tuple[str, ...]
    """Ids below tests/unit, without parameters; each must fail in at least one of its cases."""


MUTATIONS = (
    # Doors for administrators
    Mutation(
        "an administrator of one tenant exports the record of another",
        "services/gateway/genaifactory_gateway/records.py",
        '    if wanted.tenant not in ("", tenant):\n',
        "    if False:\n",
        ("gateway/test_doors.py::test_an_administrator_of_one_tenant_reads_no_others_record",),
    ),
    Mutation(
        "a field that the gateway does not know reaches monitor's filter",
        "services/gateway/genaifactory_gateway/records.py",
        "    own.DiscardUnknownFields()\n",
        "",
        ("gateway/test_doors.py::test_a_tenant_smuggled_in_as_an_unknown_field_goes_nowhere",),
    ),
    Mutation(
        "one tenant's uploads and exports take every place",
        "services/gateway/genaifactory_gateway/transfers.py",
        "        if self._running[tenant] >= most:\n",
        "        if False:\n",
        ("gateway/test_doors.py::test_one_tenant_does_not_take_every_place_for_transfers",),
    ),
    Mutation(
        "a client that sends nothing keeps its upload open",
        "services/gateway/genaifactory_gateway/uploads.py",
        "        async with asyncio.timeout_at(self._due()) as bound:\n",
        "        async with asyncio.timeout_at(None) as bound:\n",
        ("gateway/test_uploads.py::test_a_silent_client_is_told_and_loses_its_place",),
    ),
    # Who calls
    Mutation(
        "a caller whose signature does not fit is believed",
        "services/common/genaifactory_common/identity.py",
        "            self._key.verify(_unb64(signature), body)\n",
        "            _unb64(signature)\n",
        (
            "common/test_identity.py::test_a_signature_does_not_fit_another_caller",
            "common/test_interceptors.py::test_a_forged_caller_is_refused",
        ),
    ),
    Mutation(
        "a caller's token never expires",
        "services/common/genaifactory_common/identity.py",
        "        if expires < time.time():\n",
        "        if expires < 0:\n",
        ("common/test_identity.py::test_a_token_ends_after_its_lifetime_also_when_it_was_seen_before",),
    ),
    Mutation(
        "a role may do what it has no permission for",
        "services/common/genaifactory_common/identity.py",
        "        if permission not in self.permissions:\n",
        "        if False:\n",
        (
            "common/test_identity.py::test_a_permission_is_named_when_it_is_missing",
            "orchestrator/test_wrong_requests.py::test_each_method_needs_its_permission",
        ),
    ),
    Mutation(
        "a signed caller is believed over plain TCP, where anybody could have read it",
        "services/common/genaifactory_common/interceptors.py",
        '    if b"ssl" not in context.auth_context().get("transport_security_type", ()):\n',
        "    if False:\n",
        ("common/test_interceptors.py::test_a_caller_over_plain_tcp_is_refused_however_well_it_is_signed",),
    ),
    Mutation(
        "any certificate of the authority may call any service",
        "services/common/genaifactory_common/interceptors.py",
        "        if self._callers.isdisjoint(shown):\n",
        "        if False:\n",
        ("common/test_mtls.py::TestWhoMayCall::test_not_another_identity_of_the_same_authority",),
    ),
    Mutation(
        "an API key is compared by the beginning of its hash",
        "services/gateway/genaifactory_gateway/admission.py",
        "                if hmac.compare_digest(holder.key.sha256, digest):\n",
        "                if True:\n",
        ("gateway/test_admission.py::test_a_key_is_compared_as_a_whole_and_in_constant_time",),
    ),
    Mutation(
        "how long the comparison of a key takes depends on the key",
        "services/gateway/genaifactory_gateway/admission.py",
        "hmac.compare_digest(holder.key.sha256, digest)",
        "holder.key.sha256 == digest",
        ("gateway/test_admission.py::test_a_key_is_compared_as_a_whole_and_in_constant_time",),
    ),
    Mutation(
        "the gateway lets a key do what its role may not",
        "services/gateway/genaifactory_gateway/admission.py",
        "        if permission is not None and permission not in holder.role.permissions:\n",
        "        if False:\n",
        ("gateway/test_documents.py::test_without_the_permission_nothing_is_shown_and_nothing_removed",),
    ),
    Mutation(
        "removing documents over gRPC needs no permission",
        "services/gateway/genaifactory_gateway/servicer.py",
        '"ingest", _request_id()) as entry:\n            return await self._documents.delete(',
        "None, _request_id()) as entry:\n            return await self._documents.delete(",
        ("gateway/test_documents.py::test_grpc_asks_for_the_permission_too",),
    ),
    Mutation(
        "a key may name routes that its role does not list",
        "services/gateway/genaifactory_gateway/admission.py",
        '        return "*" in self.holder.role.routes or name in self.holder.role.routes\n',
        "        return True\n",
        ("gateway/test_admission.py::test_models_are_those_that_the_key_may_name",),
    ),
    Mutation(
        "a client chooses the id under which its request is on record, and so hides its usage",
        "services/gateway/genaifactory_gateway/http/exchange.py",
        '        self.request_id = f"req-{uuid.uuid4().hex}"\n',
        '        self.request_id = self.client_id or f"req-{uuid.uuid4().hex}"\n',
        ("gateway/test_admission.py::test_the_client_may_name_its_request_but_not_choose_its_record",),
    ),
    Mutation(
        "any web page may read answers in a user's browser",
        "services/gateway/genaifactory_gateway/http/cors.py",
        '    if origin.decode("latin-1") not in cors.allowed_origins:\n',
        "    if False:\n",
        ("gateway/test_cors.py::test_a_page_that_is_not_listed_gets_nothing",),
    ),
    # One tenant is not another
    Mutation(
        "a tenant sees routes over another one's knowledge",
        "services/gateway/genaifactory_gateway/admission.py",
        "        return base is None or self._factory.knowledge_base(base, self.holder.tenant.name) is not None\n",
        "        return True\n",
        ("gateway/test_admission.py::test_models_are_those_that_the_key_may_name",),
    ),
    Mutation(
        "what one person says of an answer takes the place of what another said",
        "services/gateway/genaifactory_gateway/upstream.py",
        "\\0{entry.holder.principal}\\0{request_id}",
        "\\0{request_id}",
        ("gateway/test_other_paths.py::test_what_two_people_of_one_tenant_say_alike_is_stored_twice",),
    ),
    Mutation(
        "a conversation is found by its name alone, whoever's it is",
        "services/orchestrator/genaifactory_orchestrator/stores/conversations.py",
        "    return columns.tenant == key.tenant, columns.principal == key.principal, columns.name == key.name\n",
        "    return (columns.name == key.name,)\n",
        ("orchestrator/test_conversations.py::test_another_caller_neither_sees_nor_erases_it",),
    ),
    Mutation(
        "an answer from the cache goes to another tenant",
        "services/orchestrator/genaifactory_orchestrator/stores/cache.py",
        'parts: list[str | bytes] = [tenant, "\\x1f".join(sorted(groups)), plan,',
        'parts: list[str | bytes] = ["\\x1f".join(sorted(groups)), plan,',
        ("orchestrator/test_caching.py::test_an_answer_is_not_given_again_for",),
    ),
    Mutation(
        "an answer from the cache goes to who may not see its passages",
        "services/orchestrator/genaifactory_orchestrator/stores/cache.py",
        '[tenant, "\\x1f".join(sorted(groups)), plan,',
        "[tenant, plan,",
        ("orchestrator/test_caching.py::test_an_answer_is_not_given_again_for",),
    ),
    Mutation(
        "a search finds every tenant's passages",
        "services/retriever/genaifactory_retriever/vectors/edge.py",
        "must: list[Any] = [equals(protocol.TENANT, where.tenant), qdrant.Filter(should=allowed)]",
        "must: list[Any] = [qdrant.Filter(should=allowed)]",
        ("retriever/test_vectors.py::test_another_tenants_points_are_never_found",),
    ),
    Mutation(
        "a search finds what is for another group",
        "services/retriever/genaifactory_retriever/vectors/edge.py",
        "must: list[Any] = [equals(protocol.TENANT, where.tenant), qdrant.Filter(should=allowed)]",
        "must: list[Any] = [equals(protocol.TENANT, where.tenant)]",
        ("retriever/test_vectors.py::test_groups_open_what_names_one_of_them_and_what_names_none",),
    ),
    Mutation(
        "a search in a Qdrant server finds what a document's replacement took away",
        "services/retriever/genaifactory_retriever/vectors/qdrant.py",
        "    if where.hidden:\n",
        "    if False:\n",
        ("retriever/test_vectors.py::test_hidden_revisions_are_looked_past",),
    ),
    Mutation(
        "the list of documents is of every tenant",
        "services/retriever/genaifactory_retriever/catalogue.py",
        "d.knowledge_base = ? AND d.tenant = ? AND substr(",
        "d.knowledge_base = ? AND ? != '' AND substr(",
        ("retriever/test_catalogue.py::test_no_tenant_sees_another_ones_documents",),
    ),
    Mutation(
        "the list of documents shows what is for another group",
        "services/retriever/genaifactory_retriever/catalogue.py",
        '    return (None, "[]") if groups is None else ("", json.dumps(groups))\n',
        '    return (None, "[]")\n',
        ("retriever/test_catalogue.py::test_a_caller_sees_documents_of_everybody_and_of_its_groups_alone",),
    ),
    Mutation(
        "monitor shows every tenant's questions and answers",
        "services/monitor/genaifactory_monitor/store.py",
        "    conditions: list[Any] = [columns.tenant == filter_.tenant]\n",
        "    conditions: list[Any] = []\n",
        ("monitor/test_querying.py::test_another_tenants_interactions_are_for_operators_alone",),
    ),
    Mutation(
        "monitor lets anybody name another tenant",
        "services/monitor/genaifactory_monitor/servicer.py",
        '    if "operate" not in caller.permissions:\n',
        "    if False:\n",
        ("monitor/test_querying.py::test_another_tenants_interactions_are_for_operators_alone",),
    ),
    Mutation(
        "a key without the permission sees what others used",
        "services/monitor/genaifactory_monitor/servicer.py",
        '        own_key = None if "usage" in caller.permissions else caller.key_id\n',
        "        own_key = None\n",
        ("monitor/test_usage.py::test_without_the_permission_a_key_sees_what_it_used_itself",),
    ),
    # Guardrails
    Mutation(
        "a text that no scanner has looked at passes the guardrail",
        "services/orchestrator/genaifactory_orchestrator/answers/guardrail.py",
        "    if verdict.action == types_pb2.ACTION_UNSPECIFIED or"
        " (text and not verdict.scanners and not nothing_to_scan_for):\n",
        "    if False:\n",
        ("orchestrator/test_answer.py::test_a_guardrail_that_cannot_check_the_question_fails_closed",),
    ),
    Mutation(
        "an answer passes though the guardrail ended without a verdict",
        "services/orchestrator/genaifactory_orchestrator/answers/guardrail.py",
        "        if self.verdict is None:\n"
        '            raise Unavailable("The guardrail ended without a verdict; the answer is stopped.")\n',
        "        if self.verdict is None:\n            return\n",
        ("orchestrator/test_answer.py::test_an_answer_without_a_verdict_is_none",),
    ),
    Mutation(
        "a model reads what a tool returned before a guardrail has seen it",
        "services/orchestrator/genaifactory_orchestrator/answers/writer.py",
        "            checked = await self._guard.check_input(results, self.plan.policy)\n",
        "            return tuple(results)\n",
        (
            "orchestrator/test_tasks.py::test_the_guardrail_stands_between_the_model_and_tools_in_both_directions",
            "orchestrator/test_tasks.py::test_a_tool_s_result_that_may_not_pass_ends_the_answer_before_a_model_reads_it",
        ),
    ),
    Mutation(
        "an answer made with tools is given again to whoever asks the same",
        "services/orchestrator/genaifactory_orchestrator/answers/pipeline.py",
        "        if record.earlier or not record.choices:\n",
        "        if not record.choices:\n",
        ("orchestrator/test_tasks.py::test_an_answer_of_several_turns_is_not_kept_in_the_cache",),
    ),
    Mutation(
        "a blocked text comes back from the guardrail",
        "services/safety/genaifactory_safety/servicer.py",
        'text="" if scanner.blocked else text)',
        "text=request.text)",
        ("safety/test_service.py::test_the_direction_decides_between_mask_and_block",),
    ),
    Mutation(
        "a scan that hangs holds its caller",
        "services/safety/genaifactory_safety/workers.py",
        "            async with asyncio.timeout(self._settings.timeout_seconds):\n",
        "            async with asyncio.timeout(300):\n",
        ("safety/test_service.py::test_a_scanner_that_hangs_is_an_error_in_time_and_then_the_service_is_full",),
    ),
    # What was acknowledged stays, once
    Mutation(
        "a power cut loses records of answers that were given",
        "services/orchestrator/genaifactory_orchestrator/stores/outbox.py",
        'synchronous="FULL"',
        'synchronous="NORMAL"',
        ("orchestrator/test_outbox.py::test_a_record_is_flushed_to_the_disk_before_its_request_goes_on",),
    ),
    Mutation(
        "a power cut loses records that monitor has acknowledged",
        "services/common/genaifactory_common/database.py",
        'Pragmas("FULL", ',
        'Pragmas("NORMAL", ',
        ("monitor/test_database.py::test_what_is_acknowledged_is_flushed_to_the_disk",),
    ),
    Mutation(
        "a power cut loses documents that the retriever has acknowledged",
        "services/retriever/genaifactory_retriever/library.py",
        'synchronous="FULL"',
        'synchronous="NORMAL"',
        ("retriever/test_library.py::test_a_commit_is_flushed_to_the_disk",),
    ),
    Mutation(
        "a power cut loses whatever a file database has acknowledged",
        "services/common/genaifactory_common/sqlite_files.py",
        'execute(f"PRAGMA synchronous = {self.synchronous}")',
        'execute("PRAGMA synchronous = NORMAL")',
        (
            "monitor/test_database.py::test_what_is_acknowledged_is_flushed_to_the_disk",
            "orchestrator/test_outbox.py::test_a_record_is_flushed_to_the_disk_before_its_request_goes_on",
            "retriever/test_library.py::test_a_commit_is_flushed_to_the_disk",
        ),
    ),
    Mutation(
        "a request goes on before its record is on disk",
        "services/orchestrator/genaifactory_orchestrator/stores/outbox.py",
        "        await asyncio.shield(self.put_soon(record))\n",
        "        self.put_soon(record)\n",
        ("orchestrator/test_outbox.py::test_a_disk_that_fails_is_an_error_of_the_request",),
    ),
    Mutation(
        "a record leaves the disk before monitor has it",
        "services/orchestrator/genaifactory_orchestrator/stores/outbox.py",
        "            await self._send([_parsed(data) for _, _, data in batch])\n",
        "            await self._forget(batch)\n"
        "            await self._send([_parsed(data) for _, _, data in batch])\n",
        ("orchestrator/test_outbox.py::test_what_monitor_does_not_take_waits_and_goes_in_the_next_process",),
    ),
    Mutation(
        "usage is added twice for a record that arrives again",
        "services/monitor/genaifactory_monitor/store.py",
        "        if stored:\n            await usage.add(connection, database, stored)\n",
        "        await usage.add(connection, database, unique.values())\n",
        ("monitor/test_usage.py::test_a_record_that_arrives_again_adds_nothing_to_the_stored_usage",),
    ),
    Mutation(
        "metrics count a record again that monitor knew",
        "services/monitor/genaifactory_monitor/store.py",
        "            await usage.add(connection, database, stored)\n    return stored\n",
        "            await usage.add(connection, database, stored)\n    return list(unique.values())\n",
        ("monitor/test_metrics.py::test_an_interaction_is_counted_once_however_often_it_arrives",),
    ),
    Mutation(
        "an answer is written, paid and recorded again when the connection fails",
        "services/common/genaifactory_common/channels.py",
        '    ("genaifactory.orchestrator.v1.OrchestratorService", "DeleteConversation"),\n',
        '    ("genaifactory.orchestrator.v1.OrchestratorService", "DeleteConversation"),\n'
        '    ("genaifactory.orchestrator.v1.OrchestratorService", "Answer"),\n',
        ("common/test_channels.py::test_a_call_that_writes_an_answer_is_never_sent_again",),
    ),
    Mutation(
        "two processes write one folder of documents",
        "services/retriever/genaifactory_retriever/app.py",
        "        lock.acquire(blocking=False)\n",
        "        pass\n",
        ("retriever/test_service.py::test_a_second_process_on_the_same_folder_is_refused",),
    ),
    Mutation(
        "a killed process locks its folder for ever, where the file system has no locks",
        "services/common/genaifactory_common/file_locks.py",
        "fallback_to_soft=False",
        "fallback_to_soft=True",
        ("common/test_file_locks.py::test_a_file_system_without_locks_is_an_error",),
    ),
    Mutation(
        "a power cut leaves an empty key or state file",
        "services/common/genaifactory_common/files.py",
        "            os.fsync(file.fileno())\n",
        "            pass\n",
        ("common/test_files.py::test_a_file_and_then_its_name_are_flushed_to_the_disk",),
    ),
    Mutation(
        "an erased conversation stays in the file's bytes",
        "services/common/genaifactory_common/database.py",
        'cursor.execute("PRAGMA secure_delete = ON")',
        'cursor.execute("PRAGMA secure_delete = OFF")',
        ("orchestrator/test_conversations.py::test_an_erased_conversation_is_gone_from_the_file_too",),
    ),
    Mutation(
        "others on the machine read what is stored",
        "services/common/genaifactory_common/sqlite_files.py",
        "os.O_WRONLY | os.O_CLOEXEC, 0o600)",
        "os.O_WRONLY | os.O_CLOEXEC, 0o644)",
        ("common/test_sqlite_files.py::test_a_new_file_is_a_database_of_its_owner_alone_and_is_never_empty",),
    ),
    # Bounds
    Mutation(
        "tokens are charged when the work is done, so that a tenant overruns its limit at once",
        "services/gateway/genaifactory_gateway/quotas.py",
        "            buckets[charge.bucket].level += charge.amount\n",
        "            buckets[charge.bucket].level += 0\n",
        ("gateway/test_limits.py::test_settling_gives_back_what_was_not_used_and_charges_what_was_used_beyond",),
    ),
    Mutation(
        "of several answers to one question one is reserved",
        "services/gateway/genaifactory_gateway/upstream.py",
        "        await entry.reserve(prompt_tokens + choices * (",
        "        await entry.reserve(prompt_tokens + (",
        ("gateway/test_limits.py::test_every_answer_of_n_is_reserved",),
    ),
    Mutation(
        "who hangs up pays for nothing that was delivered",
        "services/gateway/genaifactory_gateway/upstream.py",
        "                        characters += len(event.delta.text)\n"
        "                        entry.used(prompt_tokens + characters // 4)\n",
        "                        characters += len(event.delta.text)\n",
        ("gateway/test_connections.py::test_who_hangs_up_pays_for_what_was_delivered",),
    ),
    Mutation(
        "the gateway takes in more requests than it can serve",
        "services/gateway/genaifactory_gateway/admission.py",
        "        if self._inside >= self._max_concurrent_requests:\n",
        "        if False:\n",
        ("gateway/test_admission.py::test_a_full_gateway_refuses_at_once_and_recovers",),
    ),
    Mutation(
        "a body without a length fills the memory",
        "services/gateway/genaifactory_gateway/http/exchange.py",
        "                    if size > self._settings.max_body_bytes:\n",
        "                    if False:\n",
        ("gateway/test_connections.py::test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large",),
    ),
    Mutation(
        "answers are given though their record finds no place",
        "services/orchestrator/genaifactory_orchestrator/stores/outbox.py",
        "        if taken >= self._bounds.max_records or self._bytes >= self._bounds.max_bytes:\n",
        "        if False:\n",
        ("orchestrator/test_outbox.py::test_a_full_outbox_refuses_places_until_monitor_takes_some",),
    ),
    Mutation(
        "an upstream's event without an end fills the memory",
        "services/orchestrator/genaifactory_orchestrator/models/sse.py",
        "        if self._size + len(self._rest) > self._max_event_bytes:\n",
        "        if False:\n",
        ("orchestrator/test_sse.py::test_an_event_without_end_is_refused_before_it_fills_the_memory",),
    ),
    Mutation(
        "work is accepted on a disk that is full",
        "services/common/genaifactory_common/space.py",
        "        if self.room is Room.FULL or self._volume.free - more_bytes < self._full_bytes(self._volume):\n",
        "        if False:\n",
        ("common/test_space.py::test_a_disk_that_is_nearly_full_is_reported_and_one_that_is_full_takes_nothing_new",),
    ),
    Mutation(
        "a small archive unpacks into all of the memory",
        "services/retriever/genaifactory_retriever/bounds.py",
        "    if number > most:\n",
        "    if False:\n",
        ("retriever/test_formats.py::test_archives_that_unpack_without_end_are_too_large",),
    ),
    Mutation(
        "a document that a parser cannot end on takes a processor for ever",
        "services/retriever/genaifactory_retriever/parsing/isolation.py",
        "command, input=data, capture_output=True, timeout=limits.seconds, check=False",
        "command, input=data, capture_output=True, timeout=300, check=False",
        ("retriever/test_parsing.py::test_a_parser_that_takes_too_long_is_stopped",),
    ),
    # What others name: addresses, paths, links, entities
    Mutation(
        "a document's XML entity reads a file of the server",
        "services/retriever/genaifactory_retriever/parsing/archives.py",
        "resolve_entities=False",
        "resolve_entities=True",
        ("retriever/test_formats.py::test_entities_are_never_resolved",),
    ),
    Mutation(
        "a reStructuredText document includes a file of the server",
        "services/retriever/genaifactory_retriever/parsing/formats/rst.py",
        '    "file_insertion_enabled": False,\n',
        '    "file_insertion_enabled": True,\n',
        ("retriever/test_formats.py::test_rst_reads_no_file_and_writes_nothing_raw",),
    ),
    Mutation(
        "a link in a folder of documents leads out of it",
        "services/local/genaifactory_local/finding.py",
        "        if not _is_inside(target, self._source.root):\n",
        "        if False:\n",
        ("local/test_document_names.py::test_each_thing_is_read_or_has_its_reason",),
    ),
    Mutation(
        "a mirror of weights sends on to an address that anybody on the way can answer for",
        "services/modelserver/genaifactory_modelserver/weights/mirror.py",
        '        if request.url.scheme != "https" and not addresses.loopback(request.url.host):\n',
        "        if False:\n",
        ("modelserver/test_sources.py::test_a_mirror_that_leads_on_to_an_address_without_tls_is_refused",),
    ),
    Mutation(
        "weights come over plain HTTP",
        "services/modelserver/genaifactory_modelserver/weights/addresses.py",
        '    if parts.scheme.lower() != "https" and not (parts.scheme.lower() == "http" and loopback(host)):\n',
        "    if False:\n",
        ("modelserver/test_sources.py::test_only_this_machine_is_asked_without_tls",),
    ),
    Mutation(
        "a mirror's list of checksums names a path outside of its folder",
        "services/modelserver/genaifactory_modelserver/weights/checksums.py",
        '    return all(part not in ("", ".", "..") for part in name.split("/"))\n',
        "    return True\n",
        ("modelserver/test_sources.py::test_sums_that_are_none_or_lead_out_of_the_folder_are_refused",),
    ),
    Mutation(
        "weights are served that are not those of their checksum",
        "services/modelserver/genaifactory_modelserver/weights/checksums.py",
        "        if digest != sums[name]:\n",
        "        if False:\n",
        ("modelserver/test_sources.py::test_every_file_of_a_folder_is_verified_when_it_has_sums",),
    ),
    Mutation(
        "an upstream's redirect sends the question, with the key, to another host",
        "services/orchestrator/genaifactory_orchestrator/models/openai.py",
        "follow_redirects=False",
        "follow_redirects=True",
        ("orchestrator/test_backends_openai.py::TestRefusals::test_a_redirect_is_not_followed",),
    ),
    # What is configured
    Mutation(
        "a policy may name what nobody looks for",
        "services/common/genaifactory_common/specs/policies.py",
        "    if name not in _KNOWN:\n",
        "    if not name:\n",
        ("common/test_specs.py::test_a_wrong_field_is_refused_by_its_path",),
    ),
    Mutation(
        "a banned term that no text can hold is accepted",
        "services/common/genaifactory_common/specs/policies.py",
        "    if not normalise(term).text.strip():\n",
        "    if not term:\n",
        ("common/test_specs.py::test_a_wrong_field_is_refused_by_its_path",),
    ),
    Mutation(
        "a template is compiled when it is asked for, not when it is configured",
        "services/common/genaifactory_common/specs/routes.py",
        "        templates.compiled(system)\n",
        "",
        ("common/test_specs.py::test_a_wrong_field_is_refused_by_its_path",),
    ),
    Mutation(
        "a template computes while it is checked, in every service",
        "services/common/genaifactory_common/templates.py",
        "            raise nodes.Impossible\n",
        "            pass\n",
        ("common/test_templates.py::test_a_template_is_compiled_without_computing_anything",),
    ),
    Mutation(
        "the search for a template's variables computes its constants",
        "services/common/genaifactory_common/templates.py",
        "        self.optimizer = None\n",
        "",
        ("common/test_templates.py::test_a_template_is_compiled_without_computing_anything",),
    ),
    Mutation(
        "an engine's argument is looked at when the engine starts",
        "services/common/genaifactory_common/engine_specs.py",
        "    if name not in NAMES:\n",
        "    if not name:\n",
        ("common/test_specs.py::test_a_wrong_field_is_refused_by_its_path",),
    ),
    Mutation(
        "a document is in force for some consumers when another refuses it",
        "services/common/genaifactory_common/specs/source.py",
        "        made = [each.make(factory) for each in self._derived]\n",
        "        self.current = factory\n        made = [each.make(factory) for each in self._derived]\n",
        ("common/test_specs.py::test_a_document_that_one_consumer_cannot_follow_reaches_no_other",),
    ),
    # Secrets stay inside
    Mutation(
        "an error carries what went wrong inside to the client",
        "services/common/genaifactory_common/interceptors.py",
        'errors.Internal("The platform made a mistake; its log has the details under this request\'s id.")',
        "errors.Internal(str(error))",
        ("common/test_errors.py::test_a_mistake_of_ours_says_nothing_of_the_inside",),
    ),
    Mutation(
        "an upstream's own words reach the client",
        "services/orchestrator/genaifactory_orchestrator/models/openai_errors.py",
        "    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None\n",
        "    return value if isinstance(value, str) else None\n",
        ("orchestrator/test_backends_openai.py::TestRefusals::test_a_param_that_is_no_name_does_not_get_through",),
    ),
    Mutation(
        "a span holds the text of an error, which may hold a secret",
        "services/common/genaifactory_common/telemetry.py",
        "    span.set_status(Status(StatusCode.ERROR, kind))\n",
        "    span.set_status(Status(StatusCode.ERROR, str(error)))\n",
        ("common/test_telemetry.py::test_a_failed_span_names_the_kind_of_error_and_not_its_text",),
    ),
    Mutation(
        "an address is shown with its password",
        "services/modelserver/genaifactory_modelserver/weights/addresses.py",
        '    return _SECRETS.sub("", text)\n',
        "    return text\n",
        ("modelserver/test_sources.py::test_an_address_that_is_none_is_refused_without_its_secrets",),
    ),
)
