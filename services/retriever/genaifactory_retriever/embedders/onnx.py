"""A sentence-transformers model with an ONNX graph: pooling, prefixes, dimensions and length are in its files."""

from __future__ import annotations

import json
import mmap
import re
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
_LENGTHS = (
    ("sentence_bert_config.json", "max_seq_length"),
    ("tokenizer_config.json", "model_max_length"),
    ("config.json", "max_position_embeddings"),
)
# RoBERTa and its kin begin to count positions at 2, so that 514 of them are enough for 512 tokens.
_SHIFTED = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")
_SHIFT = 2
# An entry "location" of a tensor whose weights are outside of the graph, up to the length of its value (protobuf).
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)
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
        self.max_tokens = min(found.max_tokens, _PASSAGE_TOKENS)
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
        try:
            encoded = self._tokenizer.encode(text[: max_tokens * _CHARACTERS_OF_A_TOKEN], add_special_tokens=False)
            encoded.truncate(max(1, max_tokens - self._special))
            encoded = self._tokenizer.post_process(encoded)
            given = dict(zip(_INPUTS, (encoded.ids, encoded.attention_mask, encoded.type_ids), strict=True))
            (states,) = self._session.run(
                [self._output], {name: np.array([given[name]], np.int64) for name in self._inputs}
            )
        except Exception as error:  # the libraries' classes have no common base; only the name of one is shown
            raise Unavailable(
                f"The embedding model in {self._found.graph.parent} failed ({type(error).__name__})."
            ) from error
        return np.asarray(states[0], np.float32)


def described(folder: Path) -> Description:
    """What the folder says about its model. Raises Unavailable."""
    kinds = _modules(folder)
    if unknown := sorted(set(kinds) - set(_MODULES)):
        raise _wrong(folder, f"has the modules {', '.join(unknown)}; supported are {', '.join(_MODULES)}")
    if "Pooling" not in kinds or "Transformer" not in kinds:
        raise _wrong(folder, "has no Transformer and Pooling among its modules")
    inner, pooling_path = kinds["Transformer"], kinds["Pooling"] / "config.json"
    pooling = _object(pooling_path)
    graph = _there(next((inner / name for name in _GRAPHS if (inner / name).is_file()), inner / _GRAPHS[0]))
    prompts_path = folder / "config_sentence_transformers.json"
    optional = (prompts_path, *(inner / name for name, _ in _LENGTHS))
    return Description(
        graph=graph,
        tokenizer=_there(inner / "tokenizer.json"),
        files=(
            graph,
            *_outside(graph),
            inner / "tokenizer.json",
            folder / "modules.json",
            pooling_path,
            *(path for path in optional if path.is_file()),
        ),
        pooling=_pooling(pooling, pooling_path),
        dimensions=_dimensions(pooling, pooling_path),
        max_tokens=_max_tokens(inner),
        query_prefix=_prompt(prompts_path, "query"),
        passage_prefix=_prompt(prompts_path, "document", "passage"),
    )


def _modules(folder: Path) -> dict[str, Path]:
    """Kind -> folder."""
    path = folder / "modules.json"
    modules = _json(path)
    kinds: dict[str, Path] = {}
    for each in modules if isinstance(modules, list) else [None]:
        kind, below = (each.get("type"), each.get("path", "")) if isinstance(each, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(below, str):
            raise _wrong(path, "must be a list of modules, each with a type and a path")
        kinds[kind.rpartition(".")[2]] = folder / below
    return kinds


def _pooling(config: Mapping[str, Any], path: Path) -> Pooling:
    """Of one true `pooling_mode_...`, or of the name in `pooling_mode`, as current sentence-transformers writes it."""
    named = config.get("pooling_mode")
    names = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(named, str):
        names = [named]
    known: dict[str, Pooling] = {**_POOLINGS, **{str(each): each for each in _POOLINGS.values()}}
    modes = [known[name] for name in names if name in known]
    if len(names) != 1 or len(modes) != 1 or config.get("include_prompt", True) is not True:
        raise _wrong(
            path,
            f"must set exactly one of {', '.join(_POOLINGS)}, or pooling_mode to one of "
            f"{', '.join(_POOLINGS.values())}, of all tokens; it sets {', '.join(names)}",
        )
    return modes[0]


def _dimensions(config: Mapping[str, Any], path: Path) -> int:
    names = ("word_embedding_dimension", "embedding_dimension")
    found = _count(next((config[name] for name in names if name in config), None))
    if found is None:
        raise _wrong(path, f"must have a number {' or '.join(names)}")
    return found


def _max_tokens(inner: Path) -> int:
    """The least of the lengths that its files name."""
    lengths = []
    for name, field in _LENGTHS:
        path = inner / name
        config = _object(path) if path.is_file() else {}
        length = _count(config.get(field))
        if length is not None:
            shift = _SHIFT if name == "config.json" and config.get("model_type") in _SHIFTED else 0
            lengths.append(length - shift)
    longest = min(lengths, default=0)
    if longest <= _SHIFT:
        raise _wrong(inner, f"has no usable length: {', '.join(f'{field} of {name}' for name, field in _LENGTHS)}")
    return longest


def _outside(graph: Path) -> list[Path]:
    """The files of weights that the graph names: those beyond 2 GB are beside it. Raises Unavailable."""
    names = set()
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for found in _LOCATION.finditer(data):
                low, *high = found[1]
                length = (low & 0x7F) + (high[0] << 7 if high else 0)
                names.add(data[found.end() : found.end() + length].decode(errors="replace"))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise _wrong(graph, "cannot be read, or is empty") from error
    paths = (graph.parent / name for name in sorted(names) if "\0" not in name)
    return [path for path in paths if path.is_file()]


def _pooled(states: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    if pooling == "cls":
        return np.asarray(states[0])
    if pooling == "lasttoken":
        return np.asarray(states[-1])
    return np.asarray(states.max(axis=0) if pooling == "max" else states.mean(axis=0))


def _prompt(path: Path, *names: str) -> str:
    """The prefix of one of these names, else the default one."""
    config = _object(path) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(each, str | None) for each in prompts.values()):
        raise _wrong(path, "must have texts as prompts, by name")
    wanted = (*names, str(config.get("default_prompt_name")))
    return next((prompts[name] or "" for name in wanted if name in prompts), "")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _there(path: Path) -> Path:
    if not path.is_file():
        raise Unavailable(f"The embedding model has no file {path}.", field=_FIELD)
    return path


def _object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise _wrong(path, "must be a JSON object")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(_there(path).read_bytes())
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}.", field=_FIELD) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "is no JSON") from error


def _wrong(path: Path, what: str) -> Unavailable:
    return Unavailable(f"The embedding model's {path} {what}.", field=_FIELD)
