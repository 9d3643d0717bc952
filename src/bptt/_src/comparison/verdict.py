"""A credit's result in a sentence that follows from the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bptt._src.comparison.result import Comparison, CreditResult, Figures

LIKE_THE_BASELINE = 0.1  # relative; a loss this near to the baseline is no better
AS_GOOD = 0.05  # relative; perplexities this near to each other count as equal


def verdict(found: Comparison, result: CreditResult) -> str:
    """Describe the result of a credit."""
    figures = found.figures(result)
    parts = [_ending(found, result, figures)]
    learnt = [t.credit for t in result.trials if t.state]
    if learnt:
        parts.append(f"it ended as {', '.join(dict.fromkeys(learnt))}")
    return f"{result.spelling} {'; '.join(parts)}."


def _ending(found: Comparison, result: CreditResult, figures: Figures) -> str:
    if figures.diverged == figures.runs:
        first = min(t.made for t in result.trials)
        where = f"after {first:,} updates" if first else "at the first update"
        return f"diverged {where}: try a smaller learning rate"
    assert figures.loss is not None
    if found.is_text:
        said = _of_text(found, result, figures)
    elif figures.solved == figures.runs:
        said = f"solved the task{_times(figures)}, after {figures.updates:,} updates"
        said += _beside_exact(found, result, figures)
    elif figures.solved:
        said = f"solved the task in {figures.solved} of {figures.runs} runs"
    else:
        said = _unsolved(found, result, figures)
    if figures.diverged:
        said += f"; {figures.diverged} of {figures.runs} runs diverged"
    return said


def _times(figures: Figures) -> str:
    return {1: "", 2: " both times"}.get(figures.runs, f" all {figures.runs} times")


def _beside_exact(found: Comparison, result: CreditResult, figures: Figures) -> str:
    exact = _exact(found)
    if exact is None or exact is result or figures.updates is None:
        return ""
    updates = found.figures(exact).updates
    if not updates:
        return ""
    times = figures.updates / updates
    if abs(times - 1) < AS_GOOD:
        return f", as many as {exact.spelling}"
    return f", {times:.2g} times as many as {exact.spelling}"


def _unsolved(found: Comparison, result: CreditResult, figures: Figures) -> str:
    assert figures.loss is not None
    loss, baseline = f"{figures.loss:.3g}", f"{found.baseline:.3g}"
    short = ""
    if found.lag is not None and result.plans.reach <= found.lag:
        back = result.plans.reach - 1
        short = (
            f": its losses reach {back} step{'' if back == 1 else 's'} back, the answer lies "
            f"{found.lag} back"
        )
    if figures.loss > (1 + LIKE_THE_BASELINE) * found.baseline:
        said = f"ended at a loss of {loss}, above that of a model without memory, {baseline}"
    elif figures.loss > (1 - LIKE_THE_BASELINE) * found.baseline:
        said = f"stayed at the loss of a model without memory, {baseline}"
    else:
        said = (
            f"got to a loss of {loss}, between that of a model without memory, {baseline}, and "
            f"the target, {found.target:.3g}"
        )
    more = "" if short or all(t.ended == "updates" for t in result.trials) else "; time was up"
    return said + short + more


def _of_text(found: Comparison, result: CreditResult, figures: Figures) -> str:
    assert figures.loss is not None
    said = f"reached a perplexity of {figures.loss:,.1f}"
    exact = _exact(found)
    if exact is None or exact is result:
        return f"{said}; a unigram model's is {found.shown(found.baseline):,.1f}"
    best = found.figures(exact).loss
    if best is None:
        return said
    more = figures.loss / best - 1
    if abs(more) < AS_GOOD:
        return f"{said}, as good as {exact.spelling}'s {best:,.1f}"
    worse = "more" if more > 0 else "less"
    return f"{said}, {abs(more):.0%} {worse} than {exact.spelling}'s {best:,.1f}"


def _exact(found: Comparison) -> CreditResult | None:
    """The first credit that is backpropagation through time itself and does not adapt."""
    plain = (r for r in found.credits if r.plans.exact and not any(t.state for t in r.trials))
    return next(plain, None)
