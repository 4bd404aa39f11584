"""Words of Vietnamese and English text: how they are folded and matched, which say nothing.

A Vietnamese word is written as syllables with spaces between, so a syllable is what we match, and two neighbouring
syllables of a question that stand together in a text count for more than the two apart.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import Stemmer

from genaifactory_common.english import FUNCTION_WORDS, QUESTION_PHRASES, irregular_forms
from genaifactory_common.language import Language

# Letters with combining marks belong together even where the text is not NFC.
WORD = re.compile(r"[\w\u0300-\u036f]+")

_stemmer = Stemmer.Stemmer("english", 0)  # a small state machine; its own cache is off, ours is enough


class Form(NamedTuple):
    """A word in the forms in which it is compared."""

    exact: str
    """Lower case; letters, then marks in one order, so that "hoà" and "hòa" are one."""
    folded: str
    """Without any marks: "dia" for "đĩa"."""
    stem: str
    """Stem, were it English ("lose" for "losing" and "lost"); equal to `folded` where marks show that it is not."""


@lru_cache(maxsize=1)
def _irregular() -> dict[str, tuple[str, ...]]:
    return irregular_forms(_stemmer.stemWord)


@lru_cache(maxsize=65_536)
def form(word: str) -> Form:
    """The forms of a word as it stands in a text."""
    lowered = word.lower()
    if lowered.isascii():
        stem = _stemmer.stemWord(lowered)
        return Form(lowered, lowered, _irregular().get(stem, (stem,))[0])
    letters, marks = [], []
    for character in unicodedata.normalize("NFD", lowered):
        if character == "đ":
            letters.append("d")
            marks.append(character)
        elif unicodedata.combining(character):
            marks.append(character)
        else:
            letters.append(character)
    folded = "".join(letters)
    return Form(folded + "".join(sorted(marks)), folded, folded)


def words(text: str) -> list[str]:
    """The words of a text, as they stand there."""
    return WORD.findall(text)


def content(text: str, spoken: Language | None) -> list[tuple[str, bool]]:
    """The words of a question that say what it is about, each with whether it follows the one before directly."""
    found: list[tuple[str, bool]] = []
    adjacent = False
    text = unicodedata.normalize("NFC", text)
    stop_words = FUNCTION_WORDS if spoken != "vi" else _VIETNAMESE_FOLDED if text.isascii() else _VIETNAMESE
    text = _PHRASES["vi" if spoken == "vi" else "en"].sub(" , ", text)
    for token in _WORD_OR_MARK.findall(text):
        if _WORD_START.match(token) and not _is_stop_word(token, stop_words):
            found.append((token, adjacent))
            adjacent = True
        else:
            adjacent = False
    return found


def asks_for_number(question: str) -> bool:
    """Whether the answer should hold a number or a time."""
    return _NUMBER_QUESTION.search(unicodedata.normalize("NFC", question)) is not None


def asks_for_steps(question: str) -> bool:
    """Whether the answer should be a list of things to do."""
    return _STEPS_QUESTION.search(unicodedata.normalize("NFC", question)) is not None


def leans_on_context(question: str) -> bool:
    """Whether the question speaks of what was said before ("and for ARM?", "còn máy cũ?", "why is that?")."""
    return _FOLLOW_UP.search(unicodedata.normalize("NFC", question)) is not None


def is_telling(word: str, *, begins: bool) -> bool:
    """Whether a word is a name, a code or a number, which no other word can stand for. begins: the sentence."""
    return any(c.isdigit() for c in word) or (len(word) > 1 and word.isupper()) or (word[0].isupper() and not begins)


def _is_stop_word(word: str, stop_words: frozenset[str]) -> bool:
    lowered = word.lower()
    # "IT", "US" and "AI" in capitals are abbreviations.
    if len(word) > 1 and word.isupper() and lowered in _ABBREVIATION_TOO:
        return False
    return lowered in stop_words or (len(word) == 1 and word.isascii() and word.islower())


_WORD_OR_MARK = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")
_WORD_START = re.compile(r"\w")

# Syllables that also begin or end common nouns (giờ, việc, số, sao, thế, hộ) are left to count.
_VIETNAMESE = frozenset(
    """
    à ạ ai anh ấy bạn bao bằng bị bởi các cả cách cái cần chị chỉ cho chưa chúng có còn của cùng cũng cứ đã đang đây đâu
    đấy để đều đến đi đó được do dù em gì hãy hay hoặc hỏi hơn khi không kia là lại lên lúc mà mấy mình mỗi một mọi muốn
    nào này nên nếu ngay nhé nhiều nhiêu nhỉ như nhưng những nó nữa ở phải qua quá rằng rất ra rồi sau sẽ ta tại thể thì
    theo tôi tới trên trong tuy từ và vẫn vào vậy về vì với vừa xong giúp biết ơi dạ vâng giùm nói thêm kể
    """.split()  # noqa: SIM905  # a list of words reads as a text
)

# Without marks a syllable stands for several; only those are dropped that hardly ever carry the question.
_VIETNAMESE_FOLDED = frozenset(
    """
    ai bao bang bi cac cho chung co cua cung da dang dau de duoc gi hay hoac khi khong la ma nao nay nen neu nhieu
    nhu nhung o phai rang rat se tai thi toi trong tu va vay voi
    """.split()  # noqa: SIM905
)

_ABBREVIATION_TOO = frozenset({"ai", "am", "he", "it", "me", "or", "us", "re", "no", "so", "in", "do", "co", "va"})

_PHRASES = {
    "vi": re.compile(
        r"(?<!\w)(làm thế nào|thế còn|thế thì|thì sao|làm sao|như thế nào|thế nào|bao nhiêu|bao lâu|bao giờ|bao xa"
        r"|khi nào|lúc nào|ở đâu|tại sao|vì sao|là gì|có phải|hay không|xin hỏi|xin chào|cho (tôi|mình|em) (hỏi|biết)"
        r"|hướng dẫn (tôi|mình|em)|vui lòng"
        r"|lam the nao|lam sao|nhu the nao|the nao|bao nhieu|bao lau|bao gio|khi nao|luc nao|o dau|tai sao|vi sao"
        r"|thi sao|la gi|hay khong|xin hoi|xin chao|cho (toi|minh|em) (hoi|biet)|vui long)(?!\w)",
        re.IGNORECASE,
    ),
    "en": QUESTION_PHRASES,
}

# "When is", "until when?", but not the "when" of a condition: "when I lose it".
_WHEN = (
    r"when(?=[^\w\s]*$|\s+(am|is|are|was|were|do|does|did|can|could|may|must|shall|should|will|would|has|have|had"
    r"|to)\b)"
)
_NUMBER_QUESTION = re.compile(
    rf"(?<!\w)(how (many|much|long|far|often|old|soon|big|large|fast)|{_WHEN}"
    r"|what (time|date|year|size|number)|bao nhiêu|bao lâu|bao giờ|bao xa|khi nào|lúc nào|mấy|tối thiểu|tối đa"
    r"|bao nhieu|bao lau|bao gio|khi nao|luc nao|may gio|minimum|maximum)(?!\w)",
    re.IGNORECASE,
)

_STEPS_QUESTION = re.compile(
    r"(?<!\w)(how (do|does|can|could|must|should|would|to)|what (can|do|must|shall|should) (i|we|you|one) do|steps"
    r"|procedure|làm thế nào|làm sao|như thế nào|thế nào|(phải|cần|nên) làm gì|cách|các bước|quy trình|thủ tục"
    r"|lam the nao|lam sao|nhu the nao|(phai|can|nen) lam gi|cac buoc|quy trinh|thu tuc)(?!\w)",
    re.IGNORECASE,
)

# Words that say what kind of answer is wanted rather than what it is about; a text may well leave them out.
GENERIC = frozenset(
    """
    amount company content contents cost customer customers date detail details duration employee employees example
    information kind length list method number period policy procedure process product products purpose reason
    requirement requirements rule rules size steps sum term terms time type way
    """.split()  # noqa: SIM905
)
GENERIC_PAIRS = frozenset(
    {
        ("thoi", "gian"), ("thoi", "han"), ("thoi", "diem"), ("so", "luong"), ("so", "tien"), ("danh", "sach"),
        ("noi", "dung"), ("thong", "tin"), ("chi", "tiet"), ("quy", "dinh"), ("quy", "trinh"), ("thu", "tuc"),
        ("chinh", "sach"), ("muc", "dich"), ("ly", "do"), ("phuong", "phap"), ("cac", "buoc"), ("ho", "so"),
        ("dieu", "kien"), ("yeu", "cau"), ("huong", "dan"), ("vi", "du"), ("gia", "tri"), ("thuc", "hien"),
        ("cong", "ty"), ("khach", "hang"), ("nhan", "vien"), ("san", "pham"), ("nguoi", "dung"),
    }
)  # fmt: skip

_FOLLOW_UP = re.compile(
    r"^\W*(and|but|or|so|also|then|what about|how about|why|why not|và|còn|thế còn|vậy còn|thế thì|vậy thì|thế|vậy"
    r"|con|the con|vay con|va)(?!\w)"
    r"|(?<!\w)(it|its|they|them|their|that|those|this|these|nó|chúng|cái đó|cái này|điều đó|việc đó|vậy|thế đó)\W*$"
    r"|(?<!\w)(it|they|them|nó|chúng nó)(?!\w)",
    re.IGNORECASE,
)
