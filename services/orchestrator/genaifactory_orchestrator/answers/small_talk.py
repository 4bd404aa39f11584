"""Small talk: greetings, thanks, and questions about the assistant, answered without a model in their language.

Only a message that is nothing but small talk counts: "hello, how many days of leave do I have?" is a question.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import IntEnum, auto


class Kind(IntEnum):
    """Kinds of small talk; of several in a message, the greatest counts."""

    GREETING = auto()
    FAREWELL = auto()
    THANKS = auto()
    WHO = auto()
    """The question who or what the assistant is."""
    WHAT_TO_ASK = auto()


@dataclass(frozen=True)
class Talk:
    """Small talk."""

    kind: Kind
    spoken: str
    """ "vi" or "en"."""


# On folded text: lower case, without marks, words with one space between.
_PHRASES: tuple[tuple[Kind, str, str], ...] = (
    (Kind.GREETING, "en", r"hello|hi|hey|hiya|howdy|greetings|good (?:morning|afternoon|evening|day)"),
    (Kind.GREETING, "en", r"how are you(?: doing)?(?: today)?|nice to meet you|how do you do"),
    (Kind.GREETING, "vi", r"(?:xin )?chao(?: buoi (?:sang|trua|chieu|toi))?|alo|ban (?:co )?khoe khong"),
    (Kind.FAREWELL, "en", r"bye(?: bye)?|good ?bye|see you(?: later| soon| tomorrow)?|good night"),
    (Kind.FAREWELL, "vi", r"(?:xin )?tam biet|hen gap lai|chuc ngu ngon"),
    (Kind.THANKS, "en", r"(?:many )?thanks|thank you|thx|much appreciated"),
    (Kind.THANKS, "vi", r"(?:xin )?cam on(?: ban| em| anh| chi)?(?: rat)?(?: nhieu)?"),
    (Kind.WHO, "en", r"(?:who|what) are you|what ?i?s your name|are you (?:an? )?(?:bot|robot|human|ai|person)"),
    (Kind.WHO, "vi", r"(?:ban|em) (?:la|ten)(?: la)? (?:ai|gi)"),
    (
        Kind.WHAT_TO_ASK,
        "en",
        (
            r"what (?:can|could|should|may) (?:i|we) ask(?: you)?(?: about)?|what can (?:you|i) do(?: here| for me)?"
            r"|what can you help(?: me)?(?: with)?|how can you help(?: me)?|(?:which|what) questions can i ask(?: you)?"
            r"|what do you know(?: about)?|help(?: me)?"
        ),
    ),
    (
        Kind.WHAT_TO_ASK,
        "vi",
        (
            r"(?:toi|minh|em) (?:co the |duoc )?hoi (?:duoc )?(?:nhung )?(?:cau |dieu )?gi"
            r"|(?:ban|em) biet (?:nhung )?gi|(?:ban|em) (?:co the )?(?:lam|giup) (?:duoc |toi )?(?:nhung )?gi"
            r"|giup (?:toi|minh|em)(?: voi)?"
        ),
    ),
)
_PATTERNS = tuple((kind, spoken, re.compile(rf"(?:{phrase})(?!\w)")) for kind, spoken, phrase in _PHRASES)
# Forms of address, and emphasis.
_ASIDE = re.compile(
    r"(?:there|all|everybody|everyone|team|bot|assistant|friends?|again|and|a lot|so much|very much|please|you"
    r"|ban|em|anh|chi|ad|moi nguoi|ca nha|nhe|nha|a|oi|cac|tro ly|nhieu)(?!\w)"
)
_MARK = re.compile(r"[\u0300-\u036f]")
_NO_WORD = re.compile(r"[^\w]+")
# A longer message is no small talk.
_MAX_CHARACTERS = 120


def recognised(message: str) -> Talk | None:
    """The message's small talk; None when it holds anything else."""
    if len(message) > _MAX_CHARACTERS:
        return None
    said, rest = _consumed(folded(message))
    return None if rest or not said else max(said, key=lambda talk: talk.kind)


def without_greeting(text: str) -> str:
    """A folded text without small talk at its beginning."""
    return _consumed(text)[1]


def folded(text: str) -> str:
    """Lower case without marks and punctuation, one space between words."""
    bare = _MARK.sub("", unicodedata.normalize("NFD", text.lower())).replace("đ", "d")
    return _NO_WORD.sub(" ", bare).strip()


def _consumed(text: str) -> tuple[list[Talk], str]:
    """The small talk at the beginning of the text, and the rest."""
    said: list[Talk] = []
    while text:
        matches = ((kind, spoken, pattern.match(text)) for kind, spoken, pattern in _PATTERNS)
        longest = max(
            ((found.end(), kind, spoken) for kind, spoken, found in matches if found is not None), default=None
        )
        if longest is not None:
            end, kind, spoken = longest
            said.append(Talk(kind, spoken))
        elif said and (aside := _ASIDE.match(text)):
            end = aside.end()
        else:
            break
        text = text[end:].lstrip()
    return said, text


_SENTENCES = {
    (Kind.GREETING, "en"): "Hello! I answer questions from documents and cite them. {documents}",
    (Kind.GREETING, "vi"): "Xin chào! Tôi trả lời câu hỏi từ các tài liệu và trích dẫn chúng. {documents}",
    (Kind.FAREWELL, "en"): "Goodbye!",
    (Kind.FAREWELL, "vi"): "Tạm biệt!",
    (Kind.THANKS, "en"): "You are welcome. Ask whenever you want to know something from the documents.",
    (Kind.THANKS, "vi"): "Không có gì. Hãy hỏi bất cứ khi nào bạn muốn biết điều gì từ các tài liệu.",
    (
        Kind.WHO,
        "en",
    ): "I am the assistant of this platform: I answer questions from documents and cite them. {documents}",
    (
        Kind.WHO,
        "vi",
    ): "Tôi là trợ lý của nền tảng này: tôi trả lời câu hỏi từ các tài liệu và trích dẫn chúng. {documents}",
    (Kind.WHAT_TO_ASK, "en"): "Ask whatever the documents may hold; answers cite them. {documents}",
    (
        Kind.WHAT_TO_ASK,
        "vi",
    ): "Hãy hỏi bất cứ điều gì mà các tài liệu có thể chứa; câu trả lời sẽ trích dẫn chúng. {documents}",
}
_TITLES = {
    "en": "Documents that you may read: {titles}.",
    "vi": "Các tài liệu bạn có thể đọc: {titles}.",
}
_SOME_TITLES = {
    "en": "Documents that you may read, among others: {titles}.",
    "vi": "Một số tài liệu bạn có thể đọc: {titles}.",
}
_NO_DOCUMENTS = {
    "en": "There are no documents yet that you may read.",
    "vi": "Chưa có tài liệu nào mà bạn có thể đọc.",
}


def needs_documents(talk: Talk) -> bool:
    """Whether the answer names documents."""
    return "{documents}" in _SENTENCES[talk.kind, talk.spoken]


def text(talk: Talk, titles: list[str], *, complete: bool) -> str:
    """The reply. titles: of documents that the caller may read; complete: whether these are all of them."""
    form = _NO_DOCUMENTS if not titles else _TITLES if complete else _SOME_TITLES
    documents = form[talk.spoken].format(titles=", ".join(f'"{title}"' for title in titles))
    return _SENTENCES[talk.kind, talk.spoken].format(documents=documents)
