"""What people ask about the sample documents: facts with their short answers, and ways to ask for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from genaifactory_local.testing import SAMPLE

_FACTS = {
    "leave.md": {
        "annual leave": "16 days.",
        "unused days carried over": "5 days.",
        "maternity leave": "Six months.",
        "leave of fathers": "10 working days.",
        "hour to call when sick": "9:30.",
    },
    "expenses.md": {
        "allowance inside Vietnam": "450,000 VND.",
        "allowance abroad": "60 USD.",
        "cost of a hotel in Hanoi": "1,500,000 VND.",
        "time to claim expenses": "30 days.",
        "day of paying back claims": "The 5th.",
    },
    "it-security.md": {
        "characters of passwords": "14 characters.",
        "time until laptops lock": "Five minutes.",
        "time to report a lost key": "One hour.",
        "time for which logs are kept": "90 days.",
        "months that backups are kept": "12 months.",
    },
    "products.md": {
        "battery of the Lua 3": "Four years.",
        "reach of Lua 3 in open country": "8 km.",
        "sensors of a Dong gateway": "500 sensors.",
        "warranty of sensors": "36 months.",
        "change of the Ao 2 membrane": "Six months.",
    },
    "nghi-phep.md": {
        "số ngày nghỉ phép năm": "16 ngày.",
        "số ngày phép chuyển sang năm sau": "5 ngày.",
        "nghỉ thai sản của lao động nữ": "Sáu tháng.",
        "số ngày nghỉ của người cha": "10 ngày làm việc.",
        "giờ gọi cho quản lý khi nghỉ ốm": "9 giờ 30.",
    },
    "cong-tac-phi.md": {
        "phụ cấp công tác trong nước": "450.000 đồng.",
        "phụ cấp ở nước ngoài": "60 đô la Mỹ.",
        "tiền khách sạn ở Hà Nội": "1.500.000 đồng.",
        "thời hạn đề nghị thanh toán": "30 ngày.",
        "ngày hoàn tiền hằng tháng": "Ngày 5.",
    },
    "bao-mat.md": {
        "số ký tự của mật khẩu": "14 ký tự.",
        "số phút máy tính xách tay tự khóa": "Năm phút.",
        "thời hạn báo mất khóa phần cứng": "Một giờ.",
        "số ngày lưu nhật ký hệ thống": "90 ngày.",
        "nơi lưu dữ liệu khách hàng": "Việt Nam.",
    },
    "san-pham.md": {
        "pin của Lúa 3 dùng được": "Bốn năm.",
        "khoảng cách truyền ở vùng đất trống": "8 km.",
        "số cảm biến của bộ thu phát Đồng": "500 cảm biến.",
        "bảo hành của cảm biến": "36 tháng.",
        "thay màng của đầu đo Ao 2": "Sáu tháng.",
    },
}
"""What is asked about, and the short answer, by the document that holds it."""
_VIETNAMESE = {"nghi-phep.md", "cong-tac-phi.md", "bao-mat.md", "san-pham.md"}

WAYS = {
    "en": (
        "How long or how much is the {what}?",
        "Could you please tell me what the {what} is?",
        "Do you happen to know the {what}?",
        "Which is the {what}?",
        "I need to know the {what}.",
        "What would be the {what}?",
        "Say what the {what} is.",
        "What {what} do we have?",
    ),
    "vi": (
        "Bạn cho hỏi {what} bao nhiêu?",
        "Tôi muốn hỏi {what}.",
        "{what} hiện nay thế nào?",
        "Vậy {what} là bao nhiêu?",
        "Hãy cho tôi biết {what}.",
        "{what} là gì?",
        "Làm ơn cho biết {what} của công ty.",
        "{what} được quy định thế nào?",
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
