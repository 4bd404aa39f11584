"""Documents with the content of another one, which get passages when that one is removed or changed.

Every function blocks, as the library's reads do.
"""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory_retriever.library import Library
from genaifactory_retriever.stored import StoredDocument

MOST = 100
"""That are left over and get passages in one write."""


def due(
    library: Library,
    knowledge_base: str,
    puts: Sequence[tuple[StoredDocument, bool]],
    removed: Sequence[tuple[str, str]],
    *,
    left: bool,
) -> list[StoredDocument]:
    """Duplicates that get passages with a write, each of another content.

    puts: documents that it stores, and whether they get passages. removed: tenants and ids. left: also some of those
    that an earlier write could not give any.
    """
    changing = {*removed, *((document.tenant, document.document_id) for document, _ in puts)}
    staying = {(document.tenant, document.content_hash) for document, indexed in puts if indexed}
    revisions = []
    for tenant, document_id in sorted(changing):
        known = library.known(knowledge_base, tenant, document_id)
        if known is None or not known.indexed or (tenant, known.content_hash) in staying:
            continue
        same = library.same_content(knowledge_base, tenant, known.content_hash)
        duplicate = next((k for k in same if not k.indexed and (tenant, k.document_id) not in changing), None)
        if duplicate is not None:
            revisions.append(duplicate.revision)
    for tenant, known in library.without_passages(knowledge_base, MOST) if left else ():
        if (tenant, known.document_id) not in changing and (tenant, known.content_hash) not in staying:
            revisions.append(known.revision)
    documents = (library.load(revision) for revision in revisions)
    return [document for document in documents if document is not None]
