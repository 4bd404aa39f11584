"""Text without a declared encoding: when it is decoded as Western or Vietnamese Windows text, and when refused."""

from __future__ import annotations

import pytest

from genaifactory_common import decoding, formats
from genaifactory_common.decoding import VIETNAMESE, WESTERN
from genaifactory_common.errors import InvalidArgument
from tests.unit.retriever import files

WESTERN_TEXTS = {
    "French": "L’été dernier, nos équipes ont élargi le marché européen ; où est le reçu de Zoë ? Cœur, naïf, août.",
    "German": "Überstunden müssen bis zum 31. März abgebaut werden – größere Beträge zahlt die Geschäftsführung aus.",
    "Spanish": "¿Cuántos días de vacaciones tiene el señor Muñoz? Según el artículo 7.º, veintidós días al año.",
    "Portuguese": "A reunião não é obrigatória; as férias são de 22 dias úteis, à exceção do mês de março.",
    "Italian": "Perché la città è più lontana? Così non può esserci nulla di male, però costerà di più.",
    "Danish": "Første ferieår på Sjælland: medarbejdere får fem ugers ferie, også når året ændrer sig.",
    "English": "The employee’s handbook — “second edition” — costs €20 (£17) © Acme, at 20 °C.",
    "one word": "caf\u00e9",
}
VIETNAMESE_TEXTS = (
    "Mỗi nhân viên toàn thời gian có 16 ngày nghỉ phép năm hưởng nguyên lương.",
    "Cộng hòa Xã hội Chủ nghĩa Việt Nam, Độc lập - Tự do - Hạnh phúc",
    "Quy định về việc sử dụng thẻ ra vào: không được cho người khác mượn. ĐIỀU KHOẢN THỨ HAI",
    "Tên;Nơi ở\nNguyễn Mạnh Đức;Phố cổ Hà Nội\n",
)


@pytest.mark.parametrize("text", WESTERN_TEXTS.values(), ids=WESTERN_TEXTS)
def test_western_windows_text_is_decoded(text: str) -> None:
    data = text.encode("cp1252")
    assert decoding.decode(data) == text
    assert decoding.guessed_encoding(data, "text/plain") == WESTERN


def test_latin_1_is_decoded_as_western() -> None:
    text = "Die Größe der Küche: 20 m²; prêt à réserver, à côté."
    assert decoding.decode(text.encode("latin-1")) == text


@pytest.mark.parametrize("text", VIETNAMESE_TEXTS)
def test_vietnamese_windows_text_is_decoded_and_composed(text: str) -> None:
    data = files.cp1258(text)
    assert decoding.decode(data) == text
    assert decoding.guessed_encoding(data, "text/plain") == VIETNAMESE


@pytest.mark.parametrize("text", [*WESTERN_TEXTS.values(), *VIETNAMESE_TEXTS, "plain"])
def test_utf_8_is_no_guess(text: str) -> None:
    assert decoding.decode(text.encode()) == text
    assert decoding.guessed_encoding(text.encode(), "text/plain") == ""


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет, как дела у вас сегодня?", "cp1251"),
        ("# Здравствуйте\nprint('hello, this is code with one comment in another script')", "cp1251"),
        ("Привет, как дела у вас сегодня?", "koi8-r"),
        ("Zażółć gęślą jaźń, czyli wszystkie polskie litery.", "cp1250"),
        ("Příští týden přijede náš zákazník z Plzně.", "cp1250"),
        ("Az ügyfélszolgálat hétfőn és szerdán nyitva, hűvös időben is működik.", "cp1250"),
        ("Şirketimizin çalışanları yıllık iznini kullanır, doğum günü hariç.", "cp1254"),
        ("Καλημέρα σας, πώς είστε σήμερα;", "cp1253"),
        ("שלום לכולם, מה שלומכם היום", "cp1255"),
        ("今日は天気がいいですね。会議は三時からです。", "shift_jis"),
        ("员工每年有十六天带薪年假。", "gbk"),
        ("휴가는 일 년에 십육 일입니다.", "euc-kr"),
        ("Überstunden und größere Beträge für Möbel", "cp437"),
        ("Überstunden und größere Beträge für Möbel", "mac-roman"),
    ],
)
def test_text_of_other_encodings_is_refused(text: str, encoding: str) -> None:
    with pytest.raises(InvalidArgument, match=r"not UTF-8 text at byte .*save it as UTF-8"):
        decoding.decode(text.encode(encoding))


@pytest.mark.parametrize(
    "data",
    [
        "Nghỉ phép năm: mỗi nhân viên có 16 ngày.".encode() + b"\xe1\xba",
        "Überstunden und größere Beträge".encode() + b"\xfc",
        b"PK\x03\x04\x00\xff",
        b"\x89PNG\r\n\x1a\n\xff\xfe",
        bytes(range(256)),
    ],
    ids=["cut Vietnamese", "damaged German", "archive", "picture", "every byte"],
)
def test_damaged_utf_8_and_binary_data_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"as UTF-8|NUL"):
        decoding.decode(data)


def test_a_declared_charset_is_no_guess() -> None:
    page = '<meta charset="windows-1252"><p>Café</p>'.encode("cp1252")
    assert decoding.guessed_encoding(page, "text/html") == ""
    assert decoding.guessed_encoding(page.replace(b"charset", b"x"), "text/html") == WESTERN
    assert decoding.guessed_encoding(page, formats.PDF) == ""
