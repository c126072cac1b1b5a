"""Which of many runs to take: those that no other beats in both, fidelity and drift, and one of these by a rule.

A run dominates another if it is at least as faithful to the subject and drifts at most as much, and is better in one of
the two. Those that nobody dominates are the Pareto front. The rule for one of them is Breiman's one-standard-error rule
(1984, section 3.4.3) with 95% intervals: of the runs that can't be told from the most faithful, the one that harms
least. Numbers of different kinds are never added up. Called by compare.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Estimate = tuple[float, float | None, float | None]  # value, low, high


@dataclass(frozen=True)
class Candidate:
    """A run by its two measures: `fidelity`, higher is better, and `drift`, lower is better."""

    label: str
    fidelity: Estimate
    drift: Estimate
    is_good: bool  # by its verdict


@dataclass(frozen=True)
class Choice:
    """The candidate to take, by index, and why."""

    index: int
    reasons: list[str]


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is at least as good in both and better in one."""
    gains = (one.fidelity[0] - other.fidelity[0], other.drift[0] - one.drift[0])
    return min(gains) >= 0 and max(gains) > 0


def surely_dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is better in both and no interval touches the other's."""
    low, high = one.fidelity[1], other.fidelity[2]
    drift_high, drift_low = one.drift[2], other.drift[1]
    known = low is not None and high is not None and drift_high is not None and drift_low is not None
    return known and low > high and drift_high < drift_low  # type: ignore[operator]


def front(candidates: Sequence[Candidate]) -> list[int]:
    """The candidates that nobody dominates, by index, in order of drift."""
    # Sorted by drift, a candidate is on the front if it is more faithful than all before it, or equal to one of them
    order = sorted(range(len(candidates)), key=lambda k: (candidates[k].drift[0], -candidates[k].fidelity[0]))
    found: list[int] = []
    for k in order:
        before = candidates[found[-1]] if found else None
        if before is None or candidates[k].fidelity[0] > before.fidelity[0] or _is_twin(candidates[k], before):
            found.append(k)
    return found


def _is_twin(one: Candidate, other: Candidate) -> bool:
    return (one.fidelity[0], one.drift[0]) == (other.fidelity[0], other.drift[0])


def choose(candidates: Sequence[Candidate]) -> Choice | None:
    """The candidate to take, None where there is none; it lies on the front of those that are considered."""
    considered = [k for k, candidate in enumerate(candidates) if candidate.is_good] or list(range(len(candidates)))
    if not considered:
        return None
    reasons = [f"Runs with a good verdict: {len(considered)} of {len(candidates)} that were measured."]
    if not candidates[considered[0]].is_good:
        reasons = ["No run's verdict is good, so all that were measured are compared: take none without a look."]
    best = max(considered, key=lambda k: candidates[k].fidelity[0])
    value, low, high = candidates[best].fidelity
    alike = [k for k in considered if candidates[k].fidelity[0] >= (value if low is None else low)]
    index = min(alike, key=lambda k: (candidates[k].drift[0], -candidates[k].fidelity[0]))
    chosen = candidates[index]
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    if index == best:
        reasons.append(f"Its DINO is the highest of them: {value:.3f}{interval}.")
    else:
        reasons.append(
            f"Its DINO of {chosen.fidelity[0]:.3f} lies inside the interval of the best, {candidates[best].label}:"
            f" {value:.3f}{interval}."
        )
    if len(alike) > 1:
        reasons.append(
            f"Of the {len(alike)} that can't be told from the best, its class drifts least: {chosen.drift[0]:.3f}."
        )
    return Choice(index, [*reasons, *_dominance(candidates, index)])


def _dominance(candidates: Sequence[Candidate], index: int) -> list[str]:
    chosen = candidates[index]
    beaten = [other for other in candidates if dominates(chosen, other)]
    surely = [other for other in beaten if surely_dominates(chosen, other)]
    above = [other for other in candidates if dominates(other, chosen)]
    said = [f"It dominates {_listed(beaten)}" + (f", {_listed(surely)} beyond all intervals." if surely else ".")]
    return (said if beaten else ["It dominates no other run."]) + (
        [f"It is dominated by {_listed(above)}, whose verdict is not good."] if above else ["No run dominates it."]
    )


def _listed(candidates: Sequence[Candidate], most: int = 12) -> str:
    names = [candidate.label for candidate in candidates]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
