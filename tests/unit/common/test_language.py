"""Detection of Vietnamese and English, in queries of a few words and in texts."""

from __future__ import annotations

import unicodedata

import pytest

from genaifactory_common import language

VIETNAMESE = """
Làm thế nào để phân vùng đĩa cứng?
lam the nao de phan vung dia cung cua toi
Cài đặt Debian GNU/Linux
Tôi được nghỉ bao nhiêu ngày?
nghỉ phép
nghi phep bao nhieu ngay
lam sao de cai dat
ở đâu
Giờ làm việc của phòng IT là gì?
wifi mat khau la gi
lam the nao de xin nghi phep
Bảo hành máy giặt
RAID là gì?
RAID la gi
mat khau wifi
quên mật khẩu
quen mat khau thi lam sao
khi nao tra luong
lương tháng 13
cach cai dat may in
ai duyệt đơn nghỉ phép
ai duyet don nghi phep
toi muon huy don hang
hủy đơn hàng
Debian có hỗ trợ ARM không?
debian co ho tro arm khong
so dien thoai phong nhan su
số điện thoại hỗ trợ?
chinh sach hoan tien
bao lau thi nhan duoc hang
tai sao may khong khoi dong
Phân vùng swap cần bao nhiêu GB?
con may cu thi sao
còn máy cũ?
xin chào
xin chao
cảm ơn
cam on
tóm tắt sổ tay
tom tat so tay
thử việc
hop dong thu viec
công tác phí
laptop bị mất
mat laptop phai lam gi
VPN không vào được
bảo hiểm
địa chỉ công ty
giờ ăn trưa
Wi-Fi cho khách
thời hạn bảo hành là bao lâu
thoi han bao hanh la bao lau
ai ký hợp đồng
lịch nghỉ tết
mua phần mềm cần gì
mua phan mem can gi
máy in hết mực
sếp duyệt chi phí
đặt vé máy bay cho chuyến công tác
bao cao mat the nhan vien
thẻ ra vào
reset mật khẩu email
reset mat khau email
ổ cứng
""".strip().splitlines()

ENGLISH = """
How do I partition the disk?
The café's menu is on the website and the résumé is there too.
Preparing Files for USB Memory Stick Booting
How many days of leave do I get?
Is there a café near the hotel, and is a résumé needed?
Where is the naïve approach described in the documents?
What is phở?
How do I get to Đà Nẵng from here?
annual leave
reset password
lost laptop
who approves a business trip
What is RAID?
hello
thanks
summarise the handbook
Who is Nguyễn Văn An?
phone number of HR
When is Tết?
probation period
can I expense a taxi
boot from usb
is the office in Hà Nội open on Saturday?
what does Trần mean
hardware key
cost of parking
and for managers?
why
do I get paid leave
la carte menu
tell me about the dang thing
who is on call
support hours
may I work from home
Where can I find the form?
minimum RAM
default password
How do I cancel an order?
to whom do I report a loss
the policy
sick leave
who is Trần Hưng Đạo?
menu of the café
parking in Huế
report a stolen badge
travel booking
lunch allowance
software purchase
I need a new monitor
contract signing
mat size
hang on a minute
how does Ngọc approve it
printer out of ink
warranty period
expense approval by my boss
what are the working hours on Tết
VPN access
""".strip().splitlines()


@pytest.mark.parametrize("text", VIETNAMESE)
def test_vietnamese_is_detected_with_and_without_diacritics(text: str) -> None:
    assert language.detect(text) == "vi"
    assert language.detect(unicodedata.normalize("NFD", text)) == "vi"
    assert language.nearest(text) == language.of_reply(text) == "vi"


@pytest.mark.parametrize("text", ENGLISH)
def test_english_with_vietnamese_names_is_not_detected_as_vietnamese(text: str) -> None:
    assert language.detect(text) in ("en", None)
    assert language.of_reply(text) == "en"


@pytest.mark.parametrize(
    "text",
    ["1234 !!!", "2024?", "", "東京はどこですか", "Où est la bibliothèque? Elle est près de l'église où nous étions."],
)
def test_numbers_and_other_languages_are_not_detected(text: str) -> None:
    assert language.detect(text) is None
    assert language.nearest(text) is None


@pytest.mark.parametrize("text", ["VPN", "Debian 13", "annual leave", "phishing"])
def test_a_name_is_not_detected_and_is_nearest_to_english(text: str) -> None:
    assert language.detect(text) is None
    assert language.nearest(text) == language.of_reply(text) == "en"


def test_most_words_of_a_long_text_decide() -> None:
    vietnamese = "Nhân viên gửi đơn trên Cổng Nhân sự. See the handbook of the company for more. "
    english = "Ask Nguyễn Văn An or Trần Thị Bình in Đà Nẵng, who know how this is done and where the forms are. "
    assert language.detect(vietnamese * 3) == "vi"
    assert language.detect(english * 50) == "en"
