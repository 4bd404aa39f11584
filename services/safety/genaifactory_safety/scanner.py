"""Scans a text while it is being written: `push` returns what may leave, `finish` the rest, `verdict` the outcome.

The released text, the findings and the verdict are functions of the text alone, however it was cut:

- The text is cut into segments at places that depend on the text alone (segments.py). Text between segments can hold
  no entity and leaves at once.
- A segment is scanned once, with the CONTEXT_CHARACTERS before it; if a label after it could name the kind of a
  number, it waits for the AFTER_CHARACTERS that follow, or for the end of the line.
- A chain longer than WINDOW_CHARACTERS is scanned in windows. A window is decided up to a *joint*, a character that
  is part of no token, at least OVERLAP_CHARACTERS before the window's end and not within a candidate: the rest is
  scanned again in the next window. A run without a joint is UNSCANNABLE: the policy's strongest action, to the run's
  end.
- A private key is recognised by its header and suppressed to its footer, or to the end of the text.
- Text and findings leave in the order of the text, and only up to the position that every scanner has passed. The
  first finding that blocks ends the scan: the text before it has left, none after it does.

A scan of a whole text is this scan with one piece. Memory is bounded by the window and the piece; time is linear,
since no character is in more than a few windows.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from itertools import chain

from genaifactory_common.errors import Unavailable
from genaifactory_common.masking import mask
from genaifactory_common.normalise import UNSPACED, Normalised, normalise
from genaifactory_safety.banned import BANNED_TERM, BannedTerms
from genaifactory_safety.labels import AFTER_CHARACTERS, BEFORE_CHARACTERS, Standing, fold
from genaifactory_safety.policies import UNSCANNABLE, Policy
from genaifactory_safety.recogniser import LABELLED_SCORE, LISTED_SCORE, OTHER_SCORE, Candidate
from genaifactory_safety.secrets import PEM_FOOTER, PEM_FOOTER_CHARACTERS, PRIVATE_KEY
from genaifactory_safety.segments import OVERLAP_CHARACTERS, Segment, Segments
from genaifactory_safety.verdicts import Action, Finding, Verdict, clusters, resolve

logger = logging.getLogger(__name__)

# Characters that are part of no token and no number.
_JOINT = re.compile(f"[\\s\"'`,;(){{}}\\[\\]<>|&?\u00c0-\u024f\u1e00-\u1eff{UNSPACED}]")
_LINE_END = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class _Scanned:
    """A scanned segment, with candidates whose score a label after it may still change."""

    segment: Segment
    text: Normalised
    rated: list[tuple[Candidate, float, bool]]
    """Candidate by position in `text`, its score so far, and whether a label after it can change the score."""


@dataclass
class _Suppressed:
    """A span of the text that does not leave, whose end is not reached yet."""

    finding: Finding
    end_pattern: re.Pattern[str]
    through: bool
    """Whether the match of end_pattern is part of it."""
    keep: int
    """The greatest length of a match of end_pattern: so many characters are kept for an unfinished one."""
    position: int


class StreamScanner:
    """The scan of one text by one policy. Not for use by two threads at once."""

    def __init__(self, policy: Policy) -> None:
        self.blocked = False
        """Whether a finding blocked the text: nothing more leaves."""
        self._policy = policy
        self._segments = Segments()
        self._banned = BannedTerms(policy.banned) if policy.banned is not None else None
        self._waiting: _Scanned | None = None
        self._suppressed: _Suppressed | None = None
        self._pending: list[Finding] = []
        self._findings: list[Finding] = []
        self._released = 0
        self._output: list[str] = []
        self._failed = False

    def push(self, text: str) -> str:
        """Adds the next piece of the text; returns what may leave now. Raises Unavailable when a scanner fails."""
        if self.blocked:
            return ""
        if not self._policy.scanners:
            self._segments.feed(text)
            self._released = self._segments.end
            self._segments.forget(self._released)
            return text
        self._segments.feed(text)
        return self._guarded()

    def finish(self) -> str:
        """Ends the text; returns the rest of what may leave. Raises Unavailable when a scanner fails."""
        self._segments.close()
        return "" if self.blocked or not self._policy.scanners else self._guarded()

    @property
    def held(self) -> int:
        """Characters that were pushed and are neither released nor removed yet."""
        return self._segments.end - self._released

    def verdict(self) -> Verdict:
        """The outcome; after `finish` or a block."""
        if self._failed or not (self.blocked or self._segments.final):
            raise Unavailable("The text is not scanned to its end; it must not be used.")
        return Verdict(
            action=max((finding.action for finding in self._findings), default=Action.ALLOW),
            findings=tuple(self._findings),
            scanners=self._policy.scanners,
            scanned_characters=self._findings[-1].end if self.blocked else self._segments.end,
        )

    def _guarded(self) -> str:
        if self._failed:
            raise Unavailable("A scanner failed; the text must not be used.")
        try:
            self._advance()
        except Exception as error:
            self._failed = True
            # Neither message nor traceback is logged: both may hold the text.
            logger.error("a scanner failed: %s", type(error).__name__)
            raise Unavailable("A scanner failed; the text must not be used.") from None
        released = "".join(self._output)
        self._output.clear()
        return released

    def _advance(self) -> None:
        while not self.blocked:
            if self._suppressed is not None:
                if not self._skip(self._suppressed):
                    return
                continue
            scanned = self._waiting
            if scanned is None:
                segment = self._segments.next()
                if segment is None:
                    break
                scanned = self._scan(segment)
            self._waiting = None if self._decide(scanned) else scanned
            if self._waiting is not None:
                break
        if not self.blocked and self._suppressed is None:
            self._release(self._segments.clear, self._segments.words_end if self._banned else 0, self._segments.final)
        self._segments.forget(self._released)

    def _scan(self, segment: Segment) -> _Scanned:
        """Runs the recognisers over a segment, and rates its candidates by the labels before them."""
        text = normalise(self._segments.slice(segment.start, segment.end))
        before = normalise(self._segments.context(segment.start)).text
        window = before + text.text
        shift = len(before)
        recognisers = self._policy.recognisers(text.text, window)
        found = [candidate for recogniser in recognisers for candidate in recogniser.find(window, shift)]
        folded = fold(window) if found else ""
        return _Scanned(segment, text, [self._rated(candidate, folded, shift) for candidate in found])

    def _rated(self, candidate: Candidate, folded: str, shift: int) -> tuple[Candidate, float, bool]:
        recogniser, score = candidate.recogniser, candidate.score
        moved = Candidate(recogniser, candidate.start - shift, candidate.end - shift, score)
        if recogniser.labels is None:
            return moved, score, False
        standing = recogniser.labels.before(folded[max(candidate.start - BEFORE_CHARACTERS, 0) : candidate.start])
        if standing is Standing.NAMED:
            return moved, max(score, LABELLED_SCORE), False
        if standing is Standing.LISTED:
            return moved, max(score, LISTED_SCORE), False
        if standing is Standing.OTHER:
            return moved, min(score, OTHER_SCORE) if recogniser.doubtful else score, False
        needed = self._policy.decisions[recogniser.entity].min_score
        return moved, score, score < needed <= LABELLED_SCORE

    def _decide(self, scanned: _Scanned) -> bool:
        """Turns candidates into findings; False when the text after the segment is needed first."""
        segment, text = scanned.segment, scanned.text
        rated = scanned.rated
        if any(open_ for _, _, open_ in rated):
            after = ""
            if not segment.unfinished:
                after = self._segments.slice(segment.end, segment.end + AFTER_CHARACTERS)
                line_end = _LINE_END.search(after)
                if line_end:
                    after = after[: line_end.start()]
                elif len(after) < AFTER_CHARACTERS and not self._segments.final:
                    return False
            rest = fold(text.text + normalise(after).text)
            rated = [self._relabelled(rest, *candidate) if candidate[2] else candidate for candidate in rated]
        findings = [
            finding for candidate, score, _ in rated if (finding := self._finding(segment, text, candidate, score))
        ]
        end: int | None = segment.end
        if segment.unfinished:
            spans = [self._span(segment, text, candidate) for candidate, _, _ in rated]
            end = self._cut(segment, spans)
            if end is None and self._policy.decisions[UNSCANNABLE].action is Action.ALLOW:
                end = segment.end - OVERLAP_CHARACTERS
        if end is None:
            decision = self._policy.decisions[UNSCANNABLE]
            reached = segment.end - OVERLAP_CHARACTERS
            run = Finding(UNSCANNABLE, segment.start, reached, 1.0, decision.action, decision.scanner)
            self._enforce(_Suppressed(run, _JOINT, through=False, keep=0, position=reached))
            return True
        findings = [finding for finding in findings if finding.end <= end]
        key = min((f.start for f in findings if f.entity == PRIVATE_KEY and f.action is Action.MASK), default=None)
        if key is not None:
            self._suppress_key(findings, key)
            return True
        self._pending += findings
        self._segments.resume(end)
        return True

    @staticmethod
    def _relabelled(rest: str, candidate: Candidate, score: float, _: bool) -> tuple[Candidate, float, bool]:
        labels = candidate.recogniser.labels
        named = labels is not None and labels.after(rest[candidate.end :]) is Standing.NAMED
        return candidate, LABELLED_SCORE if named else score, False

    def _finding(self, segment: Segment, text: Normalised, candidate: Candidate, score: float) -> Finding | None:
        decision = self._policy.decisions[candidate.recogniser.entity]
        if score < decision.min_score:
            return None
        start, end = self._span(segment, text, candidate)
        return Finding(candidate.recogniser.entity, start, end, score, decision.action, decision.scanner)

    @staticmethod
    def _span(segment: Segment, text: Normalised, candidate: Candidate) -> tuple[int, int]:
        start, end = text.original(candidate.start, candidate.end)
        return segment.start + start, segment.start + end

    def _cut(self, segment: Segment, spans: list[tuple[int, int]]) -> int | None:
        """The position up to which an unfinished segment is decided; None when there is none."""
        limit = segment.end - OVERLAP_CHARACTERS
        joints = [segment.start + m.end() for m in _JOINT.finditer(self._segments.slice(segment.start, limit))]
        if not joints:
            return None
        cut = joints[-1]
        while straddling := [span for span in spans if span[0] < cut < span[1]]:
            cut = min(start for start, _ in straddling)
        if cut > segment.start:
            return cut
        # The candidates leave no gap from the start on: decided up to the first end among those that begin there.
        cut = min(end for start, end in spans if start == segment.start)
        return cut if cut < limit else None

    def _suppress_key(self, findings: list[Finding], start: int) -> None:
        """Begins a private key: the text before it is decided; all from it to its footer is not released."""
        header = next(f for f in findings if f.entity == PRIVATE_KEY and f.start == start)
        overlapping = [f for f in findings if f.start < start < f.end]
        self._pending += [f for f in findings if f.end <= start]
        begin = min((f.start for f in overlapping), default=start)
        finding = Finding(PRIVATE_KEY, begin, header.end, header.score, header.action, header.scanner)
        self._enforce(_Suppressed(finding, PEM_FOOTER, through=True, keep=PEM_FOOTER_CHARACTERS, position=header.end))

    def _enforce(self, suppressed: _Suppressed) -> None:
        """Begins a span that does not leave; every scanner has passed the text before it."""
        finding = suppressed.finding
        self._release(finding.start, finding.start, final=True)
        if self.blocked:
            return
        self._output.append(mask(finding.entity))
        if finding.action is Action.BLOCK:
            self._output.pop()
            self._findings.append(finding)
            self.blocked = True
            return
        self._released = suppressed.position
        self._segments.resume(suppressed.position)
        self._suppressed = suppressed

    def _skip(self, suppressed: _Suppressed) -> bool:
        """Advances through a suppressed span; False when more text is needed."""
        text = self._segments.slice(suppressed.position, self._segments.end)
        found = suppressed.end_pattern.search(text)
        if found:
            end = suppressed.position + (found.end() if suppressed.through else found.start())
        elif self._segments.final:
            end = self._segments.end
        else:
            suppressed.position = max(suppressed.position, self._segments.end - suppressed.keep)
            self._released = suppressed.position
            self._segments.resume(suppressed.position)
            self._segments.forget(suppressed.position)
            return False
        begun = suppressed.finding
        self._findings.append(Finding(begun.entity, begun.start, end, begun.score, begun.action, begun.scanner))
        self._suppressed = None
        self._released = end
        self._segments.resume(end)
        if self._banned is not None:
            self._banned.clear = end
        return not (found is None and end == self._segments.end)

    def _release(self, clear: int, words_end: int, final: bool) -> None:
        """Releases the text up to the position that every scanner has passed."""
        if self._banned is not None:
            decision = self._policy.decisions[BANNED_TERM]
            spans = self._banned.find(self._segments, words_end, final=final)
            self._pending += [Finding(BANNED_TERM, *span, 1.0, decision.action, decision.scanner) for span in spans]
            clear = min(clear, self._banned.clear)
        if not self._pending:
            self._emit(clear)
            return
        groups = clusters(self._pending)
        closed = 0
        while closed < len(groups) and max(f.end for f in groups[closed]) <= clear:
            closed += 1
        for finding in chain.from_iterable(resolve(group) for group in groups[:closed]):
            self._emit(finding.start)
            self._findings.append(finding)
            if finding.action is Action.BLOCK:
                self.blocked = True
                self._pending.clear()
                return
            if finding.action is Action.MASK:
                self._output.append(mask(finding.entity))
                self._released = finding.end
        self._pending = [finding for group in groups[closed:] for finding in group]
        self._emit(min(clear, *(finding.start for finding in self._pending)) if self._pending else clear)

    def _emit(self, end: int) -> None:
        if end > self._released:
            self._output.append(self._segments.slice(self._released, end))
            self._released = end
