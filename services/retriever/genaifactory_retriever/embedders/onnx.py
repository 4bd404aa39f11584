"""A sentence-transformers model with an ONNX graph: pooling, prefixes, dimensions and length are in its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from genaifactory_common import onnx_graphs, specs
from genaifactory_common.errors import Unavailable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

_GRAPHS = ("onnx/model.onnx", "model.onnx")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS = ("last_hidden_state", "token_embeddings")
_MODULES = ("Transformer", "Pooling", "Normalize")
_FIELD = "embedder.path"
# The tokenizer reads a text as a whole and holds the interpreter's lock meanwhile.
_CHARACTERS_OF_A_TOKEN = 128
# Memory grows with the square of a text's length: one of 8192 tokens takes gigabytes. A passage has its headings too.
_QUERY_TOKENS = 1024
_PASSAGE_TOKENS = 2560

Pooling = Literal["cls", "mean", "max", "lasttoken"]
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Description:
    """What a model's folder says about it."""

    graph: Path
    tokenizer: Path
    files: tuple[Path, ...]
    """All that its vectors depend on."""
    pooling: Pooling
    dimensions: int
    max_tokens: int
    """With those of its begin and end; the rest of a longer text is ignored."""
    query_prefix: str
    passage_prefix: str


def load(spec: specs.OnnxEmbedder, cache_dir: Path) -> OnnxEmbedder:
    """Blocks while it reads the files. Raises Unavailable, also for a model of an unknown kind."""
    from tokenizers import Tokenizer

    found = described(Path(spec.path))
    try:
        session = onnx_graphs.session(found.graph, threads=1)
        tokenizer = Tokenizer.from_file(str(found.tokenizer))
        made_of = onnx_graphs.digest(found.files)
    except Exception as error:  # both libraries raise classes of their own, without a common base
        raise Unavailable(
            f"The embedding model in {spec.path} cannot be loaded ({type(error).__name__}); its ONNX graph and "
            "tokenizer.json must be whole.",
            field=_FIELD,
        ) from error
    return OnnxEmbedder(found, session, tokenizer, made_of)


def digest(spec: specs.OnnxEmbedder, cache_dir: Path) -> str:
    """See Embedder; without loading the model. Raises Unavailable."""
    try:
        return onnx_graphs.digest(described(Path(spec.path)).files)
    except OSError as error:
        raise Unavailable(
            f"The files of the embedding model in {spec.path} cannot be read: {error.strerror}.", field=_FIELD
        ) from error


class OnnxEmbedder:
    """The model, loaded. Each text runs alone, so its vector does not depend on its neighbours."""

    texts_at_once = 4
    is_remote = False

    def __init__(self, found: Description, session: InferenceSession, tokenizer: Tokenizer, digest: str) -> None:
        """Raises Unavailable for a graph with other inputs or outputs than a transformer's."""
        self.dimensions = found.dimensions
        self.digest = digest
        self._found = found
        self._session = session
        self._inputs = tuple(each.name for each in session.get_inputs())
        outputs = [each.name for each in session.get_outputs()]
        self._output = next((name for name in _OUTPUTS if name in outputs), outputs[0])
        if unknown := sorted(set(self._inputs) - set(_INPUTS)):
            raise _wrong(found.graph, f"has the inputs {', '.join(unknown)}; known are {', '.join(_INPUTS)}")
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # done here: two lengths would need two tokenizers, of 200 MB for some
        self._special = tokenizer.num_special_tokens_to_add(False)
        shape = self._hidden("a", found.max_tokens).shape
        if len(shape) != 2 or shape[1] != self.dimensions:
            raise _wrong(
                found.graph,
                f"returns '{self._output}' of the shape {shape} for one text, and (tokens, {self.dimensions}) is "
                "needed: the hidden states before pooling",
            )

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder."""
        return [self._vector(self._found.passage_prefix + text, _PASSAGE_TOKENS) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        return self._vector(self._found.query_prefix + text, _QUERY_TOKENS)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """See Embedder."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def _vector(self, text: str, most: int) -> list[float]:
        vector = _pooled(self._hidden(text, min(most, self._found.max_tokens)), self._found.pooling)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise Unavailable(f"The embedding model in {self._found.graph.parent} returned no usable vector.")
        found: list[float] = (vector / length).tolist()
        return found

    def _hidden(self, text: str, max_tokens: int) -> NDArray[np.float32]:
        """The state of each of the first tokens, (tokens, dimensions)."""
        encoded = self._tokenizer.encode(text[: max_tokens * _CHARACTERS_OF_A_TOKEN], add_special_tokens=False)
        encoded.truncate(max(1, max_tokens - self._special))
        encoded = self._tokenizer.post_process(encoded)
        given = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        try:
            (states,) = self._session.run(
                [self._output], {name: np.array([given[name]], np.int64) for name in self._inputs}
            )
        except Exception as error:  # onnxruntime's classes have no common base; they do not quote the text
            raise Unavailable(
                f"The embedding model in {self._found.graph.parent} failed ({type(error).__name__})."
            ) from error
        return np.asarray(states[0], np.float32)


def described(folder: Path) -> Description:
    """What the folder says about its model. Raises Unavailable."""
    modules = _json(folder / "modules.json")
    kinds = {str(each["type"]).rpartition(".")[2]: folder / str(each.get("path", "")) for each in _items(modules)}
    if unknown := sorted(set(kinds) - set(_MODULES)):
        raise _wrong(folder, f"has the modules {', '.join(unknown)}; supported are {', '.join(_MODULES)}")
    if "Pooling" not in kinds or "Transformer" not in kinds:
        raise _wrong(folder, "has no Transformer and Pooling among its modules")
    inner, pooling_path = kinds["Transformer"], kinds["Pooling"] / "config.json"
    pooling = _json(pooling_path)
    names = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    modes = [_POOLINGS[name] for name in names if name in _POOLINGS]
    if len(names) != 1 or len(modes) != 1 or pooling.get("include_prompt", True) is not True:
        raise _wrong(
            pooling_path, f"must set exactly one of {', '.join(_POOLINGS)}, of all tokens; it sets {', '.join(names)}"
        )
    graph = next((inner / name for name in _GRAPHS if (inner / name).is_file()), inner / _GRAPHS[0])
    lengths = [
        (inner / "sentence_bert_config.json", "max_seq_length"),
        (inner / "config.json", "max_position_embeddings"),
    ]
    known = [_json(path).get(name) for path, name in lengths if path.is_file()]
    max_tokens = min((each for each in known if isinstance(each, int) and each > 2), default=0)
    if not max_tokens:
        raise _wrong(folder, "has neither max_seq_length in sentence_bert_config.json nor another length")
    prompts_path = folder / "config_sentence_transformers.json"
    described_prompts = _json(prompts_path) if prompts_path.is_file() else {}
    optional = (prompts_path, *(path for path, _ in lengths))
    # Weights beyond 2 GB are beside the graph.
    outside = sorted(path for path in graph.parent.glob("*.onnx[._]data") if path.is_file())
    return Description(
        graph=_there(graph),
        tokenizer=_there(inner / "tokenizer.json"),
        files=(
            graph,
            *outside,
            inner / "tokenizer.json",
            folder / "modules.json",
            pooling_path,
            *(path for path in optional if path.is_file()),
        ),
        pooling=modes[0],
        dimensions=_count(pooling, "word_embedding_dimension", pooling_path),
        max_tokens=max_tokens,
        query_prefix=_prompt(described_prompts, "query"),
        passage_prefix=_prompt(described_prompts, "document", "passage"),
    )


def _pooled(states: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    if pooling == "cls":
        return np.asarray(states[0])
    if pooling == "lasttoken":
        return np.asarray(states[-1])
    return np.asarray(states.max(axis=0) if pooling == "max" else states.mean(axis=0))


def _prompt(config: Mapping[str, Any], *names: str) -> str:
    """The prefix of one of these names, else the default one."""
    prompts = config.get("prompts") or {}
    wanted = (*names, str(config.get("default_prompt_name")))
    return str(next((prompts[name] for name in wanted if name in prompts), ""))


def _items(modules: Any) -> list[Any]:
    return list(modules) if isinstance(modules, list) else []


def _count(config: Mapping[str, Any], name: str, path: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise _wrong(path, f"must have a number {name}")
    return value


def _there(path: Path) -> Path:
    if not path.is_file():
        raise Unavailable(f"The embedding model has no file {path}.", field=_FIELD)
    return path


def _json(path: Path) -> Any:
    try:
        return json.loads(_there(path).read_bytes())
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}.", field=_FIELD) from error
    except ValueError as error:
        raise _wrong(path, "is no JSON") from error


def _wrong(path: Path, what: str) -> Unavailable:
    return Unavailable(f"The embedding model's {path} {what}.", field=_FIELD)
