"""What people ask about the sample documents: facts with their short answers, and ways to ask for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from genaifactory_local.testing import SAMPLE

_FACTS = {
    "leave.md": {
        "annual leave of a full-time employee": "16 days.",
        "number of unused days of leave that I may carry over": "5 days.",
        "maternity leave of a mother": "Six months.",
        "paternity leave of a father": "10 working days.",
        "hour by which I must call when I am sick": "9:30.",
    },
    "expenses.md": {
        "daily allowance inside Vietnam": "450,000 VND.",
        "daily allowance abroad": "60 USD.",
        "highest price of a hotel in Hanoi": "1,500,000 VND.",
        "time in which expenses are claimed": "30 days.",
        "day of the month on which expenses are paid back": "The 5th.",
    },
    "it-security.md": {
        "least length of a password": "14 characters.",
        "time after which a laptop locks itself": "Five minutes.",
        "time in which a lost hardware key is reported": "One hour.",
        "time for which logs are kept": "90 days.",
        "time for which backups are kept": "12 months.",
    },
    "products.md": {
        "battery life of the Lua 3": "Four years.",
        "range of the Lua 3 in open country": "8 km.",
        "number of sensors that one Dong gateway serves": "500 sensors.",
        "warranty of sensors": "36 months.",
        "warranty of gateways": "24 months.",
    },
    "nghi-phep.md": {
        "số ngày nghỉ phép năm": "16 ngày.",
        "số ngày phép được chuyển sang năm sau": "5 ngày.",
        "thời gian nghỉ thai sản của lao động nữ": "Sáu tháng.",
        "thời gian nghỉ của người cha khi vợ sinh": "10 ngày làm việc.",
        "giờ muộn nhất phải gọi khi nghỉ ốm": "9 giờ 30.",
    },
    "cong-tac-phi.md": {
        "phụ cấp công tác trong nước": "450.000 đồng.",
        "phụ cấp công tác nước ngoài": "60 đô la Mỹ.",
        "giá khách sạn tối đa ở Hà Nội": "1.500.000 đồng.",
        "thời hạn đề nghị thanh toán chi phí": "30 ngày.",
        "ngày hoàn tiền chi phí hằng tháng": "Ngày 5.",
    },
    "bao-mat.md": {
        "độ dài tối thiểu của mật khẩu": "14 ký tự.",
        "thời gian máy tính xách tay tự khóa": "Năm phút.",
        "thời hạn báo mất khóa phần cứng": "Một giờ.",
        "thời gian lưu nhật ký hệ thống": "90 ngày.",
        "thời gian giữ bản sao lưu": "12 tháng.",
    },
    "san-pham.md": {
        "tuổi thọ pin của cảm biến Lúa 3": "Bốn năm.",
        "tầm truyền dữ liệu của Lúa 3": "8 km.",
        "số cảm biến mà một bộ thu phát Đồng phục vụ": "500 cảm biến.",
        "thời hạn bảo hành cảm biến": "36 tháng.",
        "thời hạn bảo hành bộ thu phát": "24 tháng.",
    },
}
"""What is asked about, and the short answer, by the document that holds it."""
_VIETNAMESE = {"nghi-phep.md", "cong-tac-phi.md", "bao-mat.md", "san-pham.md"}

WAYS = {
    "en": (
        "What is the {what}?",
        "Please tell me the {what}.",
        "{what}: what does the handbook say?",
        "I need to know the {what}.",
        "Can you look up the {what}?",
        "My team asks me about the {what}, please answer.",
        "Does the handbook say anything on the {what}?",
        "One more thing: the {what}?",
    ),
    "vi": (
        "Cho tôi hỏi {what}?",
        "{what} là bao nhiêu?",
        "Sổ tay nói gì về {what}?",
        "Tôi cần biết {what}.",
        "Xin tra giúp tôi {what}.",
        "Nhóm tôi hỏi về {what}, xin trả lời giúp.",
        "Ai biết {what} không?",
        "Còn {what} thì sao?",
    ),
}
HELD_OUT = {
    "en": "A new colleague of mine has asked me about the {what} today; what do I answer?",
    "vi": "Hôm nay một đồng nghiệp mới vào có hỏi tôi về {what}, tôi phải trả lời ra sao?",
}
"""Words in which nobody asks before the evaluation."""


@dataclass(frozen=True)
class Fact:
    """Something that a document says."""

    document: str
    """Id of the document."""
    language: str
    what: str
    answer: str


def facts() -> Iterator[Fact]:
    """All of them, document by document."""
    for name, known in _FACTS.items():
        for what, answer in known.items():
            yield Fact(f"{SAMPLE.name}/{name}", "vi" if name in _VIETNAMESE else "en", what, answer)
