"""The HTML page of a report: one file, without scripts, and nothing in it comes from a network."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sb3_softac.report.curves import smooth
from sb3_softac.report.data import Run
from sb3_softac.report.panels import Line, Panel, by_task, make_panels, mean_speed
from sb3_softac.report.plots import draw
from sb3_softac.report.rules import Outcome, judge
from sb3_softac.report.style import CSS
from sb3_softac.report.verdicts import count, number

Groups = Mapping[str, Sequence[Run]]
#: rows of a table that are shown
MOST_ROWS = 200


def make_page(groups: Groups, notes: Sequence[str] = ()) -> str:
    """The page as text.

    :param groups: runs by the name of their group
    :param notes: sentences on what was left out
    """
    outcomes = judge(groups)
    runs = [run for group in groups.values() for run in group]
    title = f"{count(len(runs), 'run')} of {_listed(dict.fromkeys(run.algorithm or 'an unknown algorithm' for run in runs))}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_listed(dict.fromkeys(run.env_id or "unknown task" for run in runs)))}</p>',
        _headline(outcomes, runs),
        _notes([*notes, *(f"{run.name}: {note}" for run in runs for note in run.notes)]),
        "<h2>Runs</h2>",
        _runs(groups),
        "<h2>Plots</h2>",
        _interval(groups),
        _plots(groups),
        '<h2 id="findings">Findings</h2>',
        _findings(outcomes, groups),
        _unknown(outcomes),
        "<h2>Settings that differ from the defaults</h2>",
        _settings(groups),
    ]
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{CSS}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""


def _headline(outcomes: Sequence[Outcome], runs: Sequence[Run]) -> str:
    found = [outcome for outcome in outcomes if outcome.findings]
    hints = [outcome for outcome in found if outcome.is_hint]
    judged = sum(len(outcome.unknown) < outcome.n_runs for outcome in outcomes)
    if not found:
        text = (
            f"No rule found anything wrong ({judged} of {len(outcomes)} could be judged)."
            if judged
            else "No rule could be judged."
        )
        return f'<p class="verdict {"fine" if judged else "unknown"}"><a href="#findings">{escape(text)}</a></p>'
    counts = [count(len(found) - len(hints), "problem"), count(len(hints), "hint")]
    symptoms = " ".join(dict.fromkeys(next(iter(outcome.findings.values())).symptom for outcome in found))
    kind = "hint" if len(hints) == len(found) else "problem"
    text = " and ".join(part for part in counts if not part.startswith("0 "))
    return f'<p class="verdict {kind}"><a href="#findings">{escape(text)}</a>: {escape(symptoms)}</p>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes[:MOST_ROWS])
    return f'<ul class="soft">{items}</ul>' if notes else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; columns in ``numbers`` are right-aligned. Cells are text, not HTML."""

    def cells(tag: str, row: Sequence[str]) -> str:
        classes = [' class="number"' if index in numbers else "" for index in range(len(row))]
        return "".join(f"<{tag}{name}>{escape(cell)}</{tag}>" for name, cell in zip(classes, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:MOST_ROWS])
    more = f'<p class="soft">{len(rows) - MOST_ROWS} more rows are left out.</p>' if len(rows) > MOST_ROWS else ""
    return f'<div class="scroll"><table><thead><tr>{cells("th", heads)}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def _runs(groups: Groups) -> str:
    heads = [
        "run",
        "algorithm",
        "task",
        "seed",
        "steps",
        "episodes",
        "last training return",
        "last evaluation",
        "best evaluation",
    ]
    rows = [_row(run) for runs in groups.values() for run in runs]
    return f'<div class="runs">{_table([*heads, "steps per second"], rows, range(3, 10))}</div>'


def _row(run: Run) -> list[str]:
    training = smooth(run.episodes) if run.episodes is not None else None
    evaluated = run.evaluations.means().finite() if run.evaluations is not None else None
    rate = mean_speed(run)
    return [
        run.name,
        run.algorithm or "unknown",
        run.env_id or "unknown",
        "–" if run.seed is None else str(run.seed),
        f"{run.n_steps:,}",
        "–" if run.episodes is None else f"{len(run.episodes):,}",
        number(float(training.values[-1])) if training is not None and len(training) > 0 else "–",
        number(float(evaluated.values[-1])) if evaluated is not None and len(evaluated) > 0 else "–",
        number(float(evaluated.values.max())) if evaluated is not None and len(evaluated) > 0 else "–",
        number(rate) if rate is not None else "–",
    ]


def _interval(groups: Groups) -> str:
    sizes = {len(runs) for runs in groups.values()}
    if max(sizes) < 2:
        return ""
    words = ["Thin lines are single runs, thick ones their mean where all of them have values."]
    if max(sizes) > 2:
        words.append(
            "The band is the 95 % confidence interval of the mean (Student's t); where two runs have values, their range."
        )
    else:
        words.append("The band is the range of the two runs.")
    unequal = [runs for runs in groups.values() if len({run.n_steps for run in runs}) > 1]
    if unequal:
        words.append("Runs of one group have unequal lengths: mean and band end where the shortest does.")
    if any(not run.settings.known for runs in groups.values() for run in runs if len(runs) > 1):
        words.append(
            "Some settings are not known: those runs are taken for seeds of one setting because they lie in one folder."
        )
    return f'<p class="soft">{escape(" ".join(words))}</p>'


def _plots(groups: Groups) -> str:
    tasks = by_task(groups)
    parts: list[str] = []
    index = 0
    for task, members in tasks.items():
        panels = make_panels(members)
        parts += [f"<h3>{escape(task)}</h3>"] if len(tasks) > 1 else []
        figures = [_figure(panel, index + number) for number, panel in enumerate(panels)]
        index += len(panels)
        parts += ['<div class="plots">', *figures, "</div>"]
        if not panels:
            parts.append("<p>There is nothing to plot: no episode has ended, and no metric was logged.</p>")
    return "\n".join(parts)


def _figure(panel: Panel, index: int) -> str:
    legend = "".join(_legend(line) for line in panel.lines if line.label)
    listed = f'<ul class="legend">{legend}</ul>' if legend else ""
    caption = f"<figcaption>{escape(panel.caption)}</figcaption>"
    return f"<figure><h3>{escape(panel.title)}</h3>{listed}{draw(panel, index)}{caption}</figure>"


def _legend(line: Line) -> str:
    dashes = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')[line.dashes]
    mark = f'<path d="M0 5H30" stroke="var(--c{line.color % 8})" stroke-width="3"{dashes}/>'
    return f'<li><svg viewBox="0 0 30 10" aria-hidden="true">{mark}</svg>{escape(line.label)}</li>'


def _findings(outcomes: Sequence[Outcome], groups: Groups) -> str:
    found = sorted((outcome for outcome in outcomes if outcome.findings), key=lambda outcome: outcome.is_hint)
    if not found:
        return "<p>None: no rule that could be judged found a symptom. That proves nothing about returns.</p>"
    algorithms = {run.algorithm for outcome in found for run in groups[outcome.group] if run.name in outcome.findings}
    others = sorted(name for name in algorithms if name is not None and name not in ("SoftAC", "SoftQL"))
    note = (
        f"What to try names the options of SoftAC, not all of which {_listed(others)} {'has' if len(others) == 1 else 'have'}."
    )
    parts = [f'<p class="soft">{escape(note)}</p>'] if others else []
    return "\n".join([*parts, *(_finding(outcome, len(groups) > 1) for outcome in found)])


def _finding(outcome: Outcome, name_groups: bool) -> str:
    findings = list(outcome.findings.items())
    where = [outcome.group] if name_groups else []
    if outcome.n_runs > 1:
        where.append(f"{len(findings)} of {outcome.n_runs} runs")
    place = f' <span class="soft">({escape("; ".join(where))})</span>' if where else ""
    kind = "hint" if outcome.is_hint else "problem"
    blocks = []
    for symptom in dict.fromkeys(finding.symptom for _, finding in findings):
        same = [(name, finding) for name, finding in findings if finding.symptom == symptom]
        evidence = "<br>".join(
            escape(finding.evidence if outcome.n_runs == 1 else f"{name}: {finding.evidence}") for name, finding in same
        )
        blocks.append(
            f'<h3><span class="{kind}">{kind.capitalize()}:</span> {escape(symptom)}{place}</h3>'
            f"<dl><dt>Evidence</dt><dd>{evidence}</dd><dt>What to try</dt><dd>{escape(same[0][1].advice)}</dd></dl>"
        )
    rule = f'<p class="soft">Rule <code>{escape(outcome.rule)}</code> of docs/diagnosis.md.</p>'
    return f'<section class="finding{" is-hint" if outcome.is_hint else ""}">{"".join(blocks)}{rule}</section>'


def _unknown(outcomes: Sequence[Outcome]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for name, reason in outcome.unknown.items():
            rows.setdefault((outcome.rule, reason), []).append(name)
    if not rows:
        return ""
    table = _table(["rule", "why not", "runs"], [[*key, ", ".join(names)] for key, names in rows.items()])
    return f"<details><summary>What could not be judged ({count(len(rows), 'reason')})</summary>{table}</details>"


def _settings(groups: Groups) -> str:
    parts = []
    for label, runs in groups.items():
        settings = runs[0].settings
        if len(groups) > 1:
            parts.append(f"<h3>{escape(label)}</h3>")
        if settings.source is None:
            parts.append(
                '<p class="soft">Not known: there is neither a config.yml of RL Zoo nor a saved model beside the logs.</p>'
            )
            continue
        rows = [[name, _shown(value), _shown(default)] for name, (value, default) in settings.differing().items()]
        known = settings.defaults is not None
        rows = [
            [name, value, default if known and name in (settings.defaults or {}) else "–"] for name, value, default in rows
        ]
        source = f"From {settings.source}" + ("." if known else "; the defaults of this algorithm are not known here.")
        parts.append(_table(["option", "value", "default"], rows) if rows else "<p>None.</p>")
        if settings.unread:
            parts.append(
                f"<p>Set to a function or another object, which is not read: {escape(_listed(sorted(settings.unread)))}.</p>"
            )
        parts.append(f'<p class="soft">{escape(source)} Options of RL Zoo itself have no default here (–).</p>')
    return "\n".join(parts)


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 300 else f"{repr(value)[:297]}..."
