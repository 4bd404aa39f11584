"""English words that retrieval and the extractive engine share: function words and irregular forms.

The retriever decides with them whether the passages answer a question, the engine which sentence does. If the two
differed, a question whose passage was found would be refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Question words, conjunctions, modal verbs and pronouns: words that name nothing.
FUNCTION_WORDS = frozenset(
    """
    a about after all also am an and any are as at be been before being both but by can cannot could did do does doing
    done each for from get give given gets got had happen happened happens has have having he her hers him his how i if
    in into is it its itself just know let like made make many may me might mine more most much must my need needs no
    not of on one or our ours out over please shall she should so some such than that the their theirs them then there
    these they this those to too under until up us very want was we were what whats when where whether which while who
    whom whose why will with would you your yours tell explain describe show find help say says s t re ve ll d m don
    doesn didn isn aren
    """.split()  # noqa: SIM905  # a list of words reads as a text
)

# Phrases of a question whose words name something elsewhere.
QUESTION_PHRASES = re.compile(
    r"(?<!\w)(how (long|far|often|old|soon|big|large|fast)|what (kind|sort|type)s? of|what time|(could|can) you"
    r"|according to the (documents?|text|context)|in the (documents?|text|context))(?!\w)",
    re.IGNORECASE,
)

# Forms that no rule yields, without those that are mostly another word: left, found, saw, felt, lay.
_IRREGULAR = """
begin began begun|bite bit bitten|bleed bled|blow blew blown|break broke broken|breed bred|bring brought|build built
burn burnt|buy bought|catch caught|child children|choose chose chosen|come came|creep crept|deal dealt|dig dug
draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed|fight fought|flee fled
fly flew flown|foot feet|forbid forbade forbidden|forget forgot forgotten|freeze froze frozen|go goes went gone
grow grew grown|hang hung|hear heard|hide hid hidden|hold held|keep kept|lead led|learn learnt|lend lent|lose lost
man men|mean meant|meet met|pay paid|person people|ride rode ridden|ring rang rung|rise rose risen|run ran|seek sought
sell sold|send sent|shake shook shaken|shrink shrank shrunk|sing sang sung|sink sank sunk|sleep slept|slide slid
speak spoke spoken|spend spent|spin spun|spread spread|steal stole stolen|stick stuck|sting stung|strike struck
swear swore sworn|sweep swept|swim swam swum|swing swung|take took taken|teach taught|tear tore torn|think thought
throw threw thrown|tooth teeth|understand understood|undertake undertook undertaken|wake woke woken|wear wore worn
win won|withdraw withdrew withdrawn|woman women|write wrote written
"""


def irregular_forms(stem: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """By stem: the stems of all forms of its word, the base first. Without stems that have no irregular forms.

    stem: the stemmer whose stems are compared; called with lower-case words.
    """
    found: dict[str, tuple[str, ...]] = {}
    for group in _IRREGULAR.replace("\n", "|").split("|"):
        stems = tuple(dict.fromkeys(map(stem, group.split())))
        if len(stems) > 1:
            found |= dict.fromkeys(stems, stems)
    return found
